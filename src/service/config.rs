//! What the service may be asked to do.

use std::sync::Arc;
use std::time::Duration;

use super::BackgroundLimits;
use crate::protocol::Owner;
use crate::settings;
use crate::settings::{COUNT_MAX, HOUR_MS, Kind, count, millis, setting};

/// Longest wait for a worker that a request may ask for: a client that would wait longer comes back.
pub(super) const QUEUE_TIMEOUT_MS_MAX: u64 = HOUR_MS;

settings! {
    /// The bounds of a request. `Default` fits a server of the house.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ServiceConfig {
        /// Default for `max_tokens`; auto means up to the context limit.
        pub max_tokens_default: Option<usize> = None
            => setting("requests.max_tokens_default", "max-tokens-default", count(1, COUNT_MAX, "tokens").or("auto"));
        /// Most generations that one request may ask for: its prompts times n, or best_of.
        pub choices_max: usize = 128 => setting("requests.choices_max", "choices-max", count(1, COUNT_MAX, "choices"));
        /// Most texts of one request.
        pub embedding_inputs_max: usize = 2048
            => setting("embeddings.inputs_max", "embedding-inputs-max", count(1, COUNT_MAX, "texts"));
        /// So many of them wait or run at once: a quarter of the encoder's queue, so that one request does not fill it.
        pub embedding_inputs_at_once: usize = 64;
        /// Longest time a stream may run on without readers.
        pub linger_ms_max: u64 = HOUR_MS => setting("requests.linger_ms_max", "linger-ms-max", millis(0, 24 * HOUR_MS));
        /// How long a request waits for a worker unless it sends `x-queue-timeout`; then 503.
        pub queue_timeout_ms: u64 = 300_000
            => setting("requests.queue_timeout_ms", "queue-timeout-ms", millis(0, QUEUE_TIMEOUT_MS_MAX));
        /// How long a cancellation may take to be on disk: longer than any commit of a disk that works.
        pub cancel_wait: Duration = Duration::from_secs(10);
        /// Everybody who may ask; limits are theirs.
        pub owners: Vec<Arc<Owner>> = vec![Arc::new(Owner::anonymous())];
        /// What is about more bytes (bodies, prompts, answers) is worked on away from the async threads. Tokenising runs at
        /// some MB/s, so this keeps an async thread for about a millisecond.
        pub inline_bytes_max: usize = 4096;
        /// The threads that do this, and how much may wait for them.
        pub background: BackgroundLimits = BackgroundLimits::default();
        /// Log prompts as the model sees them.
        pub log_prompts: bool = false => setting("log.prompts", "log-prompts", Kind::Bool);
    }
}
