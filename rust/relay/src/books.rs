//! What a call tells about itself while it runs, and what is counted when it ends.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::call::Stage;
use crate::event_loop::EventLoop;
use crate::frames::PREFIX_BYTES;
use crate::method::{Class, Method};
use crate::metrics::{Metric, NO_LABEL, milliseconds};
use crate::plane::Held;
use crate::status::Code;

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
    event_loop: &'a EventLoop,
    method: &'a Method,
    arrived: Instant,
    _in_flight: Held<'a>,
}

impl<'a> Books<'a> {
    /// A call has arrived.
    pub fn open(event_loop: &'a EventLoop, method: &'a Method, arrived: Instant) -> Books<'a> {
        event_loop.plane.counters.requests.add(1);
        Books {
            stage: Cell::new(Stage::Reading),
            asked: RefCell::default(),
            parked: Cell::default(),
            early: Cell::new(true),
            request_bytes: Cell::new(0),
            end: Cell::new(None),
            event_loop,
            method,
            arrived,
            _in_flight: Held::one(&event_loop.plane.gauges.in_flight),
        }
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
        histograms.observe(self.method.label, end.code, &values[..observed]);
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
            Code::Cancelled if end.own => counters.cancelled.add(1),
            Code::DeadlineExceeded if end.own => counters.deadline_exceeded.add(1),
            _ if end.own => counters.refused.add(1),
            _ => {}
        }
        if self.method.class == Class::Inference && !self.early.get() {
            self.observe(end);
        }
    }
}
