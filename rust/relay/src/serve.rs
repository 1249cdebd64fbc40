//! A gRPC call from its first byte to its trailers.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

use http::{HeaderMap, Uri};

use crate::answer::Answer;
use crate::attempt::DIRECT_BYTES_MAX;
use crate::body::{Body, gone};
use crate::books::{Books, End};
use crate::call::{Door, Origin, admit, answer, race};
use crate::connection::{Incoming, Responder};
use crate::event_loop::EventLoop;
use crate::frames::Frames;
use crate::headers::forwarded;
use crate::method::Class;
use crate::naming::names_of;
use crate::several;
use crate::status::{Code, Status};

/// Serves a call; returns when the client has its answer, or left.
pub async fn serve(
    event_loop: Rc<EventLoop>,
    origin: Origin,
    uri: Uri,
    headers: HeaderMap,
    incoming: Incoming,
    responder: Responder,
) {
    let arrived = Instant::now();
    let method = event_loop.method(uri.path(), origin);
    let books = match origin {
        Origin::Client => Books::open(&event_loop, &method, arrived),
        Origin::Peer => Books::forwarded(&event_loop, &method, arrived),
    };
    let responder = RefCell::new(responder);
    let refuse = |status: &Status| {
        responder.borrow_mut().finish(status);
        books.end.set(Some(End::own(status.code)));
    };
    let admitted = admit(
        &event_loop.plane,
        &method,
        origin,
        uri.path(),
        &headers,
        arrived,
    );
    let deadline = match admitted {
        Ok(deadline) => deadline,
        Err(status) => return refuse(&status),
    };
    let sent_on = match (origin, method.class) {
        (Origin::Peer, Class::Inference) => match forwarded(&headers) {
            Ok(forwarded) => Some(forwarded),
            Err(status) => return refuse(&status),
        },
        _ => None,
    };
    let mut body = Body::incoming(incoming, method.streaming, &event_loop.plane);
    if origin == Origin::Client {
        books.listen(&headers, &mut body);
    }
    let door = Door {
        event_loop: &event_loop,
        method: &method,
        headers: &headers,
        sent_on: sent_on.as_ref(),
        deadline,
        arrived,
        books: &books,
    };
    let ended = {
        let relayed = pin!(relay(&door, &mut body, &responder));
        race(relayed, &door, |cx| responder.borrow_mut().poll_gone(cx)).await
    };
    books.request_bytes.set(body.bytes());
    books.hear_body(&mut body);
    match ended {
        Ok(Ok(end)) => books.end.set(Some(end)),
        Ok(Err(status)) | Err(status) => refuse(&status),
    }
}

/// Passes the answer on.
async fn relay(
    door: &Door<'_>,
    body: &mut Body<'_>,
    responder: &RefCell<Responder>,
) -> Result<End, Status> {
    let mut names = match (door.method.class, door.sent_on) {
        (Class::Control, _) => Vec::new(),
        (_, Some(forwarded)) => vec![forwarded.name.clone()],
        (_, None) => names_of(door, body).await?,
    };
    if names.len() > 1 {
        return several::relay(door, &names, body, responder).await;
    }
    let mut answer = answer(door, names.pop(), body).await?;
    let passed = pass_on(door, &mut answer, body, responder).await;
    if let Err(status) = &passed {
        answer.broke(status.code);
    }
    passed
}

async fn pass_on(
    door: &Door<'_>,
    answer: &mut Answer,
    body: &mut Body<'_>,
    responder: &RefCell<Responder>,
) -> Result<End, Status> {
    let head = answer.take_head();
    if answer.is_only_trailers() {
        let code = answer.finish(door, &head);
        responder.borrow_mut().head(head, true);
        return Ok(End {
            code,
            response_bytes: 0,
            own: false,
        });
    }
    door.books.hear_head(&head);
    responder.borrow_mut().head(head, false);
    let mut frames = Frames::new("response", door.event_loop.plane.config.message_bytes_max);
    let mut direct = true;
    while let Some(mut chunk) = answer.chunk(body).await? {
        frames.feed(&chunk)?;
        door.books.hear(&chunk);
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
    let code = answer.finish(door, &trailers);
    if code == Code::Ok {
        frames.end()?;
    }
    responder.borrow_mut().trailers(trailers);
    Ok(End {
        code,
        response_bytes: frames.bytes(),
        own: false,
    })
}
