//! Attempts: send a request to a replica, and decide what a failure means. Losing a copy is not the request's fault, so
//! it waits again; an overloaded or failing copy is worth one of the retries that the budget allows.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::HeaderMap;

use crate::answer::{Answer, Server, broke_off};
use crate::attempt::{Attempt, Broken};
use crate::body::Body;
use crate::call::{Call, Stage};
use crate::headers::{self, Forwarded};
use crate::inject::Injection;
use crate::pick::{self, Pick};
use crate::replica::{Replica, Route, Target};
use crate::status::{Code, NotHere, Status};
use crate::trailers::status_in;
use crate::upstream::Failure;
use crate::waiting::Found;

/// How often a request may meet copies that are not there, before the routes are believed to be wrong.
const NOT_HERE_MAX: u32 = 8;

/// How many instances a request may leave because they miss pings. Those it left may be serving it all the same.
const MOVES_MAX: usize = 3;

/// Attempts on other copies, budget or not.
const RETRIES_MAX: u32 = 3;

/// What one attempt came to.
enum Tried {
    /// For the client.
    Answer(Box<Answer>),
    /// For the client, unless another copy does better.
    Failed(Box<Answer>, Code),
    /// The copy was lost.
    Lost(Failure),
    /// The instance that has the copy misses pings.
    Suspected,
    /// Nothing was sent.
    Unreachable,
    /// The copy is not there.
    NotHere(NotHere),
    /// For the client.
    Refused(Status),
}

/// Why an attempt has no answer.
enum Stopped {
    /// It broke.
    Broken(Broken),
    /// The instance that was asked misses pings, and another one can be asked.
    Moves,
}

#[derive(Default)]
struct Tries {
    crashes: u32,
    /// Targets it left because they miss pings, each once.
    left: Vec<u64>,
    not_here: u32,
    retries: u32,
    exhausted: bool,
}

impl Tries {
    fn may_leave(&self, target: &Target) -> bool {
        target.peer && self.left.len() < MOVES_MAX && !self.left.contains(&target.id)
    }
}

