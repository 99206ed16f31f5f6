//! Requests that wait for a worker: bounded in number and in tokens, in fair order (`fair`). The one place where the
//! threads of the engine meet: whoever takes an entry out of the queue, under its lock, writes the entry's further
//! events, so that a cancellation and a worker can never both end a stream.
//!
//! Its clock is given to it, and it draws nothing at random. The lock is held for operations on the order and appends
//! to logs; a log's hook is never called with the log's own lock held, so the order queue, then log, holds.

mod places;
mod returned;
mod room;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

pub(super) use returned::Returned;

use super::embedding::Vector;
use super::fair::{FairQueue, Load, Ticket};
use super::rate::ServiceRate;
use super::share::Share;
use super::writer::{Writer, WriterShared};
use crate::cache::HashChain;
use crate::metrics::{Metrics, RejectLabel};
use crate::sampling::grammar::Grammar;
use tallow_stream::StreamLog;
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::{StreamId, Tenant, ValidRequest};

/// An owner may fill the queue up to this many times what it leaves free: a lone one four fifths of it, so that
/// another still finds room. Does not hold where there are no keys, and all are one owner.
const OWNER_SHARE: usize = 4;

/// A worker that has no room for the next request looks at the first ones of so many owners, its own among them.
const OWNERS_SEEN_MAX: usize = 32;

/// The time since some beginning; it never goes back. A test or a simulation brings its own.
pub type EngineClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The queue's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most requests that wait.
    pub requests_max: usize,
    /// Most tokens (prompt and `max_tokens`) that wait. A request larger than that is taken when nothing else waits.
    pub tokens_max: usize,
    /// How many tokens of others' work one step of priority is worth.
    pub priority_step_tokens: u64,
    /// A waiting request hears of its place at most this often.
    pub note_interval: Duration,
}

/// A request that waits.
#[derive(Debug)]
pub struct QueueEntry {
    /// What is wanted.
    pub request: ValidRequest,
    /// Names of the prompt's full blocks, where the prefix cache is on.
    pub chain: Option<HashChain>,
    /// The request's constraint, compiled.
    pub grammar: Option<Arc<Grammar>>,
    /// Where its vector goes, if it is a text to embed.
    pub vector: Option<Vector>,
    /// Its log.
    pub writer: Writer,
    /// When it was accepted.
    pub(crate) accepted_at: Duration,
    /// When somebody asked for its end.
    pub(crate) cancelled_at: Arc<OnceLock<Duration>>,
    /// Whether it came back from a lost worker.
    pub(crate) has_returned: bool,
    /// The place it was told last.
    position: usize,
    /// Not before this is it told another one.
    next_note_at: Duration,
}

/// A request on its way into the queue.
pub(super) struct Coming {
    pub(super) request: ValidRequest,
    pub(super) chain: Option<HashChain>,
    pub(super) grammar: Option<Arc<Grammar>>,
    pub(super) vector: Option<Vector>,
}

/// What a worker finds in the queue.
#[derive(Debug)]
pub(crate) enum Pulled {
    /// The next request; its events are the worker's to write.
    Entry(Box<QueueEntry>),
    /// Nothing, or nothing that fits.
    Nothing,
    /// The engine shuts down: end everything with this message.
    Stopped(String),
}

/// Requests that wait, and whether the engine takes new ones.
pub struct Queue {
    limits: QueueLimits,
    clock: EngineClock,
    shared: Arc<WriterShared>,
    state: Mutex<QueueState>,
    /// Something to do, or the end. One waiter is woken per request, so nobody waits here for anything else.
    wake: Condvar,
    /// The end.
    stopped: Condvar,
}

#[derive(Debug)]
struct QueueState {
    waiting: FairQueue<QueueEntry>,
    rate: ServiceRate,
    phase: QueuePhase,
    /// How many were under way when a worker last had no room for the next.
    full_at: Option<usize>,
    /// Whether workers are to end once they have nothing to do: what comes then waits until the model is loaded again.
    is_resting: bool,
}

#[derive(Debug)]
enum QueuePhase {
    Open,
    /// Nothing new; what is here is served. Says why.
    Closed(String),
    /// The end, with the message for those who are still here.
    Stopped(String),
}

impl Queue {
    /// An empty, open queue.
    pub fn new(limits: QueueLimits, metrics: Arc<Metrics>, clock: EngineClock) -> Arc<Self> {
        let shared = Arc::new(WriterShared { metrics, num_live: AtomicUsize::new(0) });
        let rate = ServiceRate::default();
        let waiting = FairQueue::new(limits.priority_step_tokens);
        let state = QueueState { waiting, rate, phase: QueuePhase::Open, full_at: None, is_resting: false };
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
        self.submit_constrained(request, chain, None, log)
    }

