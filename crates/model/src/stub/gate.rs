//! Lets a test decide when the stub's steps run, so that no test needs to sleep.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a test waits for what must come before it says that it did not.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a step that waits shows that it has not died.
const BEAT: Duration = Duration::from_millis(50);

/// A door that steps wait at. New ones are shut.
#[derive(Debug, Default)]
pub struct StubGate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    num_arrived: u64,
    num_allowed: u64,
}

impl StubGate {
    /// A shut door.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Lets `num_steps` more steps through.
    pub fn allow(&self, num_steps: u64) {
        let mut state = self.lock();
        state.num_allowed = state.num_allowed.saturating_add(num_steps);
        self.changed.notify_all();
    }

    /// Lets every step through from now on.
    pub fn open(&self) {
        self.allow(u64::MAX);
    }

    /// Waits until `num_steps` steps in all have arrived at the door, let through or not.
    ///
    /// # Panics
    /// If they do not come within a minute.
    pub fn wait_arrived(&self, num_steps: u64) {
        let arrived = self.changed.wait_timeout_while(self.lock(), PATIENCE, |s| s.num_arrived < num_steps);
        let (state, timeout) = arrived.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "waited for {num_steps} steps, saw {}", state.num_arrived);
    }

    /// Steps that have arrived so far.
    pub fn num_arrived(&self) -> u64 {
        self.lock().num_arrived
    }

    /// Waits to be let through, calling `beat` meanwhile; a model that is not the stub can stand here too.
    pub fn pass(&self, beat: impl Fn()) {
        let mut state = self.lock();
        state.num_arrived += 1;
        let number = state.num_arrived;
        self.changed.notify_all();
        let mut state = state;
        while state.num_allowed < number {
            beat();
            let waited = self.changed.wait_timeout(state, BEAT);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
