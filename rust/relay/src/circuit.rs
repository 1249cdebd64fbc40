//! Ejection: a copy that fails repeatedly is left alone for a growing time, then tried with one request.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Failures in a row that eject a copy.
pub const FAILURES_MAX: u32 = 5;

/// The first ejection; each further one takes twice as long.
const EJECTED: Duration = Duration::from_secs(1);

const DOUBLINGS_MAX: u32 = 6;

/// Whether a copy takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Closed,
    /// It does not.
    Open,
    /// One request may try.
    HalfOpen,
}

/// One copy's record. Times are milliseconds since a common start.
#[derive(Default)]
pub struct Circuit {
    failures: AtomicU32,
    ejections: AtomicU32,
    open_until: AtomicU64,
    probing: AtomicBool,
}

impl Circuit {
    /// The state at `now_ms`.
    pub fn state(&self, now_ms: u64) -> State {
        match self.open_until.load(Ordering::Relaxed) {
            0 => State::Closed,
            until if now_ms < until => State::Open,
            _ if self.probing.load(Ordering::Relaxed) => State::Open,
            _ => State::HalfOpen,
        }
    }

    /// Whether this request is the one that tries.
    pub fn start_probe(&self) -> bool {
        !self.probing.swap(true, Ordering::Relaxed)
    }

    /// The probe ended without an answer.
    pub fn end_probe(&self) {
        self.probing.store(false, Ordering::Relaxed);
    }

    /// It answered.
    pub fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.open_until.load(Ordering::Relaxed) != 0 {
            self.open_until.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
        }
    }

    /// It failed. `may_eject`: enough others are left. Returns whether it is ejected now.
    pub fn failed(&self, now_ms: u64, may_eject: impl FnOnce() -> bool) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let ejects = match self.open_until.load(Ordering::Relaxed) {
            0 => failures >= FAILURES_MAX && may_eject(),
            // What was sent before it was ejected says nothing new.
            until if now_ms < until => false,
            _ => true,
        };
        if !ejects {
            return false;
        }
        let doublings = self
            .ejections
            .fetch_add(1, Ordering::Relaxed)
            .min(DOUBLINGS_MAX);
        let until = now_ms + (EJECTED.as_millis() as u64) * (1 << doublings);
        self.open_until.store(until.max(1), Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_eject_and_one_request_tries_again() {
        let circuit = Circuit::default();
        for _ in 1..FAILURES_MAX {
            assert!(!circuit.failed(10, || true));
        }
        circuit.succeeded();
        for _ in 1..FAILURES_MAX {
            assert!(!circuit.failed(10, || true));
        }
        assert!(circuit.failed(10, || true));
        assert_eq!(circuit.state(1009), State::Open);
        assert_eq!(circuit.state(1010), State::HalfOpen);
        assert!(circuit.start_probe());
        assert!(!circuit.start_probe());
        assert_eq!(circuit.state(1010), State::Open);
        assert!(circuit.failed(1010, || unreachable!()));
        circuit.end_probe();
        assert_eq!(
            circuit.state(3009),
            State::Open,
            "the second time is twice as long"
        );
        assert_eq!(circuit.state(3010), State::HalfOpen);
        circuit.succeeded();
        assert_eq!(circuit.state(3010), State::Closed);
    }

    #[test]
    fn who_is_needed_stays() {
        let circuit = Circuit::default();
        for _ in 0..100 {
            assert!(!circuit.failed(1, || false));
        }
        assert_eq!(circuit.state(1), State::Closed);
    }
}
