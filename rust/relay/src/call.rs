//! The life of a request: class, name, slot, attempts, answer. Both doors, gRPC and dispatch, lead here.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Uri};

use crate::answer::Answer;
use crate::attempt::{Attempt, Broken, DIRECT_BYTES_MAX};
use crate::body::{Body, gone};
use crate::connection::{Incoming, Responder};
use crate::dispatch::{Reply, Request};
use crate::event_loop::EventLoop;
use crate::frames::{Frames, PREFIX_BYTES, gunzip, parse_prefix};
use crate::headers;
use crate::method::{Class, Method};
use crate::metrics::{Metric, NO_LABEL, milliseconds};
use crate::name::{Name, NameKind};
use crate::plane::{Held, Plane};
use crate::status::{Code, Status};

/// Waits shorter than this are no cache miss (reference: the predecessor's metric).
const CACHE_MISS_MIN: Duration = Duration::from_millis(10);

/// Bytes of a message in which its id is looked for first; ids come early.
const ID_BYTES_FIRST: usize = 64 << 10;

/// What a call is doing, for the sentence at its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The client has not sent enough yet.
    Reading,
    /// Waiting for a route.
    Parked,
    /// Waiting for a slot.
    Queued,
    /// The model server has it.
    Sent,
}

/// One call.
pub struct Call<'a> {
    /// The loop it lives on.
    pub event_loop: &'a EventLoop,
    /// What all loops share.
    pub plane: &'a Plane,
    /// Its method.
    pub method: &'a Method,
    /// What it asks for.
    pub name: Name,
    /// As the client sent them.
    pub headers: &'a HeaderMap,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// When we do.
    pub waits_until: Instant,
    /// Replicas that failed it.
    pub avoid: Vec<u64>,
    /// How long it was parked.
    pub parked: Duration,
    /// What it is doing.
    pub stage: &'a Cell<Stage>,
}

impl Call<'_> {
    /// What a call is told that waited for too long.
    pub fn too_late(&self) -> Status {
        too_late(self.stage.get(), &self.name.name)
    }
}

fn too_late(stage: Stage, name: &str) -> Status {
    let doing = match stage {
        Stage::Reading => "the request was still being sent",
        Stage::Parked => {
            "it waited for the model to be loaded; allow more time for the first request of a model"
        }
        Stage::Queued => {
            "it waited for a free slot of the model; allow more time or send fewer requests at once"
        }
        Stage::Sent => "the model was working on it; allow more time",
    };
    let of = if name.is_empty() {
        String::new()
    } else {
        format!(" for {name}")
    };
    Status::new(
        Code::DeadlineExceeded,
        format!("The deadline of the request{of} passed while {doing}."),
    )
}

/// How a call ended, for the books.
struct End {
    code: Code,
    response_bytes: u64,
    /// The relay answered itself.
    own: bool,
}

impl End {
    fn own(status: &Status) -> End {
        End {
            code: status.code,
            response_bytes: 0,
            own: true,
        }
    }
}

/// What a door knows of a call before its body is looked at.
struct Door<'a> {
    event_loop: &'a EventLoop,
    method: &'a Method,
    headers: &'a HeaderMap,
    name: Option<Name>,
    deadline: Option<Instant>,
    arrived: Instant,
    books: &'a Books,
}

/// Serves a gRPC call.
pub async fn serve(
    event_loop: Rc<EventLoop>,
    uri: Uri,
    headers: HeaderMap,
    incoming: Incoming,
    responder: Responder,
) {
    let plane = &*event_loop.plane;
    let _in_flight = Held::one(&plane.gauges.in_flight);
    let arrived = Instant::now();
    let method = event_loop.methods.get(uri.path(), |path| {
        plane.labels.number(path.trim_start_matches('/'))
    });
    plane.counters.requests.add(1);
    let responder = RefCell::new(responder);
    let deadline = match admit(plane, &method, uri.path(), &headers, arrived) {
        Ok(deadline) => deadline,
        Err(status) => {
            plane.counters.refused.add(1);
            return responder.borrow_mut().finish(&status);
        }
    };
    let books = Books::default();
    let mut body = Body::incoming(incoming, method.streaming, plane);
    let door = Door {
        event_loop: &event_loop,
        method: &method,
        headers: &headers,
        name: None,
        deadline,
        arrived,
        books: &books,
    };
    let relayed = relay(&door, &mut body, &responder);
    let end = race(relayed, &door, |cx| responder.borrow_mut().poll_gone(cx)).await;
    let end = match end {
        Ok(end) => end,
        Err(status) => {
            responder.borrow_mut().finish(&status);
            End::own(&status)
        }
    };
    let request_bytes = body.bytes();
    books.close(&event_loop, &method, arrived, request_bytes, &end);
}

