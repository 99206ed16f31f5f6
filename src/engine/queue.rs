//! Requests that wait for a worker: bounded in number and in tokens, first come first served. The one place where the
//! threads of the engine meet: whoever takes an entry out of the queue, under its lock, writes the entry's further
//! events, so that a cancellation and a worker can never both end a stream.
//!
//! Its clock is given to it, and it draws nothing at random. The lock is held for list operations and one append
//! to a log; a log's hook is never called with the log's own lock held, so the order queue, then log, holds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::rate::ServiceRate;
use super::writer::{Writer, WriterShared};
use crate::cache::HashChain;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::protocol::{Event, StreamId, ValidRequest};
use crate::stream::StreamLog;

/// The time since some beginning; it never goes back. A test or a simulation brings its own.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The queue's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most requests that wait.
    pub requests_max: usize,
    /// Most tokens (prompt and `max_tokens`) that wait. A request larger than that is taken when nothing else waits.
    pub tokens_max: usize,
}

/// A request that waits.
#[derive(Debug)]
pub struct Entry {
    /// What is wanted.
    pub request: ValidRequest,
    /// Names of the prompt's full blocks, where the prefix cache is on.
    pub chain: Option<HashChain>,
    /// Its log.
    pub writer: Writer,
    /// When it was accepted.
    pub accepted_at: Duration,
    /// When somebody asked for its end.
    pub cancelled_at: Arc<OnceLock<Duration>>,
}

/// What a worker finds in the queue.
#[derive(Debug)]
pub enum Pulled {
    /// The next request; its events are the worker's to write.
    Entry(Box<Entry>),
    /// Nothing, or nothing that fits.
    Nothing,
    /// The engine shuts down: end everything with this message.
    Stopped(String),
}

/// Requests that wait, and whether the engine takes new ones.
pub struct Queue {
    limits: QueueLimits,
    clock: Clock,
    shared: Arc<WriterShared>,
    state: Mutex<State>,
    /// Something to do, or the end. One waiter is woken per request, so nobody waits here for anything else.
    wake: Condvar,
    /// The end.
    stopped: Condvar,
}

#[derive(Debug)]
struct State {
    entries: VecDeque<Entry>,
    num_tokens: usize,
    rate: ServiceRate,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// Nothing new; what is here is served. Says why.
    Closed(String),
    /// The end, with the message for those who are still here.
    Stopped(String),
}

impl Queue {
    /// An empty, open queue.
    pub fn new(limits: QueueLimits, metrics: Arc<Metrics>, clock: Clock) -> Arc<Self> {
        let shared = Arc::new(WriterShared { metrics, num_live: AtomicUsize::new(0) });
        let rate = ServiceRate::default();
        let state = State { entries: VecDeque::new(), num_tokens: 0, rate, phase: Phase::Open };
        let (wake, stopped) = (Condvar::new(), Condvar::new());
        Arc::new(Self { limits, clock, shared, state: Mutex::new(state), wake, stopped })
    }

    /// The time.
    pub fn now(&self) -> Duration {
        (self.clock)()
    }

    /// Accepts a request: appends `Queued` to its log, wakes a worker, and takes it out again the moment it is
    /// cancelled. `chain` names the prompt's full blocks, where the prefix cache is on.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when a bound is reached, [`ErrorKind::Unavailable`] when closed. The log is
    /// untouched then.
    pub fn submit(
        self: &Arc<Self>,
        request: ValidRequest,
        chain: Option<HashChain>,
        log: &Arc<StreamLog>,
    ) -> Result<()> {
        let id = request.id;
        let cancelled_at = Arc::new(OnceLock::new());
        self.push(request, chain, log.clone(), cancelled_at.clone())?;
        // Weak, as the queue holds the log that holds the hook.
        let queue = Arc::downgrade(self);
        log.on_cancel(move |_| {
            if let Some(queue) = queue.upgrade() {
                // Only this closure sets it, and it runs once.
                let _ = cancelled_at.set(queue.now());
                queue.cancel(id);
            }
        });
        Ok(())
    }

