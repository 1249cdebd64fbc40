//! A space of keys: what is known of each, who waits until it is known, and what was said meanwhile.
//!
//! There are two: names (known: the model) and models (known: the route). Waiting is decided under the lock of the
//! key's shard, so nothing can be published between looking and parking.

use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ahash::{AHashMap, RandomState};
use parking_lot::{Mutex, RwLock};
use slab::Slab;
use tokio::sync::oneshot;

use crate::event::{Event, Events, Told};
use crate::name::Name;
use crate::status::{Code, Status};

const SHARDS: usize = 64;

/// Refusals and expectations remembered per space; the oldest go first.
pub const NOTES_MAX: usize = 10_000;

/// A key, as events tell it.
pub trait Key: Clone + Eq + Hash {
    /// The model, when the key is one.
    fn model(&self) -> Option<&Arc<str>>;
}

impl Key for Name {
    fn model(&self) -> Option<&Arc<str>> {
        None
    }
}

impl Key for Arc<str> {
    fn model(&self) -> Option<&Arc<str>> {
        Some(self)
    }
}

/// Why a parked request goes on.
#[derive(Clone, Debug)]
pub enum Wake {
    /// Look again.
    Resume,
    /// Give this answer.
    Refused(Status),
}

/// What came of the wish to wait.
pub enum Parked<'a, K: Key, V: Clone> {
    /// No need: it became known.
    Known(V),
    /// Not allowed.
    Refused(Status),
    /// Parked.
    Waiting(Ticket<'a, K, V>),
}

/// Who waits.
pub struct Waiter {
    /// What the request asked for.
    pub name: Name,
    /// When it gives up.
    pub deadline: Instant,
    /// What the control plane is to hear of its headers.
    pub told: Told,
}

/// The waiting requests of one key right now.
#[derive(Debug, PartialEq)]
pub struct Waiting<K> {
    /// For what.
    pub key: K,
    /// How many.
    pub waiting: usize,
    /// Since when the first does.
    pub oldest: Instant,
    /// When the last gives up.
    pub latest_deadline: Instant,
}

struct Parking {
    generation: u64,
    waiter: Waiter,
    since: Instant,
    wake: oneshot::Sender<Wake>,
}

#[derive(Default)]
struct Note {
    refusal: Option<(Status, Instant)>,
    ready_at: Option<Instant>,
}

impl Note {
    fn verdict(&self, now: Instant, deadline: Instant, key: &impl Key) -> Option<Status> {
        if let Some((status, until)) = &self.refusal
            && *until > now
        {
            return Some(status.clone());
        }
        let ready_at = self.ready_at.filter(|at| *at > now && *at > deadline)?;
        Some(too_late(key, ready_at - now))
    }

    fn over(&self, now: Instant) -> bool {
        self.refusal.as_ref().is_none_or(|(_, until)| *until <= now)
            && self.ready_at.is_none_or(|at| at <= now)
    }
}

fn too_late(key: &impl Key, wait: Duration) -> Status {
    let model = key.model().map_or("", |model| model);
    let sentence = format!(
        "Model {model} will be loaded in about {} ms, after the deadline of this request; allow more time or come back then.",
        wait.as_millis()
    );
    Status::new(Code::ResourceExhausted, sentence).retry_after(wait)
}

struct Shard<K, V> {
    known: AHashMap<K, V>,
    rooms: AHashMap<K, Slab<Parking>>,
    notes: AHashMap<K, Note>,
}

/// See the module.
pub struct Space<K, V> {
    shards: Box<[RwLock<Shard<K, V>>]>,
    hasher: RandomState,
    generation: AtomicU64,
    noted: Mutex<VecDeque<K>>,
    events: Arc<Events>,
}

impl<K: Key, V: Clone> Space<K, V> {
    /// Nothing known, nobody waiting.
    pub fn new(events: Arc<Events>) -> Self {
        let shard = || {
            RwLock::new(Shard {
                known: AHashMap::new(),
                rooms: AHashMap::new(),
                notes: AHashMap::new(),
            })
        };
        Space {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            generation: AtomicU64::new(0),
            noted: Mutex::new(VecDeque::new()),
            events,
        }
    }

