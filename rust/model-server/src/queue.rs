//! Requests that wait, and which of them run together.
//!
//! Each model has a line; the line with the oldest head is served first. From a line of stackable requests everything that
//! already waits and stacks with the head is taken, up to the limits; nothing ever waits for company. A batch that failed
//! comes back as sealed groups, which run as they are: they are how one bad request is found.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ahash::{HashMap, HashMapExt};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use crate::budget::Charge;
use crate::models::{Lease, Model};
use crate::request::Request;
use crate::status::{Code, Status};

/// How many requests of a line are looked at to fill one batch: a bound on the work, far above any batch.
const SCAN_MAX: usize = 2048;

/// When a client is asked to come back to a full server, in milliseconds.
pub const PUSHBACK_MS: u32 = 100;

/// What a request is told.
pub type Answer = Result<Answered, Status>;

/// A successful answer.
#[derive(Debug)]
pub struct Answered {
    /// The encoded `ModelInferResponse`, behind its five-byte gRPC prefix.
    pub frame: bytes::Bytes,
    /// The request's share of the batch's execution time.
    pub execution_us: u32,
}

/// A request in the queue or in a batch.
#[derive(Debug)]
pub struct Pending {
    /// What is asked.
    pub request: Request,
    /// When nobody waits for the answer any more.
    pub deadline: Option<Instant>,
    /// Where the answer goes. Dropped, the request fails: DEADLINE_EXCEEDED when that has passed, else INTERNAL.
    pub answer: oneshot::Sender<Answer>,
    /// The model it is for.
    pub lease: Lease,
    _charge: Charge,
    sequence: u64,
}

impl Pending {
    /// A request that has not been queued yet.
    #[must_use]
    pub fn new(
        request: Request,
        deadline: Option<Instant>,
        answer: oneshot::Sender<Answer>,
        lease: Lease,
        charge: Charge,
    ) -> Self {
        Self {
            request,
            deadline,
            answer,
            lease,
            _charge: charge,
            sequence: 0,
        }
    }

    /// Its place in the order of arrival.
    #[cfg(test)]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    fn is_wanted(&self, now: Instant) -> bool {
        !self.answer.is_closed() && self.deadline.is_none_or(|deadline| now < deadline)
    }
}

/// Where a queued request is, for cancelling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    serial: u64,
    sequence: u64,
}

/// How much runs together, and how much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most rows in a batch of several requests.
    pub batch_rows_max: usize,
    /// The most tensor bytes in a batch of several requests.
    pub batch_bytes_max: usize,
    /// The most requests that wait.
    pub queue_max: usize,
}

/// The requests that run together; all of one model.
#[derive(Debug)]
pub struct Taken {
    /// Never empty.
    pub requests: Vec<Pending>,
    /// The model they are for.
    pub model: Arc<Model>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// No new requests.
    Draining,
    /// Nothing is handed out any more.
    Closed,
}

/// The requests of one model that wait.
#[derive(Debug)]
struct Line {
    model: Arc<Model>,
    /// In the order of arrival.
    waiting: VecDeque<Pending>,
    /// Groups that run as they are, by the arrival of their first.
    sealed: BTreeMap<u64, Vec<Pending>>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Only models with waiting requests have a line.
    lines: HashMap<u64, Line>,
    /// The lines by their heads: arrival of the oldest request → serial of the model.
    order: BTreeMap<u64, u64>,
    n_queued: usize,
    n_running: usize,
    next_sequence: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    state: Mutex<State>,
    /// Tells threads that wait; `arriving` tells a task.
    arrived: Condvar,
    arriving: Notify,
    emptied: Condvar,
}

