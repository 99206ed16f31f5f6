//! One generation's log: append-only, dense sequence numbers from 0, one terminal event that is last.
//!
//! Writers append, readers ([`StreamReader`](crate::StreamReader)) hold cursors, and either side may cancel. The log reads no clock of its
//! own: who makes it hands one in, so a simulation can run on invented time.
//!
//! A log may be bounded in bytes. Then its oldest events go as new ones come; the numbers of the rest stay, and a
//! cursor that stands before them is told so.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::entry::{Entry, event_bytes};
use super::feed::{Feed, Happening};
use super::progress::ReaderProgress;
use super::store::{Change, Handover};
use super::{CancelCause, StreamStatus};
use crate::error::ErrorKind;
use crate::protocol::{Event, OnDisconnect, StreamId, Tenant, Usage};

/// Milliseconds since the Unix epoch, never going back. Handed in, so that nothing here reads a clock.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

type CancelHook = Box<dyn FnOnce(CancelCause) + Send>;

/// An append-only run of events.
pub struct StreamLog {
    id: StreamId,
    tenant: Tenant,
    on_disconnect: OnDisconnect,
    created_ms: u64,
    /// Whether an earlier process has begun it.
    is_restored: bool,
    clock: Clock,
    // A std mutex: it is held for a push or a clone, never across an await.
    state: Mutex<LogState>,
    /// Memory of the events, roughly; read by the table without the lock.
    num_bytes: AtomicUsize,
    /// Most of them; beyond, the oldest events go. The table sets it.
    num_bytes_max: AtomicUsize,
    /// What readers may see, for them to look at and wait on.
    pub(super) progress: ReaderProgress,
    /// Choices of the same request, which end with it when somebody asks for its end by name.
    followers: Mutex<Vec<Weak<StreamLog>>>,
    /// Where its events are kept, if anywhere but here.
    store: OnceLock<Arc<Handover>>,
    /// Who hears of its beginning and its end.
    feed: OnceLock<Arc<Feed>>,
    /// Which model writes it.
    model: OnceLock<Arc<str>>,
}

#[derive(Default)]
pub(super) struct LogState {
    /// The events that are kept.
    pub(super) entries: VecDeque<Entry>,
    /// How many went before them: the sequence number of the first that is kept.
    pub(super) num_trimmed: u64,
    pub(super) num_readers: usize,
    /// Whether anybody ever read it.
    was_read: bool,
    started: bool,
    cancelled: Option<CancelCause>,
    cancel_hook: Option<CancelHook>,
    /// Events that readers may not see before they are durable, in order.
    undurable: VecDeque<u64>,
    /// It goes on in another process from here: readers leave when they have what there was.
    pub(super) suspended_at: Option<u64>,
    /// Since when the stream has had no reader; the table's sweep sets it and measures the grace from it.
    orphaned_at_ms: Option<u64>,
}

impl LogState {
    fn terminal(&self) -> Option<&Entry> {
        self.entries.back().filter(|e| e.event.is_terminal())
    }

    /// Events so far, kept and trimmed.
    pub(super) fn num_events(&self) -> u64 {
        self.num_trimmed + self.entries.len() as u64
    }

    /// Events that readers may see: those before the first that is not durable and must be.
    pub(super) fn num_visible(&self) -> u64 {
        let end = self.suspended_at.unwrap_or_else(|| self.num_events());
        self.undurable.front().map_or(end, |first| end.min(*first))
    }

    /// Whether readers get nothing beyond what they may see now.
    fn is_over(&self) -> bool {
        self.suspended_at.is_some() || self.terminal().is_some() && self.num_visible() == self.num_events()
    }

    /// Drops the oldest events until the rest fit, or only the last is left; returns the bytes that are kept.
    fn trim(&mut self, mut num_bytes: usize, num_bytes_max: usize) -> usize {
        while num_bytes > num_bytes_max && self.entries.len() > 1 {
            let oldest = self.entries.pop_front();
            num_bytes -= oldest.map_or(0, |e| event_bytes(&e.event));
            self.num_trimmed += 1;
        }
        num_bytes
    }
}

impl StreamLog {
    /// An empty log whose time stands still at 0: for simulations and tests.
    pub fn new(id: StreamId, tenant: Tenant, on_disconnect: OnDisconnect) -> Arc<Self> {
        Self::with_clock(id, tenant, on_disconnect, Arc::new(|| 0))
    }

