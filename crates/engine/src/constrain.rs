//! Sequences that keep to a grammar: which tokens may come next, which must, and when a text is complete.
//!
//! A matcher is in one place at a time: with its sequence, or in a lane (`masks`), which works out which tokens may
//! come next. Tokens that a grammar forces are appended without being sampled, and the scheduler computes them together
//! with the token before. This is not done if the request asked for log-probabilities: those exist only for sampled
//! tokens.
//!
//! The step itself makes the matcher accept a sampled token, which takes microseconds. If the grammar is slow, the lane
//! does that too, and the sequence sits out until the matcher comes back.

use std::sync::Arc;
use std::time::Duration;

use super::output::Output;
use crate::sampling::TokenMask;
use crate::sampling::grammar::{Grammar, Matcher, Next, STACK_BYTES};
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::{FinishReason, SamplingParams, TokenId};

/// A grammar counts as slow once a mask, or accepting a token, takes more processor time than this. The slow lane does
/// all further work for it. Grammars of real schemas take 0.05 to 1 ms.
const SLOW: Duration = Duration::from_millis(3);

/// A sequence's grammar, and the place that its text has reached in it.
#[derive(Debug)]
pub(super) struct Constrained {
    state: ConstrainedState,
}

#[derive(Debug)]
enum ConstrainedState {
    /// The matcher is here, and no lane was asked for the next tokens.
    Here(Question),
    /// The matcher is in a lane, under this ticket.
    Asked(u64),
    /// The matcher is here, with the lane's answer.
    Known(Question),
}

/// The place that a text has reached in its grammar, and the tokens that may come next, once a lane has worked them
/// out.
#[derive(Debug)]
pub(super) struct Question {
    grammar: Arc<Grammar>,
    fast_forward: bool,
    /// `None` if working it out failed.
    place: Option<TextPlace>,
    /// A sampled token that the matcher has not seen.
    sampled: Option<TokenId>,
    next: Option<Result<LaneAnswer>>,
}

/// What a lane worked out.
#[derive(Debug)]
pub(super) enum LaneAnswer {
    /// What may come next.
    Next(Next),
    /// The sampled token was accepted, and these tokens are forced after it.
    Accepted(Vec<TokenId>),
}

/// The place that a text has reached.
#[derive(Debug)]
enum TextPlace {
    /// After these tokens, which were made before this worker had the text; most often there are none.
    Behind(Vec<TokenId>),
    At(Box<Matcher>),
}

impl Constrained {
    /// A text that continues after `emitted`.
    pub(super) fn new(grammar: Arc<Grammar>, emitted: &[TokenId], sampling: &SamplingParams) -> Self {
        let place = Some(TextPlace::Behind(emitted.to_vec()));
        let question = Question { grammar, fast_forward: fast_forwards(sampling), place, sampled: None, next: None };
        Self { state: ConstrainedState::Here(question) }
    }

    /// Hands its matcher out; `None` if a lane has it already, or has answered.
    pub(super) fn ask(&mut self, ticket: u64) -> Option<Question> {
        match std::mem::replace(&mut self.state, ConstrainedState::Asked(ticket)) {
            ConstrainedState::Here(question) => Some(question),
            state => {
                self.state = state;
                None
            }
        }
    }

    /// The ticket of its question, while that is under way.
    pub(super) fn asked(&self) -> Option<u64> {
        match self.state {
            ConstrainedState::Asked(ticket) => Some(ticket),
            _ => None,
        }
    }

    /// Takes its matcher back if `ticket` is its own. Otherwise returns the matcher, whose sequence has ended.
    pub(super) fn take_answer(&mut self, ticket: u64, question: Question) -> Option<Question> {
        if self.asked() != Some(ticket) {
            return Some(question);
        }
        self.state = ConstrainedState::Known(question);
        None
    }

    /// Whether the lane's answer is here.
    pub(super) fn is_known(&self) -> bool {
        matches!(self.state, ConstrainedState::Known(_))
    }

    /// Takes the lane's answer.
    ///
    /// # Errors
    /// If the grammar fails.
    pub(super) fn take_next(&mut self) -> Result<LaneAnswer> {
        let unknown = || Error::internal("a token was sampled before its mask was known");
        match std::mem::replace(&mut self.state, ConstrainedState::Asked(u64::MAX)) {
            ConstrainedState::Known(mut question) => {
                let next = question.next.take();
                self.state = ConstrainedState::Here(question);
                next.unwrap_or_else(|| Err(unknown()))
            }
            state => {
                self.state = state;
                Err(unknown())
            }
        }
    }

    /// Whether its matcher is here and work for its grammar was slow before.
    pub(super) fn is_slow(&self) -> bool {
        matches!(&self.state, ConstrainedState::Here(question) | ConstrainedState::Known(question) if question.is_slow())
    }

