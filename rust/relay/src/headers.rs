//! Which headers travel: to a model, to another instance, to the control plane.

use std::sync::Arc;
use std::time::Instant;

use http::header::{
    AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION,
};
use inference::grpc::unbase64;

use crate::deadline::{GRPC_TIMEOUT, set_timeout};
use crate::event::Told;
use crate::id_headers::{
    LEGACY_ID, MODEL_ID, MODEL_ID_BIN, REQUIRED, VMODEL_ID, VMODEL_ID_BIN, base64_header,
    id_header, ids, is_printable,
};
use crate::name::{Name, NameKind};
use crate::status::{Code, Status};
use crate::trailers::{EXECUTION_US, NOT_HERE};

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
/// What clients prove themselves by.
const CREDENTIALS: [HeaderName; 3] = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE];
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

/// What a gRPC call needs that a call through another door did not bring.
pub fn complete(headers: &mut HeaderMap) {
    headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
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
    }
}
