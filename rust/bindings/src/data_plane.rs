//! `modelmesh._native.DataPlane`: the relay, for `modelmesh.dataplane.relay`.

mod arguments;
mod rows;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use relay::data_plane::{self, NewTarget};
use relay::meaning::Meaning;
use relay::name::Name;
use relay::rules::MethodRules;
use relay::tee::Filter;

use arguments::{
    PyConfig, PyMeaning, PyMethodRule, PyName, PyPeerTls, PyRoute, PyTarget, PyTls, known_name,
    milliseconds, path_of, status,
};
use rows::{
    HistogramTuple, PayloadTuple, StatsTuple, UsageTuple, WaitingTuple, event_tuple,
    histogram_tuple, payload_tuple, usage_tuple, waiting_tuple,
};

/// The relay. See `_native.pyi`.
#[pyclass(module = "modelmesh._native", frozen)]
pub struct DataPlane {
    relay: Mutex<data_plane::DataPlane>,
    process: u32,
}

#[pymethods]
impl DataPlane {
    #[new]
    fn new(mut config: PyConfig) -> PyResult<Self> {
        let peer_tls = config.peer_tls.take();
        let relay = data_plane::DataPlane::new(config.try_into()?)?;
        if let Some(tls) = peer_tls {
            tls.put_in_force(&relay)?;
        }
        Ok(Self {
            relay: Mutex::new(relay),
            process: std::process::id(),
        })
    }

    fn start(&self, py: Python<'_>) -> PyResult<(String, String, String)> {
        self.refuse_fork()?;
        let addresses = py
            .detach(|| self.relay.lock().start())
            .map_err(PyOSError::new_err)?;
        let text = |address: Option<std::net::SocketAddr>| {
            address.map(|at| at.to_string()).unwrap_or_default()
        };
        Ok((
            text(addresses.grpc),
            text(addresses.rest),
            text(addresses.peer),
        ))
    }

    fn fileno(&self) -> PyResult<i32> {
        self.with(|relay| relay.plane.events.descriptor())
    }

