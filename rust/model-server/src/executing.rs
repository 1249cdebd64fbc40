//! Which models execute right now, and since when. In a file too: it outlives the process, so a supervisor can read what ran
//! after a crash, and sees a batch that never ends.
//!
//! The file is an array of records of [`RECORD_BYTES`], one per batch that runs at the same time. A record is the length of
//! the model id (u32, little-endian; 0: nothing runs), a number no other batch of this process has (u64, little-endian), and
//! the id, cut to what fits. Each change is one `pwrite`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::models::Model;

/// The size of a record.
pub const RECORD_BYTES: usize = 1024;
const LENGTH_BYTES: usize = 4;
const HEAD_BYTES: usize = LENGTH_BYTES + 8;

/// The file and its records.
#[derive(Debug)]
pub struct Executing {
    file: File,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    free: Vec<usize>,
    /// By record.
    running: Vec<Option<Run>>,
    n_batches: u64,
}

#[derive(Debug)]
struct Run {
    model: Arc<Model>,
    since: Instant,
}

/// A record in use. Dropped, it is cleared.
#[derive(Debug)]
pub struct Marker {
    executing: Arc<Executing>,
    slot: usize,
}

impl Executing {
    /// Creates the file, or empties it, with one clear record.
    ///
    /// # Errors
    /// When it cannot be created or written.
    pub fn create(path: &Path) -> io::Result<Arc<Self>> {
        let file = File::create(path)?;
        file.write_all_at(&[0; RECORD_BYTES], 0)?;
        Ok(Arc::new(Self {
            file,
            slots: Mutex::default(),
        }))
    }

    /// Marks a model as executing until the marker is dropped.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn mark(self: &Arc<Self>, model: &Arc<Model>) -> io::Result<Marker> {
        let (slot, number) = self.slots.lock().begin(Run {
            model: model.clone(),
            since: Instant::now(),
        });
        let marker = Marker {
            executing: self.clone(),
            slot,
        };
        let mut record = [0; RECORD_BYTES];
        let len = model.id.len().min(RECORD_BYTES - HEAD_BYTES);
        record[..LENGTH_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
        record[LENGTH_BYTES..HEAD_BYTES].copy_from_slice(&number.to_le_bytes());
        record[HEAD_BYTES..HEAD_BYTES + len].copy_from_slice(&model.id.as_bytes()[..len]);
        self.file.write_all_at(&record, offset(slot))?;
        Ok(marker)
    }

    /// The models of batches that have run for `bound` at `now`.
    pub fn overdue(&self, bound: Duration, now: Instant) -> Vec<Arc<Model>> {
        let slots = self.slots.lock();
        let overdue = |run: &&Run| now.saturating_duration_since(run.since) >= bound;
        let running = slots.running.iter().flatten();
        running
            .filter(overdue)
            .map(|run| run.model.clone())
            .collect()
    }
}

impl Slots {
    fn begin(&mut self, run: Run) -> (usize, u64) {
        self.n_batches += 1;
        let slot = self.free.pop().unwrap_or(self.running.len());
        if slot == self.running.len() {
            self.running.push(None);
        }
        self.running[slot] = Some(run);
        (slot, self.n_batches)
    }
}

fn offset(slot: usize) -> u64 {
    (slot * RECORD_BYTES) as u64
}

impl Drop for Marker {
    fn drop(&mut self) {
        // A record that cannot be cleared is not used again: it costs a wrong name after a crash, never a lost one.
        let clear = [0; LENGTH_BYTES];
        let file = &self.executing.file;
        let cleared = file.write_all_at(&clear, offset(self.slot)).is_ok();
        let mut slots = self.executing.slots.lock();
        slots.running[self.slot] = None;
        if cleared {
            slots.free.push(self.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{model, temporary};

    fn records(path: &Path) -> Vec<(u64, String)> {
        let bytes = std::fs::read(path).unwrap();
        bytes
            .chunks(RECORD_BYTES)
            .map(|record| {
                let len = u32::from_le_bytes(record[..4].try_into().unwrap()) as usize;
                let number = u64::from_le_bytes(record[4..12].try_into().unwrap());
                let id = String::from_utf8(record[12..12 + len].to_vec()).unwrap();
                (if len == 0 { 0 } else { number }, id)
            })
            .collect()
    }

    #[test]
    fn records_follow_what_runs() {
        let path = temporary("executing");
        let executing = Executing::create(&path).unwrap();
        let record = |number, id: &str| (number, id.to_owned());
        assert_eq!(records(&path), [record(0, "")]);
        let one = executing.mark(&model("one")).unwrap();
        let long = executing.mark(&model(&"x".repeat(5000))).unwrap();
        let cut = "x".repeat(RECORD_BYTES - HEAD_BYTES);
        assert_eq!(records(&path), [record(1, "one"), record(2, &cut)]);
        drop(one);
        assert_eq!(records(&path)[0], record(0, ""));
        let two = executing.mark(&model("two")).unwrap();
        assert_eq!(records(&path)[0], record(3, "two"));
        drop((two, long));
        assert_eq!(records(&path), [record(0, ""), record(0, "")]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn batches_are_overdue_until_they_end() {
        let path = temporary("overdue");
        let executing = Executing::create(&path).unwrap();
        let bound = Duration::from_secs(60);
        let overdue = |now| {
            let models = executing.overdue(bound, now);
            let ids = models.iter().map(|model| model.id.to_string());
            ids.collect::<Vec<_>>()
        };
        let begun = Instant::now();
        let first = executing.mark(&model("one")).unwrap();
        let _second = executing.mark(&model("two")).unwrap();
        assert_eq!(overdue(begun + bound / 2), [""; 0]);
        assert_eq!(overdue(begun + 2 * bound), ["one", "two"]);
        drop(first);
        assert_eq!(overdue(begun + 2 * bound), ["two"]);
        std::fs::remove_file(path).unwrap();
    }
}
