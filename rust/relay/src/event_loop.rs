//! One thread's loop: its listeners, its connections to model servers, and what it is told by the control plane.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::budget::Budget;
use crate::call::Origin;
use crate::dispatch::Dispatcher;
use crate::method::{Method, Methods};
use crate::metrics::Histograms;
use crate::plane::Plane;
use crate::replica::{Address, Replica, Target, TargetMethods};
use crate::socket::Socket;
use crate::stream::Stream;
use crate::tls::{Handshakes, Port};
use crate::upstream::Upstream;

/// The control plane's gRPC server among the targets.
const CONTROL: u64 = u64::MAX;

/// When out of descriptors: how long accepting pauses.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a loop is told.
pub enum Command {
    /// Connect to a target.
    Dial(Arc<Target>),
    /// Break the connection to a target.
    Close(u64),
    /// End a retirement when its time is over.
    Retiring(Arc<Replica>, u64, Duration),
}

/// How far the end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Serving,
    /// Not accepting; what is in flight finishes until then.
    Draining(Instant),
    /// Over.
    Stopped,
}

/// Listening sockets of one loop.
#[derive(Default)]
pub struct Listeners {
    /// gRPC.
    pub grpc: Option<std::net::TcpListener>,
    /// REST.
    pub rest: Option<std::net::TcpListener>,
    /// For other instances.
    pub peer: Option<std::net::TcpListener>,
}

/// Begins to serve a connection.
type Serve = fn(Stream, Rc<EventLoop>);

fn serve_grpc(stream: Stream, event_loop: Rc<EventLoop>) {
    let served = crate::connection::serve(stream, event_loop, Origin::Client);
    tokio::task::spawn_local(served);
}

fn serve_peer(stream: Stream, event_loop: Rc<EventLoop>) {
    let served = crate::connection::serve(stream, event_loop, Origin::Peer);
    tokio::task::spawn_local(served);
}

fn serve_rest(stream: Stream, event_loop: Rc<EventLoop>) {
    let dispatcher = Dispatcher::new(event_loop);
    tokio::task::spawn_local(crate::rest::serve_connection(stream, dispatcher));
}

/// See the module.
pub struct EventLoop {
    /// Shared with the other loops.
    pub plane: Arc<Plane>,
    /// Retries of this loop.
    pub budget: Budget,
    /// To the control plane's gRPC server.
    pub control: Rc<Upstream>,
    methods: Methods,
    peer_methods: Methods,
    handshakes: Handshakes,
    index: usize,
    upstreams: RefCell<AHashMap<u64, Rc<Upstream>>>,
    random: Cell<u64>,
    phase: watch::Receiver<Phase>,
}

impl EventLoop {
    /// Serves until told to stop. Runs within a local task set.
    ///
    /// # Errors
    /// When a listener cannot be used.
    pub async fn run(
        plane: Arc<Plane>,
        index: usize,
        listeners: Listeners,
        commands: mpsc::UnboundedReceiver<Command>,
        phase: watch::Receiver<Phase>,
    ) -> io::Result<()> {
        let address = Address::Unix(plane.config.control_socket.clone());
        let control = Arc::new(Target::new(
            CONTROL,
            address,
            0,
            true,
            TargetMethods::default(),
        ));
        // Nobody is told that the control plane lost itself.
        control.hide();
        let event_loop = Rc::new(EventLoop {
            budget: Budget::new(
                plane.config.retry_ratio,
                plane.config.threads,
                Instant::now(),
            ),
            methods: Methods::default(),
            peer_methods: Methods::default(),
            handshakes: Handshakes::default(),
            control: Upstream::dial(control, plane.clone()),
            index,
            upstreams: RefCell::default(),
            random: Cell::new(0x9e37_79b9_7f4a_7c15 ^ (index as u64 + 1)),
            phase,
            plane,
        });
        let ports: [(Option<std::net::TcpListener>, Port, Serve); 3] = [
            (listeners.grpc, Port::Grpc, serve_grpc),
            (listeners.rest, Port::Rest, serve_rest),
            (listeners.peer, Port::Peer, serve_peer),
        ];
        for (listener, port, serve) in ports {
            if let Some(listener) = listener {
                let listener = TcpListener::from_std(listener)?;
                tokio::task::spawn_local(event_loop.clone().accept(listener, port, serve));
            }
        }
        event_loop.obey(commands).await;
        Ok(())
    }

