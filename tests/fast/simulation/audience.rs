//! Who watches: readers that join, read, are cut, come back and leave, of the stream's tenant and of another, around a
//! real table of streams that forgets on invented time. It holds a model of every policy beside the real thing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tallow::error::ErrorKind;
use tallow::protocol::{Event, OnDisconnect, StreamId, Tenant};
use tallow::stream::{CancelCause, StreamLog, StreamReader, StreamTable, TableLimits};

use super::schedule::Random;

/// Later than any retention.
const FAR_MS: u64 = 1 << 40;

pub(crate) struct Audience {
    random: Random,
    table: StreamTable,
    time_ms: Arc<AtomicU64>,
    streams: Vec<Watched>,
    readers: Vec<Reader>,
    pub seen: Vec<&'static str>,
}

/// A stream, and what its policy should have made of it.
struct Watched {
    log: Arc<StreamLog>,
    num_readers: usize,
    was_read: bool,
    orphaned_at_ms: Option<u64>,
    /// Whether the last reader's leaving should have cancelled it.
    is_left: bool,
}

/// A reader over all its connections.
struct Reader {
    /// Of `streams`.
    stream: usize,
    connection: Option<StreamReader>,
    events: Vec<Event>,
}

impl Audience {
    pub(crate) fn new(seed: u64, time_ms: Arc<AtomicU64>) -> Self {
        let mut random = Random::new(seed ^ 0x5eed_0f7e_ade2_5000);
        let limits = TableLimits {
            num_streams_max: random.pick(4..20),
            retention_ms: random.pick(0..80) as u64,
            num_expired_max: random.pick(0..8),
            ..TableLimits::default()
        };
        let (streams, readers, seen) = (Vec::new(), Vec::new(), Vec::new());
        Self { random, table: StreamTable::new(limits), time_ms, streams, readers, seen }
    }

    /// A log for a request, in the table; `None` if that is full of live streams.
    pub(crate) fn open(&mut self, id: StreamId, tenant: Tenant) -> Option<Arc<StreamLog>> {
        let policy = match self.random.pick(0..6) {
            0 => OnDisconnect::Cancel,
            1 | 2 => OnDisconnect::Linger { grace_ms: self.random.pick(0..30) as u64 },
            _ => OnDisconnect::Detach,
        };
        let time_ms = self.time_ms.clone();
        let log = StreamLog::with_clock(id, tenant, policy, Arc::new(move || time_ms.load(Ordering::Relaxed)));
        if let Err(e) = self.table.insert(log.clone(), 1) {
            assert_eq!(e.kind(), ErrorKind::Overloaded, "{e:?}");
            assert!(self.streams.iter().any(|w| !w.log.is_finished()), "no stream is live, and none has room");
            self.seen.push("no room in the table");
            return None;
        }
        Some(log)
    }

    /// The queue took the request (or not) whose log this is.
    pub(crate) fn settle(&mut self, log: &Arc<StreamLog>, is_accepted: bool) {
        if is_accepted {
            let log = log.clone();
            self.streams.push(Watched { log, num_readers: 0, was_read: false, orphaned_at_ms: None, is_left: false });
        } else {
            self.table.remove(log.id());
        }
    }

    /// Whether it was cancelled because everybody left, as it should have been.
    pub(crate) fn has_left(&self, log: &StreamLog) -> bool {
        self.streams.iter().any(|w| w.log.id() == log.id() && w.is_left)
    }

    /// Something happens, mostly little.
    pub(crate) fn act(&mut self) {
        for _ in 0..self.random.pick(0..4) {
            match self.random.pick(0..9) {
                0 => self.join(),
                1 => self.knock_as_a_stranger(),
                2 => self.cut(),
                3 => self.come_back(),
                4 => self.sweep(),
                _ => self.read(),
            }
            self.check();
        }
    }

    fn now_ms(&self) -> u64 {
        self.time_ms.load(Ordering::Relaxed)
    }

    fn pick_stream(&mut self) -> Option<usize> {
        (!self.streams.is_empty()).then(|| self.random.pick(0..self.streams.len()))
    }

    fn pick_reader(&mut self, is_connected: bool) -> Option<usize> {
        let fit = |r: &Reader| r.connection.is_some() == is_connected;
        let all: Vec<usize> = (0..self.readers.len()).filter(|&i| fit(&self.readers[i])).collect();
        (!all.is_empty()).then(|| all[self.random.pick(0..all.len())])
    }

