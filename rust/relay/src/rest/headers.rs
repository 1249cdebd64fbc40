//! Which model a REST call is for, and which of its headers travel on and back.

use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use inference::grpc::unbase64;

use crate::id_headers::names_of;
use crate::name::{Name, NameKind};
use crate::status::{Code, Status};

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
    let mut asked = names_of(headers)?;
    asked.dedup();
    match asked.as_slice() {
        [] => Ok(Name::new(NameKind::VModelFirst, path_name, version)),
        [one] => Ok(Name::new(one.kind, &one.name, version)),
        _ => Err(Status::new(
            Code::Unimplemented,
            "The request names several models, and over REST it is for one; send one per model, or call over gRPC.",
        )),
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
        text && (!binary || unbase64(value.as_bytes()).is_some())
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
        let name_of = |pairs| name(&headers(pairs), "path", "2");
        assert_eq!(
            name_of(&[]),
            Ok(Name::new(NameKind::VModelFirst, "path", "2"))
        );
        assert_eq!(
            name_of(&[("mm-model-id", b"a")]),
            Ok(Name::new(NameKind::ModelFirst, "a", "2"))
        );
        assert_eq!(
            name_of(&[("mm-vmodel-id", b"v")]),
            Ok(Name::new(NameKind::VModel, "v", "2"))
        );
        let both = name_of(&[("mm-model-id", b"a"), ("mm-vmodel-id", b"v")]);
        assert_eq!(both.unwrap_err().http_status(), 400);
        assert_eq!(
            name_of(&[("mm-model-id", b"a"), ("mm-model-id", b"a")]),
            Ok(Name::new(NameKind::ModelFirst, "a", "2"))
        );
        let several = name_of(&[("mm-model-id", b"a"), ("mm-model-id", b"b")]);
        assert_eq!(several.unwrap_err().code, Code::Unimplemented);
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
