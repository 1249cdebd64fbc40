//! The relay as a whole: start its loops, hand them what the control plane decides, stop them.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::event_loop::{Command, EventLoop, Listeners, Phase};
use crate::metrics::{self, Histogram, Metric};
use crate::plane::Plane;
use crate::replica::{Address, Target, TargetMethods};
use crate::status::Code;

const BACKLOG: i32 = 1024;

/// What was bound; `None`: that listener is off.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// gRPC.
    pub grpc: Option<SocketAddr>,
    /// REST.
    pub rest: Option<SocketAddr>,
    /// For other instances.
    pub peer: Option<SocketAddr>,
}

/// A target as the control plane gives it.
#[derive(Debug)]
pub struct NewTarget {
    /// Never reused.
    pub id: u64,
    /// `unix:/path` or `host:port`.
    pub address: String,
    /// 0: no bound.
    pub max_concurrency: u32,
    /// It says "not here" by a private trailer.
    pub signals_loss: bool,
    /// What it takes.
    pub methods: TargetMethods,
    /// It is another instance; then the three before do not matter.
    pub peer: bool,
}

/// One replica's usage since the last reading.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct UsageRow {
    pub model: Arc<str>,
    pub replica: u64,
    pub requests: u64,
    pub errors: u64,
    pub in_flight: u32,
    pub execution_us: u64,
    pub last_used_ms_ago: u64,
}

/// One histogram.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct HistogramRow {
    pub metric: Metric,
    pub method: Box<str>,
    pub code: Code,
    /// Empty where there are no series per model.
    pub model: Arc<str>,
    /// What it was asked for by; empty: by its own id.
    pub vmodel: Arc<str>,
    pub histogram: Histogram,
}

/// See the module. Not for several threads at once.
pub struct DataPlane {
    /// What the loops share; names and routes are published here.
    pub plane: Arc<Plane>,
    loops: Vec<mpsc::UnboundedSender<Command>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    phase: watch::Sender<Phase>,
    process: u32,
}

