//! One sequence's part in a step: from a row of logits to its next token and the event that shows it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::constrain::{self, Constrained, LaneAnswer, Question};
use crate::embedding::Vector;
use crate::held::SETTLED_TOKENS;
use crate::masks::Masks;
use crate::metrics::Metrics;
use crate::output::Output;
use crate::parts::CoreParts;
use crate::pooling::Pooling;
use crate::sampling::grammar::Next;
use crate::sampling::{Draw, Sampled, Sampler, SeenTokens, TokenMask};
use crate::scheduler::{Planned, Scheduler};
use crate::writer::Writer;
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::{Event, FinishReason, SamplingParams, Tenant, TokenId, TokenLogprob};

/// A sequence ends that has waited for masks for so long in all ...
const LATE_TIME_MAX: Duration = Duration::from_secs(30);
/// ... and this for each of its tokens. On a busy machine the slow lane gets 6 % of a core, so a mask of 10 ms takes 0.16 s.
/// Grammars that fill the lane wait for longer, and must not hold places in the worker for as long as they like.
const LATE_TIME_PER_TOKEN: Duration = Duration::from_secs(1);

/// A request in flight, as far as the scheduler need not know it.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) tenant: Tenant,
    /// Whether it came back from a lost worker.
    pub(super) has_returned: bool,
    /// Tokens that were there when this worker got it.
    pub(super) num_tokens_before: usize,
    pub(super) writer: Writer,
    pub(super) output: Output,
    pub(super) sampling: SamplingParams,
    pub(super) seen: SeenTokens,
    pub(super) constrained: Option<Constrained>,
    /// Logits to sample from once the mask is there, and since when they wait.
    pub(super) held: Option<HeldRow>,
    /// What was sampled, while a lane works out whether the grammar goes on behind it, and how.
    pub(super) sampled: Option<Sampled>,
    /// How long it has waited for masks that came.
    pub(super) late_time: Duration,
    pub(super) seed: u64,
    pub(super) num_tokens_max: usize,
    pub(super) accepted_at: Duration,
    pub(super) cancelled_at: Arc<OnceLock<Duration>>,
    pub(super) last_token_at: Option<Duration>,
    /// Of the prompt's tokens so far, where they were asked for.
    pub(super) prompt_logprobs: Vec<TokenLogprob>,
    /// Of what is embedded: its states so far, and where its vector goes.
    pub(super) embedded: Option<(Pooling, Vector)>,
}

/// Logits whose mask is late.
#[derive(Debug)]
pub(super) struct HeldRow {
    pub(super) row: Vec<f32>,
    /// Since when the mask is waited for; `None` once it is there.
    pub(super) since: Option<Duration>,
}

/// What a sequence needs to take its next token.
pub(super) struct TokenTurn<'a> {
    pub(super) planned: Planned,
    pub(super) sampler: &'a mut Sampler,
    pub(super) scheduler: &'a mut Scheduler,
    pub(super) parts: &'a CoreParts,
    /// Whether a lane accepts the token.
    pub(super) defers: bool,
    pub(super) now: Duration,
}

/// How a sequence ends.
#[derive(Debug)]
pub(super) enum SequenceEnd {
    Done(FinishReason),
    Cancelled,
    Failed(ErrorKind, String),
}

