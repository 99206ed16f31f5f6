//! A thread that owns a model and runs its step loop until the end.
//!
//! ```text
//! load the model -> step, step, ... (asleep while there is nothing to do) -> stopped: the thread ends
//!       ^                |
//!       |                v  panic or failed device
//!       +-- wait -- end its sequences with an error event, drop the model
//! ```
//!
//! A step that panics is not repeated: its sequences are lost, and the next ones get a fresh model. Restarts after a
//! panic are therefore not limited in number (a request that makes the model panic must not be able to use them up),
//! only slowed down; a model that does not load any more is given up after a number of attempts.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::config::EngineConfig;
use super::core::{CoreParts, EngineCore, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Model, ModelFactory, ModelSpec};

/// What all workers and the engine share.
pub(super) struct Shared {
    pub config: EngineConfig,
    pub factory: ModelFactory,
    pub parts: CoreParts,
    /// One per worker.
    pub statuses: Vec<Status>,
    /// Workers that may still serve.
    pub num_alive: AtomicUsize,
    pub num_exited: Mutex<usize>,
    pub exited: Condvar,
}

/// What others may know of a worker.
#[derive(Debug, Default)]
pub(super) struct Status {
    has_model: AtomicBool,
    /// When the step that it is in began, in microseconds, plus one; 0 between steps.
    step_began: AtomicU64,
}

impl Status {
    /// Whether the worker serves: it has a model, and is not stuck in a step.
    pub(super) fn is_ready(&self, now: Duration, step_time_max: Duration) -> bool {
        let began = self.step_began.load(Ordering::Acquire);
        let is_stuck = began > 0 && now.as_micros() as u64 > began + step_time_max.as_micros() as u64;
        self.has_model.load(Ordering::Acquire) && !is_stuck
    }
}

impl Shared {
    /// Waits until all workers have ended; false if one has not after `time`.
    pub(super) fn wait_exited(&self, time: Duration) -> bool {
        let exited = self.num_exited.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |n: &mut usize| *n < self.statuses.len();
        let (n, _) = self.exited.wait_timeout_while(exited, time, missing).unwrap_or_else(PoisonError::into_inner);
        *n == self.statuses.len()
    }
}

/// A worker's life. `loaded` hears once whether the first load went well; if not, that was it.
fn run(shared: &Shared, index: usize, loaded: SyncSender<Result<ModelSpec>>) {
    let _exit = Exit(shared);
    let worker = Worker { shared, index, status: &shared.statuses[index] };
    let first = worker.load();
    worker.status.has_model.store(first.is_ok(), Ordering::Release);
    // The engine waits for this; if it is gone, so is the reason to run.
    let heard = loaded.send(first.as_ref().map(|model| model.spec().clone()).map_err(Clone::clone));
    drop(loaded);
    if let (Ok(model), Ok(())) = (first, heard) {
        worker.live(model);
    }
}

/// Counts a worker out however its thread ends, by a panic outside of a step too.
struct Exit<'a>(&'a Shared);

impl Drop for Exit<'_> {
    fn drop(&mut self) {
        if self.0.num_alive.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.parts.queue.abandon("no worker is left to serve requests");
        }
        *self.0.num_exited.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.exited.notify_all();
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    status: &'a Status,
}

/// Why a core is of no more use.
enum Fate {
    Stopped,
    Failed { message: String, has_worked: bool },
}

impl Worker<'_> {
    fn live(&self, first: Box<dyn Model>) {
        let mut model = Some(first);
        let mut num_failures = 0;
        while let Some(fresh) = model.take() {
            let mut core = EngineCore::new(fresh, self.shared.parts.clone());
            self.status.has_model.store(true, Ordering::Release);
            let fate = self.serve(&mut core);
            self.status.has_model.store(false, Ordering::Release);
            let Fate::Failed { message, has_worked } = fate else { return };
            tracing::error!(worker = self.index, "step failed: {message}");
            self.shared.parts.metrics.worker_restarts.inc();
            num_failures = if has_worked { 1 } else { num_failures + 1 };
            // What a panic left behind may panic again; its sequences then end as they are dropped.
            let quietly = AssertUnwindSafe(|| {
                core.fail_all(ErrorKind::Internal, &format!("the worker failed: {message}"));
                drop(core);
            });
            let _ = catch_unwind(quietly);
            model = self.reload(num_failures);
        }
    }

    /// Steps until the end or a failure.
    fn serve(&self, core: &mut EngineCore) -> Fate {
        let queue = &self.shared.parts.queue;
        let mut has_worked = false;
        loop {
            self.status.step_began.store(queue.now().as_micros() as u64 + 1, Ordering::Release);
            let step = catch_unwind(AssertUnwindSafe(|| core.step()));
            self.status.step_began.store(0, Ordering::Release);
            let message = match step {
                Ok(Ok(Step::Ran)) => {
                    has_worked = true;
                    continue;
                }
                Ok(Ok(Step::Idle)) => {
                    queue.wait();
                    continue;
                }
                Ok(Ok(Step::Stopped)) => return Fate::Stopped,
                Ok(Err(e)) => e.message().to_owned(),
                Err(panic) => panic_message(panic.as_ref()),
            };
            return Fate::Failed { message, has_worked };
        }
    }

    /// A fresh model after a pause; `None` when the engine stops meanwhile or no attempt succeeds.
    fn reload(&self, num_failures: u32) -> Option<Box<dyn Model>> {
        let config = &self.shared.config;
        for attempt in 0..config.worker_load_attempts_max {
            if self.shared.parts.queue.wait_stopped(backoff(config, num_failures + attempt)) {
                return None;
            }
            match self.load() {
                Ok(model) => return Some(model),
                Err(e) => tracing::error!(worker = self.index, attempt, "cannot load the model again: {e}"),
            }
        }
        None
    }

    fn load(&self) -> Result<Box<dyn Model>> {
        let loaded = catch_unwind(AssertUnwindSafe(|| (self.shared.factory)()));
        loaded.unwrap_or_else(|panic| Err(Error::internal(panic_message(panic.as_ref()))))
    }
}

/// The pause after this many failures in a row, at least one.
fn backoff(config: &EngineConfig, num_failures: u32) -> Duration {
    let doublings = num_failures.saturating_sub(1).min(20);
    (config.worker_backoff_min * (1 << doublings)).min(config.worker_backoff_max)
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".to_owned())
}

/// Starts a worker's thread.
///
/// # Errors
/// If the system gives no thread.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    index: usize,
    loaded: SyncSender<Result<ModelSpec>>,
) -> Result<std::thread::JoinHandle<()>> {
    let shared = shared.clone();
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || run(&shared, index, loaded))
        .map_err(|e| Error::io("cannot start a worker thread", e))
}
