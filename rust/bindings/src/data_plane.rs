//! `modelmesh._native.DataPlane`: the relay, for `modelmesh.dataplane.relay`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use relay::config::{Config, header_names};
use relay::data_plane::{self, NewTarget};
use relay::event::Event;
use relay::meaning::Meaning;
use relay::name::{Name, NameKind};
use relay::peer_tls::PeerMaterial;
use relay::plane::Listed;
use relay::replica::TargetMethods;
use relay::rules::{MethodRules, Rule};
use relay::status::{Code, Status};
use relay::tee::Filter;
use relay::tls::{ClientAuth, Material};

/// Durations from Python are bounded by this, so that adding them to now never overflows.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

#[derive(FromPyObject)]
struct PyConfig {
    control_socket: PathBuf,
    host: String,
    grpc_port: i32,
    rest_port: i32,
    peer_host: String,
    peer_port: Option<i32>,
    peer_tls: Option<PyPeerTls>,
    threads: usize,
    message_bytes_max: usize,
    header_bytes_max: u32,
    parked_requests_max: usize,
    parked_bytes_max: usize,
    kept_body_bytes_max: usize,
    kept_bytes_max: usize,
    park_timeout_ms: i64,
    gate_queue_max: usize,
    streams_per_connection_max: u32,
    multi_parallelism: usize,
    connection_age_ms: i64,
    connection_age_grace_ms: i64,
    model_series_max: usize,
    told_headers: Vec<(String, String)>,
    retry_ratio: f64,
    pass_credentials: bool,
}

#[derive(FromPyObject)]
struct PyTarget {
    id: u64,
    address: String,
    max_concurrency: u32,
    signals_loss: bool,
    methods: Vec<(String, Vec<u32>)>,
    allow_any_method: bool,
    peer: bool,
}

#[derive(FromPyObject)]
struct PyReplica {
    id: u64,
    target_id: u64,
    max_concurrency: u32,
}

#[derive(FromPyObject)]
struct PyRoute {
    model: String,
    replicas: Vec<PyReplica>,
}

#[derive(FromPyObject)]
struct PyMethodRule {
    method: String,
    id_path: Vec<u32>,
    vmodel: bool,
}

#[derive(FromPyObject)]
struct PyPeerTls {
    certificate_pem: Vec<u8>,
    key_pem: Vec<u8>,
    trusted_pem: Vec<u8>,
    passphrase: String,
}

impl PyPeerTls {
    fn put_in_force(&self, relay: &data_plane::DataPlane) -> PyResult<()> {
        let material = PeerMaterial {
            certificate_pem: &self.certificate_pem,
            key_pem: &self.key_pem,
            trusted_pem: &self.trusted_pem,
            passphrase: &self.passphrase,
        };
        let set = relay.plane.tls.set_for_peers(&material);
        set.map_err(PyValueError::new_err)
    }
}

/// What a name stands for.
#[derive(FromPyObject)]
enum PyMeaning {
    Model(String),
    Split {
        model: String,
        canary: String,
        share: f64,
    },
}

impl From<PyMeaning> for Meaning {
    fn from(meaning: PyMeaning) -> Meaning {
        match meaning {
            PyMeaning::Model(model) => Meaning::Model(Arc::from(model)),
            PyMeaning::Split {
                model,
                canary,
                share,
            } => Meaning::split(&model, &canary, share),
        }
    }
}

#[derive(FromPyObject)]
struct PyTls {
    certificate_pem: Vec<u8>,
    key_pem: Vec<u8>,
    passphrase: String,
    client_auth: String,
    trust_pem: Option<Vec<Vec<u8>>>,
}

type PyName = (u8, String, String);

/// A row of `take_usage`: `protocol.Usage` field by field.
type UsageTuple = (String, u64, u64, u64, u32, u64, u64);
/// A row of `histograms`: metric, method, code, counts, sum, model, vmodel.
type HistogramTuple = (&'static str, String, u8, Vec<u64>, f64, String, String);
/// Gauges of the moment, and counters since the start.
type StatsTuple = (Vec<(&'static str, usize)>, Vec<(&'static str, u64)>);

/// `take_payload`: the fields of `protocol.Payload`, the code −1 for a request.
type PayloadTuple = (u64, String, String, String, i8, Vec<(String, String)>, Data);

/// Bytes that become Python's `bytes`.
struct Data(Vec<u8>);

impl<'py> IntoPyObject<'py> for Data {
    type Target = PyBytes;
    type Output = Bound<'py, PyBytes>;
    type Error = std::convert::Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(PyBytes::new(py, &self.0))
    }
}

