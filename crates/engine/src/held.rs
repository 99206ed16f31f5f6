//! A sequence that a worker holds, as far as anybody else must know it: enough to go on with it elsewhere when the worker is
//! lost. What is done with it then stands in `takeover`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::embedding::Vector;
use crate::sampling::grammar::Grammar;
use tallow_stream::StreamLog;
use tallow_stream::protocol::{Event, Resumed, ValidRequest};

/// Tokens that a sequence must get after a loss before it is above suspicion: more than can be held back when it is replayed,
/// which is the longest stop string, in most cases.
pub(super) const SETTLED_TOKENS: usize = 16;

/// A sequence that a worker holds: what it was asked, and what of its text was shown since. Enough to go on elsewhere.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) log: Arc<StreamLog>,
    pub(super) slot: usize,
    pub(super) origin: Origin,
    /// Tokens shown by this worker, and the length of their text.
    emitted: Vec<u32>,
    text_bytes: usize,
    cached_tokens: Option<usize>,
    has_told_prompt: bool,
}

/// A request as a worker took it from the queue.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) request: ValidRequest,
    pub(super) grammar: Option<Arc<Grammar>>,
    /// Where its vector goes, if it is a text to embed.
    pub(super) vector: Option<Vector>,
    /// Whether the prefix cache may know its blocks.
    pub(super) is_named: bool,
    pub(super) accepted_at: Duration,
    pub(super) cancelled_at: Arc<OnceLock<Duration>>,
    /// Whether it came back from a lost worker, and was not settled since.
    pub(super) has_returned: bool,
}

impl Held {
    /// Nothing shown yet.
    pub(super) fn new(log: Arc<StreamLog>, slot: usize, origin: Origin) -> Self {
        Self { log, slot, origin, emitted: Vec::new(), text_bytes: 0, cached_tokens: None, has_told_prompt: false }
    }

    /// Notes an event that its readers get.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Started { cached_tokens, .. } => self.cached_tokens = Some(*cached_tokens),
            Event::Token(token) => {
                self.emitted.extend_from_slice(&token.tokens);
                self.text_bytes += token.text.len();
            }
            Event::Prompt { .. } => self.has_told_prompt = true,
            Event::Queued { .. } | Event::Done { .. } | Event::Error(_) => {}
        }
    }

    /// The request as it stands, with what was shown behind its prompt.
    pub(super) fn into_origin(self) -> Origin {
        let mut origin = self.origin;
        let before = origin.request.resumed.unwrap_or_default();
        origin.request.prompt.extend_from_slice(&self.emitted);
        origin.request.resumed = Some(Resumed {
            num_emitted: before.num_emitted + self.emitted.len(),
            text_bytes: before.text_bytes + self.text_bytes,
            cached_tokens: before.cached_tokens.or(self.cached_tokens),
        });
        if self.has_told_prompt {
            origin.request.sampling.prompt_logprobs = None;
        }
        // It has waited already.
        origin.request.queue.timeout_ms = None;
        origin
    }
}

#[cfg(test)]
impl Held {
    /// Of a request of two tokens.
    pub(super) fn for_test(log: Arc<StreamLog>, slot: usize) -> Self {
        use tallow_stream::protocol::{OnDisconnect, QueueTerms, SamplingParams, StopParams};
        let request = ValidRequest {
            id: log.id(),
            tenant: log.tenant(),
            prompt: vec![97, 98],
            max_tokens: 9,
            sampling: SamplingParams { seed: Some(1), ..SamplingParams::default() },
            stop: StopParams::default(),
            on_disconnect: OnDisconnect::Detach,
            queue: QueueTerms::default(),
            constraint: None,
            leader: None,
            resumed: None,
        };
        let (accepted_at, cancelled_at) = (Duration::ZERO, Arc::default());
        let origin = Origin {
            request,
            grammar: None,
            vector: None,
            is_named: false,
            accepted_at,
            cancelled_at,
            has_returned: false,
        };
        Self::new(log, slot, origin)
    }
}
