//! What a failed call says: a gRPC code, a sentence, and whether the copy is not here.

use std::fmt;

/// The gRPC status codes used here, by their numbers on the wire (<https://grpc.io/docs/guides/status-codes>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// The code with this number; `Unknown` for OK and numbers that are none, because a failure must not read as success.
    #[must_use]
    pub fn of(number: i64) -> Self {
        match number {
            1 => Self::Cancelled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}

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
