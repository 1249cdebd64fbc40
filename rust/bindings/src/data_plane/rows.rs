//! What the data plane tells Python: tuples that `modelmesh.dataplane.relay` makes its values of.

use std::sync::Arc;
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use relay::data_plane::{HistogramRow, UsageRow};
use relay::event::Event;
use relay::name::Name;
use relay::space::Waiting;
use relay::tee::Payload;

use super::arguments::PyName;

/// A row of `take_usage`: `protocol.Usage` field by field.
pub type UsageTuple = (String, u64, u64, u64, u32, u64, u64);
/// A row of `histograms`: metric, method, code, counts, sum, model, vmodel.
pub type HistogramTuple = (&'static str, String, u8, Vec<u64>, f64, String, String);
/// Gauges of the moment, and counters since the start.
pub type StatsTuple = (Vec<(&'static str, usize)>, Vec<(&'static str, u64)>);

/// `take_payload`: the fields of `protocol.Payload`, the code −1 for a request.
pub type PayloadTuple = (u64, String, String, String, i8, Vec<(String, String)>, Data);

/// Bytes that become Python's `bytes`.
pub struct Data(Vec<u8>);

impl<'py> IntoPyObject<'py> for Data {
    type Target = PyBytes;
    type Output = Bound<'py, PyBytes>;
    type Error = std::convert::Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(PyBytes::new(py, &self.0))
    }
}

/// A row of `take_waiting`: model, requests, for how long the oldest waits and the last will, in milliseconds.
pub type WaitingTuple = (String, usize, u64, u64);

/// A row of `take_usage`.
pub fn usage_tuple(row: UsageRow) -> UsageTuple {
    (
        row.model.to_string(),
        row.replica,
        row.requests,
        row.errors,
        row.in_flight,
        row.execution_us,
        row.last_used_ms_ago,
    )
}

/// A row of `histograms`.
pub fn histogram_tuple(row: HistogramRow) -> HistogramTuple {
    (
        row.metric.name(),
        row.method.into(),
        row.code as u8,
        row.histogram.counts,
        row.histogram.sum,
        row.model.to_string(),
        row.vmodel.to_string(),
    )
}

/// A row of `take_waiting`.
pub fn waiting_tuple(row: &Waiting<Arc<str>>, now: Instant) -> WaitingTuple {
    (
        row.key.to_string(),
        row.waiting,
        since_ms(row.oldest, now),
        until_ms(row.latest_deadline, now),
    )
}

/// What `take_payload` returns; of a larger message only the start.
pub fn payload_tuple(payload: &Payload, message_bytes_max: usize) -> PayloadTuple {
    (
        payload.call,
        payload.model.to_string(),
        payload.vmodel.to_string(),
        payload.path.trim_start_matches('/').to_owned(),
        payload.code.map_or(-1, |code| code as i8),
        payload.metadata(),
        Data(payload.message(message_bytes_max)),
    )
}

/// A row of `take_events`.
pub fn event_tuple(py: Python<'_>, event: Event, now: Instant) -> PyResult<Bound<'_, PyTuple>> {
    let text = |model: Option<Arc<str>>| model.map(|model| model.to_string()).unwrap_or_default();
    match event {
        Event::Fault {
            name,
            model,
            waiting,
            deadline,
            told,
        } => {
            let (kind, id, version) = name_tuple(&name);
            let (left, told) = (until_ms(deadline, now), told.into_vec());
            let model = text(model);
            ("fault", kind, id, version, model, waiting, left, left, told).into_pyobject(py)
        }
        Event::Abandoned { name, model } => {
            let (kind, id, version) = name_tuple(&name);
            ("abandoned", kind, id, version, text(model)).into_pyobject(py)
        }
        Event::TargetLost { target } => ("target_lost", target).into_pyobject(py),
        Event::TargetBack { target } => ("target_back", target).into_pyobject(py),
        Event::NotHere { model, replica } => {
            ("not_here", model.to_string(), replica).into_pyobject(py)
        }
        Event::Retired {
            replica,
            token,
            clean,
        } => ("retired", replica, token, clean).into_pyobject(py),
        Event::Queueing {
            model,
            queued,
            oldest_since,
        } => (
            "queueing",
            model.to_string(),
            queued,
            since_ms(oldest_since, now),
        )
            .into_pyobject(py),
    }
}

fn name_tuple(name: &Name) -> PyName {
    (
        name.kind as u8,
        name.name.to_string(),
        name.version.to_string(),
    )
}

fn since_ms(then: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(then).as_millis() as u64
}

fn until_ms(then: Instant, now: Instant) -> u64 {
    then.saturating_duration_since(now).as_millis() as u64
}
