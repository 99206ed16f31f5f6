//! How far readers of a log may read. Readers check it without the log's lock; otherwise thousands of readers would
//! take that lock several times for every event.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Set under the log's lock, read without it.
#[derive(Debug, Default)]
pub(super) struct ReaderProgress {
    /// Twice the number of visible events, plus one if no more will become visible.
    packed: AtomicU64,
    changed: watch::Sender<()>,
}

impl ReaderProgress {
    /// Call it only under the log's lock, so that the last value set is the true one. It wakes nobody.
    pub(super) fn set(&self, num_visible: u64, is_over: bool) {
        self.packed.store(num_visible << 1 | u64::from(is_over), Ordering::Release);
    }

    /// Wakes every waiting reader. Call it after [`Self::set`].
    pub(super) fn wake(&self) {
        self.changed.send_replace(());
    }

    /// The number of events that readers may see.
    pub(super) fn num_visible(&self) -> u64 {
        self.packed.load(Ordering::Acquire) >> 1
    }

    /// Whether readers will never see more events than now.
    pub(super) fn is_over(&self) -> bool {
        self.packed.load(Ordering::Acquire) & 1 == 1
    }

    /// Whether readers may see the event with this number; `None` if they never will.
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
