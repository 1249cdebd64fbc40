//! What all loops share: names, routes, targets, limits, counts. The control plane writes, the loops read.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use http::HeaderValue;
use parking_lot::{Mutex, RwLock};

use crate::config::Config;
use crate::event::Events;
use crate::gate::Queue;
use crate::meaning::Meaning;
use crate::metrics::{Counters, Histograms, Labels};
use crate::name::Name;
use crate::replica::{Replica, Route, Target};
use crate::rules::Rules;
use crate::series::{self, Series};
use crate::space::Space;
use crate::status::Status;
use crate::tee::Tee;
use crate::tls::Tls;

/// See the module.
pub struct Plane {
    /// Fixed at the start.
    pub config: Config,
    /// Names and what they stand for.
    pub names: Space<Name, Meaning>,
    /// Models and their routes.
    pub models: Space<Arc<str>, Arc<Route>>,
    /// Which methods are let in, and where their messages name the model.
    pub rules: Rules,
    /// Of the ports for clients.
    pub tls: Tls,
    /// What payload processors are offered.
    pub tee: Tee,
    /// For the control plane.
    pub events: Arc<Events>,
    /// Totals.
    pub counters: Counters,
    /// One per loop.
    pub histograms: Vec<Histograms>,
    /// Of the histograms.
    pub labels: Labels,
    /// Models that have some of their own.
    pub series: Series,
    /// Gauges.
    pub gauges: Gauges,
    peer_header: OnceLock<HeaderValue>,
    targets: RwLock<AHashMap<u64, Arc<Target>>>,
    replicas: Mutex<Replicas>,
    dirty: Mutex<Vec<Arc<Replica>>>,
    start: Instant,
}

/// What is held right now.
#[derive(Default)]
pub struct Gauges {
    /// Client connections.
    pub connections: AtomicUsize,
    /// Calls between their first and last byte.
    pub in_flight: AtomicUsize,
    /// Requests that wait for a name or a route.
    pub parked_requests: AtomicUsize,
    /// The bytes of their bodies, of those that wait for a slot, and of messages held to put an id into them.
    pub parked_bytes: AtomicUsize,
    /// Bytes of bodies kept for a replay.
    pub kept_bytes: AtomicUsize,
}

/// An amount counted in a gauge; given back when dropped.
pub struct Held<'a> {
    gauge: &'a AtomicUsize,
    amount: usize,
}

