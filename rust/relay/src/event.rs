//! What the control plane is told: a bounded queue, and a descriptor that is readable while it is not empty.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::name::Name;

/// Faults that may wait for the control plane. What else it is told is bounded by the faults, replicas and targets it knows.
const FAULTS_MAX: usize = 65_536;

/// Headers of a request by the names they are told under, with their values.
pub type Told = Box<[(String, String)]>;

/// One thing that happened. `modelmesh.dataplane.protocol` says what each means.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Event {
    Fault {
        name: Name,
        model: Option<Arc<str>>,
        waiting: usize,
        deadline: Instant,
        told: Told,
    },
    Abandoned {
        name: Name,
        model: Option<Arc<str>>,
    },
    TargetLost {
        target: u64,
    },
    TargetBack {
        target: u64,
    },
    NotHere {
        model: Arc<str>,
        replica: u64,
    },
    Retired {
        replica: u64,
        token: u64,
        clean: bool,
    },
    Queueing {
        model: Arc<str>,
        queued: usize,
        oldest_since: Instant,
    },
}

/// The queue. Any thread pushes, one takes.
pub struct Events {
    queue: Mutex<VecDeque<Event>>,
    bell: Bell,
}

impl Events {
    /// An empty queue.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Events> {
        Ok(Events {
            queue: Mutex::new(VecDeque::new()),
            bell: Bell::new()?,
        })
    }

    /// Adds an event; rings only when the queue was empty, so a busy relay costs few wake-ups.
    pub fn push(&self, event: Event) {
        let mut queue = self.queue.lock();
        queue.push_back(event);
        if queue.len() == 1 {
            self.bell.ring();
        }
    }

    /// Whether so many events wait that no fault may be added.
    pub fn is_full(&self) -> bool {
        self.queue.lock().len() >= FAULTS_MAX
    }

    /// All events since the last call, oldest first; silences the bell.
    pub fn take(&self) -> VecDeque<Event> {
        let mut queue = self.queue.lock();
        if !queue.is_empty() {
            self.bell.silence();
        }
        std::mem::take(&mut *queue)
    }

    /// Readable while events wait.
    pub fn descriptor(&self) -> RawFd {
        self.bell.reader().as_raw_fd()
    }
}

#[cfg(target_os = "linux")]
struct Bell(OwnedFd);

#[cfg(target_os = "linux")]
impl Bell {
    fn new() -> io::Result<Bell> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Bell(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    fn reader(&self) -> &OwnedFd {
        &self.0
    }

    fn ring(&self) {
        // It fails only when it rings already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn silence(&self) {
        // It fails only when it is silent already.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

#[cfg(not(target_os = "linux"))]
struct Bell {
    reader: OwnedFd,
    writer: OwnedFd,
}

#[cfg(not(target_os = "linux"))]
impl Bell {
    fn new() -> io::Result<Bell> {
        let (reader, writer) = rustix::pipe::pipe()?;
        for end in [&reader, &writer] {
            rustix::io::ioctl_fionbio(end, true)?;
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok(Bell { reader, writer })
    }

    fn reader(&self) -> &OwnedFd {
        &self.reader
    }

    fn ring(&self) {
        // At most one byte is in the pipe: it has room.
        let _ = rustix::io::write(&self.writer, &[1]);
    }

    fn silence(&self) {
        let _ = rustix::io::read(&self.reader, &mut [0u8; 8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(events: &Events) -> bool {
        let mut fds = [PollFd::new(events.bell.reader(), PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).expect("poll works") == 1
    }

    #[test]
    fn the_bell_rings_while_events_wait() {
        let events = Events::new().expect("descriptors");
        assert!(!readable(&events));
        events.push(Event::TargetLost { target: 1 });
        events.push(Event::TargetBack { target: 1 });
        assert!(readable(&events));
        let taken: Vec<Event> = events.take().into();
        assert_eq!(
            taken,
            [
                Event::TargetLost { target: 1 },
                Event::TargetBack { target: 1 }
            ]
        );
        assert!(!readable(&events));
        assert!(events.take().is_empty());
        events.push(Event::TargetLost { target: 2 });
        assert!(readable(&events));
    }
}
