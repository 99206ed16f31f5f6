//! All streams of this process, by id: bounded in number and bytes, kept for a retention time after their end, and
//! remembered for a while after that, so that a late reader learns `expired` and not `unknown`.
//!
//! Owners share all three bounds by weight (`holdings`). When a stream must go, the owner that has most loses the
//! stream that ended first. An owner that has most, and has only live streams, is refused a new one. Live streams are
//! never removed: while they alone exceed their owner's part of the bytes, that bound is exceeded.
//!
//! Time is passed in: the code that owns a clock calls [`StreamTable::sweep`] a few times a second. The sweep ends
//! lingering streams whose grace is over and forgets streams that are past their retention. Between two sweeps the byte
//! bound may be exceeded by the events that are generated in that time, and by no more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::expired::Expired;
use super::holdings::Holdings;
use super::{CancelCause, Feed, StreamLog, StreamStore};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{Epoch, StreamId, Tenant};
use crate::settings;
use crate::settings::{COUNT_MAX, HOUR_MS, KIB, MIB, bytes, common, count, millis, setting};

/// How long a client is asked to wait when the table is full of live streams: about one short generation.
const RETRY_AFTER_MS: u64 = 1000;

settings! {
    /// The table's bounds.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TableLimits {
        /// Most streams, live and retained; keys share them by weight.
        pub num_streams_max: usize = 4096
            => setting("streams.num_streams_max", "streams-max", count(1, COUNT_MAX, "streams"));
        /// Memory limit for the events of all streams; keys share it by weight.
        pub num_bytes_max: usize = 256 << 20
            => setting("streams.num_bytes_max", "streams-bytes-max", bytes(MIB, 1 << 50));
        /// Memory limit for the events of one stream; beyond it the oldest events are dropped, and late readers get a `gap`.
        pub stream_bytes_max: usize = 16 << 20
            => setting("streams.stream_bytes_max", "stream-bytes-max", bytes(4 * KIB, 1 << 50));
        /// Cancel a stream with policy `cancel` that has had no reader for this long.
        pub unread_grace_ms: u64 = 30_000
            => setting("streams.unread_grace_ms", "unread-grace-ms", millis(0, HOUR_MS));
        /// How long a finished stream is kept for replay.
        pub retention_ms: u64 = 600_000 => common("streams.retention_ms", "retention-ms", millis(0, 24 * HOUR_MS));
        /// How many expired ids are remembered as such: four times the streams that there are, at some 100 bytes each. A client
        /// that comes later is told that there is no such stream.
        pub num_expired_max: usize = 16_384;
        /// Lifecycle events that /v1/events can go back to.
        pub feed_events_max: usize = 4096
            => setting("streams.feed_events_max", "feed-events-max", count(1, COUNT_MAX, "events"));
    }
}

/// Streams by id.
#[derive(Debug)]
pub struct StreamTable {
    limits: TableLimits,
    epoch: Epoch,
    feed: Arc<Feed>,
    /// A new epoch for each process, even if the streams' epoch is older: the feed does not outlive the process.
    feed_epoch: Epoch,
    // A std mutex: held for map operations only, never while a log is cancelled or awaited.
    inner: Mutex<TableState>,
}

#[derive(Debug, Default)]
struct TableState {
    /// The store forgets every stream that the table forgets.
    store: Option<Arc<StreamStore>>,
    /// Streams that had not ended when the table last looked.
    live: HashMap<StreamId, TableSlot>,
    finished: HashMap<StreamId, TableSlot>,
    /// What owners hold of both, as of the last look.
    holdings: Holdings,
    expired: Expired,
}

#[derive(Debug)]
struct TableSlot {
    log: Arc<StreamLog>,
    /// The owner's weight.
    weight: u32,
    /// Its bytes at the last look.
    num_bytes: u64,
}

impl StreamTable {
    /// An empty table with an epoch of its own.
    pub fn new(limits: TableLimits) -> Self {
        Self::make(limits, Epoch::random(), TableState::default())
    }