    /// An empty log that stamps its events with `clock`.
    pub fn with_clock(id: StreamId, tenant: Tenant, on_disconnect: OnDisconnect, clock: Clock) -> Arc<Self> {
        let created_ms = clock();
        Self::restored(id, tenant, on_disconnect, clock, created_ms, Vec::new())
    }

    /// The log of a stream of an earlier process, with the events it had. Nobody reads it yet, whoever did before.
    pub fn restored(
        id: StreamId,
        tenant: Tenant,
        on_disconnect: OnDisconnect,
        clock: Clock,
        created_ms: u64,
        entries: Vec<Entry>,
    ) -> Arc<Self> {
        let is_restored = !entries.is_empty();
        let num_bytes = entries.iter().map(|e| event_bytes(&e.event)).sum();
        let started = entries.iter().any(|e| matches!(e.event, Event::Started { .. }));
        let is_cancelled =
            entries.last().is_some_and(|e| matches!(&e.event, Event::Error(info) if info.kind == ErrorKind::Cancelled));
        let cancelled = is_cancelled.then_some(CancelCause::Requested);
        let state = LogState { entries: entries.into(), started, cancelled, ..LogState::default() };
        let progress = ReaderProgress::default();
        progress.set(state.num_visible(), state.is_over());
        Arc::new(Self {
            id,
            tenant,
            on_disconnect,
            created_ms,
            is_restored,
            clock,
            state: Mutex::new(state),
            num_bytes: AtomicUsize::new(num_bytes),
            num_bytes_max: AtomicUsize::new(usize::MAX),
            progress,
            followers: Mutex::default(),
            store: OnceLock::new(),
            feed: OnceLock::new(),
            model: OnceLock::new(),
        })
    }

    /// Keeps its events from the next one on in a store too.
    pub(super) fn keep_in(&self, store: &Arc<Handover>) {
        // Asked for once, by the store itself.
        let _ = self.store.set(store.clone());
    }

    /// Tells `feed` of what happens from here on.
    pub(super) fn tell(&self, feed: &Arc<Feed>) {
        // Asked for once, by the table.
        let _ = self.feed.set(feed.clone());
    }

    /// Says which model writes it; the first one said stays. A reader must know with which vocabulary, also once the model is
    /// unloaded.
    pub fn set_model(&self, name: Arc<str>) {
        let _ = self.model.set(name);
    }

    /// Which model writes it, where that was said.
    pub fn model(&self) -> Option<&str> {
        self.model.get().map(|name| &**name)
    }

    fn open_store(&self) -> Option<&Arc<Handover>> {
        self.store.get().filter(|store| store.is_open())
    }

    /// Whether readers of an earlier process may have seen more of it than is here.
    pub fn may_be_behind_readers(&self) -> bool {
        self.is_restored && self.is_kept()
    }

    /// Whether another process will go on with it if this one dies.
    pub fn is_kept(&self) -> bool {
        self.open_store().is_some()
    }

    /// Whether the disk that keeps it is so far behind that no step is to begin for it.
    pub fn is_held_up(&self) -> bool {
        self.open_store().is_some_and(|store| store.is_behind())
    }

    /// Blocks for `time`, or until it is not held up. For a worker between its steps, which holds nothing then.
    pub fn wait_for_disk(&self, time: Duration) {
        if let Some(store) = self.open_store() {
            store.wait_for_disk(time);
        }
    }

    /// The store has everything up to this event.
    pub(super) fn on_durable(&self, seq: u64) {
        let mut state = self.lock();
        while state.undurable.front().is_some_and(|first| *first <= seq) {
            state.undurable.pop_front();
        }
        self.progress.set(state.num_visible(), state.is_over());
        drop(state);
        self.progress.wake();
    }

    /// Sends its readers away when they have what there is: the stream goes on in another process.
    pub fn suspend(&self) {
        self.suspend_at(u64::MAX);
    }

    fn suspend_at(&self, seq: u64) {
        let mut state = self.lock();
        let seq = seq.min(state.num_events());
        state.suspended_at.get_or_insert(seq);
        self.progress.set(state.num_visible(), state.is_over());
        drop(state);
        self.progress.wake();
    }

    /// Whether it goes on in another process.
    pub fn is_suspended(&self) -> bool {
        self.lock().suspended_at.is_some()
    }

