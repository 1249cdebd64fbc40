//! What a call ends with: a gRPC code, a sentence, and what it is over HTTP.

use std::borrow::Cow;
use std::time::Duration;

pub use inference::code::{CODES, Code};

/// How a call ended, as the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The gRPC code.
    pub code: Code,
    /// A sentence for the user; empty when all went well.
    pub message: Cow<'static, str>,
    /// When it is worth asking again; `None` when unknown or never.
    pub retry_after: Option<Duration>,
    /// The HTTP status where it is not the one of the code.
    pub http: Option<u16>,
    /// For another instance that sent the request on: why it should look elsewhere.
    pub not_here: Option<NotHere>,
}

/// Why a copy that was believed to be somewhere is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHere {
    /// It is known to be gone.
    Gone,
    /// The model server said so in words, which may be the model's own: believed once per request.
    Told,
}

impl Status {
    /// A status without retry information.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Status {
        Status {
            code,
            message: message.into(),
            retry_after: None,
            http: None,
            not_here: None,
        }
    }

    /// All went well.
    pub fn ok() -> Status {
        Status::new(Code::Ok, "")
    }

    /// The same, telling the client when to come back.
    pub fn retry_after(mut self, after: Duration) -> Status {
        self.retry_after = Some(after);
        self
    }

    /// The same, with an HTTP status that is not the one of the code.
    pub fn over_http(mut self, http: u16) -> Status {
        self.http = Some(http);
        self
    }

    /// A message beyond the size limit; 413 over HTTP.
    pub fn too_large(what: &str, size: u64, limit: u64) -> Status {
        let sentence = format!(
            "The {what} message of {size} bytes is over the limit of {limit} bytes; send less or raise it."
        );
        Status::new(Code::ResourceExhausted, sentence).over_http(413)
    }

    /// What to answer over HTTP.
    pub fn http_status(&self) -> u16 {
        self.http.unwrap_or_else(|| self.code.http_status())
    }
}

/// A sentence as the `grpc-message` header carries it: all but printable ASCII percent-encoded, '%' too.
pub fn percent_encode(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            for nibble in [byte >> 4, byte & 15] {
                encoded.push(
                    char::from_digit(u32::from(nibble), 16)
                        .unwrap_or('0')
                        .to_ascii_uppercase(),
                );
            }
        }
    }
    encoded
}

/// The reverse of [`percent_encode`]; broken escapes stay as they are, bytes that are no UTF-8 are replaced.
pub fn percent_decode(header: &[u8]) -> String {
    let digit = |at: usize| {
        header
            .get(at)
            .and_then(|byte| char::from(*byte).to_digit(16))
    };
    let mut decoded = Vec::with_capacity(header.len());
    let mut at = 0;
    while at < header.len() {
        if let (b'%', Some(high), Some(low)) = (header[at], digit(at + 1), digit(at + 2)) {
            decoded.push((high * 16 + low) as u8);
            at += 3;
        } else {
            decoded.push(header[at]);
            at += 1;
        }
    }
    String::from_utf8(decoded)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_survive_the_header() {
        for sentence in ["", "plain", "100 % größer\n", "→", "a%20b"] {
            let header = percent_encode(sentence);
            assert!(header.bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
            assert_eq!(percent_decode(header.as_bytes()), sentence);
        }
        assert_eq!(percent_decode(b"50%"), "50%");
        assert_eq!(percent_decode(b"%zz"), "%zz");
    }
}
