//! What a REST call says in headers, and which headers travel on and back.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::name::{Name, NameKind};
use crate::status::{Code, Status};

/// Binary headers come with and without padding (gRPC over HTTP/2, "Custom-Metadata").
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Headers of HTTP/1.1 itself, or that speak about the JSON body, which is not what travels on.
const OURS: [HeaderName; 16] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::DATE,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::USER_AGENT,
    HeaderName::from_static("keep-alive"),
];

/// The model a call is for: an id header wins over the name in the path, which is a vmodel's before it is a model's.
pub fn name(headers: &HeaderMap, path_name: &str, version: &str) -> Result<Name, Status> {
    let (kind, header) = match (id(headers, "mm-model-id")?, id(headers, "mm-vmodel-id")?) {
        (Some(_), Some(_)) => {
            return Err(refused(
                "The request has both mm-model-id and mm-vmodel-id; send one of them.",
            ));
        }
        (Some(model), None) => (NameKind::ModelFirst, Some(model)),
        (None, Some(vmodel)) => (NameKind::VModel, Some(vmodel)),
        (None, None) => (NameKind::VModelFirst, None),
    };
    Ok(Name::new(
        kind,
        header.as_deref().unwrap_or(path_name),
        version,
    ))
}

/// The id in a header, or in its binary form when the plain one is absent.
fn id(headers: &HeaderMap, plain: &str) -> Result<Option<String>, Status> {
    let binary = format!("{plain}-bin");
    let (key, values) = if headers.contains_key(plain) {
        (plain, headers.get_all(plain))
    } else {
        (binary.as_str(), headers.get_all(&binary))
    };
    let mut values = values.iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        let sentence = format!(
            "The request has the header {key} more than once; over REST, send one request per model."
        );
        return Err(Status::new(Code::Unimplemented, sentence));
    }
    let bytes = if key == plain {
        Some(value.as_bytes().to_vec())
    } else {
        BASE64.decode(value).ok()
    };
    match bytes.and_then(|bytes| String::from_utf8(bytes).ok()) {
        Some(id) if !id.is_empty() => Ok(Some(id)),
        _ => Err(refused(format!(
            "The header {key} holds no model id; write the id as UTF-8, base64-encoded in a -bin header."
        ))),
    }
}

/// When the caller stops waiting, by the header `grpc-timeout`: up to eight digits and one of H, M, S, m, u, n.
pub fn deadline(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let timeout = value.to_str().ok().and_then(timeout).ok_or_else(|| {
        refused("The header grpc-timeout is up to eight digits and one of H, M, S, m, u, n, as in 500m for half a second.")
    })?;
    Ok(Some(now + timeout))
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The headers a model server gets. What gRPC could not carry as metadata is left out: values that are not printable
/// ASCII, binary headers that are not base64.
pub fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let connection = headers.get_all(header::CONNECTION).iter();
    let named: Vec<&str> = connection
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let carried = |name: &HeaderName, value: &HeaderValue| {
        let text = value.to_str().is_ok_and(|text| !text.contains('\t'));
        let binary = name.as_str().ends_with("-bin");
        text && (!binary || BASE64.decode(value).is_ok())
    };
    let mut passed = HeaderMap::new();
    for (name, value) in headers {
        let hop = OURS.contains(name)
            || named
                .iter()
                .any(|hop| name.as_str().eq_ignore_ascii_case(hop));
        let protocol =
            name.as_str().starts_with("grpc-") || name == "inference-header-content-length";
        if !hop && !protocol && carried(name, value) {
            passed.append(name, value.clone());
        }
    }
    passed
}

/// Moves the model server's response headers to ours, without those that speak of its own message.
pub fn pass_back(from: HeaderMap, to: &mut HeaderMap) {
    for (name, value) in &from {
        if !OURS.contains(name) && !name.as_str().starts_with("grpc-") {
            to.append(name, value.clone());
        }
    }
}

/// `Retry-After` in whole seconds, never earlier than asked.
pub fn retry_after(after: Duration) -> HeaderValue {
    HeaderValue::from(after.as_secs() + u64::from(after.subsec_nanos() != 0))
}

