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

const HEADS: [&str; 7] = [
    "/v2/models/iris/infer\nmm-model-id: iris\ngrpc-timeout: 250m\nauthorization: Bearer t",
    "/v2/models/a%2Fb%20%C3%BC/versions/3/ready\nconnection: close, x-hop\nx-hop: 1\ncontent-encoding: gzip",
    "/v2/repository/models/iris/load\nmm-vmodel-id-bin: w7w=\nx-bin: AA",
    "/v2/health/live\ntas-model-id: legacy\nmm-balanced: true",
    "/inference.GRPCInferenceService/ModelInfer\nte: trailers\ncontent-type: application/grpc\ngrpc-timeout: 99999999H",
    "/any.Service/Method\nmm-peer: 10.0.0.1:8080\nmm-model-id: iris@1\nmm-vmodel-id-bin: w7w\nmm-reloaded: 1\nx-tag: a",
    "/mmesh.ModelRuntime/loadModel\ngrpc-status: 8\ngrpc-message: 100%25\ngrpc-retry-pushback-ms: 20",
];

/// The seeds of a target; none for one that is not known.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "splice" => splice(),
        "infer_message" => messages(),
        "rest_body" => BODIES.iter().map(|body| body.as_bytes().to_vec()).collect(),
        "head" => HEADS.iter().map(|head| head.as_bytes().to_vec()).collect(),
        "frames" => frames(),
        _ => Vec::new(),
    }
}

/// How they are cut, and frames of several sizes and flags.
fn frames() -> Vec<Vec<u8>> {
    let frame =
        |flag: u8, len: u8| [&[flag, 0, 0, 0, len][..], &vec![b'x'; usize::from(len)]].concat();
    vec![
        [vec![3], frame(0, 7)].concat(),
        [vec![255], frame(0, 0), frame(1, 200)].concat(),
        [
            vec![1],
            frame(0, 1),
            vec![0, 0, 0, 3, 232],
            vec![b'y'; 1000],
        ]
        .concat(),
        // gzip of "abc"
        b"\x05\x1f\x8b\x08\0\0\0\0\0\0\x03KLJ\x06\0\xc2A\x245\x03\0\0\0".to_vec(),
    ]
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
