//! How far readers of a log may read. It can be looked at without the log's lock, which thousands of readers would else
//! take several times for every event.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Set under the log's lock, read without it.
#[derive(Debug, Default)]
pub(super) struct ReaderProgress {
    /// Twice the number of events that may be seen, and one if there will be no more.
    packed: AtomicU64,
    changed: watch::Sender<()>,
}

impl ReaderProgress {
    /// Only under the log's lock, so that what was set last is what is true. Wakes nobody.
    pub(super) fn set(&self, num_visible: u64, is_over: bool) {
        self.packed.store(num_visible << 1 | u64::from(is_over), Ordering::Release);
    }

    /// Wakes everybody who waits, after a [`Progress::set`].
    pub(super) fn wake(&self) {
        self.changed.send_replace(());
    }

    /// The number of events that may be seen.
    pub(super) fn num_visible(&self) -> u64 {
        self.packed.load(Ordering::Acquire) >> 1
    }

    /// Whether no more may be seen than may be now.
    pub(super) fn is_over(&self) -> bool {
        self.packed.load(Ordering::Acquire) & 1 == 1
    }

    /// Whether the event with this number may be seen; `None` if it never will be.
    pub(super) fn has(&self, seq: u64) -> Option<bool> {
        let packed = self.packed.load(Ordering::Acquire);
        let has = packed >> 1 > seq;
        (has || packed & 1 == 0).then_some(has)
    }

    /// For waiting: a change after this call is noticed.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
