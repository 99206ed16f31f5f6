//! Notices that the client has closed its connection, at all times.
//!
//! hyper notices by itself while a handler or a body is pending, but not once it holds bytes that it has no use for
//! yet (a pipelined request, a stray line break after a body): then it stops reading until the response is done, and
//! a long generation would go on for nobody. So the socket is shared between hyper and [`gone`], both in one task.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How often to look again while there are bytes that nobody reads: readiness cannot be awaited then.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A socket with two holders.
#[derive(Debug, Clone)]
pub struct SharedStream {
    // Never contended: both holders are polled by one task. It is there because a connection may change threads.
    stream: Arc<Mutex<TcpStream>>,
}

impl SharedStream {
    /// Shares `stream`.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: Arc::new(Mutex::new(stream)) }
    }

    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when the peer has closed its sending half, or the connection has failed. Poll it after the connection
/// itself, in the same task: what is there to be read should have been read.
pub async fn gone(shared: SharedStream) {
    loop {
        poll_fn(|cx| shared.lock().poll_read_ready(cx)).await.ok();
        // Something is there: the end, or bytes. Asking for readiness that is there answers at once.
        let ready = poll_fn(|cx| {
            let stream = shared.lock();
            let ready = pin!(stream.ready(Interest::READABLE)).poll(cx);
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
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }
}
