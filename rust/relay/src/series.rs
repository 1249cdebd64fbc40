//! Which models have series of their own in the histograms: opted into, and bounded. Models beyond the bound share one place;
//! a model that nobody asked for in an hour gives its place away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;
use parking_lot::RwLock;

/// The number of what has no model, or of all when there are no series per model.
pub const NONE: u64 = 0;

/// The number of the models beyond the bound.
pub const OTHERS: u64 = 1;

/// How those are labelled.
const OTHERS_LABEL: &str = "other";

/// After this a place may be given away.
const IDLE_MS: u64 = 3_600_000;

/// How often at most one is looked for: that costs a look at all of them.
const LOOK_EVERY_MS: u64 = 1_000;

/// The model, and the vmodel it was asked for by or an empty text.
pub type Key = (Arc<str>, Arc<str>);

struct Place {
    number: u64,
    last_used_ms: AtomicU64,
}

struct Places {
    by_key: AHashMap<Key, Place>,
    next: u64,
    looked_ms: u64,
}

/// See the module. Numbers are never used again.
pub struct Series {
    max: usize,
    places: RwLock<Places>,
}

impl Series {
    /// At most `max` places; 0: there are no series per model.
    pub fn new(max: usize) -> Series {
        let places = Places {
            by_key: AHashMap::new(),
            next: OTHERS + 1,
            looked_ms: 0,
        };
        Series {
            max,
            places: RwLock::new(places),
        }
    }

    /// Whether there are any.
    pub fn wanted(&self) -> bool {
        self.max > 0
    }

    /// The number of a model, and the one whose place it took: nothing is counted under that any more.
    pub fn number(&self, key: Key, now_ms: u64) -> (u64, Option<u64>) {
        if self.max == 0 {
            return (NONE, None);
        }
        if let Some(place) = self.places.read().by_key.get(&key) {
            place.last_used_ms.store(now_ms, Ordering::Relaxed);
            return (place.number, None);
        }
        let mut places = self.places.write();
        if let Some(place) = places.by_key.get(&key) {
            return (place.number, None);
        }
        let gone = if places.by_key.len() < self.max {
            None
        } else if let Some(idle) = places.take_idle(now_ms) {
            Some(idle)
        } else {
            return (OTHERS, None);
        };
        let number = places.next;
        places.next += 1;
        let last_used_ms = AtomicU64::new(now_ms);
        let place = Place {
            number,
            last_used_ms,
        };
        places.by_key.insert(key, place);
        (number, gone)
    }

    /// What the numbers stand for.
    pub fn keys(&self) -> AHashMap<u64, Key> {
        let places = self.places.read();
        let taken = places.by_key.iter();
        let mut keys: AHashMap<u64, Key> = taken
            .map(|(key, place)| (place.number, key.clone()))
            .collect();
        keys.insert(NONE, (Arc::from(""), Arc::from("")));
        keys.insert(OTHERS, (Arc::from(OTHERS_LABEL), Arc::from("")));
        keys
    }
}

impl Places {
    fn take_idle(&mut self, now_ms: u64) -> Option<u64> {
        if now_ms < self.looked_ms + LOOK_EVERY_MS {
            return None;
        }
        self.looked_ms = now_ms;
        let used = |place: &Place| place.last_used_ms.load(Ordering::Relaxed);
        let (key, place) = self.by_key.iter().min_by_key(|(_, place)| used(place))?;
        if used(place) + IDLE_MS > now_ms {
            return None;
        }
        let (key, number) = (key.clone(), place.number);
        self.by_key.remove(&key);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str) -> Key {
        (Arc::from(model), Arc::from(""))
    }

    #[test]
    fn none_unless_wanted() {
        assert_eq!(Series::new(0).number(key("a"), 0), (NONE, None));
    }

    #[test]
    fn places_are_bounded_and_idle_ones_given_away() {
        let series = Series::new(2);
        let (a, b) = (series.number(key("a"), 0).0, series.number(key("b"), 0).0);
        assert_ne!(a, b);
        assert_eq!(series.number(key("a"), IDLE_MS - 1).0, a);
        assert_eq!(series.number(key("c"), IDLE_MS - 1), (OTHERS, None));
        // Looked for a moment ago.
        assert_eq!(series.number(key("c"), IDLE_MS), (OTHERS, None));
        let (c, gone) = series.number(key("c"), IDLE_MS + LOOK_EVERY_MS);
        assert_eq!(gone, Some(b));
        assert!(c > b);
        let keys = series.keys();
        assert_eq!((&*keys[&c].0, &*keys[&OTHERS].0), ("c", "other"));
        assert!(!keys.contains_key(&b));
    }
}