/// The relay. See `_native.pyi`.
#[pyclass(module = "modelmesh._native", frozen)]
pub struct DataPlane {
    relay: Mutex<data_plane::DataPlane>,
    process: u32,
}

#[pymethods]
impl DataPlane {
    #[new]
    fn new(config: PyConfig) -> PyResult<Self> {
        let peer_tls = config.peer_tls;
        let config = Config {
            control_socket: config.control_socket,
            host: config.host,
            grpc_port: port(config.grpc_port)?,
            rest_port: port(config.rest_port)?,
            peer_host: config.peer_host,
            peer_port: config.peer_port.map(port).transpose()?.flatten(),
            threads: config.threads.max(1),
            message_bytes_max: config.message_bytes_max,
            header_bytes_max: config.header_bytes_max,
            parked_requests_max: config.parked_requests_max,
            parked_bytes_max: config.parked_bytes_max,
            kept_body_bytes_max: config.kept_body_bytes_max,
            kept_bytes_max: config.kept_bytes_max,
            park_timeout: milliseconds(config.park_timeout_ms),
            gate_queue_max: config.gate_queue_max,
            streams_per_connection_max: config.streams_per_connection_max,
            multi_parallelism: config.multi_parallelism.max(1),
            connection_age: if_any(config.connection_age_ms),
            connection_age_grace: if_any(config.connection_age_grace_ms),
            model_series_max: config.model_series_max,
            told_headers: header_names(config.told_headers).map_err(PyValueError::new_err)?,
            retry_ratio: config.retry_ratio,
            pass_credentials: config.pass_credentials,
        };
        let relay = data_plane::DataPlane::new(config)?;
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
        let listed = |(method, path): (String, Vec<u32>)| {
            (format!("/{method}").into_boxed_str(), Arc::from(path))
        };
        let target = |target: PyTarget| NewTarget {
            id: target.id,
            address: target.address,
            max_concurrency: target.max_concurrency,
            signals_loss: target.signals_loss,
            methods: TargetMethods {
                listed: target.methods.into_iter().map(listed).collect(),
                allow_any: target.allow_any_method,
            },
            peer: target.peer,
        };
        self.with(|relay| relay.set_targets(add.into_iter().map(target).collect(), &remove))
    }

