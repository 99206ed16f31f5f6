//! What becomes of a worker's sequences when the worker is lost: by a panic, a failed device, or a step that hangs.
//!
//! ```text
//! the culprit, if there is one -> ends, with an error that says so
//! every other sequence         -> back into the queue, before everything that waits there, with the tokens that were
//!                                 shown; draws follow from seed and position, so the text goes on with the same bytes
//! ```
//!
//! The culprit is, in this order:
//!
//! 1. the sequence that the worker was working for alone (admitting, embedding, sampling);
//! 2. in a step of the model, the only sequence that has not got a token from this worker yet;
//! 3. the only suspect in the step: a sequence that was present at [`SUSPECT_LOSSES`] losses without a culprit.
//!
//! A worker runs one suspect at a time ([`super::core`]). So each loss either ends one request or makes every request that
//! was present more suspect, and no request can keep losing workers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::constrain;
use super::core::CoreParts;
use super::output::Output;
use super::queue::Returned;
use super::writer::Writer;
use crate::cache::HashChain;
use crate::error::ErrorKind;
use crate::protocol::{Event, FinishReason, Resumed, Usage, ValidRequest};
use crate::sampling::grammar::Grammar;
use crate::stream::StreamLog;

/// Losses without a culprit after which a sequence that was present each time is a suspect.
pub(super) const SUSPECT_LOSSES: u32 = 2;

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
    /// Whether the prefix cache may know its blocks.
    pub(super) is_named: bool,
    pub(super) accepted_at: Duration,
    pub(super) cancelled_at: Arc<OnceLock<Duration>>,
    /// Losses without a culprit at which it was present.
    pub(super) num_losses: u32,
}

impl Held {
    /// Nothing shown yet.
    pub(super) fn new(log: Arc<StreamLog>, slot: usize, origin: Origin) -> Self {
        let (emitted, text_bytes, cached_tokens, has_told_prompt) = (Vec::new(), 0, None, false);
        Self { log, slot, origin, emitted, text_bytes, cached_tokens, has_told_prompt }
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
            Event::Queued { .. } | Event::Embedding { .. } | Event::Done { .. } | Event::Error(_) => {}
        }
    }

    /// The request as it stands, with what was shown behind its prompt.
    fn into_origin(self) -> Origin {
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

/// Hands a lost worker's sequences back to the queue, but for the one in `culprit`'s slot, which ends. `what` says what
/// happened to the worker.
pub(super) fn hand_over(lost: Vec<Held>, culprit: Option<usize>, what: &str, parts: &CoreParts) {
    for held in lost {
        let tenant = held.log.tenant();
        let num_reserved = held.origin.request.num_tokens_max();
        let mut writer = Writer::again(held.log.clone(), parts.queue.writer_shared());
        if culprit == Some(held.slot) {
            let request = &held.origin.request;
            let (prompt_tokens, cached_tokens) = (request.num_prompt_tokens(), held.cached_tokens.unwrap_or_default());
            let completion_tokens = held.emitted.len() + request.resumed.map_or(0, |resumed| resumed.num_emitted);
            writer.usage = Usage { prompt_tokens, cached_tokens, completion_tokens };
            parts.queue.on_lost(tenant, num_reserved, writer.usage.num_computed());
            tracing::error!(stream = %held.log.id(), "ended as the cause of a lost worker: {what}");
            writer.failed(ErrorKind::Internal, format!("{what}, and this request was the cause"));
            continue;
        }
        // It is charged anew.
        parts.queue.on_lost(tenant, num_reserved, 0);
        let mut origin = held.into_origin();
        origin.num_losses += u32::from(culprit.is_none());
        if let Some((finish_reason, usage, stop)) = end_of(&origin.request, origin.grammar.as_deref(), parts) {
            writer.usage = usage;
            writer.done(finish_reason, stop);
            continue;
        }
        tracing::warn!(stream = %writer.log().id(), "goes on with another worker");
        parts.metrics.requests_taken_over.inc();
        let chain = origin.is_named.then(|| HashChain::new(tenant, &origin.request.prompt));
        parts.queue.give_back(Returned { origin, chain, writer });
    }
}

/// How a resumed request ends that has sampled all it may: its end was computed, and lost with the worker or the process
/// before it could be told.
pub(super) fn end_of(
    request: &ValidRequest,
    grammar: Option<&Grammar>,
    parts: &CoreParts,
) -> Option<(FinishReason, Usage, Option<String>)> {
    let resumed = request.resumed?;
    let mut output = Output::new(request.stop.clone(), request.max_tokens, &parts.end_of_generation);
    let prompt_tokens = request.num_prompt_tokens();
    let emitted = &request.prompt[prompt_tokens..];
    let replayed = output.replay(emitted, &parts.tokenizer);
    let is_complete = grammar.is_some_and(|g| constrain::is_complete(g, emitted, &request.sampling));
    // What was held back has been shown: by a token that ended the text, is counted, and is no part of it.
    let is_stopped = replayed.text_bytes < resumed.text_bytes;
    let reason = replayed.end.or(is_stopped.then_some(FinishReason::Stop));
    let finish_reason = constrain::end(reason, is_complete, &mut output)?;
    let cached_tokens = resumed.cached_tokens.unwrap_or_default();
    let num_ends = usize::from(is_stopped && replayed.end.is_none() && !is_complete);
    let usage = Usage { prompt_tokens, cached_tokens, completion_tokens: resumed.num_emitted + num_ends };
    Some((finish_reason, usage, output.stop_string().map(str::to_owned)))
}

#[cfg(test)]
impl Held {
    /// Of a request of two tokens.
    pub(super) fn for_test(log: Arc<StreamLog>, slot: usize) -> Self {
        use crate::protocol::{OnDisconnect, QueueTerms, SamplingParams, StopParams, Task};
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
            task: Task::Generate,
        };
        let (accepted_at, cancelled_at) = (Duration::ZERO, Arc::default());
        let origin = Origin { request, grammar: None, is_named: false, accepted_at, cancelled_at, num_losses: 0 };
        Self::new(log, slot, origin)
    }
}
