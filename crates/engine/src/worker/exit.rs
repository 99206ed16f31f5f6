//! How workers' threads end, and are counted: an engine without workers must say so, and an unload must know when all have
//! ended. A worker that ended for an unload which did not come to pass comes back.
//!
//! Lock order: a worker's status, then the count.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Current, Status, WorkerShared};

/// How a worker's thread comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It panicked, or cannot load its model any more.
    Ended,
    /// It was told to: the engine stops, or its model is unloaded.
    Called,
    /// Another thread has its place, and counts in its stead.
    Replaced,
}

impl Left {
    pub(super) fn leave(self, mut exit: Exit<'_>, status: &Status) {
        exit.how = self;
        if self == Self::Called {
            // Counted out under the lock: who finds it away finds it counted out.
            let mut current = status.lock();
            *current = Current::Away { hangs: false };
            drop(exit);
        }
    }
}

/// Counts a worker out however its thread ends, by a panic outside of a step too.
pub(super) struct Exit<'a> {
    pub(super) shared: &'a WorkerShared,
    pub(super) how: Left,
}

impl Drop for Exit<'_> {
    fn drop(&mut self) {
        let Self { shared, how } = *self;
        if how == Left::Replaced {
            return;
        }
        let was_last = shared.num_alive.fetch_sub(1, Ordering::SeqCst) == 1;
        // One that was told to end for an unload that did not come to pass comes back.
        if was_last && how == Left::Ended && !shared.is_resting.load(Ordering::SeqCst) {
            shared.parts.queue.abandon("no worker is left to serve requests");
        }
        *shared.num_exited.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        shared.exited.notify_all();
    }
}

impl WorkerShared {
    /// Counts out the workers that hung and were not replaced: nobody else will.
    pub(crate) fn leave_vacant(&self) {
        for status in &self.statuses {
            let mut current = status.lock();
            if matches!(*current, Current::Vacant) {
                *current = Current::Away { hangs: true };
                drop(Exit { shared: self, how: Left::Ended });
            }
        }
    }

    /// Forgets what became of the workers of an earlier load: their successors load now.
    pub(crate) fn begin_load(&self) {
        self.statuses.iter().for_each(|status| *status.lock() = Current::Loading);
        self.num_alive.store(self.statuses.len(), Ordering::SeqCst);
        *self.num_exited.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    }

    /// Whether a thread is to be started for a worker that ended for an unload which did not come to pass. It counts as
    /// alive again then; so does one whose thread hangs, and that one is replaced like any other.
    pub(super) fn takes_back(&self, status: &Status) -> bool {
        if self.is_resting.load(Ordering::SeqCst) || self.parts.queue.wait_stopped(Duration::ZERO) {
            return false;
        }
        let mut current = status.lock();
        let Current::Away { hangs } = *current else { return false };
        *current = if hangs { Current::Vacant } else { Current::Loading };
        self.num_alive.fetch_add(1, Ordering::SeqCst);
        *self.num_exited.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        !hangs
    }

    pub(super) fn start_again(self: &Arc<Self>, index: usize) -> Option<JoinHandle<()>> {
        self.spawn_worker(index, |worker| worker.load().or_else(|_| worker.reload(1)))
    }

    /// Waits until all workers have ended; false if one has not after `time`.
    pub(crate) fn wait_exited(&self, time: Duration) -> bool {
        let exited = self.num_exited.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |n: &mut usize| *n < self.statuses.len();
        let (n, _) = self.exited.wait_timeout_while(exited, time, missing).unwrap_or_else(PoisonError::into_inner);
        *n == self.statuses.len()
    }
}
