//! From a log to a response body: a reader, a dialect and heartbeats. Dropping the body drops the reader, which leaves
//! the stream; what that means is the stream's own policy.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use prometheus_client::metrics::gauge::Gauge;

use super::sse::{self, SseWriter};
use crate::stream::{Entry, Gap, Read, StreamLog, StreamReader};

/// Events that are ready go out in one write, up to about this size.
const FRAME_BYTES_MAX: usize = 16 << 10;

/// How one kind of client wants to hear of a generation.
pub trait Dialect: Send + 'static {
    /// Writes what comes before the first event. Called once.
    fn open(&mut self, out: &mut SseWriter);

    /// Writes what `entry` means to this client; may be nothing. After a terminal entry nothing follows.
    fn event(&mut self, entry: &Entry, out: &mut SseWriter);

    /// Writes that events are missing, and returns whether this client can go on with what follows. One that cannot
    /// is told by an error, and its stream ends.
    fn gap(&mut self, gap: Gap, out: &mut SseWriter) -> bool {
        self.event(&gap.into_end(), out);
        false
    }

    /// Writes that the stream goes on in another process, where this client would not come back by itself.
    fn suspended(&mut self, _log: &StreamLog, _out: &mut SseWriter) {}

    /// How many token events must have piled up before they may come as one; `None` keeps each on its own.
    fn merge_backlog(&self) -> Option<usize> {
        None
    }
}

/// Answers 200 with the events of `reader`, as `dialect` spells them, until the terminal one.
pub fn respond(reader: StreamReader, dialect: impl Dialect, heartbeat: Duration, readers: &Gauge) -> Response {
    let reading = Reading {
        reader,
        dialect,
        heartbeat,
        opened: false,
        ended: false,
        has_end: false,
        _count: Counted::new(readers),
    };
    let body = Body::from_stream(stream::unfold(reading, |mut reading| async move {
        let bytes = reading.next_bytes().await?;
        Some((Ok::<_, Infallible>(bytes), reading))
    }));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE));
    // `no-transform`: a proxy that compresses would also buffer.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Reading<D> {
    reader: StreamReader,
    dialect: D,
    heartbeat: Duration,
    opened: bool,
    /// Whether nothing follows.
    ended: bool,
    /// Whether the terminal event was given.
    has_end: bool,
    _count: Counted,
}

impl<D: Dialect> Reading<D> {
    /// The next bytes to write: everything that is ready, or a heartbeat when nothing has come for long.
    async fn next_bytes(&mut self) -> Option<Bytes> {
        let mut out = SseWriter::default();
        if !self.opened {
            self.opened = true;
            self.dialect.open(&mut out);
        }
        // Loops past events that mean nothing to this client, but never in silence for longer than a heartbeat.
        loop {
            if self.ended {
                return None;
            }
            self.take_ready(&mut out);
            if !out.is_empty() {
                return Some(out.take());
            }
            match tokio::time::timeout(self.heartbeat, self.reader.ready()).await {
                Ok(true) => {}
                Ok(false) => {
                    self.ended = true;
                    if !self.has_end && self.reader.log().is_suspended() {
                        self.dialect.suspended(self.reader.log(), &mut out);
                    }
                    return (!out.is_empty()).then(|| out.take());
                }
                Err(_elapsed) => out.heartbeat(),
            }
        }
    }

    fn take_ready(&mut self, out: &mut SseWriter) {
        while out.len() < FRAME_BYTES_MAX {
            match self.reader.read(self.dialect.merge_backlog()) {
                None => return,
                Some(Read::Entry(entry)) => {
                    self.has_end |= entry.event.is_terminal();
                    self.dialect.event(&entry, out);
                }
                Some(Read::Gap(gap)) => {
                    self.ended = !self.dialect.gap(gap, out);
                    if self.ended {
                        return;
                    }
                }
            }
        }
    }
}

/// One reader in the gauge, for as long as it lives.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