/// Serves a call that came through another door.
pub async fn dispatch(event_loop: &Rc<EventLoop>, request: Request) -> Reply {
    let plane = &*event_loop.plane;
    let _in_flight = Held::one(&plane.gauges.in_flight);
    let arrived = Instant::now();
    let method = event_loop.methods.get(request.path, |path| {
        plane.labels.number(path.trim_start_matches('/'))
    });
    plane.counters.requests.add(1);
    let mut headers = request.headers;
    headers::complete(&mut headers);
    let bytes = request.message.len();
    if bytes > plane.config.message_bytes_max {
        plane.counters.refused.add(1);
        return failed(Status::too_large(
            "request",
            bytes as u64,
            plane.config.message_bytes_max as u64,
        ));
    }
    let mut body = Body::message(request.message, plane);
    let books = Books::default();
    let (name, deadline) = (request.name, request.deadline);
    let door = Door {
        event_loop,
        method: &method,
        headers: &headers,
        name,
        deadline,
        arrived,
        books: &books,
    };
    // Dropped halfway, the call was cancelled: the books are closed all the same.
    let mut left = Left {
        books: &books,
        event_loop,
        method: &method,
        arrived,
        bytes: bytes as u64,
        open: true,
    };
    let collected = race(collect(&door, &mut body), &door, |_| Poll::Pending).await;
    left.open = false;
    let (end, reply) = match collected {
        Ok((end, reply)) => (end, reply),
        Err(status) => (End::own(&status), failed(status)),
    };
    books.close(event_loop, &method, arrived, bytes as u64, &end);
    reply
}

struct Left<'a> {
    books: &'a Books,
    event_loop: &'a EventLoop,
    method: &'a Method,
    arrived: Instant,
    bytes: u64,
    open: bool,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if self.open {
            self.books.close(
                self.event_loop,
                self.method,
                self.arrived,
                self.bytes,
                &End::own(&gone()),
            );
        }
    }
}

fn failed(status: Status) -> Reply {
    Reply {
        status,
        headers: HeaderMap::new(),
        trailers: HeaderMap::new(),
        message: Bytes::new(),
    }
}

/// What a call tells about itself while it runs.
struct Books {
    stage: Cell<Stage>,
    told: RefCell<String>,
    parked: Cell<Duration>,
    early: Cell<bool>,
}

impl Default for Books {
    fn default() -> Books {
        Books {
            stage: Cell::new(Stage::Reading),
            told: RefCell::default(),
            parked: Cell::default(),
            early: Cell::new(true),
        }
    }
}

impl Books {
    /// Counts how a call ended.
    fn close(
        &self,
        event_loop: &EventLoop,
        method: &Method,
        arrived: Instant,
        request_bytes: u64,
        end: &End,
    ) {
        let counters = &event_loop.plane.counters;
        match end.code {
            Code::Cancelled if end.own => counters.cancelled.add(1),
            Code::DeadlineExceeded if end.own => counters.deadline_exceeded.add(1),
            _ if end.own => counters.refused.add(1),
            _ => {}
        }
        if method.class != Class::Inference || self.early.get() {
            return;
        }
        let mut values = [
            (Metric::ApiRequest, milliseconds(arrived.elapsed())),
            (Metric::RequestSize, request_bytes as f64),
            (Metric::ResponseSize, end.response_bytes as f64),
        ];
        let n = if end.response_bytes > 0 { 3 } else { 2 };
        values[1].1 = request_bytes.saturating_sub(PREFIX_BYTES as u64) as f64;
        values[2].1 = end.response_bytes.saturating_sub(PREFIX_BYTES as u64) as f64;
        event_loop
            .histograms()
            .observe(method.label, end.code, &values[..n]);
        if self.parked.get() > CACHE_MISS_MIN {
            let missed = [(Metric::CacheMiss, milliseconds(self.parked.get()))];
            event_loop.histograms().observe(NO_LABEL, Code::Ok, &missed);
        }
    }
}

