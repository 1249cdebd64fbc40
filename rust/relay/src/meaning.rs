//! What a name stands for: a model; or two, while one of them is tried out on a share of the requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// 2^64 divided by the golden ratio: its multiples, modulo 2^64, are spread as evenly as can be however many there are.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// All requests are for this model.
    Model(Arc<str>),
    /// They are shared.
    Split(Arc<Split>),
}

/// Two models that share the requests for a name.
#[derive(Debug)]
pub struct Split {
    model: Arc<str>,
    canary: Arc<str>,
    share: u64,
    turns: AtomicU64,
}

impl Meaning {
    /// `share` of the requests, 0 to 1, are for `canary`, the others for `model`.
    pub fn split(model: &str, canary: &str, share: f64) -> Meaning {
        Meaning::Split(Arc::new(Split {
            model: Arc::from(model),
            canary: Arc::from(canary),
            // Saturates: a share of 1 is all of them but one in 2^64.
            share: (share * 2f64.powi(64)) as u64,
            turns: AtomicU64::new(0),
        }))
    }

    /// The model that requests wait for, and that those are for which are not shared.
    pub fn model(&self) -> &Arc<str> {
        match self {
            Meaning::Model(model) => model,
            Meaning::Split(split) => &split.model,
        }
    }
}

impl Split {
    /// The model that is tried out.
    pub fn canary(&self) -> &Arc<str> {
        &self.canary
    }

    /// Takes the next turn. Whether it is the canary's: of any number of turns in a row its share is, give or take one.
    pub fn take_turn(&self) -> bool {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        // From the middle, so that the first request is for the canary only when half of them are.
        turn.wrapping_mul(STEP).wrapping_add(1 << 63) < self.share
    }
}

/// Which of two models a call is for. Decided once, when it first looks, and then only changed to the one that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has not looked.
    Open,
    /// The canary, as long as it has a copy that can be asked.
    Canary,
    /// The other.
    Model,
}

#[cfg(test)]
mod tests {
    use super::{Meaning, Split};
    use std::sync::Arc;

    fn split(share: f64) -> Arc<Split> {
        match Meaning::split("m", "c", share) {
            Meaning::Split(split) => split,
            Meaning::Model(_) => unreachable!(),
        }
    }

    #[test]
    fn a_share_is_kept_from_the_first_turns_on() {
        for share in [0.0, 0.01, 0.05, 0.25, 0.5, 0.9, 1.0] {
            let split = split(share);
            let mut taken = 0;
            for turn in 1..=20_000 {
                taken += u32::from(split.take_turn());
                let wanted = share * f64::from(turn);
                assert!((f64::from(taken) - wanted).abs() < 3.0, "{share} {turn}");
            }
        }
    }

    #[test]
    fn a_small_share_does_not_begin_with_the_canary() {
        assert!(!split(0.05).take_turn());
        assert!(split(1.0).take_turn());
    }
}
