//! Which replica serves a request: the power of two choices by what is in flight, and around ejected copies.

use std::sync::Arc;

use crate::circuit::State;
use crate::plane::Plane;
use crate::replica::{Acquired, Replica, Route};

/// A slot of a replica; given back when dropped.
pub struct Lease {
    /// Whose slot.
    pub replica: Arc<Replica>,
    probe: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.probe {
            self.replica.circuit.end_probe();
        }
        self.replica.put_back();
    }
}

/// What came of picking.
pub enum Pick {
    /// This one.
    Lease(Lease),
    /// All that could serve are full.
    Full,
    /// None can serve.
    Nobody,
}

/// Candidates looked at before two are compared: more would cost without balancing better.
const LOOKED_AT_MAX: usize = 8;

/// Takes a slot of a replica that is usable and not to be avoided. `local`: of this instance only. `random` decides which are
/// compared: one of this instance with any other, so that nothing is sent on while nothing waits here.
pub fn pick(route: &Route, avoid: &[u64], local: bool, now_ms: u64, random: u64) -> Pick {
    let replicas = &route.replicas;
    let n = replicas.len();
    let start = if n > 1 {
        (random % n as u64) as usize
    } else {
        0
    };
    let around = || (0..n).map(|offset| &replicas[(start + offset) % n]);
    let usable = |replica: &&Arc<Replica>| {
        replica.is_usable() && !avoid.contains(&replica.id) && !(local && replica.target.peer)
    };
    let is_local = |replica: &&Arc<Replica>| !replica.target.peer;
    let mut best: [Option<&Arc<Replica>>; 2] = [None, None];
    for replica in around().take(LOOKED_AT_MAX).filter(usable) {
        match replica.circuit.state(now_ms) {
            State::Closed => {
                match best {
                    [None, _] => best[0] = Some(replica),
                    [_, None] => best[1] = Some(replica),
                    _ if is_local(&replica) => best[0] = Some(replica),
                    _ => {}
                }
                if best[1].is_some() && best.iter().flatten().any(is_local) {
                    break;
                }
            }
            State::Open => {}
            State::HalfOpen => {
                if replica.circuit.start_probe() {
                    if replica.acquire() == Acquired::Yes {
                        return Pick::Lease(Lease {
                            replica: replica.clone(),
                            probe: true,
                        });
                    }
                    replica.circuit.end_probe();
                }
            }
        }
    }
    if best[1].as_ref().is_some_and(is_local) {
        best.swap(0, 1);
    }
    if let [Some(first), Some(second)] = best
        && second.in_flight() < first.in_flight()
    {
        best.swap(0, 1);
    }
    let mut full = false;
    // The two compared, then all others, and ejected ones only when nothing else is left.
    let closed = around()
        .filter(usable)
        .filter(|replica| replica.circuit.state(now_ms) == State::Closed);
    let open = around()
        .filter(usable)
        .filter(|replica| replica.circuit.state(now_ms) != State::Closed);
    for replica in best.into_iter().flatten().chain(closed) {
        match replica.acquire() {
            Acquired::Yes => {
                return Pick::Lease(Lease {
                    replica: replica.clone(),
                    probe: false,
                });
            }
            Acquired::Full => full = true,
            Acquired::Gone => {}
        }
    }
    if full {
        return Pick::Full;
    }
    for replica in open {
        match replica.acquire() {
            Acquired::Yes => {
                return Pick::Lease(Lease {
                    replica: replica.clone(),
                    probe: false,
                });
            }
            Acquired::Full => full = true,
            Acquired::Gone => {}
        }
    }
    if full { Pick::Full } else { Pick::Nobody }
}

/// The replica failed; it is ejected when it did so repeatedly and at most half of the copies are.
pub fn failed(replica: &Replica, route: &Route, plane: &Plane) {
    let now_ms = plane.now_ms();
    let may_eject = || {
        let away = |other: &&Arc<Replica>| other.circuit.state(now_ms) != State::Closed;
        2 * (route.replicas.iter().filter(away).count() + 1) <= route.replicas.len()
    };
    if replica.circuit.failed(now_ms, may_eject) {
        plane.counters.ejections.add(1);
    }
}
