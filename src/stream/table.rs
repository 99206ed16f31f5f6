//! All streams of this process, by id: bounded in number and bytes, kept for a retention time after their end, and
//! remembered for a while after that, so that a late reader learns `expired` and not `unknown`.
//!
//! Time is passed in: whoever owns a clock calls [`StreamTable::sweep`] a few times a second. The sweep ends lingering
//! streams whose grace is over and forgets what is past its retention. Between two sweeps the byte bound may be
//! overstepped by what is generated in that time, no more.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{CancelCause, Feed, StreamLog, StreamStore};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{Epoch, StreamId, Tenant};

/// How long a client is asked to wait when the table is full of live streams: about one short generation.
const RETRY_AFTER_MS: u64 = 1000;

/// The table's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableLimits {
    /// Most streams, live and retained.
    pub num_streams_max: usize,
    /// Most memory for their events.
    pub num_bytes_max: usize,
    /// Most memory for the events of one stream; beyond, its oldest go.
    pub stream_bytes_max: usize,
    /// How long a stream that ends with its last reader waits for its first.
    pub unread_grace_ms: u64,
    /// How long a finished stream can be replayed.
    pub retention_ms: u64,
    /// How many expired ids are remembered as such.
    pub num_expired_max: usize,
    /// Lifecycle events that are kept for operators.
    pub feed_events_max: usize,
}

impl Default for TableLimits {
    fn default() -> Self {
        Self {
            num_streams_max: 4096,
            num_bytes_max: 256 << 20,
            stream_bytes_max: 16 << 20,
            unread_grace_ms: 30_000,
            retention_ms: 600_000,
            num_expired_max: 16_384,
            feed_events_max: 4096,
        }
    }
}

/// Streams by id.
#[derive(Debug)]
pub struct StreamTable {
    limits: TableLimits,
    epoch: Epoch,
    feed: Arc<Feed>,
    /// Of this process, whatever the streams' is: the feed does not outlive it.
    feed_epoch: Epoch,
    // A std mutex: held for map operations only, never while a log is cancelled or awaited.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Forgets what the table forgets.
    store: Option<Arc<StreamStore>>,
    streams: HashMap<StreamId, Slot>,
    /// Finished streams that the table knows to be finished, oldest end first.
    finished: VecDeque<(u64, StreamId)>,
    expired: HashMap<StreamId, Tenant>,
    expired_order: VecDeque<StreamId>,
    /// Bytes of all streams at the last sweep, less what was evicted since.
    num_bytes: usize,
}

#[derive(Debug)]
struct Slot {
    log: Arc<StreamLog>,
    /// Whether it stands in `finished`.
    is_noted: bool,
}

impl StreamTable {
    /// An empty table with an epoch of its own.
    pub fn new(limits: TableLimits) -> Self {
        Self::make(limits, Epoch::random(), Inner::default())
    }

    /// An empty table whose streams are kept in `store`, under the store's epoch.
    pub fn with_store(limits: TableLimits, store: Arc<StreamStore>) -> Self {
        let epoch = store.epoch();
        Self::make(limits, epoch, Inner { store: Some(store), ..Inner::default() })
    }

    fn make(limits: TableLimits, epoch: Epoch, inner: Inner) -> Self {
        let feed = Feed::new(limits.feed_events_max);
        Self { limits, epoch, feed, feed_epoch: Epoch::random(), inner: Mutex::new(inner) }
    }

    /// What happens to its streams, and to the server.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Tells the feed's numbers from those of another process.
    pub fn feed_epoch(&self) -> Epoch {
        self.feed_epoch
    }

    /// Memory of the events of all streams, roughly.
    pub fn num_bytes(&self) -> usize {
        self.lock().streams.values().map(|slot| slot.log.num_bytes()).sum()
    }

    /// Where its streams are kept, if anywhere but here.
    pub fn store(&self) -> Option<Arc<StreamStore>> {
        self.lock().store.clone()
    }

