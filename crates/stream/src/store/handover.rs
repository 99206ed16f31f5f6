//! The hand-over from logs and table to the store's thread. Nobody waits here but that thread: callers hold the locks of
//! the queue, of the table or of a lease, and a disk may stall for as long as it likes.
//!
//! Memory is bounded all the same, because the sources of changes stop before the room is used up:
//!
//! ```text
//! changes that wait:  0 ....... NUM_CHANGES_HIGH ....... NUM_CHANGES_MAX ....... + NUM_CHANGES_PER_STREAM for each stream
//! workers             begin steps |  begin no step
//! new streams         get a place                        | get no place
//! accepted streams    always hand over
//! ```
//!
//! Why the last line always has room: take the last moment at which at most [`NUM_CHANGES_MAX`] changes waited. Since then
//! no stream has got a place and no step has begun. So everything that came since is of streams that had a place then, and
//! each of them brings at most its beginning, one note of its place in line, what the step that was under way says of it
//! (start, prompt, a token), its terminal event, and that it is forgotten, which [`Handover::push`] takes once for each
//! stream. [`NUM_CHANGES_PER_STREAM`] is twice that. A change for which there is no room is a bug of ours. It is dropped,
//! and the store fails as on a broken disk: streams go on in memory alone.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Change, StreamRecord};
use crate::StreamLog;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::StreamId;

/// While more changes wait, workers begin no step.
pub(super) const NUM_CHANGES_HIGH: usize = 8_192;
/// While so many changes wait, no new stream gets a place.
pub(super) const NUM_CHANGES_MAX: usize = 16_384;
/// Room beyond that for each stream which has a place.
pub(super) const NUM_CHANGES_PER_STREAM: usize = 16;

/// Both ends of the hand-over, and how the store is.
pub(crate) struct Handover {
    /// A commit that takes longer is a disk that stalls.
    stall_time_max: Duration,
    /// Whether changes are still taken: not after the store was closed or has failed. Set under the lock.
    is_open: AtomicBool,
    /// Whether the disk, or the database on it, has failed. Set before the store is no longer open.
    has_failed: AtomicBool,
    // A std mutex: it is held for operations on a queue and a set, and taken last of all locks.
    state: Mutex<HandoverState>,
    /// For the store's thread: it has something to do.
    has_work: Condvar,
    /// For workers and for the end: fewer changes wait, or the thread has ended.
    has_fewer: Condvar,
    /// How many changes are durable, or as good as that.
    num_durable: watch::Sender<u64>,
}

#[derive(Default)]
struct HandoverState {
    changes: VecDeque<Change>,
    /// Changes that were ever taken in, those that wait included.
    num_sent: u64,
    num_taken: u64,
    /// Somebody waits for this many changes to be durable.
    flush_wanted: u64,
    /// Streams that may still bring changes.
    streams: HashSet<StreamId>,
    /// Streams that are about to begin.
    num_places: usize,
    /// Changes that wait and say that a stream is forgotten: others of that stream may wait before it.
    num_forgets: usize,
    /// When the commit under way began.
    commit_began: Option<Instant>,
    /// Whether a change found no room.
    has_overflown: bool,
    /// Whether the store's thread waits for work.
    is_idle: bool,
    has_ended: bool,
}

/// A new stream's right to begin. It counts as a stream from the moment it is given out.
#[derive(Debug)]
pub struct StorePlace(Arc<Handover>);

