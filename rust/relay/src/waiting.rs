//! From a name to a slot: resolve, and wait where there is nothing yet. A request waits for a name or a route parked,
//! for a slot in a queue; it looks again after each wait.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::body::Body;
use crate::call::{Call, Stage};
use crate::frames::PREFIX_BYTES;
use crate::gate::{Place, TELL_EVERY};
use crate::headers;
use crate::meaning::{Meaning, Turn};
use crate::pick::{Lease, Pick, pick};
use crate::plane::{Held, Plane};
use crate::replica::Route;
use crate::space::{Key, Parked, Space, Ticket, Waiter, Wake};
use crate::status::{Code, NotHere, Status};

/// What clients are told to wait when something is full.
const PUSHBACK: Duration = Duration::from_millis(250);

/// What a request is told that there is no memory for.
pub fn no_room(plane: &Plane, what: &str) -> Status {
    plane.counters.parking_full.add(1);
    let sentence =
        format!("Too many requests are held in memory, so {what} is not; come back later.");
    Status::new(Code::ResourceExhausted, sentence).retry_after(PUSHBACK * 4)
}

/// A slot, and the route it was found on.
pub struct Found {
    /// The slot.
    pub lease: Lease,
    /// The route.
    pub route: Arc<Route>,
}

impl Call<'_> {
    /// A slot of a replica of the model that the name stands for, however long that takes.
    ///
    /// # Errors
    /// What the client is told: refused, too late, or too much waits already.
    pub async fn find(&mut self, body: &mut Body<'_>) -> Result<Found, Status> {
        body.rest();
        let mut place: Option<Place> = None;
        loop {
            let route = self.route(body).await?;
            place = place.filter(|place| place.is_in(&route.queue, &route.targets));
            if place.is_none() && !route.queue.is_empty() {
                place = Some(self.place(&route)?);
            }
            if let Some(waits) = place.as_mut().filter(|place| !place.may_go()) {
                self.queue(waits, &route, body).await?;
                continue;
            }
            let (now_ms, random) = (self.plane.now_ms(), self.event_loop.random());
            let local = self.sent_on.is_some();
            match (
                pick(&route, &self.avoid, local, now_ms, random),
                place.as_mut(),
            ) {
                (Pick::Lease(lease), _) => {
                    if let Some(place) = place {
                        place.served();
                    }
                    return Ok(Found { lease, route });
                }
                (Pick::Nobody, _) if local => return Err(self.not_here()),
                (Pick::Nobody, _) if self.turn == Turn::Canary => {
                    place = None;
                    self.turn = Turn::Model;
                }
                (Pick::Nobody, _) => {
                    place = None;
                    self.park_for_route(&route.model, body).await?;
                }
                (Pick::Full, Some(waits)) => self.queue(waits, &route, body).await?,
                // With a place it looks once more: a slot may have become free in between.
                (Pick::Full, None) => place = Some(self.place(&route)?),
            }
        }
    }

    async fn route(&mut self, body: &mut Body<'_>) -> Result<Arc<Route>, Status> {
        if let Some(model) = &self.sent_on {
            let route = self.plane.models.get(model);
            return route.ok_or_else(|| self.not_here());
        }
        loop {
            let Some(meaning) = self.plane.names.get(&self.name) else {
                let name = self.name.clone();
                self.park(&self.plane.names, &name, |_| true, body, |_| true)
                    .await?;
                continue;
            };
            if let Some(route) = self.canary(&meaning) {
                return Ok(route);
            }
            let model = meaning.model();
            if let Some(route) = self.plane.models.get(model) {
                return Ok(route);
            }
            self.park_for_route(model, body).await?;
        }
    }

    /// The route of the model that is tried out, when it is its turn. It is never waited for.
    fn canary(&mut self, meaning: &Meaning) -> Option<Arc<Route>> {
        let route = match (meaning, self.turn) {
            (Meaning::Model(_), Turn::Open) | (_, Turn::Model) => return None,
            (Meaning::Split(split), Turn::Open) if !split.take_turn() => None,
            (Meaning::Split(split), _) => self.plane.models.get(split.canary()),
            (Meaning::Model(_), Turn::Canary) => None,
        };
        self.turn = match route {
            Some(_) => Turn::Canary,
            None => Turn::Model,
        };
        route
    }

    /// What the instance is told that sent the call on: it looks elsewhere.
    fn not_here(&self) -> Status {
        let sentence = format!(
            "There is no copy of {} here any more; send the request again.",
            self.name.name
        );
        let mut status = Status::new(Code::Unavailable, sentence);
        status.not_here = Some(if self.reloaded {
            NotHere::Told
        } else {
            NotHere::Gone
        });
        status
    }

    async fn park_for_route(
        &mut self,
        model: &Arc<str>,
        body: &mut Body<'_>,
    ) -> Result<(), Status> {
        let avoid = std::mem::take(&mut self.avoid);
        let (plane, name) = (self.plane, self.name.clone());
        // The name may have been published anew between looking and parking.
        let still = |()| (plane.names.get(&name)).is_some_and(|now| now.model() == model);
        self.park(
            &plane.models,
            model,
            |route: &Arc<Route>| route.is_usable(&avoid),
            body,
            still,
        )
        .await
    }

    async fn park<K: Key, V: Clone>(
        &mut self,
        space: &Space<K, V>,
        key: &K,
        usable: impl FnOnce(&V) -> bool,
        body: &mut Body<'_>,
        still: impl FnOnce(()) -> bool,
    ) -> Result<(), Status> {
        let (config, gauges) = (&self.plane.config, &self.plane.gauges);
        let waiter = Waiter {
            name: self.name.clone(),
            deadline: self.waits_until,
            told: headers::told(&config.told_headers, self.headers),
        };
        let mut ticket = match space.park(key, waiter, usable) {
            Parked::Known(_) => return Ok(()),
            Parked::Refused(status) => return Err(status),
            Parked::Waiting(ticket) => ticket,
        };
        let (mut requests, mut bytes) = (
            Held::none(&gauges.parked_requests),
            Held::none(&gauges.parked_bytes),
        );
        if !requests.try_add(1, config.parked_requests_max) {
            return Err(self.parking_full());
        }
        if !bytes.try_add(body.held(), config.parked_bytes_max) {
            return Err(self.held_full());
        }
        if !still(()) {
            return Ok(());
        }
        let since = Instant::now();
        self.stage.set(Stage::Parked);
        self.plane.counters.faults.add(1);
        let mut timer = self.timer();
        let woken =
            poll_fn(|cx| self.poll_parked(cx, &mut ticket, body, &mut bytes, &mut timer)).await;
        self.parked += since.elapsed();
        woken
    }

    fn poll_parked<K: Key, V: Clone>(
        &self,
        cx: &mut Context<'_>,
        ticket: &mut Ticket<'_, K, V>,
        body: &mut Body<'_>,
        bytes: &mut Held<'_>,
        timer: &mut Option<Pin<Box<Sleep>>>,
    ) -> Poll<Result<(), Status>> {
        match ticket.poll_woken(cx) {
            Poll::Ready(Wake::Resume) => return Poll::Ready(Ok(())),
            Poll::Ready(Wake::Refused(status)) => return Poll::Ready(Err(status)),
            Poll::Pending => {}
        }
        if let Poll::Ready(failed) = self.poll_held(cx, body, bytes) {
            return Poll::Ready(failed);
        }
        self.poll_timer(cx, timer)
    }

    /// Takes in what the client sends while its request waits, and counts it: unread, it would fill buffers that nobody counts, and
    /// take the room on its connection that the rest of a request needs which does not wait. Resolves with a failure only.
    fn poll_held(
        &self,
        cx: &mut Context<'_>,
        body: &mut Body<'_>,
        bytes: &mut Held<'_>,
    ) -> Poll<Result<(), Status>> {
        let config = &self.plane.config;
        while body.held() < config.message_bytes_max + PREFIX_BYTES {
            match body.poll_fill(cx) {
                Poll::Ready(Some(Ok(more))) if !bytes.try_add(more, config.parked_bytes_max) => {
                    return Poll::Ready(Err(self.held_full()));
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Err(status)),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn held_full(&self) -> Status {
        no_room(self.plane, &format!("the request for {}", self.name.name))
    }

    fn place(&self, route: &Route) -> Result<Place, Status> {
        let bound = self.plane.config.gate_queue_max;
        Place::take(&route.queue, &route.targets, self.waits_until, bound).ok_or_else(|| {
            self.plane.counters.gate_queue_full.add(1);
            let sentence = format!(
                "Model {}: {bound} requests wait for a free slot already; send fewer at once, or come back later.",
                route.model
            );
            Status::new(Code::ResourceExhausted, sentence).retry_after(PUSHBACK)
        })
    }

    async fn queue(
        &mut self,
        place: &mut Place,
        route: &Route,
        body: &mut Body<'_>,
    ) -> Result<(), Status> {
        let mut bytes = Held::none(&self.plane.gauges.parked_bytes);
        if !bytes.try_add(body.held(), self.plane.config.parked_bytes_max) {
            return Err(self.held_full());
        }
        self.stage.set(Stage::Queued);
        let since = Instant::now();
        let mut timer = self.timer();
        let mut kicked = std::pin::pin!(place.kicked());
        let mut ticks = tokio::time::interval(TELL_EVERY);
        let waited = poll_fn(|cx| {
            if kicked.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(failed) = self.poll_held(cx, body, &mut bytes) {
                return Poll::Ready(failed);
            }
            // As long as it waits, the control plane hears of the queue.
            while ticks.poll_tick(cx).is_ready() {
                route.tell_queueing(self.plane.now_ms(), &self.plane.events);
            }
            self.poll_timer(cx, &mut timer)
        })
        .await;
        self.queued += since.elapsed();
        waited
    }

    /// Only for requests without a deadline of their own: that one is kept for the whole call.
    fn timer(&self) -> Option<Pin<Box<Sleep>>> {
        self.deadline
            .is_none()
            .then(|| Box::pin(tokio::time::sleep_until(self.waits_until.into())))
    }

    fn poll_timer(
        &self,
        cx: &mut Context<'_>,
        timer: &mut Option<Pin<Box<Sleep>>>,
    ) -> Poll<Result<(), Status>> {
        match timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| Err(self.too_late())),
            None => Poll::Pending,
        }
    }

    fn parking_full(&self) -> Status {
        self.plane.counters.parking_full.add(1);
        let sentence = format!(
            "Too many requests wait for models to be loaded, so {} is not waited for; come back later.",
            self.name.name
        );
        Status::new(Code::ResourceExhausted, sentence).retry_after(PUSHBACK * 4)
    }
}
