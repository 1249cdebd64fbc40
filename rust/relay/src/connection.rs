//! A client's HTTP/2 connection and its streams. The only file that knows the server half of `h2`.

use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Response, StatusCode, Version};

use crate::call::Origin;
use crate::event_loop::EventLoop;
use crate::flood::Flood;
use crate::headers::is_grpc;
use crate::heard::Heard;
use crate::plane::Held;
use crate::status::Status;
use crate::stream::Stream;
use crate::trailers::of_status;
use crate::upstream::{PEER_WINDOWS, WINDOWS};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What sending the last frames may take.
const FAREWELL: Duration = Duration::from_millis(100);

/// Header lists up to this are read and answered with a sentence; beyond, HTTP/2 itself answers 431 for that request, and far
/// beyond it takes the client for a flood.
const HEADER_BYTES_READ: u32 = 256 << 10;

/// Streams another instance may have open: one connection carries what one of its loops sends here.
const PEER_STREAMS_MAX: u32 = 16 << 10;

/// Serves a connection until it is closed, by the client or because the relay drains.
pub async fn serve(stream: Stream, event_loop: Rc<EventLoop>, origin: Origin) {
    let plane = event_loop.plane.clone();
    let _open = match origin {
        Origin::Client => Held::one(&plane.gauges.connections),
        Origin::Peer => Held::none(&plane.gauges.connections),
    };
    let config = &plane.config;
    let counted = plane.clone();
    let (streams_max, windows, age_max) = match origin {
        Origin::Client => (
            config.streams_per_connection_max,
            WINDOWS,
            config.connection_age,
        ),
        Origin::Peer => (PEER_STREAMS_MAX, PEER_WINDOWS, None),
    };
    let mut flood = Flood::new(streams_max);
    let stream = Heard::new(stream, move |bytes: &[u8]| {
        flood
            .watch(bytes)
            .inspect_err(|_| counted.counters.floods.add(1))
    });
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(windows.stream_bytes)
        .initial_connection_window_size(windows.connection_bytes)
        .max_concurrent_streams(streams_max)
        .max_header_list_size(
            config
                .header_bytes_max
                .saturating_mul(2)
                .max(HEADER_BYTES_READ),
        )
        .max_concurrent_reset_streams(64)
        .max_pending_accept_reset_streams(64);
    let handshake =
        tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(stream)).await;
    let Ok(Ok(mut connection)) = handshake else {
        plane.counters.malformed.add(1);
        return;
    };
    let mut drained = std::pin::pin!(event_loop.draining());
    let mut aged = std::pin::pin!(elapsed(age(age_max, event_loop.random())));
    let mut overdue = std::pin::pin!(elapsed(None));
    let mut cut = std::pin::pin!(event_loop.cut());
    // Other instances are not asked to leave: until the end they may be answered "not here".
    let mut leaving = origin == Origin::Peer;
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => accept(request, respond, &event_loop, origin),
                Some(Err(error)) => {
                    // Its streams have been told. A client that just went away did nothing wrong.
                    if !error.is_io() && error.reason() != Some(Reason::NO_ERROR) {
                        plane.counters.malformed.add(1);
                    }
                    return;
                }
                None => return,
            },
            () = &mut drained, if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = &mut aged, if !leaving => {
                leaving = true;
                plane.counters.aged.add(1);
                connection.graceful_shutdown();
                overdue.set(elapsed(config.connection_age_grace));
            }
            () = &mut overdue => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                let _ = tokio::time::timeout(FAREWELL, connection.accept()).await;
                return;
            }
            () = &mut cut => {
                connection.abrupt_shutdown(Reason::CANCEL);
                let _ = tokio::time::timeout(FAREWELL, connection.accept()).await;
                return;
            }
        }
    }
}

/// Never, for `None`.
async fn elapsed(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}

/// A tenth more or less, so that clients that came together do not leave together (as gRPC does it).
fn age(wanted: Option<Duration>, random: u64) -> Option<Duration> {
    let part = (random % 2001) as f64 / 10_000.0;
    wanted.map(|wanted| wanted.mul_f64(0.9 + part))
}

