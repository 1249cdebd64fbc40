//! A call that came through another door: its one message in, its one message out.

use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::answer::Answer;
use crate::body::Body;
use crate::books::{Books, End};
use crate::call::{Door, Origin, answer, race};
use crate::dispatch::{Reply, Request};
use crate::event_loop::EventLoop;
use crate::frames::{Frames, PREFIX_BYTES, gunzip, parse_prefix};
use crate::headers;
use crate::id_headers::MODEL_ID;
use crate::method::{Class, Method};
use crate::name::Name;
use crate::status::{Code, Status};
use crate::trailers::status_in;

/// Serves a call; returns its answer.
pub async fn dispatch(event_loop: &EventLoop, request: Request) -> Reply {
    let arrived = Instant::now();
    let method = event_loop.method(request.path, Origin::Client);
    let books = Books::open(event_loop, &method, arrived);
    let mut headers = request.headers;
    headers::complete(&mut headers);
    let mut body = Body::message(request.message, &event_loop.plane);
    books.request_bytes.set(body.bytes());
    books.listen(&headers, &mut body);
    let door = Door {
        event_loop,
        method: &method,
        headers: &headers,
        sent_on: None,
        deadline: request.deadline,
        arrived,
        books: &books,
    };
    let name = request.name.map(|name| as_ruled(name, &method));
    ask(&door, name, &mut body)
        .await
        .unwrap_or_else(|status| Reply {
            status,
            headers: HeaderMap::new(),
            trailers: HeaderMap::new(),
            message: Bytes::new(),
        })
}

/// Has a call with one message served, and gathers its answer. `name`: as [`answer`] takes it.
///
/// # Errors
/// What the client is told when the relay answers itself.
pub async fn ask(
    door: &Door<'_>,
    name: Option<Name>,
    body: &mut Body<'_>,
) -> Result<Reply, Status> {
    let collected = {
        let collecting = pin!(collect(door, name, body));
        race(collecting, door, |_| Poll::Pending).await
    };
    door.books.hear_body(body);
    collected
        .and_then(|collected| collected)
        .inspect_err(|status| {
            door.books.end.set(Some(End::own(status.code)));
        })
}

async fn collect(
    door: &Door<'_>,
    name: Option<Name>,
    body: &mut Body<'_>,
) -> Result<Reply, Status> {
    if door.method.class == Class::Unlisted {
        let sentence = format!(
            "The data-plane config does not list {}; list it, or set allowOtherRpcs.",
            door.method.path.trim_start_matches('/')
        );
        return Err(Status::new(Code::Unimplemented, sentence));
    }
    let limit = door.event_loop.plane.config.message_bytes_max as u64;
    let bytes = body.bytes() - PREFIX_BYTES as u64;
    if bytes > limit {
        return Err(Status::too_large("request", bytes, limit));
    }
    let mut answer = answer(door, name, body).await?;
    let gathered = gather(door, &mut answer, body).await;
    if let Err(status) = &gathered {
        answer.broke(status.code);
    }
    gathered
}

async fn gather(
    door: &Door<'_>,
    answer: &mut Answer,
    body: &mut Body<'_>,
) -> Result<Reply, Status> {
    let bytes_max = door.event_loop.plane.config.message_bytes_max;
    let mut head = answer.take_head();
    door.books.hear_head(&head);
    let mut frames = Frames::new("response", bytes_max);
    let mut chunks: Vec<Bytes> = Vec::new();
    let mut trailers = if answer.is_only_trailers() {
        let trailers = std::mem::take(&mut head);
        head.extend(trailers.get(MODEL_ID).map(|id| (MODEL_ID, id.clone())));
        trailers
    } else {
        while let Some(chunk) = answer.chunk(body).await? {
            frames.feed(&chunk)?;
            door.books.hear(&chunk);
            answer.release(chunk.len());
            chunks.push(chunk);
            if frames.bytes() > (bytes_max + PREFIX_BYTES) as u64 {
                return Err(Status::new(
                    Code::Unimplemented,
                    "The model answered with more than one message; call it alone, over gRPC.",
                ));
            }
        }
        answer.trailers().await?
    };
    answer.finish(door, &trailers);
    let status = status_in(&trailers).unwrap_or_else(|| {
        Status::new(
            Code::Internal,
            "The model server ended its answer without a status.",
        )
    });
    let gzip = headers::gzip(&head);
    headers::without_grpc(&mut head);
    headers::without_grpc(&mut trailers);
    trailers.remove(MODEL_ID);
    let message = if status.code == Code::Ok {
        frames.end()?;
        one_message(joined(chunks), gzip, bytes_max)?
    } else {
        Bytes::new()
    };
    let (code, response_bytes) = (status.code, frames.bytes());
    door.books.end.set(Some(End {
        code,
        response_bytes,
        own: false,
    }));
    Ok(Reply {
        status,
        headers: head,
        trailers,
        message,
    })
}

/// A name from REST is looked up where an explicit config says that a name from the message is.
fn as_ruled(name: Name, method: &Method) -> Name {
    if method.message_first {
        Name {
            kind: method.kind,
            ..name
        }
    } else {
        name
    }
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
            "The model answered with more than one message; call it alone, over gRPC.",
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
