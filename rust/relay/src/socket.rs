//! A connected socket that wakes its loop for what can be read only. A socket of tokio is watched for room to write as well,
//! so each answer that leaves wakes the loop once more for nothing: a third of all wake-ups when requests come one at a time.
//! Here room is watched for only while a write waits for some.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// What is read at once. The space for it is cleared first, so it is not larger than what HTTP/2 puts into a frame.
const READ_BYTES_MAX: usize = 16 << 10;

/// See the module.
pub struct Socket {
    socket: AsyncFd<socket2::Socket>,
    /// A second descriptor of the same socket, while a write waits for room.
    full: Option<AsyncFd<socket2::Socket>>,
}

impl Socket {
    /// Takes a connection over.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn tcp(stream: TcpStream) -> io::Result<Socket> {
        Socket::over(stream.into_std()?.into())
    }

    /// Takes a connection over.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn unix(stream: UnixStream) -> io::Result<Socket> {
        Socket::over(stream.into_std()?.into())
    }

    fn over(socket: socket2::Socket) -> io::Result<Socket> {
        Ok(Socket {
            socket: watched(socket, Interest::READABLE)?,
            full: None,
        })
    }

    /// Writes, now or once there is room.
    fn poll_write_by(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&socket2::Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(full) = &self.full {
                drop(ready!(full.poll_write_ready(cx))?);
                self.full = None;
            }
            match write(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let second = self.socket.get_ref().try_clone()?;
                    self.full = Some(watched(second, Interest::WRITABLE)?);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "the other constructor is unsafe; its condition, one descriptor for life, a socket2::Socket keeps"
)]
fn watched(socket: socket2::Socket, interest: Interest) -> io::Result<AsyncFd<socket2::Socket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let space = buf.remaining().min(READ_BYTES_MAX);
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let mut socket = guard.get_inner();
            match socket.read(buf.initialize_unfilled_to(space)) {
                Ok(n) => {
                    if 0 < n && n < space {
                        // That was all: the next read would only say so, and what comes later is told anew.
                        guard.clear_ready();
                    }
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |mut socket| socket.write(buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |mut socket| socket.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn block_on(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let bounded = tokio::time::timeout(std::time::Duration::from_secs(20), test);
            bounded.await.expect("within the time");
        });
    }

    fn pair() -> (Socket, Socket) {
        let (one, other) = UnixStream::pair().expect("descriptors");
        let socket = |stream| Socket::unix(stream).expect("watched");
        (socket(one), socket(other))
    }

    /// More than any socket buffer holds, so that both sides wait for each other many times.
    #[test]
    fn both_directions_wait_for_room_at_once() {
        const BYTES: usize = 8 << 20;
        block_on(async {
            let (one, other) = pair();
            let echo = async move {
                let (mut from, mut to) = tokio::io::split(other);
                tokio::io::copy(&mut from, &mut to).await.expect("echoed");
                to.shutdown().await.expect("closed");
            };
            let (mut from, mut to) = tokio::io::split(one);
            let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
            let send = async {
                to.write_all(&sent).await.expect("sent");
                to.shutdown().await.expect("closed");
            };
            let receive = async {
                let mut received = Vec::new();
                from.read_to_end(&mut received).await.expect("received");
                received
            };
            let ((), (), received) = tokio::join!(echo, send, receive);
            assert!(received == sent, "{} bytes came back", received.len());
        });
    }

    #[test]
    fn a_write_waits_without_spinning_and_fails_when_the_other_side_is_gone() {
        block_on(async {
            let (mut one, other) = pair();
            let chunk = vec![0; 1 << 20];
            let mut full = std::pin::pin!(async { one.write_all(&chunk).await });
            let waits = std::future::poll_fn(|cx| Poll::Ready(full.as_mut().poll(cx).is_pending()));
            assert!(waits.await, "a megabyte is more than the buffer takes");
            drop(other);
            assert!(full.await.is_err());
        });
    }
}
