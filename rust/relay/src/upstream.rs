//! One loop's connection to one model server: dialled, kept, redialled. With `liveness`, the only file that
//! knows the client half of `h2`.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;

use crate::heard::Heard;
use crate::liveness::Liveness;
use crate::peer_tls;
use crate::plane::Plane;
use crate::replica::{Address, Target};
use crate::socket::Socket;
use crate::status::Code;
use crate::stream::Stream;

/// The way to send on a connection, what is known of its other end, and what keeps it going until it is over.
type Connected = (
    SendRequest<Bytes>,
    Rc<Liveness>,
    Pin<Box<dyn Future<Output = ()>>>,
);

/// A connection that takes no more requests; those it has may finish. It counts until the next one is made, or cannot be.
struct Leaving {
    /// The other end, another instance, missed pings.
    suspected: bool,
    /// The next one, if it is there already.
    next: Option<Connected>,
}

/// How much may be under way to one end of a connection.
pub struct Windows {
    /// On one stream.
    pub stream_bytes: u32,
    /// On all together.
    pub connection_bytes: u32,
}

/// Large windows: a body is limited by memory rules, not by round trips.
pub const WINDOWS: Windows = Windows {
    stream_bytes: 1 << 20,
    connection_bytes: 16 << 20,
};

/// Between instances one connection carries what many clients ask and get: 256 large bodies that nobody takes hold up no other.
pub const PEER_WINDOWS: Windows = Windows {
    stream_bytes: 256 << 10,
    connection_bytes: 64 << 20,
};

const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// What a model server's response headers may take.
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// Why a request got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was never sent: no connection.
    Unreachable,
    /// Its connection died, or the server never looked at it.
    Lost(String),
    /// The server ended this one request without a status.
    Reset(Code),
}

impl Failure {
    fn of(error: &h2::Error, liveness: &Liveness) -> Failure {
        if liveness.is_silent() {
            return Failure::Lost("it did not answer any more".to_owned());
        }
        match error.reason() {
            Some(Reason::REFUSED_STREAM) if error.is_reset() => {
                Failure::Lost("it refused the stream".to_owned())
            }
            Some(reason) if error.is_reset() => Failure::Reset(code_of(reason)),
            _ => Failure::Lost(error.to_string()),
        }
    }
}

/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors>, with what a client can act on for CANCEL.
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::CANCEL => Code::Cancelled,
        Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

enum Link {
    Down,
    Dialling,
    Up(SendRequest<Bytes>, Rc<Liveness>),
}

/// See the module.
pub struct Upstream {
    target: Arc<Target>,
    authority: Option<String>,
    link: RefCell<Link>,
    changed: Notify,
    redial: Notify,
    closed: Cell<bool>,
}

impl Upstream {
    /// Starts dialling; goes on until [`Upstream::close`].
    pub fn dial(target: Arc<Target>, plane: Arc<Plane>) -> Rc<Upstream> {
        let authority = match &target.address {
            Address::Tcp(address) => Some(address.clone()),
            Address::Unix(_) => None,
        };
        let upstream = Rc::new(Upstream {
            target,
            authority,
            link: RefCell::new(Link::Dialling),
            changed: Notify::new(),
            redial: Notify::new(),
            closed: Cell::new(false),
        });
        tokio::task::spawn_local(upstream.clone().keep(plane));
        upstream
    }

    /// Breaks the connection and stops dialling.
    pub fn close(&self) {
        self.closed.set(true);
        self.redial.notify_one();
    }

