//! Whether a model server at the other end of a connection still lives. A process that is stopped, or swapped out, or a host
//! that is gone keeps its connections open and says nothing: only a ping tells it from a model that takes its time.
//!
//! Model servers are pinged only while requests wait there and nothing is heard. Servers that are not ours may take more than two
//! pings that they send nothing between for an attack, unless they come five minutes apart
//! (<https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md>).
//!
//! Other instances are pinged all the time: the control plane takes one that answers for slow at worst, however long its control
//! plane says nothing. One that misses three pings is suspected: requests that can move do, new ones go elsewhere. Its connection stays, for a busy machine may stall for a second; what cannot move waits there, while another
//! connection is tried.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::replica::Target;

/// How long a server may say nothing before it is asked; and how often that is looked at.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a built-in worker may take to answer: a thread that does nothing else answers.
const PONG_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for other servers, whose threads may be busy with models (what gRPC clients allow).
const FOREIGN_PONG_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two pings to another server that says nothing.
const FOREIGN_PAUSE: Duration = Duration::from_secs(300);
/// Between two pings to another instance.
const BEAT: Duration = Duration::from_millis(250);
/// Beats without a word of another instance until it is suspected: after 750 ms (design: mesh, suspicion).
const MISSED_MAX: u32 = 3;
/// Beats without a word until its connection is given up: after 10 s.
const GIVEN_UP_MAX: u32 = 40;

/// What is known of one connection.
#[derive(Debug, Default)]
pub struct Liveness {
    heard: Cell<bool>,
    silent: Cell<bool>,
    suspect: Cell<bool>,
    suspected: Notify,
    turned: Notify,
}

impl Liveness {
    /// The server said something.
    pub fn hear(&self) {
        self.heard.set(true);
    }

    /// Whether the connection was given up because the server did not answer.
    pub fn is_silent(&self) -> bool {
        self.silent.get()
    }

    /// Whether another instance misses pings now.
    pub fn is_suspect(&self) -> bool {
        self.suspect.get()
    }

    /// Resolves while another instance misses pings.
    pub async fn suspected(self: Rc<Self>) {
        loop {
            let mut suspected = pin!(self.suspected.notified());
            suspected.as_mut().enable();
            if self.suspect.get() {
                return;
            }
            suspected.await;
        }
    }

    /// Resolves when [`Liveness::is_suspect`] has changed. One waits for it.
    pub async fn turned(&self) {
        self.turned.notified().await;
    }

    fn suspect(&self, suspect: bool) {
        if self.suspect.replace(suspect) != suspect {
            self.turned.notify_one();
            if suspect {
                self.suspected.notify_waiters();
            }
        }
    }

    /// Asks when it has to be asked. Returns when there was no answer: the connection is of no use then.
    pub async fn watch(&self, target: &Arc<Target>, pings: PingPong) {
        if target.peer {
            self.watch_instance(pings).await;
        } else {
            self.watch_server(target, pings).await;
        }
        self.silent.set(true);
    }

    async fn watch_instance(&self, mut pings: PingPong) {
        loop {
            if pings.send_ping(Ping::opaque()).is_err() {
                std::future::pending::<()>().await;
            }
            let mut missed = 0;
            // Beats are counted and not time: this loop may have been the one that stalled.
            loop {
                let pong = std::future::poll_fn(|cx| pings.poll_pong(cx));
                let answered = match timeout(BEAT, pong).await {
                    Ok(Ok(_)) => true,
                    Ok(Err(_)) => std::future::pending().await,
                    Err(_) => false,
                };
                missed = if self.heard.take() || answered {
                    self.suspect(false);
                    0
                } else {
                    missed + 1
                };
                if answered {
                    break;
                }
                if missed == MISSED_MAX {
                    self.suspect(true);
                } else if missed == GIVEN_UP_MAX {
                    return;
                }
            }
            sleep(BEAT).await;
        }
    }

