//! JSON request bodies to requests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;

use super::data::{Signature, parse};
use super::{BASE64, CONTENT_TYPE};
use crate::Invalid;
use crate::infer::{InferRequest, check_names};
use crate::messages::{
    InferRequestedOutputTensor, ModelRepositoryParameter, ParameterChoice, Parameters,
    RepositoryIndexRequest, RepositoryModelRequest, RepositoryParameterChoice,
};
use crate::tensor::{Tensor, parse_datatype};

#[derive(serde::Deserialize)]
struct InferBody<'a> {
    id: Option<String>,
    parameters: Option<JsonParameters>,
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
    outputs: Option<Vec<Output>>,
}

#[derive(serde::Deserialize)]
struct Input<'a> {
    name: String,
    shape: Vec<i64>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    parameters: Option<JsonParameters>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(serde::Deserialize)]
struct Output {
    name: String,
    parameters: Option<JsonParameters>,
}

/// `null` as a value means the parameter is not given.
#[derive(serde::Deserialize)]
struct JsonParameters(BTreeMap<String, Option<Scalar>>);

impl JsonParameters {
    fn given(this: Option<Self>) -> impl Iterator<Item = (String, ParameterChoice)> {
        let all = this.into_iter().flat_map(|parameters| parameters.0);
        all.filter_map(|(name, value)| Some((name, value?.0)))
    }

    fn parameters(this: Option<Self>) -> Parameters {
        Self::given(this)
            .map(|(name, value)| (name, value.into()))
            .collect()
    }
}

struct Scalar(ParameterChoice);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a parameter value, which is a string, a number or a boolean")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar(ParameterChoice::Bool(value)))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar(ParameterChoice::Int64(value)))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Scalar, E> {
        let choice =
            i64::try_from(value).map_or(ParameterChoice::Uint64(value), ParameterChoice::Int64);
        Ok(Scalar(choice))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar(ParameterChoice::Double(value)))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar(ParameterChoice::String(value.to_owned())))
    }
}

/// An infer request for a model of this name and version, in the raw form.
///
/// # Errors
/// When the body is not JSON, not an inference request, or a tensor's data is not what its datatype and shape say.
pub fn parse_infer(
    body: &Bytes,
    model_name: &str,
    model_version: &str,
) -> Result<InferRequest, Invalid> {
    let parsed: InferBody<'_> = read(body, "an inference request")?;
    let inputs = parsed
        .inputs
        .into_iter()
        .map(|input| tensor(input, body))
        .collect::<Result<Vec<_>, _>>()?;
    check_names(inputs.iter().map(|input| input.name.as_str()))?;
    let outputs = parsed
        .outputs
        .unwrap_or_default()
        .into_iter()
        .map(|output| InferRequestedOutputTensor {
            name: output.name,
            parameters: JsonParameters::parameters(output.parameters),
        });
    Ok(InferRequest {
        model_name: model_name.to_owned(),
        model_version: model_version.to_owned(),
        id: parsed.id.unwrap_or_default(),
        parameters: JsonParameters::parameters(parsed.parameters),
        inputs,
        outputs: outputs.collect(),
        raw: true,
    })
}

fn tensor(input: Input<'_>, body: &Bytes) -> Result<Tensor, Invalid> {
    let Input {
        name,
        shape,
        datatype,
        parameters,
        data,
    } = input;
    let datatype = parse_datatype(&name, &datatype)?;
    let mut parameters = JsonParameters::parameters(parameters);
    let Some(data) = data else {
        return Err(Invalid::new(
            match parameters.contains_key("binary_data_size") {
                true => format!(
                    "Tensor '{name}' announces binary data, which needs the header Inference-Header-Content-Length; or write its elements as JSON in 'data'."
                ),
                false => format!(
                    "Tensor '{name}' has no 'data'; write its elements there, nested like the shape or flat."
                ),
            },
        ));
    };
    let content_type = parameters
        .get(CONTENT_TYPE)
        .and_then(|parameter| parameter.choice.as_ref());
    let base64 = content_type == Some(&ParameterChoice::String(BASE64.to_owned()));
    let signature = Signature {
        name: &name,
        datatype,
        shape: &shape,
        base64,
    };
    let data = parse(&signature, data.get(), body)?;
    if base64 {
        // The elements are decoded; a model that decodes by this parameter must not do it again.
        parameters.remove(CONTENT_TYPE);
    }
    Ok(Tensor {
        name,
        datatype,
        shape,
        parameters,
        data,
    })
}

