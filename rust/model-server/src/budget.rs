//! The memory of requests: bodies being read, waiting and running, bounded in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bound on bytes held at the same time.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    held: AtomicUsize,
}

/// Bytes held until this is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Nothing held of `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            held: AtomicUsize::new(0),
        })
    }

    /// Holds `bytes`; `None` when that exceeds the bound.
    #[must_use]
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let mut held = self.held.load(Ordering::Relaxed);
        loop {
            let more = held
                .checked_add(bytes)
                .filter(|more| *more <= self.bytes_max)?;
            match self
                .held
                .compare_exchange_weak(held, more, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Some(Charge {
                        budget: self.clone(),
                        bytes,
                    });
                }
                Err(now) => held = now,
            }
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_charged_again() {
        let budget = Budget::new(10);
        let six = budget.charge(6).unwrap();
        assert!(budget.charge(5).is_none());
        assert!(budget.charge(usize::MAX).is_none());
        let four = budget.charge(4).unwrap();
        drop(six);
        assert!(budget.charge(6).is_some());
        drop(four);
        assert!(budget.charge(10).is_some());
    }
}