impl Generation {
    /// Notes how likely these tokens of the prompt were.
    pub(super) fn measure<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        tokens: impl Iterator<Item = TokenId>,
        sampler: &mut Sampler,
    ) -> Option<SequenceEnd> {
        let num_top = self.sampling.prompt_logprobs?;
        // All rows are taken, whatever is in them: the next sequence's follow.
        let measured: Vec<_> = rows.zip(tokens).map(|(row, token)| sampler.measure(row, token, num_top)).collect();
        for logprob in measured {
            match logprob {
                Ok(logprob) => self.prompt_logprobs.push(logprob),
                Err(e) => return Some(SequenceEnd::Failed(e.kind(), e.message().to_owned())),
            }
        }
        None
    }

    /// Whether its mask, if it needs one, is not there.
    pub(super) fn lacks_mask(&self) -> bool {
        self.constrained.as_ref().is_some_and(|constrained| !constrained.is_known())
    }

    /// Whether a lost worker would not be blamed on it: see [`crate::takeover`].
    pub(super) fn is_settled(&self) -> bool {
        let num_tokens = self.output.num_tokens() - self.num_tokens_before;
        num_tokens >= if self.has_returned { SETTLED_TOKENS } else { 1 }
    }

    /// Keeps the row that it cannot sample from yet.
    pub(super) fn hold(&mut self, row: &[f32], now: Duration) {
        let since = self.held.as_ref().and_then(|held| held.since).or(Some(now));
        self.held = Some(HeldRow { row: row.to_vec(), since });
    }

    /// Has a lane accept what was sampled, where that is deferred.
    pub(super) fn ask_deferred(&mut self, slot: usize, masks: &mut Masks, metrics: &Arc<Metrics>) {
        if let Some(constrained) = self.constrained.as_mut().filter(|_| self.sampled.is_some()) {
            masks.ask(slot, self.tenant, constrained, metrics);
        }
    }

    /// Takes the answer to its question about the next token, if that is its own; else the matcher is returned.
    pub(super) fn take_answer(&mut self, ticket: u64, question: Question, now: Duration) -> Option<Question> {
        let Some(constrained) = &mut self.constrained else { return Some(question) };
        let stale = constrained.take_answer(ticket, question);
        if constrained.is_known()
            && let Some(since) = self.held.as_mut().and_then(|held| held.since.take())
        {
            self.late_time += now.saturating_sub(since);
        }
        stale
    }

    /// Its end, if its masks are late beyond all bounds.
    pub(super) fn check_late(&self, now: Duration) -> Option<SequenceEnd> {
        let late_time = self.late_time + now.saturating_sub(self.held.as_ref()?.since?);
        let num_tokens = u32::try_from(self.output.num_tokens()).unwrap_or(u32::MAX);
        (late_time > LATE_TIME_MAX + LATE_TIME_PER_TOKEN * num_tokens).then(|| {
            let seconds = late_time.as_secs();
            let message = format!(
                "the grammar of this request is too expensive: its {num_tokens} tokens have waited {seconds} s for what may \
                 come next"
            );
            SequenceEnd::Failed(ErrorKind::InvalidRequest, message)
        })
    }

    /// Takes the next token, and what its grammar forces behind it. With a slow grammar it only samples, and keeps the row
    /// until the lane has accepted the token.
    pub(super) fn sample(&mut self, row: &mut [f32], turn: &mut TokenTurn<'_>) -> Option<SequenceEnd> {
        if self.sampling.prompt_logprobs.take().is_some() {
            self.writer.append(Event::Prompt { logprobs: std::mem::take(&mut self.prompt_logprobs) });
        }
        let taken = self.take(row, turn);
        if let Some(event) = self.output.take_event() {
            self.writer.append(Event::Token(event));
        }
        match taken {
            Ok(reason) => reason.map(SequenceEnd::Done),
            Err(e) => Some(SequenceEnd::Failed(e.kind(), e.message().to_owned())),
        }
    }

    fn take(&mut self, row: &mut [f32], turn: &mut TokenTurn<'_>) -> Result<Option<FinishReason>> {
        let Some(constrained) = &mut self.constrained else {
            let sampled = self.draw(row, None, turn)?;
            return Ok(self.push(sampled, turn));
        };
        match constrained.take_next()? {
            LaneAnswer::Next(Next::Complete) => Ok(Some(self.output.close())),
            LaneAnswer::Next(Next::Forced(tokens)) => Ok(self.force(&tokens, turn)),
            LaneAnswer::Next(Next::Sample(mask)) => {
                let mask = constrain::without(mask, self.output.banned_with(&turn.parts.end_of_generation));
                let sampled = self.draw(row, Some(&mask), turn)?;
                let accepted =
                    self.constrained.as_mut().map(|constrained| constrained.accept(sampled.token, turn.defers));
                if let Some(forced) = accepted.transpose()?.flatten() {
                    return Ok(self.push_accepted(sampled, &forced, turn));
                }
                self.sampled = Some(sampled);
                self.hold(row, turn.now);
                Ok(None)
            }
            LaneAnswer::Accepted(forced) => {
                let sampled = self.sampled.take();
                let sampled = sampled.ok_or_else(|| Error::internal("a token was accepted that was not sampled"))?;
                Ok(self.push_accepted(sampled, &forced, turn))
            }
        }
    }

    fn draw(&self, row: &mut [f32], allowed: Option<&TokenMask>, turn: &mut TokenTurn<'_>) -> Result<Sampled> {
        let draw = Draw {
            params: &self.sampling,
            seen: &self.seen,
            // Taken out of what is allowed already.
            banned: if allowed.is_some() { &[] } else { self.output.banned() },
            allowed,
            seed: self.seed,
            position: self.output.num_tokens() as u64,
        };
        turn.sampler.sample(row, &draw)
    }

    /// Appends a token that the grammar has accepted, and what it forces behind it.
    fn push_accepted(
        &mut self,
        sampled: Sampled,
        forced: &[TokenId],
        turn: &mut TokenTurn<'_>,
    ) -> Option<FinishReason> {
        let reason = self.push(sampled, turn);
        let is_complete = forced.is_empty() && self.constrained.as_ref().is_some_and(Constrained::is_complete);
        match constrain::end(reason, is_complete, &mut self.output) {
            None => self.force(forced, turn),
            reason => reason,
        }
    }

    /// Appends a sampled token.
    fn push(&mut self, sampled: Sampled, turn: &mut TokenTurn<'_>) -> Option<FinishReason> {
        let token = sampled.token;
        self.count_token(&turn.parts.metrics, turn.now);
        self.seen.push(token);
        turn.scheduler.push_token(turn.planned, token);
        self.output.push(sampled, &turn.parts.tokenizer)
    }

    /// Appends tokens that must come.
    fn force(&mut self, tokens: &[TokenId], turn: &mut TokenTurn<'_>) -> Option<FinishReason> {
        let parts = turn.parts;
        for (index, &token) in tokens.iter().enumerate() {
            self.writer.usage.completion_tokens += 1;
            parts.metrics.completion_tokens.inc();
            parts.metrics.forced_tokens.inc();
            self.seen.push(token);
            turn.scheduler.push_forced(turn.planned, token);
            let reason = self.output.push(Sampled { token, logprob: None }, &parts.tokenizer);
            let is_last = index + 1 == tokens.len();
            let is_complete = is_last && self.constrained.as_ref().is_some_and(Constrained::is_complete);
            if let Some(reason) = constrain::end(reason, is_complete, &mut self.output) {
                return Some(reason);
            }
        }
        None
    }

    fn count_token(&mut self, metrics: &Metrics, now: Duration) {
        self.writer.usage.completion_tokens += 1;
        metrics.completion_tokens.inc();
        let since = |then: Duration| now.saturating_sub(then).as_secs_f64();
        match self.last_token_at.replace(now) {
            None => metrics.ttft_seconds.observe(since(self.accepted_at)),
            Some(last) => metrics.itl_seconds.observe(since(last)),
        }
    }
}
