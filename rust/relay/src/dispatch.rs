//! The door for requests that did not come over gRPC: the REST listener turns a call into a [`Request`], and the
//! [`Reply`] into HTTP. What comes through here takes the very same path as a gRPC call: names, parking, gates,
//! retries, usage, histograms.
//!
//! The listener hands each accepted REST connection to `rest::serve_connection(stream: crate::stream::Stream,
//! dispatcher: Dispatcher) -> impl Future<Output = ()>`, spawned as a local task of the loop that accepted it. The
//! future returns when the connection is closed; it must finish what is in flight and close once
//! [`Dispatcher::draining`] resolves. It owns its errors: nothing is returned, a panic in it closes that connection only.

use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;

use crate::event_loop::EventLoop;

pub use crate::config::Config;
pub use crate::name::{Name, NameKind};
pub use crate::status::{Code, Status};

/// A unary call.
#[derive(Debug)]
pub struct Request {
    /// The gRPC method, e.g. `/inference.GRPCInferenceService/ModelInfer`. Its class decides where the call goes: to a model,
    /// or to the control plane (ServerLive, ModelReady, …). Static, so that it may label metrics.
    pub path: &'static str,
    /// Request headers to pass on, without those of HTTP/1.1 itself (connection, host, content-length, content-type,
    /// transfer-encoding, accept, user-agent, …). `mm-*` headers are handled as for gRPC: not passed on to a model.
    pub headers: HeaderMap,
    /// Which model; `None` only for control methods. Name ids in `headers` are not looked at.
    pub name: Option<Name>,
    /// When the caller stops waiting; `None`: as long as the load takes.
    pub deadline: Option<Instant>,
    /// The encoded request message, without gRPC framing.
    pub message: Bytes,
}

/// How the call ended.
#[derive(Debug)]
pub struct Reply {
    /// `status.code` is `Ok` exactly when `message` is a whole response message. `status.http_status()` is the status
    /// to answer, `status.message` the sentence for `{"error": …}`, `status.retry_after` the `Retry-After`.
    pub status: Status,
    /// Response headers of the model server, without those of gRPC itself; `mm-model-id` names the concrete model.
    pub headers: HeaderMap,
    /// Response trailers, without `grpc-status` and `grpc-message` and the private ones.
    pub trailers: HeaderMap,
    /// The encoded response message, decompressed, without gRPC framing; empty unless the code is `Ok`.
    pub message: Bytes,
}

/// One loop's way into the relay. Cheap to clone; stays on its loop (`!Send`).
#[derive(Clone)]
pub struct Dispatcher {
    event_loop: Rc<EventLoop>,
}

impl Dispatcher {
    pub(crate) fn new(event_loop: Rc<EventLoop>) -> Dispatcher {
        Dispatcher { event_loop }
    }

    /// The limits to keep: `message_bytes_max`, `header_bytes_max`, `park_timeout`.
    pub fn config(&self) -> &Config {
        &self.event_loop.plane.config
    }

    /// Relay a call and wait for its end. Dropping the future cancels the call all the way.
    pub async fn dispatch(&self, request: Request) -> Reply {
        crate::gather::dispatch(&self.event_loop, request).await
    }

    /// Count an input that was refused before it became a request (malformed HTTP or JSON).
    pub fn count_malformed(&self) {
        self.event_loop.plane.counters.malformed.add(1);
    }

    /// Resolves when the relay starts draining: answer what is in flight, then close. Resolves at once if it already has.
    pub async fn draining(&self) {
        self.event_loop.draining().await;
    }
}