    async fn obey(self: &Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut phase = self.phase.clone();
        let stopped = phase.wait_for(|phase| *phase == Phase::Stopped);
        let mut stopped = std::pin::pin!(stopped);
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                _ = &mut stopped => None,
            };
            match command {
                Some(Command::Dial(target)) => drop(self.upstream(&target)),
                Some(Command::Close(target)) => {
                    if let Some(upstream) = self.upstreams.borrow_mut().remove(&target) {
                        upstream.close();
                    }
                }
                Some(Command::Retiring(replica, token, timeout)) => {
                    tokio::task::spawn_local(async move {
                        tokio::time::sleep(timeout).await;
                        replica.retirement_timed_out(token);
                    });
                }
                None => return,
            }
        }
    }

    async fn accept(self: Rc<Self>, listener: TcpListener, port: Port, serve: Serve) {
        // Other instances go on sending here until they have heard where the copies are now.
        let mut closing = std::pin::pin!(async {
            match port {
                Port::Grpc | Port::Rest => self.draining().await,
                Port::Peer => self.cut().await,
            }
        });
        loop {
            let connection = tokio::select! {
                connection = listener.accept() => connection,
                () = &mut closing => return,
            };
            match connection {
                Ok((tcp, _)) => {
                    self.plane.counters.accepted.add(1);
                    // Both fail only for a connection that is gone already.
                    let _ = tcp.set_nodelay(true);
                    let Ok(socket) = Socket::tcp(tcp) else {
                        continue;
                    };
                    match self.plane.tls.of(port) {
                        None => serve(Stream::Plain(socket), self.clone()),
                        Some(config) => {
                            tokio::task::spawn_local(self.clone().shake(socket, config, serve));
                        }
                    }
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn shake(self: Rc<Self>, socket: Socket, config: Arc<ServerConfig>, serve: Serve) {
        let shaken = self.handshakes.shake(socket, config, &self.plane.counters);
        if let Some(stream) = shaken.await {
            serve(stream, self);
        }
    }

    /// The connection to a target; dialled if there is none.
    pub fn upstream(&self, target: &Arc<Target>) -> Rc<Upstream> {
        if let Some(upstream) = self.upstreams.borrow().get(&target.id) {
            return upstream.clone();
        }
        let upstream = Upstream::dial(target.clone(), self.plane.clone());
        if target.is_removed() {
            upstream.close();
        } else {
            self.upstreams
                .borrow_mut()
                .insert(target.id, upstream.clone());
        }
        upstream
    }

    /// What is known of the method with this path, when it is called from there.
    pub fn method(&self, path: &str, origin: Origin) -> Rc<Method> {
        let label = || self.plane.labels.number(path.trim_start_matches('/'));
        let rules = &self.plane.rules;
        match origin {
            Origin::Client => self.methods.get(path, rules.generation(), || {
                Method::of(path, label(), rules.current().as_deref())
            }),
            Origin::Peer => self
                .peer_methods
                .get(path, 0, || Method::for_peers(path, label())),
        }
    }

    /// The histograms of this loop.
    pub fn histograms(&self) -> &Histograms {
        &self.plane.histograms[self.index]
    }

    /// A number nobody can rely on (xorshift).
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x
    }

    /// Resolves when the relay starts draining.
    pub async fn draining(&self) {
        // An error means that the relay is gone, which is draining too.
        let _ = self
            .phase
            .clone()
            .wait_for(|phase| *phase > Phase::Serving)
            .await;
    }

    /// Resolves when the time for draining is over.
    pub async fn cut(&self) {
        let mut phase = self.phase.clone();
        let Ok(reached) = phase
            .wait_for(|phase| *phase > Phase::Serving)
            .await
            .map(|phase| *phase)
        else {
            return;
        };
        if let Phase::Draining(until) = reached {
            let stopped = phase.wait_for(|phase| *phase == Phase::Stopped);
            let _ = tokio::time::timeout_at(until.into(), stopped).await;
        }
    }
}