    /// The same for a request whose constraint is compiled.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_constrained(
        self: &Arc<Self>,
        request: ValidRequest,
        chain: Option<HashChain>,
        grammar: Option<Arc<Grammar>>,
        log: &Arc<StreamLog>,
    ) -> Result<()> {
        self.submit_coming(Coming { request, chain, grammar, vector: None }, log)
    }

    /// The same for a text to embed too.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub(super) fn submit_coming(self: &Arc<Self>, coming: Coming, log: &Arc<StreamLog>) -> Result<()> {
        let id = coming.request.id;
        let cancelled_at = Arc::new(OnceLock::new());
        self.push(coming, log.clone(), cancelled_at.clone())?;
        let queue = Arc::downgrade(self); // Weak, as the queue holds the log that holds the hook.
        log.on_cancel(move |_| {
            if let Some(queue) = queue.upgrade() {
                // Only this closure sets it, and it runs once.
                let _ = cancelled_at.set(queue.now());
                queue.cancel(id);
            }
        });
        Ok(())
    }

    /// Whether one of so many requests of `tenant` would be refused: asked before any work goes into them.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn check_room(&self, tenant: Tenant, coming: Load) -> Result<()> {
        let now = self.now();
        self.lock().admit(&self.limits, tenant, coming, now).inspect_err(|e| self.count_refused(e))
    }

    fn push(
        &self,
        Coming { request, chain, grammar, vector }: Coming,
        log: Arc<StreamLog>,
        cancelled_at: Arc<OnceLock<Duration>>,
    ) -> Result<()> {
        let (metrics, now) = (&self.shared.metrics, self.now());
        let mut state = self.lock();
        let (tenant, terms, num_tokens) = (request.tenant, request.queue, request.num_tokens_max());
        // What was accepted once is not refused because its process died.
        if request.resumed.is_none() {
            let coming = Load { requests: 1, tokens: num_tokens };
            state.admit(&self.limits, tenant, coming, now).inspect_err(|e| self.count_refused(e))?;
        }
        // Who sees it counted as accepted sees it wait.
        metrics.num_waiting.inc();
        metrics.queue_tokens.inc_by(num_tokens as i64);
        metrics.requests_accepted.inc();
        let writer = Writer::new(log, &self.shared);
        let next_note_at = now + self.limits.note_interval;
        let entry = QueueEntry {
            request,
            chain,
            grammar,
            vector,
            writer,
            accepted_at: now,
            cancelled_at,
            has_returned: false,
            position: 0,
            next_note_at,
        };
        state.rate.on_accepted(now);
        let ticket = state.waiting.push(tenant, terms, num_tokens, entry);
        let num_running = self.num_running(&state);
        state.tell_first_place(ticket, num_running, now);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    fn count_refused(&self, e: &Error) {
        let label = match e.kind() {
            ErrorKind::Overloaded => RejectLabel::QUEUE_FULL,
            ErrorKind::Unavailable => RejectLabel::UNAVAILABLE,
            _ => return,
        };
        self.shared.metrics.reject(&label);
    }

    /// Ends a request that still waits; false if it does not (any more).
    fn cancel(&self, id: StreamId) -> bool {
        let mut state = self.lock();
        let found = state.waiting.iter().find(|(_, e)| e.request.id == id).map(|(ticket, _)| ticket);
        let Some(entry) = found.and_then(|ticket| self.take_abandoned(&mut state, ticket)) else { return false };
        drop(state);
        entry.writer.cancelled();
        true
    }

    /// The next request, if `fits` says that there is room for it; else the first of another owner for which it says so
    /// although it passes the next, its second argument. Requests that were cancelled or whose patience is over are
    /// ended when it is their turn.
    pub(crate) fn pull(&self, mut fits: impl FnMut(&QueueEntry, Option<&QueueEntry>) -> bool) -> Pulled {
        let now = self.now();
        let mut state = self.lock();
        loop {
            if let QueuePhase::Stopped(message) = &state.phase {
                return Pulled::Stopped(message.clone());
            }
            let Some((ticket, next)) = state.waiting.peek() else { return Pulled::Nothing };
            // The hook that takes it out is on its way; it would be work for nobody.
            let is_cancelled = next.writer.is_cancelled();
            if is_cancelled || next.is_late(now) {
                // Not as if served, so that its owner is not charged for it.
                if let Some(entry) = self.take_abandoned(&mut state, ticket) {
                    self.end_unserved(entry, is_cancelled);
                }
                continue;
            }
            let fit = if fits(next, None) { Some(ticket) } else { state.first_passing(next, now, &mut fits) };
            let num_running = self.num_running(&state);
            let Some(entry) = fit.and_then(|ticket| state.waiting.take(ticket)) else {
                state.full_at = Some(num_running);
                return Pulled::Nothing;
            };
            // There was room after all.
            state.full_at = state.full_at.filter(|full_at| num_running < *full_at);
            self.count_left(&entry);
            return Pulled::Entry(Box::new(entry));
        }
    }

    /// The owner whose turn comes first among those that wait and are `wanted`.
    pub(crate) fn next_owner(&self, wanted: impl Fn(Tenant) -> bool) -> Option<Share> {
        let state = self.lock();
        if state.waiting.is_empty() {
            return None;
        }
        let heads = state.waiting.heads(OWNERS_SEEN_MAX);
        heads.into_iter().map(|(_, entry)| entry.share()).find(|share| wanted(share.tenant))
    }

    /// The log of a request that may be next and that is kept on disk.
    pub(crate) fn kept_log(&self) -> Option<Arc<StreamLog>> {
        let state = self.lock();
        if state.waiting.is_empty() {
            return None;
        }
        let heads = state.waiting.heads(OWNERS_SEEN_MAX);
        heads.into_iter().map(|(_, entry)| entry.writer.log()).find(|log| log.is_kept()).cloned()
    }

    /// Ends the requests whose patience is over, and tells others of their place where it has changed. Called a few
    /// times a second.
    pub fn sweep(&self) {
        let now = self.now();
        let mut state = self.lock();
        let late: Vec<Ticket> =
            state.waiting.iter().filter(|(_, e)| e.is_late(now)).map(|(ticket, _)| ticket).collect();
        let late: Vec<QueueEntry> = late.into_iter().filter_map(|t| self.take_abandoned(&mut state, t)).collect();
        let num_running = self.num_running(&state);
        state.tell_places(self.limits.note_interval, num_running, now);
        drop(state);
        for entry in late {
            self.end_unserved(entry, false);
        }
    }

    fn end_unserved(&self, entry: QueueEntry, is_cancelled: bool) {
        if is_cancelled {
            entry.writer.cancelled();
            return;
        }
        self.shared.metrics.queue_timeouts.inc();
        let seconds = entry.request.queue.timeout_ms.unwrap_or_default() as f64 / 1000.0;
        let message = format!("no worker was free within the queue time-out of {seconds} s");
        entry.writer.failed(ErrorKind::QueueTimeout, message);
    }

    /// Notes that a worker is through with a request of `tenant` that had reserved `num_reserved` tokens and computed
    /// `num_computed` of them.
    pub(crate) fn on_served(&self, tenant: Tenant, num_reserved: usize, num_computed: usize) {
        let now = self.now();
        let mut state = self.lock();
        state.rate.on_served(num_reserved, now);
        state.waiting.give_back(tenant, num_reserved.saturating_sub(num_computed));
    }

    /// A worker lost a request of `tenant` that it had pulled: it no longer counts as work under way, and what was not
    /// computed of the reserved tokens is not its owner's to pay.
    pub(crate) fn on_lost(&self, tenant: Tenant, num_reserved: usize, num_computed: usize) {
        let now = self.now();
        let mut state = self.lock();
        state.rate.on_abandoned(now);
        state.waiting.give_back(tenant, num_reserved.saturating_sub(num_computed));
    }

    /// Blocks until there is a request or the end; false if the worker is to end instead, since its model is unloaded.
    pub fn wait(&self) -> bool {
        let idle = |s: &mut QueueState| s.waiting.is_empty() && !s.is_over();
        let state = self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        !state.is_resting
    }

    /// Lets workers that have nothing to do end, or no longer. What waits stays.
    pub(super) fn rest(&self, is_resting: bool) {
        self.lock().is_resting = is_resting;
        self.wake.notify_all();
        self.stopped.notify_all();
    }

    /// Ends what waits, which can be asked for again later.
    pub(super) fn refuse_waiting(&self, message: &str) {
        self.fail_waiting(self.lock(), message);
    }

    /// Wakes a worker: one that was given up may have been woken in its stead.
    pub(super) fn pass_wake_on(&self) {
        self.wake.notify_one();
    }

    /// Blocks for `time`, or until the end of the engine or of its model; true if it has come.
    pub fn wait_stopped(&self, time: Duration) -> bool {
        let running = |s: &mut QueueState| !s.is_over();
        let (state, _) =
            self.stopped.wait_timeout_while(self.lock(), time, running).unwrap_or_else(PoisonError::into_inner);
        state.is_over()
    }

    /// What is still here is told at the end, once that has come.
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

    /// Ends what waits, and tells the workers to end what they run.
    pub fn stop(&self, message: &str) {
        let mut state = self.lock();
        if !matches!(state.phase, QueuePhase::Stopped(_)) {
            state.phase = QueuePhase::Stopped(message.to_owned());
        }
        self.fail_waiting(state, message);
        self.wake.notify_all();
        self.stopped.notify_all();
    }

    /// Ends what waits when there is nobody left to serve it, and takes nothing new.
    pub(crate) fn abandon(&self, message: &str) {
        self.close(message);
        self.fail_waiting(self.lock(), message);
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.shared.num_live.load(Ordering::SeqCst) == 0
    }

    /// Whether new requests are taken.
    pub fn is_open(&self) -> bool {
        matches!(self.lock().phase, QueuePhase::Open)
    }

    /// Number of requests that wait, and their tokens.
    pub fn depth(&self) -> (usize, usize) {
        let Load { requests, tokens } = self.lock().waiting.load();
        (requests, tokens)
    }

    /// Requests that workers have.
    fn num_running(&self, state: &QueueState) -> usize {
        self.shared.num_live.load(Ordering::SeqCst).saturating_sub(state.waiting.load().requests)
    }

    fn fail_waiting(&self, mut state: MutexGuard<'_, QueueState>, message: &str) {
        let all: Vec<Ticket> = state.waiting.iter().map(|(ticket, _)| ticket).collect();
        let all: Vec<QueueEntry> =
            all.into_iter().filter_map(|ticket| self.take_abandoned(&mut state, ticket)).collect();
        // Not under the lock: each end is a line of the log, which somebody may read slowly.
        drop(state);
        for entry in all {
            entry.writer.failed(ErrorKind::Unavailable, message.to_owned());
        }
    }

    fn count_left(&self, entry: &QueueEntry) {
        self.shared.metrics.num_waiting.dec();
        self.shared.metrics.queue_tokens.dec_by(entry.request.num_tokens_max() as i64);
    }

    /// What writers count in.
    pub(super) fn writer_shared(&self) -> &Arc<WriterShared> {
        &self.shared
    }

    /// Takes a request out that will not be served.
    fn take_abandoned(&self, state: &mut QueueState, ticket: Ticket) -> Option<QueueEntry> {
        let entry = state.waiting.remove(ticket)?;
        state.rate.on_abandoned(self.now());
        self.count_left(&entry);
        Some(entry)
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // A panic in a worker's `fits` leaves the list as it was, so the poison says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("limits", &self.limits).field("state", &self.state).finish_non_exhaustive()
    }
}

