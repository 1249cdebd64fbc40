//! What a call ends with: a gRPC code, a sentence, and what it is over HTTP.

use std::borrow::Cow;
use std::time::Duration;

pub use inference::code::{CODES, Code};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

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

    /// Whether a model server that does not signal loss says in words that it lost the model. Both texts count only when they name
    /// it: an input may be "not found" too.
    pub fn tells_loss(&self, model: &str) -> bool {
        let text = &self.message;
        let names_it = text.contains(model);
        let unknown = text.starts_with("Request for unknown model")
            && (text.ends_with(" is not found") || text.ends_with(" has no available versions"));
        let not_found = text.starts_with("Model ") && text.ends_with(" not found");
        names_it
            && match self.code {
                Code::Unavailable => unknown,
                Code::InvalidArgument => not_found,
                _ => false,
            }
    }
}

/// What of printable ASCII `grpc-message` does not carry as it is, either.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// A sentence as the `grpc-message` header carries it: all but printable ASCII percent-encoded, '%' too.
pub fn percent_encode(message: &str) -> String {
    utf8_percent_encode(message, ESCAPED).to_string()
}

/// The reverse of [`percent_encode`]; broken escapes stay as they are, bytes that are no UTF-8 are replaced.
pub fn percent_decode(header: &[u8]) -> String {
    percent_encoding::percent_decode(header)
        .decode_utf8_lossy()
        .into_owned()
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

    #[test]
    fn legacy_texts_count_only_with_the_id() {
        let says = |code, text: &'static str| Status::new(code, text).tells_loss("iris");
        assert!(says(Code::InvalidArgument, "Model iris not found"));
        assert!(!says(Code::InvalidArgument, "Model input not found"));
        assert!(says(
            Code::Unavailable,
            "Request for unknown model: 'iris' is not found"
        ));
        assert!(says(
            Code::Unavailable,
            "Request for unknown model: 'iris' has no available versions"
        ));
        assert!(!says(
            Code::Unavailable,
            "Request for unknown model: 'other' is not found"
        ));
        assert!(!says(Code::Internal, "Model iris not found"));
    }
}
