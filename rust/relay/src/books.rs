//! What a call tells about itself while it runs, and what is counted when it ends.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;

use crate::body::Body;
use crate::call::Stage;
use crate::event_loop::EventLoop;
use crate::frames::PREFIX_BYTES;
use crate::method::{Class, Method};
use crate::metrics::{Metric, NO_LABEL, milliseconds};
use crate::name::Name;
use crate::plane::Held;
use crate::series;
use crate::status::Code;
use crate::tee::{self, Tap};

/// Waits shorter than this are no cache miss (reference: the predecessor's metric).
const CACHE_MISS_MIN: Duration = Duration::from_millis(10);

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// As the client is told.
    pub code: Code,
    /// Framed bytes it was sent.
    pub response_bytes: u64,
    /// The relay answered itself.
    pub own: bool,
}

impl End {
    /// With an answer of our own.
    pub fn own(code: Code) -> End {
        End {
            code,
            response_bytes: 0,
            own: true,
        }
    }
}

/// See the module. Closed when dropped; a call that was dropped halfway was cancelled.
pub struct Books<'a> {
    /// What it is doing.
    pub stage: Cell<Stage>,
    /// What it asks for, once known.
    pub asked: RefCell<String>,
    /// How long it was parked.
    pub parked: Cell<Duration>,
    /// It has not become a request for a model yet.
    pub early: Cell<bool>,
    /// How long it waited at gates.
    pub queued: Cell<Duration>,
    /// How long the model server took, once it answered to the end.
    pub invoked: Cell<Option<Duration>>,
    /// Framed bytes the client sent.
    pub request_bytes: Cell<u64>,
    /// How it ended.
    pub end: Cell<Option<End>>,
    /// What payload processors hear of it; `None`: nothing.
    pub tap: RefCell<Option<Tap>>,
    /// Its name and, once it was served, the concrete model; kept only for the tap and for series per model.
    pub about: RefCell<(Option<Name>, Option<Arc<str>>)>,
    event_loop: &'a EventLoop,
    method: &'a Method,
    arrived: Instant,
    /// Of a call that has books of its own, here or at another instance.
    part: bool,
    _in_flight: Held<'a>,
}