impl DataPlane {
    /// Not serving yet.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(config: Config) -> io::Result<DataPlane> {
        Ok(DataPlane {
            plane: Arc::new(Plane::new(config)?),
            loops: Vec::new(),
            threads: Vec::new(),
            phase: watch::Sender::new(Phase::Serving),
            process: std::process::id(),
        })
    }

    /// Binds and serves.
    ///
    /// # Errors
    /// A sentence, when an address cannot be bound or a thread not started.
    pub fn start(&mut self) -> Result<Addresses, String> {
        if !self.loops.is_empty() || *self.phase.borrow() != Phase::Serving {
            return Err("The data plane was started already; make a new one.".to_owned());
        }
        let config = &self.plane.config;
        let n = config.threads.max(1);
        let bind = |host: &str, port: Option<u16>, what| match port {
            Some(port) => bind(host, port, n, what).map(Some),
            None => Ok(None),
        };
        let mut grpc = bind(&config.host, config.grpc_port, "gRPC")?;
        let mut rest = bind(&config.host, config.rest_port, "REST")?;
        let mut peer = bind(&config.peer_host, config.peer_port, "peer")?;
        let addresses = Addresses {
            grpc: grpc.as_ref().map(|bound| bound.address),
            rest: rest.as_ref().map(|bound| bound.address),
            peer: peer.as_ref().map(|bound| bound.address),
        };
        if let Some(address) = addresses.peer {
            self.plane.bound_for_peers(address);
        }
        for index in 0..n {
            let listeners = Listeners {
                grpc: grpc.as_mut().and_then(|bound| bound.listeners.pop()),
                rest: rest.as_mut().and_then(|bound| bound.listeners.pop()),
                peer: peer.as_mut().and_then(|bound| bound.listeners.pop()),
            };
            if let Err(error) = self.spawn(index, listeners) {
                self.stop();
                return Err(format!("An event loop could not be started: {error}."));
            }
        }
        Ok(addresses)
    }

    fn spawn(&mut self, index: usize, listeners: Listeners) -> io::Result<()> {
        let (sender, commands) = mpsc::unbounded_channel();
        let (plane, phase) = (self.plane.clone(), self.phase.subscribe());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serve = move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(
                &runtime,
                EventLoop::run(plane, index, listeners, commands, phase),
            )
        };
        self.threads.push(
            std::thread::Builder::new()
                .name(format!("relay-{index}"))
                .spawn(serve)?,
        );
        self.loops.push(sender);
        Ok(())
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for event_loop in &self.loops {
            // It fails only for a loop that has ended.
            let _ = event_loop.send(command());
        }
    }

    /// Learns and forgets model server processes.
    pub fn set_targets(&self, add: Vec<NewTarget>, remove: &[u64]) {
        for id in remove {
            if self.plane.remove_target(*id).is_some() {
                self.tell(|| Command::Close(*id));
            }
        }
        let targets: Vec<Arc<Target>> = add
            .into_iter()
            .map(|new| {
                let address = Address::parse(&new.address);
                Arc::new(if new.peer {
                    Target::of_peer(new.id, address)
                } else {
                    Target::new(
                        new.id,
                        address,
                        new.max_concurrency,
                        new.signals_loss,
                        new.methods,
                    )
                })
            })
            .collect();
        self.plane.add_targets(targets.iter().cloned());
        for target in targets {
            self.tell(|| Command::Dial(target.clone()));
        }
    }

    /// Stops acquiring these (replica, token). What is not held any more is retired at once.
    pub fn retire(&self, replicas: &[(u64, u64)], timeout: Duration) {
        for (id, token) in replicas {
            let Some(replica) = self.plane.replica(*id) else {
                self.plane.events.push(crate::event::Event::Retired {
                    replica: *id,
                    token: *token,
                    clean: true,
                });
                continue;
            };
            if !replica.retire(*token)
                && let Some(event_loop) = self.loops.first()
            {
                let _ = event_loop.send(Command::Retiring(replica, *token, timeout));
            }
        }
    }

    /// One row per replica used since the last call, and per replica in flight.
    pub fn take_usage(&self) -> Vec<UsageRow> {
        let now_ms = self.plane.now_ms();
        let row = |replica: &Arc<crate::replica::Replica>| {
            let usage = &replica.usage;
            UsageRow {
                model: replica.model.clone(),
                replica: replica.id,
                requests: usage.requests.swap(0, Ordering::Relaxed),
                errors: usage.errors.swap(0, Ordering::Relaxed),
                in_flight: replica.in_flight(),
                execution_us: usage.execution_us.swap(0, Ordering::Relaxed),
                last_used_ms_ago: now_ms.saturating_sub(usage.last_used_ms.load(Ordering::Relaxed)),
            }
        };
        self.plane.take_dirty().iter().map(row).collect()
    }

    /// All histograms since the start, summed over the loops.
    pub fn histograms(&self) -> Vec<HistogramRow> {
        let mut sum = AHashMap::new();
        for histograms in &self.plane.histograms {
            histograms.add_to(&mut sum);
        }
        let keys = self.plane.series.keys();
        let row = |((metric, label, code, series), histogram): (metrics::Key, _)| {
            // Those of a place given away meanwhile are left out.
            let (model, vmodel) = keys.get(&series)?.clone();
            Some(HistogramRow {
                metric,
                method: self.plane.labels.name(label),
                code,
                model,
                vmodel,
                histogram,
            })
        };
        sum.into_iter().filter_map(row).collect()
    }

    /// Stops accepting clients; their connections close when what is in flight is done, or at the end of `timeout`.
    pub fn drain(&self, timeout: Duration) {
        self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Draining(Instant::now() + timeout);
            }
            serving
        });
    }

    /// Closes everything and joins the threads. Returns what went wrong in them.
    pub fn stop(&mut self) -> Vec<String> {
        self.phase.send_replace(Phase::Stopped);
        self.loops.clear();
        let ended = self.threads.drain(..).map(JoinHandle::join);
        ended
            .filter_map(|ended| match ended {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("An event loop ended: {error}.")),
                Err(_) => Some("An event loop panicked.".to_owned()),
            })
            .collect()
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // In a forked child the threads are the parent's.
        if self.process == std::process::id() {
            self.stop();
        }
    }
}

struct Bound {
    address: SocketAddr,
    listeners: Vec<TcpListener>,
}

fn bind(host: &str, port: u16, n: usize, what: &str) -> Result<Bound, String> {
    let sentence = |error: io::Error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            format!(
                "The {what} port {port} on {host} is taken; stop what listens there, or choose another port (0: any free one)."
            )
        } else {
            format!(
                "The {what} listener cannot be bound to {host}:{port}: {error}; check the host and port."
            )
        }
    };
    let mut addresses = (host, port).to_socket_addrs().map_err(sentence)?;
    let address = addresses
        .next()
        .ok_or_else(|| sentence(io::ErrorKind::AddrNotAvailable.into()))?;
    bind_all(address, n).map_err(sentence)
}

/// One listener per loop. The port is first bound alone: shared ports would let a second relay slip in beside the first.
fn bind_all(wanted: SocketAddr, n: usize) -> io::Result<Bound> {
    let alone = listen(wanted, false)?;
    if n == 1 {
        let address = alone.local_addr()?;
        return Ok(Bound {
            address,
            listeners: vec![alone],
        });
    }
    let address = alone.local_addr()?;
    drop(alone);
    let listeners = (0..n)
        .map(|_| listen(address, true))
        .collect::<io::Result<Vec<_>>>()?;
    Ok(Bound { address, listeners })
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.set_keepalive(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