    /// Makes the matcher accept a sampled token; returns the tokens that are forced after it. If `deferred`, only notes
    /// the token and returns `None`: the caller then asks a lane.
    ///
    /// # Errors
    /// If the grammar fails.
    pub(super) fn accept(&mut self, token: TokenId, deferred: bool) -> Result<Option<Vec<TokenId>>> {
        let ConstrainedState::Here(question) = &mut self.state else {
            return Err(Error::internal("no matcher to accept with"));
        };
        if deferred {
            question.sampled = Some(token);
            return Ok(None);
        }
        let began = cpu_time();
        let forced = question.accept(token);
        question.mark_if_slow(began);
        forced.map(Some)
    }

    /// Whether the text is complete, so that no token can follow.
    pub(super) fn is_complete(&self) -> bool {
        let question = match &self.state {
            ConstrainedState::Here(question) | ConstrainedState::Known(question) => question,
            ConstrainedState::Asked(_) => return false,
        };
        matches!(&question.place, Some(TextPlace::At(matcher)) if matcher.is_complete())
    }

    /// Its matcher, if it is here.
    pub(super) fn into_question(self) -> Option<Question> {
        match self.state {
            ConstrainedState::Here(question) | ConstrainedState::Known(question) => Some(question),
            ConstrainedState::Asked(_) => None,
        }
    }
}

impl Question {
    /// Whether the matcher must first go through the text so far, which may take longer than any mask.
    pub(super) fn is_at_start(&self) -> bool {
        matches!(self.place, Some(TextPlace::Behind(_)))
    }

    /// Works out the answer.
    pub(super) fn work(&mut self) {
        self.next = Some(self.find());
    }

    /// Whether work for this grammar was slow before.
    pub(super) fn is_slow(&self) -> bool {
        self.grammar.is_slow()
    }

    /// Marks the grammar as slow if the work since `began` took too much of this thread's processor time.
    pub(super) fn mark_if_slow(&self, began: Duration) {
        if cpu_time().saturating_sub(began) > SLOW {
            self.grammar.mark_slow();
        }
    }

    /// Answers with `e`, and drops the matcher.
    pub(super) fn fail(&mut self, e: Error) {
        (self.place, self.next) = (None, Some(Err(e)));
    }

    /// The question, answered with `e`.
    pub(super) fn failed(mut self, e: Error) -> Self {
        self.fail(e);
        self
    }

    fn accept(&mut self, token: TokenId) -> Result<Vec<TokenId>> {
        let Some(TextPlace::At(matcher)) = &mut self.place else {
            return Err(Error::internal("no matcher to accept with"));
        };
        self.sampled = None;
        matcher.accept(token)?;
        matcher.forced()
    }

    fn find(&mut self) -> Result<LaneAnswer> {
        match self.sampled {
            Some(token) => self.accept(token).map(LaneAnswer::Accepted),
            None => self.find_next().map(LaneAnswer::Next),
        }
    }

    fn find_next(&mut self) -> Result<Next> {
        match &mut self.place {
            Some(TextPlace::At(matcher)) => matcher.allowed(),
            Some(TextPlace::Behind(emitted)) => {
                let (mut matcher, forced) = Matcher::start(&self.grammar, emitted, self.fast_forward)?;
                let next = if forced.is_empty() { matcher.allowed()? } else { Next::Forced(forced) };
                self.place = Some(TextPlace::At(Box::new(matcher)));
                Ok(next)
            }
            None => Err(Error::internal("a matcher was asked after it failed")),
        }
    }
}

/// Processor time of this thread: wall-clock time would include the time that other threads take on a busy machine.
pub(super) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Whether forced tokens need not be sampled.
fn fast_forwards(sampling: &SamplingParams) -> bool {
    sampling.top_logprobs.is_none()
}

/// The tokens that may be sampled: those of the mask without `banned`. If that leaves no token, the grammar has the
/// last word and the whole mask is allowed.
pub(super) fn without(mask: TokenMask, banned: &[TokenId]) -> TokenMask {
    if banned.is_empty() {
        return mask;
    }
    let mut rest = mask.clone();
    rest.remove(banned);
    if rest.is_empty() { mask } else { rest }
}

/// Why a text ends, given the reason that its output gives and whether its last token completes its grammar. A complete
/// text was not cut off, so it ends with `Stop`.
pub(super) fn end(reason: Option<FinishReason>, is_complete: bool, output: &mut Output) -> Option<FinishReason> {
    match reason {
        Some(FinishReason::Length) if is_complete => Some(FinishReason::Stop),
        None if is_complete => Some(output.close()),
        reason => reason,
    }
}

/// Whether the text `emitted` is complete. An error counts as incomplete; the worker will report it. Matching needs a
/// deep stack, so this runs on a thread of its own.
pub(super) fn is_complete(grammar: &Grammar, emitted: &[TokenId], sampling: &SamplingParams) -> bool {
    let find = || {
        Matcher::start(grammar, emitted, fast_forwards(sampling))
            .is_ok_and(|(matcher, forced)| forced.is_empty() && matcher.is_complete())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("replay".to_owned()).stack_size(STACK_BYTES);
        thread.spawn_scoped(scope, find).ok().and_then(|found| found.join().ok()).unwrap_or(false)
    })
}