    /// The life of the server that numbers these streams' events.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Adds a stream, evicting the finished ones that ended first if there is no room.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when the table is full of live streams.
    pub fn insert(&self, log: Arc<StreamLog>) -> Result<()> {
        let mut inner = self.lock();
        let full = |inner: &Inner| {
            inner.streams.len() >= self.limits.num_streams_max || inner.num_bytes > self.limits.num_bytes_max
        };
        if full(&inner) && inner.finished.is_empty() {
            inner.note_finished();
        }
        while full(&inner) {
            if !inner.evict_oldest(self.limits.num_expired_max) {
                let message = format!("all {} streams the server keeps are in use", inner.streams.len());
                return Err(Error::overloaded(message, RETRY_AFTER_MS));
            }
        }
        log.set_num_bytes_max(self.limits.stream_bytes_max);
        log.tell(&self.feed);
        inner.streams.insert(log.id(), Slot { log, is_noted: false });
        Ok(())
    }

    /// Takes a stream out as if it had never been: its request was refused.
    pub fn remove(&self, id: StreamId) {
        let mut inner = self.lock();
        inner.streams.remove(&id);
        inner.store.iter().for_each(|store| store.forget(id));
    }

    /// The stream, if it exists and is `tenant`'s.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for unknown and foreign ids alike; [`ErrorKind::Expired`] for the tenant's own whose
    /// retention is over.
    pub fn get(&self, id: StreamId, tenant: Tenant) -> Result<Arc<StreamLog>> {
        let inner = self.lock();
        match inner.streams.get(&id) {
            Some(slot) if slot.log.tenant() == tenant => Ok(slot.log.clone()),
            None if inner.expired.get(&id) == Some(&tenant) => {
                Err(Error::new(ErrorKind::Expired, format!("stream {id} has ended and is no longer kept")))
            }
            _ => Err(Error::new(ErrorKind::NotFound, format!("no stream {id}"))),
        }
    }

    /// The tenant's streams, newest first.
    pub fn list(&self, tenant: Tenant) -> Vec<Arc<StreamLog>> {
        let inner = self.lock();
        let own = inner.streams.values().filter(|s| s.log.tenant() == tenant);
        let mut logs: Vec<_> = own.map(|s| s.log.clone()).collect();
        drop(inner);
        logs.sort_by_key(|log| (std::cmp::Reverse(log.created_ms()), log.id()));
        logs
    }

    /// Every stream that has not ended.
    pub fn live(&self) -> Vec<Arc<StreamLog>> {
        let inner = self.lock();
        let waiting = inner.streams.values().filter(|s| !s.is_noted && !s.log.is_finished());
        waiting.map(|s| s.log.clone()).collect()
    }