    /// Waits until its end is what readers are told, on disk where it must be, or it is left to another process.
    pub async fn settled(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives in `self`, so this cannot fail while we wait.
        while !self.progress.is_over() && progress.changed().await.is_ok() {}
    }

    /// Waits until its request is where it outlives the process, if it is to be kept at all. Not a reader.
    pub async fn accepted(&self) {
        let mut progress = self.progress.subscribe();
        loop {
            let is_waiting = {
                let state = self.lock();
                state.num_visible() == 0 && state.num_events() > 0 && state.suspended_at.is_none()
            };
            // The sender lives in `self`, so this cannot fail while we wait.
            if !is_waiting || progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// Bounds the memory of its events from the next one on. The last event always stays.
    pub fn set_num_bytes_max(&self, num_bytes_max: usize) {
        self.num_bytes_max.store(num_bytes_max, Ordering::Relaxed);
    }

    /// Its name.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Whose it is.
    pub fn tenant(&self) -> Tenant {
        self.tenant
    }

    /// What happens when its last reader leaves.
    pub fn on_disconnect(&self) -> OnDisconnect {
        self.on_disconnect
    }

    /// When it was made, by its clock.
    pub fn created_ms(&self) -> u64 {
        self.created_ms
    }

    /// When it ended, by its clock.
    pub(crate) fn finished_ms(&self) -> Option<u64> {
        self.lock().terminal().map(|e| e.ts_ms)
    }

    /// How far it has come.
    pub fn status(&self) -> StreamStatus {
        let state = self.lock();
        match state.terminal().map(|e| &e.event) {
            Some(Event::Done { .. }) => StreamStatus::Done,
            Some(_) if state.cancelled.is_some() => StreamStatus::Cancelled,
            Some(_) => StreamStatus::Failed,
            None if state.started => StreamStatus::Running,
            None => StreamStatus::Queued,
        }
    }

    /// Adds an event and wakes every reader; returns its sequence number.
    ///
    /// # Panics
    /// If the log has already ended: an event after the terminal one is a bug in the writer.
    pub fn append(&self, event: Event) -> u64 {
        let num_bytes = event_bytes(&event);
        let mut state = self.lock();
        assert!(state.terminal().is_none(), "stream {}: event after the terminal one: {event:?}", self.id);
        if event.is_terminal() {
            state.cancel_hook = None;
        }
        state.started |= matches!(event, Event::Started { .. });
        let seq = state.num_events();
        // Under the lock, so that times rise with sequence numbers.
        let ts_ms = (self.clock)();
        let store = self.store.get();
        match store {
            Some(store) if store.has_failed() => state.undurable.clear(),
            // It was not told that it goes on in another process, and it does: this event is not on disk.
            Some(store) if !store.is_open() => {
                state.suspended_at.get_or_insert(seq);
            }
            _ => {}
        }
        // What comes after it was handed over is computed again by whoever has it now.
        let feed = self.feed.get().filter(|_| state.suspended_at.is_none());
        let happening = feed.and_then(|feed| Some((feed, Happening::of(seq, &event, state.cancelled)?)));
        let store = store.filter(|store| store.is_open() && state.suspended_at.is_none());
        let kept = store.map(|store| (store, Entry { seq, ts_ms, event: event.clone() }));
        if kept.is_some() && !event.is_repeatable() {
            state.undurable.push_back(seq);
        }
        state.entries.push_back(Entry { seq, ts_ms, event });
        let num_bytes = self.num_bytes.load(Ordering::Relaxed) + num_bytes;
        let num_bytes = state.trim(num_bytes, self.num_bytes_max.load(Ordering::Relaxed));
        self.num_bytes.store(num_bytes, Ordering::Relaxed);
        self.progress.set(state.num_visible(), state.is_over());
        drop(state);
        if let Some((feed, happening)) = happening {
            feed.publish(ts_ms, Some(self.id), happening);
        }
        if let Some((store, entry)) = kept {
            // Nothing waits here, so a caller may hold any lock. Events arrive in order, as they are appended one by one.
            store.push(Change::Append { id: self.id, entry });
            if store.has_failed() {
                self.on_durable(u64::MAX);
            } else if !store.is_open() {
                // Closed in this moment, perhaps before this event came: from here on it is another process's.
                self.suspend_at(seq);
            }
        }
        self.progress.wake();
        seq
    }

    /// Number of events so far, those that are no longer kept too.
    pub fn len(&self) -> usize {
        self.lock().num_events() as usize
    }

    /// The sequence number of the oldest event that is kept, or of the first to come.
    pub fn first_seq(&self) -> u64 {
        self.lock().num_trimmed
    }

    /// Whether nothing has happened yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory its events take, roughly.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes.load(Ordering::Relaxed)
    }

    /// Whether the terminal event is there.
    pub fn is_finished(&self) -> bool {
        self.lock().terminal().is_some()
    }

    /// What was spent, once the terminal event is there.
    pub fn usage(&self) -> Option<Usage> {
        match &self.lock().terminal()?.event {
            Event::Done { usage, .. } => Some(*usage),
            Event::Error(info) => Some(info.usage),
            _ => None,
        }
    }

    /// Waits for the terminal event without being a reader: it neither keeps the stream alive nor ends it.
    pub async fn finished(&self) {
        let mut progress = self.progress.subscribe();
        while !self.is_finished() {
            // The sender lives in `self`, so this cannot fail while we wait.
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// The cause, once somebody has cancelled it. Workers ask at every step.
    pub fn cancelled(&self) -> Option<CancelCause> {
        self.lock().cancelled
    }

    /// Asks for the end. The first cause stays; a finished log ignores it, but those that it leads may still run.
    /// Returns whether this call was the one.
    pub fn cancel(&self, cause: CancelCause) -> bool {
        self.cancel_in(self.lock(), cause)
    }

    /// A reader has come.
    pub(super) fn join(&self) {
        let mut state = self.lock();
        state.num_readers += 1;
        state.was_read = true;
        state.orphaned_at_ms = None;
    }

    /// A reader is gone. That it was the last and that the stream ends for it is one step: whoever joins after the one
    /// has come after the other too.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.num_readers -= 1;
        // One that was sent away has not left: it is to come back to the next process.
        let is_last = state.num_readers == 0 && state.suspended_at.is_none();
        if is_last && self.on_disconnect == OnDisconnect::Cancel {
            self.cancel_in(state, CancelCause::ReaderLeft);
        }
    }

    fn cancel_in(&self, mut state: MutexGuard<'_, LogState>, cause: CancelCause) -> bool {
        let is_first = state.cancelled.is_none() && state.terminal().is_none();
        let mut hook = None;
        if is_first {
            state.cancelled = Some(cause);
            hook = state.cancel_hook.take();
        }
        // Outside the lock: the hook takes the queue's lock and may append the terminal event.
        drop(state);
        if let Some(hook) = hook {
            hook(cause);
        }
        if cause == CancelCause::Requested {
            for follower in self.followers() {
                follower.cancel(cause);
            }
        }
        is_first
    }

    /// Whoever asks for its end asks for theirs too.
    pub fn lead<'a>(&self, followers: impl Iterator<Item = &'a Arc<StreamLog>>) {
        self.lock_followers().extend(followers.map(Arc::downgrade));
    }

    /// Whose end is asked for with its own.
    pub fn followers(&self) -> Vec<Arc<StreamLog>> {
        self.lock_followers().iter().filter_map(Weak::upgrade).collect()
    }

    fn lock_followers(&self) -> MutexGuard<'_, Vec<Weak<StreamLog>>> {
        // A list that only grows: a panic leaves it whole.
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Goes on with the grace of a live stream that has no reader, or starts it; true once it is over. The grace is the lingering
    /// stream's own, or `unread_grace_ms` for one that its last reader's leaving would cancel but that nobody has come to read.
    pub(super) fn linger_on(&self, now_ms: u64, unread_grace_ms: u64) -> bool {
        let mut state = self.lock();
        let grace_ms = match self.on_disconnect {
            // Whoever made it has yet to come.
            OnDisconnect::Cancel | OnDisconnect::Linger { grace_ms: 0 } if !state.was_read => unread_grace_ms,
            OnDisconnect::Linger { grace_ms } => grace_ms,
            // Once read, its reader's leaving has cancelled it.
            OnDisconnect::Cancel | OnDisconnect::Detach => return false,
        };
        if state.num_readers > 0 || state.cancelled.is_some() || state.terminal().is_some() {
            return false;
        }
        let since_ms = *state.orphaned_at_ms.get_or_insert(now_ms);
        now_ms.saturating_sub(since_ms) >= grace_ms
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LogState> {
        // A panic while pushing leaves a valid queue behind, so the poison says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for StreamLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamLog").field("id", &self.id).field("len", &self.len()).finish_non_exhaustive()
    }
}
