//! Watches the frames a client sends, before HTTP/2 handles them: who sends too many that cost us and carry nothing is cut off.
//!
//! Pings, settings, priorities and empty data frames share one allowance, resets have another: a client whose requests
//! all time out at once resets as many streams as it may have open, and that is no flood.

use std::io;
use std::time::Instant;

const FRAME_HEADER_BYTES: usize = 9;
const PREFACE_BYTES: usize = 24;

/// Frames that carry nothing: the burst allowed, and how many more per second.
const IDLE_BURST: f64 = 2048.0;
const IDLE_PER_SECOND: f64 = 500.0;
/// Resets per second beyond the burst.
const RESETS_PER_SECOND: f64 = 1000.0;

struct Allowance {
    burst: f64,
    per_second: f64,
    left: f64,
    filled: Instant,
}

impl Allowance {
    fn new(burst: f64, per_second: f64) -> Allowance {
        Allowance {
            burst,
            per_second,
            left: burst,
            filled: Instant::now(),
        }
    }

    fn take(&mut self) -> bool {
        self.left -= 1.0;
        if self.left < 0.0 {
            let now = Instant::now();
            let refill = now.saturating_duration_since(self.filled).as_secs_f64() * self.per_second;
            self.filled = now;
            self.left = (self.left + refill).min(self.burst);
        }
        self.left >= 0.0
    }
}

/// What is left of the allowances of one connection.
pub struct Flood {
    skip: usize,
    header: [u8; FRAME_HEADER_BYTES],
    have: usize,
    idle: Allowance,
    resets: Allowance,
}

impl Flood {
    /// Before the client's preface; it may have `streams_max` streams open.
    pub fn new(streams_max: u32) -> Flood {
        let resets = 2.0 * f64::from(streams_max.max(50));
        Flood {
            skip: PREFACE_BYTES,
            header: [0; FRAME_HEADER_BYTES],
            have: 0,
            idle: Allowance::new(IDLE_BURST, IDLE_PER_SECOND),
            resets: Allowance::new(resets, RESETS_PER_SECOND),
        }
    }

    /// Counts the frames in what comes next.
    ///
    /// # Errors
    /// When there are too many: the connection is of no use to anybody.
    pub fn watch(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let take = (FRAME_HEADER_BYTES - self.have).min(bytes.len());
            self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            if self.have == FRAME_HEADER_BYTES {
                self.have = 0;
                self.count()?;
            }
        }
        Ok(())
    }

    fn count(&mut self) -> io::Result<()> {
        let [l0, l1, l2, kind, flags, ..] = self.header;
        self.skip = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        let allowed = match kind {
            0 => self.skip > 0 || flags & 1 == 1 || self.idle.take(),
            1 | 5 | 7 | 8 | 9 => true,
            3 => self.resets.take(),
            _ => self.idle.take(),
        };
        if allowed {
            return Ok(());
        }
        Err(io::Error::other(
            "the client floods this connection with frames that carry nothing",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.extend(vec![6; usize::from(length)]);
        bytes
    }

    fn survives(frame: &[u8], times: usize, cut: usize) -> bool {
        let mut flood = Flood::new(100);
        let mut bytes = vec![0; PREFACE_BYTES];
        (0..times).for_each(|_| bytes.extend(frame));
        bytes.chunks(cut).all(|chunk| flood.watch(chunk).is_ok())
    }

    #[test]
    fn floods_are_cut_off_and_traffic_is_not() {
        for cut in [1, 7, 4096] {
            assert!(!survives(&frame(6, 0, 8), 100_000, cut), "pings");
            assert!(!survives(&frame(4, 0, 0), 100_000, cut), "settings");
            assert!(!survives(&frame(3, 0, 4), 100_000, cut), "resets");
            assert!(!survives(&frame(0, 0, 0), 100_000, cut), "empty data");
            assert!(survives(&frame(0, 0, 9), 100_000, cut), "data");
            assert!(survives(&frame(1, 5, 20), 100_000, cut), "requests");
            assert!(survives(&frame(8, 0, 4), 100_000, cut), "window updates");
            assert!(
                survives(&frame(3, 0, 4), 200, cut),
                "as many resets as streams"
            );
            assert!(survives(&frame(6, 0, 8), 100, cut), "some pings");
        }
    }
}
