//! The server: its thread, its socket, its start and its end.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::batch::Batch;
use crate::budget::Budget;
use crate::call::{Core, Counts};
use crate::connection;
use crate::executing::Executing;
use crate::grpc::MessageLimits;
use crate::models::{Models, Signature};
use crate::queue::{Limits, Queue, Taken};
use crate::status::{Code, Status};
use crate::wheel::Wheel;

/// How long the last answers may take to leave after the server has closed.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(250);
/// How often it is looked at whether a batch does not end.
const STUCK_CHECK: Duration = Duration::from_secs(1);
/// How long to wait before accepting again when the process is out of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// What a server is told at its creation.
#[derive(Clone, Debug)]
pub struct Config {
    /// The unix socket to serve on.
    pub socket_path: PathBuf,
    /// The file that names the executing models; see [`crate::executing`].
    pub executing_path: PathBuf,
    /// The largest request message.
    pub message_bytes_max: usize,
    /// All request messages being read, waiting and running together; at least one of the largest.
    pub queue_bytes_max: usize,
    /// How much runs together, and how much may wait.
    pub limits: Limits,
    /// A batch that runs longer is given up: who waits for its model is told. Ending it is the supervisor's.
    pub stuck_after: Duration,
}

/// Totals since the start; `queued` and `connections` are of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stats {
    pub requests: u64,
    pub batches: u64,
    pub rows: u64,
    pub queued: u64,
    pub refused: u64,
    pub connections: u64,
}

/// An Open Inference Protocol server on a unix socket that hands out batches.
#[derive(Debug)]
pub struct ModelServer {
    config: Config,
    core: Arc<Core>,
    started: OnceLock<Started>,
    serving: Mutex<Option<Serving>>,
    process: u32,
}

/// What batches need.
#[derive(Debug)]
struct Started {
    executing: Arc<Executing>,
    wheel: Arc<Wheel>,
}

#[derive(Debug)]
struct Serving {
    thread: JoinHandle<()>,
    stopping: watch::Sender<bool>,
    closing: oneshot::Sender<()>,
}