    fn push(
        &self,
        request: ValidRequest,
        chain: Option<HashChain>,
        log: Arc<StreamLog>,
        cancelled_at: Arc<OnceLock<Duration>>,
    ) -> Result<()> {
        let (metrics, now) = (&self.shared.metrics, self.now());
        let mut state = self.lock();
        if let Phase::Closed(message) | Phase::Stopped(message) = &state.phase {
            return Err(Error::new(ErrorKind::Unavailable, message.clone()));
        }
        let num_tokens = request.num_tokens_max();
        if let Some((message, excess)) = state.excess(&self.limits, num_tokens) {
            metrics.requests_rejected.inc();
            return Err(Error::overloaded(message, state.rate.retry_after_ms(excess, now)));
        }
        metrics.requests_accepted.inc();
        metrics.num_waiting.inc();
        let writer = Writer::new(log, &self.shared);
        writer.append(Event::Queued { position: state.entries.len() });
        state.num_tokens += num_tokens;
        state.rate.on_accepted(now);
        state.entries.push_back(Entry { request, chain, writer, accepted_at: now, cancelled_at });
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Ends a request that still waits; false if it does not (any more).
    fn cancel(&self, id: StreamId) -> bool {
        let mut state = self.lock();
        let Some(index) = state.entries.iter().position(|e| e.request.id == id) else { return false };
        let entry = self.take_abandoned(&mut state, index);
        drop(state);
        entry.writer.cancelled();
        true
    }

    /// The next request, if `fits` says that there is room for it. Requests that were cancelled are ended on the way.
    pub fn pull(&self, mut fits: impl FnMut(&Entry) -> bool) -> Pulled {
        let mut state = self.lock();
        loop {
            if let Phase::Stopped(message) = &state.phase {
                return Pulled::Stopped(message.clone());
            }
            let Some(next) = state.entries.front() else { return Pulled::Nothing };
            // The hook that takes it out is on its way; it would be work for nobody.
            if next.writer.is_cancelled() {
                self.take_abandoned(&mut state, 0).writer.cancelled();
            } else if fits(next) {
                return Pulled::Entry(Box::new(self.take(&mut state, 0)));
            } else {
                return Pulled::Nothing;
            }
        }
    }

    /// Notes that a worker is through with a request.
    pub fn on_served(&self, num_tokens: usize) {
        let now = self.now();
        self.lock().rate.on_served(num_tokens, now);
    }

    /// A worker lost a request that it had pulled: it no longer counts as work under way.
    pub fn on_lost(&self) {
        let now = self.now();
        self.lock().rate.on_abandoned(now);
    }

    /// Blocks until there is a request or the end.
    pub fn wait(&self) {
        let idle = |s: &mut State| s.entries.is_empty() && !matches!(s.phase, Phase::Stopped(_));
        drop(self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner));
    }

    /// Blocks for `time`, or until the end; true if it has come.
    pub fn wait_stopped(&self, time: Duration) -> bool {
        let running = |s: &mut State| !matches!(s.phase, Phase::Stopped(_));
        let (state, _) =
            self.stopped.wait_timeout_while(self.lock(), time, running).unwrap_or_else(PoisonError::into_inner);
        matches!(state.phase, Phase::Stopped(_))
    }

    /// Takes no new requests from now on, saying why.
    pub fn close(&self, message: &str) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Open) {
            state.phase = Phase::Closed(message.to_owned());
        }
    }

    /// Ends what waits, and tells the workers to end what they run.
    pub fn stop(&self, message: &str) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Stopped(_)) {
            state.phase = Phase::Stopped(message.to_owned());
        }
        self.fail_waiting(state, message);
        self.wake.notify_all();
        self.stopped.notify_all();
    }

    /// Ends what waits when there is nobody left to serve it, and takes nothing new.
    pub fn abandon(&self, message: &str) {
        self.close(message);
        self.fail_waiting(self.lock(), message);
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.shared.num_live.load(Ordering::SeqCst) == 0
    }

    /// Whether new requests are taken.
    pub fn is_open(&self) -> bool {
        matches!(self.lock().phase, Phase::Open)
    }

    /// Number of requests that wait, and their tokens.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.lock();
        (state.entries.len(), state.num_tokens)
    }

    fn fail_waiting(&self, mut state: MutexGuard<'_, State>, message: &str) {
        while !state.entries.is_empty() {
            let entry = self.take_abandoned(&mut state, 0);
            entry.writer.failed(ErrorKind::Unavailable, message.to_owned());
        }
    }

    fn take_abandoned(&self, state: &mut State, index: usize) -> Entry {
        state.rate.on_abandoned(self.now());
        self.take(state, index)
    }

    fn take(&self, state: &mut State, index: usize) -> Entry {
        let entry = state.entries.remove(index).expect("an index of the list");
        state.num_tokens -= entry.request.num_tokens_max();
        self.shared.metrics.num_waiting.dec();
        entry
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a worker's `fits` leaves the list as it was, so the poison says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("limits", &self.limits).field("state", &self.state).finish_non_exhaustive()
    }
}

impl State {
    /// Which bound a further `num_tokens` would break, and how many tokens must leave before they would not.
    fn excess(&self, limits: &QueueLimits, num_tokens: usize) -> Option<(String, usize)> {
        let too_many = self.entries.len() >= limits.requests_max;
        let too_long = !self.entries.is_empty() && self.num_tokens + num_tokens > limits.tokens_max;
        let message = match (too_many, too_long) {
            (true, _) => format!("the queue is full: {} requests wait", self.entries.len()),
            (_, true) => format!("the queue is full: {} tokens wait, {num_tokens} more came", self.num_tokens),
            _ => return None,
        };
        let num_leave = (self.entries.len() + 1).saturating_sub(limits.requests_max);
        let by_requests: usize = self.entries.iter().take(num_leave).map(|e| e.request.num_tokens_max()).sum();
        let by_tokens = (self.num_tokens + num_tokens).saturating_sub(limits.tokens_max).min(self.num_tokens);
        Some((message, by_requests.max(by_tokens)))
    }
}

#[cfg(test)]
mod tests;
