//! A thread that owns a model and runs its step loop until the end.
//!
//! ```text
//! load the model -> step, step, ... (asleep while there is nothing to do, or the disk is far behind) -> stopped: the thread ends
//!       ^                |        \
//!       |                |         +-- nothing computed for long: its lease is revoked, another thread begins here
//!       |                v  panic or failed device
//!       +-- wait -- hand its sequences over, drop the model
//! ```
//!
//! The sequences of a lost worker go on with a fresh model; the one that caused the loss ends (`takeover`). Restarts after
//! a panic are not limited in number, only slowed down. A worker that hangs keeps its memory and threads, so those are
//! replaced only so often in a time; until then its requests wait. A model that does not load any more is given up after a
//! number of attempts.

mod exit;

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use self::exit::{Exit, Left};
use super::config::EngineConfig;
use super::core::{EngineCore, Step};
use super::held::Held;
use super::lease::Lease;
use super::parts::CoreParts;
use super::takeover;
use super::turns::Turns;
use tallow_model::{Model, ModelFactory, ModelSpec};
use tallow_stream::error::{Error, Result};

/// Hung threads that may exist in all, for each that is replaced within the time. Past this, a worker is replaced only once
/// one of them has ended: their memory must have a bound.
const HUNG_PER_ABANDONED_MAX: u64 = 4;

/// What all workers and the engine share.
pub(super) struct WorkerShared {
    pub config: EngineConfig,
    /// None while the model is not loaded.
    pub factory: Mutex<Option<ModelFactory>>,
    pub parts: CoreParts,
    /// With the engines of other models.
    pub turns: Arc<Turns>,
    /// Whether the workers may all end, since the model is unloaded or being loaded.
    pub(crate) is_resting: AtomicBool,
    /// One per worker.
    pub statuses: Vec<Status>,
    /// Workers that may still serve.
    pub(crate) num_alive: AtomicUsize,
    /// Workers that were replaced.
    pub num_restarts: AtomicU64,
    pub(crate) num_exited: Mutex<usize>,
    pub(crate) exited: Condvar,
    /// Threads that were given up: when, and what each holds as long as it lives.
    pub abandoned: Mutex<Vec<(Duration, Weak<Pulse>)>>,
}

/// What others may know of a worker.
#[derive(Debug, Default)]
pub(super) struct Status {
    has_model: AtomicBool,
    current: Mutex<Current>,
}

/// The core that a worker runs.
#[derive(Debug, Default)]
enum Current {
    /// None: its thread loads a model.
    #[default]
    Loading,
    Core(CurrentCore),
    /// None. The thread hangs and was given up; another one is to be started.
    Vacant,
    /// None. The thread ended, or one that hangs was counted out, since the model was to be unloaded. If the model stays
    /// after all, the worker comes back.
    Away {
        hangs: bool,
    },
}

#[derive(Debug)]
struct CurrentCore {
    lease: Arc<Lease>,
    pulse: Arc<Pulse>,
    /// The model's count of what it has computed, and what it was when it was last looked at.
    beat: Option<Arc<AtomicU64>>,
    beat_seen: u64,
}

/// One core's signs of life. Not the worker's: a core that was given up and wakes again must not speak for its successor.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// When the step that it is in began, in microseconds, plus one; 0 between steps, where it waits for work, for its turn,
    /// and for the disk: a worker that is there does not hang.
    step_began: AtomicU64,
    /// When it was last seen to compute something within a step, in microseconds.
    progressed: AtomicU64,
    /// The turn that it has, or had last.
    turn: AtomicU64,
}

impl Pulse {
    /// Whether it has been in a step for longer than `time` without computing anything.
    fn is_stuck(&self, now: Duration, time: Duration) -> bool {
        let began = self.step_began.load(Ordering::Acquire);
        let since = began.max(self.progressed.load(Ordering::Acquire));
        began > 0 && now.as_micros() as u64 > since + time.as_micros() as u64
    }
}