    async fn watch_server(&self, target: &Target, mut pings: PingPong) {
        let (patience, pause) = if target.signals_loss {
            (PONG_TIMEOUT, Duration::ZERO)
        } else {
            (FOREIGN_PONG_TIMEOUT, FOREIGN_PAUSE)
        };
        let mut not_before = Instant::now();
        loop {
            sleep(SILENCE).await;
            let now = Instant::now();
            if self.heard.take() {
                not_before = now;
                continue;
            }
            if now < not_before || !target.is_waited_for() {
                continue;
            }
            if pings.send_ping(Ping::opaque()).is_err() {
                // The connection is over, which its own future tells.
                std::future::pending::<()>().await;
            }
            let pong = std::future::poll_fn(|cx| pings.poll_pong(cx));
            match timeout(patience, pong).await {
                Ok(Ok(_)) => target.believe(),
                Ok(Err(_)) => std::future::pending::<()>().await,
                Err(_) => break,
            }
            self.heard.set(false);
            not_before = now + pause;
        }
        target.doubt();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::replica::Address;

    const PING: u8 = 6;
    const SETTINGS: u8 = 4;
    const ACK: u8 = 1;

    /// A server that answers settings, and pings when it says. Returns how many pings came until the client left.
    async fn serve(mut stream: DuplexStream, pongs: impl Fn(usize) -> Option<Instant>) -> usize {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.expect("a preface");
        let settings = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
        stream.write_all(&settings).await.expect("open");
        let mut pings = 0;
        let mut header = [0; 9];
        while stream.read_exact(&mut header).await.is_ok() {
            let mut payload = vec![0; usize::from(header[1]) << 8 | usize::from(header[2])];
            stream.read_exact(&mut payload).await.expect("a payload");
            let (kind, flags) = (header[3], header[4]);
            if flags & ACK != 0 || !matches!(kind, PING | SETTINGS) {
                continue;
            }
            pings += usize::from(kind == PING);
            if kind == PING
                && let Some(at) = pongs(pings)
            {
                tokio::time::sleep_until(at).await;
                let ack = [&[0, 0, 8, PING, ACK, 0, 0, 0, 0][..], &payload].concat();
                if stream.write_all(&ack).await.is_err() {
                    break;
                }
            }
        }
        pings
    }

    /// After how many seconds a server was given up within `within_s`, and how many pings it got. `talk_s`: how often it
    /// says something.
    fn watched(
        ours: bool,
        waited_for: bool,
        pongs: usize,
        talk_s: Option<u64>,
        within_s: u64,
    ) -> (Option<u64>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let address = Address::Unix(PathBuf::new());
            let target = Arc::new(Target::new(1, address, 0, ours, Default::default()));
            if waited_for {
                target.doubt();
            }
            let (near, far) = tokio::io::duplex(1 << 16);
            let answered = move |ping| (ping <= pongs).then(Instant::now);
            let server = tokio::task::spawn_local(serve(far, answered));
            let (sender, mut connection) = h2::client::handshake(near).await.expect("a handshake");
            let pings = connection.ping_pong().expect("not taken");
            let running = tokio::task::spawn_local(async move { drop(connection.await) });
            let liveness = Rc::new(Liveness::default());
            let heard = liveness.clone();
            let talking = tokio::task::spawn_local(async move {
                while let Some(pause_s) = talk_s {
                    sleep(Duration::from_secs(pause_s)).await;
                    heard.hear();
                }
            });
            let started = Instant::now();
            // What is waited for stays so: one answer does not change that in these tests.
            let again = target.clone();
            let waiting = tokio::task::spawn_local(async move {
                loop {
                    sleep(Duration::from_secs(1)).await;
                    if waited_for {
                        again.doubt();
                    }
                }
            });
            let watch = liveness.watch(&target, pings);
            let ended = timeout(Duration::from_secs(within_s), watch).await;
            assert_eq!(ended.is_ok(), liveness.is_silent());
            for task in [running, talking, waiting] {
                task.abort();
            }
            drop(sender);
            let given_up_s = ended.is_ok().then(|| started.elapsed().as_secs());
            (given_up_s, server.await.expect("no panic"))
        })
    }

    #[test]
    fn a_server_that_answers_nothing_is_given_up_when_requests_wait() {
        assert_eq!(watched(true, true, 0, None, 100), (Some(10), 1));
        assert_eq!(watched(true, true, 3, None, 100), (Some(25), 4));
        assert_eq!(watched(false, true, 0, None, 100), (Some(25), 1));
    }

    #[test]
    fn an_idle_or_talking_server_is_not_asked() {
        assert_eq!(watched(true, false, 0, None, 1000), (None, 0));
        assert_eq!(watched(true, true, 0, Some(2), 1000), (None, 0));
        assert_eq!(watched(true, true, 99, None, 100).0, None);
    }

    #[test]
    fn other_servers_are_asked_rarely() {
        assert_eq!(watched(false, true, 99, None, 300), (None, 1));
        assert_eq!(watched(false, true, 99, None, 650), (None, 3));
    }
    /// What became of another instance within 30 s, that says nothing between two moments: when it was suspected and believed
    /// again, when it was given up, in milliseconds; and how many pings it got. `talks`: it sends data all the time.
    fn instance(silent_s: (f64, f64), talks: bool) -> (Vec<u128>, Option<u128>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let target = Arc::new(Target::of_peer(1, Address::Unix(PathBuf::new())));
            let (near, far) = tokio::io::duplex(1 << 16);
            let started = Instant::now();
            let [from, to] = [silent_s.0, silent_s.1].map(|s| started + Duration::from_secs_f64(s));
            let answered = move |_| {
                let now = Instant::now();
                Some(if from <= now && now < to { to } else { now })
            };
            let server = tokio::task::spawn_local(serve(far, answered));
            let (sender, mut connection) = h2::client::handshake(near).await.expect("a handshake");
            let pings = connection.ping_pong().expect("not taken");
            let running = tokio::task::spawn_local(async move { drop(connection.await) });
            let liveness = Rc::new(Liveness::default());
            let heard = liveness.clone();
            let talking = tokio::task::spawn_local(async move {
                while !heard.is_silent() {
                    sleep(BEAT * 2).await;
                    if talks {
                        heard.hear();
                    }
                }
            });
            let mut turns = Vec::new();
            let ended = timeout(Duration::from_secs(30), async {
                let mut watch = pin!(liveness.watch(&target, pings));
                loop {
                    tokio::select! {
                        () = &mut watch => return started.elapsed().as_millis(),
                        () = liveness.turned() => turns.push(started.elapsed().as_millis()),
                    }
                }
            })
            .await;
            assert_eq!(ended.is_ok(), liveness.is_silent());
            running.abort();
            talking.abort();
            drop(sender);
            (turns, ended.ok(), server.await.expect("no panic"))
        })
    }

    #[test]
    fn an_instance_is_suspected_after_three_beats_and_believed_when_it_answers() {
        let (turns, ended, _) = instance((0.9, 2.6), false);
        assert_eq!((turns, ended), (vec![1750, 2600], None));
        assert_eq!(instance((0.9, 1.7), false).0, [], "that was two beats");
    }

    #[test]
    fn an_instance_is_given_up_long_after_it_is_suspected() {
        let (turns, ended, _) = instance((0.9, 99.0), false);
        assert_eq!((turns, ended), (vec![1750], Some(11_000)));
        assert_eq!(instance((0.9, 10.0), false).0, [1750, 10_000]);
    }

    #[test]
    fn an_instance_that_sends_is_not_suspected_for_its_pong() {
        let (turns, ended, _) = instance((0.9, 25.0), true);
        assert_eq!((turns, ended), (vec![], None));
    }

    #[test]
    fn an_instance_is_asked_each_beat() {
        let (_, _, pings) = instance((99.0, 99.0), false);
        assert!((115..=121).contains(&pings), "{pings} in 30 s");
    }
}
