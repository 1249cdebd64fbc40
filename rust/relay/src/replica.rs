//! Model server processes, and the loaded models in them: who may be sent a request now.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use ahash::AHashMap;
use parking_lot::Mutex;

use crate::circuit::Circuit;
use crate::event::{Event, Events};
use crate::gate::Queue;

/// Where a model server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Address {
    /// From `unix:/path` or `host:port`.
    pub fn parse(address: &str) -> Address {
        match address.strip_prefix("unix:") {
            Some(path) => Address::Unix(PathBuf::from(path)),
            None => Address::Tcp(address.to_owned()),
        }
    }
}

/// What a model server says of its methods.
#[derive(Debug)]
pub struct TargetMethods {
    /// Paths as on the wire, and the way to the place in the message at which it reads the concrete id; empty: it does not.
    pub listed: AHashMap<Box<str>, Arc<[u32]>>,
    /// Whether it takes others too.
    pub allow_any: bool,
}

impl Default for TargetMethods {
    /// Every method, with untouched messages.
    fn default() -> TargetMethods {
        TargetMethods {
            listed: AHashMap::new(),
            allow_any: true,
        }
    }
}

/// A model server process.
pub struct Target {
    /// Never reused.
    pub id: u64,
    /// Where it listens.
    pub address: Address,
    /// It says "not here" by a private trailer.
    pub signals_loss: bool,
    /// It is another instance.
    pub peer: bool,
    /// Requests waiting for a slot here.
    pub queue: Arc<Queue>,
    methods: TargetMethods,
    bound: u32,
    in_flight: AtomicU32,
    away: AtomicBool,
    removed: AtomicBool,
    doubted: AtomicBool,
    links: Mutex<Links>,
}

/// The connections of all loops.
#[derive(Default)]
struct Links {
    up: usize,
    /// Those on which another instance misses pings.
    suspects: usize,
    lost: bool,
}

impl Target {
    /// A target nobody is connected to yet. `bound` 0: any number in flight.
    pub fn new(
        id: u64,
        address: Address,
        bound: u32,
        signals_loss: bool,
        methods: TargetMethods,
    ) -> Target {
        Target {
            id,
            address,
            signals_loss,
            peer: false,
            queue: Arc::default(),
            methods,
            bound,
            in_flight: AtomicU32::new(0),
            away: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            links: Mutex::default(),
        }
    }

    /// The peer port of another instance, which has no bound and takes every method.
    pub fn of_peer(id: u64, address: Address) -> Target {
        Target {
            peer: true,
            ..Target::new(id, address, 0, true, TargetMethods::default())
        }
    }

    /// Whether requests may be sent there.
    pub fn is_there(&self) -> bool {
        !self.away.load(Ordering::SeqCst)
    }

    /// Where it reads the concrete id in messages of this method; empty: nowhere. `None`: it does not take the method.
    pub fn id_path(&self, path: &str) -> Option<Arc<[u32]>> {
        match self.methods.listed.get(path) {
            Some(id_path) => Some(id_path.clone()),
            None => (self.methods.allow_any || self.methods.listed.is_empty()).then(Arc::default),
        }
    }

