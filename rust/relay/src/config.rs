//! What is fixed at the start. The fields are those of the Python `DataPlaneConfig`.

use std::path::PathBuf;
use std::time::Duration;

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
    /// Event loops, one thread each.
    pub threads: usize,
    /// Largest request or response message.
    pub message_bytes_max: usize,
    /// Largest header list of one request.
    pub header_bytes_max: u32,
    /// Requests that may be parked at once.
    pub parked_requests_max: usize,
    /// Body bytes that parked requests may hold.
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
    /// Retries allowed per request, plus a floor of 10 per second.
    pub retry_ratio: f64,
    /// Whether model servers that do not signal loss, which are not ours, are sent the credentials of clients.
    pub pass_credentials: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            control_socket: PathBuf::new(),
            host: "127.0.0.1".to_owned(),
            grpc_port: Some(0),
            rest_port: None,
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
            retry_ratio: 0.1,
            pass_credentials: false,
        }
    }
}
