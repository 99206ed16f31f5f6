//! A core while the disk that keeps its streams is far behind: it computes nothing that would have to be kept too, but what
//! was cancelled ends, and so does everything when the engine stops.
//!
//! It waits between steps, so that it holds neither a lock nor a turn, and no watch takes it for hung: a step that comes to
//! [`Step::HeldUp`] is over at once. The worker looks again after each [`HELD_UP_PAUSE`].

use std::sync::Arc;
use std::time::Duration;

use super::{EngineCore, Step};
use tallow_stream::StreamLog;
use tallow_stream::error::ErrorKind;

/// How late a worker that waits for the disk hears of a cancellation or of the end.
const HELD_UP_PAUSE: Duration = Duration::from_millis(10);

impl EngineCore {
    /// What the step comes to if the disk holds the core up; `None` if it does not, and the step can go on.
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

    /// Blocks for a moment, or until the disk keeps up again. For between two steps.
    pub fn wait_for_disk(&self) {
        if let Some(log) = self.kept_log() {
            self.parts.metrics.workers_held_up.inc();
            log.wait_for_disk(HELD_UP_PAUSE);
            self.parts.metrics.workers_held_up.dec();
        }
    }

    /// A log that is kept: of a sequence that the core has, or if it has none, of a request that it would begin with.
    fn kept_log(&self) -> Option<Arc<StreamLog>> {
        let is_idle = self.scheduler.num_running() + self.scheduler.num_waiting() == 0;
        if is_idle { self.parts.queue.kept_log() } else { self.lease.kept_log() }
    }

    /// Does not count the time that the disk took as time that masks were waited for: theirs is bounded.
    fn forgive(&mut self, held_up: Duration) {
        for generation in self.generations.iter_mut().flatten() {
            if let Some(since) = generation.held.as_mut().and_then(|held| held.since.as_mut()) {
                *since += held_up;
            }
        }
    }
}