/// The request of `POST /v2/repository/index`; an empty body asks for all models.
///
/// # Errors
/// When the body is not JSON, or `ready` no boolean.
pub fn parse_index(body: &[u8]) -> Result<RepositoryIndexRequest, Invalid> {
    #[derive(Default, serde::Deserialize)]
    struct Body {
        ready: Option<bool>,
    }
    let body: Body = read_optional(body, "a repository index request")?;
    Ok(RepositoryIndexRequest {
        repository_name: String::new(),
        ready: body.ready.unwrap_or_default(),
    })
}

/// The request of `POST /v2/repository/models/{model}/load` or `/unload`; the body may be empty.
///
/// # Errors
/// When the body is not JSON, or a parameter is not a string, an integer or a boolean.
pub fn parse_model_control(
    body: &[u8],
    model_name: &str,
) -> Result<RepositoryModelRequest, Invalid> {
    #[derive(Default, serde::Deserialize)]
    struct Body {
        parameters: Option<JsonParameters>,
    }
    let body: Body = read_optional(body, "a load or unload request")?;
    let parameters = JsonParameters::given(body.parameters).map(|(name, value)| {
        let choice = match value {
            ParameterChoice::Bool(value) => RepositoryParameterChoice::Bool(value),
            ParameterChoice::Int64(value) => RepositoryParameterChoice::Int64(value),
            ParameterChoice::String(value) => RepositoryParameterChoice::String(value),
            ParameterChoice::Double(_) | ParameterChoice::Uint64(_) => {
                return Err(Invalid::new(format!(
                    "Parameter '{name}' must be a string, a boolean or an integer of 64 bits."
                )));
            }
        };
        Ok((
            name,
            ModelRepositoryParameter {
                choice: Some(choice),
            },
        ))
    });
    Ok(RepositoryModelRequest {
        repository_name: String::new(),
        model_name: model_name.to_owned(),
        parameters: parameters.collect::<Result<_, _>>()?,
    })
}

