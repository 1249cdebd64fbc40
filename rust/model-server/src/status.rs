//! What a failed call says: a gRPC code, a sentence, and whether the copy is not here.

use std::fmt;

pub use inference::code::Code;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The gRPC code.
    pub code: Code,
    /// A sentence for the caller.
    pub message: String,
    /// The model is not held here: the trailer `mm-not-here` says so, and the caller goes elsewhere.
    pub not_here: bool,
    /// When it is worth asking again, in milliseconds: the trailer `grpc-retry-pushback-ms`.
    pub pushback_ms: Option<u32>,
}

impl Status {
    /// A failure with a code and a sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            not_here: false,
            pushback_ms: None,
        }
    }

    /// The call is malformed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// The server holds no such model.
    #[must_use]
    pub fn not_here(model: &str) -> Self {
        Self {
            not_here: true,
            ..Self::new(
                Code::NotFound,
                format!("Model {model} is not loaded in this server."),
            )
        }
    }

    /// Too much waits already; ask again after `pushback_ms`.
    pub fn exhausted(message: impl Into<String>, pushback_ms: u32) -> Self {
        Self {
            pushback_ms: Some(pushback_ms),
            ..Self::new(Code::ResourceExhausted, message)
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}
