//! Which headers travel: to a model, and back to the client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{
    AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION,
};

use crate::event::Told;
use crate::method::Method;
use crate::name::{Name, NameKind};
use crate::status::{Code, NotHere, Status, percent_encode};

/// The concrete model, in requests to a model server and in responses.
pub const MODEL_ID: HeaderName = HeaderName::from_static("mm-model-id");
const MODEL_ID_BIN: HeaderName = HeaderName::from_static("mm-model-id-bin");
const VMODEL_ID: HeaderName = HeaderName::from_static("mm-vmodel-id");
const VMODEL_ID_BIN: HeaderName = HeaderName::from_static("mm-vmodel-id-bin");
const LEGACY_ID: HeaderName = HeaderName::from_static("tas-model-id");
/// Of a request for several models: whether all have to be known.
const REQUIRED: HeaderName = HeaderName::from_static("mm-required");
/// Private trailer: the model server does not hold this model.
const NOT_HERE: HeaderName = HeaderName::from_static("mm-not-here");
/// Its value when a model server said so in words.
const TOLD: &str = "told";
/// Private trailer: how long the model took, in microseconds.
const EXECUTION_US: HeaderName = HeaderName::from_static("mm-execution-us");
/// Private: another instance sent the request on; its peer port.
const PEER: HeaderName = HeaderName::from_static("mm-peer");
/// Private, between instances: a model server said before that it does not hold the model of this request.
const RELOADED: HeaderName = HeaderName::from_static("mm-reloaded");
/// Those that name a model, or belong to what instances and model servers say to each other.
const OURS: [HeaderName; 9] = [
    MODEL_ID,
    MODEL_ID_BIN,
    VMODEL_ID,
    VMODEL_ID_BIN,
    REQUIRED,
    NOT_HERE,
    EXECUTION_US,
    PEER,
    RELOADED,
];
/// gRPC's own.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// gRPC's own.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// What clients prove themselves by.
const CREDENTIALS: [HeaderName; 3] = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE];

/// A header value for an id: as it is when printable, else percent-encoded. Never indexed: ids would flush HPACK's table.
pub fn id_header(id: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(id)
        .or_else(|_| HeaderValue::from_str(&percent_encode(id)))
        .unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// Longest value of a header that is told, in bytes.
const TOLD_BYTES_MAX: usize = 256;

/// The values of the wanted headers, the last one of each, as texts of bounded length. Those of names ending with -bin are
/// decoded first; what is no UTF-8 is replaced.
pub fn told(wanted: &[(HeaderName, String)], headers: &HeaderMap) -> Told {
    let tell = |(header, name): &(HeaderName, String)| {
        let value = headers.get_all(header).iter().next_back()?.as_bytes();
        let decoded = header.as_str().ends_with("-bin").then(|| unbase64(value));
        let value = match &decoded {
            Some(decoded) => decoded.as_deref()?,
            None => value,
        };
        let text = String::from_utf8_lossy(&value[..value.len().min(TOLD_BYTES_MAX)]);
        Some((name.clone(), text.into_owned()))
    };
    wanted.iter().filter_map(tell).collect()
}

/// The names the headers ask for, in their order; none when they name nothing. Several: the request is for each of them.
///
/// # Errors
/// INVALID_ARGUMENT when they are contradictory, empty or unreadable.
pub fn names_of(headers: &HeaderMap) -> Result<Vec<Name>, Status> {
    let models = ids(headers, &MODEL_ID, &MODEL_ID_BIN, NameKind::ModelFirst)?;
    let vmodels = ids(headers, &VMODEL_ID, &VMODEL_ID_BIN, NameKind::VModel)?;
    match (models.is_empty(), vmodels.is_empty()) {
        (false, false) => Err(Status::new(
            Code::InvalidArgument,
            "The request names a model and a vmodel; send either mm-model-id or mm-vmodel-id.",
        )),
        (false, true) => Ok(models),
        (true, false) => Ok(vmodels),
        (true, true) => ids(headers, &LEGACY_ID, &LEGACY_ID, NameKind::ModelFirst),
    }
}

/// Whether a request for several models fails when one of them is unknown; else such a one is left out.
pub fn requires_all(headers: &HeaderMap) -> bool {
    headers
        .get(&REQUIRED)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"all"))
}

