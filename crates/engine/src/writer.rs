//! The engine's end of a generation's log. It exists from acceptance on, and however it goes away - a finished text, a
//! cancellation, a panic that drops it - the log gets exactly one terminal event, and the metrics count it once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::held::Held;
use super::lease::Lease;
use crate::metrics::{CancelLabel, Metrics};
use tallow_stream::error::ErrorKind;
use tallow_stream::protocol::{ErrorInfo, Event, FinishReason, Usage};
use tallow_stream::{CancelCause, StreamLog};

/// Writes a generation's events.
#[derive(Debug)]
pub struct Writer {
    log: Arc<StreamLog>,
    shared: Arc<WriterShared>,
    is_ended: bool,
    /// Of the core that holds it.
    lease: Option<Arc<Lease>>,
    /// What was spent so far; the terminal event carries it.
    pub usage: Usage,
}

/// What all writers of an engine count in.
#[derive(Debug)]
pub(crate) struct WriterShared {
    /// The server's metrics.
    pub metrics: Arc<Metrics>,
    /// Generations accepted and not ended.
    pub(crate) num_live: AtomicUsize,
}

impl Writer {
    /// The writer of an accepted request.
    pub(crate) fn new(log: Arc<StreamLog>, shared: &Arc<WriterShared>) -> Self {
        shared.num_live.fetch_add(1, Ordering::SeqCst);
        Self { log, shared: shared.clone(), is_ended: false, lease: None, usage: Usage::default() }
    }

    /// The writer of a request whose worker was lost; it counts as live already.
    pub(super) fn again(log: Arc<StreamLog>, shared: &Arc<WriterShared>) -> Self {
        Self { log, shared: shared.clone(), is_ended: false, lease: None, usage: Usage::default() }
    }

    /// Leaves the log to another writer.
    fn release(mut self) {
        self.is_ended = true;
    }

    /// The log.
    pub fn log(&self) -> &Arc<StreamLog> {
        &self.log
    }

    /// From here on it writes only while `lease` holds. If that is gone already, the sequence is another worker's.
    ///
    /// # Errors
    /// What the lease was to hold.
    pub(super) fn lease(mut self, lease: &Arc<Lease>, held: Held) -> Result<Self, Box<Held>> {
        match lease.hold(held) {
            Ok(()) => {
                self.lease = Some(lease.clone());
                Ok(self)
            }
            Err(held) => {
                self.release();
                Err(held)
            }
        }
    }

    /// Whether somebody asked for the end.
    pub fn is_cancelled(&self) -> bool {
        self.log.cancelled().is_some()
    }

    /// Adds an event that is not terminal.
    pub fn append(&self, event: Event) {
        debug_assert!(!event.is_terminal(), "use the methods that end it");
        match &self.lease {
            Some(lease) => drop(lease.append(&self.log, event, |_| {})),
            None => drop(self.log.append(event)),
        }
    }

    /// The text is finished, by the stop string `stop` if there is one.
    pub fn done(mut self, finish_reason: FinishReason, stop: Option<String>) {
        self.end(Event::Done { finish_reason, usage: self.usage, stop });
    }

    /// The cancellation took effect.
    pub fn cancelled(mut self) {
        self.end_with_error(ErrorKind::Cancelled, "the generation was cancelled".to_owned());
    }

    /// Something went wrong.
    pub fn failed(mut self, kind: ErrorKind, message: String) {
        self.end_with_error(kind, message);
    }

    fn end_with_error(&mut self, kind: ErrorKind, message: String) {
        self.end(Event::Error(ErrorInfo { kind, message, usage: self.usage }));
    }