impl Status {
    /// Whether the worker serves: it has a model, and is not stuck in a step.
    pub(super) fn is_ready(&self, now: Duration, stall_time_max: Duration) -> bool {
        self.has_model.load(Ordering::Acquire) && !self.is_stuck(now, stall_time_max)
    }

    /// Whether its core has been in a step for longer than `time` without computing anything.
    fn is_stuck(&self, now: Duration, time: Duration) -> bool {
        matches!(&*self.lock(), Current::Core(core) if core.pulse.is_stuck(now, time))
    }

    fn set_current(&self, core: &EngineCore) -> Arc<Pulse> {
        let (beat, pulse) = (core.beat(), Arc::<Pulse>::default());
        let beat_seen = beat.as_ref().map_or(0, |beat| beat.load(Ordering::Relaxed));
        *self.lock() =
            Current::Core(CurrentCore { lease: core.lease().clone(), pulse: pulse.clone(), beat, beat_seen });
        pulse
    }

    /// Looks whether it has computed something since the last look.
    fn look(&self, now: Duration) {
        if let Current::Core(core) = &mut *self.lock()
            && let Some(beat) = &core.beat
        {
            let beat = beat.load(Ordering::Relaxed);
            if beat != core.beat_seen {
                core.beat_seen = beat;
                core.pulse.progressed.store(now.as_micros() as u64, Ordering::Release);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerShared {
    /// Gives up workers that hang, and starts others in their place. Called a few times a second.
    pub(super) fn watch(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let now = self.parts.queue.now();
        let mut started = Vec::new();
        for (index, status) in self.statuses.iter().enumerate() {
            status.look(now);
            if let Some(lost) = self.give_up(index, status, now) {
                // They wait in the queue, for other workers or for this one's successor.
                takeover::hand_over(lost.held, lost.culprit, Lost::WHAT, &self.parts);
            }
            if self.takes_back(status) {
                started.extend(self.start_again(index));
            }
            if matches!(&*status.lock(), Current::Vacant) && self.may_replace(now) {
                started.extend(self.replace(index, status));
            }
        }
        started
    }

    /// Takes a worker that still hangs its right to write.
    fn give_up(&self, index: usize, status: &Status, now: Duration) -> Option<Lost> {
        let mut current = status.lock();
        // Under the lock, so that a step which ends now either ends before or is revoked.
        let Current::Core(core) = &*current else { return None };
        if !core.pulse.is_stuck(now, self.config.step_time_max) {
            return None;
        }
        let (held, culprit) = core.lease.revoke();
        self.turns.revoke(index, core.pulse.turn.load(Ordering::Acquire));
        self.lock_abandoned().push((now, Arc::downgrade(&core.pulse)));
        *current = Current::Vacant;
        status.has_model.store(false, Ordering::Release);
        drop(current);
        let num_abandoned = self.parts.metrics.workers_abandoned.inc() + 1;
        tracing::error!(worker = index, num_sequences = held.len(), num_abandoned, "{}", Lost::WHAT);
        Some(Lost { culprit, held })
    }

    /// Whether few enough threads were given up lately and hang still, and few enough in all: each keeps its memory.
    fn may_replace(&self, now: Duration) -> bool {
        let mut abandoned = self.lock_abandoned();
        abandoned.retain(|(_, pulse)| pulse.strong_count() > 0);
        let is_recent = |at: &Duration| now.saturating_sub(*at) < self.config.abandoned_time;
        let num_recent = abandoned.iter().filter(|(at, _)| is_recent(at)).count() as u64;
        let max = self.config.workers_abandoned_max;
        num_recent <= max && abandoned.len() as u64 <= max.saturating_mul(HUNG_PER_ABANDONED_MAX)
    }

    fn replace(self: &Arc<Self>, index: usize, status: &Status) -> Option<JoinHandle<()>> {
        *status.lock() = Current::Loading;
        self.count_restart();
        self.spawn_worker(index, |worker| worker.reload(1))
    }

    /// Starts a thread for a worker that has none, which gets its model by `load`.
    fn spawn_worker(
        self: &Arc<Self>,
        index: usize,
        load: impl FnOnce(&Worker<'_>) -> Result<Box<dyn Model>, Left> + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let shared = self.clone();
        let builder = std::thread::Builder::new().name(format!("worker-{index}"));
        let spawned = builder.spawn(move || {
            let status = &shared.statuses[index];
            let exit = Exit { shared: &shared, how: Left::Ended };
            let worker = Worker { shared: &shared, index, status };
            load(&worker).map_or_else(|left| left, |model| worker.live(model)).leave(exit, status);
        });
        self.started(index, spawned)
    }

    fn lock_abandoned(&self) -> MutexGuard<'_, Vec<(Duration, Weak<Pulse>)>> {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that counts in the place of a worker that was given up; if there is none, that worker is counted out.
    pub(super) fn started(&self, index: usize, spawned: io::Result<JoinHandle<()>>) -> Option<JoinHandle<()>> {
        match spawned {
            Ok(thread) => Some(thread),
            Err(e) => {
                tracing::error!(worker = index, "no thread for another worker: {e}");
                drop(Exit { shared: self, how: Left::Ended });
                None
            }
        }
    }

    fn count_restart(&self) {
        self.num_restarts.fetch_add(1, Ordering::Relaxed);
        self.parts.metrics.worker_restarts.inc();
    }
}

/// The sequences of a worker that hung.
struct Lost {
    culprit: Option<usize>,
    held: Vec<Held>,
}

impl Lost {
    const WHAT: &str = "the worker hung in a step and was given up";
}

/// A worker's life. `loaded` hears once whether the first load went well; if not, that was it.
fn run(shared: &WorkerShared, index: usize, loaded: SyncSender<Result<ModelSpec>>) {
    let exit = Exit { shared, how: Left::Ended };
    let worker = Worker { shared, index, status: &shared.statuses[index] };
    let first = worker.load();
    worker.status.has_model.store(first.is_ok(), Ordering::Release);
    // The engine waits for this; if it is gone, so is the reason to run.
    let heard = loaded.send(first.as_ref().map(|model| model.spec().clone()).map_err(Clone::clone));
    drop(loaded);
    if let (Ok(model), Ok(())) = (first, heard) {
        worker.live(model).leave(exit, worker.status);
    }
}

struct Worker<'a> {
    shared: &'a WorkerShared,
    index: usize,
    status: &'a Status,
}

/// Why a core is of no more use.
enum Fate {
    Stopped,
    Revoked,
    Failed { message: String, has_worked: bool },
}

impl Worker<'_> {
    /// Runs cores until the end.
    fn live(&self, first: Box<dyn Model>) -> Left {
        let mut fresh = first;
        let mut num_failures = 0;
        loop {
            let mut core = EngineCore::new(fresh, self.shared.parts.clone());
            let pulse = self.status.set_current(&core);
            self.status.has_model.store(true, Ordering::Release);
            let fate = self.serve(&mut core, &pulse);
            if !self.leave_core(&core) {
                // What hung may panic as it is dropped, and must not count out its successor.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(core)));
                self.shared.parts.queue.pass_wake_on();
                return Left::Replaced;
            }
            let Fate::Failed { message, has_worked } = fate else { return Left::Called };
            tracing::error!(worker = self.index, "step failed: {message}");
            self.shared.count_restart();
            num_failures = if has_worked { 1 } else { num_failures + 1 };
            core.hand_over(&format!("the worker failed: {message}"));
            // What a panic left behind may panic again.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(core)));
            match self.reload(num_failures) {
                Ok(model) => fresh = model,
                Err(left) => return left,
            }
        }
    }

    /// Says that no core runs any more; `false` if this one was given up, so that the worker is another thread's.
    fn leave_core(&self, core: &EngineCore) -> bool {
        let mut current = self.status.lock();
        let is_own = !core.lease().is_revoked();
        if is_own {
            *current = Current::Loading;
            self.status.has_model.store(false, Ordering::Release);
        }
        is_own
    }

    /// Steps until the end or a failure.
    fn serve(&self, core: &mut EngineCore, pulse: &Pulse) -> Fate {
        let queue = &self.shared.parts.queue;
        let mut has_worked = false;
        loop {
            let turn = self.shared.turns.take(self.index);
            pulse.turn.store(turn.id, Ordering::Release);
            pulse.step_began.store(queue.now().as_micros() as u64 + 1, Ordering::Release);
            let step = catch_unwind(AssertUnwindSafe(|| core.step()));
            drop(turn);
            if core.lease().is_revoked() {
                return Fate::Revoked;
            }
            pulse.step_began.store(0, Ordering::Release);
            let message = match step {
                Ok(Ok(Step::Ran)) => {
                    has_worked = true;
                    continue;
                }
                Ok(Ok(Step::Waited)) => continue,
                Ok(Ok(Step::HeldUp)) => {
                    core.wait_for_disk();
                    continue;
                }
                Ok(Ok(Step::Idle)) if queue.wait() => continue,
                // Idle: whoever comes now waits for the model to be loaded again.
                Ok(Ok(Step::Idle | Step::Stopped)) => return Fate::Stopped,
                Ok(Ok(Step::Revoked)) => return Fate::Revoked,
                Ok(Err(e)) => e.message().to_owned(),
                Err(panic) => panic_message(panic.as_ref()),
            };
            return Fate::Failed { message, has_worked };
        }
    }

    /// A fresh model after a pause; none when the thread is told to end meanwhile, or no attempt succeeds.
    fn reload(&self, num_failures: u32) -> Result<Box<dyn Model>, Left> {
        let config = &self.shared.config;
        for attempt in 0..config.worker_load_attempts_max {
            if self.shared.parts.queue.wait_stopped(backoff(config, num_failures + attempt)) {
                return Err(Left::Called);
            }
            match self.load() {
                Ok(model) => return Ok(model),
                Err(e) => tracing::error!(worker = self.index, attempt, "cannot load the model again: {e}"),
            }
        }
        Err(Left::Ended)
    }

    fn load(&self) -> Result<Box<dyn Model>> {
        let factory = self.shared.factory.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(factory) = factory else { return Err(Error::internal("the model is not loaded")) };
        let loaded = catch_unwind(AssertUnwindSafe(|| factory()));
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
    shared: &Arc<WorkerShared>,
    index: usize,
    loaded: SyncSender<Result<ModelSpec>>,
) -> io::Result<JoinHandle<()>> {
    let shared = shared.clone();
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || run(&shared, index, loaded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MaskWait;
    use crate::metrics::Metrics;
    use crate::queue::Queue;
    use tallow_model::stub::{StubConfig, StubModel};
    use tallow_model::text::Tokenizer;

    /// With one worker, whose thread is not started.
    fn shared() -> WorkerShared {
        let (config, metrics) = (EngineConfig::default(), Arc::new(Metrics::default()));
        let parts = CoreParts {
            limits: config.scheduler_limits(),
            queue: Queue::new(config.queue_limits(), metrics.clone(), Arc::new(|| Duration::ZERO)),
            tokenizer: Arc::new(Tokenizer::byte_level()),
            end_of_generation: Arc::default(),
            metrics,
            mask_wait: MaskWait::Grace,
        };
        WorkerShared {
            config,
            factory: Mutex::new(Some(StubModel::factory(StubConfig::default()))),
            parts,
            turns: Turns::new(1),
            is_resting: AtomicBool::new(false),
            statuses: vec![Status::default()],
            num_alive: AtomicUsize::new(1),
            num_restarts: AtomicU64::new(0),
            num_exited: Mutex::new(0),
            exited: Condvar::new(),
            abandoned: Mutex::default(),
        }
    }

    /// It counted as alive for ever: the queue was kept open for nobody, and the shutdown waited for it.
    #[test]
    fn a_worker_that_gets_no_thread_is_counted_out() {
        let shared = shared();
        assert!(shared.started(0, Err(io::Error::other("there are no more"))).is_none());
        assert_eq!(shared.num_alive.load(Ordering::SeqCst), 0);
        assert!(!shared.parts.queue.is_open(), "nobody will serve it");
        assert!(shared.wait_exited(Duration::ZERO));
    }
}