/// What can be said of a call by its head alone.
fn admit(
    plane: &Plane,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    now: Instant,
) -> Result<Option<Instant>, Status> {
    match method.class {
        Class::Forbidden => return Err(Status::new(Code::Unimplemented, "")),
        Class::Malformed => {
            plane.counters.malformed.add(1);
            return Err(Status::new(
                Code::Unimplemented,
                "The path of the request is no gRPC method; it is /package.Service/Method.",
            ));
        }
        Class::Inference | Class::Control => {}
    }
    let bytes = headers::list_bytes(path, headers);
    if bytes > plane.config.header_bytes_max as usize {
        plane.counters.malformed.add(1);
        let limit = plane.config.header_bytes_max;
        let sentence = format!(
            "The headers of the request take {bytes} bytes, over the limit of {limit}; send fewer or shorter ones."
        );
        return Err(Status::new(Code::ResourceExhausted, sentence));
    }
    headers::deadline_of(headers, now)
}

/// A call against its deadline and its client's patience. The loser is dropped, which cancels it all the way.
async fn race<T>(
    work: impl Future<Output = T>,
    door: &Door<'_>,
    mut poll_gone: impl FnMut(&mut std::task::Context<'_>) -> Poll<()>,
) -> Result<T, Status> {
    let mut work = pin!(work);
    let mut timer = pin!(
        door.deadline
            .map(|deadline| tokio::time::sleep_until(deadline.into()))
    );
    poll_fn(|cx| {
        if let Poll::Ready(end) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(end));
        }
        if poll_gone(cx).is_ready() {
            return Poll::Ready(Err(gone()));
        }
        match timer.as_mut().as_pin_mut() {
            Some(timer) => timer
                .poll(cx)
                .map(|()| Err(too_late(door.books.stage.get(), &door.books.told.borrow()))),
            None => Poll::Pending,
        }
    })
    .await
}

/// Relays a call to whom it concerns, and says how that began.
async fn answer<'a>(door: &Door<'a>, body: &mut Body<'_>) -> Result<Answer, Status> {
    if door.method.class == Class::Control {
        door.books.stage.set(Stage::Sent);
        return control(door, body).await;
    }
    let name = match &door.name {
        Some(name) => name.clone(),
        None => name_of(door, body).await?,
    };
    door.books.told.borrow_mut().push_str(&name.name);
    door.books.early.set(false);
    let plane = &*door.event_loop.plane;
    let mut call = Call {
        event_loop: door.event_loop,
        plane,
        method: door.method,
        name,
        headers: door.headers,
        deadline: door.deadline,
        waits_until: door
            .deadline
            .unwrap_or(door.arrived + plane.config.park_timeout),
        avoid: Vec::new(),
        parked: Duration::ZERO,
        stage: &door.books.stage,
    };
    door.event_loop.budget.deposit();
    let answered = call.infer(body).await;
    door.books.parked.set(call.parked);
    answered
}

async fn control(door: &Door<'_>, body: &mut Body<'_>) -> Result<Answer, Status> {
    let headers = headers::to_control(door.headers, door.deadline);
    let away = || {
        Status::new(
            Code::Unavailable,
            "The control plane is starting or away; try again.",
        )
        .retry_after(Duration::from_secs(1))
    };
    body.let_go();
    let mut attempt = Attempt::start(&door.event_loop.control, &door.method.path, headers, body)
        .await
        .map_err(|_| away())?;
    match attempt.head(body).await {
        Ok(head) => Answer::begun(attempt, head, None),
        Err(Broken::Client(status)) => Err(status),
        Err(Broken::Upstream(_)) => Err(away()),
    }
}

