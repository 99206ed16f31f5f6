//! An encoder behind a queue: one thread that embeds one text after another. The queue is of the same kind as the
//! decoders', so owners take turns, the number of texts is bounded, and cancelled texts leave. The thread has none of a
//! decoder's steps, since a text takes milliseconds, grows no KV memory and is never preempted.
//!
//! ```text
//! open: a queue without a thread -> load: a thread with the model -> unload, if no text waits or runs: both go
//!              ^                                                              |
//!              +--------------------------------------------------------------+
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::embedding::{self, Embedding};
use super::fair::Load;
use super::pooling::Pooling;
use super::queue::{Coming, Pulled, Queue, QueueEntry, QueueLimits};
use crate::metrics::Metrics;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::{FinishReason, Tenant, TokenId, ValidInput};

/// A loaded model: from the tokens of a text to its hidden states, `[num_tokens, hidden_size]`.
pub type StatesOf = Box<dyn FnMut(&[TokenId]) -> Result<Vec<f32>> + Send>;

/// Texts are told of their places as seldom as possible: no client reads those events.
const NOTE_INTERVAL: Duration = Duration::from_secs(3600);

/// Bounds of the texts that wait for an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderLimits {
    /// Most texts that wait. At least 1.
    pub queue_max: usize,
    /// How many tokens of others' work one step of priority is worth.
    pub priority_step_tokens: u64,
}

/// A queue of texts, and while the model is loaded the thread that embeds them.
pub struct EncoderPool {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    has_model: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EncoderPool {
    /// A pool whose model is not loaded: texts wait until it is.
    pub fn open(limits: EncoderLimits, metrics: Arc<Metrics>) -> Self {
        let began = Instant::now();
        let limits = QueueLimits {
            requests_max: limits.queue_max.max(1),
            // Each text is bounded by the model's context, so their number bounds their tokens.
            tokens_max: usize::MAX,
            priority_step_tokens: limits.priority_step_tokens,
            note_interval: NOTE_INTERVAL,
        };
        let queue = Queue::new(limits, metrics.clone(), Arc::new(move || began.elapsed()));
        queue.rest(true);
        Self { queue, metrics, has_model: Arc::default(), thread: Mutex::default() }
    }

    /// Starts the thread with a loaded model.
    ///
    /// # Errors
    /// If the system gives no thread. In that case the waiting texts have ended with that message.
    pub fn load(&self, states_of: StatesOf) -> Result<()> {
        self.queue.rest(false);
        let worker = EncoderWorker { queue: self.queue.clone(), metrics: self.metrics.clone(), states_of };
        let has_model = self.has_model.clone();
        let thread = std::thread::Builder::new().name("encoder".to_owned());
        let thread = thread.spawn(move || {
            worker.run();
            has_model.store(false, Ordering::Release);
        });
        let thread = thread.map_err(|e| Error::io("the encoder's thread cannot be started", e));
        let thread = thread.inspect_err(|e| self.refuse_waiting(e))?;
        self.has_model.store(true, Ordering::Release);
        *self.lock_thread() = Some(thread);
        Ok(())
    }

    /// Ends the waiting texts, since the model cannot be loaded.
    pub fn refuse_waiting(&self, e: &Error) {
        self.queue.refuse_waiting(&format!("the model cannot be loaded: {}", e.message()));
    }

    /// Ends the thread and drops the model; false if a text waits or runs. Blocks until the thread has ended.
    pub fn unload(&self) -> bool {
        if !self.is_idle() {
            return false;
        }
        self.queue.rest(true);
        self.join();
        true
    }

    /// Takes the tokens of a text. Its vector, of length 1, comes through the returned [`Embedding`]; dropping that
    /// cancels the work.
    ///
    /// # Errors
    /// [`tallow_stream::error::ErrorKind::Overloaded`] when the queue is full, with the time to come back;
    /// `ErrorKind::Unavailable` while draining.
    pub fn embed(&self, input: ValidInput) -> Result<Embedding> {
        let embedding::Begun { request, log, vector, embedding } = embedding::begin(input);
        let coming = Coming { request, chain: None, grammar: None, vector: Some(vector) };
        self.queue.submit_coming(coming, &log).map(|()| embedding)
    }

    /// Whether a text of `tenant` would be refused however short it is.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn check_room(&self, tenant: Tenant, coming: Load) -> Result<()> {
        self.queue.check_room(tenant, coming)
    }

    /// Ends texts that have waited for too long. To be called a few times a second.
    pub fn sweep(&self) {
        self.queue.sweep();
    }

    /// Texts that wait.
    pub fn num_waiting(&self) -> usize {
        self.queue.depth().0
    }

    /// Whether texts are taken and the thread embeds them.
    pub fn is_ready(&self) -> bool {
        self.queue.is_open() && self.has_model.load(Ordering::Acquire)
    }

    /// Whether no text waits or runs.
    pub fn is_idle(&self) -> bool {
        self.queue.is_idle()
    }

    /// Takes no new texts from now on; texts that wait or run continue.
    pub fn drain(&self) {
        self.queue.close("the server is shutting down");
    }

    /// Ends the waiting texts with an error that says `message`, and the thread once it has finished its current text.
    /// Blocks until then; may be called again.
    pub fn shutdown(&self, message: &str) {
        self.queue.stop(message);
        self.join();
    }

    fn join(&self) {
        let thread = self.lock_thread().take();
        // The thread catches panics, so joining it cannot fail.
        thread.map(JoinHandle::join);
    }

    fn lock_thread(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EncoderPool {
    fn drop(&mut self) {
        self.shutdown("the server is shutting down");
    }
}

impl std::fmt::Debug for EncoderPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderPool").field("queue", &self.queue).finish_non_exhaustive()
    }
}

struct EncoderWorker {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    states_of: StatesOf,
}

impl EncoderWorker {
    /// Runs until the queue is stopped or the model is unloaded.
    fn run(mut self) {
        loop {
            match self.queue.pull(|_, _| true) {
                Pulled::Entry(entry) => self.answer(*entry),
                Pulled::Nothing if self.queue.wait() => {}
                Pulled::Nothing | Pulled::Stopped(_) => return,
            }
        }
    }

    fn answer(&mut self, entry: QueueEntry) {
        let QueueEntry { request, vector, mut writer, .. } = entry;
        let (tenant, num_tokens) = (request.tenant, request.prompt.len());
        writer.usage.prompt_tokens = num_tokens;
        // After a panic the thread continues with the same model: the model is only read.
        let embedded = catch_unwind(AssertUnwindSafe(|| self.embed(&request.prompt)));
        let embedded = embedded.unwrap_or_else(|_| Err(Error::internal("the encoder failed")));
        self.queue.on_served(tenant, num_tokens, num_tokens);
        if writer.is_cancelled() {
            return writer.cancelled();
        }
        match embedded {
            Ok(values) => {
                self.metrics.embeddings.inc();
                self.metrics.embedding_tokens.inc_by(num_tokens as u64);
                if let Some(vector) = vector {
                    vector.fill(values);
                }
                writer.done(FinishReason::Stop, None);
            }
            Err(e) => writer.failed(e.kind(), e.message().to_owned()),
        }
    }

    fn embed(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        let mut pooling = Pooling::default();
        pooling.add(&(self.states_of)(tokens)?, tokens.len());
        pooling.finish()
    }
}

#[cfg(test)]
mod tests;