    /// An empty table whose streams are kept in `store`, under the store's epoch.
    pub fn with_store(limits: TableLimits, store: Arc<StreamStore>) -> Self {
        let epoch = store.epoch();
        Self::make(limits, epoch, TableState { store: Some(store), ..TableState::default() })
    }

    fn make(limits: TableLimits, epoch: Epoch, inner: TableState) -> Self {
        let feed = Feed::new(limits.feed_events_max);
        Self { limits, epoch, feed, feed_epoch: Epoch::random(), inner: Mutex::new(inner) }
    }

    /// The feed of what happens to its streams and to the server.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Distinguishes the feed's numbers from those of another process.
    pub fn feed_epoch(&self) -> Epoch {
        self.feed_epoch
    }

    /// Memory of the events of all streams, roughly.
    pub fn num_bytes(&self) -> usize {
        self.lock().logs().map(|log| log.num_bytes()).sum()
    }

    /// The store that keeps its streams, if there is one.
    pub fn store(&self) -> Option<Arc<StreamStore>> {
        self.lock().store.clone()
    }

    /// The life of the server that numbers these streams' events.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Adds a stream of an owner with this `weight`. If there is no room, a finished stream is removed: the owner's
    /// own, or one of an owner that has more per weight.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when no owner with a finished stream has more than this one, and all streams of this
    /// one are live.
    pub fn insert(&self, log: Arc<StreamLog>, weight: u32) -> Result<()> {
        let mut inner = self.lock();
        inner.make_room(log.tenant(), weight, &self.limits)?;
        log.set_num_bytes_max(self.limits.stream_bytes_max);
        log.tell(&self.feed);
        inner.holdings.begin(log.tenant(), weight);
        inner.live.insert(log.id(), TableSlot { log, weight, num_bytes: 0 });
        Ok(())
    }

    /// Removes a stream as if it had never existed: its request was refused.
    pub fn remove(&self, id: StreamId) {
        let mut inner = self.lock();
        inner.take(id);
        inner.store.iter().for_each(|store| store.forget(id));
    }

    /// The stream, if it exists and is `tenant`'s.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for unknown ids and for other tenants' ids alike; [`ErrorKind::Expired`] for the
    /// tenant's own streams whose retention is over.
    pub fn get(&self, id: StreamId, tenant: Tenant) -> Result<Arc<StreamLog>> {
        let inner = self.lock();
        match inner.live.get(&id).or_else(|| inner.finished.get(&id)) {
            Some(slot) if slot.log.tenant() == tenant => Ok(slot.log.clone()),
            None if inner.expired.has(id, tenant) => {
                Err(Error::new(ErrorKind::Expired, format!("stream {id} has ended and is no longer kept")))
            }
            _ => Err(Error::new(ErrorKind::NotFound, format!("no stream {id}"))),
        }
    }

    /// The tenant's streams, newest first.
    pub fn list(&self, tenant: Tenant) -> Vec<Arc<StreamLog>> {
        let inner = self.lock();
        let mut logs: Vec<_> = inner.logs().filter(|log| log.tenant() == tenant).cloned().collect();
        drop(inner);
        logs.sort_by_key(|log| (std::cmp::Reverse(log.created_ms()), log.id()));
        logs
    }

    /// Every stream that has not ended.
    pub fn live(&self) -> Vec<Arc<StreamLog>> {
        let inner = self.lock();
        inner.live.values().filter(|s| !s.log.is_finished()).map(|s| s.log.clone()).collect()
    }

