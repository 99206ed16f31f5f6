//! What becomes of a worker's sequences when the worker is lost: by a panic, a failed device, or a step that hangs.
//!
//! ```text
//! the culprit, if there is one -> ends, with an error that says so
//! every other sequence         -> back into the queue, before all others of its owner, with the tokens that were shown;
//!                                 draws follow from seed and position, so the text goes on with the same bytes
//! ```
//!
//! The culprit is the sequence that the worker was working for alone (admitting, embedding, sampling); in a step of the
//! model it is the only sequence of the step that is not *settled*. A newcomer is settled once it has a token from its
//! worker, a sequence that came back from a lost worker once it has [`SETTLED_TOKENS`](super::held::SETTLED_TOKENS) of them. If several are not settled,
//! or none, nobody is blamed, and all come back.
//!
//! A sequence that came back begins only while every other sequence of its worker is settled, and nothing new begins before it
//! is settled itself ([`super::core`]). What a request did once it does again, as its text is replayed; so the next loss has a
//! culprit. Each loss ends one request, or each request gets some tokens further: no request can keep losing workers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::constrain;
use super::embedding::Vector;
use super::held::Held;
use super::output::Output;
use super::parts::CoreParts;
use super::queue::Returned;
use super::writer::Writer;
use crate::cache::HashChain;
use crate::sampling::grammar::Grammar;
use tallow_stream::error::ErrorKind;
use tallow_stream::protocol::{FinishReason, Usage, ValidRequest};

/// Hands a lost worker's sequences back to the queue, but for the one in `culprit`'s slot, which ends. `what` says what
/// happened to the worker.
pub(super) fn hand_over(lost: Vec<Held>, culprit: Option<usize>, what: &str, parts: &CoreParts) {
    for held in lost {
        let writer = Writer::again(held.log.clone(), parts.queue.writer_shared());
        let is_culprit = culprit == Some(held.slot);
        // If it panics, the writer ends the stream as it is dropped, and the others go on.
        let handed = catch_unwind(AssertUnwindSafe(|| {
            if is_culprit { end(held, writer, what, parts) } else { give_back(held, writer, parts) }
        }));
        if handed.is_err() {
            tracing::error!("a sequence of a lost worker could not be handed over");
        }
    }
}

fn end(held: Held, mut writer: Writer, what: &str, parts: &CoreParts) {
    let num_reserved = held.origin.request.num_tokens_max();
    tracing::error!(stream = %held.log.id(), "ended as the cause of a lost worker: {what}");
    writer.usage = usage_of(&held.into_origin().request);
    parts.queue.on_lost(writer.log().tenant(), num_reserved, writer.usage.num_computed());
    writer.failed(ErrorKind::Internal, format!("{what}, and this request was the cause"));
}

fn give_back(held: Held, mut writer: Writer, parts: &CoreParts) {
    let tenant = held.log.tenant();
    // It is charged anew.
    parts.queue.on_lost(tenant, held.origin.request.num_tokens_max(), 0);
    let mut origin = held.into_origin();
    origin.has_returned = true;
    writer.usage = usage_of(&origin.request);
    if origin.vector.as_ref().is_some_and(Vector::is_filled) {
        return writer.done(FinishReason::Stop, None);
    }
    if let Some((finish_reason, usage, stop)) = end_of(&origin.request, origin.grammar.as_deref(), parts) {
        writer.usage = usage;
        return writer.done(finish_reason, stop);
    }
    let chain = origin.is_named.then(|| HashChain::new(tenant, &origin.request.prompt));
    parts.queue.give_back(Returned { origin, chain, writer });
}

/// What a resumed request has spent so far.
fn usage_of(request: &ValidRequest) -> Usage {
    let resumed = request.resumed.unwrap_or_default();
    Usage {
        prompt_tokens: request.num_prompt_tokens(),
        cached_tokens: resumed.cached_tokens.unwrap_or_default(),
        completion_tokens: resumed.num_emitted,
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
    // What was held back has been shown: by a token that ended the text, is counted, and is no part of it.
    let is_stopped = replayed.text_bytes < resumed.text_bytes;
    // Elsewhere it makes no difference: a text that is complete ends when its next mask is asked for.
    let may_be_complete = replayed.end == Some(FinishReason::Length) || (replayed.end.is_none() && is_stopped);
    let is_complete = may_be_complete && grammar.is_some_and(|g| constrain::is_complete(g, emitted, &request.sampling));
    let reason = replayed.end.or(is_stopped.then_some(FinishReason::Stop));
    let finish_reason = constrain::end(reason, is_complete, &mut output)?;
    let mut usage = usage_of(request);
    usage.completion_tokens += usize::from(is_stopped && replayed.end.is_none() && !is_complete);
    Some((finish_reason, usage, output.stop_string().map(str::to_owned)))
}
