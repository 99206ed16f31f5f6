//! Streams on disk, so that they outlive the process: what was asked, and every event. One thread owns the database and
//! commits whatever has come since its last commit as one transaction.
//!
//! ```text
//! begin, append, forget -> a bounded channel -> the thread: gather -> write -> commit (fsync) -> tell the logs
//!                          (workers wait between steps if the disk does)
//! ```
//! Most events need not be on disk before a reader sees them: a token that was shown and lost is computed again, bit for
//! bit and under the same number (see [`Event::is_repeatable`]). The others - a place in the queue, the start, a failure -
//! are shown once they are durable, and by then so is the request itself, which came before them. So after a crash at any
//! moment every number that a reader has seen still stands for the same event.
//!
//! The database is redb: copy-on-write B-trees with a checksum for every page, pure Rust. An append-only file of our own
//! would be faster and would need its own compaction, locking and repair.

mod records;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

pub use records::{StoredStream, StreamRecord};

use self::records::Opened;
use super::log::{Entry, StreamLog};
use crate::error::{Error, Result};
use crate::protocol::{Epoch, Event, StreamId};
use crate::settings;
use crate::settings::{MIB, bytes, millis, setting};

/// The file in the store's folder.
const FILE_NAME: &str = "streams.redb";
/// Is there while [`FILE_NAME`] has all that readers were shown. It goes when the disk fails, which asks for no room.
const WHOLE_FILE_NAME: &str = "streams.whole";
/// Changes on their way to the thread; who brings more waits, whatever it holds.
const NUM_CHANGES_MAX: usize = 16_384;
/// Beyond so many, workers begin no step: what is left is for those who must not wait for a disk.
const NUM_CHANGES_HIGH: usize = NUM_CHANGES_MAX / 2;

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
    }
}

/// Streams on disk. Dropping it commits what has come.
pub struct StreamStore {
    epoch: Epoch,
    changes: SyncSender<Change>,
    /// Whether an earlier process kept all that it had shown.
    was_whole: bool,
    health: Arc<Health>,
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

/// How the store is.
#[derive(Debug)]
struct Health {
    /// Whether changes are still taken: not after [`StreamStore::close`] or a failure.
    is_open: AtomicBool,
    /// Whether the disk, or the database on it, has failed. Set before the store is no longer open.
    has_failed: AtomicBool,
    /// Changes on their way.
    num_changes: AtomicUsize,
    /// Held to wait for fewer, and to say that there are.
    waiting: Mutex<()>,
    has_fewer: Condvar,
}

impl Health {
    fn taken(&self, num_changes: usize) {
        self.num_changes.fetch_sub(num_changes, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        drop(self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.has_fewer.notify_all();
    }
}

/// What the thread is told.
enum Change {
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
    /// Dropped once what came before it is durable, or nothing will be.
    Barrier {
        _passed: oneshot::Sender<()>,
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
        let (changes, received) = sync_channel(NUM_CHANGES_MAX);
        let health = Arc::new(Health {
            is_open: AtomicBool::new(true),
            has_failed: AtomicBool::new(false),
            num_changes: AtomicUsize::new(0),
            waiting: Mutex::default(),
            has_fewer: Condvar::new(),
        });
        let writer = writer::StoreWriter::new(database, (path, mark), limits, health.clone(), &stored);
        let thread = Mutex::new(Some(spawn(writer, received)?));
        Ok((Arc::new(Self { epoch, changes, was_whole, health, thread }), stored))
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
            self.send(Change::MakeWhole);
        }
    }

    /// Keeps a new stream: its request now, its events as they come.
    pub fn begin(self: &Arc<Self>, record: StreamRecord, log: &Arc<StreamLog>) {
        log.keep_in(self);
        self.send(Change::Begin { record: Box::new(record), log: Arc::downgrade(log) });
    }

    /// Keeps further events of a stream that is in the store.
    pub fn follow(self: &Arc<Self>, log: &Arc<StreamLog>) {
        log.keep_in(self);
        self.send(Change::Follow { log: Arc::downgrade(log), id: log.id() });
    }

    /// Removes a stream.
    pub fn forget(&self, id: StreamId) {
        self.send(Change::Forget { id });
    }

    /// Waits until what was sent before is durable, or will never be because the store has failed or is closed.
    pub async fn flushed(&self) {
        let (_passed, passed) = oneshot::channel();
        self.send(Change::Barrier { _passed });
        // Nothing is ever sent: the other end is dropped when its time has come.
        let _ = passed.await;
    }

    /// Commits what has come and takes nothing more: what is not finished now goes on when the store is opened again.
    pub fn close(&self) {
        if self.health.is_open.swap(false, Ordering::SeqCst) {
            self.hand_over(Change::Close);
            self.health.wake();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the stream store's thread panicked");
        }
    }

    /// Whether events are kept: not after it was closed, or has failed.
    pub fn is_open(&self) -> bool {
        self.health.is_open.load(Ordering::SeqCst)
    }

    /// Whether the disk, or the database on it, has failed.
    pub fn has_failed(&self) -> bool {
        self.health.has_failed.load(Ordering::SeqCst)
    }

    /// Blocks while the disk is far behind.
    pub(super) fn wait_for_disk(&self) {
        let waiting = self.health.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.health.has_fewer.wait_while(waiting, |()| self.is_behind());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn is_behind(&self) -> bool {
        self.is_open() && self.health.num_changes.load(Ordering::SeqCst) > NUM_CHANGES_HIGH
    }

    pub(super) fn append(&self, id: StreamId, entry: Entry) {
        self.send(Change::Append { id, entry });
    }

    fn send(&self, change: Change) {
        if self.is_open() {
            self.hand_over(change);
        }
    }

    fn hand_over(&self, change: Change) {
        self.health.num_changes.fetch_add(1, Ordering::SeqCst);
        // Fails only if the thread has ended, which has said why.
        let _ = self.changes.send(change);
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

fn spawn(mut writer: writer::StoreWriter, received: Receiver<Change>) -> Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name("stream-store".to_owned());
    builder.spawn(move || writer.run(&received)).map_err(|e| Error::io("cannot start the stream store's thread", e))
}

impl Event {
    /// Whether another run of the same request makes this event again, bit for bit and under the same number.
    pub(super) fn is_repeatable(&self) -> bool {
        matches!(self, Self::Prompt { .. } | Self::Token(_) | Self::Done { .. })
    }
}

#[cfg(test)]
mod tests;