async fn name_of(door: &Door<'_>, body: &mut Body<'_>) -> Result<Name, Status> {
    if let Some(name) = headers::name_of(door.headers)? {
        return Ok(name);
    }
    let (method, config) = (door.method, &door.event_loop.plane.config);
    if method.id_path.is_empty() {
        return Err(headers::nameless(method));
    }
    let Some((compressed, length)) = parse_prefix(&body.first(PREFIX_BYTES).await?) else {
        return Err(Status::new(
            Code::InvalidArgument,
            "The request holds no message; send one that names a model.",
        ));
    };
    let mut wanted = length.min(ID_BYTES_FIRST);
    loop {
        let bytes = body.first(PREFIX_BYTES + wanted).await?;
        let message = bytes.get(PREFIX_BYTES..).unwrap_or_default();
        let found = if compressed {
            if !headers::gzip(door.headers) {
                return Err(unreadable());
            }
            let (plain, all) = gunzip(
                message,
                config
                    .message_bytes_max
                    .min(ID_BYTES_FIRST.max(config.kept_body_bytes_max)),
            )
            .map_err(|_| unreadable())?;
            named(method, &plain, all && wanted == length)?
        } else {
            named(method, message, wanted == length)?
        };
        if let Some(name) = found {
            return Ok(name);
        }
        if wanted == length || wanted >= config.kept_body_bytes_max {
            return Err(unreadable());
        }
        wanted = length.min(wanted * 4);
    }
}

fn unreadable() -> Status {
    Status::new(
        Code::InvalidArgument,
        "The model's id cannot be read from the message (compressed otherwise than by gzip, or far behind its start); send it in the header mm-model-id or mm-vmodel-id.",
    )
}

/// The name in (the start of) a message; `None`: more of it is needed.
fn named(method: &Method, message: &[u8], whole: bool) -> Result<Option<Name>, Status> {
    let malformed = |error: inference::splice::SpliceError| {
        Status::new(Code::InvalidArgument, error.to_string())
    };
    let id = match inference::splice::extract(method.id_path, message) {
        Ok(Some("")) => return Err(headers::nameless(method)),
        Ok(Some(id)) => id,
        Ok(None) if whole => return Err(headers::nameless(method)),
        Err(error) if whole => return Err(malformed(error)),
        Ok(None) | Err(_) => return Ok(None),
    };
    let version = match inference::splice::extract(method.version_path, message) {
        Ok(version) => version.unwrap_or_default(),
        Err(error) if whole => return Err(malformed(error)),
        // A version behind the start of a large message is not looked for.
        Err(_) => "",
    };
    Ok(Some(Name::new(NameKind::VModelFirst, id, version)))
}

/// Passes the answer on to a gRPC client.
async fn relay(door: &Door<'_>, body: &mut Body<'_>, responder: &RefCell<Responder>) -> End {
    let mut answer = match answer(door, body).await {
        Ok(answer) => answer,
        Err(status) => {
            responder.borrow_mut().finish(&status);
            return End::own(&status);
        }
    };
    match pass_on(door, &mut answer, body, responder).await {
        Ok((code, response_bytes)) => End {
            code,
            response_bytes,
            own: false,
        },
        Err(status) => {
            answer.broke(status.code);
            responder.borrow_mut().finish(&status);
            End::own(&status)
        }
    }
}

async fn pass_on(
    door: &Door<'_>,
    answer: &mut Answer,
    body: &mut Body<'_>,
    responder: &RefCell<Responder>,
) -> Result<(Code, u64), Status> {
    let head = answer.take_head();
    if answer.is_only_trailers() {
        let code = answer.finish(door.event_loop, door.method, &head);
        responder.borrow_mut().head(head, true);
        return Ok((code, 0));
    }
    responder.borrow_mut().head(head, false);
    let mut frames = Frames::new("response", door.event_loop.plane.config.message_bytes_max);
    let mut direct = true;
    while let Some(mut chunk) = answer.chunk(body).await? {
        frames.feed(&chunk)?;
        let bytes = chunk.len();
        while !chunk.is_empty() {
            let room = if std::mem::take(&mut direct) && bytes <= DIRECT_BYTES_MAX {
                Some(bytes)
            } else {
                let wanted = chunk.len();
                answer
                    .meanwhile(body, |cx| responder.borrow_mut().poll_capacity(wanted, cx))
                    .await?
            };
            let Some(room) = room else { return Err(gone()) };
            let part = chunk.split_to(room.min(chunk.len()));
            if !part.is_empty() && !responder.borrow_mut().data(part) {
                return Err(gone());
            }
        }
        answer.release(bytes);
    }
    let trailers = answer.trailers().await?;
    let code = answer.finish(door.event_loop, door.method, &trailers);
    if code == Code::Ok {
        frames.end()?;
    }
    responder.borrow_mut().trailers(trailers);
    Ok((code, frames.bytes()))
}

