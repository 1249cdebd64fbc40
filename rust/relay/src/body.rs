//! A request's body on its way to a model server: passed on as it comes, and kept while it may have to be sent again.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use crate::connection::Incoming;
use crate::frames::{Frames, PREFIX_BYTES, parse_prefix, prefix};
use crate::inject::Injection;
use crate::plane::{Held, Plane};
use crate::status::{Code, Status};
use crate::tee::Captured;

/// See the module. Chunks before `sent` were sent in this attempt and are held for the next one.
pub struct Body<'a> {
    incoming: Option<Incoming>,
    frames: Frames,
    chunks: VecDeque<Bytes>,
    sent: usize,
    held: usize,
    whole: bool,
    /// Somebody else holds it and counts it.
    shared: bool,
    kept: Held<'a>,
    captured: Option<Captured>,
    injected: Option<Injected<'a>>,
    plane: &'a Plane,
}

/// An injection at work on what was not sent yet.
struct Injected<'a> {
    injection: Injection<'a>,
    /// Bytes that came and are in no changed message yet.
    raw_bytes: usize,
    /// The chunks that the message which is ready was made of; they stay until its first piece is taken.
    ready_chunks: usize,
}

/// How the client left, as a status; it is not sent to anybody.
pub fn gone() -> Status {
    Status::new(Code::Cancelled, "The client left.")
}