    /// Number of streams, live and retained.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cancels lingering streams whose grace is over and evicts finished ones past the retention time or the byte
    /// bound. `now_ms` is of the same clock as the logs'.
    pub fn sweep(&self, now_ms: u64) {
        let mut inner = self.lock();
        inner.look();
        let over = inner.holdings.ended_at(|ended_ms| now_ms.saturating_sub(ended_ms) >= self.limits.retention_ms);
        inner.evict(&over, &self.limits);
        let num_bytes_of = |id| inner.finished.get(&id).map_or(0, |slot| slot.num_bytes);
        let beyond = inner.holdings.beyond(self.limits.num_bytes_max as u64, num_bytes_of);
        inner.evict(&beyond, &self.limits);
        let grace_ms = self.limits.unread_grace_ms;
        let live = inner.live.values();
        let abandoned: Vec<_> = live.filter(|s| s.log.linger_on(now_ms, grace_ms)).map(|s| s.log.clone()).collect();
        // Cancel outside the table's lock: a cancel hook takes the queue's lock.
        drop(inner);
        for log in abandoned {
            log.cancel(CancelCause::ReaderLeft);
        }
    }

    fn lock(&self) -> MutexGuard<'_, TableState> {
        // Every change below is a whole map operation, so a panic elsewhere leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TableState {
    fn len(&self) -> usize {
        self.live.len() + self.finished.len()
    }

    fn logs(&self) -> impl Iterator<Item = &Arc<StreamLog>> {
        self.live.values().chain(self.finished.values()).map(|slot| &slot.log)
    }

    /// Makes room for one more stream of `tenant`, or says why there is none.
    fn make_room(&mut self, tenant: Tenant, weight: u32, limits: &TableLimits) -> Result<()> {
        if self.holdings.is_beyond_part(tenant, limits.num_bytes_max as u64) {
            let max = limits.num_bytes_max;
            let message = format!("all streams may have {max} bytes of events, and yours that run have their part");
            return Err(Error::overloaded(message, RETRY_AFTER_MS));
        }
        let mut has_looked = false;
        while self.len() >= limits.num_streams_max {
            // Streams that have ended since the last look must be counted too if one of them may have to go.
            if !has_looked && !self.holdings.largest_can_give() {
                self.look();
                has_looked = true;
            }
            if let Some(id) = self.holdings.makes_way(tenant, weight) {
                self.evict(&[id], limits);
            } else if !has_looked {
                self.look();
                has_looked = true;
            } else {
                let max = limits.num_streams_max;
                let message = format!("at most {max} streams are kept, and yours, which all run, have their part");
                return Err(Error::overloaded(message, RETRY_AFTER_MS));
            }
        }
        Ok(())
    }

    /// Counts the bytes of live streams, and moves the streams that have ended to `finished`, in the order of their
    /// ends.
    fn look(&mut self) {
        let mut ended = Vec::new();
        for (id, slot) in &mut self.live {
            if let Some(finished_ms) = slot.log.finished_ms() {
                ended.push((finished_ms, *id));
            }
            slot.count(&mut self.holdings);
        }
        ended.sort_unstable();
        for (finished_ms, id) in ended {
            if let Some(slot) = self.live.remove(&id) {
                self.holdings.end(slot.log.tenant(), finished_ms, id);
                self.finished.insert(id, slot);
            }
        }
    }

    fn evict(&mut self, ids: &[StreamId], limits: &TableLimits) {
        for &id in ids {
            let Some(slot) = self.take(id) else { continue };
            self.store.iter().for_each(|store| store.forget(id));
            self.expired.add(id, slot.log.tenant(), slot.weight, limits.num_expired_max);
        }
    }

    fn take(&mut self, id: StreamId) -> Option<TableSlot> {
        let slot = self.live.remove(&id).or_else(|| self.finished.remove(&id))?;
        self.holdings.remove(slot.log.tenant(), id, slot.num_bytes);
        Some(slot)
    }
}

impl TableSlot {
    fn count(&mut self, holdings: &mut Holdings) {
        let (tenant, num_bytes) = (self.log.tenant(), self.log.num_bytes() as u64);
        if num_bytes > self.num_bytes {
            holdings.add_bytes(tenant, num_bytes - self.num_bytes);
        } else {
            holdings.remove_bytes(tenant, self.num_bytes - num_bytes);
        }
        self.num_bytes = num_bytes;
    }
}

#[cfg(test)]
mod tests;
