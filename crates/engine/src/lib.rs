//! The engine: a bounded queue, workers that pull from it, and the step loop. Plain threads, no async; it knows nothing
//! of HTTP, templates or files. Requests come in validated, as token ids, each with the log for its events.
//!
//! | file | what |
//! |---|---|
//! | `queue` | requests that wait, bounded; cancelled ones leave at once |
//! | `fair` | which request is next |
//! | `share` | which owner has more places in a worker than its share |
//! | `scheduler`, `sequence` | which tokens make up the next step, in which blocks |
//! | `output` | tokens to text; when the text ends |
//! | `embedding`, `pooling` | a text to embed, with its log; from hidden states to its vector |
//! | `constrain`, `masks` | texts that keep to a grammar; token masks, computed beside the steps |
//! | `takeover` | what happens to a lost worker's sequences |
//! | `core` | one step, from schedule to publish |
//! | `worker` | a thread around the steps: panics, restarts, sleep |
//! | `load`, `turns` | workers that come and go with the model's weights; models that share the cores |
//! | `writer` | a log's one terminal event |
//! | `encoder` | a model that only embeds: a thread before a queue of the same kind |
//! | `rate` | when a refused client should come back |

pub mod cache;
mod config;
mod constrain;
pub mod core;
mod embedding;
pub mod encoder;
mod fair;
mod held;
mod lease;
mod load;
mod masks;
pub mod metrics;
pub mod output;
pub mod parts;
mod pooling;
pub mod queue;
mod rate;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
pub mod share;
mod takeover;
pub mod threads;
mod turns;
mod worker;
mod writer;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub use config::{EngineConfig, PRIORITY_STEP_TOKENS};
pub use embedding::{Embedding, Vector};
pub use fair::Load;
pub use masks::MaskWait;
pub use turns::Turns;

use self::queue::{Coming, Queue};
use self::scheduler::Scheduler;
use self::worker::WorkerShared;
use crate::cache::{BLOCK_SIZE, HashChain};
use crate::metrics::Metrics;
use crate::sampling::grammar::GrammarCompiler;
use tallow_model::text::Tokenizer;
use tallow_model::{ModelFactory, ModelSpec};
use tallow_stream::StreamLog;
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::{Event, Tenant, ValidInput, ValidRequest};

/// A pool of workers behind a queue.
pub struct Engine {
    shared: Arc<WorkerShared>,
    spec: ModelSpec,
    grammars: Arc<GrammarCompiler>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the workers and waits until each has its model.
    ///
    /// # Errors
    /// If a setting breaks its rule, or a model does not load.
    pub fn start(
        config: EngineConfig,
        factory: ModelFactory,
        tokenizer: Arc<Tokenizer>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>> {
        let turns = Turns::new(config.num_workers);
        let (shared, grammars) = load::prepare(config, tokenizer, metrics, turns)?;
        match load::start_workers(&shared, factory) {
            Ok((spec, threads)) => Ok(Arc::new(Self { shared, spec, grammars, threads: Mutex::new(threads) })),
            Err(e) => {
                shared.parts.queue.stop("the engine did not start");
                Err(e)
            }
        }
    }

    /// Takes a request; its events go to `log`, `Queued` before this returns.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when the queue is full, with the time to come back; [`ErrorKind::Unavailable`] while
    /// draining or without workers; [`ErrorKind::ContextLengthExceeded`] and [`ErrorKind::InvalidRequest`] for what
    /// the model could never run. Nothing was appended to `log` then.
    #[expect(clippy::needless_pass_by_value, reason = "the engine becomes an owner of the log")]
    pub fn submit(&self, request: ValidRequest, log: Arc<StreamLog>) -> Result<()> {
        self.check(&request, false)?;
        // The service has just compiled the constraint, so this finds it in the cache. Only a request of an earlier
        // process is compiled here.
        let grammar = request.constraint.as_ref().map(|c| self.grammars.compile(c)).transpose()?;
        if let Some((finish_reason, usage, stop)) = takeover::end_of(&request, grammar.as_deref(), &self.shared.parts) {
            log.append(Event::Done { finish_reason, usage, stop });
            return Ok(());
        }
        let prefix_cache = self.shared.config.prefix_cache;
        // Hashing a long prompt takes as long as a token, so it is done here and not in the worker. A prompt whose
        // log-probabilities are wanted gets no chain: blocks from the cache are not computed, so they have no logits.
        let is_named = prefix_cache && request.sampling.prompt_logprobs.is_none();
        let chain = is_named.then(|| HashChain::new(request.tenant, &request.prompt));
        self.queue().submit_constrained(request, chain, grammar, &log)
    }

    /// Takes a text to embed. Its vector is the mean of its hidden states, scaled to length 1. The text waits in the
    /// same queue and is computed in the same steps as any prompt.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn embed(&self, input: ValidInput) -> Result<Embedding> {
        let embedding::Begun { request, log, vector, embedding } = embedding::begin(input);
        self.check(&request, true)?;
        // There is no chain: blocks from the cache are not computed, so they have no hidden states.
        let coming = Coming { request, chain: None, grammar: None, vector: Some(vector) };
        self.queue().submit_coming(coming, &log).map(|()| embedding)
    }

