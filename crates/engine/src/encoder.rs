//! An encoder behind a bounded queue: one thread that embeds one text after another. Not the decoder's queue and worker,
//! which share nothing with it: a text takes milliseconds, grows no KV memory and is never preempted. First come, first
//! served; a request stands in line with a bounded number of its texts, so none is far from its turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::pooling::Pooling;
use super::rate::ServiceRate;
use crate::metrics::{Metrics, RejectLabel};
use tallow_model::encoder::Encoder;
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::TokenId;

/// A thread that embeds, and the queue before it.
pub struct EncoderPool {
    encoder: Arc<Encoder>,
    jobs: SyncSender<Job>,
    shared: Arc<EncoderShared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and its callers both see.
struct EncoderShared {
    metrics: Arc<Metrics>,
    began: Instant,
    // A std mutex: it is held for a few additions.
    rate: Mutex<ServiceRate>,
    /// Tokens of the texts that wait or are computed.
    num_tokens: AtomicUsize,
    is_stopped: AtomicBool,
}

/// A vector to come, or why it does not. An end without either is the engine's.
pub type Vector = oneshot::Receiver<Result<Vec<f32>>>;

/// A text in line. `None` wakes the thread, to see that it is to end.
type Job = Option<Text>;

struct Text {
    tokens: Vec<TokenId>,
    /// Until when it is willing to wait.
    deadline: Option<Instant>,
    vector: oneshot::Sender<Result<Vec<f32>>>,
}

impl EncoderPool {
    /// Starts the thread. At most `queue_max` texts wait.
    ///
    /// # Errors
    /// If there are no threads to be had.
    pub fn start(encoder: Encoder, queue_max: usize, metrics: Arc<Metrics>) -> Result<Self> {
        let encoder = Arc::new(encoder);
        let (jobs, received) = sync_channel(queue_max.max(1));
        let shared = Arc::new(EncoderShared {
            metrics,
            began: Instant::now(),
            rate: Mutex::default(),
            num_tokens: AtomicUsize::new(0),
            is_stopped: AtomicBool::new(false),
        });
        let (model, state) = (encoder.clone(), shared.clone());
        let thread = std::thread::Builder::new().name("encoder".to_owned());
        let thread = thread.spawn(move || run(&model, &received, &state));
        let thread = Mutex::new(Some(thread.map_err(|e| Error::io("the encoder's thread cannot be started", e))?));
        Ok(Self { encoder, jobs, shared, thread })
    }

    /// The model.
    pub fn encoder(&self) -> &Arc<Encoder> {
        &self.encoder
    }

    /// Takes the tokens of a text and embeds them; its vector, of length 1, comes through what is returned. Who drops that wants it no
    /// longer.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when the queue is full, with the time to come back; [`ErrorKind::Unavailable`] at the
    /// end.
    pub fn submit(&self, tokens: Vec<TokenId>, deadline: Option<Instant>) -> Result<Vector> {
        if self.shared.is_stopped.load(Ordering::Acquire) {
            return Err(stopped());
        }
        let (vector, receiver) = oneshot::channel();
        let num_tokens = tokens.len();
        // Before it is sent: the thread may be through with it in this moment.
        self.shared.accepted(num_tokens);
        match self.jobs.try_send(Some(Text { tokens, deadline, vector })) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => {
                let retry_after_ms = self.shared.retry_after_ms(num_tokens);
                self.shared.left(num_tokens, false);
                self.shared.metrics.requests_rejected.inc();
                self.shared.metrics.rejects.get_or_create(&RejectLabel::QUEUE_FULL).inc();
                Err(Error::overloaded("the encoder's queue is full", retry_after_ms))
            }
            Err(TrySendError::Disconnected(_)) => {
                self.shared.left(num_tokens, false);
                Err(stopped())
            }
        }
    }

    /// Ends what waits, and the thread when it is through with the text that it has. Blocks until then; may be called
    /// again.
    pub fn shutdown(&self) {
        self.shared.is_stopped.store(true, Ordering::Release);
        // A full queue needs no waking.
        let _ = self.jobs.try_send(None);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It catches what panics.
            let _ = thread.join();
        }
    }
}

impl Drop for EncoderPool {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for EncoderPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderPool").field("encoder", &self.encoder).finish_non_exhaustive()
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the server is shutting down")
}

impl EncoderShared {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn accepted(&self, num_tokens: usize) {
        self.num_tokens.fetch_add(num_tokens, Ordering::Relaxed);
        self.rate.lock().unwrap_or_else(PoisonError::into_inner).on_accepted(self.now());
    }

    fn left(&self, num_tokens: usize, is_served: bool) {
        self.num_tokens.fetch_sub(num_tokens, Ordering::Relaxed);
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if is_served { rate.on_served(num_tokens, self.now()) } else { rate.on_abandoned(self.now()) }
    }

    /// When half of what waits should be done, so that it is worth coming back.
    fn retry_after_ms(&self, num_tokens: usize) -> u64 {
        let waiting = self.num_tokens.load(Ordering::Relaxed).saturating_sub(num_tokens);
        self.rate.lock().unwrap_or_else(PoisonError::into_inner).retry_after_ms(waiting / 2, self.now())
    }
}

/// The thread, until there is an end.
fn run(encoder: &Encoder, jobs: &Receiver<Job>, shared: &EncoderShared) {
    while let Ok(job) = jobs.recv() {
        if shared.is_stopped.load(Ordering::Acquire) {
            // This text and those that wait are dropped with the channel, and their callers hear of it.
            return;
        }
        if let Some(text) = job {
            answer(encoder, text, shared);
        }
    }
}

fn answer(encoder: &Encoder, text: Text, shared: &EncoderShared) {
    let Text { tokens, deadline, vector } = text;
    let num_tokens = tokens.len();
    if vector.is_closed() {
        return shared.left(num_tokens, false);
    }
    if deadline.is_some_and(|deadline| deadline < Instant::now()) {
        shared.left(num_tokens, false);
        shared.metrics.queue_timeouts.inc();
        let late = Error::new(ErrorKind::QueueTimeout, "the encoder did not come to the text in time");
        drop(vector.send(Err(late)));
        return;
    }
    // After a panic it goes on: the model is only read.
    let embedded = catch_unwind(AssertUnwindSafe(|| embed(encoder, &tokens)));
    let embedded = embedded.unwrap_or_else(|_| Err(Error::internal("the encoder failed")));
    if embedded.is_ok() {
        shared.metrics.embeddings.inc();
        shared.metrics.embedding_tokens.inc_by(num_tokens as u64);
    }
    shared.left(num_tokens, true);
    // Its caller may have left meanwhile.
    drop(vector.send(embedded));
}

fn embed(encoder: &Encoder, tokens: &[TokenId]) -> Result<Vec<f32>> {
    let mut pooling = Pooling::default();
    pooling.add(&encoder.hidden_states(tokens)?, tokens.len());
    pooling.finish()
}
