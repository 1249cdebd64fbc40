//! Gives a body to the answers hyper writes by itself. It answers what it cannot read as HTTP before any service is asked,
//! with a bare head, and offers no way to change that; a client of ours expects `{"error": …}` from everything.
//!
//! Such a head is known by its `content-length: 0`, as an answer of ours always has a body, and it is the last thing
//! hyper writes on a connection.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use inference::rest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const NO_BODY: &[u8] = b"\r\ncontent-length: 0\r\n";
const HEAD_END: &[u8] = b"\r\n\r\n";
const VERSION: &[u8] = b"HTTP/1.";

/// A stream on which every refusal has a body.
pub struct Worded<S> {
    stream: S,
    header_bytes_max: usize,
    /// What is still to be written of an answer that took the place of a bare head.
    pending: Bytes,
}

impl<S> Worded<S> {
    /// `header_bytes_max`: for the sentence to who sends more.
    pub fn new(stream: S, header_bytes_max: usize) -> Worded<S> {
        Worded {
            stream,
            header_bytes_max,
            pending: Bytes::new(),
        }
    }

    /// The answer with this bare head, and a body.
    fn answer(&self, bare: &[u8]) -> Bytes {
        let body = rest::error(&sentence(bare, self.header_bytes_max));
        let fields = format!(
            "\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        let at = find(bare, NO_BODY).unwrap_or(0);
        let (before, after) = (&bare[..at], &bare[at + NO_BODY.len()..]);
        [before, fields.as_bytes(), after, &body].concat().into()
    }
}

impl<S: AsyncWrite + Unpin> Worded<S> {
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while self.pending.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

/// Where in what is written a bare head begins that ends it.
fn bare_head(bytes: &[u8]) -> Option<usize> {
    if !bytes.ends_with(HEAD_END) {
        return None;
    }
    let at = bytes
        .windows(VERSION.len())
        .rposition(|window| window == VERSION)?;
    find(&bytes[at..], NO_BODY).map(|_| at)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// What to tell by the status in a head.
fn sentence(head: &[u8], header_bytes_max: usize) -> String {
    match head.get(VERSION.len() + 2..VERSION.len() + 5) {
        Some(b"414") => "The address of the request is too long; send what is long in the body.".to_owned(),
        Some(b"431") => format!(
            "The headers of the request are more than 100, or take more than the limit of {header_bytes_max} bytes; \
             send fewer or shorter ones."
        ),
        _ => "What was sent is no HTTP/1.1 request: its first line or one of its headers is malformed. This port \
              serves REST, as in POST /v2/models/MODEL/infer."
            .to_owned(),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Worded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Worded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<Result<usize>> {
        ready!(self.poll_pending(cx))?;
        match bare_head(buf) {
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
            Some(0) => {
                self.pending = self.answer(buf);
                Poll::Ready(Ok(buf.len()))
            }
            Some(at) => Pin::new(&mut self.stream).poll_write(cx, &buf[..at]),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        if let [only] = bufs {
            return self.poll_write(cx, only);
        }
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BARE: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    const OURS: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    fn written(chunks: &[&[u8]], room: usize) -> Vec<u8> {
        let (near, mut far) = tokio::io::duplex(room);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let send = async {
                let mut worded = Worded::new(near, 1000);
                for chunk in chunks {
                    worded.write_all(chunk).await.expect("room");
                    worded.flush().await.expect("room");
                }
                worded.shutdown().await.expect("open");
            };
            let mut received = Vec::new();
            let receive = far.read_to_end(&mut received);
            let ((), read) = tokio::join!(send, receive);
            read.expect("open");
            received
        })
    }

    #[test]
    fn a_bare_head_gets_a_body_wherever_it_stands() {
        let both = [OURS, BARE].concat();
        for room in [1, 7, 4096] {
            for chunks in [&[&both[..]][..], &[OURS, BARE], &[&both[..9], &both[9..]]] {
                let received = written(chunks, room);
                let error = received.strip_prefix(OURS).expect("ours is untouched");
                let (head, body) = error.split_at(find(error, HEAD_END).expect("a head") + 4);
                assert!(head.starts_with(b"HTTP/1.1 400 Bad Request\r\n"));
                let length = format!("\r\ncontent-length: {}\r\n", body.len());
                assert!(find(head, length.as_bytes()).is_some());
                assert!(find(head, b"\r\nconnection: close\r\n").is_some());
                assert!(body.starts_with(br#"{"error":"#) && body.ends_with(b"}"));
            }
        }
    }

    #[test]
    fn what_is_ours_stays_as_it_is() {
        let head_only = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n";
        let informational = b"HTTP/1.1 100 Continue\r\n\r\n";
        for bytes in [OURS, head_only, informational, b"", b"\r\n\r\n"] {
            assert_eq!(written(&[bytes], 64), bytes);
        }
    }

    #[test]
    fn the_sentence_fits_the_status() {
        for (status, word) in [
            ("400", "malformed"),
            ("414", "too long"),
            ("431", "1000 bytes"),
        ] {
            let head = format!("HTTP/1.1 {status} Whatever\r\n");
            assert!(sentence(head.as_bytes(), 1000).contains(word), "{status}");
        }
    }
}
