//! The REST listener: the Open Inference Protocol over HTTP/1.1. A call becomes the same message it would be over gRPC
//! and goes through the same door ([`Dispatcher`]); the answer becomes JSON.
//!
//! `route` knows the paths, `headers` what is read from and passed on in headers, `body` how much of a body is taken and
//! for how long, `exchange` what one call is, `worded` what is said where there was no call. Here: the life of one connection.

mod body;
mod exchange;
mod headers;
mod lingering;
mod route;
mod worded;

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

#[cfg(feature = "fuzzing")]
pub(crate) use headers::passed_on;
#[cfg(feature = "fuzzing")]
pub(crate) use route::{Endpoint, route};

use crate::dispatch::Dispatcher;
use crate::socket::Socket;
use crate::stream::Stream;
use lingering::Lingering;
use worded::Worded;

/// How long a connection may be idle, and how long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a client may leave our answer unread before its connection is closed.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of a request is read at once.
const READ_BUFFER_BYTES: usize = 128 * 1024;

/// Serve one connection until it is closed; when the relay drains, what is in flight is answered first.
pub async fn serve_connection(stream: Stream, dispatcher: Dispatcher) {
    bound_unread_answers(stream.socket());
    let header_bytes_max = dispatcher.config().header_bytes_max as usize;
    let service = service_fn(async |request| {
        Ok::<_, Infallible>(exchange::answer(&dispatcher, request).await)
    });
    let stream = Worded::new(Lingering::new(stream), header_bytes_max);
    // Not `pipeline_flush`: with it an answer is held back while unread request bytes are buffered, and lost when the
    // connection closes because of them (seen with hyper 1.12).
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_header_size(header_bytes_max)
            .max_buf_size(READ_BUFFER_BYTES.max(header_bytes_max))
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = dispatcher.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if ended.is_err_and(|error| error.is_parse()) {
        dispatcher.count_malformed();
    }
}

/// Let the kernel close the connection of a client that reads nothing, so that it cannot hold memory for ever.
fn bound_unread_answers(stream: &Socket) {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT)) {
        debug_assert!(
            false,
            "TCP_USER_TIMEOUT is known to every supported kernel: {error}"
        );
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, UNREAD_TIMEOUT);
}