/// Collects the one message of the answer.
async fn collect(door: &Door<'_>, body: &mut Body<'_>) -> (End, Reply) {
    let mut answer = match answer(door, body).await {
        Ok(answer) => answer,
        Err(status) => return (End::own(&status), failed(status)),
    };
    match gather(door, &mut answer, body).await {
        Ok((reply, response_bytes)) => (
            End {
                code: reply.status.code,
                response_bytes,
                own: false,
            },
            reply,
        ),
        Err(status) => {
            answer.broke(status.code);
            (End::own(&status), failed(status))
        }
    }
}

async fn gather(
    door: &Door<'_>,
    answer: &mut Answer,
    body: &mut Body<'_>,
) -> Result<(Reply, u64), Status> {
    let bytes_max = door.event_loop.plane.config.message_bytes_max;
    let mut head = answer.take_head();
    let mut frames = Frames::new("response", bytes_max);
    let mut chunks: Vec<Bytes> = Vec::new();
    let mut trailers = if answer.is_only_trailers() {
        let trailers = std::mem::take(&mut head);
        head.extend(
            trailers
                .get(headers::MODEL_ID)
                .map(|id| (headers::MODEL_ID, id.clone())),
        );
        trailers
    } else {
        while let Some(chunk) = answer.chunk(body).await? {
            frames.feed(&chunk)?;
            answer.release(chunk.len());
            chunks.push(chunk);
            if frames.bytes() > (bytes_max + PREFIX_BYTES) as u64 {
                return Err(Status::new(
                    Code::Unimplemented,
                    "The model answered with more than one message; call it over gRPC.",
                ));
            }
        }
        answer.trailers().await?
    };
    answer.finish(door.event_loop, door.method, &trailers);
    let status = headers::status_in(&trailers).unwrap_or_else(|| {
        Status::new(
            Code::Internal,
            "The model server ended its answer without a status.",
        )
    });
    let gzip = headers::gzip(&head);
    for name in [
        headers::GRPC_STATUS,
        headers::GRPC_MESSAGE,
        headers::MODEL_ID,
        http::header::CONTENT_TYPE,
    ] {
        trailers.remove(name);
    }
    head.remove(http::header::CONTENT_TYPE);
    let message = if status.code == Code::Ok {
        frames.end()?;
        one_message(joined(chunks), gzip, bytes_max)?
    } else {
        Bytes::new()
    };
    Ok((
        Reply {
            status,
            headers: head,
            trailers,
            message,
        },
        frames.bytes(),
    ))
}

fn joined(mut chunks: Vec<Bytes>) -> Bytes {
    if chunks.len() == 1 {
        return chunks.pop().unwrap_or_default();
    }
    let mut joined = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    chunks
        .iter()
        .for_each(|chunk| joined.extend_from_slice(chunk));
    joined.freeze()
}

fn one_message(mut framed: Bytes, gzip: bool, bytes_max: usize) -> Result<Bytes, Status> {
    let Some((compressed, length)) = parse_prefix(&framed) else {
        return Err(Status::new(
            Code::Internal,
            "The model server answered OK without a message.",
        ));
    };
    let message = framed.split_off(PREFIX_BYTES);
    if message.len() != length {
        return Err(Status::new(
            Code::Unimplemented,
            "The model answered with more than one message; call it over gRPC.",
        ));
    }
    if !compressed {
        return Ok(message);
    }
    match gunzip(&message, bytes_max) {
        Ok((plain, true)) if gzip => Ok(plain.into()),
        Ok((plain, false)) if gzip && plain.len() >= bytes_max => Err(Status::too_large(
            "response",
            plain.len() as u64,
            bytes_max as u64,
        )),
        _ => Err(Status::new(
            Code::Internal,
            "The model server compressed its answer in a way that cannot be read.",
        )),
    }
}
