//! A request that has been checked against its model: what the queue holds and a batch stacks.

use std::hash::{BuildHasher, Hash, Hasher};

use ahash::RandomState;
use inference::datatype::Datatype;
use inference::infer::InferRequest;
use inference::messages::{ParameterChoice, Parameters};
use inference::tensor::{Tensor, TensorData};

use crate::models::{Model, TensorSpec};
use crate::status::{Code, Status};

/// A checked request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model's name as the client wrote it, echoed.
    pub model_name: String,
    /// Echoed.
    pub model_version: String,
    /// Echoed.
    pub id: String,
    /// Whether the answer is to be in the raw form.
    pub raw: bool,
    /// In the order of the model's signature.
    pub inputs: Vec<Tensor>,
    /// The outputs wanted, in order; empty: those returned by default.
    pub outputs: Vec<String>,
    /// Parameters of the whole request.
    pub parameters: Parameters,
    /// The first dimension of all its inputs; `None` when it cannot be stacked with others.
    pub rows: Option<usize>,
    /// What its tensors weigh.
    pub size_bytes: usize,
    /// Equal for requests that stack with each other, and rarely for others.
    alike: u64,
}

impl Request {
    /// Checks a decoded request against the model's signature.
    ///
    /// # Errors
    /// INVALID_ARGUMENT or UNIMPLEMENTED, with a sentence that names the model and the tensor and says what is expected.
    pub fn check(message: InferRequest, model: &Model) -> Result<Self, Status> {
        let outputs = requested_outputs(&message, model)?;
        for tensor in &message.inputs {
            refuse_shared_memory(model, &tensor.name, &tensor.parameters)?;
        }
        let inputs = in_order(message.inputs, model)?;
        for (tensor, spec) in inputs.iter().zip(&model.signature.inputs) {
            check_tensor(tensor, spec, model)?;
        }
        let rows = if model.signature.row_wise {
            rows(&inputs, model)?
        } else {
            None
        };
        let mut request = Self {
            model_name: message.model_name,
            model_version: message.model_version,
            id: message.id,
            raw: message.raw,
            size_bytes: inputs.iter().map(size_bytes).sum(),
            inputs,
            outputs,
            parameters: message.parameters,
            rows,
            alike: 0,
        };
        if request.rows.is_some() {
            request.alike = request.fingerprint();
        }
        Ok(request)
    }