fn ids(
    headers: &HeaderMap,
    plain: &HeaderName,
    binary: &HeaderName,
    kind: NameKind,
) -> Result<Vec<Name>, Status> {
    let name = |id: &str, header: &HeaderName| {
        if id.is_empty() {
            let sentence = format!("The header {header} is empty; name a model in it.");
            return Err(Status::new(Code::InvalidArgument, sentence));
        }
        Ok(Name::new(kind, id, ""))
    };
    let unreadable = || {
        let sentence = format!(
            "The header {plain} is not readable as text; send ASCII, or UTF-8 in {binary} as base64."
        );
        Status::new(Code::InvalidArgument, sentence)
    };
    if headers.contains_key(plain) {
        let values = headers.get_all(plain).iter();
        return values
            .map(|value| name(value.to_str().map_err(|_| unreadable())?, plain))
            .collect();
    }
    // Values of binary headers may be joined by commas on their way.
    let values = headers.get_all(binary).iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|value| name(&decoded(value).ok_or_else(unreadable)?, binary))
        .collect()
}

fn decoded(value: &[u8]) -> Option<String> {
    String::from_utf8(unbase64(value.trim_ascii())?).ok()
}

/// The bytes of a binary header, padded or not; `None` when it is no base64.
pub fn unbase64(value: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD_NO_PAD;
    let trimmed = value
        .strip_suffix(b"==")
        .or_else(|| value.strip_suffix(b"="));
    STANDARD_NO_PAD.decode(trimmed.unwrap_or(value)).ok()
}

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

fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0u64, |amount, digit| amount * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
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

/// What a model server is sent: everything but ids and private headers, with the concrete id and the time that is left;
/// the client's credentials only if told to.
pub fn to_model(
    client: &HeaderMap,
    model: &str,
    id: &HeaderValue,
    binary_too: bool,
    credentials: bool,
    deadline: Option<Instant>,
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(client.keys_len() + 3);
    for (name, value) in client {
        let ours = name.as_str().starts_with("mm-") || *name == LEGACY_ID || *name == GRPC_TIMEOUT;
        if !ours && (credentials || !CREDENTIALS.contains(name)) {
            headers.append(name.clone(), value.clone());
        }
    }
    if is_printable(model) {
        headers.insert(MODEL_ID, id.clone());
    }
    if binary_too || !is_printable(model) {
        headers.insert(MODEL_ID_BIN, base64_header(model));
    }
    set_timeout(&mut headers, deadline);
    headers
}

fn is_printable(id: &str) -> bool {
    id.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

fn base64_header(id: &str) -> HeaderValue {
    use base64::Engine;
    id_header(&base64::engine::general_purpose::STANDARD_NO_PAD.encode(id))
}

/// What another instance is told of a request that is sent on to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The concrete model: nothing is resolved again.
    pub model: Arc<str>,
    /// What the client asked for.
    pub name: Name,
    /// A model server said before that it does not hold the model.
    pub reloaded: bool,
}

