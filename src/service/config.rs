//! What the service may be asked to do.

use std::sync::Arc;

use super::BackgroundLimits;
use crate::protocol::Owner;

/// The bounds of a request. `Default` fits a server of the house.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Whether prompts, as the model sees them, go to the log.
    pub(crate) log_prompts: bool,
    /// Tokens a request may sample if it does not say; `None` goes on to the context limit.
    pub(crate) max_tokens_default: Option<usize>,
    /// Most generations that one request may ask for.
    pub choices_max: usize,
    /// Most texts of one request to be embedded ...
    pub embedding_inputs_max: usize,
    /// ... of which so many wait or run at once: one request must not fill the queue.
    pub embedding_inputs_at_once: usize,
    /// Most tools of a request.
    pub(crate) tools_max: usize,
    /// Most stop strings.
    pub(crate) stop_strings_max: usize,
    /// Longest stop string, in bytes; this much text may be held back.
    pub(crate) stop_string_bytes_max: usize,
    /// Most stop tokens.
    pub(crate) stop_tokens_max: usize,
    /// Most tokens with a bias.
    pub(crate) logit_bias_max: usize,
    /// Most rivals whose log-probability is reported.
    pub(crate) top_logprobs_max: usize,
    /// Longest grace time of a lingering stream, in milliseconds.
    pub(crate) linger_ms_max: u64,
    /// How long a request waits for a worker if it does not say, in milliseconds.
    pub queue_timeout_ms: u64,
    /// How long it may ask to wait at most.
    pub(crate) queue_timeout_ms_max: u64,
    /// How long a cancellation may take to be kept, in milliseconds.
    pub cancel_wait_ms: u64,
    /// Everybody who may ask; limits are theirs.
    pub owners: Vec<Arc<Owner>>,
    /// What is about more bytes (bodies, prompts, answers) is worked on away from the async threads.
    pub inline_bytes_max: usize,
    /// The threads that do this, and how much may wait for them.
    pub background: BackgroundLimits,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            log_prompts: false,
            max_tokens_default: None,
            choices_max: 128,
            embedding_inputs_max: 2048,
            embedding_inputs_at_once: 64,
            tools_max: 128,
            stop_strings_max: 4,
            stop_string_bytes_max: 1024,
            stop_tokens_max: 128,
            logit_bias_max: 1024,
            top_logprobs_max: 20,
            linger_ms_max: 3_600_000,
            queue_timeout_ms: 300_000,
            queue_timeout_ms_max: 3_600_000,
            cancel_wait_ms: 10_000,
            owners: vec![Arc::new(Owner::anonymous())],
            // Tokenising runs at some MB/s, so this keeps an async thread for about a millisecond.
            inline_bytes_max: 4096,
            background: BackgroundLimits::default(),
        }
    }
}
