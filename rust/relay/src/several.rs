//! A request for several models: its one message goes to each of them, and what they answer, one message behind the
//! other, is the answer. Parsers of protobuf merge messages that follow each other, so its repeated fields and maps hold
//! what all of them said (reference mesh.md 1.4).

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

use crate::body::{Body, gone};
use crate::books::{Books, End};
use crate::call::{Door, Stage};
use crate::connection::Responder;
use crate::dispatch::Reply;
use crate::frames::{PREFIX_BYTES, parse_prefix, prefix};
use crate::gather;
use crate::id_headers::requires_all;
use crate::name::Name;
use crate::plane::Held;
use crate::status::{Code, Status};
use crate::trailers::of_status;
use crate::waiting::no_room;

/// Serves the request, whose names are in the order of its headers.
///
/// # Errors
/// What the client is told when the relay answers itself.
pub async fn relay(
    door: &Door<'_>,
    names: &[Name],
    body: &mut Body<'_>,
    responder: &RefCell<Responder>,
) -> Result<End, Status> {
    if door.method.streaming {
        return Err(one_message(door));
    }
    // Payload processors hear of each model's part.
    door.books.tap.take();
    body.captured();
    let (first, more) = (&names[0].name, names.len() - 1);
    let asked = format!("{first} and {more} more");
    let mut held = Held::none(&door.event_loop.plane.gauges.parked_bytes);
    let message = whole(door, &asked, body, &mut held).await?;
    door.books.asked.borrow_mut().push_str(&asked);
    door.books.early.set(false);
    door.books.stage.set(Stage::Sent);
    // What comes back is put together, so it must not be compressed.
    let mut headers = door.headers.clone();
    headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    let door = Door {
        headers: &headers,
        ..*door
    };
    let answers = Fan::out(&door, names, &message).answers().await?;
    pass_on(answers, responder).await
}

/// The one message of the request, with its prefix.
async fn whole(
    door: &Door<'_>,
    asked: &str,
    body: &mut Body<'_>,
    held: &mut Held<'_>,
) -> Result<Bytes, Status> {
    let plane = &door.event_loop.plane;
    let mut hold = |more| {
        if held.try_add(more, plane.config.parked_bytes_max) {
            Ok(())
        } else {
            Err(no_room(plane, &format!("the request for {asked}")))
        }
    };
    let start = body.first(PREFIX_BYTES).await?;
    let Some((_, length)) = parse_prefix(&start) else {
        return Err(one_message(door));
    };
    hold(body.held())?;
    loop {
        if body.held() > PREFIX_BYTES + length {
            return Err(one_message(door));
        }
        match poll_fn(|cx| body.poll_fill(cx)).await {
            Some(more) => hold(more?)?,
            None => return Ok(body.take()),
        }
    }
}

fn one_message(door: &Door<'_>) -> Status {
    let sentence = format!(
        "A request for several models is exactly one message, of a method that does not stream; call {} for each model by itself.",
        door.method.path.trim_start_matches('/')
    );
    Status::new(Code::Unimplemented, sentence)
}

/// How it went with one of the models.
enum Ended {
    /// It answered, maybe with a failure.
    Answered(Box<Reply>),
    /// The name stands for nothing.
    Unknown(Status),
    /// The relay has to say why not.
    Failed(Status),
}

type Part<'a> = Pin<Box<dyn Future<Output = Ended> + 'a>>;

/// The parts of a request: not begun, running, and ended. Dropped, those that run are cancelled.
struct Fan<'a> {
    door: &'a Door<'a>,
    names: &'a [Name],
    message: &'a Bytes,
    begun: usize,
    running: Vec<(usize, Part<'a>)>,
    ended: Vec<Option<Ended>>,
    bytes: usize,
}

