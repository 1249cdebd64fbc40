//! Responses to JSON bodies.

use bytes::Bytes;
use prost::Message as _;
use serde::Serialize;

use super::data::{render, render_strings};
use super::{BASE64, CONTENT_TYPE};
use crate::Invalid;
use crate::infer::InferResponse;
use crate::messages::{
    InferParameter, ModelMetadataResponse, ParameterChoice, Parameters, RepositoryIndexResponse,
    ServerMetadataResponse, TensorMetadata,
};
use crate::tensor::{Tensor, TensorData};

/// The body of an infer response. `model_name` is the name the client called, whatever the model server answered.
///
/// # Errors
/// When an output is FP16 or BF16.
pub fn infer(response: &InferResponse, model_name: &str) -> Result<Vec<u8>, Invalid> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"model_name\":");
    put(model_name, &mut out);
    for (key, value) in [
        ("model_version", &response.model_version),
        ("id", &response.id),
    ] {
        if !value.is_empty() {
            put_key(key, &mut out);
            put(value, &mut out);
        }
    }
    put_parameters(&response.parameters, &mut out);
    put_key("outputs", &mut out);
    out.push(b'[');
    for (i, output) in response.outputs.iter().enumerate() {
        if i != 0 {
            out.push(b',');
        }
        put_tensor(output, &mut out)?;
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

fn put_tensor(tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), Invalid> {
    out.extend_from_slice(b"{\"name\":");
    put(&tensor.name, out);
    put_key("shape", out);
    put(&tensor.shape, out);
    put_key("datatype", out);
    put(tensor.datatype.name(), out);
    match &tensor.data {
        TensorData::Fixed(raw) => {
            put_parameters(&tensor.parameters, out);
            put_key("data", out);
            render(tensor.datatype, raw, out).ok_or_else(|| {
                Invalid::new(format!(
                    "Output '{}' is {}, which has no JSON form; call the model over gRPC, or name other outputs.",
                    tensor.name, tensor.datatype
                ))
            })?;
        }
        TensorData::Elements(elements) => {
            let base64 = elements
                .iter()
                .any(|element| std::str::from_utf8(element).is_err());
            if base64 {
                let mut parameters = tensor.parameters.clone();
                let content_type = ParameterChoice::String(BASE64.to_owned());
                parameters.insert(CONTENT_TYPE.to_owned(), content_type.into());
                put_parameters(&parameters, out);
            } else {
                put_parameters(&tensor.parameters, out);
            }
            put_key("data", out);
            render_strings(elements, base64, out);
        }
    }
    out.push(b'}');
    Ok(())
}

fn put_parameters(parameters: &Parameters, out: &mut Vec<u8>) {
    if parameters.is_empty() {
        return;
    }
    put_key("parameters", out);
    let mut separator = b'{';
    for (name, value) in parameters {
        out.push(separator);
        separator = b',';
        put(name, out);
        out.push(b':');
        put_parameter(value, out);
    }
    out.push(b'}');
}

fn put_parameter(parameter: &InferParameter, out: &mut Vec<u8>) {
    match &parameter.choice {
        None => out.extend_from_slice(b"null"),
        Some(ParameterChoice::Bool(value)) => put(value, out),
        Some(ParameterChoice::Int64(value)) => put(value, out),
        Some(ParameterChoice::String(value)) => put(value, out),
        Some(ParameterChoice::Double(value)) => put(value, out),
        Some(ParameterChoice::Uint64(value)) => put(value, out),
    }
}

fn put_key(key: &str, out: &mut Vec<u8>) {
    out.push(b',');
    put(key, out);
    out.push(b':');
}

/// Appends a value as JSON; what is not finite becomes `null`.
pub(super) fn put<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value)
        .expect("writing into memory, and none of our values can fail to serialize");
}

fn body<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    put(value, &mut out);
    out
}

/// `{"error": …}`, the body of every failure.
#[must_use]
pub fn error(sentence: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'a str,
    }
    body(&Body { error: sentence })
}

/// The body of `GET /v2/health/live`.
#[must_use]
pub fn live(live: bool) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body {
        live: bool,
    }
    body(&Body { live })
}

/// The body of `GET /v2/health/ready`.
#[must_use]
pub fn ready(ready: bool) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body {
        ready: bool,
    }
    body(&Body { ready })
}

/// The body of `GET /v2/models/{model}/ready`.
#[must_use]
pub fn model_ready(name: &str, ready: bool) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        ready: bool,
    }
    body(&Body { name, ready })
}

/// The body of `GET /v2` from an encoded `ServerMetadataResponse`.
///
/// # Errors
/// When the message is not one.
pub fn server_metadata(message: Bytes) -> Result<Vec<u8>, Invalid> {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        version: &'a str,
        extensions: &'a [String],
    }
    let message = ServerMetadataResponse::decode(message)
        .map_err(|error| not_one("a ServerMetadataResponse", &error))?;
    Ok(body(&Body {
        name: &message.name,
        version: &message.version,
        extensions: &message.extensions,
    }))
}

/// The body of `GET /v2/models/{model}` from an encoded `ModelMetadataResponse`. `name` is the name the client called.
///
/// # Errors
/// When the message is not one.
pub fn model_metadata(message: Bytes, name: &str) -> Result<Vec<u8>, Invalid> {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        versions: &'a [String],
        platform: &'a str,
        inputs: Vec<Described<'a>>,
        outputs: Vec<Described<'a>>,
    }
    let message = ModelMetadataResponse::decode(message)
        .map_err(|error| not_one("a ModelMetadataResponse", &error))?;
    Ok(body(&Body {
        name,
        versions: &message.versions,
        platform: &message.platform,
        inputs: message.inputs.iter().map(Described::from).collect(),
        outputs: message.outputs.iter().map(Described::from).collect(),
    }))
}

