//! ModelInfer's request and response with checked tensors, to and from their encoded messages.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use crate::Invalid;
use crate::datatype::Datatype;
use crate::messages::{
    InferRequestedOutputTensor, InferTensor, ModelInferRequest, ModelInferResponse, Parameters,
};
use crate::tensor::Tensor;
use crate::wire::Fields;

/// The most tensors in one message. An empty tensor takes two bytes on the wire and hundreds in memory, so an unbounded
/// number would let a small message take gigabytes.
pub const TENSORS_MAX: usize = 4096;

/// A request to infer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest {
    /// The name the client called the model by.
    pub model_name: String,
    /// Empty: the server chooses.
    pub model_version: String,
    /// Echoed in the response.
    pub id: String,
    /// Parameters of the whole request.
    pub parameters: Parameters,
    /// No two have the same name.
    pub inputs: Vec<Tensor>,
    /// The outputs wanted, in order; empty: all the model returns by default.
    pub outputs: Vec<InferRequestedOutputTensor>,
    /// Whether the tensors travel in the raw form. The response is to come in the same form.
    pub raw: bool,
}

impl InferRequest {
    /// Reads an encoded `ModelInferRequest` and checks every tensor. Data in the raw form is not copied.
    ///
    /// # Errors
    /// When it is no such message, mixes the forms, or a tensor is not what its datatype and shape say.
    pub fn decode(message: Bytes) -> Result<Self, Invalid> {
        check_tensor_count(&message, [5, 6, 7])?;
        let message = ModelInferRequest::decode(message).map_err(|error| {
            Invalid::new(format!(
                "The request body is not a ModelInferRequest: {error}."
            ))
        })?;
        let raw = !message.raw_input_contents.is_empty();
        let inputs = tensors(
            message.inputs,
            message.raw_input_contents,
            "raw_input_contents",
        )?;
        Ok(Self {
            model_name: message.model_name,
            model_version: message.model_version,
            id: message.id,
            parameters: message.parameters,
            inputs,
            outputs: message.outputs,
            raw,
        })
    }

    /// The encoded `ModelInferRequest`, raw or typed as `raw` says; FP16 and BF16 make it raw.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let (inputs, raw_input_contents) = in_form(self.inputs, self.raw);
        let message = ModelInferRequest {
            model_name: self.model_name,
            model_version: self.model_version,
            id: self.id,
            parameters: self.parameters,
            inputs,
            outputs: self.outputs,
            raw_input_contents,
        };
        message.encode_to_vec().into()
    }
}

/// The answer to an [`InferRequest`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferResponse {
    /// The model's name as the client sent it.
    pub model_name: String,
    /// The version that answered; may be empty.
    pub model_version: String,
    /// The request's id.
    pub id: String,
    /// Parameters of the whole response.
    pub parameters: Parameters,
    /// The outputs, in the order asked for.
    pub outputs: Vec<Tensor>,
}

impl InferResponse {
    /// Reads an encoded `ModelInferResponse` of either form and checks every tensor.
    ///
    /// # Errors
    /// When it is no such message, mixes the forms, or a tensor is not what its datatype and shape say.
    pub fn decode(message: Bytes) -> Result<Self, Invalid> {
        check_tensor_count(&message, [5, 6, 6])?;
        let message = ModelInferResponse::decode(message).map_err(|error| {
            Invalid::new(format!("The answer is not a ModelInferResponse: {error}."))
        })?;
        Ok(Self {
            model_name: message.model_name,
            model_version: message.model_version,
            id: message.id,
            parameters: message.parameters,
            outputs: tensors(
                message.outputs,
                message.raw_output_contents,
                "raw_output_contents",
            )?,
        })
    }

    /// The encoded `ModelInferResponse`. `raw`: whether the request was raw; FP16 and BF16 make it raw in any case.
    #[must_use]
    pub fn encode(self, raw: bool) -> Bytes {
        let (outputs, raw_output_contents) = in_form(self.outputs, raw);
        let message = ModelInferResponse {
            model_name: self.model_name,
            model_version: self.model_version,
            id: self.id,
            parameters: self.parameters,
            outputs,
            raw_output_contents,
        };
        message.encode_to_vec().into()
    }
}

fn check_tensor_count(message: &[u8], fields: [u32; 3]) -> Result<(), Invalid> {
    // A malformed message is the decoder's to explain.
    let counted = Fields::of(message)
        .map_while(Result::ok)
        .filter(|field| fields.contains(&field.number));
    if counted.take(3 * TENSORS_MAX + 1).count() > 3 * TENSORS_MAX {
        return Err(Invalid::new(format!(
            "The message has too many tensors; at most {TENSORS_MAX} are possible."
        )));
    }
    Ok(())
}

fn tensors(
    described: Vec<InferTensor>,
    raw: Vec<Bytes>,
    raw_field: &str,
) -> Result<Vec<Tensor>, Invalid> {
    if described.len() > TENSORS_MAX {
        return Err(Invalid::new(format!(
            "The message has {} tensors; at most {TENSORS_MAX} are possible.",
            described.len()
        )));
    }
    if !raw.is_empty() && raw.len() != described.len() {
        return Err(Invalid::new(format!(
            "The message describes {} tensors but has {} entries in {raw_field}; write one entry for each, in the same order.",
            described.len(),
            raw.len()
        )));
    }
    check_names(described.iter().map(|tensor| tensor.name.as_str()))?;
    let mut raw = raw.into_iter();
    described
        .into_iter()
        .map(|tensor| Tensor::from_message(tensor, raw.next()))
        .collect()
}

