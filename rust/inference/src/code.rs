//! The gRPC status codes, for both halves of the data plane, and what each is over HTTP.

/// The gRPC status codes, by their numbers on the wire (<https://grpc.io/docs/guides/status-codes>).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Code {
    Ok = 0,
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

/// All codes, at their own index.
pub const CODES: [Code; 17] = [
    Code::Ok,
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];

impl Code {
    /// The code with this number; `Unknown` when there is none, as the gRPC specification asks.
    pub fn from_number(number: u64) -> Code {
        usize::try_from(number)
            .ok()
            .and_then(|at| CODES.get(at).copied())
            .unwrap_or(Code::Unknown)
    }

    /// The code of a failure with this number; `Unknown` for OK and for numbers that are none, because a failure must not
    /// read as success.
    #[must_use]
    pub fn of_failure(number: i64) -> Code {
        match u64::try_from(number) {
            Ok(1..) => Code::from_number(number.unsigned_abs()),
            _ => Code::Unknown,
        }
    }

    /// The HTTP status of a bare code; `modelmesh.errors.HTTP_OF_CODE` is the same table.
    pub fn http_status(self) -> u16 {
        match self {
            Code::Ok => 200,
            Code::Cancelled => 499,
            Code::InvalidArgument | Code::OutOfRange => 400,
            Code::DeadlineExceeded => 504,
            Code::NotFound => 404,
            Code::AlreadyExists | Code::Aborted => 409,
            Code::PermissionDenied => 403,
            Code::ResourceExhausted => 429,
            Code::FailedPrecondition => 412,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::Unauthenticated => 401,
            Code::Unknown | Code::Internal | Code::DataLoss => 500,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_stands_at_its_number() {
        for (number, code) in CODES.iter().enumerate() {
            assert_eq!(*code as usize, number);
            assert_eq!(Code::from_number(number as u64), *code);
        }
        assert_eq!(Code::from_number(17), Code::Unknown);
        assert_eq!(Code::from_number(u64::MAX), Code::Unknown);
    }

    #[test]
    fn a_failure_never_reads_as_success() {
        for number in [0, -1, 2, 17, i64::MIN, i64::MAX] {
            assert_eq!(Code::of_failure(number), Code::Unknown);
        }
        for (number, code) in (0i64..).zip(CODES).skip(1) {
            assert_eq!(Code::of_failure(number), code);
        }
    }
}