    fn publish(&self, py: Python<'_>, routes: Vec<PyRoute>) -> PyResult<()> {
        self.refuse_fork()?;
        py.detach(|| {
            let relay = self.relay.lock();
            for route in routes {
                let listed: Vec<Listed> = route
                    .replicas
                    .iter()
                    .map(|replica| Listed {
                        id: replica.id,
                        target: replica.target_id,
                        max_concurrency: replica.max_concurrency,
                    })
                    .collect();
                relay.plane.publish(&route.model, &listed);
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
        let rule = |rule: PyMethodRule| {
            let by = Rule {
                id_path: rule.id_path.into(),
                vmodel: rule.vmodel,
            };
            (format!("/{}", rule.method).into_boxed_str(), by)
        };
        let rules = rules.map(|rules| MethodRules {
            rules: rules.into_iter().map(rule).collect(),
            allow_others,
        });
        self.with(|relay| relay.plane.rules.set(rules))
    }

    fn set_tls(&self, py: Python<'_>, tls: PyTls) -> PyResult<()> {
        self.refuse_fork()?;
        let client_auth = match tls.client_auth.as_str() {
            "none" => ClientAuth::None,
            "optional" => ClientAuth::Optional,
            "require" => ClientAuth::Require,
            other => {
                let sentence =
                    format!("Client authentication is none, optional or require, not \"{other}\".");
                return Err(PyValueError::new_err(sentence));
            }
        };
        let set = || {
            self.relay.lock().plane.tls.set(&Material {
                certificate_pem: &tls.certificate_pem,
                key_pem: &tls.key_pem,
                passphrase: &tls.passphrase,
                client_auth,
                trust_pem: tls.trust_pem.as_deref(),
            })
        };
        py.detach(set).map_err(PyValueError::new_err)
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
        let some = |text: String| (!text.is_empty()).then(|| text.into_boxed_str());
        let filter = |(model, method): (String, String)| Filter {
            model: some(model),
            method: some(method).map(|method| format!("/{method}").into_boxed_str()),
        };
        let filters = filters.into_iter().map(filter).collect();
        self.with(|relay| relay.plane.tee.set(filters, payloads_max, bytes_max))
    }

    fn take_payload(&self, py: Python<'_>, timeout_ms: i64) -> PyResult<Option<PayloadTuple>> {
        // Several threads wait here: nothing is locked meanwhile.
        let plane = self.with(|relay| relay.plane.clone())?;
        Ok(py.detach(|| {
            let payload = plane.tee.take(milliseconds(timeout_ms))?;
            Some((
                payload.call,
                payload.model.to_string(),
                payload.vmodel.to_string(),
                payload.path.trim_start_matches('/').to_owned(),
                payload.code.map_or(-1, |code| code as i8),
                payload.metadata(),
                Data(payload.message(plane.config.message_bytes_max)),
            ))
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

    fn take_waiting(&self) -> PyResult<Vec<(String, usize, u64, u64)>> {
        let rows = self.with(|relay| relay.plane.models.waiting())?;
        let now = Instant::now();
        let row = |row: relay::space::Waiting<Arc<str>>| {
            (
                row.key.to_string(),
                row.waiting,
                since_ms(row.oldest, now),
                until_ms(row.latest_deadline, now),
            )
        };
        Ok(rows.into_iter().map(row).collect())
    }

    fn take_usage(&self) -> PyResult<Vec<UsageTuple>> {
        let rows = self.with(|relay| relay.take_usage())?;
        let row = |row: data_plane::UsageRow| {
            let model = row.model.to_string();
            (
                model,
                row.replica,
                row.requests,
                row.errors,
                row.in_flight,
                row.execution_us,
                row.last_used_ms_ago,
            )
        };
        Ok(rows.into_iter().map(row).collect())
    }

    fn histograms(&self) -> PyResult<Vec<HistogramTuple>> {
        let rows = self.with(|relay| relay.histograms())?;
        let row = |row: data_plane::HistogramRow| {
            let (counts, sum) = (row.histogram.counts, row.histogram.sum);
            (
                row.metric.name(),
                row.method.into(),
                row.code as u8,
                counts,
                sum,
                row.model.to_string(),
                row.vmodel.to_string(),
            )
        };
        Ok(rows.into_iter().map(row).collect())
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

fn event_tuple(py: Python<'_>, event: Event, now: Instant) -> PyResult<Bound<'_, PyTuple>> {
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

fn known_name((kind, name, version): &PyName) -> PyResult<Name> {
    let known = NameKind::from_number(*kind);
    let kind = known.ok_or_else(|| {
        PyValueError::new_err(format!("There is no kind {kind} of names; see NameKind."))
    })?;
    Ok(Name::new(kind, name, version))
}

fn status(code: u64, message: String, retry_after_ms: i64, http_status: u16) -> Status {
    let mut status = Status::new(Code::from_number(code), message);
    status.retry_after = (retry_after_ms >= 0).then(|| milliseconds(retry_after_ms));
    status.http = (http_status > 0).then_some(http_status);
    status
}

fn port(port: i32) -> PyResult<Option<u16>> {
    if port == -1 {
        return Ok(None);
    }
    let port = u16::try_from(port);
    port.map(Some).map_err(|_| {
        PyValueError::new_err("A port is between 0 (any free one) and 65535, or −1 (off).")
    })
}

/// `None` for 0.
fn if_any(ms: i64) -> Option<Duration> {
    (ms > 0).then(|| milliseconds(ms))
}

fn milliseconds(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(DURATION_MAX)
}

fn since_ms(then: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(then).as_millis() as u64
}

fn until_ms(then: Instant, now: Instant) -> u64 {
    then.saturating_duration_since(now).as_millis() as u64
}