    fn shard(&self, key: &K) -> &RwLock<Shard<K, V>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// What is known of a key.
    pub fn get(&self, key: &K) -> Option<V> {
        self.shard(key).read().known.get(key).cloned()
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.read().known.len())
            .sum()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for a key unless something `usable` is known of it. The first to wait tells the control plane.
    pub fn park(
        &self,
        key: &K,
        waiter: Waiter,
        usable: impl FnOnce(&V) -> bool,
    ) -> Parked<'_, K, V> {
        let now = Instant::now();
        let mut shard = self.shard(key).write();
        if let Some(value) = shard.known.get(key)
            && usable(value)
        {
            return Parked::Known(value.clone());
        }
        if let Some(status) = shard
            .notes
            .get(key)
            .and_then(|note| note.verdict(now, waiter.deadline, key))
        {
            return Parked::Refused(status);
        }
        let first = !shard.rooms.contains_key(key);
        if first {
            if self.events.is_full() {
                return Parked::Refused(overwhelmed());
            }
            self.events.push(Event::Fault {
                name: waiter.name.clone(),
                model: key.model().cloned(),
                waiting: 1,
                deadline: waiter.deadline,
                told: waiter.told.clone(),
            });
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let (wake, woken) = oneshot::channel();
        let slot = shard.rooms.entry(key.clone()).or_default().insert(Parking {
            generation,
            waiter,
            since: now,
            wake,
        });
        Parked::Waiting(Ticket {
            space: self,
            key: key.clone(),
            slot,
            generation,
            woken,
        })
    }

    /// Makes a key known, ends what was said about it, and lets all that wait look again. Returns what was known before.
    pub fn set(&self, key: &K, value: V) -> Option<V> {
        let mut shard = self.shard(key).write();
        shard.notes.remove(key);
        let before = shard.known.insert(key.clone(), value);
        let room = shard.rooms.remove(key);
        drop(shard);
        wake_all(
            room.into_iter().flatten().map(|(_, parking)| parking),
            &Wake::Resume,
        );
        before
    }

    /// Makes a key unknown; who waits keeps waiting. `forgive`: a refusal ends too.
    pub fn remove(&self, key: &K, forgive: bool) -> Option<V> {
        let mut shard = self.shard(key).write();
        if forgive {
            shard.notes.remove(key);
        }
        shard.known.remove(key)
    }

    /// Lets all that wait for a key look again, and tells nobody: they announce themselves anew if they have to wait.
    pub fn wake(&self, key: &K) {
        let room = self.shard(key).write().rooms.remove(key);
        wake_all(
            room.into_iter().flatten().map(|(_, parking)| parking),
            &Wake::Resume,
        );
    }

    /// Lets those that wait for a key and match look again; if none stays, the wait for this key was abandoned.
    pub fn wake_where(&self, key: &K, matches: impl Fn(&Waiter) -> bool) {
        self.evict(key, &Wake::Resume, matches, true);
    }

    /// Answers all that wait, and for `cache` all that come.
    pub fn refuse(&self, key: &K, status: Status, cache: Duration) {
        let mut shard = self.shard(key).write();
        let room = shard.rooms.remove(key);
        if !cache.is_zero() {
            let note = Note {
                refusal: Some((status.clone(), Instant::now() + cache)),
                ready_at: None,
            };
            let fresh = shard.notes.insert(key.clone(), note).is_none();
            drop(shard);
            self.bound_notes(fresh.then(|| key.clone()));
        } else {
            drop(shard);
        }
        wake_all(
            room.into_iter().flatten().map(|(_, parking)| parking),
            &Wake::Refused(status),
        );
    }

    /// Refuses who cannot wait until then, now and later.
    pub fn expect(&self, key: &K, ready_in: Duration) {
        let ready_at = Instant::now() + ready_in;
        let mut shard = self.shard(key).write();
        let fresh = !shard.notes.contains_key(key);
        shard.notes.entry(key.clone()).or_default().ready_at = Some(ready_at);
        drop(shard);
        self.bound_notes(fresh.then(|| key.clone()));
        // To be answered is not to leave: if none stays, nothing was abandoned.
        self.evict(
            key,
            &Wake::Refused(too_late(key, ready_in)),
            |waiter| waiter.deadline < ready_at,
            false,
        );
    }