impl<'a> Fan<'a> {
    fn out(door: &'a Door<'a>, names: &'a [Name], message: &'a Bytes) -> Fan<'a> {
        Fan {
            door,
            names,
            message,
            begun: 0,
            running: Vec::new(),
            ended: names.iter().map(|_| None).collect(),
            bytes: 0,
        }
    }

    /// The answers of all models that are known, at least one; or one answer that is a failure.
    async fn answers(mut self) -> Result<Vec<Reply>, Status> {
        match poll_fn(|cx| self.poll(cx)).await {
            Err(Ended::Answered(failure)) => return Ok(vec![*failure]),
            Err(Ended::Unknown(status) | Ended::Failed(status)) => return Err(status),
            Ok(()) => {}
        }
        let mut answers = Vec::with_capacity(self.ended.len());
        let mut refused = None;
        for ended in self.ended.into_iter().flatten() {
            match ended {
                Ended::Answered(reply) => answers.push(*reply),
                Ended::Unknown(status) | Ended::Failed(status) => {
                    refused.get_or_insert(status);
                }
            }
        }
        match refused {
            Some(status) if answers.is_empty() => Err(status),
            _ => Ok(answers),
        }
    }

    /// Until all have ended, or (an error) one so that the others do not matter any more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let at_once = self.door.event_loop.plane.config.multi_parallelism;
        loop {
            while self.running.len() < at_once && self.begun < self.names.len() {
                let part = part(self.door, &self.names[self.begun], self.message.clone());
                self.running.push((self.begun, Box::pin(part)));
                self.begun += 1;
            }
            if self.running.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let (at, ended) = ready!(self.poll_running(cx));
            self.ended[at] = Some(self.judge(ended)?);
        }
    }

    /// One that ended.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Ended)> {
        for index in 0..self.running.len() {
            if let Poll::Ready(ended) = self.running[index].1.as_mut().poll(cx) {
                let (at, _) = self.running.swap_remove(index);
                return Poll::Ready((at, ended));
            }
        }
        Poll::Pending
    }

    /// Whether the request goes on after this.
    fn judge(&mut self, ended: Ended) -> Result<Ended, Ended> {
        match &ended {
            Ended::Answered(reply) if reply.status.code == Code::Ok => {
                self.bytes += reply.message.len();
                let limit = self.door.event_loop.plane.config.message_bytes_max;
                if self.bytes <= limit {
                    return Ok(ended);
                }
                let too_large = Status::too_large("response", self.bytes as u64, limit as u64);
                Err(Ended::Failed(too_large))
            }
            Ended::Unknown(_) if !requires_all(self.door.headers) => Ok(ended),
            Ended::Answered(_) | Ended::Unknown(_) | Ended::Failed(_) => Err(ended),
        }
    }
}

/// Asks one model.
async fn part(door: &Door<'_>, name: &Name, message: Bytes) -> Ended {
    let plane = &door.event_loop.plane;
    let books = Books::part(door.event_loop, door.method, door.arrived);
    let mut body = Body::shared(message, plane);
    books.listen(door.headers, &mut body);
    let door = Door {
        books: &books,
        ..*door
    };
    match gather::ask(&door, Some(name.clone()), &mut body).await {
        Ok(reply) => Ended::Answered(Box::new(reply)),
        // A model that is known may be refused by this code too: its load failed with it.
        Err(status) if status.code == Code::NotFound && plane.names.get(name).is_none() => {
            Ended::Unknown(status)
        }
        Err(status) => Ended::Failed(status),
    }
}

/// Sends the answers as one. They are all well, or a single failure.
async fn pass_on(answers: Vec<Reply>, responder: &RefCell<Responder>) -> Result<End, Status> {
    let (mut head, mut trailers) = (HeaderMap::new(), HeaderMap::new());
    let mut status = Status::ok();
    let mut messages = Vec::with_capacity(answers.len());
    for answer in answers {
        merge(&mut head, answer.headers);
        merge(&mut trailers, answer.trailers);
        messages.push(answer.message);
        status = answer.status;
    }
    head.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    trailers.extend(of_status(&status));
    responder.borrow_mut().head(head, false);
    let mut response_bytes = 0;
    if status.code == Code::Ok {
        let length = messages.iter().map(Bytes::len).sum();
        response_bytes = (PREFIX_BYTES + length) as u64;
        send(prefix(length), responder).await?;
        for message in messages {
            send(message, responder).await?;
        }
    }
    responder.borrow_mut().trailers(trailers);
    Ok(End {
        code: status.code,
        response_bytes,
        own: false,
    })
}

/// Adds what is not there yet.
fn merge(into: &mut HeaderMap, from: HeaderMap) {
    for (name, value) in &from {
        if !into.get_all(name).iter().any(|there| there == value) {
            into.append(name.clone(), value.clone());
        }
    }
}

async fn send(mut bytes: Bytes, responder: &RefCell<Responder>) -> Result<(), Status> {
    while !bytes.is_empty() {
        let wanted = bytes.len();
        let room = poll_fn(|cx| responder.borrow_mut().poll_capacity(wanted, cx)).await;
        let part = bytes.split_to(room.ok_or_else(gone)?.min(wanted));
        if !part.is_empty() && !responder.borrow_mut().data(part) {
            return Err(gone());
        }
    }
    Ok(())
}
