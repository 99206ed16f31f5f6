//! Work that a request brings and that may take longer than a few milliseconds: parsing a large body, tokenising a long
//! text, writing a large answer. It runs on a few threads of low priority, so that it takes no time from steps and from
//! the threads of the HTTP server.
//!
//! ```text
//! run -> the owner's own line, bounded -> a thread takes the next job of the next owner in turn -> the answer
//! ```
//!
//! No owner can fill the threads: while there are two or more, one stays free for other owners. A job whose caller has
//! gone away before it began is dropped; one that has begun runs to its end, so every job must be bounded by itself.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use tokio::sync::oneshot;

use super::template::STACK_BYTES;
use crate::error::{Error, Result};
use crate::protocol::Tenant;
use crate::settings;
use crate::settings::{count, setting};
use crate::threads::spawn_background;

/// When an owner whose line is full is asked to come back.
const RETRY_AFTER_MS: u64 = 1000;

settings! {
    /// The pool's bounds.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct BackgroundLimits {
        /// Low-priority threads for long requests; auto is half of the cores, at least two.
        ///
        /// Two, so that one stays free for other owners.
        pub num_threads: Option<usize> = None
            => setting("requests.background_threads", "background-threads", count(1, 1024, "threads").or("auto"));
        /// Jobs of one owner that wait; a further one is refused. At least 1. As many as the engine's queue takes, since every
        /// long prompt waits here before it waits there.
        pub waiting_per_owner_max: usize = 1024;
    }
}

impl BackgroundLimits {
    fn num_threads(&self) -> usize {
        let num_cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.num_threads.unwrap_or_else(|| (num_cores() / 2).max(2)).max(1)
    }
}

/// A pool of threads of low priority, shared out by owner.
pub struct Background {
    shared: Arc<BackgroundShared>,
}

struct BackgroundShared {
    limits: BackgroundLimits,
    lines: Mutex<Lines>,
    wake: Condvar,
}

/// The jobs of all owners.
#[derive(Default)]
struct Lines {
    /// Owners with jobs that wait, in turn. Each stands here once.
    turns: VecDeque<Tenant>,
    /// Jobs that wait or run; an owner without any is not in it.
    by_owner: HashMap<Tenant, Line>,
    is_closed: bool,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Box<dyn BackgroundJob>>,
    num_running: usize,
}

trait BackgroundJob: Send {
    /// Whether somebody still waits for the answer.
    fn is_wanted(&self) -> bool;
    fn run(self: Box<Self>);
}

struct JobCall<T, W> {
    work: W,
    answer: oneshot::Sender<T>,
}

impl<T: Send, W: FnOnce() -> T + Send> BackgroundJob for JobCall<T, W> {
    fn is_wanted(&self) -> bool {
        !self.answer.is_closed()
    }

    fn run(self: Box<Self>) {
        // A panic drops the sender, which the caller is told as a bug. Shared state survives it behind its locks.
        if let Ok(value) = catch_unwind(AssertUnwindSafe(self.work)) {
            // Nobody may be listening any more.
            let _ = self.answer.send(value);
        }
    }
}

impl Background {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(limits: BackgroundLimits) -> Result<Self> {
        // Long chats are rendered here.
        Self::start_named("background", STACK_BYTES, limits)
    }

    /// Starts threads whose names begin with `name`, each with a stack of `stack_bytes`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start_named(name: &str, stack_bytes: usize, limits: BackgroundLimits) -> Result<Self> {
        Self::start_by(limits, |index, shared| {
            spawn_background(&format!("{name}-{index}"), stack_bytes, move || shared.work()).map(drop)
        })
    }

    /// The same with threads of normal priority, for work that is short and that somebody waits for.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn start_prompt(name: &str, stack_bytes: usize, limits: BackgroundLimits) -> Result<Self> {
        Self::start_by(limits, |index, shared| {
            let thread = Builder::new().name(format!("{name}-{index}")).stack_size(stack_bytes);
            thread.spawn(move || shared.work()).map(drop)
        })
    }

    fn start_by(
        limits: BackgroundLimits,
        start: impl Fn(usize, Arc<BackgroundShared>) -> io::Result<()>,
    ) -> Result<Self> {
        let (lines, wake) = (Mutex::default(), Condvar::new());
        let pool = Self { shared: Arc::new(BackgroundShared { limits, lines, wake }) };
        for index in 0..limits.num_threads() {
            start(index, pool.shared.clone()).map_err(|e| Error::io("cannot start a background thread", e))?;
        }
        Ok(pool)
    }

    /// Runs `work` for `owner` and waits for what it returns. Dropping the future takes a job back that has not begun.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Overloaded`] if too many jobs of this owner wait; an internal error if `work` panics.
    pub async fn run<T: Send + 'static>(&self, owner: Tenant, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.shared.push(owner, Box::new(JobCall { work, answer }))?;
        answered.await.map_err(|_| Error::internal("the server hit a bug on this request"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.wake.notify_all();
    }
}

