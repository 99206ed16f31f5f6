//! The place that one text has reached in its grammar.
//!
//! ```text
//! start:   a copy of the compiled grammar, brought to where the text stands
//! allowed: the tokens that may come              (slow: up to milliseconds; beside the forward pass)
//! accept:  the token that came                   (fast)
//! forced:  tokens that must follow, if any; the text takes them without sampling
//! ```
//!
//! The same text can be cut into tokens in more than one way, so the forced tokens depend on the place at which the
//! grammar was asked for them. A text that continues after the end of its process therefore repeats every earlier
//! question, token by token ([`Matcher::start`]).

use super::Grammar;
use super::parser::Parser;
use crate::sampling::TokenMask;
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::TokenId;

/// A text's place in its grammar. It shares nothing with another text.
pub struct Matcher {
    parser: Parser,
    fast_forward: bool,
}

/// What may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// One of these tokens.
    Sample(TokenMask),
    /// These tokens, one after the other; the matcher has accepted them.
    Forced(Vec<TokenId>),
    /// No token: the text is complete.
    Complete,
}

impl Matcher {
    /// The place after `text`, and with `fast_forward` the tokens that are forced there. If the first of those stand at
    /// the end of `text` already, only the rest is returned.
    ///
    /// # Errors
    /// If the text does not fit this grammar, or the grammar is too complex for it.
    pub fn start(grammar: &Grammar, text: &[TokenId], fast_forward: bool) -> Result<(Self, Vec<TokenId>)> {
        let mut matcher = Self { parser: grammar.parser(), fast_forward };
        let mut rest = text;
        loop {
            let mut forced = matcher.forced()?;
            let num_known = forced.len().min(rest.len());
            let (known, behind) = rest.split_at(num_known);
            if *known != forced[..num_known] {
                return Err(Error::internal("the text is not one that this grammar makes"));
            }
            let Some((&token, behind)) = behind.split_first() else {
                forced.drain(..num_known);
                return Ok((matcher, forced));
            };
            matcher.accept(token)?;
            rest = behind;
        }
    }

    /// The tokens that may come.
    ///
    /// # Errors
    /// If there are none, or the grammar is too complex.
    pub fn allowed(&mut self) -> Result<Next> {
        if self.is_complete() {
            return Ok(Next::Complete);
        }
        let mask = self.parser.mask().map_err(|e| failed(&e))?;
        Ok(Next::Sample(TokenMask::from_words(mask.as_slice().to_vec())))
    }

    /// Notes that `token` came.
    ///
    /// # Errors
    /// If the token may not come, or the grammar is too complex.
    pub fn accept(&mut self, token: TokenId) -> Result<()> {
        self.parser.consume(&[token]).map_err(|e| failed(&e))
    }

    /// Tokens that must come now; most often none. The matcher has accepted them.
    ///
    /// # Errors
    /// If the grammar is too complex.
    pub fn forced(&mut self) -> Result<Vec<TokenId>> {
        if !self.fast_forward || self.is_complete() {
            return Ok(Vec::new());
        }
        let tokens = self.parser.forced().map_err(|e| failed(&e))?;
        if !tokens.is_empty() {
            self.parser.consume(&tokens).map_err(|e| failed(&e))?;
        }
        Ok(tokens)
    }

    /// Whether the text is complete, so that no token can follow.
    pub fn is_complete(&self) -> bool {
        self.parser.is_complete()
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("is_complete", &self.is_complete()).finish_non_exhaustive()
    }
}

fn failed(cause: &str) -> Error {
    Error::new(ErrorKind::InvalidRequest, format!("the text cannot go on by its grammar: {cause}"))
}
