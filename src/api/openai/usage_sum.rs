//! What an answer of several choices costs, and when the last of them has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::chat_types::UsageObject;
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

    /// Whether all have ended.
    pub(super) fn is_complete(&self) -> bool {
        self.num_left == 0
    }

    /// On the wire.
    pub(super) fn object(&self) -> UsageObject {
        UsageObject::new(self.usage, self.reasoning_tokens)
    }
}

/// The sum, for one choice at a time: all of them are written by the one body that they share.
pub(super) fn lock(sum: &SharedSum) -> MutexGuard<'_, UsageSum> {
    sum.lock().unwrap_or_else(PoisonError::into_inner)
}
