//! How many retries are allowed: a share of the requests, plus a floor for quiet times.

use std::cell::Cell;
use std::time::Instant;

/// Retries per second allowed in any case, over all loops.
pub const FLOOR_PER_SECOND: f64 = 10.0;

/// Retries that may be saved up in seconds of quiet.
const SAVED_MAX: f64 = 100.0;

/// One loop's share.
pub struct Budget {
    ratio: f64,
    floor: f64,
    tokens: Cell<f64>,
    filled: Cell<Instant>,
}

impl Budget {
    /// A budget for one of `loops` loops; starts with one second's floor.
    pub fn new(ratio: f64, loops: usize, now: Instant) -> Budget {
        let floor = FLOOR_PER_SECOND / loops.max(1) as f64;
        Budget {
            ratio,
            floor,
            tokens: Cell::new(floor.max(1.0)),
            filled: Cell::new(now),
        }
    }

    /// A request came.
    pub fn deposit(&self) {
        self.tokens
            .set((self.tokens.get() + self.ratio).min(SAVED_MAX));
    }

    /// Whether a retry is allowed now; it counts if so.
    pub fn withdraw(&self, now: Instant) -> bool {
        let quiet = now
            .saturating_duration_since(self.filled.replace(now))
            .as_secs_f64();
        let floor = (quiet * self.floor).min(self.floor.max(1.0));
        let tokens = (self.tokens.get() + floor).min(SAVED_MAX);
        let allowed = tokens >= 1.0;
        self.tokens.set(if allowed { tokens - 1.0 } else { tokens });
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_share_of_the_requests_may_be_retried() {
        let start = Instant::now();
        let budget = Budget::new(0.1, 1, start);
        while budget.withdraw(start) {}
        for _ in 0..105 {
            budget.deposit();
        }
        let allowed = (0..100).filter(|_| budget.withdraw(start)).count();
        assert_eq!(allowed, 10);
    }

    #[test]
    fn quiet_times_have_a_floor_that_does_not_pile_up() {
        let start = Instant::now();
        let budget = Budget::new(0.0, 1, start);
        while budget.withdraw(start) {}
        let later = start + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| budget.withdraw(later)).count(), 10);
        let soon = later + Duration::from_millis(250);
        assert_eq!((0..100).filter(|_| budget.withdraw(soon)).count(), 2);
    }
}
