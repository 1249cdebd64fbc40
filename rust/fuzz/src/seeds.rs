//! Inputs that are valid, for the mutations to start from: random bytes hardly ever pass a parser's first line.

use bytes::Bytes;
use inference::rest;

const BODIES: [&str; 9] = [
    r#"{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[[5.1,3.5,1.4,0.2]]}]}"#,
    r#"{"id":"7","inputs":[{"name":"x","shape":[2,2],"datatype":"INT64","data":[1,-2,3,4000000000]}],"outputs":[{"name":"y"}]}"#,
    r#"{"inputs":[{"data":[[[1],[2]],[[3],[4]]],"datatype":"UINT8","shape":[2,2,1],"name":"x"}],"parameters":{"a":1,"b":0.5,"c":"d","e":true,"f":null}}"#,
    r#"{"inputs":[{"name":"t","shape":[3],"datatype":"BYTES","data":["","größer","a\"\u00e9\\n"]}]}"#,
    r#"{"inputs":[{"name":"b","shape":[1],"datatype":"BYTES","parameters":{"content_type":"base64"},"data":["/wA="]}]}"#,
    r#"{"inputs":[{"name":"f","shape":[3],"datatype":"FP64","data":[null,1e-300,-0.0]},{"name":"g","shape":[2],"datatype":"BOOL","data":[true,false]}]}"#,
    r#"{"inputs":[{"name":"e","shape":[0,3],"datatype":"INT8","data":[]},{"name":"h","shape":[1],"datatype":"INT16","data":[-32768]}]}"#,
    r#"{"ready":true}"#,
    r#"{"parameters":{"unload_dependents":false,"config":"{}"}}"#,
];

/// The seeds of a target; none for one that is not known.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "splice" => splice(),
        "infer_message" => messages(),
        "rest_body" => BODIES.iter().map(|body| body.as_bytes().to_vec()).collect(),
        _ => Vec::new(),
    }
}

/// Encoded requests, and the same as responses, whose fields have the same numbers.
fn messages() -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for body in BODIES {
        let Ok(request) = rest::parse_infer(&Bytes::from_static(body.as_bytes()), "model", "1")
        else {
            continue;
        };
        let response = inference::infer::InferResponse {
            outputs: request.inputs.clone(),
            ..Default::default()
        };
        messages.push(response.clone().encode(true).to_vec());
        messages.push(response.encode(false).to_vec());
        let typed = inference::infer::InferRequest {
            raw: false,
            ..request.clone()
        };
        messages.extend([request.encode().to_vec(), typed.encode().to_vec()]);
    }
    messages
}

fn splice() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = messages()
        .into_iter()
        .map(|message| [vec![0], message].concat())
        .collect();
    for (pick, path) in [(1, &[1][..]), (2, &[2]), (3, &[3, 2]), (4, &[1, 1, 1, 1])] {
        let mut message = b"\x0a\x05model\x10\x01".to_vec();
        for number in path.iter().rev() {
            let mut outer = Vec::new();
            inference::wire::put_length_delimited(*number, &message, &mut outer);
            message = outer;
        }
        seeds.push([vec![pick], message.clone(), message].concat());
    }
    seeds.push(vec![1]);
    seeds
}