impl QueueEntry {
    /// Whose it is.
    pub(super) fn share(&self) -> Share {
        Share { tenant: self.request.tenant, weight: self.request.queue.weight }
    }

    /// Whether it hears of its place: not if it has begun already, in an earlier process.
    fn tells_places(&self) -> bool {
        self.request.resumed.is_none_or(|resumed| resumed.cached_tokens.is_none())
    }

    /// Whether it has waited for longer than it is willing to.
    fn is_late(&self, now: Duration) -> bool {
        let timeout = self.request.queue.timeout_ms.map(Duration::from_millis);
        timeout.is_some_and(|timeout| now.saturating_sub(self.accepted_at) >= timeout)
    }
}

impl QueueState {
    /// Whether workers are to end.
    fn is_over(&self) -> bool {
        self.is_resting || matches!(self.phase, QueuePhase::Stopped(_))
    }

    /// The first of another owner's that fits although it passes `next`.
    fn first_passing(
        &self,
        next: &QueueEntry,
        now: Duration,
        fits: &mut impl FnMut(&QueueEntry, Option<&QueueEntry>) -> bool,
    ) -> Option<Ticket> {
        let heads = self.waiting.heads(OWNERS_SEEN_MAX).into_iter().skip(1);
        let mut live = heads.filter(|(_, e)| !e.writer.is_cancelled() && !e.is_late(now));
        live.find(|(_, entry)| fits(entry, Some(next))).map(|(ticket, _)| ticket)
    }
}

#[cfg(test)]
mod tests;