impl std::fmt::Debug for Background {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Background").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

impl BackgroundShared {
    fn push(&self, owner: Tenant, job: Box<dyn BackgroundJob>) -> Result<()> {
        let mut lines = self.lock();
        let Lines { turns, by_owner, .. } = &mut *lines;
        let line = by_owner.entry(owner).or_default();
        if line.waiting.len() >= self.limits.waiting_per_owner_max {
            // A client that left takes its place with it.
            line.waiting.retain(|job| job.is_wanted());
        }
        if line.waiting.len() >= self.limits.waiting_per_owner_max {
            let message = format!("{} large requests of this key are being prepared already", line.waiting.len());
            return Err(Error::overloaded(message, RETRY_AFTER_MS));
        }
        if !turns.contains(&owner) {
            turns.push_back(owner);
        }
        line.waiting.push_back(job);
        drop(lines);
        self.wake.notify_one();
        Ok(())
    }

    fn work(&self) {
        while let Some((owner, job)) = self.next() {
            if job.is_wanted() {
                job.run();
            }
            self.lock().leave(owner);
            // Another job of this owner may begin now.
            self.wake.notify_one();
        }
    }

    /// Waits for a job; `None` at the end.
    fn next(&self) -> Option<(Tenant, Box<dyn BackgroundJob>)> {
        let running_max = (self.limits.num_threads() - 1).max(1);
        let mut lines = self.lock();
        loop {
            if lines.is_closed {
                return None;
            }
            if let Some(next) = lines.take(running_max) {
                return Some(next);
            }
            lines = self.wake.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Jobs run outside of it, and every change is a whole one.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// The next job of the next owner that has fewer than `running_max` running.
    fn take(&mut self, running_max: usize) -> Option<(Tenant, Box<dyn BackgroundJob>)> {
        let Self { turns, by_owner, .. } = self;
        let may_run = |owner: &Tenant| by_owner.get(owner).is_some_and(|line| line.num_running < running_max);
        let owner = turns.remove(turns.iter().position(may_run)?)?;
        let line = by_owner.get_mut(&owner)?;
        let job = line.waiting.pop_front()?;
        line.num_running += 1;
        if !line.waiting.is_empty() {
            turns.push_back(owner);
        }
        Some((owner, job))
    }

    fn leave(&mut self, owner: Tenant) {
        let Some(line) = self.by_owner.get_mut(&owner) else { return };
        line.num_running -= 1;
        if line.num_running == 0 && line.waiting.is_empty() {
            self.by_owner.remove(&owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;
    use crate::error::ErrorKind;

    fn pool(num_threads: usize, waiting_per_owner_max: usize) -> Background {
        Background::start(BackgroundLimits { num_threads: Some(num_threads), waiting_per_owner_max }).expect("threads")
    }

    #[tokio::test]
    async fn an_owner_that_fills_its_places_holds_up_nobody_else() {
        let pool = pool(2, 8);
        let (release, gate) = mpsc::channel::<()>();
        // One runs and waits for us; the others of this owner wait behind it.
        let first = pool.run(Tenant(1), move || gate.recv().is_ok()).shared();
        assert!(first.clone().now_or_never().is_none());
        let second = pool.run(Tenant(1), || 2).shared();
        assert!(second.clone().now_or_never().is_none());
        assert_eq!(pool.run(Tenant(2), || "other").await, Ok("other"));
        assert!(second.clone().now_or_never().is_none(), "one thread stays free for other owners");
        release.send(()).expect("it waits");
        assert_eq!((first.await, second.await), (Ok(true), Ok(2)));
        assert!(pool.shared.lock().by_owner.len() <= 1, "whoever has nothing left is forgotten");
    }

    #[tokio::test]
    async fn a_full_line_is_refused_and_who_left_makes_room() {
        let pool = pool(1, 1);
        let (release, gate) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let running = pool.run(Tenant(1), move || (began.send(()), gate.recv().is_ok())).shared();
        assert!(running.clone().now_or_never().is_none());
        begun.recv().expect("it begins");
        let waiting = pool.run(Tenant(1), || 1).shared();
        assert!(waiting.clone().now_or_never().is_none());
        let refused = pool.run(Tenant(1), || 1).await.expect_err("the line is full");
        assert_eq!((refused.kind(), refused.retry_after_ms()), (ErrorKind::Overloaded, Some(RETRY_AFTER_MS)));
        drop(waiting);
        let next = pool.run(Tenant(1), || 3).shared();
        assert!(next.clone().now_or_never().is_none(), "it has the place of the one that left");
        release.send(()).expect("it waits");
        assert_eq!(next.await, Ok(3));
        assert!(running.await.is_ok());
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_costs_no_thread() {
        let pool = pool(1, 4);
        let failed = pool.run(Tenant(1), || panic!("planted")).await.map(|(): ()| ());
        assert_eq!(failed.expect_err("a bug").kind(), ErrorKind::Internal);
        assert_eq!(pool.run(Tenant(1), || 5).await, Ok(5));
    }
}