fn refused(sentence: impl Into<std::borrow::Cow<'static, str>>) -> Status {
    Status::new(Code::InvalidArgument, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static [u8])| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_bytes(value).unwrap(),
            )
        };
        let mut headers = HeaderMap::new();
        pairs.iter().map(pair).for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    #[test]
    fn id_headers_win_over_the_path() {
        let name_of = |pairs: &[(&'static str, &'static [u8])]| name(&headers(pairs), "path", "2");
        let named = |kind, id| Ok(Name::new(kind, id, "2"));
        assert_eq!(name_of(&[]), named(NameKind::VModelFirst, "path"));
        assert_eq!(
            name_of(&[("mm-model-id", b"a")]),
            named(NameKind::ModelFirst, "a")
        );
        assert_eq!(
            name_of(&[("mm-model-id-bin", b"w6k=")]),
            named(NameKind::ModelFirst, "é")
        );
        assert_eq!(
            name_of(&[("mm-model-id-bin", b"w6k")]),
            named(NameKind::ModelFirst, "é")
        );
        assert_eq!(
            name_of(&[("mm-model-id-bin", b"w6k="), ("mm-model-id", b"a")]),
            named(NameKind::ModelFirst, "a")
        );
        assert_eq!(
            name_of(&[("mm-vmodel-id", b"v")]),
            named(NameKind::VModel, "v")
        );
        for wrong in [
            &[("mm-model-id", &b"a"[..]), ("mm-vmodel-id", b"v")][..],
            &[("mm-model-id", b"")],
            &[("mm-model-id", b"\xff")],
            &[("mm-vmodel-id-bin", b"!")],
        ] {
            assert_eq!(
                name_of(wrong).unwrap_err().code,
                Code::InvalidArgument,
                "{wrong:?}"
            );
        }
        let twice = name_of(&[("mm-model-id", b"a"), ("mm-model-id", b"b")]);
        assert_eq!(twice.unwrap_err().code, Code::Unimplemented);
    }

    #[test]
    fn deadlines() {
        let now = Instant::now();
        let deadline =
            |value: &'static str| deadline(&headers(&[("grpc-timeout", value.as_bytes())]), now);
        assert_eq!(super::deadline(&HeaderMap::new(), now), Ok(None));
        for (value, expected) in [
            ("2H", 7200_000),
            ("3M", 180_000),
            ("4S", 4000),
            ("500m", 500),
            ("1000u", 1),
        ] {
            assert_eq!(
                deadline(value),
                Ok(Some(now + Duration::from_millis(expected))),
                "{value}"
            );
        }
        assert!(deadline("99999999H").is_ok());
        for wrong in ["", "1", "S", "-1S", "+1S", "1.5S", "123456789S", "1s", "1é"] {
            assert_eq!(
                deadline(wrong).unwrap_err().code,
                Code::InvalidArgument,
                "{wrong}"
            );
        }
    }

    #[test]
    fn only_what_grpc_can_carry_travels_on() {
        let from = headers(&[
            ("host", b"h"),
            ("connection", b"close, X-Hop"),
            ("x-hop", b"1"),
            ("grpc-timeout", b"1S"),
            ("content-type", b"application/json"),
            ("authorization", b"Bearer t"),
            ("x-latin", b"\xe9"),
            ("x-bin", b"not base64!"),
            ("y-bin", b"AA=="),
            ("x-twice", b"1"),
            ("x-twice", b"2"),
        ]);
        let expected = headers(&[
            ("authorization", b"Bearer t"),
            ("y-bin", b"AA=="),
            ("x-twice", b"1"),
            ("x-twice", b"2"),
        ]);
        assert_eq!(passed_on(&from), expected);
    }

    #[test]
    fn retry_after_is_rounded_up() {
        for (millis, seconds) in [(0, "0"), (1, "1"), (1000, "1"), (1001, "2")] {
            assert_eq!(retry_after(Duration::from_millis(millis)), seconds);
        }
    }
}