fn accept(
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
    event_loop: &Rc<EventLoop>,
    origin: Origin,
) {
    let (parts, receive) = request.into_parts();
    let mut responder = Responder {
        stage: Stage::Nothing(respond),
    };
    if parts.method != Method::POST {
        responder.refuse_http(StatusCode::METHOD_NOT_ALLOWED);
        return;
    }
    if !is_grpc(&parts.headers) {
        responder.refuse_http(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        return;
    }
    tokio::task::spawn_local(crate::serve::serve(
        event_loop.clone(),
        origin,
        parts.uri,
        parts.headers,
        Incoming { receive },
        responder,
    ));
}

/// The body of a request as it comes.
pub struct Incoming {
    receive: RecvStream,
}

impl Incoming {
    /// The next piece; `None` at the end, an error when the client left.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ()>>> {
        loop {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    // It fails only when the stream is over.
                    let _ = self.receive.flow_control().release_capacity(chunk.len());
                    return Poll::Ready(Some(Ok(chunk)));
                }
                Some(Err(_)) => return Poll::Ready(Some(Err(()))),
                None => return Poll::Ready(None),
            }
        }
    }

    /// Whether nothing more will come.
    pub fn is_ended(&self) -> bool {
        self.receive.is_end_stream()
    }
}

enum Stage {
    Nothing(SendResponse<Bytes>),
    Head(SendStream<Bytes>),
    Over,
}

/// The response to a request. Whatever fails here fails because the client left, which [`Responder::poll_gone`] tells.
pub struct Responder {
    stage: Stage,
}

impl Responder {
    /// Whether the head was sent.
    pub fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Nothing(_))
    }

    /// Resolves when the client gave this request up.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stage {
            Stage::Nothing(respond) => respond.poll_reset(cx).map(|_| ()),
            Stage::Head(send) => send.poll_reset(cx).map(|_| ()),
            Stage::Over => Poll::Pending,
        }
    }

    /// The head. `end`: the headers are trailers too.
    pub fn head(&mut self, headers: HeaderMap, end: bool) {
        if let Stage::Nothing(respond) = &mut self.stage {
            let sent = respond.send_response(response(StatusCode::OK, headers), end);
            self.stage = match sent {
                Ok(send) if !end => Stage::Head(send),
                _ => Stage::Over,
            };
        }
    }

    /// How much may be sent now, asking for `wanted`. `None`: the client takes no more.
    pub fn poll_capacity(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        let Stage::Head(send) = &mut self.stage else {
            return Poll::Ready(None);
        };
        send.reserve_capacity(wanted);
        match send.capacity() {
            0 => match ready!(send.poll_capacity(cx)) {
                Some(Ok(capacity)) => Poll::Ready(Some(capacity)),
                Some(Err(_)) | None => Poll::Ready(None),
            },
            capacity => Poll::Ready(Some(capacity)),
        }
    }

    /// A piece of the body. Whether the client still takes any.
    pub fn data(&mut self, chunk: Bytes) -> bool {
        match &mut self.stage {
            Stage::Head(send) => send.send_data(chunk, false).is_ok(),
            Stage::Nothing(_) | Stage::Over => false,
        }
    }

    /// The end.
    pub fn trailers(&mut self, trailers: HeaderMap) {
        if let Stage::Head(send) = &mut self.stage {
            let _ = send.send_trailers(trailers);
        }
        self.stage = Stage::Over;
    }

    /// The end, with a status of our own.
    pub fn finish(&mut self, status: &Status) {
        let trailers = of_status(status);
        if self.has_begun() {
            self.trailers(trailers);
        } else {
            let mut head = trailers;
            head.insert(
                http::header::CONTENT_TYPE,
                http::HeaderValue::from_static("application/grpc"),
            );
            self.head(head, true);
        }
    }

    fn refuse_http(&mut self, status: StatusCode) {
        if let Stage::Nothing(respond) = &mut self.stage {
            let _ = respond.send_response(response(status, HeaderMap::new()), true);
        }
        self.stage = Stage::Over;
    }
}

fn response(status: StatusCode, headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = headers;
    response
}