#[derive(Serialize)]
struct Described<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [i64],
}

impl<'a> From<&'a TensorMetadata> for Described<'a> {
    fn from(tensor: &'a TensorMetadata) -> Self {
        Self {
            name: &tensor.name,
            datatype: &tensor.datatype,
            shape: &tensor.shape,
        }
    }
}

/// The body of `POST /v2/repository/index` from an encoded `RepositoryIndexResponse`: an array.
///
/// # Errors
/// When the message is not one.
pub fn index(message: Bytes) -> Result<Vec<u8>, Invalid> {
    #[derive(Serialize)]
    struct Row<'a> {
        name: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        version: &'a str,
        state: &'a str,
        reason: &'a str,
    }
    let message = RepositoryIndexResponse::decode(message)
        .map_err(|error| not_one("a RepositoryIndexResponse", &error))?;
    let rows = message.models.iter().map(|model| Row {
        name: &model.name,
        version: &model.version,
        state: &model.state,
        reason: &model.reason,
    });
    Ok(body(&rows.collect::<Vec<_>>()))
}

fn not_one(what: &str, error: &prost::DecodeError) -> Invalid {
    Invalid::new(format!("The answer is not {what}: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datatype::Datatype;
    use crate::messages::ModelIndex;

    fn text(body: Vec<u8>) -> String {
        String::from_utf8(body).unwrap()
    }

    fn output(datatype: Datatype, shape: &[i64], data: TensorData) -> Tensor {
        Tensor {
            name: "y".into(),
            datatype,
            shape: shape.into(),
            parameters: Parameters::new(),
            data,
        }
    }

    #[test]
    fn a_whole_response() {
        let elements = |parts: &[&'static [u8]]| {
            TensorData::Elements(parts.iter().map(|part| Bytes::from_static(part)).collect())
        };
        let floats: Vec<u8> = [0.1f32, f32::NAN, f32::INFINITY, 1e30, -0.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let response = InferResponse {
            model_name: "iris-4f2a".into(),
            model_version: "1".into(),
            id: "7\n".into(),
            parameters: [("p".to_owned(), ParameterChoice::Double(f64::NAN).into())].into(),
            outputs: vec![
                output(Datatype::Fp32, &[5], TensorData::Fixed(floats.into())),
                output(Datatype::Bytes, &[2], elements(&[b"a\"", "é".as_bytes()])),
                output(Datatype::Bytes, &[2], elements(&[b"a", b"\xff"])),
                output(
                    Datatype::Bool,
                    &[2, 1],
                    TensorData::Fixed(Bytes::from_static(&[1, 0])),
                ),
                output(Datatype::Int64, &[0], TensorData::Fixed(Bytes::new())),
            ],
        };
        let expected = concat!(
            r#"{"model_name":"iris","model_version":"1","id":"7\n","parameters":{"p":null},"outputs":["#,
            r#"{"name":"y","shape":[5],"datatype":"FP32","data":[0.1,null,null,1e+30,-0.0]},"#,
            r#"{"name":"y","shape":[2],"datatype":"BYTES","data":["a\"","é"]},"#,
            r#"{"name":"y","shape":[2],"datatype":"BYTES","parameters":{"content_type":"base64"},"data":["YQ==","/w=="]},"#,
            r#"{"name":"y","shape":[2,1],"datatype":"BOOL","data":[true,false]},"#,
            r#"{"name":"y","shape":[0],"datatype":"INT64","data":[]}]}"#,
        );
        assert_eq!(text(infer(&response, "iris").unwrap()), expected);
    }

    #[test]
    fn half_floats_are_refused_by_name() {
        let response = InferResponse {
            outputs: vec![output(
                Datatype::Fp16,
                &[1],
                TensorData::Fixed(Bytes::from_static(&[0, 0x3c])),
            )],
            ..Default::default()
        };
        let refused = infer(&response, "m").unwrap_err().to_string();
        assert_eq!(
            refused,
            "Output 'y' is FP16, which has no JSON form; call the model over gRPC, or name other outputs."
        );
    }

    #[test]
    fn the_other_bodies() {
        assert_eq!(text(live(true)), r#"{"live":true}"#);
        assert_eq!(text(ready(false)), r#"{"ready":false}"#);
        assert_eq!(
            text(model_ready("a\\b", true)),
            r#"{"name":"a\\b","ready":true}"#
        );
        assert_eq!(text(error("No \"x\".")), r#"{"error":"No \"x\"."}"#);
        let tensor = TensorMetadata {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![-1, 4],
        };
        let message = ModelMetadataResponse {
            name: "iris-4f2a".into(),
            platform: "sklearn".into(),
            inputs: vec![tensor],
            ..Default::default()
        };
        assert_eq!(
            text(model_metadata(message.encode_to_vec().into(), "iris").unwrap()),
            r#"{"name":"iris","platform":"sklearn","inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]}],"outputs":[]}"#
        );
        let message = ServerMetadataResponse {
            name: "n".into(),
            version: "1".into(),
            extensions: vec![],
        };
        let rendered = server_metadata(message.encode_to_vec().into()).unwrap();
        assert_eq!(
            text(rendered),
            r#"{"name":"n","version":"1","extensions":[]}"#
        );
        let model = ModelIndex {
            name: "m".into(),
            state: "READY".into(),
            ..Default::default()
        };
        let message = RepositoryIndexResponse {
            models: vec![model],
        };
        assert_eq!(
            text(index(message.encode_to_vec().into()).unwrap()),
            r#"[{"name":"m","state":"READY","reason":""}]"#
        );
        assert!(index(Bytes::from_static(b"\x0a")).is_err());
    }
}