    /// Forgotten by the control plane.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// Forget it: no request goes there any more.
    pub fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
        self.away.store(true, Ordering::SeqCst);
    }

    /// The control plane is not told about it; requests may be sent all the same.
    pub fn hide(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }

    /// A loop has connected. Returns whether that ended a loss.
    pub fn link_up(&self, events: &Events) -> bool {
        self.relink(events, |links| links.up += 1)
    }

    /// A loop's connection broke (`was_up`, maybe suspected then), or could not be made. Returns whether that ended a loss: the
    /// others are not suspected.
    pub fn link_down(&self, was_up: bool, suspected: bool, events: &Events) -> bool {
        self.relink(events, |links| {
            links.up -= usize::from(was_up);
            links.suspects -= usize::from(suspected);
        })
    }

    /// Another instance misses pings of a loop, or has answered. Returns whether that ended a loss.
    pub fn suspect(&self, suspect: bool, events: &Events) -> bool {
        self.relink(events, |links| {
            if suspect {
                links.suspects += 1;
            } else {
                links.suspects -= 1;
            }
        })
    }

    /// It is lost when nobody is connected, or one of those who are is not answered.
    fn relink(&self, events: &Events, change: impl FnOnce(&mut Links)) -> bool {
        let mut links = self.links.lock();
        change(&mut links);
        let lost = links.up == 0 || links.suspects > 0;
        if std::mem::replace(&mut links.lost, lost) == lost || self.is_removed() {
            return false;
        }
        self.away.store(lost, Ordering::SeqCst);
        events.push(if lost {
            Event::TargetLost { target: self.id }
        } else {
            Event::TargetBack { target: self.id }
        });
        !lost
    }

    /// Whether it matters now that it answers: requests are in flight there, or it did not answer another loop.
    pub fn is_waited_for(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0 || self.doubted.load(Ordering::Relaxed)
    }

    /// It did not answer a loop: the others ask too.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// It answered.
    pub fn believe(&self) {
        self.doubted.store(false, Ordering::Relaxed);
    }

    fn acquire(&self) -> bool {
        acquire_slot(&self.in_flight, self.bound)
    }

    fn release(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.queue.kick();
    }

    /// Whether it has a bound of its own.
    pub fn is_bounded(&self) -> bool {
        self.bound > 0
    }
}

fn acquire_slot(in_flight: &AtomicU32, bound: u32) -> bool {
    if bound == 0 {
        in_flight.fetch_add(1, Ordering::SeqCst);
        return true;
    }
    in_flight
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
            (now < bound).then_some(now + 1)
        })
        .is_ok()
}

/// What happened since the last reading.
#[derive(Default)]
pub struct Usage {
    /// Requests sent.
    pub requests: AtomicU64,
    /// Requests that did not end with OK.
    pub errors: AtomicU64,
    /// The model server's own account.
    pub execution_us: AtomicU64,
    /// Milliseconds since the start of the relay.
    pub last_used_ms: AtomicU64,
    /// On the list of what to report.
    pub dirty: AtomicBool,
}

struct Retirement {
    token: u64,
}

/// A loaded model in one target.
pub struct Replica {
    /// Unique per load.
    pub id: u64,
    /// Which model.
    pub model: Arc<str>,
    /// Where.
    pub target: Arc<Target>,
    /// For the control plane.
    pub usage: Usage,
    /// Whether it fails too often.
    pub circuit: Circuit,
    bound: AtomicU32,
    in_flight: AtomicU32,
    retired: AtomicBool,
    not_here: AtomicBool,
    retirement: Mutex<Option<Retirement>>,
    queue: Arc<Queue>,
    events: Arc<Events>,
}

/// What came of asking for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It counts as in flight now.
    Yes,
    /// All slots are taken.
    Full,
    /// It takes no requests.
    Gone,
}

impl Replica {
    /// A replica that is acquirable. `queue`: the requests that wait for a slot of this model.
    pub fn new(
        id: u64,
        model: Arc<str>,
        target: Arc<Target>,
        bound: u32,
        queue: Arc<Queue>,
        events: Arc<Events>,
    ) -> Replica {
        Replica {
            id,
            model,
            target,
            usage: Usage::default(),
            circuit: Circuit::default(),
            bound: AtomicU32::new(bound),
            in_flight: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            not_here: AtomicBool::new(false),
            retirement: Mutex::new(None),
            queue,
            events,
        }
    }

    /// Whether requests may be sent to it.
    pub fn is_usable(&self) -> bool {
        self.target.is_there()
            && !self.retired.load(Ordering::SeqCst)
            && !self.not_here.load(Ordering::SeqCst)
    }

    /// Requests sent and not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Takes a slot. Counts first and looks at the flags then, so that a retirement that starts meanwhile sees the count.
    pub fn acquire(&self) -> Acquired {
        if !self.is_usable() {
            return Acquired::Gone;
        }
        if !acquire_slot(&self.in_flight, self.bound.load(Ordering::Relaxed)) {
            return Acquired::Full;
        }
        if !self.is_usable() {
            self.undo();
            return Acquired::Gone;
        }
        if !self.target.acquire() {
            self.undo();
            return Acquired::Full;
        }
        Acquired::Yes
    }