impl Queue {
    /// An empty, open queue.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                phase: Phase::Open,
                lines: HashMap::new(),
                order: BTreeMap::new(),
                n_queued: 0,
                n_running: 0,
                next_sequence: 0,
            }),
            arrived: Condvar::new(),
            arriving: Notify::new(),
            emptied: Condvar::new(),
        }
    }

    /// Queues a request at the end of its model's line.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when `queue_max` requests wait, UNAVAILABLE when the server is stopping.
    pub fn push(&self, mut pending: Pending) -> Result<Place, Status> {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return Err(stopping());
        }
        if state.n_queued >= self.limits.queue_max {
            let sentence = format!(
                "Model {} cannot take the request: {} wait in this server already; try again later.",
                pending.lease.id, state.n_queued
            );
            return Err(Status::exhausted(sentence, PUSHBACK_MS));
        }
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        pending.sequence = sequence;
        let serial = pending.lease.serial;
        let model = Arc::clone(&pending.lease);
        state.change(&model, |line| line.waiting.push_back(pending));
        state.n_queued += 1;
        drop(state);
        self.tell_one();
        Ok(Place { serial, sequence })
    }

    /// Takes a request out of the queue; `None` when it is not there any more (it runs, or has been answered).
    pub fn cancel(&self, place: Place) -> Option<Pending> {
        let mut state = self.state.lock();
        let model = state.lines.get(&place.serial)?.model.clone();
        let found = state.change(&model, |line| {
            if let Ok(at) = line
                .waiting
                .binary_search_by_key(&place.sequence, |pending| pending.sequence)
            {
                return line.waiting.remove(at);
            }
            let holds = |pending: &Pending| pending.sequence == place.sequence;
            let key = line
                .sealed
                .iter()
                .find(|(_, group)| group.iter().any(holds))
                .map(|(key, _)| *key)?;
            let mut group = line.sealed.remove(&key)?;
            let at = group.iter().position(holds)?;
            let found = group.remove(at);
            line.seal(group);
            Some(found)
        })?;
        state.n_queued -= 1;
        self.note_if_empty(&state);
        Some(found)
    }

    /// The next requests to run together; waits up to `timeout` for some. `None` when none came, or nothing ever will.
    /// [`Queue::done`] must be called for every batch taken.
    pub fn next(&self, timeout: Duration) -> Option<Taken> {
        let until = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        loop {
            if let Poll::Ready(taken) = self.take(&mut state) {
                return taken;
            }
            let timed_out = match until {
                Some(until) => self.arrived.wait_until(&mut state, until).timed_out(),
                None => {
                    self.arrived.wait(&mut state);
                    false
                }
            };
            if timed_out && state.order.is_empty() {
                return None;
            }
        }
    }

    /// As [`Queue::next`], for a task; without a bound.
    pub async fn next_arriving(&self) -> Option<Taken> {
        loop {
            let taken = self.take(&mut self.state.lock());
            if let Poll::Ready(taken) = taken {
                return taken;
            }
            self.arriving.notified().await;
        }
    }

    /// The next requests to run together, if there are any; `None` when there never will be.
    fn take(&self, state: &mut MutexGuard<'_, State>) -> Poll<Option<Taken>> {
        let mut unwanted = Vec::new();
        loop {
            if state.phase == Phase::Closed {
                return Poll::Ready(None);
            }
            let taken = state.take(&self.limits, &mut unwanted);
            if taken.is_some() {
                state.n_running += 1;
            } else {
                self.note_if_empty(state);
            }
            if !unwanted.is_empty() {
                // What they hold is given back now, not when something comes, and not while others wait for the lock.
                MutexGuard::unlocked(state, || unwanted.clear());
            } else if taken.is_none() {
                return Poll::Pending;
            }
            if taken.is_some() {
                return Poll::Ready(taken);
            }
        }
    }

    /// Queues the requests of a batch again, as groups that run as they are.
    pub fn requeue(&self, model: &Arc<Model>, groups: impl IntoIterator<Item = Vec<Pending>>) {
        let mut state = self.state.lock();
        if state.phase == Phase::Closed {
            drop(state);
            for pending in groups.into_iter().flatten() {
                // Whoever asked may be gone; then there is nobody to tell.
                let _ = pending.answer.send(Err(stopping()));
            }
            return;
        }
        for group in groups {
            state.n_queued += group.len();
            state.change(model, |line| line.seal(group));
            self.tell_one();
        }
    }

    /// A batch has been answered or queued again.
    pub fn done(&self) {
        let mut state = self.state.lock();
        state.n_running -= 1;
        self.note_if_empty(&state);
    }

    /// Whether it takes new requests.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.lock().phase == Phase::Open
    }

    /// How many requests wait.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.state.lock().n_queued
    }

    /// Takes no new requests. Waits up to `grace` until all have been served, unless closed; true when they have.
    pub fn drain(&self, grace: Duration) -> bool {
        let until = Instant::now() + grace;
        let mut state = self.state.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Draining;
        }
        while state.phase != Phase::Closed && !state.is_idle() {
            if self.emptied.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.is_idle()
    }

    /// Refuses what still waits and hands out nothing any more.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Closed;
        state.order.clear();
        state.n_queued = 0;
        let lines = std::mem::take(&mut state.lines);
        drop(state);
        self.arrived.notify_all();
        self.arriving.notify_one();
        self.emptied.notify_all();
        for line in lines.into_values() {
            for pending in line
                .waiting
                .into_iter()
                .chain(line.sealed.into_values().flatten())
            {
                // Whoever asked may be gone; then there is nobody to tell.
                let _ = pending.answer.send(Err(stopping()));
            }
        }
    }

    fn tell_one(&self) {
        self.arrived.notify_one();
        self.arriving.notify_one();
    }

    fn note_if_empty(&self, state: &State) {
        if state.phase == Phase::Draining && state.is_idle() {
            self.emptied.notify_all();
        }
    }
}