impl Call<'_> {
    /// Has the request served.
    ///
    /// # Errors
    /// What the client is told when the relay answers itself.
    pub async fn infer(&mut self, body: &mut Body<'_>) -> Result<Box<Answer>, Status> {
        let mut tries = Tries::default();
        let mut found = self.find(body).await?;
        loop {
            let (replica, route) = (found.lease.replica.clone(), found.route.clone());
            match self.attempt(found, body, &tries).await {
                Tried::Answer(answer) => {
                    body.let_go();
                    return Ok(answer);
                }
                Tried::Refused(status) => return Err(status),
                Tried::Failed(answer, code) => {
                    match self.another(&replica, &route, code, body, &mut tries) {
                        Some(other) => found = other,
                        None => {
                            body.let_go();
                            return Ok(answer);
                        }
                    }
                }
                Tried::Unreachable => {
                    self.avoid.push(replica.id);
                    found = self.find(body).await?;
                }
                Tried::Lost(failure) => {
                    pick::failed(&replica, &route, self.plane);
                    replica.usage.errors.fetch_add(1, Ordering::Relaxed);
                    tries.crashes += 1;
                    if tries.crashes > 1 || !body.is_whole() {
                        return Err(broke_off(&failure, &replica));
                    }
                    self.plane.counters.replays.add(1);
                    found = self.find(body).await?;
                }
                Tried::Suspected => {
                    pick::failed(&replica, &route, self.plane);
                    replica.usage.errors.fetch_add(1, Ordering::Relaxed);
                    tries.left.push(replica.target.id);
                    self.plane.counters.replays.add(1);
                    found = self.find(body).await?;
                }
                Tried::NotHere(why) => {
                    replica.is_not_here();
                    self.plane.counters.not_here.add(1);
                    tries.not_here += 1;
                    self.reloaded |= why == NotHere::Told;
                    if tries.not_here > NOT_HERE_MAX || !body.is_whole() {
                        return Err(unloaded(&replica));
                    }
                    found = self.find(body).await?;
                }
            }
        }
    }

    async fn attempt(&mut self, found: Found, body: &mut Body<'_>, tries: &Tries) -> Tried {
        let Found { lease, route } = found;
        let replica = lease.replica.clone();
        if !body.rewind() {
            return Tried::Refused(unloaded(&replica));
        }
        let Some(id_path) = replica.target.id_path(&self.method.path) else {
            return Tried::Refused(not_served(&replica, &self.method.path));
        };
        if !id_path.is_empty() {
            self.stage.set(Stage::Reading);
            let injection = Injection::new(
                id_path,
                replica.model.clone(),
                &self.method.path,
                headers::gzip(self.headers),
                body.plane(),
            );
            if let Err(status) = body.inject(injection).await {
                return Tried::Refused(status);
            }
        }
        let upstream = self.event_loop.upstream(&replica.target);
        let headers = self.headers_to(&replica, &route);
        let mut attempt = match Attempt::start(&upstream, &self.method.path, headers, body).await {
            Ok(attempt) => attempt,
            Err(Failure::Unreachable) => return Tried::Unreachable,
            Err(failure) => return Tried::Lost(failure),
        };
        self.stage.set(Stage::Sent);
        replica.usage.requests.fetch_add(1, Ordering::Relaxed);
        self.plane.touch(&replica);
        if replica.target.peer {
            self.plane.counters.to_peers.add(1);
        }
        let server = Server {
            lease,
            started: Instant::now(),
            model_header: route.model_header.clone(),
        };
        let mut suspected = pin!(attempt.suspected());
        let mut moves = tries
            .may_leave(&replica.target)
            .then_some(suspected.as_mut());
        let head = async |attempt: &mut Attempt, body: &mut Body<'_>| attempt.head(body).await;
        let head = match unless_it_moves(&mut moves, &mut attempt, body, head).await {
            Ok(head) => head,
            Err(stopped) => return self.stopped(stopped, &replica),
        };
        let mut answer = match Answer::begun(attempt, head, Some(server)) {
            Ok(answer) => Box::new(answer),
            Err(status) => return Tried::Refused(status),
        };
        // While the client still sends, it may wait for the head before it sends more: nothing is held back.
        if body.has_come() && !self.method.streaming {
            let peek = async |answer: &mut Answer, body: &mut Body<'_>| answer.peek(body).await;
            if let Err(stopped) = unless_it_moves(&mut moves, &mut *answer, body, peek).await {
                return self.stopped(stopped, &replica);
            }
        }
        self.judge(answer, &replica, &route)
    }

    fn headers_to(&self, replica: &Replica, route: &Route) -> HeaderMap {
        if replica.target.peer {
            let forwarded = Forwarded {
                model: replica.model.clone(),
                name: self.name.clone(),
                reloaded: self.reloaded,
            };
            return headers::to_peer(
                self.headers,
                &forwarded,
                &route.model_header,
                self.plane.peer_header(),
                self.deadline,
            );
        }
        let ours = replica.target.signals_loss;
        let credentials = ours || self.plane.config.pass_credentials;
        headers::to_model(
            self.headers,
            &replica.model,
            &route.model_header,
            !ours,
            credentials,
            self.deadline,
        )
    }

    fn stopped(&self, stopped: Stopped, replica: &Replica) -> Tried {
        match stopped {
            Stopped::Moves => Tried::Suspected,
            Stopped::Broken(broken) => self.broken(broken, replica),
        }
    }

    fn broken(&self, broken: Broken, replica: &Replica) -> Tried {
        match broken {
            Broken::Client(status) => Tried::Refused(status),
            Broken::Upstream(Failure::Reset(code)) => {
                replica.usage.errors.fetch_add(1, Ordering::Relaxed);
                Tried::Refused(broke_off(&Failure::Reset(code), replica))
            }
            Broken::Upstream(failure) => Tried::Lost(failure),
        }
    }

    fn judge(&self, answer: Box<Answer>, replica: &Arc<Replica>, route: &Route) -> Tried {
        let Some(trailers) = answer.early_end() else {
            return Tried::Answer(answer);
        };
        if let Some(why) = answer.not_here() {
            return Tried::NotHere(why);
        }
        let Some(status) = status_in(trailers).filter(|status| status.code != Code::Ok) else {
            return Tried::Answer(answer);
        };
        let told = status.code == Code::NotFound || status.tells_loss(&replica.model);
        if !replica.target.signals_loss && told && !self.reloaded {
            return Tried::NotHere(NotHere::Told);
        }
        match status.code {
            Code::Unavailable => {
                pick::failed(replica, route, self.plane);
                Tried::Failed(answer, status.code)
            }
            Code::ResourceExhausted => Tried::Failed(answer, status.code),
            _ => Tried::Answer(answer),
        }
    }

    /// Another copy to try after this one failed, if there is one with a free slot and the budget allows.
    fn another(
        &mut self,
        failed: &Replica,
        route: &Route,
        code: Code,
        body: &Body<'_>,
        tries: &mut Tries,
    ) -> Option<Found> {
        let once = code == Code::ResourceExhausted;
        if !body.is_whole() || tries.retries >= RETRIES_MAX || (once && tries.exhausted) {
            return None;
        }
        self.avoid.push(failed.id);
        let route = self
            .plane
            .models
            .get(&route.model)
            .filter(|route| route.is_usable(&self.avoid))?;
        if !self.event_loop.budget.withdraw(Instant::now()) {
            self.plane.counters.retries_denied.add(1);
            return None;
        }
        match pick::pick(
            &route,
            &self.avoid,
            self.sent_on.is_some(),
            self.plane.now_ms(),
            self.event_loop.random(),
        ) {
            Pick::Lease(lease) => {
                failed.usage.errors.fetch_add(1, Ordering::Relaxed);
                self.plane.counters.retries.add(1);
                tries.retries += 1;
                tries.exhausted |= once;
                Some(Found { lease, route })
            }
            Pick::Full | Pick::Nobody => None,
        }
    }
}

/// Takes a step, which may be begun anew, towards an answer. When the instance that is asked is `suspected` meanwhile, a request
/// that is kept does not wait for it; another one has to.
async fn unless_it_moves<S, T>(
    suspected: &mut Option<Pin<&mut impl Future<Output = ()>>>,
    state: &mut S,
    body: &mut Body<'_>,
    step: impl AsyncFn(&mut S, &mut Body<'_>) -> Result<T, Broken>,
) -> Result<T, Stopped> {
    if let Some(suspicion) = suspected {
        tokio::select! {
            biased;
            done = step(state, body) => return done.map_err(Stopped::Broken),
            () = suspicion => {}
        }
        if body.is_whole() {
            return Err(Stopped::Moves);
        }
        *suspected = None;
    }
    step(state, body).await.map_err(Stopped::Broken)
}

fn not_served(replica: &Replica, path: &str) -> Status {
    let sentence = format!(
        "The model server of {} does not take {}; call a method that it lists.",
        replica.model,
        path.trim_start_matches('/')
    );
    Status::new(Code::Unimplemented, sentence)
}

fn unloaded(replica: &Replica) -> Status {
    let sentence = format!(
        "Model {} was unloaded while the request was on its way; send it again.",
        replica.model
    );
    Status::new(Code::Unavailable, sentence)
}
