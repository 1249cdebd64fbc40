//! The beginning of a model server's response, peeked into until it is certain that it goes to the client; and the books
//! of the replica that gave it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::attempt::{Attempt, Broken};
use crate::body::Body;
use crate::call::Door;
use crate::id_headers::MODEL_ID;
use crate::pick::Lease;
use crate::replica::Replica;
use crate::status::{Code, NotHere, Status};
use crate::trailers::{self, Private};
use crate::upstream::{Failure, Head};

/// Which replica answers, since when.
pub struct Server {
    /// Its slot.
    pub lease: Lease,
    /// When the request was sent.
    pub started: Instant,
    /// The concrete model, for the client.
    pub model_header: HeaderValue,
}

/// A response that has begun.
pub struct Answer {
    attempt: Attempt,
    head: HeaderMap,
    only_trailers: bool,
    first: Option<Bytes>,
    ended: Option<HeaderMap>,
    private: Private,
    server: Option<Server>,
}

impl Answer {
    /// From the head of the response. `server`: `None` for the control plane.
    ///
    /// # Errors
    /// What the client is told when the response is not gRPC.
    pub fn begun(attempt: Attempt, head: Head, server: Option<Server>) -> Result<Answer, Status> {
        if head.http != http::StatusCode::OK && trailers::code_in(&head.headers).is_none() {
            return Err(no_grpc(head.http.as_u16()));
        }
        let mut answer = Answer {
            attempt,
            head: head.headers,
            only_trailers: head.ended,
            first: None,
            ended: None,
            private: Private::default(),
            server,
        };
        answer.private = trailers::take_private(&mut answer.head);
        if let Some(server) = &answer.server {
            answer.head.insert(MODEL_ID, server.model_header.clone());
        }
        Ok(answer)
    }

    /// Waits until the response has either a first byte or an end.
    ///
    /// # Errors
    /// When one of the sides broke before that.
    pub async fn peek(&mut self, body: &mut Body<'_>) -> Result<(), Broken> {
        if self.only_trailers {
            return Ok(());
        }
        self.first = self.attempt.chunk(body).await?;
        if self.first.is_none() {
            let trailers = self.attempt.trailers().await?;
            self.ended = Some(self.without_private(trailers));
        }
        Ok(())
    }

    fn without_private(&mut self, mut trailers: HeaderMap) -> HeaderMap {
        let private = trailers::take_private(&mut trailers);
        self.private.not_here = private.not_here.or(self.private.not_here);
        self.private.execution_us = private.execution_us.or(self.private.execution_us);
        trailers
    }

    /// How it ended, if that is known before its first byte.
    pub fn early_end(&self) -> Option<&HeaderMap> {
        if self.only_trailers {
            Some(&self.head)
        } else {
            self.ended.as_ref()
        }
    }

    /// Whether, and how, the model server said that it does not hold the model.
    pub fn not_here(&self) -> Option<NotHere> {
        self.private.not_here
    }

    /// The concrete model that answers; `None`: the control plane does.
    pub fn model(&self) -> Option<Arc<str>> {
        let server = self.server.as_ref()?;
        Some(server.lease.replica.model.clone())
    }

    /// The head for the client.
    pub fn take_head(&mut self) -> HeaderMap {
        std::mem::take(&mut self.head)
    }

    /// The head is all there is.
    pub fn is_only_trailers(&self) -> bool {
        self.only_trailers
    }

    /// The next piece of the body.
    ///
    /// # Errors
    /// What the client is told when one of the sides broke.
    pub async fn chunk(&mut self, body: &mut Body<'_>) -> Result<Option<Bytes>, Status> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.ended.is_some() {
            return Ok(None);
        }
        self.attempt
            .chunk(body)
            .await
            .map_err(|broken| self.sentence(broken))
    }

    /// Waits for something on the client's side.
    ///
    /// # Errors
    /// What the client is told when its side broke.
    pub async fn meanwhile<T>(
        &mut self,
        body: &mut Body<'_>,
        poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Status> {
        self.attempt
            .meanwhile(body, poll)
            .await
            .map_err(|broken| self.sentence(broken))
    }

    /// A piece was passed on.
    pub fn release(&mut self, bytes: usize) {
        self.attempt.release(bytes);
    }

    /// The trailers for the client.
    ///
    /// # Errors
    /// What the client is told when the model server's side broke.
    pub async fn trailers(&mut self) -> Result<HeaderMap, Status> {
        if let Some(trailers) = self.ended.take() {
            return Ok(trailers);
        }
        let trailers = self
            .attempt
            .trailers()
            .await
            .map_err(|failure| self.sentence(failure.into()))?;
        let mut trailers = self.without_private(trailers);
        if trailers::code_in(&trailers).is_none() {
            trailers = trailers::of_status(&Status::new(
                Code::Internal,
                "The model server ended its answer without a status.",
            ));
        }
        Ok(trailers)
    }

    fn sentence(&self, broken: Broken) -> Status {
        match (broken, &self.server) {
            (Broken::Client(status), _) => status,
            (Broken::Upstream(failure), Some(server)) => broke_off(&failure, &server.lease.replica),
            (Broken::Upstream(_), None) => Status::new(
                Code::Unavailable,
                "The control plane went away while it had the request; send the request again.",
            ),
        }
    }

    /// It ended by itself, with these trailers.
    pub fn finish(&mut self, door: &Door<'_>, trailers: &HeaderMap) -> Code {
        let code = trailers::code_in(trailers).unwrap_or(Code::Internal);
        let Some(server) = self.server.take() else {
            return code;
        };
        let usage = &server.lease.replica.usage;
        usage
            .execution_us
            .fetch_add(self.private.execution_us.unwrap_or(0), Ordering::Relaxed);
        usage
            .errors
            .fetch_add(u64::from(code != Code::Ok), Ordering::Relaxed);
        if code != Code::Unavailable {
            server.lease.replica.circuit.succeeded();
        }
        door.event_loop.plane.touch(&server.lease.replica);
        if !server.lease.replica.target.peer {
            door.books.invoked.set(Some(server.started.elapsed()));
        }
        code
    }

    /// It broke off; the client is told so with this code.
    pub fn broke(&mut self, code: Code) {
        if let Some(server) = self.server.take() {
            server
                .lease
                .replica
                .usage
                .errors
                .fetch_add(u64::from(code != Code::Cancelled), Ordering::Relaxed);
        }
    }
}

/// What the client is told when nothing can be done about a failure.
pub fn broke_off(failure: &Failure, replica: &Replica) -> Status {
    let who = if replica.target.peer {
        "instance that has"
    } else {
        "model server of"
    };
    let (who, again) = (format!("{who} {}", replica.model), "send the request again");
    match failure {
        Failure::Unreachable => Status::new(
            Code::Unavailable,
            format!("The {who} cannot be reached; {again}."),
        ),
        Failure::Lost(why) => {
            let sentence =
                format!("The {who} went away while it had the request ({why}); {again}.");
            Status::new(Code::Unavailable, sentence)
        }
        Failure::Reset(Code::Cancelled) => Status::new(
            Code::Unavailable,
            format!("The {who} dropped the request; {again}."),
        ),
        Failure::Reset(code) => Status::new(
            *code,
            format!("The {who} broke the request off without a reason; see its log."),
        ),
    }
}

/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
fn no_grpc(http: u16) -> Status {
    let code = match http {
        400 | 431 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(
        code,
        format!("The model server answered with HTTP status {http} instead of gRPC; see its log."),
    )
}