    /// Number of streams, live and retained.
    pub fn len(&self) -> usize {
        self.lock().streams.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cancels lingering streams whose grace is over and evicts finished ones past the retention time or the byte
    /// bound. `now_ms` is of the same clock as the logs'.
    pub fn sweep(&self, now_ms: u64) {
        let mut inner = self.lock();
        inner.note_finished();
        inner.num_bytes = inner.streams.values().map(|s| s.log.num_bytes()).sum();
        while let Some(&(finished_ms, _)) = inner.finished.front() {
            let is_over = now_ms.saturating_sub(finished_ms) >= self.limits.retention_ms;
            if !is_over && inner.num_bytes <= self.limits.num_bytes_max {
                break;
            }
            inner.evict_oldest(self.limits.num_expired_max);
        }
        let live = inner.streams.values().filter(|s| !s.is_noted);
        let grace_ms = self.limits.unread_grace_ms;
        let abandoned: Vec<_> =
            live.filter(|s| s.log.has_outlingered(now_ms, grace_ms)).map(|s| s.log.clone()).collect();
        // Outside the lock: a cancel hook takes the queue's.
        drop(inner);
        for log in abandoned {
            log.cancel(CancelCause::ReaderLeft);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is a whole map operation, so a panic elsewhere leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Puts newly finished streams behind the known ones, in the order in which they ended.
    fn note_finished(&mut self) {
        let mut ended = Vec::new();
        for (id, slot) in &mut self.streams {
            if !slot.is_noted
                && let Some(finished_ms) = slot.log.finished_ms()
            {
                slot.is_noted = true;
                ended.push((finished_ms, *id));
            }
        }
        ended.sort_unstable();
        self.finished.extend(ended);
    }

    /// Whether there was one to evict.
    fn evict_oldest(&mut self, num_expired_max: usize) -> bool {
        let Some((_, id)) = self.finished.pop_front() else { return false };
        let Some(slot) = self.streams.remove(&id) else { return true };
        self.store.iter().for_each(|store| store.forget(id));
        self.num_bytes = self.num_bytes.saturating_sub(slot.log.num_bytes());
        self.expired.insert(id, slot.log.tenant());
        self.expired_order.push_back(id);
        while self.expired_order.len() > num_expired_max {
            if let Some(forgotten) = self.expired_order.pop_front() {
                self.expired.remove(&forgotten);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Event, FinishReason, OnDisconnect, TokenEvent, Usage};

    const LIMITS: TableLimits = TableLimits {
        num_streams_max: 2,
        num_bytes_max: 1 << 20,
        stream_bytes_max: 1 << 20,
        unread_grace_ms: 70,
        retention_ms: 100,
        num_expired_max: 2,
        feed_events_max: 9,
    };

    /// A log that says `now_ms` whenever it is asked.
    fn log_at(id: u128, now_ms: u64, policy: OnDisconnect) -> Arc<StreamLog> {
        StreamLog::with_clock(StreamId(id), Tenant(1), policy, Arc::new(move || now_ms))
    }

    fn end(log: &StreamLog) {
        log.append(Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default(), stop: None });
    }

    fn kind_of(table: &StreamTable, id: u128, tenant: u64) -> Option<ErrorKind> {
        table.get(StreamId(id), Tenant(tenant)).err().map(|e| e.kind())
    }

    #[test]
    fn a_finished_stream_is_kept_then_expired_then_forgotten() {
        let table = StreamTable::new(LIMITS);
        for id in 1..=3 {
            let log = log_at(id, 10, OnDisconnect::Detach);
            table.insert(log.clone()).expect("room");
            end(&log);
            table.sweep(109);
            assert_eq!(kind_of(&table, id, 1), None);
            table.sweep(110);
            assert_eq!(kind_of(&table, id, 1), Some(ErrorKind::Expired));
            assert_eq!(kind_of(&table, id, 2), Some(ErrorKind::NotFound), "never told to a stranger");
        }
        assert_eq!(kind_of(&table, 1, 1), Some(ErrorKind::NotFound), "only two expired ids are remembered");
        assert_eq!(kind_of(&table, 9, 1), Some(ErrorKind::NotFound));
    }

    #[test]
    fn a_full_table_evicts_the_finished_that_ended_first_and_never_the_live() {
        let table = StreamTable::new(LIMITS);
        let (first, second) = (log_at(1, 20, OnDisconnect::Detach), log_at(2, 10, OnDisconnect::Detach));
        table.insert(first.clone()).expect("room");
        table.insert(second.clone()).expect("room");
        let refused = table.insert(log_at(3, 30, OnDisconnect::Detach)).expect_err("both are live");
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert!(refused.retry_after_ms().is_some());
        end(&first);
        end(&second);
        table.insert(log_at(3, 30, OnDisconnect::Detach)).expect("a finished one makes room");
        assert_eq!(kind_of(&table, 2, 1), Some(ErrorKind::Expired), "it ended at 10");
        assert_eq!(kind_of(&table, 1, 1), None, "it ended at 20");
    }

    #[test]
    fn bytes_are_bounded_too() {
        let table = StreamTable::new(TableLimits { num_bytes_max: 2000, num_streams_max: 9, ..LIMITS });
        let text = "x".repeat(1500);
        for id in 1..=2 {
            let log = log_at(id, id as u64, OnDisconnect::Detach);
            table.insert(log.clone()).expect("room");
            log.append(Event::Token(TokenEvent { text: text.clone(), ..TokenEvent::default() }));
            if id == 1 {
                end(&log);
            }
        }
        table.sweep(5);
        assert_eq!(kind_of(&table, 1, 1), Some(ErrorKind::Expired));
        assert_eq!(kind_of(&table, 2, 1), None, "live streams stay");
        let live = table.get(StreamId(2), Tenant(1)).expect("live");
        live.append(Event::Token(TokenEvent { text, ..TokenEvent::default() }));
        table.sweep(6);
        let refused = table.insert(log_at(3, 3, OnDisconnect::Detach)).expect_err("live streams hold all memory");
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
    }

    #[test]
    fn a_lingering_stream_is_cancelled_when_its_grace_is_over() {
        let table = StreamTable::new(LIMITS);
        let log = log_at(1, 0, OnDisconnect::Linger { grace_ms: 50 });
        table.insert(log.clone()).expect("room");
        table.sweep(1000);
        table.sweep(1049);
        let reader = log.reader(0);
        table.sweep(2000);
        assert_eq!(log.cancelled(), None, "somebody reads");
        drop(reader);
        table.sweep(3000);
        table.sweep(3049);
        assert_eq!(log.cancelled(), None, "the grace began anew");
        table.sweep(3050);
        assert_eq!(log.cancelled(), Some(CancelCause::ReaderLeft));
    }

    #[test]
    fn a_stream_that_ends_with_its_reader_waits_a_while_for_the_first() {
        let table = StreamTable::new(LIMITS);
        let (unread, read) = (log_at(1, 0, OnDisconnect::Cancel), log_at(2, 0, OnDisconnect::Cancel));
        table.insert(unread.clone()).expect("room");
        table.insert(read.clone()).expect("room");
        let reader = read.reader(0);
        table.sweep(1000);
        table.sweep(1069);
        assert_eq!(unread.cancelled(), None);
        table.sweep(1070);
        assert_eq!(unread.cancelled(), Some(CancelCause::ReaderLeft));
        assert_eq!(read.cancelled(), None);
        drop(reader);
        assert_eq!(read.cancelled(), Some(CancelCause::ReaderLeft), "without any grace");
    }

    #[test]
    fn one_stream_is_bounded_and_says_where_it_begins() {
        let table = StreamTable::new(TableLimits { stream_bytes_max: 5000, ..LIMITS });
        let log = log_at(1, 0, OnDisconnect::Detach);
        table.insert(log.clone()).expect("room");
        for _ in 0..100 {
            log.append(Event::Token(TokenEvent { text: "x".repeat(200), ..TokenEvent::default() }));
            assert!(log.num_bytes() <= 5000, "{}", log.num_bytes());
        }
        end(&log);
        assert_eq!(log.len(), 101, "numbers stay dense");
        assert!((70..100).contains(&log.first_seq()), "{}", log.first_seq());
        table.sweep(1);
        assert!(table.get(StreamId(1), Tenant(1)).is_ok());
    }

    #[test]
    fn the_list_shows_a_tenant_its_own_newest_first() {
        let table = StreamTable::new(LIMITS);
        let foreign = StreamLog::new(StreamId(1), Tenant(2), OnDisconnect::Detach);
        table.insert(foreign).expect("room");
        table.insert(log_at(2, 5, OnDisconnect::Detach)).expect("room");
        let ids = |tenant| table.list(Tenant(tenant)).iter().map(|l| l.id().0).collect::<Vec<_>>();
        assert_eq!(ids(1), [2]);
        assert_eq!(ids(2), [1]);
        assert_eq!(ids(3), [0u128; 0]);
        assert_eq!(table.live().len(), 2);
    }
}