    /// Whether a request of `tenant` would be refused however short it is.
    ///
    /// # Errors
    /// Those of [`Self::submit`] that do not depend on the request.
    pub fn check_room(&self, tenant: Tenant, coming: Load) -> Result<()> {
        self.queue().check_room(tenant, coming)
    }

    /// Ends requests that have waited for too long, and tells the others their places in the queue. To be called a few
    /// times a second.
    pub fn sweep(&self) {
        let started = self.shared.watch();
        self.lock_threads().extend(started);
        self.queue().sweep();
    }

    /// Whether requests are taken and a worker serves them.
    pub fn is_ready(&self) -> bool {
        let (now, stall_time_max) = (self.queue().now(), self.shared.config.stall_time_max);
        self.queue().is_open() && self.shared.statuses.iter().any(|status| status.is_ready(now, stall_time_max))
    }

    /// How many times a worker was replaced.
    pub fn num_restarts(&self) -> u64 {
        self.shared.num_restarts.load(Ordering::Relaxed)
    }

    /// Whether no worker is left, and none will be started.
    pub fn has_failed(&self) -> bool {
        self.shared.num_alive.load(Ordering::SeqCst) == 0 && !self.shared.is_resting.load(Ordering::SeqCst)
    }

    /// Takes no new requests from now on; requests that wait or run continue.
    pub fn drain(&self) {
        self.queue().close("the server is shutting down");
    }

    /// Whether no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.queue().is_idle()
    }

    /// Ends the remaining requests with an error event that says `message`, then the workers. Blocks until their steps
    /// are over, or for at most `shutdown_time_max`. May be called again.
    pub fn shutdown(&self, message: &str) {
        self.queue().stop(message);
        self.shared.leave_vacant();
        let threads = std::mem::take(&mut *self.lock_threads());
        if !self.shared.wait_exited(self.shared.config.shutdown_time_max) {
            tracing::error!("a worker is stuck in a step and is left behind");
        }
        for thread in threads.into_iter().filter(JoinHandle::is_finished) {
            // The thread catches panics and reported its end as its last act, so joining it cannot fail.
            let _ = thread.join();
        }
    }

    /// What the model can do; the same for every worker.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Compiles the constraints of its requests, and keeps them.
    pub fn grammars(&self) -> &Arc<GrammarCompiler> {
        &self.grammars
    }

    /// The queue, for its depth.
    pub fn queue(&self) -> &Arc<Queue> {
        &self.shared.parts.queue
    }

    /// Validation has checked the request already. But a token past the vocabulary would crash the worker, and only the
    /// engine knows whether the request fits the pool.
    fn check(&self, request: &ValidRequest, is_embedding: bool) -> Result<()> {
        let ModelSpec { vocab_size, max_model_len, num_blocks, .. } = self.spec;
        let num_tokens_max = request.num_tokens_max();
        if request.prompt.is_empty() || (request.max_tokens == 0) != is_embedding {
            return Err(Error::invalid("prompt", "prompt and `max_tokens` must be at least one token"));
        }
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::invalid("prompt", format!("token {token} is not of this model's {vocab_size}")));
        }
        let too_long = |rule: String| {
            let (p, m) = (request.prompt.len(), request.max_tokens);
            let message = format!("{rule}, got {p} prompt tokens and `max_tokens` {m}");
            Err(Error::new(ErrorKind::ContextLengthExceeded, message))
        };
        if num_tokens_max > max_model_len {
            return too_long(format!("prompt and output must fit the model's context of {max_model_len} tokens"));
        }
        // For a text to embed, the last token is computed too.
        if !Scheduler::can_ever_fit(num_tokens_max + usize::from(is_embedding), num_blocks) {
            let room = num_blocks * BLOCK_SIZE;
            return too_long(format!("prompt and output must fit the server's KV memory of {room} tokens"));
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown("the server is shutting down");
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { spec, shared, .. } = self;
        f.debug_struct("Engine").field("spec", spec).field("config", &shared.config).finish_non_exhaustive()
    }
}
