//! When the client stops waiting: `grpc-timeout`, read and written.

use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use inference::grpc::timeout;

use crate::status::{Code, Status};

/// How long the sender waits.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// When the client stops waiting, from `grpc-timeout`.
///
/// # Errors
/// INVALID_ARGUMENT when the header is malformed.
pub fn deadline_of(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get(&GRPC_TIMEOUT) else {
        return Ok(None);
    };
    match timeout(value.as_bytes()) {
        // More than decades is no deadline.
        Some(timeout) => Ok(now.checked_add(timeout.min(Duration::from_secs(1 << 30)))),
        None => Err(Status::new(
            Code::InvalidArgument,
            "The header grpc-timeout is malformed; it is up to 8 digits and a unit of H, M, S, m, u or n.",
        )),
    }
}

/// Writes the time that is left, if it is bounded.
pub fn set_timeout(headers: &mut HeaderMap, deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        headers.insert(GRPC_TIMEOUT, timeout_header(left));
    }
}

fn timeout_header(left: Duration) -> HeaderValue {
    let text = match left.as_micros() {
        micros if micros < 100_000_000 => format!("{}u", micros.max(1)),
        micros if micros < 100_000_000_000 => format!("{}m", micros / 1000),
        micros => format!("{}S", (micros / 1_000_000).min(99_999_999)),
    };
    let mut value = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("1u"));
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_written_is_never_longer() {
        for seconds in [0, 1, 99, 100, 100_000, 1 << 40] {
            let left = Duration::from_secs(seconds);
            let read = timeout(timeout_header(left).as_bytes()).expect("readable");
            assert!(read <= left.max(Duration::from_micros(1)));
        }
    }
}
