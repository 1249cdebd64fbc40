//! Who drives the sockets.
//!
//! The runtime of the sockets runs on whichever thread blocks on it, one at a time. Whoever waits for a batch has nothing else to
//! do, so it drives: a request is then read, run and answered on one thread, without a switch to another one and back, which
//! costs more than all the rest of a small model. While a batch runs, nobody reads what comes; when it takes longer than
//! [`PATIENCE`], a spare thread takes the wheel until somebody waits for a batch again.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::answers::{Addressed, Answers};

/// How long nobody may drive.
const PATIENCE: Duration = Duration::from_millis(2);

/// The runtime and who drives it.
#[derive(Debug)]
pub struct Wheel {
    runtime: Runtime,
    /// Locked by who drives.
    held: Mutex<()>,
    answers: Arc<Answers>,
    /// Somebody drives, and looks at the answers there are before anything else.
    driven: AtomicBool,
    /// The spare thread drives.
    spare_drives: AtomicBool,
    /// It is to stop.
    wanted: Notify,
    /// How often somebody else has taken the wheel or let go of it.
    turns: AtomicU64,
    /// The spare thread sleeps until it is woken.
    resting: AtomicBool,
    spare: OnceLock<Thread>,
}

impl Wheel {
    /// A runtime that nobody drives yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> io::Result<Arc<Self>> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        Ok(Arc::new(Self {
            runtime,
            held: Mutex::new(()),
            answers: Arc::default(),
            driven: AtomicBool::new(false),
            spare_drives: AtomicBool::new(false),
            wanted: Notify::new(),
            turns: AtomicU64::new(0),
            resting: AtomicBool::new(false),
            spare: OnceLock::new(),
        }))
    }

    /// Starts `work`, and a thread that ends with it and drives whenever nobody else has for a while.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn start(
        self: &Arc<Self>,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let answers = self.answers.clone();
        self.runtime
            .spawn(async move { answers.deliver_when_told().await });
        let mut work = self.runtime.spawn(work);
        let wheel = self.clone();
        let spare = thread::Builder::new()
            .name("model-server".to_owned())
            .spawn(move || while !wheel.take_when_free(&mut work) {})?;
        self.spare.get_or_init(|| spare.thread().clone());
        Ok(spare)
    }

    /// Drives until `work` is done, which begins when all that can go on has gone on; `None` when somebody else drives and waits
    /// for a batch as well.
    pub fn drive<W: Future>(&self, work: W) -> Option<W::Output> {
        let held = loop {
            if let Some(held) = self.held.try_lock() {
                break held;
            }
            if !self.spare_drives.load(Ordering::Acquire) {
                return None;
            }
            self.wanted.notify_one();
            if let Some(held) = self.held.try_lock_for(PATIENCE) {
                break held;
            }
        };
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.driven.store(true, Ordering::SeqCst);
        let done = self.runtime.block_on(async {
            self.answers.deliver();
            tokio::task::yield_now().await;
            work.await
        });
        self.driven.store(false, Ordering::SeqCst);
        self.turns.fetch_add(1, Ordering::SeqCst);
        drop(held);
        if self.resting.load(Ordering::SeqCst) {
            self.wake_spare();
        }
        Some(done)
    }

    /// Sends answers back. Who drives is woken for them; if nobody does, they leave with who does next.
    pub fn answer(&self, answers: Vec<Addressed>) {
        self.answers.put(answers);
        // Looked at after they are there: who began to drive before sees them, who begins later looks first.
        if self.driven.load(Ordering::SeqCst) {
            self.answers.tell();
        }
    }

    #[cfg(test)]
    pub(crate) fn deliver(&self) {
        self.answers.deliver();
    }

    fn wake_spare(&self) {
        if let Some(spare) = self.spare.get() {
            spare.unpark();
        }
    }

    /// Waits, and drives if nobody did in all that time, until somebody wants to. True when `work` has ended.
    fn take_when_free(&self, work: &mut tokio::task::JoinHandle<()>) -> bool {
        let before = self.turns.load(Ordering::SeqCst);
        thread::park_timeout(PATIENCE);
        if work.is_finished() {
            return true; // whoever asks for batches again and again drove it to its end, and leaves no gap to drive in
        }
        if self.turns.load(Ordering::SeqCst) != before {
            return false;
        }
        let Some(held) = self.held.try_lock() else {
            self.rest(before);
            return false;
        };
        self.spare_drives.store(true, Ordering::Release);
        self.driven.store(true, Ordering::SeqCst);
        let ended = self.runtime.block_on(async {
            self.answers.deliver();
            tokio::select! {
                biased;
                // A panic in it has been printed.
                _ = work => true,
                () = self.wanted.notified() => false,
            }
        });
        self.driven.store(false, Ordering::SeqCst);
        self.spare_drives.store(false, Ordering::Release);
        drop(held);
        ended
    }

    /// Somebody drives and has not let go for a while: sleeps until it does.
    fn rest(&self, turns: u64) {
        self.resting.store(true, Ordering::SeqCst);
        // Whoever lets go counts first and looks at `resting` then: one of the two is seen.
        if self.turns.load(Ordering::SeqCst) == turns {
            thread::park();
        }
        self.resting.store(false, Ordering::SeqCst);
    }
}
