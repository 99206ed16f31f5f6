//! How workers' threads end and are counted: an engine without workers must report it, and an unload must know when all
//! threads have ended. A worker that ended for an unload that was then called off comes back.
//!
//! Lock order: a worker's status, then the count.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Current, Status, WorkerShared};

/// Why a worker's thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It panicked, or cannot load its model any more.
    Ended,
    /// It was told to end: the engine stops, or its model is unloaded.
    Called,
    /// Another thread has taken its place and is counted instead.
    Replaced,
}

impl Left {
    pub(super) fn leave(self, mut exit: Exit<'_>, status: &Status) {
        exit.how = self;
        if self == Self::Called {
            // Counts it out under the lock, so that a thread that finds it away also finds it counted out.
            let mut current = status.lock();
            *current = Current::Away { hangs: false };
            drop(exit);
        }
    }
}

/// Counts a worker out however its thread ends, even by a panic outside a step.
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
        // A worker that was told to end comes back if the unload is called off, so it does not close the queue.
        if was_last && how == Left::Ended && !shared.is_resting.load(Ordering::SeqCst) {
            shared.parts.queue.abandon("no worker is left to serve requests");
        }
        *shared.num_exited.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        shared.exited.notify_all();
    }
}

impl WorkerShared {
    /// Counts out the workers that hung and were not replaced, since their threads do not count themselves out.
    pub(crate) fn leave_vacant(&self) {
        for status in &self.statuses {
            let mut current = status.lock();
            if matches!(*current, Current::Vacant) {
                *current = Current::Away { hangs: true };
                drop(Exit { shared: self, how: Left::Ended });
            }
        }
    }

    /// Forgets the ends of the workers of an earlier load: their successors load now.
    pub(crate) fn begin_load(&self) {
        self.statuses.iter().for_each(|status| *status.lock() = Current::Loading);
        self.num_alive.store(self.statuses.len(), Ordering::SeqCst);
        *self.num_exited.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    }

    /// Whether to start a thread for a worker that ended for an unload that was called off. The worker then counts as
    /// alive again. So does a worker whose thread hangs; that one is replaced like any other hung worker.
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

    /// Waits until all workers have ended; false if one still runs after `time`.
    pub(crate) fn wait_exited(&self, time: Duration) -> bool {
        let exited = self.num_exited.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |n: &mut usize| *n < self.statuses.len();
        let (n, _) = self.exited.wait_timeout_while(exited, time, missing).unwrap_or_else(PoisonError::into_inner);
        *n == self.statuses.len()
    }
}
