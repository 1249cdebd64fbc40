//! The server: its thread, its socket, its start and its end.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::batch::{Answers, Batch};
use crate::budget::Budget;
use crate::call::{Core, Counts};
use crate::connection;
use crate::executing::Executing;
use crate::grpc::MessageLimits;
use crate::models::{Models, Signature};
use crate::queue::{Answer, Limits, Queue};
use crate::status::{Code, Status};

/// How long the last answers may take to leave after the server has closed.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(250);
/// How long to wait before accepting again when the process is out of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

type Sent = mpsc::UnboundedReceiver<Vec<(oneshot::Sender<Answer>, Answer)>>;

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
    answers: Answers,
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

    /// Binds and serves on a thread of its own. A socket file nobody listens on any more is replaced.
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
        let (answers, sent) = mpsc::unbounded_channel();
        let (stopping, stopped) = watch::channel(false);
        let (closing, closed) = oneshot::channel();
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let core = self.core.clone();
        // Streams beyond the queue only wait in another place; some are other calls than ModelInfer.
        let streams_max = u32::try_from(self.config.limits.queue_max)
            .unwrap_or(u32::MAX)
            .saturating_add(64);
        let thread = thread::Builder::new()
            .name("model-server".to_owned())
            .spawn(move || {
                runtime.block_on(serve(listener, core, streams_max, stopped, closed, sent));
            })?;
        *serving = Some(Serving {
            thread,
            stopping,
            closing,
        });
        // Nobody else sets it: the lock above is held.
        self.started.get_or_init(|| Started { executing, answers });
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
            let taken = self.core.queue.next(timeout)?;
            let started = self.started.wait();
            let id = taken.model.id.clone();
            let (marker, unmarked) = match started.executing.mark(&id) {
                Ok(marker) => (Some(marker), None),
                Err(error) => (None, Some(error)),
            };
            let queue = self.core.queue.clone();
            let mut batch = Batch::new(taken, marker, queue, started.answers.clone());
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

/// All that happens on the server's thread.
async fn serve(
    listener: StdUnixListener,
    core: Arc<Core>,
    streams_max: u32,
    stopping: watch::Receiver<bool>,
    closed: oneshot::Receiver<()>,
    mut sent: Sent,
) {
    let deliver = async {
        while let Some(answers) = sent.recv().await {
            for (answer, content) in answers {
                // A caller who has left is not told.
                let _ = answer.send(content);
            }
        }
    };
    let mut connections = JoinSet::new();
    let accept = async {
        accept_all(listener, &core, streams_max, stopping, &mut connections).await;
        // Closed by a word, or because the server object is gone.
        let _ = closed.await;
        let flush = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, flush).await;
    };
    tokio::select! {
        () = deliver => {}
        () = accept => {}
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
mod tests {
    use bytes::Bytes;
    use h2::client::{ResponseFuture, SendRequest};
    use http::Request;
    use tokio::net::UnixStream;

    use super::*;
    use crate::testing::{LIMITS, temporary};

    fn server(name: &str) -> ModelServer {
        ModelServer::new(Config {
            socket_path: temporary(&format!("{name}.sock")),
            executing_path: temporary(&format!("{name}.executing")),
            message_bytes_max: 1 << 20,
            queue_bytes_max: 1 << 20,
            limits: LIMITS,
        })
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let limited = async { tokio::time::timeout(Duration::from_secs(30), test).await };
        runtime.block_on(limited).unwrap();
    }

    async fn connect(server: &ModelServer) -> (SendRequest<Bytes>, JoinSet<Result<(), h2::Error>>) {
        let socket = UnixStream::connect(&server.config.socket_path)
            .await
            .unwrap();
        let (client, connection) = h2::client::handshake(socket).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        (client, driver)
    }

    fn call(client: &mut SendRequest<Bytes>, method: &str) -> ResponseFuture {
        let uri = format!("http://worker/inference.GRPCInferenceService/{method}");
        let request = Request::post(uri).header("content-type", "application/grpc");
        let (response, mut body) = client
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
        response
    }

    #[test]
    fn a_panic_closes_its_connection_and_no_other() {
        let server = server("panic");
        server.start().unwrap();
        run(async {
            let (mut unlucky, mut unlucky_driver) = connect(&server).await;
            let (mut other, _driver) = connect(&server).await;
            assert_eq!(
                call(&mut unlucky, "ServerLive").await.unwrap().status(),
                200
            );
            assert_eq!(call(&mut other, "ServerLive").await.unwrap().status(), 200);
            assert!(call(&mut unlucky, "Panic").await.is_err());
            assert!(unlucky_driver.join_next().await.is_some());
            assert_eq!(call(&mut other, "ServerLive").await.unwrap().status(), 200);
        });
        server.stop(Duration::ZERO);
        assert_eq!(server.stats().connections, 0);
        std::fs::remove_file(&server.config.executing_path).unwrap();
    }

    #[test]
    fn broken_messages_and_calls_that_are_none_get_an_answer() {
        let server = server("broken");
        server.start().unwrap();
        let cases: [(&[u8], &str, &str); 8] = [
            (b"", "3", "ended before its message was complete"),
            (b"\0\0\0", "3", "ended before its message was complete"),
            (
                b"\0\0\0\0\x09short",
                "3",
                "ended before its message was complete",
            ),
            (b"\x07\0\0\0\0", "3", "not framed as gRPC"),
            (b"\x01\0\0\0\0", "12", "uncompressed"),
            (b"\0\0\0\0\0\0\0\0\0\0", "3", "more than one message"),
            (
                b"\0\xff\xff\xff\xff",
                "8",
                "over the limit of 1048576 bytes",
            ),
            (b"\0\0\0\0\x02\x0a\x05", "3", "not a ModelInferRequest"),
        ];
        run(async {
            let (mut client, _driver) = connect(&server).await;
            for (message, code, words) in cases {
                let uri = "http://worker/inference.GRPCInferenceService/ModelInfer";
                let request = Request::post(uri).header("content-type", "application/grpc+proto");
                let request = request.body(()).unwrap();
                let (response, mut body) = client.send_request(request, false).unwrap();
                // One byte per frame: nothing may depend on how a message is cut.
                for byte in message {
                    body.send_data(Bytes::copy_from_slice(&[*byte]), false)
                        .unwrap();
                }
                // The server may have answered and closed the stream by now.
                let _ = body.send_data(Bytes::new(), true);
                let response = response.await.unwrap();
                let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
                assert_eq!(header("grpc-status"), code, "{message:?}");
                assert!(header("grpc-message").contains(words), "{response:?}");
            }
            let request = Request::post("http://worker/").header("content-type", "text/plain");
            let (response, _) = client
                .send_request(request.body(()).unwrap(), true)
                .unwrap();
            assert_eq!(response.await.unwrap().status(), 415);
        });
        server.stop(Duration::ZERO);
        std::fs::remove_file(&server.config.executing_path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let first = server("stale");
        drop(StdUnixListener::bind(&first.config.socket_path).unwrap());
        first.start().unwrap();
        assert_eq!(
            first.start().unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        let second = server("stale");
        assert_eq!(second.start().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(second);
        let mode = std::fs::metadata(&first.config.socket_path)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        first.stop(Duration::ZERO);
        first.stop(Duration::ZERO);
        assert!(!first.config.socket_path.exists());
        std::fs::remove_file(&first.config.executing_path).unwrap();
    }
}
