//! What the relay counts: totals, and histograms with the predecessor's names and buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::AHashMap;
use parking_lot::{Mutex, RwLock};

use crate::status::Code;

/// Bounds of the time histograms, in milliseconds.
pub const MILLISECONDS: [f64; 19] = [
    0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 75.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0,
    10_000.0, 20_000.0, 60_000.0, 120_000.0, 300_000.0,
];

/// Bounds of the size histograms: 128 B times 4 to the 0th … 7th.
pub const BYTES: [f64; 8] = [
    128.0,
    512.0,
    2048.0,
    8192.0,
    32_768.0,
    131_072.0,
    524_288.0,
    2_097_152.0,
];

/// What is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Metric {
    ApiRequest,
    InvokeModel,
    RequestSize,
    ResponseSize,
    CacheMiss,
    QueueDelay,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 6] = [
        Metric::ApiRequest,
        Metric::InvokeModel,
        Metric::RequestSize,
        Metric::ResponseSize,
        Metric::CacheMiss,
        Metric::QueueDelay,
    ];

    /// As it is exposed.
    pub fn name(self) -> &'static str {
        match self {
            Metric::ApiRequest => "modelmesh_api_request_milliseconds",
            Metric::InvokeModel => "modelmesh_invoke_model_milliseconds",
            Metric::RequestSize => "modelmesh_request_size_bytes",
            Metric::ResponseSize => "modelmesh_response_size_bytes",
            Metric::CacheMiss => "modelmesh_cache_miss_milliseconds",
            Metric::QueueDelay => "modelmesh_req_queue_delay_milliseconds",
        }
    }

    /// Its bucket bounds, without +Inf.
    pub fn bounds(self) -> &'static [f64] {
        match self {
            Metric::RequestSize | Metric::ResponseSize => &BYTES,
            _ => &MILLISECONDS,
        }
    }
}

/// Observations per bucket; the last is +Inf.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Not cumulative.
    pub counts: Vec<u64>,
    /// Of all observations.
    pub sum: f64,
}

impl Histogram {
    fn observe(&mut self, bounds: &[f64], value: f64) {
        if self.counts.is_empty() {
            self.counts = vec![0; bounds.len() + 1];
        }
        let bucket = bounds
            .iter()
            .position(|bound| value <= *bound)
            .unwrap_or(bounds.len());
        self.counts[bucket] += 1;
        self.sum += value;
    }

    fn add(&mut self, other: &Histogram) {
        self.counts
            .resize(other.counts.len().max(self.counts.len()), 0);
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }
}

/// The metric, the number of the method's label, the code, and the number of the model's series.
pub type Key = (Metric, usize, Code, u64);

/// The histograms of one loop; only its thread observes, so the lock is free.
#[derive(Default)]
pub struct Histograms {
    all: Mutex<AHashMap<Key, Histogram>>,
}

impl Histograms {
    /// Several observations of one call at once, as far as there are any.
    pub fn observe<const N: usize>(
        &self,
        label: usize,
        code: Code,
        series: u64,
        values: [Option<(Metric, f64)>; N],
    ) {
        let mut all = self.all.lock();
        for (metric, value) in values.into_iter().flatten() {
            all.entry((metric, label, code, series))
                .or_default()
                .observe(metric.bounds(), value);
        }
    }

    /// Forgets those of one model.
    pub fn forget(&self, series: u64) {
        self.all.lock().retain(|key, _| key.3 != series);
    }

    /// Adds these to those of other loops.
    pub fn add_to(&self, sum: &mut AHashMap<Key, Histogram>) {
        for (key, histogram) in self.all.lock().iter() {
            sum.entry(*key).or_default().add(histogram);
        }
    }
}

/// A duration as the histograms want it.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Method labels, numbered. Clients may invent methods: those beyond the bound share one label.
#[derive(Default)]
pub struct Labels {
    names: RwLock<Vec<Box<str>>>,
}

/// Distinct method labels.
const LABELS_MAX: usize = 200;

/// The label of the methods beyond.
const OTHER: &str = "other";

impl Labels {
    /// The number of a method's label.
    pub fn number(&self, name: &str) -> usize {
        let mut names = self.names.write();
        if let Some(at) = names.iter().position(|known| **known == *name) {
            return at;
        }
        if names.len() > LABELS_MAX {
            return LABELS_MAX;
        }
        let label = if names.len() == LABELS_MAX {
            OTHER
        } else {
            name
        };
        names.push(label.into());
        names.len() - 1
    }

    /// The label with this number; empty when there is none (metrics without one).
    pub fn name(&self, number: usize) -> Box<str> {
        self.names.read().get(number).cloned().unwrap_or_default()
    }
}

/// The label of metrics that have none.
pub const NO_LABEL: usize = usize::MAX;

/// A total since the start.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The total.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Totals since the start.
        #[derive(Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// All of them, by name.
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get())),*]
            }
        }
    };
}

counters! {
    /// Calls that came, of any class.
    requests,
    /// Inference calls that were parked.
    faults,
    /// Calls the relay answered itself with an error.
    refused,
    /// Attempts on another copy after UNAVAILABLE or RESOURCE_EXHAUSTED.
    retries,
    /// Retries that the budget did not allow.
    retries_denied,
    /// Requests sent again after their copy was lost.
    replays,
    /// Calls whose client left.
    cancelled,
    /// Calls that ended at their deadline.
    deadline_exceeded,
    /// Inputs that break a protocol.
    malformed,
    /// Requests refused because too many queue at a gate.
    gate_queue_full,
    /// Requests refused because too many, or too large ones, are parked.
    parking_full,
    /// Answers "not here".
    not_here,
    /// Requests sent on to other instances.
    to_peers,
    /// Requests that other instances sent on to this one.
    from_peers,
    /// Copies left alone for failing repeatedly.
    ejections,
    /// Connections closed for flooding.
    floods,
    /// Client connections accepted.
    accepted,
    /// Connections asked to end for their age.
    aged,
    /// TLS handshakes that failed, or took too long.
    tls_failed,
    /// Connections turned away, since too many were in a handshake.
    tls_turned_away,
    /// Requests and responses offered to payload processors.
    payloads_offered,
    /// Requests and responses that payload processors did not get, since they were too slow.
    payloads_dropped,
    /// Replicas published without a known target.
    replicas_without_target,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_fall_into_the_bucket_whose_bound_is_not_below() {
        let histograms = Histograms::default();
        for value in [0.5, 0.50001, 300_000.0, 300_001.0] {
            histograms.observe(0, Code::Ok, 0, [Some((Metric::ApiRequest, value))]);
        }
        let mut sum = AHashMap::new();
        histograms.add_to(&mut sum);
        histograms.add_to(&mut sum);
        let histogram = &sum[&(Metric::ApiRequest, 0, Code::Ok, 0)];
        assert_eq!(histogram.counts.len(), 20);
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 2));
        assert_eq!((histogram.counts[18], histogram.counts[19]), (2, 2));
    }

    #[test]
    fn labels_are_bounded() {
        let labels = Labels::default();
        let first = labels.number("a/b");
        for n in 0..1000 {
            labels.number(&format!("x/{n}"));
        }
        assert_eq!(labels.number("a/b"), first);
        assert_eq!(&*labels.name(labels.number("x/999")), OTHER);
        assert_eq!(&*labels.name(NO_LABEL), "");
    }
}
