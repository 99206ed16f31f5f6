//! Readers that take a few bytes per second, beside the load that is measured. Each has a socket of its own with a
//! small receive buffer: an HTTP client would read ahead for them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::task::JoinSet;

use super::target::{Prepared, Target};

/// The system may make it somewhat larger.
const RECEIVE_BYTES: u32 = 2048;
/// Reads per second; fewer if a reader takes fewer bytes than that.
const READS_PER_S: usize = 4;

/// Slow readers at work; they stop when this is dropped.
pub(crate) struct SlowReaders {
    counts: Arc<Counts>,
    num_opened: usize,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    finished: AtomicU64,
    ended_early: AtomicU64,
}

/// What the slow readers came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SlowReport {
    /// Opened before the level began.
    pub readers: usize,
    /// Of these, how many had the whole answer when the level ended.
    pub finished: u64,
    /// And how many the server had closed before that, as it does with readers that take nothing for too long.
    pub ended_early: u64,
    /// Bytes read by all of them.
    pub bytes: u64,
}

impl SlowReaders {
    /// Connects one reader for each request, and sends it.
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub(crate) async fn open(target: &Target, requests: &[Prepared], bytes_per_s: usize) -> io::Result<Self> {
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        for request in requests {
            let stream = connect(target, request).await?;
            tasks.spawn(trickle(stream, bytes_per_s, counts.clone()));
        }
        Ok(Self { counts, num_opened: requests.len(), _tasks: tasks })
    }

    /// How far they are.
    pub(crate) fn report(&self) -> SlowReport {
        SlowReport {
            readers: self.num_opened,
            finished: self.counts.finished.load(Ordering::Relaxed),
            ended_early: self.counts.ended_early.load(Ordering::Relaxed),
            bytes: self.counts.bytes.load(Ordering::Relaxed),
        }
    }
}

async fn connect(target: &Target, request: &Prepared) -> io::Result<TcpStream> {
    let (host, bytes) = target.raw_post(request);
    let address = lookup_host(&host).await?.next();
    let address = address.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no address of {host}")))?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_recv_buffer_size(RECEIVE_BYTES)?;
    let stream = socket.connect(address).await?;
    let mut sent = 0;
    while sent < bytes.len() {
        stream.writable().await?;
        match stream.try_write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(stream)
}

/// Reads a little, waits, and so on to the end.
async fn trickle(stream: TcpStream, bytes_per_s: usize, counts: Arc<Counts>) {
    let mut buffer = vec![0; bytes_per_s.div_ceil(READS_PER_S)];
    let pause = Duration::from_secs_f64(buffer.len() as f64 / bytes_per_s as f64);
    let mut tail = Tail::default();
    while !tail.is_end() && stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                tail.push(&buffer[..n]);
                counts.bytes.fetch_add(n as u64, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let count = if tail.is_end() { &counts.finished } else { &counts.ended_early };
    count.fetch_add(1, Ordering::Relaxed);
}

/// The last bytes that came.
#[derive(Debug, Default)]
struct Tail([u8; Self::END.len()]);

impl Tail {
    /// How a chunked body ends (RFC 9112, section 7.1). No text of an event stream looks like it: there a carriage return
    /// is written as `\r`.
    const END: [u8; 7] = *b"\r\n0\r\n\r\n";

    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0.rotate_left(1);
            self.0[Self::END.len() - 1] = byte;
        }
    }

    fn is_end(&self) -> bool {
        self.0 == Self::END
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_once_its_last_chunk_came() {
        let mut tail = Tail::default();
        tail.push(b"1d\r\ndata: [DONE]\n\n");
        assert!(!tail.is_end());
        tail.push(b"\r\n0\r\n");
        assert!(!tail.is_end());
        tail.push(b"\r\n");
        assert!(tail.is_end());
    }
}