    /// Who waits, for each key that somebody waits for.
    pub fn waiting(&self) -> Vec<Waiting<K>> {
        let mut rows = Vec::new();
        for shard in &self.shards {
            for (key, room) in &shard.read().rooms {
                let oldest = room.iter().map(|(_, parking)| parking.since).min();
                let latest = room
                    .iter()
                    .map(|(_, parking)| parking.waiter.deadline)
                    .max();
                if let (Some(oldest), Some(latest_deadline)) = (oldest, latest) {
                    rows.push(Waiting {
                        key: key.clone(),
                        waiting: room.len(),
                        oldest,
                        latest_deadline,
                    });
                }
            }
        }
        rows
    }

    /// The keys that somebody waits for although something is known of them.
    pub fn waiting_known(&self) -> Vec<(K, V)> {
        let mut rows = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            rows.extend(
                shard
                    .rooms
                    .keys()
                    .filter_map(|key| Some((key.clone(), shard.known.get(key)?.clone()))),
            );
        }
        rows
    }

    /// Wakes who matches; `tell` the control plane if none stays.
    fn evict(&self, key: &K, wake: &Wake, matches: impl Fn(&Waiter) -> bool, tell: bool) {
        let mut shard = self.shard(key).write();
        let Some(room) = shard.rooms.get_mut(key) else {
            return;
        };
        let slots: Vec<usize> = room
            .iter()
            .filter(|(_, parking)| matches(&parking.waiter))
            .map(|(slot, _)| slot)
            .collect();
        let leaving: Vec<Parking> = slots.into_iter().map(|slot| room.remove(slot)).collect();
        if room.is_empty() {
            shard.rooms.remove(key);
            if let Some(last) = leaving.last().filter(|_| tell) {
                self.abandoned(key, last.waiter.name.clone());
            }
        }
        drop(shard);
        wake_all(leaving.into_iter(), wake);
    }

    fn leave(&self, key: &K, slot: usize, generation: u64) {
        let mut shard = self.shard(key).write();
        let Some(room) = shard.rooms.get_mut(key) else {
            return;
        };
        if room
            .get(slot)
            .is_none_or(|parking| parking.generation != generation)
        {
            return;
        }
        let parking = room.remove(slot);
        if room.is_empty() {
            shard.rooms.remove(key);
            self.abandoned(key, parking.waiter.name);
        }
    }

    fn abandoned(&self, key: &K, name: Name) {
        self.events.push(Event::Abandoned {
            name,
            model: key.model().cloned(),
        });
    }

    fn bound_notes(&self, fresh: Option<K>) {
        let mut noted = self.noted.lock();
        noted.extend(fresh);
        let now = Instant::now();
        // A few per call: whatever comes in goes out, so the work stays constant and the number bounded.
        for _ in 0..4 {
            let Some(oldest) = noted.pop_front() else {
                return;
            };
            let mut shard = self.shard(&oldest).write();
            let over = shard.notes.get(&oldest).is_none_or(|note| note.over(now));
            if over || noted.len() >= NOTES_MAX {
                shard.notes.remove(&oldest);
            } else {
                drop(shard);
                noted.push_front(oldest);
                return;
            }
        }
    }
}

fn overwhelmed() -> Status {
    Status::new(
        Code::Unavailable,
        "More requests for unloaded models arrive than can be decided on; try again.",
    )
    .retry_after(Duration::from_secs(1))
}

fn wake_all(leaving: impl Iterator<Item = Parking>, wake: &Wake) {
    for parking in leaving {
        // A waiter that just left needs no answer.
        let _ = parking.wake.send(wake.clone());
    }
}

/// A place in a waiting room; dropping it leaves the room.
pub struct Ticket<'a, K: Key, V: Clone> {
    space: &'a Space<K, V>,
    key: K,
    slot: usize,
    generation: u64,
    woken: oneshot::Receiver<Wake>,
}

impl<K: Key, V: Clone> Ticket<'_, K, V> {
    /// Resolves when the wait is over. Never while nothing happens: the caller keeps the deadline.
    pub fn poll_woken(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Wake> {
        use std::future::Future;
        std::pin::Pin::new(&mut self.woken)
            .poll(cx)
            .map(|woken| woken.unwrap_or(Wake::Resume))
    }
}

impl<K: Key, V: Clone> Drop for Ticket<'_, K, V> {
    fn drop(&mut self) {
        self.space.leave(&self.key, self.slot, self.generation);
    }
}

#[cfg(test)]
#[path = "space_tests.rs"]
mod tests;
