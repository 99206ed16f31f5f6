//! Streams on disk, so that they outlive the process: the requests and every event. One thread owns the database and
//! commits all changes since its last commit as one transaction.
//!
//! ```text
//! begin, append, forget -> the hand-over -> the thread: gather -> write -> commit (fsync) -> tell the logs
//!                          (callers never wait in it; workers begin no step while the disk is behind)
//! ```
//! Most events need not be on disk before a reader sees them: a token that was shown and lost is computed again, bit
//! for bit and under the same number (see [`Event::is_repeatable`]). The others - a place in the queue, the start, a
//! failure - are shown once they are durable. By then the request is durable too, since it came before them. So after a
//! crash at any moment, every number that a reader has seen still stands for the same event.
//!
//! The database is redb: copy-on-write B-trees with a checksum for every page, pure Rust. An append-only file of our
//! own would be faster and would need its own compaction, locking and repair.

mod handover;
mod records;
mod stall;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

pub(super) use handover::Handover;
pub use handover::StorePlace;
pub use records::{StoredStream, StreamRecord};
pub use stall::DiskStall;

use self::records::Opened;
use self::stall::CommitGate;
use super::entry::Entry;
use super::log::StreamLog;
use crate::error::{Error, Result};
use crate::protocol::{Epoch, Event, StreamId};
use crate::settings;
use crate::settings::{MIB, bytes, millis, setting};

/// The file in the store's folder.
const FILE_NAME: &str = "streams.redb";
/// This file exists while [`FILE_NAME`] has every event that readers were shown. It is removed when the disk fails,
/// because removing a file works even on a full disk.
const WHOLE_FILE_NAME: &str = "streams.whole";
/// How long [`StreamStore::close`] waits for the disk. Events that are not durable by then are computed again, as after
/// a crash.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(10);

settings! {
    /// The store's bounds.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct StoreLimits {
        /// Disk limit for stored streams, shared by weight; beyond it the streams that ended first are deleted.
        ///
        /// Of requests and events; of the owner with most per weight.
        pub num_bytes_max: u64 = 1 << 30
            => setting("streams.store_bytes_max", "stream-store-bytes-max", bytes(MIB, 1 << 50));
        /// How long tokens are collected before they are written to the store.
        pub commit_interval: Duration = Duration::from_millis(20)
            => setting("streams.store_interval_ms", "stream-store-interval-ms", millis(0, 10_000));
        /// While a commit takes longer, new streams get no place and the server is not ready: the disk stalls. As long as a
        /// worker may compute nothing, for a healthy disk takes milliseconds.
        pub stall_time_max: Duration = Duration::from_millis(1500);
    }
}

/// Streams on disk. Dropping the store commits the changes so far.
pub struct StreamStore {
    epoch: Epoch,
    handover: Arc<Handover>,
    /// Whether the file had every event that readers were shown, when the store was opened.
    was_whole: bool,
    gate: Arc<CommitGate>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The file [`WHOLE_FILE_NAME`]. Only code that holds the database's lock checks or changes it.
struct WholeMark(PathBuf);

impl WholeMark {
    fn is_there(&self) -> bool {
        self.0.exists()
    }

    fn put(&self) -> std::io::Result<()> {
        std::fs::write(&self.0, "")
    }

    fn remove(&self) -> std::io::Result<()> {
        std::fs::remove_file(&self.0)
    }

