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
use crate::name::{Name, NameKind};
use crate::plane::Held;
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
    /// Framed bytes the client sent.
    pub request_bytes: Cell<u64>,
    /// How it ended.
    pub end: Cell<Option<End>>,
    /// What payload processors hear of it; `None`: nothing.
    pub tap: RefCell<Option<Tap>>,
    /// Its name and, once it was served, the concrete model; kept only for the tap.
    pub about: RefCell<(Option<Name>, Option<Arc<str>>)>,
    event_loop: &'a EventLoop,
    method: &'a Method,
    arrived: Instant,
    /// Of a call that has books of its own.
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

    fn offer(&self, end: End) {
        let (Some(tap), (Some(name), served)) = (self.tap.take(), self.about.take()) else {
            return;
        };
        let plane = &self.event_loop.plane;
        let model = served
            .or_else(|| plane.names.get(&name))
            .unwrap_or_else(|| name.name.clone());
        let by_vmodel = name.kind == NameKind::VModel || model != name.name;
        let about = tee::About {
            path: &self.method.path,
            model: &model,
            vmodel: if by_vmodel { &name.name } else { "" },
            code: end.code,
        };
        plane.tee.offer(tap, &about, &plane.counters);
    }

    fn observe(&self, end: End) {
        let payload = |framed: u64| framed.saturating_sub(PREFIX_BYTES as u64) as f64;
        let values = [
            (Metric::ApiRequest, milliseconds(self.arrived.elapsed())),
            (Metric::RequestSize, payload(self.request_bytes.get())),
            (Metric::ResponseSize, payload(end.response_bytes)),
        ];
        let observed = if end.response_bytes > 0 { 3 } else { 2 };
        let histograms = self.event_loop.histograms();
        if !self.part {
            histograms.observe(self.method.label, end.code, &values[..observed]);
        }
        if self.parked.get() > CACHE_MISS_MIN {
            let missed = milliseconds(self.parked.get());
            histograms.observe(NO_LABEL, Code::Ok, &[(Metric::CacheMiss, missed)]);
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
            self.observe(end);
            self.offer(end);
        }
    }
}
