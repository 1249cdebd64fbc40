//! What the tests of this crate share: models, requests, and a queue whose answers come back at once.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use inference::datatype::Datatype;
use inference::infer::{InferRequest, InferResponse};
use inference::messages::InferRequestedOutputTensor;
use inference::tensor::{Tensor, TensorData};
use tokio::sync::oneshot;

use crate::batch::Batch;
use crate::budget::Budget;
use crate::encode::PREFIX_BYTES;
use crate::models::{Lease, Model, Models, Signature, TensorSpec};
use crate::queue::{Answer, Limits, Pending, Place, Queue};
use crate::request::Request;
use crate::status::Status;
use crate::wheel::Wheel;

pub const LIMITS: Limits = Limits {
    batch_rows_max: 8,
    batch_bytes_max: 1 << 20,
    queue_max: 1000,
};

pub fn spec(name: &str, datatype: Option<Datatype>, shape: &[i64]) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        datatype,
        shape: shape.into(),
        by_default: true,
    }
}

/// A signature with inputs and outputs as given.
pub fn signature(inputs: &[TensorSpec], outputs: &[TensorSpec], row_wise: bool) -> Signature {
    Signature {
        platform: "test".into(),
        inputs: inputs.into(),
        outputs: outputs.into(),
        row_wise,
    }
}

/// A lease of a model of its own.
pub fn lease(signature: Signature) -> Lease {
    let mut models = Models::new();
    models.add("m", 1, signature);
    models.lease("m").unwrap()
}

/// A model of its own.
pub fn model(id: &str) -> Arc<Model> {
    let mut models = Models::new();
    models.add(id, 1, signature(&[], &[], true));
    Arc::clone(&models.lease(id).unwrap())
}

pub fn fp64(name: &str, shape: &[i64], values: &[f64]) -> Tensor {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    tensor(name, Datatype::Fp64, shape, TensorData::Fixed(bytes.into()))
}

pub fn tensor(name: &str, datatype: Datatype, shape: &[i64], data: TensorData) -> Tensor {
    Tensor {
        name: name.into(),
        datatype,
        shape: shape.into(),
        parameters: Default::default(),
        data,
    }
}

pub fn request(inputs: Vec<Tensor>, outputs: &[&str]) -> InferRequest {
    let outputs = outputs.iter().map(|name| InferRequestedOutputTensor {
        name: (*name).into(),
        ..Default::default()
    });
    InferRequest {
        model_name: "called".into(),
        inputs,
        outputs: outputs.collect(),
        raw: true,
        ..Default::default()
    }
}

pub fn decoded(frame: &Bytes) -> InferResponse {
    let len = u32::from_be_bytes(frame[1..PREFIX_BYTES].try_into().unwrap()) as usize;
    assert_eq!((frame[0], len), (0, frame.len() - PREFIX_BYTES));
    InferResponse::decode(frame.slice(PREFIX_BYTES..)).unwrap()
}

pub fn fp64_values(tensor: &Tensor) -> Vec<f64> {
    let TensorData::Fixed(bytes) = &tensor.data else {
        panic!("{tensor:?}")
    };
    bytes
        .chunks(8)
        .map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

/// A path of this test alone.
pub fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("model-server-{}-{name}", std::process::id()))
}

/// Somebody who asked.
pub struct Asked {
    pub place: Place,
    answer: oneshot::Receiver<Answer>,
}

impl Asked {
    /// The answer, if there is one by now.
    pub fn answer(&mut self) -> Option<Result<InferResponse, Status>> {
        let answer = self.answer.try_recv().ok()?;
        Some(answer.map(|answered| decoded(&answered.frame)))
    }
}

/// A queue and its models.
pub struct Stand {
    pub models: Models,
    pub queue: Arc<Queue>,
    wheel: Arc<Wheel>,
    budget: Arc<Budget>,
    pub n_asked: Cell<usize>,
}

impl Stand {
    pub fn new(limits: Limits) -> Self {
        Self {
            models: Models::new(),
            queue: Arc::new(Queue::new(limits)),
            wheel: Wheel::new().unwrap(),
            budget: Budget::new(usize::MAX),
            n_asked: Cell::new(0),
        }
    }

    /// A stand with models of one FP64 input [-1, 2] that take rows.
    pub fn with_rows(ids: &[&str], limits: Limits) -> Self {
        let mut stand = Self::new(limits);
        for (handle, id) in (0..).zip(ids) {
            stand.models.add(
                id,
                handle,
                signature(&[spec("x", None, &[-1, 2])], &[], true),
            );
        }
        stand
    }

    pub fn ask(&self, model: &str, message: InferRequest) -> Result<Asked, Status> {
        self.ask_until(model, message, None)
    }

    pub fn ask_until(
        &self,
        model: &str,
        message: InferRequest,
        deadline: Option<Instant>,
    ) -> Result<Asked, Status> {
        let lease = self.models.lease(model).unwrap();
        let request = Request::check(message, &lease)?;
        let (sender, answer) = oneshot::channel();
        let charge = self.budget.charge(1).unwrap();
        let place = self
            .queue
            .push(Pending::new(request, deadline, sender, lease, charge))?;
        self.n_asked.set(self.n_asked.get() + 1);
        Ok(Asked { place, answer })
    }

    /// Rows [n, n] to a model of `with_rows`.
    pub fn ask_rows(&self, model: &str, rows: i64) -> Asked {
        let values = vec![1.0; rows as usize * 2];
        self.ask(model, request(vec![fp64("x", &[rows, 2], &values)], &[]))
            .unwrap()
    }

    pub fn take(&self) -> Option<Batch> {
        let taken = self.queue.next(Duration::ZERO)?;
        Some(Batch::new(
            taken,
            None,
            self.queue.clone(),
            self.wheel.clone(),
        ))
    }

    /// What who drives the sockets does.
    pub fn deliver(&self) {
        self.wheel.deliver();
    }
}