    /// Takes back a slot that was not used. Kicks nobody: who found this replica full because of it is kicked by what fills
    /// the target, or was told that the replica is gone; and failing must not make others try and fail in turn.
    fn undo(&self) {
        let last = self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.retired.load(Ordering::SeqCst) {
            self.end_retirement(None, true);
        }
    }

    /// Gives the slot back that [`Replica::acquire`] took.
    pub fn put_back(&self) {
        self.target.release();
        self.release();
    }

    fn release(&self) {
        self.undo();
        self.queue.kick();
    }

    /// Stops acquiring. What queues at its gate looks for another copy, or parks. Whether that is over already.
    pub fn retire(&self, token: u64) -> bool {
        *self.retirement.lock() = Some(Retirement { token });
        self.retired.store(true, Ordering::SeqCst);
        if self.in_flight() == 0 {
            self.end_retirement(None, true);
        }
        self.queue.kick_all();
        self.retirement.lock().is_none()
    }

    /// The time for the retirement with this token is over.
    pub fn retirement_timed_out(&self, token: u64) {
        self.end_retirement(Some(token), false);
    }

    fn end_retirement(&self, token: Option<u64>, clean: bool) {
        let mut retirement = self.retirement.lock();
        if retirement
            .as_ref()
            .is_some_and(|going| token.is_none_or(|token| going.token == token))
            && let Some(Retirement { token }) = retirement.take()
        {
            self.events.push(Event::Retired {
                replica: self.id,
                token,
                clean,
            });
        }
    }

    /// It is listed in a route again: whatever kept it away is over.
    pub fn revive(&self, bound: u32) {
        self.bound.store(bound, Ordering::Relaxed);
        *self.retirement.lock() = None;
        self.retired.store(false, Ordering::SeqCst);
        self.not_here.store(false, Ordering::SeqCst);
    }

    /// Its target said that it does not hold it. Tells the control plane the first time.
    pub fn is_not_here(&self) {
        if !self.not_here.swap(true, Ordering::SeqCst) {
            self.events.push(Event::NotHere {
                model: self.model.clone(),
                replica: self.id,
            });
        }
    }
}

/// Where a model can be served. Swapped whole.
pub struct Route {
    /// The model.
    pub model: Arc<str>,
    /// Where.
    pub replicas: Box<[Arc<Replica>]>,
    /// Requests that wait for a slot.
    pub queue: Arc<Queue>,
    /// The queues of its bounded targets.
    pub targets: Arc<[Arc<Queue>]>,
    /// The id as a header.
    pub model_header: http::HeaderValue,
}

impl Route {
    /// A route over these replicas, which share its queue.
    pub fn new(model: Arc<str>, replicas: Box<[Arc<Replica>]>, queue: Arc<Queue>) -> Route {
        let mut targets: Vec<Arc<Queue>> = Vec::new();
        for replica in replicas
            .iter()
            .filter(|replica| replica.target.is_bounded())
        {
            if !targets
                .iter()
                .any(|queue| Arc::ptr_eq(queue, &replica.target.queue))
            {
                targets.push(replica.target.queue.clone());
            }
        }
        let model_header = crate::id_headers::id_header(&model);
        Route {
            model,
            replicas,
            queue,
            targets: targets.into(),
            model_header,
        }
    }

    /// Whether a request that must avoid these replicas has somewhere to go, now or when a slot is free.
    pub fn is_usable(&self, avoid: &[u64]) -> bool {
        self.replicas
            .iter()
            .any(|replica| replica.is_usable() && !avoid.contains(&replica.id))
    }

    /// Tells the control plane that requests wait, at most once per 50 ms.
    pub fn tell_queueing(&self, now_ms: u64, events: &Events) {
        if self.queue.may_tell(now_ms) {
            let oldest_since = self.queue.oldest().unwrap_or_else(Instant::now);
            events.push(Event::Queueing {
                model: self.model.clone(),
                queued: self.queue.len(),
                oldest_since,
            });
        }
    }
}
