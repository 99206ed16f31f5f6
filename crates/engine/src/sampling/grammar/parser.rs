//! llguidance's parser of one text, with its errors in our words. After an error, every call returns that error.

use std::panic::AssertUnwindSafe;

use llguidance::TokenParser;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::SimpleVob;

use super::explain;
use tallow_stream::protocol::TokenId;

/// Most memory of one text's lexer. Other bounds limit the number of its states and the work of each step; this one
/// limits the memory of all of them.
const LEXER_BYTES_MAX: usize = 48 << 20;

type Cause = Box<dyn std::error::Error + Send + Sync>;

pub(super) struct Parser {
    inner: TokenParser,
    failed: Option<String>,
}

impl Parser {
    pub(super) fn new(mut inner: TokenParser) -> Self {
        if inner.is_fresh() {
            inner.start_without_prompt();
        }
        Self { inner, failed: None }
    }

    /// A text's own parser, at the same place. It shares nothing with this one: otherwise one text could use up the
    /// states of all others.
    pub(super) fn copy(&self) -> Self {
        Self { inner: self.inner.deep_clone(), failed: self.failed.clone() }
    }

    /// Tokens that may come next.
    pub(super) fn mask(&mut self) -> Result<SimpleVob, String> {
        let mask = self.run(|inner| Ok(inner.compute_mask()?))?;
        let num_bytes = self.lexer_bytes();
        if num_bytes > LEXER_BYTES_MAX {
            return Err(self.fail(format!(
                "its terminals need at most {LEXER_BYTES_MAX} bytes of memory for one text, got {num_bytes}"
            )));
        }
        Ok(mask)
    }

    pub(super) fn consume(&mut self, tokens: &[TokenId]) -> Result<(), String> {
        let num_dropped = self.run(|inner| {
            let mut num_dropped = 0;
            for token in tokens {
                num_dropped += inner.consume_token(*token)?;
            }
            inner.check_stop()?;
            Ok(num_dropped)
        })?;
        // Only a terminal with `stop` can take tokens back.
        if num_dropped == 0 { Ok(()) } else { Err(self.fail("tokens cannot be taken back".to_owned())) }
    }

    /// Tokens that must come next; not consumed.
    pub(super) fn forced(&mut self) -> Result<Vec<TokenId>, String> {
        self.run(|inner| Ok(inner.compute_ff_tokens()))
    }

    /// Whether no token can follow.
    pub(super) fn is_complete(&self) -> bool {
        self.failed.is_none() && self.inner.stopped()
    }

    /// Estimated memory of the lexer.
    pub(super) fn lexer_bytes(&self) -> usize {
        self.inner.parser.lexer_stats().num_bytes
    }

    fn run<T>(&mut self, work: impl FnOnce(&mut TokenParser) -> Result<T, Cause>) -> Result<T, String> {
        if let Some(message) = &self.failed {
            return Err(message.clone());
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| Ok(work(&mut self.inner))));
        let message = match outcome {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(e)) => explain::stop(self.inner.stop_reason(), &e),
            Err(e) => explain::sentence(&e),
        };
        Err(self.fail(message))
    }

    fn fail(&mut self, message: String) -> String {
        self.failed = Some(message.clone());
        message
    }
}
