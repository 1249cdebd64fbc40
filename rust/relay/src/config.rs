//! What is fixed at the start. The fields are those of the Python `DataPlaneConfig`.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

/// See `modelmesh.dataplane.protocol.DataPlaneConfig`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Unix socket of the control plane's gRPC server.
    pub control_socket: PathBuf,
    /// The address to listen on.
    pub host: String,
    /// 0: any free port; `None`: no such listener.
    pub grpc_port: Option<u16>,
    /// 0: any free port; `None`: no such listener.
    pub rest_port: Option<u16>,
    /// The address to listen on for other instances.
    pub peer_host: String,
    /// 0: any free port; `None`: no such listener.
    pub peer_port: Option<u16>,
    /// Event loops, one thread each.
    pub threads: usize,
    /// Largest request or response message.
    pub message_bytes_max: usize,
    /// Largest header list of one request.
    pub header_bytes_max: u32,
    /// Requests that may be parked at once.
    pub parked_requests_max: usize,
    /// Body bytes that requests may hold which are parked or wait for a slot.
    pub parked_bytes_max: usize,
    /// Largest body kept for a replay.
    pub kept_body_bytes_max: usize,
    /// All bodies kept for replays.
    pub kept_bytes_max: usize,
    /// How long a request without a deadline may wait.
    pub park_timeout: Duration,
    /// Requests that may queue at the gate of one model's replicas.
    pub gate_queue_max: usize,
    /// Streams a client connection may have open.
    pub streams_per_connection_max: u32,
    /// Models that a request which names several is sent to at once.
    pub multi_parallelism: usize,
    /// After about this long a gRPC connection is asked to end; `None`: never.
    pub connection_age: Option<Duration>,
    /// How much longer its calls may take; `None`: as long as they do.
    pub connection_age_grace: Option<Duration>,
    /// Models with series of their own in the histograms; 0: there are none.
    pub model_series_max: usize,
    /// Headers of requests that faults tell of, and what they are called there.
    pub told_headers: Vec<(HeaderName, String)>,
    /// Retries allowed per request, plus a floor of 10 per second.
    pub retry_ratio: f64,
    /// Whether model servers that do not signal loss, which are not ours, are sent the credentials of clients.
    pub pass_credentials: bool,
}

/// Headers and what they are called, as a user wrote them.
///
/// # Errors
/// A sentence about one that no request can have.
pub fn header_names(
    wanted: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(HeaderName, String)>, String> {
    let name = |(header, called): (String, String)| {
        HeaderName::from_bytes(header.as_bytes())
            .map(|name| (name, called))
            .map_err(|_| format!("{header:?} is not the name of a header."))
    };
    wanted.into_iter().map(name).collect()
}

impl Default for Config {
    fn default() -> Config {
        Config {
            control_socket: PathBuf::new(),
            host: "127.0.0.1".to_owned(),
            grpc_port: Some(0),
            rest_port: None,
            peer_host: "127.0.0.1".to_owned(),
            peer_port: None,
            threads: 1,
            message_bytes_max: 16 << 20,
            header_bytes_max: 16 << 10,
            parked_requests_max: 20_000,
            parked_bytes_max: 64 << 20,
            kept_body_bytes_max: 1 << 20,
            kept_bytes_max: 64 << 20,
            park_timeout: Duration::from_secs(120),
            gate_queue_max: 1024,
            streams_per_connection_max: 1024,
            multi_parallelism: 4,
            connection_age: None,
            connection_age_grace: None,
            model_series_max: 0,
            told_headers: Vec::new(),
            retry_ratio: 0.1,
            pass_credentials: false,
        }
    }
}
