//! The engine's end of a generation's log. It exists from acceptance on, and however it goes away - a finished text, a
//! cancellation, a panic that drops it - the log gets exactly one terminal event, and the metrics count it once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::protocol::{ErrorInfo, Event, FinishReason, Usage};
use crate::stream::StreamLog;

/// Writes a generation's events.
#[derive(Debug)]
pub struct Writer {
    log: Arc<StreamLog>,
    shared: Arc<WriterShared>,
    is_ended: bool,
    /// What was spent so far; the terminal event carries it.
    pub usage: Usage,
}

/// What all writers of an engine count in.
#[derive(Debug)]
pub struct WriterShared {
    /// The server's metrics.
    pub metrics: Arc<Metrics>,
    /// Generations accepted and not ended.
    pub num_live: AtomicUsize,
}

impl Writer {
    /// The writer of an accepted request.
    pub fn new(log: Arc<StreamLog>, shared: &Arc<WriterShared>) -> Self {
        shared.num_live.fetch_add(1, Ordering::SeqCst);
        Self { log, shared: shared.clone(), is_ended: false, usage: Usage::default() }
    }

    /// The log.
    pub fn log(&self) -> &Arc<StreamLog> {
        &self.log
    }

    /// Whether somebody asked for the end.
    pub fn is_cancelled(&self) -> bool {
        self.log.cancelled().is_some()
    }

    /// Adds an event that is not terminal.
    pub fn append(&self, event: Event) {
        debug_assert!(!event.is_terminal(), "use the methods that end it");
        self.log.append(event);
    }

    /// The text is finished.
    pub fn done(mut self, finish_reason: FinishReason) {
        self.shared.metrics.requests_done.inc();
        self.end(Event::Done { finish_reason, usage: self.usage });
    }

    /// The cancellation took effect.
    pub fn cancelled(mut self) {
        self.shared.metrics.requests_cancelled.inc();
        self.end_with_error(ErrorKind::Cancelled, "the generation was cancelled".to_owned());
    }

    /// Something went wrong.
    pub fn failed(mut self, kind: ErrorKind, message: String) {
        self.shared.metrics.requests_failed.inc();
        self.end_with_error(kind, message);
    }

    fn end_with_error(&mut self, kind: ErrorKind, message: String) {
        self.end(Event::Error(ErrorInfo { kind, message, usage: self.usage }));
    }

    fn end(&mut self, event: Event) {
        self.is_ended = true;
        // Before the event, so that whoever has seen it finds the engine idle.
        self.shared.num_live.fetch_sub(1, Ordering::SeqCst);
        self.log.append(event);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_ended {
            self.shared.metrics.requests_failed.inc();
            self.end_with_error(ErrorKind::Internal, "the worker failed".to_owned());
        }
    }
}
