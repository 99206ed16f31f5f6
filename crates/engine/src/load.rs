//! A model's weights come and go, its queue stays: requests may wait before the model is loaded, and while it is loaded
//! again.
//!
//! ```text
//! open: a queue without workers -> load: weights, workers -> unload, if nothing waits or runs: workers end, weights go
//!              ^                                                                   |
//!              +-------------------------------------------------------------------+
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::Engine;
use super::config::EngineConfig;
use super::masks::MaskWait;
use super::parts::CoreParts;
use super::queue::Queue;
use super::turns::Turns;
use super::worker::{self, WorkerShared};
use crate::metrics::Metrics;
use crate::sampling::grammar::GrammarCompiler;
use tallow_model::text::Tokenizer;
use tallow_model::{ModelFactory, ModelSpec};
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::TokenId;

impl Engine {
    /// An engine whose model, described by `spec`, is not loaded: requests wait until it is.
    ///
    /// # Errors
    /// If a setting breaks its rule.
    pub fn open(
        config: EngineConfig,
        spec: ModelSpec,
        tokenizer: Arc<Tokenizer>,
        metrics: Arc<Metrics>,
        turns: Arc<Turns>,
    ) -> Result<Arc<Self>> {
        let (shared, grammars) = prepare(config, tokenizer, metrics, turns)?;
        Ok(Arc::new(Self { shared, spec, grammars, threads: Mutex::default() }))
    }

    /// Starts the workers of an engine that has none, and waits until each has its model.
    ///
    /// # Errors
    /// If the model does not load, or is not the one that the engine was opened for: what waited has ended with this
    /// message then. Requests may come again.
    pub fn load(&self, factory: ModelFactory) -> Result<()> {
        if !self.shared.wait_exited(self.shared.config.shutdown_time_max) {
            let e = Error::new(ErrorKind::Unavailable, "a worker of the attempt before has not ended yet");
            self.refuse_waiting(&e);
            return Err(e);
        }
        let loaded = start_workers(&self.shared, factory).and_then(|(spec, threads)| {
            self.lock_threads().extend(threads);
            if spec == self.spec { Ok(()) } else { Err(Error::bad_model("the file has changed since it was opened")) }
        });
        loaded.inspect_err(|e| {
            // One that loads still ends by itself; the next attempt waits for it.
            self.end_workers();
            self.refuse_waiting(e);
        })
    }

    /// Ends what waits, since the model cannot be loaded.
    pub fn refuse_waiting(&self, e: &Error) {
        self.queue().refuse_waiting(&format!("the model cannot be loaded: {}", e.message()));
    }

    /// Ends the workers, and lets go of the weights; false if something waits or runs, or a worker is stuck. Blocks until they
    /// have ended. If one is stuck, the model stays and the others come back, and so does that one once it has ended.
    pub fn unload(&self) -> bool {
        if !self.is_idle() {
            return false;
        }
        let have_ended = self.end_workers();
        if !have_ended {
            tracing::error!("a worker is stuck, so the model stays loaded");
            self.shared.parts.queue.rest(false);
            self.shared.is_resting.store(false, Ordering::SeqCst);
            let mut threads = self.lock_threads();
            threads.retain(|thread| !thread.is_finished());
            threads.extend(self.shared.watch());
        }
        have_ended
    }

    /// Requests that wait for a worker.
    pub fn num_waiting(&self) -> usize {
        self.queue().depth().0
    }

    fn end_workers(&self) -> bool {
        let shared = &self.shared;
        shared.is_resting.store(true, Ordering::SeqCst);
        shared.parts.queue.rest(true);
        shared.leave_vacant();
        let have_ended = shared.wait_exited(shared.config.shutdown_time_max);
        if have_ended {
            let threads = std::mem::take(&mut *self.lock_threads());
            threads.into_iter().for_each(|thread| drop(thread.join()));
            *shared.factory.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        have_ended
    }

    pub(super) fn lock_threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything but workers.
pub(super) fn prepare(
    config: EngineConfig,
    tokenizer: Arc<Tokenizer>,
    metrics: Arc<Metrics>,
    turns: Arc<Turns>,
) -> Result<(Arc<WorkerShared>, Arc<GrammarCompiler>)> {
    config.validate()?;
    let began = Instant::now();
    let queue = Queue::new(config.queue_limits(), metrics.clone(), Arc::new(move || began.elapsed()));
    let ids = 0..tokenizer.vocab_size() as TokenId;
    let end_of_generation = ids.filter(|&id| tokenizer.is_end_of_generation(id)).collect();
    let parts = CoreParts {
        limits: config.scheduler_limits(),
        queue,
        tokenizer,
        end_of_generation,
        metrics,
        mask_wait: MaskWait::Grace,
    };
    let grammars = GrammarCompiler::new(parts.tokenizer.clone(), config.grammars.clone(), parts.metrics.clone());
    let num_workers = config.num_workers;
    let shared = Arc::new(WorkerShared {
        config,
        factory: Mutex::default(),
        parts,
        turns,
        is_resting: AtomicBool::new(true),
        statuses: (0..num_workers).map(|_| worker::Status::default()).collect(),
        num_alive: AtomicUsize::new(0),
        num_restarts: AtomicU64::new(0),
        num_exited: Mutex::new(num_workers),
        exited: Condvar::new(),
        abandoned: Mutex::default(),
    });
    Ok((shared, grammars))
}

/// Starts every worker and waits for the first load of each. After an error some may run; the caller ends them.
pub(super) fn start_workers(
    shared: &Arc<WorkerShared>,
    factory: ModelFactory,
) -> Result<(ModelSpec, Vec<JoinHandle<()>>)> {
    let num_workers = shared.config.num_workers;
    *shared.factory.lock().unwrap_or_else(PoisonError::into_inner) = Some(factory);
    shared.is_resting.store(true, Ordering::SeqCst);
    shared.begin_load();
    shared.parts.queue.rest(false);
    let (sender, loaded) = sync_channel(num_workers);
    let mut threads = Vec::with_capacity(num_workers);
    for index in 0..num_workers {
        threads.extend(shared.started(index, worker::spawn(shared, index, sender.clone())));
    }
    drop(sender);
    let spec = first_spec(&loaded, num_workers)?;
    shared.is_resting.store(false, Ordering::SeqCst);
    Ok((spec, threads))
}

/// Waits for every worker's first load; all models are alike.
fn first_spec(loaded: &Receiver<Result<ModelSpec>>, num_workers: usize) -> Result<ModelSpec> {
    let mut specs = loaded.iter().collect::<Result<Vec<_>>>()?;
    if specs.len() < num_workers {
        return Err(Error::internal("a worker did not start"));
    }
    let spec = specs.pop().ok_or_else(|| Error::internal("no worker started"))?;
    match specs.iter().find(|other| **other != spec) {
        None => Ok(spec),
        Some(other) => Err(Error::internal(format!("workers differ: {spec:?} and {other:?}"))),
    }
}
