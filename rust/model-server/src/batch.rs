//! Requests that run together: stacked on the way in, cut apart on the way out.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use inference::datatype::Datatype;
use inference::messages::Parameters;
use inference::tensor::TensorData;

use crate::answers::Addressed;
use crate::encode::{Output, response};
use crate::executing::Marker;
use crate::models::Model;
use crate::queue::{Answered, Pending, Queue, Taken};
use crate::status::{Code, Status};
use crate::wheel::Wheel;

/// Requests of one model that run together. Dropped without an answer, they fail with INTERNAL.
#[derive(Debug)]
pub struct Batch {
    model: Arc<Model>,
    /// Empty once answered.
    requests: Vec<Pending>,
    rows: Option<usize>,
    started: Instant,
    marker: Option<Marker>,
    queue: Arc<Queue>,
    wheel: Arc<Wheel>,
}

/// One stacked input.
#[derive(Debug)]
pub struct Input<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its datatype.
    pub datatype: Datatype,
    /// Its shape, all rows together.
    pub shape: Vec<i64>,
    batch: &'a Batch,
    at: usize,
}

impl Batch {
    pub(crate) fn new(
        taken: Taken,
        marker: Option<Marker>,
        queue: Arc<Queue>,
        wheel: Arc<Wheel>,
    ) -> Self {
        let rows = taken
            .requests
            .iter()
            .map(|pending| pending.request.rows)
            .sum();
        Self {
            model: taken.model,
            requests: taken.requests,
            rows,
            started: Instant::now(),
            marker,
            queue,
            wheel,
        }
    }

    /// What the caller gave with the model.
    #[must_use]
    pub fn handle(&self) -> i64 {
        self.model.handle
    }

    /// How many requests run together; 0 once answered.
    #[must_use]
    pub fn n_requests(&self) -> usize {
        self.requests.len()
    }