/// What another instance is sent: all that the client sent, the concrete model, what it was asked for by, and the time that is
/// left. `sender`: this instance.
pub fn to_peer(
    client: &HeaderMap,
    forwarded: &Forwarded,
    id: &HeaderValue,
    sender: &HeaderValue,
    deadline: Option<Instant>,
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(client.keys_len() + 4);
    for (name, value) in client {
        let ours = name.as_str().starts_with("mm-") && OURS.contains(name);
        if !ours && *name != LEGACY_ID && *name != GRPC_TIMEOUT {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.insert(PEER, sender.clone());
    if is_printable(&forwarded.model) {
        headers.insert(MODEL_ID, id.clone());
    } else {
        headers.insert(MODEL_ID_BIN, base64_header(&forwarded.model));
    }
    if let Some(vmodel) = forwarded.name.as_vmodel_of(&forwarded.model) {
        if is_printable(vmodel) {
            headers.insert(VMODEL_ID, id_header(vmodel));
        } else {
            headers.insert(VMODEL_ID_BIN, base64_header(vmodel));
        }
    }
    if forwarded.reloaded {
        headers.insert(RELOADED, HeaderValue::from_static("1"));
    }
    set_timeout(&mut headers, deadline);
    headers
}

/// What another instance tells of a request that it sends on.
///
/// # Errors
/// When it is not the request of an instance.
pub fn forwarded(headers: &HeaderMap) -> Result<Forwarded, Status> {
    if !headers.contains_key(&PEER) {
        return Err(not_for_clients());
    }
    let mut models = ids(headers, &MODEL_ID, &MODEL_ID_BIN, NameKind::Model)?;
    let mut vmodels = ids(headers, &VMODEL_ID, &VMODEL_ID_BIN, NameKind::VModel)?;
    let (Some(model), true, true) = (models.pop(), models.is_empty(), vmodels.len() < 2) else {
        return Err(Status::new(
            Code::InvalidArgument,
            "A request that is sent on names one concrete model, in mm-model-id.",
        ));
    };
    Ok(Forwarded {
        model: model.name.clone(),
        name: vmodels.pop().unwrap_or(model),
        reloaded: headers.contains_key(&RELOADED),
    })
}

/// What a client is told at the port for other instances.
pub fn not_for_clients() -> Status {
    Status::new(
        Code::Unimplemented,
        "This port is for other instances; call the gRPC port.",
    )
}

/// What the control plane is sent: everything but what instances say to each other, with the time that is left.
pub fn to_control(client: &HeaderMap, deadline: Option<Instant>) -> HeaderMap {
    let mut headers = client.clone();
    for name in [&GRPC_TIMEOUT, &PEER, &RELOADED] {
        headers.remove(name);
    }
    set_timeout(&mut headers, deadline);
    headers
}

fn set_timeout(headers: &mut HeaderMap, deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        headers.insert(GRPC_TIMEOUT, timeout_header(left));
    }
}

/// What a gRPC call needs that a call through another door did not bring.
pub fn complete(headers: &mut HeaderMap) {
    headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
}

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
        .map(|value| crate::status::percent_decode(value.as_bytes()));
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

/// Takes out what belongs to gRPC itself, for a client that speaks something else.
pub fn without_grpc(headers: &mut HeaderMap) {
    headers.remove(http::header::CONTENT_TYPE);
    for name in [
        "grpc-status",
        "grpc-message",
        "grpc-encoding",
        "grpc-accept-encoding",
    ] {
        headers.remove(name);
    }
}

/// How large a header list is, as HTTP/2 counts (RFC 9113, 6.5.2).
pub fn list_bytes(path: &str, headers: &HeaderMap) -> usize {
    let fields = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32);
    fields.sum::<usize>() + path.len() + 32
}

/// Whether a model server that does not signal loss says in words that it lost the model. Both texts count only when they name
/// it: an input may be "not found" too.
pub fn tells_loss(status: &Status, model: &str) -> bool {
    let text = &status.message;
    let names_it = text.contains(model);
    let unknown = text.starts_with("Request for unknown model")
        && (text.ends_with(" is not found") || text.ends_with(" has no available versions"));
    let not_found = text.starts_with("Model ") && text.ends_with(" not found");
    names_it
        && match status.code {
            Code::Unavailable => unknown,
            Code::InvalidArgument => not_found,
            _ => false,
        }
}

/// Whether the content type is one gRPC allows.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether messages of this call may be compressed in a way we can read.
pub fn gzip(headers: &HeaderMap) -> bool {
    headers
        .get("grpc-encoding")
        .is_some_and(|value| value.as_bytes() == b"gzip")
}