impl<'a> Books<'a> {
    /// A call has arrived.
    pub fn open(event_loop: &'a EventLoop, method: &'a Method, arrived: Instant) -> Books<'a> {
        let plane = &event_loop.plane;
        plane.counters.requests.add(1);
        let in_flight = Held::one(&plane.gauges.in_flight);
        Books::new(event_loop, method, arrived, false, in_flight)
    }

    /// Another instance has sent a call on, and keeps the books of the client's call; or asks the control plane.
    pub fn forwarded(event_loop: &'a EventLoop, method: &'a Method, arrived: Instant) -> Books<'a> {
        let (counters, gauge) = (
            &event_loop.plane.counters,
            &event_loop.plane.gauges.in_flight,
        );
        // What instances ask of each other may last as long as they live: a drain does not wait for it.
        let in_flight = if method.class == Class::Inference {
            counters.from_peers.add(1);
            Held::one(gauge)
        } else {
            Held::none(gauge)
        };
        Books::new(event_loop, method, arrived, true, in_flight)
    }

    /// For one model of a call that names several: what concerns the model is told here, the rest in the books of the call.
    pub fn part(event_loop: &'a EventLoop, method: &'a Method, arrived: Instant) -> Books<'a> {
        let in_flight = Held::none(&event_loop.plane.gauges.in_flight);
        Books::new(event_loop, method, arrived, true, in_flight)
    }

    fn new(
        event_loop: &'a EventLoop,
        method: &'a Method,
        arrived: Instant,
        part: bool,
        in_flight: Held<'a>,
    ) -> Books<'a> {
        Books {
            stage: Cell::new(Stage::Reading),
            asked: RefCell::default(),
            parked: Cell::default(),
            queued: Cell::default(),
            invoked: Cell::default(),
            early: Cell::new(true),
            request_bytes: Cell::new(0),
            end: Cell::new(None),
            tap: RefCell::default(),
            about: RefCell::default(),
            event_loop,
            method,
            arrived,
            part,
            _in_flight: in_flight,
        }
    }

    /// Lets payload processors listen, if one may want this call. Streams are not offered.
    pub fn listen(&self, headers: &HeaderMap, body: &mut Body<'_>) {
        if self.method.class != Class::Inference || self.method.streaming {
            return;
        }
        let tee = &self.event_loop.plane.tee;
        if let Some(tap) = tee.tap(&self.method.path, headers) {
            body.capture(tee.capture());
            *self.tap.borrow_mut() = Some(tap);
        }
    }

    /// A piece of the response.
    pub fn hear(&self, chunk: &Bytes) {
        if let Some(tap) = &mut *self.tap.borrow_mut() {
            tap.response.push(chunk);
        }
    }

    /// The headers of the response.
    pub fn hear_head(&self, head: &HeaderMap) {
        if let Some(tap) = &mut *self.tap.borrow_mut() {
            tap.response_headers = head.clone();
        }
    }

    /// The body of the request, at the end.
    pub fn hear_body(&self, body: &mut Body<'_>) {
        if let (Some(tap), Some(captured)) = (&mut *self.tap.borrow_mut(), body.captured()) {
            tap.request = captured;
        }
    }

    /// The concrete model, if it is known, and what it was asked for by.
    fn model(&self) -> Option<(Option<Arc<str>>, Name)> {
        let (name, served) = self.about.take();
        let name = name?;
        let meant = || Some(self.event_loop.plane.names.get(&name)?.model().clone());
        let model = served.or_else(meant);
        Some((model, name))
    }

    fn offer(&self, end: End, asked: Option<(Option<Arc<str>>, Name)>) {
        let (Some(tap), Some((model, name))) = (self.tap.take(), asked) else {
            return;
        };
        let plane = &self.event_loop.plane;
        let model = model.unwrap_or_else(|| name.name.clone());
        let about = tee::About {
            path: &self.method.path,
            model: &model,
            vmodel: name.as_vmodel_of(&model).map_or("", |vmodel| vmodel),
            code: end.code,
        };
        plane.tee.offer(tap, &about, &plane.counters);
    }

    /// The series of the model. Names that stand for nothing have none: clients invent them.
    fn series(&self, asked: Option<&(Option<Arc<str>>, Name)>) -> u64 {
        match asked {
            Some((Some(model), name)) => {
                let vmodel = name.as_vmodel_of(model);
                self.event_loop.plane.series_of(model, vmodel)
            }
            _ => series::NONE,
        }
    }

    fn observe(&self, end: End, series: u64) {
        let payload = |framed: u64| framed.saturating_sub(PREFIX_BYTES as u64) as f64;
        let took = milliseconds(self.arrived.elapsed());
        let responded = end.response_bytes > 0;
        // Parts of a call for several models, and what other instances send on, are not calls of clients.
        let whole = !self.part;
        let called = [
            whole.then_some((Metric::ApiRequest, took)),
            whole.then(|| (Metric::RequestSize, payload(self.request_bytes.get()))),
            (whole && responded).then(|| (Metric::ResponseSize, payload(end.response_bytes))),
            self.invoked
                .get()
                .map(|took| (Metric::InvokeModel, milliseconds(took))),
        ];
        let (parked, queued) = (self.parked.get(), self.queued.get());
        let waited = [
            (parked > CACHE_MISS_MIN).then(|| (Metric::CacheMiss, milliseconds(parked))),
            (!queued.is_zero()).then(|| (Metric::QueueDelay, milliseconds(queued))),
        ];
        let histograms = self.event_loop.histograms();
        histograms.observe(self.method.label, end.code, series, called);
        if waited.iter().any(Option::is_some) {
            histograms.observe(NO_LABEL, Code::Ok, series, waited);
        }
    }
}

impl Drop for Books<'_> {
    fn drop(&mut self) {
        let end = self.end.get().unwrap_or(End::own(Code::Cancelled));
        let counters = &self.event_loop.plane.counters;
        match end.code {
            _ if self.part => {}
            Code::Cancelled if end.own => counters.cancelled.add(1),
            Code::DeadlineExceeded if end.own => counters.deadline_exceeded.add(1),
            _ if end.own => counters.refused.add(1),
            _ => {}
        }
        if self.method.class == Class::Inference && !self.early.get() {
            let asked = self.model();
            self.observe(end, self.series(asked.as_ref()));
            self.offer(end, asked);
        }
    }
}