    /// The first dimension of the stacked inputs; 0 when they are not stacked by rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.unwrap_or(0)
    }

    /// The outputs wanted, in order; empty: those returned by default.
    #[must_use]
    pub fn outputs(&self) -> &[String] {
        self.requests
            .first()
            .map_or(&[], |pending| &pending.request.outputs)
    }

    /// The parameters all requests share; `None` once answered.
    #[must_use]
    pub fn parameters(&self) -> Option<&Parameters> {
        self.requests
            .first()
            .map(|pending| &pending.request.parameters)
    }

    /// The inputs in the order of the signature; none once answered.
    pub fn inputs(&self) -> impl Iterator<Item = Input<'_>> {
        let tensors = self
            .requests
            .first()
            .map_or(&[][..], |pending| &pending.request.inputs);
        tensors.iter().enumerate().map(|(at, tensor)| {
            let mut shape = tensor.shape.clone();
            if let (Some(rows), Some(first)) = (self.rows, shape.first_mut()) {
                *first = rows as i64;
            }
            Input {
                name: &tensor.name,
                datatype: tensor.datatype,
                shape,
                batch: self,
                at,
            }
        })
    }

    /// Answers all requests, rows split among them. False: an output's first dimension is not the batch's rows, so the requests
    /// are queued again to run singly, and the model is never batched again.
    ///
    /// # Errors
    /// A sentence when an output is missing or its data does not fit its shape; the batch is still unanswered then.
    pub fn reply(&mut self, outputs: &[Output<'_>]) -> Result<bool, String> {
        if self.requests.is_empty() {
            return Err(self.answered_already());
        }
        let outputs = self.wanted(outputs)?;
        for output in &outputs {
            output
                .check()
                .map_err(|error| format!("Model {}: {error}", self.model.id))?;
        }
        if let Some(rows) = self.rows
            && outputs
                .iter()
                .any(|output| output.shape.first() != Some(&(rows as i64)))
        {
            self.model.forbid_batching();
            if self.requests.len() > 1 {
                let singles: Vec<_> = self
                    .requests
                    .drain(..)
                    .map(|pending| vec![pending])
                    .collect();
                self.requeue(singles);
                return Ok(false);
            }
        }
        let execution_us = self.share_us();
        let split = self.requests.len() > 1;
        let requests = std::mem::take(&mut self.requests);
        let mut next_row = 0;
        let mut answers = Vec::with_capacity(requests.len());
        for pending in requests {
            let rows = next_row..next_row + pending.request.rows.unwrap_or(0);
            next_row = rows.end;
            if pending.answer.is_closed() {
                continue;
            }
            let frame = response(&pending.request, &outputs, &split.then_some(rows));
            let answer = frame.map(|frame| Answered {
                frame,
                execution_us,
            });
            answers.push((pending.answer, answer));
        }
        self.finish(answers);
        Ok(true)
    }

    /// Fails a batch of one. A larger one is halved and queued again, so that a bad request fails alone; then false.
    ///
    /// # Errors
    /// When the batch has been answered already.
    pub fn fail(&mut self, code: Code, message: &str) -> Result<bool, String> {
        match self.requests.len() {
            0 => Err(self.answered_already()),
            1 => {
                self.fail_all(&Status::new(code, message));
                Ok(true)
            }
            n => {
                let mut first = std::mem::take(&mut self.requests);
                let second = first.split_off(n / 2);
                self.requeue([first, second]);
                Ok(false)
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn sequences(&self) -> impl Iterator<Item = u64> {
        self.requests.iter().map(Pending::sequence)
    }

    /// Fails all requests, however many.
    pub(crate) fn fail_all(&mut self, status: &Status) {
        let requests = std::mem::take(&mut self.requests);
        self.finish(
            requests
                .into_iter()
                .map(|pending| (pending.answer, Err(status.clone())))
                .collect(),
        );
    }

    /// The outputs to return, in the order asked for, else that of the signature.
    fn wanted<'a>(&self, outputs: &[Output<'a>]) -> Result<Vec<Output<'a>>, String> {
        let requested = self.outputs();
        if requested.is_empty() {
            let declared = &self.model.signature.outputs;
            let place =
                |output: &Output<'_>| declared.iter().position(|spec| *spec.name == *output.name);
            let is_hidden =
                |output: &Output<'_>| place(output).is_some_and(|at| !declared[at].by_default);
            let mut wanted: Vec<_> = outputs
                .iter()
                .filter(|output| !is_hidden(output))
                .cloned()
                .collect();
            wanted.sort_by_key(|output| place(output).unwrap_or(declared.len()));
            return Ok(wanted);
        }
        let find = |name: &String| {
            let found = outputs.iter().find(|output| output.name == name).cloned();
            found.ok_or_else(|| {
                format!(
                    "Model {}: output '{name}' was requested but is not in the reply.",
                    self.model.id
                )
            })
        };
        requested.iter().map(find).collect()
    }

    fn share_us(&self) -> u32 {
        let share = self.started.elapsed().as_micros() / self.requests.len().max(1) as u128;
        u32::try_from(share).unwrap_or(u32::MAX)
    }

    fn requeue(&mut self, groups: impl IntoIterator<Item = Vec<Pending>>) {
        self.marker = None;
        self.queue.requeue(&self.model, groups);
        self.queue.done();
    }

    fn finish(&mut self, answers: Vec<Addressed>) {
        self.marker = None;
        self.wheel.answer(answers);
        self.queue.done();
    }

    fn answered_already(&self) -> String {
        format!(
            "The batch of model {} has been answered already.",
            self.model.id
        )
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if !self.requests.is_empty() {
            let sentence = format!(
                "Model {} gave no answer: its batch was dropped.",
                self.model.id
            );
            self.fail_all(&Status::new(Code::Internal, sentence));
        }
    }
}

impl Input<'_> {
    fn parts(&self) -> impl Iterator<Item = &TensorData> {
        self.batch
            .requests
            .iter()
            .map(|pending| &pending.request.inputs[self.at].data)
    }

    /// How many bytes [`Input::copy_into`] writes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.parts()
            .map(|part| match part {
                TensorData::Fixed(bytes) => bytes.len(),
                TensorData::Elements(_) => 0,
            })
            .sum()
    }

    /// Writes the rows of all requests one after another; `target` has [`Input::size_bytes`].
    pub fn copy_into(&self, target: &mut [u8]) {
        let mut at = 0;
        for part in self.parts() {
            if let TensorData::Fixed(bytes) = part {
                let range: Range<usize> = at..at + bytes.len();
                at = range.end;
                target[range].copy_from_slice(bytes);
            }
        }
    }

    /// The elements of a BYTES input, of all requests one after another; none for other datatypes.
    pub fn elements(&self) -> impl Iterator<Item = &Bytes> {
        self.parts().flat_map(|part| match part {
            TensorData::Fixed(_) => &[][..],
            TensorData::Elements(elements) => elements,
        })
    }
}

#[cfg(test)]
mod tests;
