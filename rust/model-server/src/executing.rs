//! Which models execute right now, in a file: it outlives the process, so a supervisor can read after a crash what ran.
//!
//! The file is an array of records of [`RECORD_BYTES`], one per batch that runs at the same time. A record is the length of
//! the model id (u32, little-endian; 0: nothing runs) and the id, cut to what fits. Each change is one `pwrite`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

/// The size of a record.
pub const RECORD_BYTES: usize = 1024;
const LENGTH_BYTES: usize = 4;

/// The file and which of its records are free.
#[derive(Debug)]
pub struct Executing {
    file: File,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    free: Vec<u64>,
    used_up_to: u64,
}

/// A record in use. Dropped, it is cleared.
#[derive(Debug)]
pub struct Marker {
    executing: Arc<Executing>,
    slot: u64,
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
    pub fn mark(self: &Arc<Self>, model: &str) -> io::Result<Marker> {
        let mut record = [0; RECORD_BYTES];
        let len = model.len().min(RECORD_BYTES - LENGTH_BYTES);
        record[..LENGTH_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
        record[LENGTH_BYTES..LENGTH_BYTES + len].copy_from_slice(&model.as_bytes()[..len]);
        let slot = {
            let mut slots = self.slots.lock();
            slots.free.pop().unwrap_or_else(|| {
                slots.used_up_to += 1;
                slots.used_up_to - 1
            })
        };
        let marker = Marker {
            executing: self.clone(),
            slot,
        };
        self.file
            .write_all_at(&record, slot * RECORD_BYTES as u64)?;
        Ok(marker)
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        // A record that cannot be cleared is not used again: it costs a wrong name after a crash, never a lost one.
        let clear = [0; LENGTH_BYTES];
        if self
            .executing
            .file
            .write_all_at(&clear, self.slot * RECORD_BYTES as u64)
            .is_ok()
        {
            self.executing.slots.lock().free.push(self.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(path: &Path) -> Vec<String> {
        let bytes = std::fs::read(path).unwrap();
        bytes
            .chunks(RECORD_BYTES)
            .map(|record| {
                let len = u32::from_le_bytes(record[..4].try_into().unwrap()) as usize;
                String::from_utf8(record[4..4 + len].to_vec()).unwrap()
            })
            .collect()
    }

    #[test]
    fn records_follow_what_runs() {
        let path = std::env::temp_dir().join(format!("executing-{}", std::process::id()));
        let executing = Executing::create(&path).unwrap();
        assert_eq!(ids(&path), [""]);
        let one = executing.mark("one").unwrap();
        let long = executing.mark(&"x".repeat(5000)).unwrap();
        assert_eq!(ids(&path), ["one".to_owned(), "x".repeat(RECORD_BYTES - 4)]);
        drop(one);
        assert_eq!(ids(&path)[0], "");
        let two = executing.mark("two").unwrap();
        assert_eq!(ids(&path)[0], "two");
        drop((two, long));
        assert_eq!(ids(&path), ["", ""]);
        std::fs::remove_file(path).unwrap();
    }
}