impl ModelServer {
    /// A server that does not serve yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let core = Core {
            models: Mutex::new(Models::new()),
            queue: Arc::new(Queue::new(config.limits)),
            limits: MessageLimits {
                message_bytes_max: config.message_bytes_max,
                budget: Budget::new(config.queue_bytes_max.max(config.message_bytes_max)),
            },
            stuck_after: config.stuck_after,
            counts: Counts::default(),
        };
        Self {
            config,
            core: Arc::new(core),
            started: OnceLock::new(),
            serving: Mutex::new(None),
            process: std::process::id(),
        }
    }

    /// Whether this is a copy in a forked process, where the server's thread does not exist and nothing works.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        std::process::id() != self.process
    }

    /// Binds and serves, on a thread of its own as long as nobody waits for batches. A socket file nobody listens on any more is replaced.
    ///
    /// # Errors
    /// When the socket, the file or the thread cannot be had, or the server was started before.
    pub fn start(&self) -> io::Result<()> {
        let mut serving = self.serving.lock();
        if self.started.get().is_some() {
            let sentence = "the model server was started before";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, sentence));
        }
        let listener = bind(&self.config.socket_path)?;
        let executing = Executing::create(&self.config.executing_path)?;
        let (stopping, stopped) = watch::channel(false);
        let (closing, closed) = oneshot::channel();
        let wheel = Wheel::new()?;
        let (core, watched) = (self.core.clone(), executing.clone());
        // Streams beyond the queue only wait in another place; some are other calls than ModelInfer.
        let streams_max = u32::try_from(self.config.limits.queue_max)
            .unwrap_or(u32::MAX)
            .saturating_add(64);
        let work = serve(listener, core, streams_max, stopped, closed, watched);
        let thread = wheel.start(work)?;
        *serving = Some(Serving {
            thread,
            stopping,
            closing,
        });
        // Nobody else sets it: the lock above is held.
        self.started.get_or_init(|| Started { executing, wheel });
        Ok(())
    }

    /// Serves a model; false when its id is taken.
    pub fn add_model(&self, id: &str, handle: i64, signature: Signature) -> bool {
        self.core.models.lock().add(id, handle, signature)
    }

    /// Stops serving a model. Returns its requests still queued or running, which are served out; ask again to learn how many are
    /// left.
    pub fn remove_model(&self, id: &str) -> usize {
        self.core.models.lock().remove(id)
    }

    /// The next requests to run together, the oldest first; waits up to `timeout`. `None` when none came or the server
    /// stopped.
    pub fn next_batch(&self, timeout: Duration) -> Option<Batch> {
        loop {
            let taken = self.take(timeout)?;
            let started = self.started.wait();
            let id = taken.model.id.clone();
            let (marker, unmarked) = match started.executing.mark(&taken.model) {
                Ok(marker) => (Some(marker), None),
                Err(error) => (None, Some(error)),
            };
            let queue = self.core.queue.clone();
            let mut batch = Batch::new(taken, marker, queue, started.wheel.clone());
            if let Some(error) = unmarked {
                // Unmarked it must not run: if it killed the process, nobody would know which model it was.
                let sentence =
                    format!("Model {id} cannot run: it cannot be recorded as executing ({error}).");
                batch.fail_all(&Status::new(Code::Internal, sentence));
                continue;
            }
            let rows = if batch.rows() > 0 {
                batch.rows()
            } else {
                batch.n_requests()
            };
            self.core.counts.batches.fetch_add(1, Ordering::Relaxed);
            self.core
                .counts
                .rows
                .fetch_add(rows as u64, Ordering::Relaxed);
            return Some(batch);
        }
    }

    /// Drives the sockets while there is nothing to take, unless somebody else does, or there is no time to.
    fn take(&self, timeout: Duration) -> Option<Taken> {
        let queue = &self.core.queue;
        let waiting = async { tokio::time::timeout(timeout, queue.next_arriving()).await };
        let driven = match self.started.get() {
            Some(started) if !timeout.is_zero() => started.wheel.drive(waiting),
            _ => None,
        };
        match driven {
            Some(taken) => taken.ok().flatten(),
            None => queue.next(timeout),
        }
    }

    /// Refuses new requests, lets the others finish for `grace`, closes. Idempotent.
    pub fn stop(&self, grace: Duration) {
        if self.is_forked() {
            return; // the thread to join is in the other process
        }
        let serving = self.serving.lock().take();
        if let Some(serving) = &serving {
            serving.stopping.send_replace(true);
        }
        self.core.queue.drain(grace);
        self.core.queue.close();
        let Some(serving) = serving else { return };
        // A thread that has ended needs no word; a panic in it has been printed.
        let _ = serving.closing.send(());
        let _ = serving.thread.join();
        // Somebody may have tidied up before.
        let _ = std::fs::remove_file(&self.config.socket_path);
    }

    /// What has been counted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counts = &self.core.counts;
        Stats {
            requests: counts.requests.load(Ordering::Relaxed),
            batches: counts.batches.load(Ordering::Relaxed),
            rows: counts.rows.load(Ordering::Relaxed),
            queued: self.core.queue.n_waiting() as u64,
            refused: counts.refused.load(Ordering::Relaxed),
            connections: counts.connections.load(Ordering::Relaxed),
        }
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

fn bind(path: &Path) -> io::Result<StdUnixListener> {
    let listener = match StdUnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            std::fs::remove_file(path)?;
            StdUnixListener::bind(path)?
        }
        bound => bound?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn is_stale(path: &Path) -> bool {
    StdUnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// All that the sockets need done.
async fn serve(
    listener: StdUnixListener,
    core: Arc<Core>,
    streams_max: u32,
    stopping: watch::Receiver<bool>,
    closed: oneshot::Receiver<()>,
    executing: Arc<Executing>,
) {
    let mut connections = JoinSet::new();
    let accept = async {
        accept_all(listener, &core, streams_max, stopping, &mut connections).await;
        // Closed by a word, or because the server object is gone.
        let _ = closed.await;
        let flush = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, flush).await;
    };
    tokio::select! {
        () = accept => {}
        () = give_up_stuck(&executing, core.stuck_after) => {}
    }
}

/// Has those told who wait for a model whose batch does not end.
async fn give_up_stuck(executing: &Executing, bound: Duration) {
    loop {
        tokio::time::sleep(bound.min(STUCK_CHECK)).await;
        for model in executing.overdue(bound, Instant::now()) {
            model.give_up();
        }
    }
}

/// Accepts until `stopping` turns true.
async fn accept_all(
    listener: StdUnixListener,
    core: &Arc<Core>,
    streams_max: u32,
    stopping: watch::Receiver<bool>,
    connections: &mut JoinSet<()>,
) {
    let listener = UnixListener::from_std(listener).expect("the runtime has I/O enabled");
    let mut stopped = stopping.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(connection::serve(socket, core.clone(), streams_max, stopping.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            },
            // A connection that panicked has closed itself; the panic has been printed.
            Some(_) = connections.join_next() => {}
            () = connection::told_to_stop(&mut stopped) => return,
        }
    }
}

#[cfg(test)]
mod tests;