/// What a request without an id is told.
pub fn nameless(method: &Method) -> Status {
    let sentence = if method.id_path.is_empty() {
        "The request names no model; send its id in the header mm-model-id or mm-vmodel-id."
    } else {
        "The request names no model; put its id into the message, or into the header mm-model-id or mm-vmodel-id."
    };
    Status::new(Code::InvalidArgument, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).expect("printable"));
        }
        headers
    }

    fn names(pairs: &[(&'static str, &str)]) -> Vec<(NameKind, String)> {
        let names = names_of(&map(pairs)).expect("fine");
        names
            .into_iter()
            .map(|name| (name.kind, name.name.to_string()))
            .collect()
    }

    #[test]
    fn ids_come_from_headers_by_rank() {
        let model = |id: &str| vec![(NameKind::ModelFirst, id.to_owned())];
        assert_eq!(
            names(&[("mm-model-id", "a"), ("tas-model-id", "b")]),
            model("a")
        );
        assert_eq!(
            names(&[("mm-vmodel-id", "v")]),
            [(NameKind::VModel, "v".to_owned())]
        );
        assert_eq!(names(&[("tas-model-id", "b")]), model("b"));
        for encoded in ["w7w=", "w7w"] {
            assert_eq!(names(&[("mm-model-id-bin", encoded)]), model("ü"));
        }
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn repeated_ids_name_several_models_in_their_order() {
        let ids = |pairs| -> Vec<String> { names(pairs).into_iter().map(|(_, id)| id).collect() };
        assert_eq!(
            ids(&[
                ("mm-model-id", "b"),
                ("mm-model-id", "a,c"),
                ("mm-model-id", "b")
            ]),
            ["b", "a,c", "b"]
        );
        assert_eq!(
            ids(&[("mm-vmodel-id-bin", "YQ==,YmI"), ("mm-vmodel-id-bin", "YQ")]),
            ["a", "bb", "a"]
        );
        assert!(requires_all(&map(&[("mm-required", "ALL")])));
        assert!(!requires_all(&map(&[("mm-required", "any")])) && !requires_all(&map(&[])));
    }

    #[test]
    fn contradictory_ids_are_refused() {
        for pairs in [
            &[("mm-model-id", "a"), ("mm-vmodel-id", "b")][..],
            &[("mm-model-id", "")],
            &[("mm-vmodel-id-bin", "!")],
            &[("mm-model-id", "a"), ("mm-model-id", "")],
            &[("mm-model-id-bin", "YQ,")],
        ] {
            let refused = names_of(&map(pairs)).expect_err("refused");
            assert_eq!(refused.code, Code::InvalidArgument);
        }
    }

    #[test]
    fn timeouts_are_read_and_written() {
        for (text, expected) in [
            ("1S", 1_000_000),
            ("250m", 250_000),
            ("99999999u", 99_999_999),
            ("1n", 0),
        ] {
            assert_eq!(timeout(text.as_bytes()).expect(text).as_micros(), expected);
        }
        for bad in ["", "S", "1", "123456789S", "-1S", "1x"] {
            assert_eq!(timeout(bad.as_bytes()), None, "{bad}");
        }
        for seconds in [0, 1, 99, 100, 100_000, 1 << 40] {
            let left = Duration::from_secs(seconds);
            let read = timeout(timeout_header(left).as_bytes()).expect("readable");
            assert!(read <= left.max(Duration::from_micros(1)));
        }
    }

    #[test]
    fn private_headers_stay_private() {
        let client = map(&[
            ("mm-vmodel-id", "v"),
            ("mm-balanced", "true"),
            ("tas-model-id", "x"),
            ("authorization", "secret"),
            ("traceparent", "00-1"),
            ("grpc-timeout", "1S"),
        ]);
        let headers = to_model(&client, "m", &id_header("m"), false, true, None);
        assert_eq!(headers.get("mm-model-id").expect("set"), "m");
        assert_eq!(headers.len(), 3);
        assert!(headers.contains_key("authorization") && headers.contains_key("traceparent"));
        let headers = to_model(&client, "ü", &id_header("ü"), false, false, None);
        assert!(!headers.contains_key("authorization") && headers.contains_key("traceparent"));
        assert!(!headers.contains_key("mm-model-id"));
        assert_eq!(headers.get("mm-model-id-bin").expect("set"), "w7w");
        let mut trailers = map(&[("mm-execution-us", "12"), ("grpc-status", "0"), ("x", "y")]);
        let private = take_private(&mut trailers);
        assert_eq!(private.execution_us, Some(12));
        assert_eq!(private.not_here, None);
        assert_eq!(trailers.len(), 2);
    }

    #[test]
    fn legacy_texts_count_only_with_the_id() {
        let says = |code, text: &'static str| tells_loss(&Status::new(code, text), "iris");
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
