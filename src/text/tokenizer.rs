//! The vocabulary: text to ids, and each id's bytes.

use crate::error::{Error, Result};
use crate::protocol::TokenId;

/// A model's vocabulary. Cheap to share behind an `Arc`; every method takes `&self`.
#[derive(Debug)]
pub struct Tokenizer {
    /// Bytes of each token; empty for control tokens.
    bytes: Vec<Vec<u8>>,
    end_of_generation: Vec<TokenId>,
}

impl Tokenizer {
    /// One token per byte value, and token 256 as end of generation: the stub model's vocabulary.
    pub fn byte_level() -> Self {
        let mut bytes: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
        bytes.push(Vec::new());
        Self { bytes, end_of_generation: vec![256] }
    }

    /// Ids of `text`. With `parse_special`, the spelling of a control token in the text becomes that token (for text
    /// that a template rendered); without, it stays text (for text that a user wrote).
    ///
    /// # Errors
    /// If the text cannot be spelled in this vocabulary.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<TokenId>> {
        let _ = parse_special;
        if self.bytes.len() < 256 {
            return Err(Error::internal("vocabulary without bytes"));
        }
        Ok(text.bytes().map(TokenId::from).collect())
    }

    /// The bytes `token` adds to the output; empty for control tokens and unknown ids.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether `token` ends a generation (end of text, end of turn).
    pub fn is_end_of_generation(&self, token: TokenId) -> bool {
        self.end_of_generation.contains(&token)
    }

    /// The token that a prompt must begin with, where the vocabulary asks for one.
    pub fn bos(&self) -> Option<TokenId> {
        None
    }
}