    /// Whether the two can run as one: same input names, datatypes and trailing dimensions, same outputs and parameters.
    #[must_use]
    pub fn stacks_with(&self, other: &Self) -> bool {
        self.alike == other.alike
            && self.rows.is_some()
            && other.rows.is_some()
            && self.inputs.len() == other.inputs.len()
            && self.inputs.iter().zip(&other.inputs).all(|(a, b)| {
                a.datatype == b.datatype && a.name == b.name && a.shape[1..] == b.shape[1..]
            })
            && self.outputs == other.outputs
            && self.parameters == other.parameters
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = RandomState::with_seeds(1, 2, 3, 4).build_hasher();
        for input in &self.inputs {
            (&input.name, input.datatype, &input.shape[1..]).hash(&mut hasher);
        }
        self.outputs.hash(&mut hasher);
        for (name, parameter) in &self.parameters {
            name.hash(&mut hasher);
            match &parameter.choice {
                None => 0.hash(&mut hasher),
                Some(ParameterChoice::Bool(value)) => value.hash(&mut hasher),
                Some(ParameterChoice::Int64(value)) => value.hash(&mut hasher),
                Some(ParameterChoice::Uint64(value)) => value.hash(&mut hasher),
                Some(ParameterChoice::Double(value)) => value.to_bits().hash(&mut hasher),
                Some(ParameterChoice::String(value)) => value.hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

fn size_bytes(tensor: &Tensor) -> usize {
    match &tensor.data {
        TensorData::Fixed(bytes) => bytes.len(),
        TensorData::Elements(elements) => elements.iter().map(bytes::Bytes::len).sum(),
    }
}

fn requested_outputs(message: &InferRequest, model: &Model) -> Result<Vec<String>, Status> {
    let declared = &model.signature.outputs;
    let mut names: Vec<String> = Vec::with_capacity(message.outputs.len());
    for output in &message.outputs {
        let name = &output.name;
        refuse_shared_memory(model, name, &output.parameters)?;
        if output.parameters.contains_key("classification") {
            return Err(Status::new(
                Code::Unimplemented,
                format!(
                    "Model {} does not offer the classification extension; request output '{name}' without it.",
                    model.id
                ),
            ));
        }
        if !declared.is_empty() && !declared.iter().any(|spec| *spec.name == **name) {
            return Err(Status::invalid(format!(
                "Model {} has no output '{name}'; it has {}.",
                model.id,
                names_of(declared)
            )));
        }
        if names.contains(name) {
            return Err(Status::invalid(format!(
                "Output '{name}' of model {} is requested twice; request each once.",
                model.id
            )));
        }
        names.push(name.clone());
    }
    Ok(names)
}

fn refuse_shared_memory(
    model: &Model,
    tensor: &str,
    parameters: &Parameters,
) -> Result<(), Status> {
    match parameters
        .keys()
        .find(|key| key.starts_with("shared_memory_"))
    {
        None => Ok(()),
        Some(key) => Err(Status::new(
            Code::Unimplemented,
            format!(
                "Tensor '{tensor}' of model {} has the parameter {key}, but shared memory is not offered; send the data in the message.",
                model.id
            ),
        )),
    }
}

/// Brings the inputs into the order of the signature: each exactly once, none besides.
fn in_order(mut inputs: Vec<Tensor>, model: &Model) -> Result<Vec<Tensor>, Status> {
    let specs = &model.signature.inputs;
    if model.signature.takes_any_name() {
        return match inputs.len() {
            1 => Ok(inputs),
            n => Err(Status::invalid(format!(
                "Model {} takes one input of any name, but {n} were sent.",
                model.id
            ))),
        };
    }
    for input in &inputs {
        if !specs.iter().any(|spec| *spec.name == *input.name) {
            return Err(Status::invalid(format!(
                "Model {} has no input '{}'; it takes {}.",
                model.id,
                input.name,
                names_of(specs)
            )));
        }
    }
    for (place, spec) in specs.iter().enumerate() {
        let Some(found) = inputs[place.min(inputs.len())..]
            .iter()
            .position(|input| *input.name == *spec.name)
        else {
            return Err(Status::invalid(format!(
                "Input '{}' of model {} is missing; it takes {}.",
                spec.name,
                model.id,
                names_of(specs)
            )));
        };
        inputs.swap(place, place + found);
    }
    Ok(inputs)
}

fn check_tensor(tensor: &Tensor, spec: &TensorSpec, model: &Model) -> Result<(), Status> {
    let expected = match spec.datatype {
        Some(datatype) if datatype != tensor.datatype => datatype.name(),
        // BF16 has no numpy type: only a model that names it can mean it.
        None if matches!(tensor.datatype, Datatype::Bytes | Datatype::Bf16) => "a numeric datatype",
        _ => {
            let fits = spec.shape.is_empty()
                || spec.shape.len() == tensor.shape.len()
                    && spec
                        .shape
                        .iter()
                        .zip(&tensor.shape)
                        .all(|(want, have)| *want == -1 || want == have);
            if fits {
                return Ok(());
            }
            return Err(Status::invalid(format!(
                "Input '{}' of model {} has the shape {:?}, but the model takes {:?} (-1: any size).",
                tensor.name, model.id, tensor.shape, spec.shape
            )));
        }
    };
    Err(Status::invalid(format!(
        "Input '{}' of model {} is {}, but the model takes {expected}.",
        tensor.name, model.id, tensor.datatype
    )))
}

/// The first dimension all inputs share. A request without rows runs alone: an empty stack would be no answer to the others.
fn rows(inputs: &[Tensor], model: &Model) -> Result<Option<usize>, Status> {
    let Some(first) = inputs.first() else {
        return Ok(None);
    };
    for input in inputs {
        if input.shape.first() != first.shape.first() {
            return Err(Status::invalid(format!(
                "Inputs '{}' and '{}' of model {} have the shapes {:?} and {:?}, but need the same first dimension.",
                first.name, input.name, model.id, first.shape, input.shape
            )));
        }
    }
    Ok(first
        .shape
        .first()
        .and_then(|rows| usize::try_from(*rows).ok())
        .filter(|rows| *rows > 0))
}

fn names_of(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs
        .iter()
        .map(|spec| {
            let datatype = spec.datatype.map_or("any numeric", Datatype::name);
            format!("'{}' ({datatype}, {:?})", spec.name, spec.shape)
        })
        .collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests;