impl Line {
    fn head(&self) -> Option<u64> {
        let waiting = self.waiting.front().map(|pending| pending.sequence);
        let sealed = self.sealed.first_key_value().map(|(sequence, _)| *sequence);
        waiting.into_iter().chain(sealed).min()
    }

    fn seal(&mut self, group: Vec<Pending>) {
        if let Some(first) = group.first() {
            self.sealed.insert(first.sequence, group);
        }
    }

    /// The head, and what of the waiting stacks with it.
    fn pop(&mut self, limits: &Limits, now: Instant, unwanted: &mut Vec<Pending>) -> Vec<Pending> {
        let sealed_first = match (self.sealed.first_key_value(), self.waiting.front()) {
            (Some((sealed, _)), Some(waiting)) => *sealed < waiting.sequence,
            (sealed, _) => sealed.is_some(),
        };
        if sealed_first {
            let group = self
                .sealed
                .pop_first()
                .map(|(_, group)| group)
                .unwrap_or_default();
            let (wanted, gone): (Vec<_>, Vec<_>) = group
                .into_iter()
                .partition(|pending| pending.is_wanted(now));
            unwanted.extend(gone);
            return wanted;
        }
        let Some(head) = self.waiting.pop_front() else {
            return Vec::new();
        };
        if !head.is_wanted(now) {
            unwanted.push(head);
            return Vec::new();
        }
        let mut batch = vec![head];
        if self.model.batchable() {
            self.fill(&mut batch, limits, now, unwanted);
        }
        batch
    }

    fn fill(
        &mut self,
        batch: &mut Vec<Pending>,
        limits: &Limits,
        now: Instant,
        unwanted: &mut Vec<Pending>,
    ) {
        let Some(mut rows) = batch[0].request.rows else {
            return;
        };
        let mut size_bytes = batch[0].request.size_bytes;
        let mut passed_over = Vec::new();
        for _ in 0..SCAN_MAX.min(self.waiting.len()) {
            if rows >= limits.batch_rows_max || size_bytes >= limits.batch_bytes_max {
                break;
            }
            let Some(next) = self.waiting.pop_front() else {
                break;
            };
            if !next.is_wanted(now) {
                unwanted.push(next);
                continue;
            }
            let more = next.request.rows.unwrap_or(usize::MAX);
            let fits = more <= limits.batch_rows_max - rows
                && next.request.size_bytes <= limits.batch_bytes_max - size_bytes;
            if fits && next.request.stacks_with(&batch[0].request) {
                rows += more;
                size_bytes += next.request.size_bytes;
                batch.push(next);
            } else {
                passed_over.push(next);
            }
        }
        for pending in passed_over.into_iter().rev() {
            self.waiting.push_front(pending);
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.n_queued == 0 && self.n_running == 0
    }

    /// Changes a model's line and keeps `order` true to it.
    fn change<R>(&mut self, model: &Arc<Model>, change: impl FnOnce(&mut Line) -> R) -> R {
        let line = self.lines.entry(model.serial).or_insert_with(|| Line {
            model: model.clone(),
            waiting: VecDeque::new(),
            sealed: BTreeMap::new(),
        });
        let before = line.head();
        let result = change(line);
        let after = line.head();
        if before != after {
            if let Some(head) = before {
                self.order.remove(&head);
            }
            if let Some(head) = after {
                self.order.insert(head, model.serial);
            }
        }
        if after.is_none() {
            self.lines.remove(&model.serial);
        }
        result
    }

    fn take(&mut self, limits: &Limits, unwanted: &mut Vec<Pending>) -> Option<Taken> {
        let now = Instant::now();
        loop {
            let serial = *self.order.first_key_value()?.1;
            let model = self.lines.get(&serial)?.model.clone();
            let before = unwanted.len();
            let requests = self.change(&model, |line| line.pop(limits, now, unwanted));
            self.n_queued -= requests.len() + unwanted.len() - before;
            if !requests.is_empty() {
                return Some(Taken { requests, model });
            }
        }
    }
}

fn stopping() -> Status {
    Status::new(
        Code::Unavailable,
        "The model server is stopping; try again.",
    )
}

#[cfg(test)]
mod tests;
