//! One HTTP/2 connection and the calls on it. A panic in a call closes this connection and no other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, Connection};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::call::{self, Core};
use crate::grpc;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that broke a rule may take to hear so.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Large enough that most tensors come in one frame and are not copied together.
const FRAME_BYTES_MAX: u32 = 256 << 10;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Calls opened and cancelled before we looked. The caller is the data plane, which drops all calls of a client that
/// goes; `h2`'s own 20 would take that for an attack and close the connection of everybody else.
const CANCELLED_UNSEEN_MAX: usize = 4096;

/// Serves a connection until its end, or until all its calls have ended after `stopping` turned true.
pub async fn serve(
    socket: UnixStream,
    core: Arc<Core>,
    streams_max: u32,
    mut stopping: watch::Receiver<bool>,
) {
    let _counted = Counted::new(core.clone());
    let Ok(Ok(mut connection)) = timeout(HANDSHAKE_TIMEOUT, handshake(socket, streams_max)).await
    else {
        return; // no HTTP/2 client
    };
    let mut calls = JoinSet::new();
    let mut is_stopping = false;
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let (head, body, caller) = grpc::open(request, respond);
                    calls.spawn(call::serve(head, body, caller, core.clone()));
                }
                // The client closed, or broke the protocol; `h2` has told it which.
                Some(Err(_)) | None => return,
            },
            Some(ended) = calls.join_next() => {
                // All that have ended by now: each turn of the loop polls the whole connection.
                let mut ended = Some(ended);
                while let Some(call) = ended {
                    if call.is_err_and(|error| error.is_panic()) {
                        connection.abrupt_shutdown(Reason::INTERNAL_ERROR);
                        let _ = timeout(GOODBYE_TIMEOUT, close(connection)).await;
                        return;
                    }
                    ended = calls.try_join_next();
                }
            }
            () = told_to_stop(&mut stopping), if !is_stopping => {
                is_stopping = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// Waits until it turns true, or the server is gone.
pub async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn handshake(
    socket: UnixStream,
    streams_max: u32,
) -> io::Result<Connection<UnixStream, Bytes>> {
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(streams_max)
        .max_pending_accept_reset_streams(CANCELLED_UNSEEN_MAX)
        .handshake(socket);
    handshake.await.map_err(io::Error::other)
}

async fn close(mut connection: Connection<UnixStream, Bytes>) {
    while connection.accept().await.is_some() {}
}

struct Counted(Arc<Core>);

impl Counted {
    fn new(core: Arc<Core>) -> Self {
        core.counts.connections.fetch_add(1, Ordering::Relaxed);
        Self(core)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counts.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
