//! From a log to a response body: a reader, a dialect and heartbeats. Dropping the body drops the reader, which leaves
//! the stream; what that means is the stream's own policy.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::select_all;
use futures_util::stream;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, Sleep};

use super::sse::{self, SseWriter};
use crate::protocol::Event;
use crate::stream::{Entry, Gap, Read, StreamLog, StreamReader};

/// Events that are ready go out in one write, up to about this size.
const FRAME_BYTES_MAX: usize = 16 << 10;

/// Events of one stream that are read in a row.
const ROUNDS_MAX: usize = 256;

/// How one kind of client wants to hear of a generation.
pub(crate) trait Dialect: Send + 'static {
    /// Writes what comes before the first event. Called once.
    fn open(&mut self, out: &mut SseWriter);

    /// Writes what `entry` means to this client; may be nothing. After a terminal entry nothing follows.
    fn event(&mut self, entry: &Entry, out: &mut SseWriter);

    /// Writes that events are missing, and returns whether this client can go on with what follows. One that cannot
    /// is told by an error, and its stream ends.
    fn gap(&mut self, gap: Gap, out: &mut SseWriter) -> bool;

    /// Writes that the stream goes on in another process, where this client would not come back by itself.
    fn suspended(&mut self, log: &StreamLog, out: &mut SseWriter);

    /// How many token events must have piled up before they may come as one; `None` keeps each on its own.
    fn merge_backlog(&self) -> Option<usize>;
}

/// [`Dialect::gap`] of a client that cannot go on behind a hole.
pub(crate) fn end_at_gap(dialect: &mut impl Dialect, gap: Gap, out: &mut SseWriter) -> bool {
    dialect.event(&gap.into_end(), out);
    false
}

/// Answers 200 with the events of `reader`, as `dialect` spells them, until the terminal one.
pub(crate) fn respond(reader: StreamReader, dialect: impl Dialect, heartbeat: Duration, readers: &Gauge) -> Response {
    respond_many(vec![(reader, dialect)], heartbeat, readers)
}

/// Answers 200 with the events of several streams as they come, each spelled by a dialect of its own, until the last
/// terminal one, or the first that is an error.
pub(crate) fn respond_many<D: Dialect>(
    parts: Vec<(StreamReader, D)>,
    heartbeat: Duration,
    readers: &Gauge,
) -> Response {
    let parts = parts
        .into_iter()
        .map(|(reader, dialect)| BodyPart { reader, dialect, is_opened: false, has_end: false })
        .collect();
    let reading = BodyReading { parts, silence: Silence::new(heartbeat), _count: CountedReader::new(readers) };
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

struct BodyReading<D> {
    /// Those that may have more to come.
    parts: Vec<BodyPart<D>>,
    silence: Silence,
    _count: CountedReader,
}

/// One stream of a body.
struct BodyPart<D> {
    reader: StreamReader,
    dialect: D,
    is_opened: bool,
    /// Whether the terminal event was given.
    has_end: bool,
}

/// What came of looking at a part.
enum Taken {
    Nothing,
    Something,
    /// The body ends with it, whatever others would have to say.
    End,
}

impl<D: Dialect> BodyReading<D> {
    /// The next bytes to write: everything that is ready, or a heartbeat when nothing has come for long.
    async fn next_bytes(&mut self) -> Option<Bytes> {
        let mut out = SseWriter::default();
        // Loops past events that mean nothing to this client, but never in silence for longer than a heartbeat.
        loop {
            let is_dry = self.take_ready(&mut out);
            if !out.is_empty() {
                self.silence.break_off();
                return Some(out.take());
            }
            if !is_dry {
                // A long history that means nothing to this client: others get their turn.
                tokio::task::yield_now().await;
                continue;
            }
            if self.parts.is_empty() {
                return None;
            }
            let over = tokio::select! {
                biased;
                over = ready(&mut self.parts) => over,
                () = self.silence.last_too_long() => {
                    out.heartbeat();
                    None
                }
            };
            if let Some(index) = over {
                self.leave(index, &mut out);
            }
        }
    }

    /// Forgets a part that is over. One without an end goes on in another process, and so do the others.
    fn leave(&mut self, index: usize, out: &mut SseWriter) {
        let mut part = self.parts.remove(index);
        if !part.has_end && part.reader.log().is_suspended() {
            part.dialect.suspended(part.reader.log(), out);
            self.parts.clear();
        }
    }

    /// Takes from each part in turn, so that none waits for another's backlog; whether all is taken that is there.
    fn take_ready(&mut self, out: &mut SseWriter) -> bool {
        let (mut is_dry, mut num_rounds) = (false, 0);
        while !is_dry && out.len() < FRAME_BYTES_MAX && num_rounds < ROUNDS_MAX {
            is_dry = true;
            num_rounds += 1;
            for part in &mut self.parts {
                match part.take(out) {
                    Taken::Nothing => {}
                    Taken::Something => is_dry = false,
                    Taken::End => {
                        self.parts.clear();
                        return true;
                    }
                }
            }
        }
        is_dry
    }
}

/// Waits until there is something to take, or a part has nothing more to come, which is told then.
async fn ready<D>(parts: &mut [BodyPart<D>]) -> Option<usize> {
    match parts {
        [part] => (!part.reader.ready().await).then_some(0),
        parts => {
            let (is_ready, index, _) = select_all(parts.iter_mut().map(|p| Box::pin(p.reader.ready()))).await;
            (!is_ready).then_some(index)
        }
    }
}

/// How long nothing was written. Its timer is set anew when it rings and not with every write: with thousands of readers
/// the clockwork would be most of the work.
struct Silence {
    max: Duration,
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    fn new(max: Duration) -> Self {
        Self { max, since: Instant::now(), timer: Box::pin(tokio::time::sleep(max)) }
    }

    /// Something is written: it begins anew.
    fn break_off(&mut self) {
        self.since = Instant::now();
    }

    /// Waits until it has lasted for as long as it may.
    async fn last_too_long(&mut self) {
        loop {
            self.timer.as_mut().await;
            let due = self.since + self.max;
            if due <= Instant::now() {
                return;
            }
            self.timer.as_mut().reset(due);
        }
    }
}

impl<D: Dialect> BodyPart<D> {
    fn take(&mut self, out: &mut SseWriter) -> Taken {
        if !std::mem::replace(&mut self.is_opened, true) {
            self.dialect.open(out);
        }
        match self.reader.read(self.dialect.merge_backlog()) {
            None => Taken::Nothing,
            Some(Read::Entry(entry)) => {
                self.has_end |= entry.event.is_terminal();
                self.dialect.event(&entry, out);
                if matches!(entry.event, Event::Error(_)) { Taken::End } else { Taken::Something }
            }
            Some(Read::Gap(gap)) if self.dialect.gap(gap, out) => Taken::Something,
            Some(Read::Gap(_)) => Taken::End,
        }
    }
}

/// One reader in the gauge, for as long as it lives.
struct CountedReader(Gauge);

impl CountedReader {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for CountedReader {
    fn drop(&mut self) {
        self.0.dec();
    }
}