    /// Syncs the folder, so that the last change outlives a loss of power.
    fn sync(&self) -> std::io::Result<()> {
        match self.0.parent() {
            Some(dir) if cfg!(unix) => std::fs::File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    }
}

/// A change that is handed to the store's thread.
pub(super) enum Change {
    Begin {
        record: Box<StreamRecord>,
        log: Weak<StreamLog>,
    },
    /// A stream that is there already.
    Follow {
        log: Weak<StreamLog>,
        id: StreamId,
    },
    Append {
        id: StreamId,
        entry: Entry,
    },
    Forget {
        id: StreamId,
    },
    MakeWhole,
    Close,
    /// Lets a test act on the thread, as a defect of the database or a stalled disk would.
    #[cfg(test)]
    Run(Box<dyn FnOnce() + Send>),
}

impl StreamStore {
    /// Opens the store in folder `dir`, which is made if need be, and reads its streams, oldest first.
    ///
    /// # Errors
    /// If the folder cannot be used, another process has it, or its file is damaged or of a newer tallow.
    pub fn open(dir: &Path, limits: StoreLimits) -> Result<(Arc<Self>, Vec<StoredStream>)> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir.display(), e))?;
        let path = dir.join(FILE_NAME);
        let mark = WholeMark(dir.join(WHOLE_FILE_NAME));
        // redb's assertions assume files that it wrote itself: some damage makes it panic instead of returning an
        // error.
        let opened = catch_unwind(AssertUnwindSafe(|| records::open(&path, || mark.is_there())));
        let Opened { database, epoch, was_whole, stored } =
            opened.unwrap_or_else(|_| Err(Error::io(path.display(), "the stream store is damaged")))?;
        if was_whole {
            mark.put().map_err(|e| Error::io(mark.0.display(), e))?;
        }
        let handover = Handover::new(stored.iter().map(|s| s.record.request.id), limits.stall_time_max);
        let gate = Arc::<CommitGate>::default();
        let writer =
            writer::StoreWriter::new(database, (path, mark), limits, (handover.clone(), gate.clone()), &stored);
        let thread = Mutex::new(Some(spawn(writer)?));
        Ok((Arc::new(Self { epoch, handover, was_whole, gate, thread }), stored))
    }

    /// The number that distinguishes this store's event ids from another store's. It stays the same over all processes
    /// that use the store, unless the store fails. After a failure the file lacks events that were shown, and their
    /// numbers may later stand for other events.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether streams that were unfinished when the store was opened can continue. They cannot if the store had
    /// failed.
    pub fn was_whole(&self) -> bool {
        self.was_whole
    }

    /// Call this after every stream that cannot resume has been ended. Once those ends are durable, the file is
    /// complete.
    pub fn make_whole(&self) {
        if !self.was_whole {
            self.handover.push(Change::MakeWhole);
        }
    }

    /// Reserves a place for each of `num_streams` new streams, or for none of them.
    ///
    /// # Errors
    /// As [`Self::check_room`].
    pub fn reserve(&self, num_streams: usize) -> Result<Vec<StorePlace>> {
        self.handover.reserve(num_streams)
    }

    /// Whether a new stream would get a place.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::error::ErrorKind::Unavailable) while the disk does not keep up.
    pub fn check_room(&self) -> Result<()> {
        self.handover.check_room()
    }

    /// Number of changes that wait for the disk.
    pub fn num_waiting(&self) -> usize {
        self.handover.num_waiting()
    }

    /// How long the commit under way has taken so far; zero between commits.
    pub fn commit_time(&self) -> Duration {
        self.handover.commit_time()
    }

    /// Makes the disk stall: no commit returns while the returned value lives.
    #[doc(hidden)]
    pub fn stall(&self) -> DiskStall {
        self.gate.shut()
    }

    /// Keeps further events of a stream that is in the store.
    pub fn follow(&self, log: &Arc<StreamLog>) {
        log.keep_in(&self.handover);
        self.handover.push(Change::Follow { log: Arc::downgrade(log), id: log.id() });
    }

    /// Removes a stream.
    pub fn forget(&self, id: StreamId) {
        self.handover.push(Change::Forget { id });
    }

    /// Waits until every earlier change is durable, or never will be because the store has failed or is closed.
    pub async fn flushed(&self) {
        self.handover.flushed().await;
    }

    /// Commits the changes so far and takes no more. Unfinished streams continue when the store is opened again. Blocks
    /// until the commit is done, for at most 10 s: if the disk stalls longer, the thread is left behind.
    pub fn close(&self) {
        self.handover.close();
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if !self.handover.wait_ended(CLOSE_TIME_MAX) {
            tracing::error!("the disk stalls: what the stream store has not written is left to be computed again");
        } else if thread.join().is_err() {
            tracing::error!("the stream store's thread panicked");
        }
    }

    /// Whether events are kept. They are not once the store was closed or has failed.
    pub fn is_open(&self) -> bool {
        self.handover.is_open()
    }

    /// Whether the disk, or the database on it, has failed.
    pub fn has_failed(&self) -> bool {
        self.handover.has_failed()
    }
}

impl Drop for StreamStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for StreamStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamStore").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

fn spawn(mut writer: writer::StoreWriter) -> Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name("stream-store".to_owned());
    builder.spawn(move || writer.run()).map_err(|e| Error::io("cannot start the stream store's thread", e))
}

impl Event {
    /// Whether another run of the same request makes this event again, bit for bit and under the same number.
    pub(super) fn is_repeatable(&self) -> bool {
        matches!(self, Self::Prompt { .. } | Self::Token(_) | Self::Done { .. })
    }
}

#[cfg(test)]
mod tests;
