//! Whether a queue takes requests, and how it ends: closed to new ones, then stopped for all.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::{Queue, QueueEntry, QueueState};
use crate::fair::Ticket;
use tallow_stream::error::ErrorKind;

#[derive(Debug)]
pub(super) enum QueuePhase {
    Open,
    /// No new requests are taken, and the message says why; requests that were accepted are served.
    Closed(String),
    /// The end, with the message for the requests that are left.
    Stopped(String),
}

impl Queue {
    /// Ends the waiting requests; the queue stays open for new ones.
    pub(crate) fn refuse_waiting(&self, message: &str) {
        self.fail_waiting(self.lock(), message);
    }

    /// Blocks for `time`, or until the engine stops or its model is unloaded; true if that has happened.
    pub fn wait_stopped(&self, time: Duration) -> bool {
        let running = |s: &mut QueueState| !s.is_over();
        let (state, _) =
            self.stopped.wait_timeout_while(self.lock(), time, running).unwrap_or_else(PoisonError::into_inner);
        state.is_over()
    }

    /// The message for the remaining requests, once the engine has stopped.
    pub(crate) fn stop_message(&self) -> Option<String> {
        match &self.lock().phase {
            QueuePhase::Stopped(message) => Some(message.clone()),
            QueuePhase::Open | QueuePhase::Closed(_) => None,
        }
    }

    /// Takes no new requests from now on, saying why.
    pub fn close(&self, message: &str) {
        let mut state = self.lock();
        if matches!(state.phase, QueuePhase::Open) {
            state.phase = QueuePhase::Closed(message.to_owned());
        }
    }

    /// Ends the waiting requests, and tells the workers to end the running ones.
    pub fn stop(&self, message: &str) {
        let mut state = self.lock();
        if !matches!(state.phase, QueuePhase::Stopped(_)) {
            state.phase = QueuePhase::Stopped(message.to_owned());
        }
        self.fail_waiting(state, message);
        self.wake.notify_all();
        self.stopped.notify_all();
    }

    /// Ends the waiting requests and takes no new ones: no worker is left to serve them.
    pub(crate) fn abandon(&self, message: &str) {
        self.close(message);
        self.fail_waiting(self.lock(), message);
    }

    /// Whether new requests are taken.
    pub fn is_open(&self) -> bool {
        matches!(self.lock().phase, QueuePhase::Open)
    }

    fn fail_waiting(&self, mut state: MutexGuard<'_, QueueState>, message: &str) {
        let all: Vec<Ticket> = state.waiting.iter().map(|(ticket, _)| ticket).collect();
        let all: Vec<QueueEntry> =
            all.into_iter().filter_map(|ticket| self.take_abandoned(&mut state, ticket)).collect();
        // Ends them outside the queue's lock: each end writes a line to the server's log, whose reader may be slow.
        drop(state);
        for entry in all {
            entry.writer.failed(ErrorKind::Unavailable, message.to_owned());
        }
    }
}
