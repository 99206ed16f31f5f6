//! Sequences that keep to a grammar.
//!
//! Which tokens may come next depends on those before the step only, so it is worked out beside the forward pass, on a
//! helper thread that a worker starts when the first such sequence comes:
//!
//! ```text
//! worker:  build the batch -> ask ------> forward ------> collect -> sample -> accept, append what is forced
//! helper:                      \--> masks of all who sample --/
//! ```
//!
//! A matcher is in one place at a time: with its sequence, or on its way through the helper. What a grammar forces is
//! appended without being sampled, and the scheduler computes it together with the token before. Not so where
//! log-probabilities are told, which every token has to have been sampled for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use super::output::Output;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::protocol::{FinishReason, SamplingParams, TokenId};
use crate::sampling::TokenMask;
use crate::sampling::grammar::{Grammar, Matcher, Next, STACK_BYTES};

/// A sequence's grammar, and where its text stands in it.
#[derive(Debug)]
pub(super) struct Constrained {
    fast_forward: bool,
    /// `None` while it is with the helper.
    place: Option<Place>,
    next: Option<Result<Next>>,
}

/// Where a text stands.
#[derive(Debug)]
enum Place {
    /// Behind these tokens, which another process has made; most often there are none.
    Behind(Arc<Grammar>, Vec<TokenId>),
    At(Box<Matcher>),
}

/// A question to the helper, or its answer.
struct Job {
    slot: usize,
    fast_forward: bool,
    place: Option<Place>,
    next: Option<Result<Next>>,
}

/// What the helper has found for a sequence.
pub(super) struct Answer(Job);

impl Constrained {
    /// A text that goes on behind `emitted`.
    pub(super) fn new(grammar: Arc<Grammar>, emitted: &[TokenId], sampling: &SamplingParams) -> Self {
        let place = Some(Place::Behind(grammar, emitted.to_vec()));
        Self { fast_forward: fast_forwards(sampling), place, next: None }
    }

    /// Takes its matcher back.
    pub(super) fn take_answer(&mut self, answer: Answer) {
        (self.place, self.next) = (answer.0.place, answer.0.next);
    }

    /// What may come next, as the helper has found.
    ///
    /// # Errors
    /// If the grammar fails.
    pub(super) fn take_next(&mut self) -> Result<Next> {
        self.next.take().unwrap_or_else(|| Err(Error::internal("the thread that computes masks has failed")))
    }

    /// Notes a sampled token; returns what is forced behind it.
    ///
    /// # Errors
    /// If the grammar fails.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<Vec<TokenId>> {
        let Some(Place::At(matcher)) = &mut self.place else {
            return Err(Error::internal("no matcher to accept with"));
        };
        matcher.accept(token)?;
        matcher.forced()
    }

    /// Whether the text is complete, so that nothing can follow.
    pub(super) fn is_complete(&self) -> bool {
        matches!(&self.place, Some(Place::At(matcher)) if matcher.is_complete())
    }
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

/// Whether a text is complete that goes on behind `emitted`; what fails here is left for the worker to tell.
pub(super) fn is_complete(grammar: &Grammar, emitted: &[TokenId], sampling: &SamplingParams) -> bool {
    Matcher::start(grammar, emitted, fast_forwards(sampling))
        .is_ok_and(|(matcher, forced)| forced.is_empty() && matcher.is_complete())
}

/// A worker's end of its helper thread.
#[derive(Debug, Default)]
pub(super) struct Masks {
    helper: Option<Helper>,
    num_pending: usize,
}

#[derive(Debug)]
struct Helper {
    jobs: SyncSender<Job>,
    answers: Receiver<Job>,
}

impl Masks {
    /// Asks what may come next for the sequence in `slot`, of `num_slots`. Without a helper it is worked out at once.
    pub(super) fn ask(&mut self, slot: usize, constrained: &mut Constrained, num_slots: usize, metrics: &Arc<Metrics>) {
        let Constrained { fast_forward, .. } = *constrained;
        let mut job = Job { slot, fast_forward, place: constrained.place.take(), next: None };
        if self.helper.is_none() {
            self.helper = Helper::start(num_slots, metrics).inspect_err(|e| tracing::error!("{e}")).ok();
        }
        match &self.helper {
            Some(helper) => self.num_pending += usize::from(helper.jobs.send(job).is_ok()),
            None => {
                job.work(metrics);
                constrained.take_answer(Answer(job));
            }
        }
    }

    /// Waits for the answers, and hands each to `give` with its slot.
    pub(super) fn collect(&mut self, mut give: impl FnMut(usize, Answer)) {
        for _ in 0..std::mem::take(&mut self.num_pending) {
            let Some(Ok(job)) = self.helper.as_ref().map(|helper| helper.answers.recv()) else {
                // Whoever got no answer fails for it; the next one gets another helper.
                self.helper = None;
                return;
            };
            give(job.slot, Answer(job));
        }
    }
}

impl Helper {
    /// Ends when its worker's end goes away.
    fn start(num_slots: usize, metrics: &Arc<Metrics>) -> Result<Self> {
        // A sequence asks once per step, so neither end ever waits for room.
        let (jobs, asked) = sync_channel::<Job>(num_slots);
        let (answer, answers) = sync_channel::<Job>(num_slots);
        let metrics = metrics.clone();
        let work = move || {
            for mut job in asked {
                job.work(&metrics);
                if answer.send(job).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("masks".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(work).map_err(|e| Error::io("cannot start a thread to compute masks", e))?;
        Ok(Self { jobs, answers })
    }
}

impl Job {
    fn work(&mut self, metrics: &Metrics) {
        let began = Instant::now();
        self.next = Some(self.find());
        metrics.grammar_mask_seconds.observe(began.elapsed().as_secs_f64());
    }

    fn find(&mut self) -> Result<Next> {
        match &mut self.place {
            Some(Place::At(matcher)) => matcher.allowed(),
            Some(Place::Behind(grammar, emitted)) => {
                let (mut matcher, forced) = Matcher::start(grammar, emitted, self.fast_forward)?;
                let next = if forced.is_empty() { matcher.allowed()? } else { Next::Forced(forced) };
                self.place = Some(Place::At(Box::new(matcher)));
                Ok(next)
            }
            None => Err(Error::internal("a matcher was asked twice")),
        }
    }
}