    /// Connects to a stream as its tenant; `None` if it is no longer kept, which only ended ones may be.
    fn connect(&mut self, stream: usize, from_seq: u64) -> Option<StreamReader> {
        let watched = &mut self.streams[stream];
        match self.table.get(watched.log.id(), watched.log.tenant()) {
            Ok(log) => {
                assert!(Arc::ptr_eq(&log, &watched.log), "another stream of that name");
                watched.num_readers += 1;
                watched.was_read = true;
                watched.orphaned_at_ms = None;
                Some(log.reader(from_seq))
            }
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::Expired | ErrorKind::NotFound), "{e:?}");
                assert!(watched.log.is_finished(), "a live stream was forgotten");
                self.seen.push(if e.kind() == ErrorKind::Expired { "told that it expired" } else { "forgotten" });
                None
            }
        }
    }

    fn join(&mut self) {
        let Some(stream) = self.pick_stream() else { return };
        if let Some(connection) = self.connect(stream, 0) {
            self.readers.push(Reader { stream, connection: Some(connection), events: Vec::new() });
        }
    }

    fn come_back(&mut self) {
        let Some(index) = self.pick_reader(false) else { return };
        let (stream, next_seq) = (self.readers[index].stream, self.readers[index].events.len() as u64);
        self.readers[index].connection = self.connect(stream, next_seq);
        if self.readers[index].connection.is_some() {
            self.seen.push("resumed");
        } else {
            self.readers.swap_remove(index);
        }
    }

    fn knock_as_a_stranger(&mut self) {
        let Some(stream) = self.pick_stream() else { return };
        let Watched { log, .. } = &self.streams[stream];
        let refused = self.table.get(log.id(), Tenant(log.tenant().0 + 1)).expect_err("a stranger was let in");
        assert_eq!(refused.kind(), ErrorKind::NotFound, "a stranger may not even know that it was there");
        self.seen.push("strangers");
    }

    fn cut(&mut self) {
        let Some(index) = self.pick_reader(true) else { return };
        let watched = &mut self.streams[self.readers[index].stream];
        watched.num_readers -= 1;
        let log = &watched.log;
        let ends_it = log.on_disconnect() == OnDisconnect::Cancel && !log.is_finished() && log.cancelled().is_none();
        if watched.num_readers == 0 && ends_it {
            watched.is_left = true;
            self.seen.push("left for good");
        }
        self.readers[index].connection = None;
    }

    fn read(&mut self) {
        let Some(index) = self.pick_reader(true) else { return };
        let num_wanted = self.random.pick(0..6);
        self.readers[index].read(num_wanted);
    }

    fn sweep(&mut self) {
        let now_ms = self.now_ms();
        for watched in &mut self.streams {
            let OnDisconnect::Linger { grace_ms } = watched.log.on_disconnect() else { continue };
            // Without any grace it waits for its first reader, for longer than a schedule is.
            if grace_ms == 0 && !watched.was_read {
                continue;
            }
            if watched.num_readers > 0 || watched.log.is_finished() || watched.log.cancelled().is_some() {
                continue;
            }
            let since_ms = *watched.orphaned_at_ms.get_or_insert(now_ms);
            if now_ms - since_ms >= grace_ms {
                watched.is_left = true;
                self.seen.push("outlingered");
            }
        }
        self.table.sweep(now_ms);
    }

    /// Each stream is cancelled for want of readers if its policy says so, and not else.
    fn check(&self) {
        for Watched { log, is_left, .. } in &self.streams {
            let is_cancelled = log.cancelled() == Some(CancelCause::ReaderLeft);
            assert_eq!(is_cancelled, *is_left, "{log:?} with {:?}", log.on_disconnect());
        }
    }

    /// Everything has ended: whoever still reads gets all of it, and nothing is left behind.
    pub(crate) fn finish(&mut self) {
        self.check();
        for mut reader in std::mem::take(&mut self.readers) {
            let log = &self.streams[reader.stream].log;
            let is_connected = reader.connection.is_some();
            reader.read(usize::MAX);
            reader.connection = None;
            let mut whole = log.reader(0);
            let all: Vec<Event> = std::iter::from_fn(|| whole.try_next()).map(|(_, event)| event).collect();
            assert!(all.starts_with(&reader.events), "a reader saw something else");
            assert!(!is_connected || all.len() == reader.events.len(), "a reader missed the end");
            let num_terminal = all.iter().filter(|e| e.is_terminal()).count();
            assert!(num_terminal == 1 && all.last().is_some_and(Event::is_terminal), "{num_terminal} ends");
            self.seen.push("readers");
        }
        self.table.sweep(FAR_MS);
        assert!(self.table.is_empty(), "the table keeps what is long over");
        for Watched { log, .. } in &self.streams {
            let (id, holders) = (log.id(), Arc::strong_count(log));
            // This one's and the world's.
            assert_eq!(holders, 2, "somebody still holds the log of stream {id}");
        }
    }
}

impl Reader {
    fn read(&mut self, num_wanted: usize) {
        let Some(connection) = &mut self.connection else { return };
        for _ in 0..num_wanted {
            let Some((seq, event)) = connection.try_next() else { return };
            assert_eq!(seq, self.events.len() as u64, "ids are dense over all connections");
            assert!(!self.events.last().is_some_and(Event::is_terminal), "an event after the end");
            self.events.push(event);
        }
    }
}
