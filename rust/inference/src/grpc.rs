//! What gRPC writes in headers, for both halves of the data plane
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Values of binary headers are sent without padding, and come with and without.
static BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Bytes as the value of a `-bin` header.
pub fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// The bytes in the value of a `-bin` header; `None` when it is no base64.
pub fn unbase64(value: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(value).ok()
}

/// How long the sender of a `grpc-timeout` waits; `None` when it is malformed.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0u64, |amount, digit| amount * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_comes_with_and_without_padding() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("aQ", b"i"),
            ("aQ==", b"i"),
            ("aXI=", b"ir"),
            ("aXJp", b"iri"),
            ("/+8", b"\xff\xef"),
        ] {
            assert_eq!(unbase64(text.as_bytes()).as_deref(), Some(bytes), "{text}");
            assert_eq!(base64(bytes), text.trim_end_matches('='));
        }
        for nonsense in ["a", "a=b", "aX-p", "aaaaa"] {
            assert_eq!(unbase64(nonsense.as_bytes()), None, "{nonsense}");
        }
    }

    #[test]
    fn timeouts_are_read_and_nonsense_is_not() {
        for (text, micros) in [
            ("2S", 2_000_000),
            ("99999999H", 99_999_999 * 3_600_000_000),
            ("250m", 250_000),
            ("99999999u", 99_999_999),
            ("1n", 0),
        ] {
            assert_eq!(timeout(text.as_bytes()).expect(text).as_micros(), micros);
        }
        for bad in ["", "S", "1", "123456789S", "-1S", "1x", "1 S"] {
            assert_eq!(timeout(bad.as_bytes()), None, "{bad}");
        }
    }
}
