//! What Python hands the data plane, as the relay takes it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use relay::config::{Config, header_names};
use relay::data_plane::{self, NewTarget};
use relay::meaning::Meaning;
use relay::name::{Name, NameKind};
use relay::peer_tls::PeerMaterial;
use relay::plane::Listed;
use relay::replica::TargetMethods;
use relay::rules::Rule;
use relay::status::{Code, Status};
use relay::tls::{ClientAuth, Material};

/// Durations from Python are bounded by this, so that adding them to now never overflows.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

#[derive(FromPyObject)]
pub struct PyConfig {
    control_socket: PathBuf,
    host: String,
    grpc_port: i32,
    rest_port: i32,
    peer_host: String,
    peer_port: Option<i32>,
    pub peer_tls: Option<PyPeerTls>,
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

impl TryFrom<PyConfig> for Config {
    type Error = PyErr;

    fn try_from(config: PyConfig) -> PyResult<Config> {
        Ok(Config {
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
        })
    }
}

#[derive(FromPyObject)]
pub struct PyTarget {
    id: u64,
    address: String,
    max_concurrency: u32,
    signals_loss: bool,
    methods: Vec<(String, Vec<u32>)>,
    allow_any_method: bool,
    peer: bool,
}

impl From<PyTarget> for NewTarget {
    fn from(target: PyTarget) -> NewTarget {
        let listed = |(method, path): (String, Vec<u32>)| (path_of(&method), Arc::from(path));
        NewTarget {
            id: target.id,
            address: target.address,
            max_concurrency: target.max_concurrency,
            signals_loss: target.signals_loss,
            methods: TargetMethods {
                listed: target.methods.into_iter().map(listed).collect(),
                allow_any: target.allow_any_method,
            },
            peer: target.peer,
        }
    }
}

#[derive(FromPyObject)]
pub struct PyReplica {
    id: u64,
    target_id: u64,
    max_concurrency: u32,
}

#[derive(FromPyObject)]
pub struct PyRoute {
    pub model: String,
    replicas: Vec<PyReplica>,
}

impl PyRoute {
    /// Its replicas.
    pub fn listed(&self) -> Vec<Listed> {
        let listed = |replica: &PyReplica| Listed {
            id: replica.id,
            target: replica.target_id,
            max_concurrency: replica.max_concurrency,
        };
        self.replicas.iter().map(listed).collect()
    }
}

#[derive(FromPyObject)]
pub struct PyMethodRule {
    method: String,
    id_path: Vec<u32>,
    vmodel: bool,
}

impl From<PyMethodRule> for (Box<str>, Rule) {
    fn from(rule: PyMethodRule) -> (Box<str>, Rule) {
        let by = Rule {
            id_path: rule.id_path.into(),
            vmodel: rule.vmodel,
        };
        (path_of(&rule.method), by)
    }
}

#[derive(FromPyObject)]
pub struct PyPeerTls {
    certificate_pem: Vec<u8>,
    key_pem: Vec<u8>,
    trusted_pem: Vec<u8>,
    passphrase: String,
}

impl PyPeerTls {
    /// From now on other instances are met by it.
    pub fn put_in_force(&self, relay: &data_plane::DataPlane) -> PyResult<()> {
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
pub enum PyMeaning {
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
pub struct PyTls {
    certificate_pem: Vec<u8>,
    key_pem: Vec<u8>,
    passphrase: String,
    client_auth: String,
    trust_pem: Option<Vec<Vec<u8>>>,
}

impl PyTls {
    /// From now on clients are met by it.
    pub fn put_in_force(&self, relay: &data_plane::DataPlane) -> PyResult<()> {
        let client_auth = match self.client_auth.as_str() {
            "none" => ClientAuth::None,
            "optional" => ClientAuth::Optional,
            "require" => ClientAuth::Require,
            other => {
                let sentence =
                    format!("Client authentication is none, optional or require, not \"{other}\".");
                return Err(PyValueError::new_err(sentence));
            }
        };
        let set = relay.plane.tls.set(&Material {
            certificate_pem: &self.certificate_pem,
            key_pem: &self.key_pem,
            passphrase: &self.passphrase,
            client_auth,
            trust_pem: self.trust_pem.as_deref(),
        });
        set.map_err(PyValueError::new_err)
    }
}

/// Kind, name, version.
pub type PyName = (u8, String, String);

/// A method as Python writes it, as it is on the wire.
pub fn path_of(method: &str) -> Box<str> {
    format!("/{method}").into_boxed_str()
}

/// The name with these fields.
pub fn known_name((kind, name, version): &PyName) -> PyResult<Name> {
    let known = NameKind::from_number(*kind);
    let kind = known.ok_or_else(|| {
        PyValueError::new_err(format!("There is no kind {kind} of names; see NameKind."))
    })?;
    Ok(Name::new(kind, name, version))
}

/// How Python says that a request ends.
pub fn status(code: u64, message: String, retry_after_ms: i64, http_status: u16) -> Status {
    let mut status = Status::new(Code::from_number(code), message);
    status.retry_after = (retry_after_ms >= 0).then(|| milliseconds(retry_after_ms));
    status.http = (http_status > 0).then_some(http_status);
    status
}

/// −1 is off.
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

/// A duration from Python; a negative one is none.
pub fn milliseconds(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(DURATION_MAX)
}
