//! Streams on disk, so that they outlive the process: what was asked, and every event. One thread owns the database and
//! commits whatever has come since its last commit as one transaction.
//!
//! ```text
//! begin, append, forget -> the hand-over -> the thread: gather -> write -> commit (fsync) -> tell the logs
//!                          (nobody waits in it; workers begin no step while the disk is behind)
//! ```
//! Most events need not be on disk before a reader sees them: a token that was shown and lost is computed again, bit for
//! bit and under the same number (see [`Event::is_repeatable`]). The others - a place in the queue, the start, a failure -
//! are shown once they are durable, and by then so is the request itself, which came before them. So after a crash at any
//! moment every number that a reader has seen still stands for the same event.
//!
//! The database is redb: copy-on-write B-trees with a checksum for every page, pure Rust. An append-only file of our own
//! would be faster and would need its own compaction, locking and repair.

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
/// Is there while [`FILE_NAME`] has all that readers were shown. It goes when the disk fails, which asks for no room.
const WHOLE_FILE_NAME: &str = "streams.whole";
/// How long [`StreamStore::close`] waits for the disk. What is not durable then is as after a crash: it is computed again.
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

/// Streams on disk. Dropping it commits what has come.
pub struct StreamStore {
    epoch: Epoch,
    handover: Arc<Handover>,
    /// Whether an earlier process kept all that it had shown.
    was_whole: bool,
    gate: Arc<CommitGate>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The file [`WHOLE_FILE_NAME`]; what looks at it or changes it has the database's lock.
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

    /// So that it outlives a loss of power.
    fn sync(&self) -> std::io::Result<()> {
        match self.0.parent() {
            Some(dir) if cfg!(unix) => std::fs::File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    }
}

/// What the thread is told.
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
    /// What a defect of the database does, or a disk that stalls.
    #[cfg(test)]
    Run(Box<dyn FnOnce() + Send>),
}

impl StreamStore {
    /// Opens the store in folder `dir`, which is made if need be, and reads what it has, oldest stream first.
    ///
    /// # Errors
    /// If the folder cannot be used, another process has it, or its file is damaged or of a newer tallow.
    pub fn open(dir: &Path, limits: StoreLimits) -> Result<(Arc<Self>, Vec<StoredStream>)> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir.display(), e))?;
        let path = dir.join(FILE_NAME);
        let mark = WholeMark(dir.join(WHOLE_FILE_NAME));
        // redb's assertions are made for files that it wrote itself, and not all damage is an error to it.
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

    /// The number under which events' ids are told from another store's. It stays for the life of the store, or until
    /// the store has failed: what was shown then is not here, and its numbers may stand for other events.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether what was not finished when it was opened can go on: not after the store had failed.
    pub fn was_whole(&self) -> bool {
        self.was_whole
    }

    /// What could not go on has ended, in what was sent before: once that is durable, the file has all that there is.
    pub fn make_whole(&self) {
        if !self.was_whole {
            self.handover.push(Change::MakeWhole);
        }
    }

    /// Places for so many new streams, or for none.
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

    /// Changes that wait for the disk.
    pub fn num_waiting(&self) -> usize {
        self.handover.num_waiting()
    }

    /// How long the commit under way has taken so far; zero between commits.
    pub fn commit_time(&self) -> Duration {
        self.handover.commit_time()
    }

    /// Makes the disk stall: no commit returns while what is returned lives.
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

    /// Waits until what was sent before is durable, or will never be because the store has failed or is closed.
    pub async fn flushed(&self) {
        self.handover.flushed().await;
    }

    /// Commits what has come and takes nothing more: what is not finished now goes on when the store is opened again. Blocks
    /// until then, but not for longer than 10 s: a thread that waits for a disk which stalls is left behind.
    pub fn close(&self) {
        self.handover.close();
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if !self.handover.wait_ended(CLOSE_TIME_MAX) {
            tracing::error!("the disk stalls: what the stream store has not written is left to be computed again");
        } else if thread.join().is_err() {
            tracing::error!("the stream store's thread panicked");
        }
    }

    /// Whether events are kept: not after it was closed, or has failed.
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