fn read_optional<'a, T: Default + Deserialize<'a>>(
    body: &'a [u8],
    what: &str,
) -> Result<T, Invalid> {
    if body.trim_ascii().is_empty() {
        Ok(T::default())
    } else {
        read(body, what)
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8], what: &str) -> Result<T, Invalid> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Invalid::new(format!(
            "The request body is not UTF-8 at byte {}.",
            error.valid_up_to()
        ))
    })?;
    serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            return Invalid::new(format!("The request body is not {what}: {error}."));
        }
        let hint = if text.contains("NaN") || text.contains("Infinity") {
            " NaN and Infinity are not JSON; write null for a missing number."
        } else {
            ""
        };
        Invalid::new(format!("The request body is not JSON: {error}.{hint}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datatype::Datatype;
    use crate::tensor::TensorData;

    fn parsed(body: &str) -> Result<InferRequest, String> {
        parse_infer(&Bytes::copy_from_slice(body.as_bytes()), "iris", "2")
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_request() {
        let body = r#"{
            "id": "a\"b", "unknown": [1, {"x": null}],
            "parameters": {"s": "t", "b": true, "i": -3, "u": 18446744073709551615, "d": 0.5, "none": null},
            "inputs": [
                {"data": [[1, 2], [3, 4]], "datatype": "UINT8", "shape": [2, 2], "name": "x"},
                {"name": "t", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "str"}, "data": ["hi"]},
                {"name": "b", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"}, "data": ["/wA="]}
            ],
            "outputs": [{"name": "y", "parameters": {"classification": 2}}, {"name": "z"}]
        }"#;
        let request = parsed(body).unwrap();
        assert_eq!(
            (request.model_name.as_str(), request.model_version.as_str()),
            ("iris", "2")
        );
        assert_eq!(request.id, "a\"b");
        let choices: Vec<_> = request
            .parameters
            .iter()
            .map(|(name, value)| (name.as_str(), value.choice.clone()))
            .collect();
        assert_eq!(
            choices,
            [
                ("b", Some(ParameterChoice::Bool(true))),
                ("d", Some(ParameterChoice::Double(0.5))),
                ("i", Some(ParameterChoice::Int64(-3))),
                ("s", Some(ParameterChoice::String("t".into()))),
                ("u", Some(ParameterChoice::Uint64(u64::MAX))),
            ]
        );
        assert_eq!(request.inputs[0].shape, [2, 2]);
        assert_eq!(request.inputs[0].datatype, Datatype::Uint8);
        assert_eq!(
            request.inputs[0].data,
            TensorData::Fixed(Bytes::from_static(&[1, 2, 3, 4]))
        );
        assert_eq!(
            request.inputs[1].data,
            TensorData::Elements(vec![Bytes::from_static(b"hi")])
        );
        assert!(request.inputs[1].parameters.contains_key("content_type"));
        assert_eq!(
            request.inputs[2].data,
            TensorData::Elements(vec![Bytes::from_static(b"\xff\0")])
        );
        assert!(request.inputs[2].parameters.is_empty());
        assert_eq!(request.outputs.len(), 2);
        assert_eq!(InferRequest::decode(request.clone().encode()), Ok(request));
    }

    #[test]
    fn null_is_absent() {
        let request =
            parsed(r#"{"id":null,"parameters":null,"outputs":null,"inputs":[]}"#).unwrap();
        assert_eq!(request.id, "");
        assert!(
            request.outputs.is_empty()
                && request.parameters.is_empty()
                && request.inputs.is_empty()
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (body, sentence) in [
            (
                "",
                "The request body is not JSON: EOF while parsing a value at line 1 column 0.",
            ),
            (
                "{}",
                "The request body is not an inference request: missing field `inputs` at line 1 column 2.",
            ),
            ("[]", "The request body is not"),
            (r#"{"inputs":[]} x"#, "not JSON: trailing characters"),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}"#,
                "write null for a missing number",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}"#,
                "Tensor 'x' has no 'data'",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":null}]}"#,
                "Tensor 'x' has no 'data'",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}"#,
                "needs the header Inference-Header-Content-Length",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"float","data":[1]}]}"#,
                "write one of BOOL",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1.5],"datatype":"FP32","data":[1]}]}"#,
                "expected i64",
            ),
            (r#"{"inputs":[],"inputs":[]}"#, "duplicate field `inputs`"),
            (
                r#"{"inputs":[],"parameters":{"a":{"b":1}}}"#,
                "a string, a number or a boolean",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[0],"datatype":"FP32","data":[]},{"name":"x","shape":[0],"datatype":"FP32","data":[]}]}"#,
                "Tensor 'x' is given twice",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","parameters":{"content_type":"base64"},"data":["?"]}]}"#,
                "has the content_type base64, but the string \"?\" is not",
            ),
        ] {
            let refused = parsed(body).unwrap_err();
            assert!(refused.contains(sentence), "{body}: {refused}");
        }
        let refused = parse_infer(&Bytes::from_static(b"{\"\xff\"}"), "m", "").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "The request body is not UTF-8 at byte 2."
        );
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let body =
            format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP32","data":{deep}}}]}}"#);
        assert!(parsed(&body).unwrap_err().contains("nested 100000 deep"));
        assert!(parsed(&format!(r#"{{"inputs":[],"parameters":{deep}}}"#)).is_err());
        assert!(parsed(&format!(r#"{{"inputs":[],"other":{deep}}}"#)).is_ok());
    }

    #[test]
    fn repository_bodies() {
        assert!(!parse_index(b" ").unwrap().ready);
        assert!(parse_index(br#"{"ready":true}"#).unwrap().ready);
        assert!(parse_index(br#"{"ready":1}"#).is_err());
        assert_eq!(parse_model_control(b"", "m").unwrap().model_name, "m");
        let request =
            parse_model_control(br#"{"parameters":{"unload_dependents":true}}"#, "m").unwrap();
        assert_eq!(
            request.parameters["unload_dependents"].choice,
            Some(RepositoryParameterChoice::Bool(true))
        );
        assert!(
            parse_model_control(br#"{"parameters":{"x":0.5}}"#, "m")
                .unwrap_err()
                .to_string()
                .contains("'x'")
        );
    }
}
