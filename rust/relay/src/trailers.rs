//! How a call ended, in its trailers: gRPC's own, and what model servers and instances add for us.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::status::{Code, NotHere, Status, percent_decode, percent_encode};

/// gRPC's own.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// gRPC's own.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// Private trailer: the model server does not hold this model.
pub const NOT_HERE: HeaderName = HeaderName::from_static("mm-not-here");
/// Its value when a model server said so in words.
const TOLD: &str = "told";
/// Private trailer: how long the model took, in microseconds.
pub const EXECUTION_US: HeaderName = HeaderName::from_static("mm-execution-us");

/// What the private headers and trailers of a model server said; they are gone afterwards.
#[derive(Debug, Default)]
pub struct Private {
    /// The model is not held there.
    pub not_here: Option<NotHere>,
    /// How long it took.
    pub execution_us: Option<u64>,
}

/// Takes the private headers out.
pub fn take_private(headers: &mut HeaderMap) -> Private {
    let not_here = headers.remove(NOT_HERE).map(|value| match value == TOLD {
        true => NotHere::Told,
        false => NotHere::Gone,
    });
    let execution_us = headers
        .remove(EXECUTION_US)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    Private {
        not_here,
        execution_us,
    }
}

/// The code in trailers; `None` when they have none.
pub fn code_in(trailers: &HeaderMap) -> Option<Code> {
    let value = trailers.get(&GRPC_STATUS)?;
    Some(Code::from_number(
        value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(2),
    ))
}

/// The code and sentence in trailers.
pub fn status_in(trailers: &HeaderMap) -> Option<Status> {
    let code = code_in(trailers)?;
    let message = trailers
        .get(&GRPC_MESSAGE)
        .map(|value| percent_decode(value.as_bytes()));
    let mut status = Status::new(code, message.unwrap_or_default());
    let pushback = trailers
        .get(&PUSHBACK)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    status.retry_after = pushback.map(Duration::from_millis);
    Some(status)
}

/// A status as trailers, or as the headers of a reply that has nothing else.
pub fn of_status(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as u16));
    if !status.message.is_empty()
        && let Ok(value) = HeaderValue::from_str(&percent_encode(&status.message))
    {
        headers.insert(GRPC_MESSAGE, value);
    }
    if let Some(after) = status.retry_after {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        headers.insert(PUSHBACK, HeaderValue::from(after_ms));
    }
    if let Some(not_here) = status.not_here {
        let value = match not_here {
            NotHere::Gone => "1",
            NotHere::Told => TOLD,
        };
        headers.insert(NOT_HERE, HeaderValue::from_static(value));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_trailers_are_taken_out() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [("mm-execution-us", "12"), ("grpc-status", "0"), ("x", "y")] {
            trailers.insert(name, HeaderValue::from_static(value));
        }
        let private = take_private(&mut trailers);
        assert_eq!(private.execution_us, Some(12));
        assert_eq!(private.not_here, None);
        assert_eq!(trailers.len(), 2);
    }
}
