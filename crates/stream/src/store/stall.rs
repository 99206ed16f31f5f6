//! A disk that stalls when a test wants it: commits do not return, as an `fsync` that hangs, and do not fail either.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Where commits pass.
#[derive(Debug, Default)]
pub(super) struct CommitGate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    is_shut: bool,
    /// Whether a commit waits.
    is_reached: bool,
}

/// While it lives, no commit returns.
#[derive(Debug)]
pub struct DiskStall(Arc<CommitGate>);

impl CommitGate {
    /// Waits while it is shut.
    pub(super) fn pass(&self) {
        let mut state = self.lock();
        state.is_reached = true;
        self.changed.notify_all();
        while state.is_shut {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_reached = false;
    }

    pub(super) fn shut(self: &Arc<Self>) -> DiskStall {
        self.lock().is_shut = true;
        DiskStall(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskStall {
    /// Blocks until a commit hangs.
    pub fn wait_reached(&self) {
        let is_missing = |state: &mut GateState| !state.is_reached;
        drop(self.0.changed.wait_while(self.0.lock(), is_missing).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for DiskStall {
    fn drop(&mut self) {
        self.0.lock().is_shut = false;
        self.0.changed.notify_all();
    }
}
