//! A request's body on its way to a model server: passed on as it comes, and kept while it may have to be sent again.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use crate::config::Config;
use crate::connection::Incoming;
use crate::frames::{Frames, PREFIX_BYTES, prefix};
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
    kept: Held<'a>,
    captured: Option<Captured>,
    config: &'a Config,
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
            kept: Held::none(&plane.gauges.kept_bytes),
            captured: None,
            config: &plane.config,
        }
    }

    /// A body that is here already.
    pub fn message(message: Bytes, plane: &'a Plane) -> Body<'a> {
        let held = PREFIX_BYTES + message.len();
        let chunks = VecDeque::from([prefix(&message), message]);
        Body {
            incoming: None,
            frames: Frames::new("request", plane.config.message_bytes_max),
            chunks,
            sent: 0,
            held,
            whole: true,
            kept: Held::none(&plane.gauges.kept_bytes),
            captured: None,
            config: &plane.config,
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

    /// Whether all of it has come.
    pub fn has_come(&self) -> bool {
        self.incoming.is_none()
    }

    /// Whether all of it was passed on.
    pub fn is_sent(&self) -> bool {
        self.has_come() && self.sent == self.chunks.len()
    }

    /// Whether it can be sent from its start.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Bytes held in memory.
    pub fn held(&self) -> usize {
        self.held
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
        self.kept.clear();
        self.whole = self.whole && self.keep(self.held);
        true
    }

    fn keep(&mut self, more: usize) -> bool {
        self.held <= self.config.kept_body_bytes_max
            && self.kept.try_add(more, self.config.kept_bytes_max)
    }

    /// It will not be sent again: nothing more is kept.
    pub fn let_go(&mut self) {
        self.whole = false;
        for chunk in self.chunks.drain(..self.sent) {
            self.held -= chunk.len();
        }
        self.sent = 0;
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
        match self.chunks.front() {
            Some(first) if first.len() >= n.min(self.held) => Ok(first.slice(..n.min(first.len()))),
            Some(_) => {
                let mut joined = BytesMut::with_capacity(n.min(self.held));
                for chunk in &self.chunks {
                    let missing = n - joined.len();
                    joined.extend_from_slice(&chunk[..missing.min(chunk.len())]);
                }
                Ok(joined.freeze())
            }
            None => Ok(Bytes::new()),
        }
    }
}