    fn take_events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let events = self.with(|relay| relay.plane.events.take())?;
        let now = Instant::now();
        events
            .into_iter()
            .map(|event| event_tuple(py, event, now))
            .collect()
    }

    fn set_targets(&self, add: Vec<PyTarget>, remove: Vec<u64>) -> PyResult<()> {
        self.with(|relay| {
            relay.set_targets(add.into_iter().map(NewTarget::from).collect(), &remove)
        })
    }

    fn publish(&self, py: Python<'_>, routes: Vec<PyRoute>) -> PyResult<()> {
        self.refuse_fork()?;
        py.detach(|| {
            let relay = self.relay.lock();
            for route in routes {
                relay.plane.publish(&route.model, &route.listed());
            }
        });
        Ok(())
    }

    fn publish_names(&self, py: Python<'_>, names: Vec<(PyName, PyMeaning)>) -> PyResult<()> {
        self.refuse_fork()?;
        let names: Vec<(Name, Meaning)> = names
            .into_iter()
            .map(|(name, meaning)| Ok((known_name(&name)?, meaning.into())))
            .collect::<PyResult<_>>()?;
        py.detach(|| {
            let relay = self.relay.lock();
            for (name, meaning) in names {
                relay.plane.publish_name(&name, meaning);
            }
        });
        Ok(())
    }

    fn forget_names(&self, names: Vec<PyName>) -> PyResult<()> {
        let names: Vec<Name> = names.iter().map(known_name).collect::<PyResult<_>>()?;
        self.with(|relay| names.iter().for_each(|name| relay.plane.forget_name(name)))
    }

    fn set_method_rules(
        &self,
        rules: Option<Vec<PyMethodRule>>,
        allow_others: bool,
    ) -> PyResult<()> {
        let rules = rules.map(|rules| MethodRules {
            rules: rules.into_iter().map(PyMethodRule::into).collect(),
            allow_others,
        });
        self.with(|relay| relay.plane.rules.set(rules))
    }

    fn set_tls(&self, py: Python<'_>, tls: PyTls) -> PyResult<()> {
        self.refuse_fork()?;
        py.detach(|| tls.put_in_force(&self.relay.lock()))
    }

    fn set_peer_tls(&self, py: Python<'_>, tls: PyPeerTls) -> PyResult<()> {
        self.refuse_fork()?;
        py.detach(|| tls.put_in_force(&self.relay.lock()))
    }

    fn set_payload_filters(
        &self,
        filters: Vec<(String, String)>,
        payloads_max: usize,
        bytes_max: usize,
    ) -> PyResult<()> {
        let filter = |(model, method): (String, String)| Filter {
            model: (!model.is_empty()).then(|| model.into_boxed_str()),
            method: (!method.is_empty()).then(|| path_of(&method)),
        };
        let filters = filters.into_iter().map(filter).collect();
        self.with(|relay| relay.plane.tee.set(filters, payloads_max, bytes_max))
    }

    fn take_payload(&self, py: Python<'_>, timeout_ms: i64) -> PyResult<Option<PayloadTuple>> {
        // Several threads wait here: nothing is locked meanwhile.
        let plane = self.with(|relay| relay.plane.clone())?;
        Ok(py.detach(|| {
            let payload = plane.tee.take(milliseconds(timeout_ms))?;
            Some(payload_tuple(&payload, plane.config.message_bytes_max))
        }))
    }

    fn retire(&self, replicas: Vec<(u64, u64)>, timeout_ms: i64) -> PyResult<()> {
        self.with(|relay| relay.retire(&replicas, milliseconds(timeout_ms)))
    }

    fn expect(&self, model: &str, ready_in_ms: i64) -> PyResult<()> {
        self.with(|relay| {
            relay
                .plane
                .models
                .expect(&Arc::from(model), milliseconds(ready_in_ms))
        })
    }

    fn refuse(
        &self,
        model: &str,
        code: u64,
        message: String,
        retry_after_ms: i64,
        cache_ms: i64,
        http_status: u16,
    ) -> PyResult<()> {
        let status = status(code, message, retry_after_ms, http_status);
        self.with(|relay| {
            relay
                .plane
                .models
                .refuse(&Arc::from(model), status, milliseconds(cache_ms))
        })
    }

    fn refuse_name(
        &self,
        name: PyName,
        code: u64,
        message: String,
        retry_after_ms: i64,
        cache_ms: i64,
        http_status: u16,
    ) -> PyResult<()> {
        let name = known_name(&name)?;
        let status = status(code, message, retry_after_ms, http_status);
        self.with(|relay| {
            relay
                .plane
                .names
                .refuse(&name, status, milliseconds(cache_ms))
        })
    }

    fn take_waiting(&self) -> PyResult<Vec<WaitingTuple>> {
        let rows = self.with(|relay| relay.plane.models.waiting())?;
        let now = Instant::now();
        Ok(rows.iter().map(|row| waiting_tuple(row, now)).collect())
    }

    fn take_usage(&self) -> PyResult<Vec<UsageTuple>> {
        let rows = self.with(|relay| relay.take_usage())?;
        Ok(rows.into_iter().map(usage_tuple).collect())
    }

    fn histograms(&self) -> PyResult<Vec<HistogramTuple>> {
        let rows = self.with(|relay| relay.histograms())?;
        Ok(rows.into_iter().map(histogram_tuple).collect())
    }

    fn stats(&self) -> PyResult<StatsTuple> {
        self.with(|relay| {
            let (plane, gauges) = (&relay.plane, &relay.plane.gauges);
            let now = vec![
                ("connections", gauges.connections.load(Ordering::Relaxed)),
                ("in_flight", gauges.in_flight.load(Ordering::Relaxed)),
                (
                    "parked_requests",
                    gauges.parked_requests.load(Ordering::Relaxed),
                ),
                ("parked_bytes", gauges.parked_bytes.load(Ordering::Relaxed)),
                ("kept_bytes", gauges.kept_bytes.load(Ordering::Relaxed)),
                ("routes", plane.models.len()),
                ("names", plane.names.len()),
            ];
            (now, plane.counters.read())
        })
    }

    fn drain(&self, timeout_ms: i64) -> PyResult<()> {
        self.with(|relay| relay.drain(milliseconds(timeout_ms)))
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.refuse_fork()?;
        let wrong = py.detach(|| self.relay.lock().stop());
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(PyRuntimeError::new_err(wrong.join(" ")))
        }
    }
}

impl DataPlane {
    fn with<T>(&self, call: impl FnOnce(&data_plane::DataPlane) -> T) -> PyResult<T> {
        self.refuse_fork()?;
        Ok(call(&self.relay.lock()))
    }

    /// The loops are threads of the process that started them; a child has none.
    fn refuse_fork(&self) -> PyResult<()> {
        if std::process::id() == self.process {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(
            "The data plane does not survive a fork; start a new process and a data plane in it.",
        ))
    }
}
