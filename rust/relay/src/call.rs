//! The life of a request: class, name, slot, attempts, answer. Both doors, gRPC (`serve`) and dispatch (`gather`), lead here.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::HeaderMap;

use crate::answer::Answer;
use crate::attempt::{Attempt, Broken};
use crate::body::{Body, gone};
use crate::books::Books;
use crate::deadline::deadline_of;
use crate::event_loop::EventLoop;
use crate::headers::{self, Forwarded};
use crate::meaning::Turn;
use crate::method::{Class, Method};
use crate::name::Name;
use crate::plane::Plane;
use crate::status::{Code, Status};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client.
    Client,
    /// Another instance, for a client or for itself.
    Peer,
}

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
    /// The concrete model, when another instance sent the call on: then copies here serve it, or none.
    pub sent_on: Option<Arc<str>>,
    /// Which model it is for, when the name stands for two.
    pub turn: Turn,
    /// A model server said in words that it does not hold the model; the next time that is believed to be the model's answer.
    pub reloaded: bool,
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
    /// How long it waited at gates.
    pub queued: Duration,
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

/// What a door knows of a call before its body is looked at.
pub struct Door<'a> {
    pub event_loop: &'a EventLoop,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    /// Another instance sent it on.
    pub sent_on: Option<&'a Forwarded>,
    pub deadline: Option<Instant>,
    pub arrived: Instant,
    pub books: &'a Books<'a>,
}

/// What can be said of a call by its head alone.
pub fn admit(
    plane: &Plane,
    method: &Method,
    origin: Origin,
    path: &str,
    headers: &HeaderMap,
    now: Instant,
) -> Result<Option<Instant>, Status> {
    match method.class {
        Class::Forbidden if origin == Origin::Peer => return Err(headers::not_for_clients()),
        Class::Forbidden | Class::Unlisted => return Err(Status::new(Code::Unimplemented, "")),
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
    // What another instance sends on has passed here already, and got some headers more.
    if origin == Origin::Client && bytes > plane.config.header_bytes_max as usize {
        plane.counters.malformed.add(1);
        let limit = plane.config.header_bytes_max;
        let sentence = format!(
            "The headers of the request take {bytes} bytes, over the limit of {limit}; send fewer or shorter ones."
        );
        return Err(Status::new(Code::ResourceExhausted, sentence));
    }
    deadline_of(headers, now)
}

/// A call against its deadline and its client's patience. The loser is dropped, which cancels it all the way.
pub async fn race<T>(
    mut work: Pin<&mut impl Future<Output = T>>,
    door: &Door<'_>,
    mut poll_gone: impl FnMut(&mut std::task::Context<'_>) -> Poll<()>,
) -> Result<T, Status> {
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
                .map(|()| Err(too_late(door.books.stage.get(), &door.books.asked.borrow()))),
            None => Poll::Pending,
        }
    })
    .await
}

/// Relays a call to whom it concerns, and says how that began. `name`: which model is asked for; nothing else than a control
/// method does without.
pub async fn answer(
    door: &Door<'_>,
    name: Option<Name>,
    body: &mut Body<'_>,
) -> Result<Box<Answer>, Status> {
    if door.method.class == Class::Control {
        door.books.stage.set(Stage::Sent);
        return control(door, body).await;
    }
    let name = name.ok_or_else(|| door.method.nameless())?;
    door.books.asked.borrow_mut().push_str(&name.name);
    door.books.early.set(false);
    let plane = &*door.event_loop.plane;
    let mut call = Call {
        event_loop: door.event_loop,
        plane,
        method: door.method,
        name,
        sent_on: door.sent_on.map(|forwarded| forwarded.model.clone()),
        turn: Turn::Open,
        reloaded: door.sent_on.is_some_and(|forwarded| forwarded.reloaded),
        headers: door.headers,
        deadline: door.deadline,
        waits_until: door
            .deadline
            .unwrap_or(door.arrived + plane.config.park_timeout),
        avoid: Vec::new(),
        parked: Duration::ZERO,
        queued: Duration::ZERO,
        stage: &door.books.stage,
    };
    door.event_loop.budget.deposit();
    let remembered = plane.series.wanted() || door.books.tap.borrow().is_some();
    if remembered {
        door.books.about.borrow_mut().0 = Some(call.name.clone());
    }
    let answered = call.infer(body).await;
    if remembered && let Ok(answer) = &answered {
        door.books.about.borrow_mut().1 = answer.model();
    }
    door.books.parked.set(call.parked);
    door.books.queued.set(call.queued);
    answered
}

async fn control(door: &Door<'_>, body: &mut Body<'_>) -> Result<Box<Answer>, Status> {
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
        Ok(head) => Ok(Box::new(Answer::begun(attempt, head, None)?)),
        Err(Broken::Client(status)) => Err(status),
        Err(Broken::Upstream(_)) => Err(away()),
    }
}