    async fn keep(self: Rc<Self>, plane: Arc<Plane>) {
        let mut backoff = BACKOFF_FIRST;
        let mut leaving: Option<Leaving> = None;
        // Requests of this loop that found no connection wait for a route; other loops may have had theirs all the time.
        let mut missed = false;
        while !self.closed.get() {
            let made = match leaving.as_mut().and_then(|leaving| leaving.next.take()) {
                Some(made) => Some(made),
                None => self.connect_in_time(&plane).await,
            };
            let left = leaving.take();
            match made {
                Some((sender, liveness, connection)) => {
                    backoff = BACKOFF_FIRST;
                    self.target.believe();
                    self.set(Link::Up(sender, liveness.clone()));
                    let back = self.target.link_up(&plane.events);
                    if std::mem::take(&mut missed) || back {
                        plane.target_back(&self.target);
                    }
                    if let Some(left) = left {
                        self.down(true, left.suspected, &plane);
                    }
                    leaving = self.run(connection, &liveness, &plane).await;
                    self.set(Link::Dialling);
                }
                None => {
                    missed = true;
                    let suspected = left.as_ref().is_some_and(|left| left.suspected);
                    self.down(left.is_some(), suspected, &plane);
                    self.set(Link::Down);
                    let _ = tokio::time::timeout(backoff, self.redial.notified()).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
        self.set(Link::Down);
        if let Some(left) = leaving {
            self.down(true, left.suspected, &plane);
        }
    }

    fn down(&self, was_up: bool, suspected: bool, plane: &Plane) {
        if self.target.link_down(was_up, suspected, &plane.events) {
            plane.target_back(&self.target);
        }
    }

    fn set(&self, link: Link) {
        *self.link.borrow_mut() = link;
        self.changed.notify_waiters();
    }

    /// Until the connection is over (`None`; that is told), or takes no more requests. While another instance misses pings there a
    /// new one is tried: after lost packets an old one is silent for longer than the network was.
    async fn run(
        &self,
        mut connection: Pin<Box<dyn Future<Output = ()>>>,
        liveness: &Liveness,
        plane: &Plane,
    ) -> Option<Leaving> {
        let mut suspected = false;
        let leaving = loop {
            let anew = async {
                match suspected {
                    true => self.connect_anew(plane).await,
                    false => std::future::pending().await,
                }
            };
            let next = tokio::select! {
                // In this order, so that the target counts as lost before the requests that move look for another one.
                biased;
                () = &mut connection => break None,
                () = self.redial.notified() => None,
                () = liveness.turned() => {
                    // It may have turned twice.
                    let before = std::mem::replace(&mut suspected, liveness.is_suspect());
                    if before != suspected && self.target.suspect(suspected, &plane.events) {
                        plane.target_back(&self.target);
                    }
                    continue;
                }
                made = anew => Some(made),
            };
            break (!self.closed.get()).then_some(Leaving { suspected, next });
        };
        if leaving.is_some() {
            tokio::task::spawn_local(connection);
        } else {
            self.down(true, suspected, plane);
        }
        leaving
    }

    async fn connect_anew(&self, plane: &Plane) -> Connected {
        loop {
            if let Some(made) = self.connect_in_time(plane).await {
                return made;
            }
            tokio::time::sleep(BACKOFF_MAX).await;
        }
    }

    async fn connect_in_time(&self, plane: &Plane) -> Option<Connected> {
        let made = tokio::time::timeout(DIAL_TIMEOUT, self.connect(plane)).await;
        made.ok()?.ok()
    }

    async fn connect(&self, plane: &Plane) -> io::Result<Connected> {
        let stream = self.reach(plane).await?;
        let windows = if self.target.peer {
            PEER_WINDOWS
        } else {
            WINDOWS
        };
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(windows.stream_bytes)
            .initial_connection_window_size(windows.connection_bytes)
            .max_header_list_size(HEADER_BYTES_MAX)
            .enable_push(false);
        let liveness = Rc::new(Liveness::default());
        // Data counts, and room for more: a pong waits behind them.
        let heard = liveness.clone();
        let stream = Heard::new(stream, move |_: &[u8]| {
            heard.hear();
            Ok(())
        });
        let (mut sender, mut connection) =
            builder.handshake(stream).await.map_err(io::Error::other)?;
        // A server that accepts and says nothing is no server: its settings come first.
        let mut pings = connection.ping_pong().ok_or(io::ErrorKind::Other)?;
        let mut asked = false;
        let mut ready = false;
        poll_fn(|cx| {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                let error = ended
                    .err()
                    .map_or_else(|| io::ErrorKind::UnexpectedEof.into(), io::Error::other);
                return Poll::Ready(Err(error));
            }
            if !asked {
                pings
                    .send_ping(h2::Ping::opaque())
                    .map_err(io::Error::other)?;
                asked = true;
            }
            if !ready {
                // The connection has to run once more to send it.
                cx.waker().wake_by_ref();
                ready = true;
            }
            pings
                .poll_pong(cx)
                .map(|pong| pong.map(|_| ()).map_err(io::Error::other))
        })
        .await?;
        poll_fn(|cx| sender.poll_ready(cx))
            .await
            .map_err(io::Error::other)?;
        let (watched, target) = (liveness.clone(), self.target.clone());
        let running = async move {
            tokio::select! {
                biased;
                // How it ended is told to each of its requests.
                _ = connection => {}
                () = watched.watch(&target, pings) => {}
            }
        };
        Ok((sender, liveness, Box::pin(running)))
    }

    async fn reach(&self, plane: &Plane) -> io::Result<Stream> {
        let address = match &self.target.address {
            Address::Unix(path) => {
                return Ok(Stream::Plain(Socket::unix(
                    UnixStream::connect(path).await?,
                )?));
            }
            Address::Tcp(address) => address,
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let socket = Socket::tcp(stream)?;
        match plane.tls.to_peers().filter(|_| self.target.peer) {
            Some(config) => peer_tls::dial(config, address, socket).await,
            None => Ok(Stream::Plain(socket)),
        }
    }

    async fn sender(&self) -> Result<(SendRequest<Bytes>, Rc<Liveness>), Failure> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            match &*self.link.borrow() {
                // Who picked it before it was suspected looks again.
                Link::Up(_, liveness) if liveness.is_suspect() => {
                    return Err(Failure::Unreachable);
                }
                Link::Up(sender, liveness) => return Ok((sender.clone(), liveness.clone())),
                Link::Down if self.closed.get() || !self.target.is_there() => {
                    return Err(Failure::Unreachable);
                }
                Link::Down | Link::Dialling => {
                    changed.as_mut().enable();
                }
            }
            changed.await;
            if matches!(*self.link.borrow(), Link::Down) {
                return Err(Failure::Unreachable);
            }
        }
    }

    /// Sends the head of a request. `end`: it has no body.
    ///
    /// # Errors
    /// Why it was not sent.
    pub async fn open(
        &self,
        path: &str,
        headers: HeaderMap,
        end: bool,
    ) -> Result<Exchange, Failure> {
        let (mut sender, mut liveness) = self.sender().await?;
        if !room(&mut sender, &liveness).await? {
            // It went away, or died and that was not noticed yet: another connection, or the loss, is known soon.
            self.retire_link();
            (sender, liveness) = self.sender().await?;
            if !room(&mut sender, &liveness).await? {
                return Err(Failure::Unreachable);
            }
        }
        let request = self
            .request(path, headers)
            .map_err(|_| Failure::Reset(Code::InvalidArgument))?;
        match sender.send_request(request, end) {
            Ok((response, send)) => Ok(Exchange {
                response: Some(response),
                send,
                receive: None,
                liveness,
            }),
            Err(error) => Err(Failure::of(&error, &liveness)),
        }
    }

    fn retire_link(&self) {
        let mut link = self.link.borrow_mut();
        if matches!(*link, Link::Up(..)) {
            *link = Link::Dialling;
            self.redial.notify_one();
        }
    }

    fn request(&self, path: &str, headers: HeaderMap) -> Result<Request<()>, http::Error> {
        let authority = self.authority.as_deref().unwrap_or("localhost");
        let uri = Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query(path)
            .build()?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// Waits until a stream may be opened. False: the connection takes none any more.
async fn room(sender: &mut SendRequest<Bytes>, liveness: &Rc<Liveness>) -> Result<bool, Failure> {
    tokio::select! {
        biased;
        ready = poll_fn(|cx| sender.poll_ready(cx)) => Ok(ready.is_ok()),
        () = liveness.clone().suspected() => Err(Failure::Unreachable),
    }
}

/// One request on its way. Dropping it cancels it.
pub struct Exchange {
    response: Option<ResponseFuture>,
    send: SendStream<Bytes>,
    receive: Option<RecvStream>,
    liveness: Rc<Liveness>,
}

/// What a response starts with.
pub struct Head {
    /// 200, if it is gRPC.
    pub http: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Nothing follows: the headers are trailers too.
    pub ended: bool,
}

impl Exchange {
    /// Resolves when the server, another instance, misses pings.
    pub fn suspected(&self) -> impl Future<Output = ()> + use<> {
        self.liveness.clone().suspected()
    }

    /// How much may be sent now, asking for `wanted`. `None`: the server takes no more.
    pub fn poll_capacity(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        self.send.reserve_capacity(wanted);
        match self.send.capacity() {
            0 => match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(capacity)) => Poll::Ready(Some(capacity)),
                Some(Err(_)) | None => Poll::Ready(None),
            },
            capacity => Poll::Ready(Some(capacity)),
        }
    }

    /// Sends a piece of the body. Whether the server still takes any; why not is in the response.
    pub fn send(&mut self, chunk: Bytes, end: bool) -> bool {
        self.send.send_data(chunk, end).is_ok()
    }

    /// The head of the response.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        let Some(response) = self.response.as_mut() else {
            return Poll::Pending;
        };
        let answered = ready!(Pin::new(response).poll(cx));
        self.response = None;
        match answered {
            Ok(response) => {
                let (parts, receive) = response.into_parts();
                let ended = receive.is_end_stream();
                self.receive = Some(receive);
                Poll::Ready(Ok(Head {
                    http: parts.status,
                    headers: parts.headers,
                    ended,
                }))
            }
            Err(error) => Poll::Ready(Err(Failure::of(&error, &self.liveness))),
        }
    }

    /// The next piece of the response's body; `None` at its end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let Some(receive) = self.receive.as_mut() else {
            return Poll::Ready(None);
        };
        loop {
            return match ready!(receive.poll_data(cx)) {
                Some(Ok(chunk)) if chunk.is_empty() => continue,
                Some(Ok(chunk)) => Poll::Ready(Some(Ok(chunk))),
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => Poll::Ready(None),
                Some(Err(error)) => Poll::Ready(Some(Err(Failure::of(&error, &self.liveness)))),
                None => Poll::Ready(None),
            };
        }
    }

    /// A piece of the body was passed on: the server may send as much again.
    pub fn release(&mut self, bytes: usize) {
        if let Some(receive) = self.receive.as_mut() {
            // It fails only when the stream is over.
            let _ = receive.flow_control().release_capacity(bytes);
        }
    }

    /// The trailers.
    pub fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, Failure>> {
        let Some(receive) = self.receive.as_mut() else {
            return Poll::Ready(Ok(None));
        };
        receive
            .poll_trailers(cx)
            .map_err(|error| Failure::of(&error, &self.liveness))
    }
}