pub(crate) fn check_names<'a>(mut names: impl Iterator<Item = &'a str>) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    match names.find(|name| !seen.insert(*name)) {
        Some(twice) => Err(Invalid::new(format!(
            "Tensor '{twice}' is given twice; give each name once."
        ))),
        None => Ok(()),
    }
}

fn in_form(tensors: Vec<Tensor>, raw: bool) -> (Vec<InferTensor>, Vec<Bytes>) {
    let only_raw = |tensor: &Tensor| matches!(tensor.datatype, Datatype::Fp16 | Datatype::Bf16);
    if raw || tensors.iter().any(only_raw) {
        tensors.into_iter().map(Tensor::into_raw).unzip()
    } else {
        (
            tensors.into_iter().map(Tensor::into_typed).collect(),
            Vec::new(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::ParameterChoice;
    use crate::tensor::TensorData;

    fn tensor(name: &str, datatype: Datatype, shape: &[i64], data: &'static [u8]) -> Tensor {
        Tensor {
            name: name.into(),
            datatype,
            shape: shape.into(),
            parameters: Parameters::new(),
            data: TensorData::Fixed(Bytes::from_static(data)),
        }
    }

    fn request(raw: bool) -> InferRequest {
        InferRequest {
            model_name: "iris".into(),
            model_version: "2".into(),
            id: "7".into(),
            parameters: [("k".to_owned(), ParameterChoice::Double(0.5).into())].into(),
            inputs: vec![
                tensor("a", Datatype::Int16, &[2], &[1, 0, 0xff, 0xff]),
                Tensor {
                    data: TensorData::Elements(vec![Bytes::from_static(b"\xff"), Bytes::new()]),
                    ..tensor("b", Datatype::Bytes, &[1, 2], b"")
                },
            ],
            outputs: vec![InferRequestedOutputTensor {
                name: "predict".into(),
                ..Default::default()
            }],
            raw,
        }
    }

    #[test]
    fn a_request_in_both_forms_and_back() {
        for raw in [true, false] {
            assert_eq!(
                InferRequest::decode(request(raw).encode()),
                Ok(request(raw))
            );
        }
    }

    #[test]
    fn bytes_are_those_of_the_protocol() {
        let request = InferRequest {
            model_name: "m".into(),
            inputs: vec![tensor("x", Datatype::Int8, &[1], &[5])],
            raw: true,
            ..Default::default()
        };
        let encoded = request.encode();
        let expected = b"\x0a\x01m\x2a\x0c\x0a\x01x\x12\x04INT8\x1a\x01\x01\x3a\x01\x05";
        assert_eq!(&encoded[..], expected);
        // Scalars one by one instead of packed, as some clients write them.
        let unpacked = b"\x0a\x01m\x2a\x0f\x0a\x01x\x12\x04INT8\x18\x01\x2a\x02\x10\x05";
        let decoded = InferRequest::decode(Bytes::from_static(unpacked)).unwrap();
        assert_eq!(decoded.inputs, [tensor("x", Datatype::Int8, &[1], &[5])]);
        assert!(!decoded.raw);
    }

    #[test]
    fn a_response_is_raw_when_it_must_be() {
        let half = InferResponse {
            outputs: vec![tensor("y", Datatype::Fp16, &[1], &[0, 0x3c])],
            ..Default::default()
        };
        let encoded = half.clone().encode(false);
        assert_eq!(
            ModelInferResponse::decode(encoded.clone())
                .unwrap()
                .raw_output_contents
                .len(),
            1
        );
        assert_eq!(InferResponse::decode(encoded), Ok(half));
    }

    #[test]
    fn missing_raw_entries_duplicates_and_floods_are_refused() {
        let refused = |message: ModelInferRequest| {
            InferRequest::decode(message.encode_to_vec().into()).unwrap_err()
        };
        let described = |name: &str| tensor(name, Datatype::Int8, &[1], &[5]).into_raw().0;
        let message = ModelInferRequest {
            inputs: vec![described("a"), described("b")],
            raw_input_contents: vec![Bytes::from_static(&[1])],
            ..Default::default()
        };
        assert!(
            refused(message)
                .to_string()
                .contains("2 tensors but has 1 entries")
        );
        let message = ModelInferRequest {
            inputs: vec![described("a"), described("a")],
            ..Default::default()
        };
        assert!(refused(message).to_string().contains("'a' is given twice"));
        let flood = Bytes::from([0x2a, 0].repeat(4 * TENSORS_MAX));
        assert!(
            InferRequest::decode(flood)
                .unwrap_err()
                .to_string()
                .contains("too many tensors")
        );
        let message = InferRequest::decode(Bytes::from_static(b"\x0a\x05m")).unwrap_err();
        assert!(
            message
                .to_string()
                .starts_with("The request body is not a ModelInferRequest: ")
        );
    }
}
