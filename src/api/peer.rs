//! Notices that the client has closed its connection, at all times, and that it has stopped reading.
//!
//! hyper notices a close by itself while a handler or a body is pending, but not once it holds bytes that it has no
//! use for yet (a pipelined request, a stray line break after a body): then it stops reading until the response is
//! done, and a long generation would go on for nobody. So the socket is shared between hyper and [`gone`], both in one
//! task.
//!
//! A client that stops reading fills its own buffers, then ours of this connection, then a write waits. When it has
//! waited for the time-out the write fails, and with it the connection: without the end of the body, so that a
//! client that comes to itself knows that there is more and resumes.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::head_check::HeadCheck;

/// How often to look again while there are bytes that nobody reads: readiness cannot be awaited then.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A socket with two holders.
#[derive(Debug, Clone)]
pub struct SharedStream {
    // Never contended: both holders are polled by one task. It is there because a connection may change threads.
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    stream: TcpStream,
    /// Sees every byte that hyper reads.
    heads: HeadCheck,
    write_stall_timeout: Duration,
    /// Runs while a write waits; most connections never need it.
    stall: Option<Pin<Box<Sleep>>>,
}

impl SharedStream {
    /// Shares `stream`. A write that makes no progress for `write_stall_timeout` fails.
    pub fn new(stream: TcpStream, write_stall_timeout: Duration) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                stream,
                heads: HeadCheck::default(),
                write_stall_timeout,
                stall: None,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What a write came to, unless it has waited for too long.
    fn written<T>(&mut self, result: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stall = None;
            return result;
        }
        let timeout = self.write_stall_timeout;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client has stopped reading")))
    }
}

/// Resolves when the peer has closed its sending half, or the connection has failed. Poll it after the connection
/// itself, in the same task: what is there to be read should have been read.
pub async fn gone(shared: SharedStream) {
    loop {
        poll_fn(|cx| shared.lock().stream.poll_read_ready(cx)).await.ok();
        // Something is there: the end, or bytes. Asking for readiness that is there answers at once.
        let ready = poll_fn(|cx| {
            let inner = shared.lock();
            let ready = pin!(inner.stream.ready(Interest::READABLE)).poll(cx);
            Poll::Ready(ready)
        });
        match ready.await {
            Poll::Ready(Ok(ready)) if !ready.is_read_closed() => tokio::time::sleep(LOOK_AGAIN).await,
            Poll::Ready(_) => return,
            // Read in between.
            Poll::Pending => {}
        }
    }
}

impl AsyncRead for SharedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        let num_before = buf.filled().len();
        let refused = || io::Error::new(io::ErrorKind::InvalidData, "a chunked body breaks the rules of its framing");
        if inner.heads.has_refused_body() {
            return Poll::Ready(Err(refused()));
        }
        ready!(Pin::new(&mut inner.stream).poll_read(cx, buf))?;
        let num_read = buf.filled().len() - num_before;
        let num_passed = inner.heads.follow(&mut buf.filled_mut()[num_before..]);
        if num_passed == 0 && num_read > 0 {
            return Poll::Ready(Err(refused()));
        }
        buf.set_filled(num_before + num_passed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        let result = Pin::new(&mut inner.stream).poll_write(cx, buf);
        inner.written(result, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        let result = Pin::new(&mut inner.stream).poll_write_vectored(cx, bufs);
        inner.written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().stream.is_write_vectored()
    }
}
