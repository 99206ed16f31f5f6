//! Sequences that keep to a grammar: what may come next, what must, and when a text is complete.
//!
//! A matcher is in one place at a time: with its sequence, or on its way through a lane (`masks`), which works out what
//! may come next. What a grammar forces is appended without being sampled, and the scheduler computes it together with
//! the token before. Not so where log-probabilities are told, which every token has to have been sampled for.
//!
//! A sampled token is accepted in the step, which takes microseconds. Where the grammar is slow it goes through the lane
//! as well, and the sequence sits out until it comes back.

use std::sync::Arc;
use std::time::Duration;

use super::output::Output;
use crate::sampling::TokenMask;
use crate::sampling::grammar::{Grammar, Matcher, Next, STACK_BYTES};
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::{FinishReason, SamplingParams, TokenId};

/// Processor time of a mask, or of accepting a token, from which on a grammar is slow: all further work for it is the slow
/// lane's. Grammars of real schemas take 0.05 to 1 ms.
const SLOW: Duration = Duration::from_millis(3);

/// A sequence's grammar, and where its text stands in it.
#[derive(Debug)]
pub(super) struct Constrained {
    state: ConstrainedState,
}

#[derive(Debug)]
enum ConstrainedState {
    /// The matcher is here, and what may come next was not asked.
    Here(Question),
    /// It is in a lane, under this ticket.
    Asked(u64),
    /// What may come next is known.
    Known(Question),
}

/// Where a text stands, and what may come next once that is worked out.
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
    /// The sampled token was accepted, and these are forced behind it.
    Accepted(Vec<TokenId>),
}

/// Where a text stands.
#[derive(Debug)]
enum TextPlace {
    /// Behind these tokens, which were made before this worker had the text; most often there are none.
    Behind(Vec<TokenId>),
    At(Box<Matcher>),
}

impl Constrained {
    /// A text that goes on behind `emitted`.
    pub(super) fn new(grammar: Arc<Grammar>, emitted: &[TokenId], sampling: &SamplingParams) -> Self {
        let place = Some(TextPlace::Behind(emitted.to_vec()));
        let question = Question { grammar, fast_forward: fast_forwards(sampling), place, sampled: None, next: None };
        Self { state: ConstrainedState::Here(question) }
    }

    /// Hands its matcher out; `None` if what may come next is known, or asked already.
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

    /// Takes its matcher back if `ticket` is its own; else the matcher is returned, as its sequence has ended.
    pub(super) fn take_answer(&mut self, ticket: u64, question: Question) -> Option<Question> {
        if self.asked() != Some(ticket) {
            return Some(question);
        }
        self.state = ConstrainedState::Known(question);
        None
    }

    /// Whether what may come next is known.
    pub(super) fn is_known(&self) -> bool {
        matches!(self.state, ConstrainedState::Known(_))
    }

    /// Takes what was asked for.
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

    /// Whether work for its grammar was slow before, as far as its matcher is here to be asked.
    pub(super) fn is_slow(&self) -> bool {
        matches!(&self.state, ConstrainedState::Here(question) | ConstrainedState::Known(question) if question.is_slow())
    }

    /// Notes a sampled token; returns what is forced behind it. If that is `deferred`, a lane has to be asked for it.
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

    /// Whether the text is complete, so that nothing can follow.
    pub(super) fn is_complete(&self) -> bool {
        let question = match &self.state {
            ConstrainedState::Here(question) | ConstrainedState::Known(question) => question,
            ConstrainedState::Asked(_) => return false,
        };
        matches!(&question.place, Some(TextPlace::At(matcher)) if matcher.is_complete())
    }

    /// Its matcher, if that is here.
    pub(super) fn into_question(self) -> Option<Question> {
        match self.state {
            ConstrainedState::Here(question) | ConstrainedState::Known(question) => Some(question),
            ConstrainedState::Asked(_) => None,
        }
    }
}

impl Question {
    /// Whether the matcher must first be brought to where the text stands, which may take longer than any mask.
    pub(super) fn is_at_start(&self) -> bool {
        matches!(self.place, Some(TextPlace::Behind(_)))
    }

    /// Works out what may come next.
    pub(super) fn work(&mut self) {
        self.next = Some(self.find());
    }

    /// Whether work for this grammar was slow before.
    pub(super) fn is_slow(&self) -> bool {
        self.grammar.is_slow()
    }

    /// Marks the grammar if the work since `began`, in this thread's time, was slow.
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

/// Processor time of this thread: the time of the clock would count what others take on a busy machine.
pub(super) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Whether what is forced need not be sampled.
fn fast_forwards(sampling: &SamplingParams) -> bool {
    sampling.top_logprobs.is_none()
}

/// The tokens that may be sampled: neither those that a request's own rules ban, nor, where these go on past it, the
/// end. The grammar has the last word: if it leaves nothing else, its tokens are allowed all the same.
pub(super) fn without(mask: TokenMask, banned: &[TokenId]) -> TokenMask {
    if banned.is_empty() {
        return mask;
    }
    let mut rest = mask.clone();
    rest.remove(banned);
    if rest.is_empty() { mask } else { rest }
}

/// Why a text ends, given what its output says and whether its grammar is complete with its last token. A text that
/// is complete was not cut.
pub(super) fn end(reason: Option<FinishReason>, is_complete: bool, output: &mut Output) -> Option<FinishReason> {
    match reason {
        Some(FinishReason::Length) if is_complete => Some(FinishReason::Stop),
        None if is_complete => Some(output.close()),
        reason => reason,
    }
}

/// Whether a text is complete that goes on behind `emitted`; what fails here is left for the worker to tell. Matching needs
/// a deep stack, so this takes a thread for the time.
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
