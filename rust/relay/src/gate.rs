//! Waiting for a slot: a queue in deadline order that spans the loops.
//!
//! A request stays in its queue until it holds a slot, so a newcomer sees that others are before it. A freed slot wakes
//! the first that is not awake yet; who is woken and cannot use the slot, or leaves, passes the kick on.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How often the control plane is told of a queue, at most.
pub const TELL_EVERY: Duration = Duration::from_millis(50);

type Order = (Instant, u64);

/// Requests in deadline order.
#[derive(Default)]
pub struct Queue {
    len: AtomicUsize,
    sequence: AtomicU64,
    told_ms: AtomicU64,
    waiting: Mutex<BTreeMap<Order, Arc<Waiter>>>,
}

struct Waiter {
    woken: AtomicBool,
    kick: Notify,
    since: Instant,
}

impl Queue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::SeqCst)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Since when the oldest waits.
    pub fn oldest(&self) -> Option<Instant> {
        self.waiting
            .lock()
            .values()
            .map(|waiter| waiter.since)
            .min()
    }

    /// Whether the control plane may be told at `now_ms` that requests wait; at most once per 50 ms.
    pub fn may_tell(&self, now_ms: u64) -> bool {
        let told = self.told_ms.load(Ordering::Relaxed);
        let due = told == 0 || now_ms >= told + TELL_EVERY.as_millis() as u64;
        let now = now_ms.max(1);
        due && self
            .told_ms
            .compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// A slot is free: wake the first that is not awake.
    pub fn kick(&self) {
        if !self.is_empty() {
            self.kick_from(Bound::Unbounded);
        }
    }

    /// Everything may have changed: all look again.
    pub fn kick_all(&self) {
        for waiter in self.waiting.lock().values() {
            waiter.wake();
        }
    }

    fn kick_from(&self, start: Bound<Order>) {
        let waiting = self.waiting.lock();
        for (_, waiter) in waiting.range((start, Bound::Unbounded)) {
            if waiter.wake() {
                return;
            }
        }
    }

    fn join(&self, order: Order, waiter: &Arc<Waiter>) {
        let mut waiting = self.waiting.lock();
        waiting.insert(order, waiter.clone());
        self.len.store(waiting.len(), Ordering::SeqCst);
    }

    fn leave(&self, order: Order) {
        let mut waiting = self.waiting.lock();
        waiting.remove(&order);
        self.len.store(waiting.len(), Ordering::SeqCst);
    }
}

impl Waiter {
    /// Whether this call woke it.
    fn wake(&self) -> bool {
        let first = !self.woken.swap(true, Ordering::SeqCst);
        if first {
            self.kick.notify_one();
        }
        first
    }
}

/// A place in the queue of a model and in those of its bounded targets.
pub struct Place {
    order: Order,
    waiter: Arc<Waiter>,
    model: Arc<Queue>,
    targets: Arc<[Arc<Queue>]>,
    kicked: bool,
}

impl Place {
    /// Queues; `None` when `bound` wait already.
    pub fn take(
        model: &Arc<Queue>,
        targets: &Arc<[Arc<Queue>]>,
        deadline: Instant,
        bound: usize,
    ) -> Option<Place> {
        if model.len() >= bound {
            return None;
        }
        let order = (deadline, model.sequence.fetch_add(1, Ordering::Relaxed));
        let waiter = Arc::new(Waiter {
            woken: AtomicBool::new(false),
            kick: Notify::new(),
            since: Instant::now(),
        });
        // Sequences of different models may be equal: a target's queue has an order of its own.
        let place = Place {
            order,
            waiter,
            model: model.clone(),
            targets: targets.clone(),
            kicked: false,
        };
        place.model.join(order, &place.waiter);
        for target in place.targets.iter() {
            target.join(place.order_at(), &place.waiter);
        }
        Some(place)
    }

    fn order_at(&self) -> Order {
        (self.order.0, Arc::as_ptr(&self.waiter) as usize as u64)
    }

    /// Whether this place is in these queues.
    pub fn is_in(&self, model: &Arc<Queue>, targets: &Arc<[Arc<Queue>]>) -> bool {
        Arc::ptr_eq(&self.model, model) && Arc::ptr_eq(&self.targets, targets)
    }

    /// Whether it may take a slot now: it was kicked, or nobody is before it.
    pub fn may_go(&self) -> bool {
        self.kicked || self.model.waiting.lock().keys().next() == Some(&self.order)
    }

    /// Waits for a kick. The kick before this one could not be used, so it goes to those behind.
    pub async fn kicked(&mut self) {
        if std::mem::take(&mut self.kicked) {
            self.pass_on();
        }
        self.waiter.kick.notified().await;
        // From here on the next freed slot kicks it again: it may come just after looking in vain.
        self.waiter.woken.store(false, Ordering::SeqCst);
        self.kicked = true;
    }

    /// Leaves with a slot: the kick, if there was one, is used.
    pub fn served(mut self) {
        self.kicked = false;
    }

    fn pass_on(&self) {
        self.model.kick_from(Bound::Excluded(self.order));
        for target in self.targets.iter() {
            target.kick_from(Bound::Excluded(self.order_at()));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.model.leave(self.order);
        for target in self.targets.iter() {
            target.leave(self.order_at());
        }
        if self.kicked || self.waiter.woken.load(Ordering::SeqCst) {
            self.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn none() -> Arc<[Arc<Queue>]> {
        Arc::from([])
    }

    fn is_kicked(place: &mut Place) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(place.kicked()).poll(&mut context).is_ready()
    }

    #[test]
    fn kicks_go_by_deadline_and_are_passed_on() {
        let queue = Arc::new(Queue::default());
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut late = Place::take(&queue, &none(), at(300), 8).expect("room");
        let mut soon = Place::take(&queue, &none(), at(100), 8).expect("room");
        let mut middle = Place::take(&queue, &none(), at(200), 8).expect("room");
        queue.kick();
        assert!(is_kicked(&mut soon));
        assert!(!is_kicked(&mut middle));
        drop(soon);
        assert!(
            is_kicked(&mut middle),
            "who leaves after a kick passes it on"
        );
        middle.served();
        assert!(!is_kicked(&mut late), "a used kick is not passed on");
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn the_queue_is_bounded() {
        let queue = Arc::new(Queue::default());
        let first = Place::take(&queue, &none(), Instant::now(), 1).expect("room");
        assert!(Place::take(&queue, &none(), Instant::now(), 1).is_none());
        drop(first);
        assert!(Place::take(&queue, &none(), Instant::now(), 1).is_some());
        assert!(queue.is_empty());
    }

    #[test]
    fn a_target_wakes_waiters_of_any_model() {
        let (one, other, target) = (
            Arc::new(Queue::default()),
            Arc::new(Queue::default()),
            Arc::new(Queue::default()),
        );
        let targets: Arc<[Arc<Queue>]> = Arc::from([target.clone()]);
        let now = Instant::now();
        let mut first = Place::take(&one, &targets, now, 8).expect("room");
        let mut second =
            Place::take(&other, &targets, now + Duration::from_secs(1), 8).expect("room");
        target.kick();
        target.kick();
        assert!(is_kicked(&mut first) && is_kicked(&mut second));
        drop((first, second));
        assert!(target.is_empty());
    }
}