impl Handover {
    /// Of a store that has these streams already.
    pub(super) fn new(streams: impl Iterator<Item = StreamId>, stall_time_max: Duration) -> Arc<Self> {
        let state = HandoverState { streams: streams.collect(), ..HandoverState::default() };
        Arc::new(Self {
            stall_time_max,
            is_open: AtomicBool::new(true),
            has_failed: AtomicBool::new(false),
            state: Mutex::new(state),
            has_work: Condvar::new(),
            has_fewer: Condvar::new(),
            num_durable: watch::Sender::new(0),
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::SeqCst)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    /// Whether workers are to begin no step.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_open() && self.lock().is_behind()
    }

    /// Blocks for `time`, or until workers may begin steps again.
    pub(crate) fn wait_for_disk(&self, time: Duration) {
        let is_behind = |state: &mut HandoverState| self.is_open() && state.is_behind();
        let waited = self.has_fewer.wait_timeout_while(self.lock(), time, is_behind);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes that wait.
    pub(super) fn num_waiting(&self) -> usize {
        self.lock().changes.len()
    }

    /// How long the commit under way has taken so far.
    pub(super) fn commit_time(&self) -> Duration {
        self.lock().commit_began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// Whether a new stream would get a place.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] while the disk does not keep up.
    pub(super) fn check_room(&self) -> Result<()> {
        if self.is_open() { self.lock().check_room(self.stall_time_max) } else { Ok(()) }
    }

    /// Places for so many new streams, or for none.
    ///
    /// # Errors
    /// As [`Self::check_room`].
    pub(super) fn reserve(self: &Arc<Self>, num_streams: usize) -> Result<Vec<StorePlace>> {
        let mut state = self.lock();
        if self.is_open() {
            state.check_room(self.stall_time_max)?;
        }
        state.num_places += num_streams;
        Ok((0..num_streams).map(|_| StorePlace(self.clone())).collect())
    }

    /// Hands a change over, in the order of the calls; nothing of a store that is closed or has failed. Never waits.
    pub(crate) fn push(&self, change: Change) {
        let mut state = self.lock();
        if !self.is_open() {
            return;
        }
        match &change {
            Change::Begin { record, .. } => drop(state.streams.insert(record.request.id)),
            Change::Forget { id } => {
                // Once: its room is given back with it.
                if !state.streams.remove(id) {
                    return;
                }
                state.num_forgets += 1;
            }
            Change::Append { .. } if state.changes.len() >= state.room() => {
                state.has_overflown = true;
                return;
            }
            _ => {}
        }
        state.changes.push_back(change);
        state.num_sent += 1;
        self.wake_thread(&state);
    }

    /// Takes nothing more; returns whether this call was the one.
    pub(super) fn close(&self) -> bool {
        let mut state = self.lock();
        let was_open = self.is_open.swap(false, Ordering::SeqCst);
        if was_open {
            state.changes.push_back(Change::Close);
            state.num_sent += 1;
            self.wake_thread(&state);
            self.has_fewer.notify_all();
        }
        was_open
    }

    /// Blocks until the store's thread has ended; false if it has not after `time`.
    pub(super) fn wait_ended(&self, time: Duration) -> bool {
        let runs = |state: &mut HandoverState| !state.has_ended;
        let waited = self.has_fewer.wait_timeout_while(self.lock(), time, runs);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.has_ended
    }

    /// Waits until what was handed over before is durable, or will never be.
    pub(super) async fn flushed(&self) {
        let mut num_durable = self.num_durable.subscribe();
        let wanted = self.want_flush();
        // The sender lives in `self`, so this cannot fail while we wait.
        let _ = num_durable.wait_for(|num_durable| *num_durable >= wanted).await;
    }

    fn want_flush(&self) -> u64 {
        let mut state = self.lock();
        state.flush_wanted = state.num_sent;
        self.wake_thread(&state);
        state.num_sent
    }

    fn wake_thread(&self, state: &HandoverState) {
        if state.is_idle {
            self.has_work.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HandoverState> {
        // Every change is a whole operation, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the store's thread.
impl Handover {
    /// The next change, waiting for it until `deadline`, or for ever without one; none earlier if somebody waits for what
    /// was taken before.
    pub(super) fn next(&self, deadline: Option<Instant>) -> Option<Change> {
        let mut state = self.lock();
        loop {
            if let Some(change) = state.changes.pop_front() {
                state.num_taken += 1;
                state.num_forgets -= usize::from(matches!(change, Change::Forget { .. }));
                if state.changes.len() == NUM_CHANGES_HIGH {
                    self.has_fewer.notify_all();
                }
                return Some(change);
            }
            let is_wanted = state.flush_wanted > *self.num_durable.borrow();
            let time = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if deadline.is_some() && (is_wanted || time.is_some_and(|time| time.is_zero())) {
                return None;
            }
            state.is_idle = true;
            state = match time {
                Some(time) => self.has_work.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
                None => self.has_work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.is_idle = false;
        }
    }

    /// What was taken is about to be written.
    ///
    /// # Errors
    /// If a change found no room: then the file would lack it.
    pub(super) fn begin_commit(&self) -> Result<(), String> {
        let mut state = self.lock();
        if state.has_overflown {
            let (num_waiting, num_streams) = (state.changes.len(), state.streams.len());
            return Err(format!("{num_waiting} changes of {num_streams} streams wait, which are more than can be"));
        }
        state.commit_began = Some(Instant::now());
        Ok(())
    }

    /// What was taken is durable, and the logs know.
    pub(super) fn end_commit(&self) {
        let mut state = self.lock();
        state.commit_began = None;
        self.num_durable.send_replace(state.num_taken);
    }

    /// Nothing more will be durable. Returns what waits.
    pub(super) fn fail(&self) -> VecDeque<Change> {
        let mut state = self.lock();
        self.has_failed.store(true, Ordering::SeqCst);
        self.is_open.store(false, Ordering::SeqCst);
        state.commit_began = None;
        self.has_fewer.notify_all();
        std::mem::take(&mut state.changes)
    }

    /// The thread is through.
    pub(super) fn end(&self) {
        self.lock().has_ended = true;
        self.has_fewer.notify_all();
        self.num_durable.send_replace(u64::MAX);
    }
}

impl HandoverState {
    fn is_behind(&self) -> bool {
        self.changes.len() > NUM_CHANGES_HIGH
    }

    /// Most changes that may wait.
    fn room(&self) -> usize {
        let num_streams = self.streams.len() + self.num_places + self.num_forgets;
        NUM_CHANGES_MAX + NUM_CHANGES_PER_STREAM * num_streams
    }

    fn check_room(&self, stall_time_max: Duration) -> Result<()> {
        let num_waiting = self.changes.len();
        let commit_time = self.commit_began.map_or(Duration::ZERO, |began| began.elapsed());
        let why = if commit_time > stall_time_max {
            let (took, max) = (commit_time.as_secs_f64(), stall_time_max.as_secs_f64());
            format!("a commit must take at most {max} s, and the one under way has taken {took:.1} s")
        } else if num_waiting >= NUM_CHANGES_MAX {
            format!("at most {NUM_CHANGES_MAX} changes may wait for it, and {num_waiting} do")
        } else {
            return Ok(());
        };
        let message = format!("the disk that keeps the streams does not keep up: {why}");
        Err(Error::new(ErrorKind::Unavailable, message))
    }
}

impl StorePlace {
    /// Keeps the stream: its request now, its events as they come.
    pub fn begin(self, record: StreamRecord, log: &Arc<StreamLog>) {
        log.keep_in(&self.0);
        self.0.push(Change::Begin { record: Box::new(record), log: Arc::downgrade(log) });
    }
}

impl Drop for StorePlace {
    fn drop(&mut self) {
        self.0.lock().num_places -= 1;
    }
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover").field("num_waiting", &self.num_waiting()).finish_non_exhaustive()
    }
}
