//! One request on its way to one model server: its body goes out while the response comes in.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use crate::body::Body;
use crate::status::Status;
use crate::upstream::{Exchange, Failure, Head, Upstream};

/// A first chunk up to this goes out without asking for room: HTTP/2 holds it until there is some.
pub const DIRECT_BYTES_MAX: usize = 16 << 10;

/// Why an attempt ended early.
#[derive(Debug)]
pub enum Broken {
    /// The model server's side.
    Upstream(Failure),
    /// The client's side; this is its answer.
    Client(Status),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Broken {
        Broken::Upstream(failure)
    }
}

/// See the module. Dropping it cancels the request there.
pub struct Attempt {
    exchange: Exchange,
    pending: Option<Bytes>,
    direct: bool,
    body_done: bool,
}

impl Attempt {
    /// Sends the head, and whatever of the body is there.
    ///
    /// # Errors
    /// When it could not be sent.
    pub async fn start(
        upstream: &Upstream,
        path: &str,
        headers: HeaderMap,
        body: &Body<'_>,
    ) -> Result<Attempt, Failure> {
        let empty = body.is_sent();
        let exchange = upstream.open(path, headers, empty).await?;
        Ok(Attempt {
            exchange,
            pending: None,
            direct: true,
            body_done: empty,
        })
    }

    /// Passes on what has come of the body, as far as there is room.
    fn pump(&mut self, cx: &mut Context<'_>, body: &mut Body<'_>) -> Result<(), Broken> {
        while !self.body_done {
            let Some(chunk) = self.pending.take() else {
                match body.poll_next(cx) {
                    Poll::Ready(Some(Ok(chunk))) => self.pending = Some(chunk),
                    Poll::Ready(Some(Err(status))) => return Err(Broken::Client(status)),
                    Poll::Ready(None) => {
                        self.body_done = true;
                        self.exchange.send(Bytes::new(), true);
                    }
                    Poll::Pending => return Ok(()),
                }
                continue;
            };
            if !self.push(cx, chunk, body.is_sent()) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends what there is room for of a chunk; false when it has to wait.
    fn push(&mut self, cx: &mut Context<'_>, mut chunk: Bytes, last: bool) -> bool {
        let direct = std::mem::take(&mut self.direct) && chunk.len() <= DIRECT_BYTES_MAX;
        let room = if direct {
            Poll::Ready(Some(chunk.len()))
        } else {
            self.exchange.poll_capacity(chunk.len(), cx)
        };
        match room {
            Poll::Ready(Some(room)) if room >= chunk.len() => {
                // A server that takes no more says why in its response.
                self.body_done = !self.exchange.send(chunk, last) || last;
            }
            Poll::Ready(Some(room)) => {
                let part = chunk.split_to(room);
                if part.is_empty() || self.exchange.send(part, false) {
                    self.pending = Some(chunk);
                } else {
                    self.body_done = true;
                }
            }
            Poll::Ready(None) => self.body_done = true,
            Poll::Pending => {
                self.pending = Some(chunk);
                return false;
            }
        }
        true
    }

    /// Resolves when the model server, another instance, misses pings.
    pub fn suspected(&self) -> impl Future<Output = ()> + use<> {
        self.exchange.suspected()
    }

    /// Sends the body until the head of the response is there.
    ///
    /// # Errors
    /// When one of the sides broke.
    pub async fn head(&mut self, body: &mut Body<'_>) -> Result<Head, Broken> {
        poll_fn(|cx| {
            self.pump(cx, body)?;
            Poll::Ready(ready!(self.exchange.poll_head(cx)).map_err(Broken::from))
        })
        .await
    }

    /// The next piece of the response, `None` at the end of its body; goes on sending meanwhile.
    ///
    /// # Errors
    /// When one of the sides broke.
    pub async fn chunk(&mut self, body: &mut Body<'_>) -> Result<Option<Bytes>, Broken> {
        poll_fn(|cx| {
            self.pump(cx, body)?;
            Poll::Ready(
                ready!(self.exchange.poll_chunk(cx))
                    .transpose()
                    .map_err(Broken::from),
            )
        })
        .await
    }

    /// Waits for something on the client's side; goes on sending meanwhile.
    ///
    /// # Errors
    /// When the client's side broke.
    pub async fn meanwhile<T>(
        &mut self,
        body: &mut Body<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Broken> {
        poll_fn(|cx| {
            self.pump(cx, body)?;
            poll(cx).map(Ok)
        })
        .await
    }

    /// A piece of the response was passed on.
    pub fn release(&mut self, bytes: usize) {
        self.exchange.release(bytes);
    }

    /// The trailers, after the body.
    ///
    /// # Errors
    /// When the model server's side broke.
    pub async fn trailers(&mut self) -> Result<HeaderMap, Failure> {
        Ok(poll_fn(|cx| self.exchange.poll_trailers(cx))
            .await?
            .unwrap_or_default())
    }
}