    /// One line per generation; nothing of what was asked or said.
    fn log_end(&self, event: &Event) {
        let stream = self.log.id();
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.usage;
        match event {
            Event::Error(info) => {
                let error = info.message.as_str();
                tracing::info!(%stream, prompt_tokens, cached_tokens, completion_tokens, error, "generation ended");
            }
            Event::Done { finish_reason, .. } => {
                let reason = finish_reason.as_str();
                tracing::info!(%stream, prompt_tokens, cached_tokens, completion_tokens, reason, "generation ended");
            }
            Event::Queued { .. } | Event::Started { .. } | Event::Prompt { .. } | Event::Token(_) => {}
        }
    }

    fn count_end(&self, event: &Event) {
        let metrics = &self.shared.metrics;
        match event {
            Event::Done { .. } => metrics.requests_done.inc(),
            Event::Error(info) if info.kind == ErrorKind::Cancelled => {
                metrics.requests_cancelled.inc();
                let cause = self.log.cancelled().map_or("requested", CancelCause::as_str);
                metrics.cancels.get_or_create(&CancelLabel::new(cause)).inc()
            }
            _ => metrics.requests_failed.inc(),
        };
    }

    fn end(&mut self, event: Event) {
        self.is_ended = true;
        let told = event.clone();
        // None if the right is gone: another writer has the log then, and counts.
        let mut is_suspended = None;
        match &self.lease {
            Some(lease) => {
                lease.append(&self.log, event, |event| is_suspended = Some(self.before_end(event)));
            }
            None => {
                is_suspended = Some(self.before_end(&event));
                self.log.append(event);
            }
        }
        // Not under the lease's lock: standard error may be a file on a disk that stalls.
        match is_suspended {
            Some(true) => tracing::info!(stream = %self.log.id(), "left to the next process"),
            Some(false) => self.log_end(&told),
            None => {}
        }
    }

    /// Counts the end; returns whether the generation goes on in the next process, where its end is told and counted.
    fn before_end(&self, event: &Event) -> bool {
        let is_suspended = self.log.is_suspended();
        if !is_suspended {
            self.count_end(event);
        }
        // Before the event, so that a reader that has seen it finds the engine idle.
        self.shared.num_live.fetch_sub(1, Ordering::SeqCst);
        is_suspended
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_ended {
            self.end_with_error(ErrorKind::Internal, "the worker failed".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tallow_stream::protocol::{OnDisconnect, StreamId, Tenant};

    #[test]
    fn a_writer_whose_right_was_taken_away_leaves_its_log_to_another() {
        let shared = Arc::new(WriterShared { metrics: Arc::default(), num_live: AtomicUsize::new(0) });
        let lease = Lease::new(shared.metrics.clone(), 4);
        let logs = [1, 2].map(|id| StreamLog::new(StreamId(id), Tenant(0), OnDisconnect::Detach));
        let [first, late] = [0, 1].map(|i| Writer::new(logs[i].clone(), &shared));
        let held = |slot: usize| Held::for_test(logs[slot].clone(), slot);
        let first = first.lease(&lease, held(0)).expect("the right is there");
        first.append(Event::Started { prompt_tokens: 1, cached_tokens: 0 });
        let (lost, culprit) = lease.revoke();
        assert_eq!(culprit, None);
        assert_eq!(lost.iter().map(|held| held.slot).collect::<Vec<_>>(), [0]);
        let late = late.lease(&lease, held(1)).expect_err("the right is gone");
        assert_eq!(late.slot, 1);
        first.append(Event::Started { prompt_tokens: 9, cached_tokens: 9 });
        first.done(FinishReason::Stop, None);
        assert_eq!((logs[0].len(), logs[1].len()), (1, 0), "what it still says reaches nobody");
        assert_eq!(shared.num_live.load(Ordering::SeqCst), 2);
        for log in &logs {
            Writer::again(log.clone(), &shared).done(FinishReason::Stop, None);
        }
        assert!(logs.iter().all(|log| log.is_finished()));
        assert_eq!(shared.num_live.load(Ordering::SeqCst), 0);
        assert_eq!(shared.metrics.requests_done.get(), 2);
    }
}
