//! One generation's log and its readers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::protocol::{Event, OnDisconnect, StreamId, Tenant};

/// Why a generation was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CancelCause {
    /// Its last reader left, and its policy says stop.
    ReaderLeft,
    /// Its owner asked.
    Requested,
    /// The server is going down.
    Shutdown,
}

type CancelHook = Box<dyn FnOnce(CancelCause) + Send>;

/// An append-only run of events. Writers append; readers hold cursors; either side may cancel.
pub struct StreamLog {
    id: StreamId,
    tenant: Tenant,
    on_disconnect: OnDisconnect,
    // A std mutex: it is held for a push or a clone, never across an await.
    state: Mutex<State>,
    /// Number of events; readers wait on it.
    len: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    num_readers: usize,
    cancelled: Option<CancelCause>,
    cancel_hook: Option<CancelHook>,
    /// When the last reader left a lingering stream; the table's sweep measures the grace from here.
    orphaned_at_ms: Option<u64>,
}

impl StreamLog {
    /// An empty log.
    pub fn new(id: StreamId, tenant: Tenant, on_disconnect: OnDisconnect) -> Arc<Self> {
        let state = Mutex::new(State::default());
        Arc::new(Self { id, tenant, on_disconnect, state, len: watch::Sender::new(0) })
    }

    /// Its name.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Whose it is.
    pub fn tenant(&self) -> Tenant {
        self.tenant
    }

    /// Adds an event and wakes every reader; returns its sequence number.
    ///
    /// # Panics
    /// If the log has already ended: an event after the terminal one is a bug in the writer.
    pub fn append(&self, event: Event) -> u64 {
        let mut state = self.lock();
        let ended = state.events.last().is_some_and(Event::is_terminal);
        assert!(!ended, "stream {}: event after the terminal one: {event:?}", self.id);
        if event.is_terminal() {
            state.cancel_hook = None;
        }
        state.events.push(event);
        let len = state.events.len();
        drop(state);
        self.len.send_replace(len);
        len as u64 - 1
    }

    /// Number of events so far.
    pub fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Whether nothing has happened yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the terminal event is there.
    pub fn is_finished(&self) -> bool {
        self.lock().events.last().is_some_and(Event::is_terminal)
    }

    /// The cause, once somebody has cancelled it. Workers ask at every step.
    pub fn cancelled(&self) -> Option<CancelCause> {
        self.lock().cancelled
    }

    /// Asks for the end. The first cause stays; a finished log ignores it. Returns whether this call was the one.
    pub fn cancel(&self, cause: CancelCause) -> bool {
        let mut state = self.lock();
        if state.cancelled.is_some() || state.events.last().is_some_and(Event::is_terminal) {
            return false;
        }
        state.cancelled = Some(cause);
        let hook = state.cancel_hook.take();
        // Outside the lock: the hook takes the queue's lock and may append the terminal event.
        drop(state);
        if let Some(hook) = hook {
            hook(cause);
        }
        true
    }

    /// Calls `hook` once on cancellation (at once if it has happened). The engine uses it to take a waiting request
    /// out of the queue; it is dropped when the log ends.
    pub fn on_cancel(&self, hook: impl FnOnce(CancelCause) + Send + 'static) {
        let mut state = self.lock();
        match state.cancelled {
            Some(cause) => {
                drop(state);
                hook(cause);
            }
            None => state.cancel_hook = Some(Box::new(hook)),
        }
    }

    /// A reader whose next event is number `from_seq`.
    pub fn reader(self: &Arc<Self>, from_seq: u64) -> StreamReader {
        let mut state = self.lock();
        state.num_readers += 1;
        state.orphaned_at_ms = None;
        drop(state);
        StreamReader { log: self.clone(), next_seq: from_seq, len: self.len.subscribe() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while pushing leaves a valid vector behind, so the poison says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for StreamLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamLog").field("id", &self.id).field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A cursor into a log. Dropping it leaves the stream, which may cancel it (see [`OnDisconnect`]).
#[derive(Debug)]
pub struct StreamReader {
    log: Arc<StreamLog>,
    next_seq: u64,
    len: watch::Receiver<usize>,
}

impl StreamReader {
    /// The next event and its sequence number, waiting for it if need be; `None` once the terminal event was given.
    /// Cancel-safe: a dropped future loses nothing.
    pub async fn next(&mut self) -> Option<(u64, Event)> {
        loop {
            match self.try_next() {
                Some(item) => return Some(item),
                None if self.log.is_finished() => return self.try_next(),
                None => {}
            }
            let next = self.next_seq as usize;
            // The sender lives in the log that this reader holds, so waiting cannot fail.
            self.len.wait_for(|len| *len > next).await.ok()?;
        }
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<(u64, Event)> {
        let event = self.log.lock().events.get(self.next_seq as usize).cloned()?;
        let seq = self.next_seq;
        self.next_seq += 1;
        Some((seq, event))
    }

    /// The sequence number of the next event.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The log it reads.
    pub fn log(&self) -> &Arc<StreamLog> {
        &self.log
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.num_readers -= 1;
        let last = state.num_readers == 0;
        drop(state);
        if last && self.log.on_disconnect == OnDisconnect::Cancel {
            self.log.cancel(CancelCause::ReaderLeft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FinishReason, Usage};

    #[tokio::test]
    async fn readers_see_every_event_once_and_then_the_end() {
        let log = StreamLog::new(StreamId(1), Tenant(0), OnDisconnect::Detach);
        let mut early = log.reader(0);
        log.append(Event::Queued { position: 0 });
        log.append(Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default() });
        let mut late = log.reader(1);
        assert_eq!(early.next().await.map(|(seq, _)| seq), Some(0));
        assert_eq!(early.next().await.map(|(seq, _)| seq), Some(1));
        assert_eq!(early.next().await, None);
        assert_eq!(late.next().await.map(|(seq, _)| seq), Some(1));
    }

    #[test]
    fn the_last_reader_to_leave_cancels() {
        let log = StreamLog::new(StreamId(1), Tenant(0), OnDisconnect::Cancel);
        let (a, b) = (log.reader(0), log.reader(0));
        drop(a);
        assert_eq!(log.cancelled(), None);
        drop(b);
        assert_eq!(log.cancelled(), Some(CancelCause::ReaderLeft));
    }
}