impl<'a> Body<'a> {
    /// A body that comes over the network. `streaming`: it is never replayed.
    pub fn incoming(incoming: Incoming, streaming: bool, plane: &'a Plane) -> Body<'a> {
        Body {
            incoming: Some(incoming),
            frames: Frames::new("request", plane.config.message_bytes_max),
            chunks: VecDeque::new(),
            sent: 0,
            held: 0,
            whole: !streaming,
            shared: false,
            kept: Held::none(&plane.gauges.kept_bytes),
            captured: None,
            injected: None,
            plane,
        }
    }

    /// A body that is here already.
    pub fn message(message: Bytes, plane: &'a Plane) -> Body<'a> {
        let chunks = VecDeque::from([prefix(message.len()), message]);
        Body::here(chunks, false, plane)
    }

    /// A message with its prefix that several bodies share; whoever holds it counts it.
    pub fn shared(framed: Bytes, plane: &'a Plane) -> Body<'a> {
        Body::here(VecDeque::from([framed]), true, plane)
    }

    fn here(chunks: VecDeque<Bytes>, shared: bool, plane: &'a Plane) -> Body<'a> {
        let held = chunks.iter().map(Bytes::len).sum();
        Body {
            incoming: None,
            frames: Frames::new("request", plane.config.message_bytes_max),
            chunks,
            sent: 0,
            held,
            whole: true,
            shared,
            kept: Held::none(&plane.gauges.kept_bytes),
            captured: None,
            injected: None,
            plane,
        }
    }

    /// From now on what comes is captured too, with what has come.
    pub fn capture(&mut self, mut captured: Captured) {
        self.chunks.iter().for_each(|chunk| captured.push(chunk));
        self.captured = Some(captured);
    }

    /// What was captured.
    pub fn captured(&mut self) -> Option<Captured> {
        self.captured.take()
    }

    /// Where it is counted.
    pub fn plane(&self) -> &'a Plane {
        self.plane
    }

    /// Whether all of it has come.
    pub fn has_come(&self) -> bool {
        self.incoming.is_none()
    }

    /// Whether all of it was passed on.
    pub fn is_sent(&self) -> bool {
        self.has_come()
            && match &self.injected {
                Some(injected) => injected.raw_bytes == 0 && !injected.injection.is_ready(),
                None => self.sent == self.chunks.len(),
            }
    }

    /// Whether it can be sent from its start.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Bytes it holds in memory, to be counted where it waits.
    pub fn held(&self) -> usize {
        if self.shared { 0 } else { self.held }
    }

    /// Bytes that came so far, or all of a whole one.
    pub fn bytes(&self) -> u64 {
        self.frames.bytes().max(self.held as u64)
    }

    /// A new attempt starts. False: too much was let go already.
    pub fn rewind(&mut self) -> bool {
        if self.sent > 0 && !self.whole {
            return false;
        }
        self.sent = 0;
        self.injected = None;
        self.kept.clear();
        self.whole = self.whole && self.keep(self.held);
        true
    }

    /// No attempt is made now: what one put into messages is dropped.
    pub fn rest(&mut self) {
        self.injected = None;
    }

    fn keep(&mut self, more: usize) -> bool {
        let config = &self.plane.config;
        self.shared
            || self.held <= config.kept_body_bytes_max
                && self.kept.try_add(more, config.kept_bytes_max)
    }

    /// All that came, in one piece; nothing is left to send.
    pub fn take(&mut self) -> Bytes {
        let taken = self.joined(self.held);
        self.chunks.clear();
        self.held = 0;
        self.sent = 0;
        taken
    }

    /// From now on, until the next attempt, messages are sent as `injection` changes them. Returns when the first one is ready.
    ///
    /// # Errors
    /// What the client is told when it cannot be changed, or held.
    pub async fn inject(&mut self, mut injection: Injection<'a>) -> Result<(), Status> {
        injection.hold(self.held)?;
        self.injected = Some(Injected {
            injection,
            raw_bytes: self.held,
            ready_chunks: 0,
        });
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Until a changed message is ready, or (nothing is) the body is over.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        loop {
            let Some(injected) = &self.injected else {
                return Poll::Ready(Ok(()));
            };
            let raw_bytes = injected.raw_bytes;
            if raw_bytes >= PREFIX_BYTES
                && let Some((_, length)) = parse_prefix(&self.joined(PREFIX_BYTES))
                && raw_bytes >= PREFIX_BYTES + length
            {
                return Poll::Ready(self.change(PREFIX_BYTES + length));
            }
            match ready!(self.poll_fill(cx)) {
                Some(Ok(more)) => {
                    if self.whole && !self.keep(more) {
                        self.let_go();
                    }
                    if let Some(injected) = &mut self.injected {
                        injected.raw_bytes += more;
                        injected.injection.hold(more)?;
                    }
                }
                Some(Err(status)) => return Poll::Ready(Err(status)),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Has the message changed that the next `bytes` are.
    fn change(&mut self, bytes: usize) -> Result<(), Status> {
        let frame = self.joined(bytes);
        let (mut end, mut missing) = (self.sent, bytes);
        while missing > 0 {
            let chunk = &mut self.chunks[end];
            end += 1;
            if chunk.len() > missing {
                let next = chunk.split_off(missing);
                self.chunks.insert(end, next);
                break;
            }
            missing -= chunk.len();
        }
        let ready_chunks = end - self.sent;
        let Some(injected) = &mut self.injected else {
            return Ok(());
        };
        injected.raw_bytes -= bytes;
        injected.ready_chunks = ready_chunks;
        injected.injection.change(&frame)
    }

    /// The next piece of a changed message; `None` when the body is over.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if self
            .injected
            .as_ref()
            .is_some_and(|injected| !injected.injection.is_ready())
            && let Err(status) = ready!(self.poll_message(cx))
        {
            return Poll::Ready(Some(Err(status)));
        }
        let Some(injected) = &mut self.injected else {
            return Poll::Ready(None);
        };
        let (piece, passed) = (
            injected.injection.piece(),
            std::mem::take(&mut injected.ready_chunks),
        );
        self.sent += passed;
        if !self.whole {
            self.drop_sent();
        }
        Poll::Ready(piece.map(Ok))
    }

    fn drop_sent(&mut self) {
        for chunk in self.chunks.drain(..self.sent) {
            self.held -= chunk.len();
        }
        self.sent = 0;
    }

    /// It will not be sent again: nothing more is kept.
    pub fn let_go(&mut self) {
        self.whole = false;
        self.drop_sent();
        self.kept.clear();
    }

    /// Takes in what comes next, without sending it. `None`: nothing more comes.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<usize, Status>>> {
        let Some(incoming) = self.incoming.as_mut() else {
            return Poll::Ready(None);
        };
        match ready!(incoming.poll_chunk(cx)) {
            Some(Ok(chunk)) => {
                if incoming.is_ended() {
                    self.incoming = None;
                }
                self.frames.feed(&chunk)?;
                if self.incoming.is_none() {
                    self.frames.end()?;
                }
                let more = chunk.len();
                self.held += more;
                if let Some(captured) = &mut self.captured {
                    captured.push(&chunk);
                }
                self.chunks.push_back(chunk);
                Poll::Ready(Some(Ok(more)))
            }
            Some(Err(())) => Poll::Ready(Some(Err(gone()))),
            None => {
                self.incoming = None;
                self.frames.end()?;
                Poll::Ready(None)
            }
        }
    }

    /// The next chunk to send; `None` at the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if self.injected.is_some() {
            return self.poll_piece(cx);
        }
        if self.sent == self.chunks.len() {
            match ready!(self.poll_fill(cx)) {
                Some(Ok(more)) => {
                    if self.whole && !self.keep(more) {
                        self.let_go();
                    }
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
        if self.whole {
            let chunk = self.chunks[self.sent].clone();
            self.sent += 1;
            return Poll::Ready(Some(Ok(chunk)));
        }
        let chunk = self.chunks.pop_front();
        self.held -= chunk.as_ref().map_or(0, Bytes::len);
        Poll::Ready(chunk.map(Ok))
    }

    /// The first `n` bytes, or all if there are fewer, once they have come. Only before the first attempt.
    pub async fn first(&mut self, n: usize) -> Result<Bytes, Status> {
        while self.held < n {
            match std::future::poll_fn(|cx| self.poll_fill(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return Err(status),
                None => break,
            }
        }
        Ok(self.joined(n))
    }

    /// The next `n` bytes to send, or all that came if there are fewer. Copied unless they are in one chunk.
    fn joined(&self, n: usize) -> Bytes {
        let mut chunks = self.chunks.range(self.sent..);
        let Some(first) = chunks.next() else {
            return Bytes::new();
        };
        if first.len() >= n || self.sent + 1 == self.chunks.len() {
            return first.slice(..n.min(first.len()));
        }
        let mut joined = BytesMut::with_capacity(n.min(self.held));
        joined.extend_from_slice(first);
        for chunk in chunks {
            let missing = n - joined.len();
            if missing == 0 {
                break;
            }
            joined.extend_from_slice(&chunk[..missing.min(chunk.len())]);
        }
        joined.freeze()
    }
}

#[cfg(test)]
#[path = "inject_tests.rs"]
mod tests;
