//! What a core does while the disk that keeps its streams is far behind. It computes no step, since its events would
//! have to be kept too. Cancelled sequences still end, and so do all sequences when the engine stops.
//!
//! The core waits between steps. It then holds neither a lock nor a turn, and the watch does not take it for hung: a
//! step whose outcome is [`Step::HeldUp`] is over at once. The worker checks the disk again after each
//! [`HELD_UP_PAUSE`].

use std::sync::Arc;
use std::time::Duration;

use super::{EngineCore, Step};
use tallow_stream::StreamLog;
use tallow_stream::error::ErrorKind;

/// How late a worker that waits for the disk notices a cancellation or a shutdown.
const HELD_UP_PAUSE: Duration = Duration::from_millis(10);

impl EngineCore {
    /// The outcome of the step if the core must wait for the disk; `None` if the step can go on.
    pub(super) fn check_disk(&mut self, now: Duration) -> Option<Step> {
        if !self.kept_log().is_some_and(|log| log.is_held_up()) {
            if let Some(since) = self.held_up_since.take() {
                self.forgive(now.saturating_sub(since));
            }
            return None;
        }
        self.held_up_since.get_or_insert(now);
        if let Some(message) = self.parts.queue.stop_message() {
            self.fail_all(ErrorKind::Unavailable, &message);
            return Some(Step::Stopped);
        }
        Some(if self.lease.is_revoked() { Step::Revoked } else { Step::HeldUp })
    }

    /// Blocks for a moment, or until the disk has caught up. Called between two steps.
    pub fn wait_for_disk(&self) {
        if let Some(log) = self.kept_log() {
            self.parts.metrics.workers_held_up.inc();
            log.wait_for_disk(HELD_UP_PAUSE);
            self.parts.metrics.workers_held_up.dec();
        }
    }

    /// A log that is kept on disk: that of a sequence which the core has, or if it has none, that of a request which it
    /// may begin next.
    fn kept_log(&self) -> Option<Arc<StreamLog>> {
        let is_idle = self.scheduler.num_running() + self.scheduler.num_waiting() == 0;
        if is_idle { self.parts.queue.kept_log() } else { self.lease.kept_log() }
    }

    /// Takes the time that the core waited for the disk out of the time that sequences have waited for masks, which is
    /// bounded.
    fn forgive(&mut self, held_up: Duration) {
        for generation in self.generations.iter_mut().flatten() {
            if let Some(since) = generation.held.as_mut().and_then(|held| held.since.as_mut()) {
                *since += held_up;
            }
        }
    }
}
