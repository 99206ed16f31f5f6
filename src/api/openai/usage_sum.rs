//! What an answer of several choices costs, when the last of them has ended, and who is told.

use std::sync::{Arc, Mutex, PoisonError};

use super::chat_types::{StreamOptions, UsageObject};
use crate::api::problem::Problem;
use crate::error::Error;
use crate::protocol::Usage;

/// The choices of one answer: each adds its own when it ends.
#[derive(Debug, Default)]
pub(super) struct UsageSum {
    /// Choices that have not ended.
    num_left: usize,
    usage: Usage,
    reasoning_tokens: usize,
}

/// A sum that the choices of a stream share.
pub(super) type SharedSum = Arc<Mutex<UsageSum>>;

impl UsageSum {
    /// The sum of so many choices, of which none has ended.
    pub(super) fn of(num_choices: usize) -> Self {
        Self { num_left: num_choices, ..Self::default() }
    }

    /// Adds what one choice cost. A prompt counts once, however many choices go on from it.
    pub(super) fn add(&mut self, usage: Usage, reasoning_tokens: usize, is_first_of_prompt: bool) {
        self.num_left = self.num_left.saturating_sub(1);
        if is_first_of_prompt {
            self.usage.prompt_tokens += usage.prompt_tokens;
            self.usage.cached_tokens += usage.cached_tokens;
        }
        self.usage.completion_tokens += usage.completion_tokens;
        self.reasoning_tokens += reasoning_tokens;
    }

    /// On the wire.
    pub(super) fn object(&self) -> UsageObject {
        UsageObject::new(self.usage, self.reasoning_tokens)
    }
}

/// [`UsageSum::add`] of one choice of a stream; the sum, if it was the last to end.
pub(super) fn add(
    sum: &SharedSum,
    usage: Usage,
    reasoning_tokens: usize,
    is_first_of_prompt: bool,
) -> Option<UsageObject> {
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    sum.add(usage, reasoning_tokens, is_first_of_prompt);
    (sum.num_left == 0).then(|| sum.object())
}

/// What a stream tells of its cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct UsageShown {
    /// The sum, in a last chunk.
    pub(super) at_end: bool,
    /// And what a choice has cost so far, in each of its chunks.
    in_each: bool,
}

impl UsageShown {
    /// As the request's `stream_options` want it.
    ///
    /// # Errors
    /// If there are any, but no stream.
    pub(super) fn asked(options: Option<StreamOptions>, is_stream: bool) -> Result<Self, Problem> {
        if options.is_some() && !is_stream {
            let message = "`stream_options` must come with `stream: true`, got it without";
            return Err(Error::invalid("stream_options", message).into());
        }
        let options = options.unwrap_or_default();
        let at_end = options.include_usage.unwrap_or(false);
        Ok(Self { at_end, in_each: at_end && options.continuous_usage_stats.unwrap_or(false) })
    }

    /// What a choice has cost before its first token, if its chunks are to tell.
    pub(super) fn running(self, prompt_tokens: usize) -> Option<Usage> {
        self.in_each.then(|| Usage { prompt_tokens, ..Usage::default() })
    }
}