impl<'a> Held<'a> {
    /// Nothing yet.
    pub fn none(gauge: &'a AtomicUsize) -> Held<'a> {
        Held { gauge, amount: 0 }
    }

    /// One more of something unbounded.
    pub fn one(gauge: &'a AtomicUsize) -> Held<'a> {
        gauge.fetch_add(1, Ordering::Relaxed);
        Held { gauge, amount: 1 }
    }

    /// Counts more, unless the gauge would pass its bound.
    pub fn try_add(&mut self, more: usize, bound: usize) -> bool {
        let fits = self.gauge.fetch_add(more, Ordering::Relaxed) + more <= bound;
        if fits {
            self.amount += more;
        } else {
            self.gauge.fetch_sub(more, Ordering::Relaxed);
        }
        fits
    }

    /// Gives a part back.
    pub fn give_back(&mut self, less: usize) {
        self.amount -= less;
        self.gauge.fetch_sub(less, Ordering::Relaxed);
    }

    /// Gives all back.
    pub fn clear(&mut self) {
        self.gauge
            .fetch_sub(std::mem::take(&mut self.amount), Ordering::Relaxed);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Replicas by id, while a route or a request holds them.
#[derive(Default)]
struct Replicas {
    by_id: AHashMap<u64, Weak<Replica>>,
    queues: AHashMap<Arc<str>, Weak<Queue>>,
    swept_at: usize,
}

impl Replicas {
    fn get(&self, id: u64) -> Option<Arc<Replica>> {
        self.by_id.get(&id).and_then(Weak::upgrade)
    }

    /// The one queue of a model, whichever routes and replicas it has had.
    fn queue(&mut self, model: &Arc<str>) -> Arc<Queue> {
        if let Some(queue) = self.queues.get(model).and_then(Weak::upgrade) {
            return queue;
        }
        let queue = Arc::default();
        self.queues.insert(model.clone(), Arc::downgrade(&queue));
        queue
    }

    fn insert(&mut self, replica: &Arc<Replica>) {
        if self.by_id.len() > 2 * self.swept_at + 64 {
            self.by_id.retain(|_, replica| replica.strong_count() > 0);
            self.queues.retain(|_, queue| queue.strong_count() > 0);
            self.swept_at = self.by_id.len();
        }
        self.by_id.insert(replica.id, Arc::downgrade(replica));
    }
}

/// A replica as the control plane lists it.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// Unique per load.
    pub id: u64,
    /// Where.
    pub target: u64,
    /// 0: no bound of its own.
    pub max_concurrency: u32,
}

impl Plane {
    /// An empty plane.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(config: Config) -> io::Result<Plane> {
        let events = Arc::new(Events::new()?);
        Ok(Plane {
            names: Space::new(events.clone()),
            models: Space::new(events.clone()),
            rules: Rules::default(),
            tls: Tls::default(),
            tee: Tee::default(),
            counters: Counters::default(),
            histograms: (0..config.threads.max(1))
                .map(|_| Histograms::default())
                .collect(),
            labels: Labels::default(),
            series: Series::new(config.model_series_max),
            gauges: Gauges::default(),
            peer_header: OnceLock::new(),
            targets: RwLock::default(),
            replicas: Mutex::default(),
            dirty: Mutex::default(),
            start: Instant::now(),
            events,
            config,
        })
    }

    /// What other instances are told to know this one by: its port for them.
    pub fn peer_header(&self) -> &HeaderValue {
        self.peer_header
            .get_or_init(|| HeaderValue::from_static("no port"))
    }

    /// The port for other instances is bound.
    pub fn bound_for_peers(&self, address: SocketAddr) {
        let text = HeaderValue::from_str(&address.to_string());
        // It is bound once, and an address is printable.
        let _ = text.map(|text| self.peer_header.set(text));
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// The number of the series of a model, asked for by a vmodel or by itself. Whose place it took is forgotten.
    pub fn series_of(&self, model: &Arc<str>, vmodel: Option<&Arc<str>>) -> u64 {
        if !self.series.wanted() {
            return series::NONE;
        }
        let vmodel = vmodel.cloned().unwrap_or_else(|| Arc::from(""));
        let (number, gone) = self.series.number((model.clone(), vmodel), self.now_ms());
        if let Some(gone) = gone {
            for histograms in &self.histograms {
                histograms.forget(gone);
            }
        }
        number
    }

    /// Learns targets.
    pub fn add_targets(&self, targets: impl IntoIterator<Item = Arc<Target>>) {
        self.targets
            .write()
            .extend(targets.into_iter().map(|target| (target.id, target)));
    }

    /// Forgets a target. `None`: it was not known.
    pub fn remove_target(&self, id: u64) -> Option<Arc<Target>> {
        let target = self.targets.write().remove(&id)?;
        target.remove();
        target.queue.kick_all();
        Some(target)
    }

    /// A lost target answers again: who waits for a model there looks again.
    pub fn target_back(&self, target: &Target) {
        for (model, route) in self.models.waiting_known() {
            if route
                .replicas
                .iter()
                .any(|replica| replica.target.id == target.id)
            {
                self.models.wake(&model);
            }
        }
        target.queue.kick_all();
    }

    /// Swaps a route; an empty one removes it.
    pub fn publish(&self, model: &str, listed: &[Listed]) {
        let model: Arc<str> = Arc::from(model);
        let (replicas, queue) = self.replicas(&model, listed);
        if replicas.is_empty() {
            self.models.remove(&model, false);
        } else {
            let route = Arc::new(Route::new(model.clone(), replicas, queue.clone()));
            self.models.set(&model, route);
        }
        queue.kick_all();
    }

    fn replicas(&self, model: &Arc<str>, listed: &[Listed]) -> (Box<[Arc<Replica>]>, Arc<Queue>) {
        let targets = self.targets.read();
        let mut replicas = self.replicas.lock();
        let queue = replicas.queue(model);
        let mut found = Vec::with_capacity(listed.len());
        for wanted in listed {
            if let Some(replica) = replicas
                .get(wanted.id)
                .filter(|replica| replica.model == *model)
            {
                replica.revive(wanted.max_concurrency);
                found.push(replica);
                continue;
            }
            let Some(target) = targets.get(&wanted.target) else {
                self.counters.replicas_without_target.add(1);
                continue;
            };
            let events = self.events.clone();
            let bound = wanted.max_concurrency;
            let replica = Arc::new(Replica::new(
                wanted.id,
                model.clone(),
                target.clone(),
                bound,
                queue.clone(),
                events,
            ));
            replicas.insert(&replica);
            found.push(replica);
        }
        (found.into(), queue)
    }

    /// The replica with this id, if a route or a request still holds it.
    pub fn replica(&self, id: u64) -> Option<Arc<Replica>> {
        self.replicas.lock().get(id)
    }

    /// Resolves a name. Requests that wait under what it was before resolve again.
    pub fn publish_name(&self, name: &Name, meaning: Meaning) {
        let model = meaning.model().clone();
        if let Some(before) = self.names.set(name, meaning)
            && *before.model() != model
        {
            self.wake_named(&before, name);
        }
    }

    /// Forgets a name. Requests that wait under it resolve again.
    pub fn forget_name(&self, name: &Name) {
        if let Some(before) = self.names.remove(name, true) {
            self.wake_named(&before, name);
        }
        self.names.wake(name);
    }

    fn wake_named(&self, before: &Meaning, name: &Name) {
        self.models
            .wake_where(before.model(), |waiter| waiter.name == *name);
    }

    /// Answers all that wait for a model, and for `cache` all that come.
    pub fn refuse(&self, model: &str, status: Status, cache: Duration) {
        self.models.refuse(&Arc::from(model), status, cache);
    }

    /// Something happened to a replica: it is in the next reading.
    pub fn touch(&self, replica: &Arc<Replica>) {
        replica
            .usage
            .last_used_ms
            .store(self.now_ms(), Ordering::Relaxed);
        if !replica.usage.dirty.swap(true, Ordering::Relaxed) {
            self.dirty.lock().push(replica.clone());
        }
    }

    /// The replicas used since the last call, and those in flight, which stay on the list.
    pub fn take_dirty(&self) -> Vec<Arc<Replica>> {
        let taken = std::mem::take(&mut *self.dirty.lock());
        let mut stay = Vec::new();
        for replica in &taken {
            replica.usage.dirty.store(false, Ordering::SeqCst);
            if replica.in_flight() > 0 && !replica.usage.dirty.swap(true, Ordering::SeqCst) {
                stay.push(replica.clone());
            }
        }
        self.dirty.lock().append(&mut stay);
        taken
    }
}

#[cfg(test)]
#[path = "plane_tests.rs"]
mod tests;
