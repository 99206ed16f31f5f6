//! The tokens that a sequence has seen, for the penalties.

use std::collections::HashMap;

use tallow_stream::protocol::{SamplingParams, TokenId};

/// Distinct tokens of prompt and output, with their counts in the output. If no penalty needs them, it stays empty and
/// costs nothing.
#[derive(Debug, Default)]
pub struct SeenTokens {
    counts: HashMap<TokenId, u32>,
    wanted: bool,
}

/// Most distinct tokens to reserve room for at the start; the table grows with a longer text.
const RESERVED_MAX: usize = 4096;

impl SeenTokens {
    /// The tokens of the prompt, before the first output token. Has room for `max_tokens` more, up to a bound.
    pub fn new(params: &SamplingParams, prompt: &[TokenId], max_tokens: usize) -> Self {
        let repetition = params.repetition_penalty != 1.0;
        let wanted = repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        let mut counts = HashMap::new();
        if wanted {
            counts.reserve(max_tokens.min(RESERVED_MAX));
        }
        if repetition {
            counts.extend(prompt.iter().map(|&token| (token, 0)));
        }
        Self { counts, wanted }
    }

    /// Counts an output token.
    pub fn push(&mut self, token: TokenId) {
        if self.wanted {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// Each token once, with its count in the output, in no order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (TokenId, u32)> {
        self.counts.iter().map(|(&token, &count)| (token, count))
    }
}
