//! Fuzz targets for parsers that are private to this crate. Compiled only with the feature `fuzzing`, for `rust/fuzz`;
//! each panics when a promise is broken.

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Method as Verb};

use crate::deadline::deadline_of;
use crate::frames::{Frames, PREFIX_BYTES, gunzip, parse_prefix};
use crate::headers::{forwarded, list_bytes, to_peer};
use crate::id_headers::{id_header, names_of};
use crate::method::Method;
use crate::rest::{Endpoint, passed_on, route};
use crate::status::{Code, Status};
use crate::trailers::{of_status, status_in};

/// A request's head: the first line is the path, the others are headers as `name: value`.
pub fn head(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let path = String::from_utf8_lossy(lines.next().unwrap_or_default());
    for verb in [Verb::GET, Verb::POST] {
        if let Ok(Endpoint::Model { name, .. }) = route(&verb, &path) {
            assert!(!name.is_empty(), "a routed call has a name");
        }
    }
    let method = Method::of(&path, 0, None);
    assert_eq!(&*method.path, path.as_ref());

    let headers: HeaderMap = lines.filter_map(header).collect();
    for name in names_of(&headers).unwrap_or_default() {
        assert!(!name.name.is_empty(), "an id is never empty");
    }
    if let Ok(received) = forwarded(&headers) {
        let id = id_header(&received.model);
        let sent = to_peer(&headers, &received, &id, &id_header("peer"), None);
        assert_eq!(
            forwarded(&sent).as_ref(),
            Ok(&received),
            "it survives a hop"
        );
    }
    let now = Instant::now();
    if let Ok(Some(deadline)) = deadline_of(&headers, now) {
        assert!(deadline >= now);
    }
    let passed = passed_on(&headers);
    assert!(list_bytes("", &passed) <= list_bytes("", &headers));
    assert!(passed.values().all(|value| {
        value
            .as_bytes()
            .iter()
            .all(|byte| (0x20..=0x7e).contains(byte))
    }));
    // What a model server may say in its trailers.
    let _ = status_in(&headers);
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let value = line[colon + 1..].trim_ascii();
    Some((
        HeaderName::from_bytes(&line[..colon]).ok()?,
        HeaderValue::from_bytes(value).ok()?,
    ))
}

/// gRPC frames: the first byte is how they are cut. Cut anywhere, the verdict is that of reading them whole.
pub fn frames(input: &[u8]) {
    const BYTES_MAX: usize = 1000;
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let mut frames = Frames::new("request", BYTES_MAX);
    let fed = bytes
        .chunks(usize::from(*cut).max(1))
        .try_for_each(|chunk| frames.feed(chunk));
    let accepted = fed.and_then(|()| frames.end()).is_ok();
    assert_eq!(accepted, whole(bytes, BYTES_MAX), "cut by {cut}");

    if let Ok((plain, _)) = gunzip(bytes, BYTES_MAX) {
        assert!(plain.len() <= BYTES_MAX);
    }
    let sentence = String::from_utf8_lossy(bytes).into_owned();
    let status = Status::new(Code::Internal, sentence);
    assert_eq!(
        status_in(&of_status(&status)).map(|read| read.message),
        Some(status.message),
        "sentences survive"
    );
}

/// The same by the simplest means: frame after frame, with everything at hand.
fn whole(mut bytes: &[u8], bytes_max: usize) -> bool {
    while !bytes.is_empty() {
        let Some((_, len)) = parse_prefix(bytes) else {
            return false;
        };
        let rest = &bytes[PREFIX_BYTES..];
        if bytes[0] > 1 || len > bytes_max || len > rest.len() {
            return false;
        }
        bytes = &rest[len..];
    }
    true
}
