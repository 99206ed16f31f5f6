//! The room for a prompt: a text that cannot fit the context, however it is cut into tokens, is refused before it is
//! tokenised.

use super::Served;
use crate::error::{Error, Result};
use crate::protocol::Field;

/// Shorter texts are tokenised in any case, within about 10 ms: an error that says their tokens is worth more.
const EARLY_BYTES: usize = 64 << 10;

/// The longest text that can still become a prompt: so many tokens of so many bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) num_tokens: usize,
    pub(super) token_bytes_max: usize,
}

impl Room {
    /// The room of a model.
    pub(super) fn of(served: &Served) -> Self {
        Self { num_tokens: served.context_len(), token_bytes_max: served.tokenizer.token_bytes_max() }
    }

    /// # Errors
    /// [`ContextLengthExceeded`](crate::error::ErrorKind::ContextLengthExceeded) for a text that is too long however it is cut into tokens.
    pub(super) fn check(self, text: &str, field: Field) -> Result<()> {
        let Self { num_tokens, token_bytes_max } = self;
        if text.len() <= num_tokens.saturating_mul(token_bytes_max).max(EARLY_BYTES) {
            return Ok(());
        }
        // It has at least so many: each is as long as the longest token there is.
        Err(Error::prompt_too_long(field, text.len().div_ceil(token_bytes_max.max(1)), num_tokens))
    }
}
