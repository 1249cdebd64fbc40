//! The targets. Each says what must hold for any input, beyond that nothing panics, overflows or runs out of memory.
//! Those of the relay stand in its `fuzzing` module, because its parsers are private.

use bytes::Bytes;
use inference::infer::{InferRequest, InferResponse};
use inference::tensor::TensorData;
use inference::{rest, splice};
pub use relay::fuzzing::{frames, head};
use serde::de::IgnoredAny;
use serde_json::Value;

/// A target: panics when the input breaks a promise.
pub type Target = fn(&[u8]);

/// All targets by name; `fuzz_targets/` has a file for each.
pub const TARGETS: [(&str, Target); 5] = [
    ("splice", splice),
    ("infer_message", infer_message),
    ("rest_body", rest_body),
    ("head", head),
    ("frames", frames),
];

const PATHS: [&[u32]; 5] = [&[1], &[1, 1], &[2, 1], &[3, 2, 1], &[1, 1, 1, 1, 1]];

/// The first byte picks the path, the rest is the message. After a replacement every reader finds the new id, a second
/// replacement changes nothing, and the message has not grown by more than ids and lengths.
pub fn splice(input: &[u8]) {
    let Some((pick, message)) = input.split_first() else {
        return;
    };
    let path = PATHS[usize::from(*pick) % PATHS.len()];
    let message = Bytes::copy_from_slice(message);
    let found = splice::extract(path, &message);
    let long = "long".repeat(50);
    let id = ["m", "iris-4f2a90c1", &long][usize::from(*pick >> 4) % 3];
    let Ok(spliced) = splice::replace(path, &message, id) else {
        return;
    };
    assert_eq!(
        splice::extract(path, &spliced),
        Ok(Some(id)),
        "the new id is found; before: {found:?}"
    );
    let again = splice::replace(path, &spliced, id).expect("what was written can be read");
    assert_eq!(
        again.as_ptr(),
        spliced.as_ptr(),
        "nothing is copied when nothing changes"
    );
    let growth_max = splice::OCCURRENCES_MAX * (id.len() + 10 * (path.len() + 1));
    assert!(
        spliced.len() <= message.len() + growth_max,
        "{} became {}",
        message.len(),
        spliced.len()
    );
}

/// Requests and responses: what is accepted survives both forms, and has a JSON form that is JSON.
pub fn infer_message(input: &[u8]) {
    let message = Bytes::copy_from_slice(input);
    if let Ok(request) = InferRequest::decode(message.clone()) {
        for raw in [true, false] {
            let encoded = InferRequest {
                raw,
                ..request.clone()
            }
            .encode();
            let decoded =
                InferRequest::decode(encoded.clone()).expect("what was written can be read");
            // Encoded bytes are compared, because a parameter may be NaN.
            assert_eq!(InferRequest { raw, ..decoded }.encode(), encoded);
        }
    }
    if let Ok(response) = InferResponse::decode(message.clone())
        && let Ok(body) = rest::infer(&response, "model")
    {
        serde_json::from_slice::<IgnoredAny>(&body).expect("the body is JSON");
    }
    let metadata = rest::model_metadata(message.clone(), "model");
    let bodies = [
        metadata,
        rest::server_metadata(message.clone()),
        rest::index(message),
    ];
    for body in bodies.into_iter().flatten() {
        serde_json::from_slice::<IgnoredAny>(&body).expect("the body is JSON");
    }
}

/// Bodies of POST: an accepted request is JSON, has as many elements as its data has leaves, and makes a message that
/// is accepted.
pub fn rest_body(input: &[u8]) {
    let body = Bytes::copy_from_slice(input);
    let _ = rest::parse_index(&body);
    let _ = rest::parse_model_control(&body, "model");
    let Ok(request) = rest::parse_infer(&body, "model", "") else {
        return;
    };
    serde_json::from_slice::<IgnoredAny>(&body).expect("what was accepted is JSON");
    // A tree refuses more: half a surrogate pair or 1e999 even in a field nobody reads.
    if let Ok(naive) = serde_json::from_slice::<Value>(&body) {
        for (i, input) in request.inputs.iter().enumerate() {
            if let TensorData::Fixed(raw) = &input.data {
                let size = input
                    .datatype
                    .size_bytes()
                    .expect("its elements are of one size");
                assert_eq!(
                    raw.len(),
                    size * leaves(&naive["inputs"][i]["data"]),
                    "input {i}"
                );
            }
        }
    }
    let encoded = request.encode();
    let decoded = InferRequest::decode(encoded.clone()).expect("what was written can be read");
    assert_eq!(decoded.encode(), encoded);
}

fn leaves(data: &Value) -> usize {
    match data {
        Value::Array(items) => items.iter().map(leaves).sum(),
        _ => 1,
    }
}
