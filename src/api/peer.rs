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
//!
//! A client that reads a byte now and then is as good as one that reads: an event stream costs little while it waits. A
//! large whole answer is held in memory meanwhile, so it must be taken at a least rate ([`Pace`]).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::head_check::HeadCheck;

/// How often to look again while there are bytes that nobody reads: readiness cannot be awaited then.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How fast a large answer must be taken, over the time that a write may stall: with this much in a second its memory is not
/// held for ever, and the slowest of links has more. The kernel takes what it sends in bursts of some 40 KiB, so a client of
/// four times this rate is never taken for a slow one.
const LEAST_BYTES_PER_S: f64 = 1024.0;

/// Whether a large answer is under way on a connection. Event streams are none: they may be read as slowly as one likes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace(Arc<AtomicUsize>);

/// A large answer that is under way.
#[derive(Debug)]
pub(crate) struct Running(Pace);

impl Pace {
    /// The client must keep up from now on, until what is returned is dropped.
    pub(crate) fn begin(&self) -> Running {
        self.0.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    fn is_running(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket with two holders.
#[derive(Debug, Clone)]
pub(crate) struct SharedStream {
    // Never contended: both holders are polled by one task. It is there because a connection may change threads.
    inner: Arc<Mutex<PeerState>>,
}

#[derive(Debug)]
struct PeerState {
    stream: TcpStream,
    /// Sees every byte that hyper reads.
    heads: HeadCheck,
    write_stall_timeout: Duration,
    /// Runs while a write waits; most connections never need it.
    stall: Option<Pin<Box<Sleep>>>,
    pace: Pace,
    /// Runs while a large answer is under way.
    window: Option<Window>,
}

/// What was written of a large answer lately.
#[derive(Debug)]
struct Window {
    end: Pin<Box<Sleep>>,
    num_bytes: usize,
}

impl SharedStream {
    /// Shares `stream`. A write that makes no progress for `write_stall_timeout` fails.
    pub(crate) fn new(stream: TcpStream, write_stall_timeout: Duration) -> Self {
        let (heads, pace) = (HeadCheck::default(), Pace::default());
        let inner = PeerState { stream, heads, write_stall_timeout, stall: None, pace, window: None };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// For those who answer on it.
    pub(crate) fn pace(&self) -> Pace {
        self.lock().pace.clone()
    }

    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PeerState {
    /// What a write came to, unless it has waited for too long, or too little of a large answer was taken.
    fn written(&mut self, result: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let num_bytes = if let Poll::Ready(Ok(num_bytes)) = &result { *num_bytes } else { 0 };
        if self.count_taken(num_bytes, cx) {
            // Or the kernel would go on to keep what it has for a client that takes an hour over it.
            if let Err(e) = self.stream.set_zero_linger() {
                tracing::debug!(error = %e, "a slow connection lingers");
            }
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client reads a large answer too slowly",
            )));
        }
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

impl PeerState {
    /// Counts `num_bytes` that the client has taken; true if it has taken less of a large answer than it must.
    fn count_taken(&mut self, num_bytes: usize, cx: &mut Context<'_>) -> bool {
        if !self.pace.is_running() {
            self.window = None;
            return false;
        }
        let length = self.write_stall_timeout;
        let begin = || Window { end: Box::pin(tokio::time::sleep(length)), num_bytes: 0 };
        let window = self.window.get_or_insert_with(begin);
        window.num_bytes += num_bytes;
        if window.end.as_mut().poll(cx).is_pending() {
            return false;
        }
        let is_too_slow = (window.num_bytes as f64) < LEAST_BYTES_PER_S * length.as_secs_f64();
        *window = begin();
        // Asked once, so that it wakes this task when it ends.
        is_too_slow || window.end.as_mut().poll(cx).is_ready()
    }
}

/// Resolves when the peer has closed its sending half, or the connection has failed. Poll it after the connection
/// itself, in the same task: what is there to be read should have been read.
pub(crate) async fn gone(shared: SharedStream) {
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::net::TcpListener;

    use super::*;

    const WINDOW: Duration = Duration::from_millis(200);

    async fn inner() -> (SharedStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it listens");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (SharedStream::new(accepted.expect("a connection").0, WINDOW), client.expect("a connection"))
    }

    /// What becomes of a client that takes `num_bytes` now, and as many when the time is over.
    async fn written(stream: &SharedStream, num_bytes: usize) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut write = || stream.lock().written(Poll::Ready(Ok(num_bytes)), &mut cx);
        let first = write();
        tokio::time::sleep(WINDOW + Duration::from_millis(20)).await;
        let second = write();
        matches!((first, second), (Poll::Ready(Ok(_)), Poll::Ready(Ok(_))))
    }

    /// Each byte counted as progress, so that eight connections held 150 MB for as long as they liked.
    #[tokio::test]
    async fn a_large_answer_must_be_taken_at_a_rate_and_a_stream_need_not() {
        let (stream, _client) = inner().await;
        assert!(written(&stream, 1).await, "nothing large is under way");
        let running = stream.pace().begin();
        assert!(written(&stream, 10_000).await, "it keeps up");
        assert!(!written(&stream, 1).await, "a byte now and then is too little");
        drop(running);
        assert!(written(&stream, 1).await, "what follows on the connection is small again");
    }
}
