//! A vocabulary as plain data: what a model file says about its tokens, before a tokenizer is built from it. This file
//! knows no file format; `model/vocab.rs` fills it from GGUF metadata, tests fill it by hand.

use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// Everything a tokenizer is built from.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocab {
    /// The spelling of each token, indexed by id, as the file has it: byte-level characters (`Ġthe`) under
    /// [`Scheme::Bpe`], `▁` for a space under [`Scheme::SentencePiece`].
    pub tokens: Vec<String>,
    /// What each token is; as many as `tokens`.
    pub kinds: Vec<TokenKind>,
    /// How text is cut into tokens.
    pub scheme: Scheme,
    /// Beginning of text.
    pub bos: Option<TokenId>,
    /// End of text.
    pub eos: Option<TokenId>,
    /// Every token that ends a generation: end of text, end of turn. It may leave out `eos`, which always ends one.
    pub end_of_generation: Vec<TokenId>,
    /// Whether a prompt must begin with `bos`.
    pub add_bos: bool,
    /// Whether a space goes in front of the text (SentencePiece's dummy prefix). Ignored by [`Scheme::Bpe`].
    pub add_space_prefix: bool,
}

impl Vocab {
    /// Checks that the parts fit together: one kind (and one score) per token, ids within the vocabulary, finite
    /// scores.
    ///
    /// # Errors
    /// [`tallow_stream::error::ErrorKind::BadModel`], naming the part and both figures.
    pub fn check(&self) -> Result<()> {
        let num_tokens = self.tokens.len();
        if num_tokens == 0 || u32::try_from(num_tokens).is_err() {
            return Err(Error::bad_model(format!("a vocabulary has 1 to 2^32 - 1 tokens, got {num_tokens}")));
        }
        if self.kinds.len() != num_tokens {
            let num_kinds = self.kinds.len();
            return Err(Error::bad_model(format!("{num_tokens} tokens need as many token types, got {num_kinds}")));
        }
        if let Scheme::SentencePiece { scores } = &self.scheme {
            if scores.len() != num_tokens {
                let num_scores = scores.len();
                return Err(Error::bad_model(format!("{num_tokens} tokens need as many scores, got {num_scores}")));
            }
            if let Some(id) = scores.iter().position(|score| score.is_nan()) {
                return Err(Error::bad_model(format!("the score of token {id} is not a number")));
            }
        }
        let named = self.bos.iter().map(|id| ("bos", id)).chain(self.eos.iter().map(|id| ("eos", id)));
        for (name, &id) in named.chain(self.end_of_generation.iter().map(|id| ("end of generation", id))) {
            if id as usize >= num_tokens {
                return Err(Error::bad_model(format!("the {name} token is {id}, beyond the {num_tokens} tokens")));
            }
        }
        if self.add_bos && self.bos.is_none() {
            return Err(Error::bad_model("the vocabulary asks for a bos token and names none"));
        }
        Ok(())
    }
}

/// What a token is, which decides whether text can become it and whether it has text of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// Made from text by the scheme's rules.
    Normal,
    /// Stands for text that no other token can spell.
    Unknown,
    /// Steers the model. It has no text of its own, and text becomes it only if special tokens are parsed.
    Control,
    /// Matched in text as a whole, before the scheme's rules apply.
    UserDefined,
    /// Reserved; text never becomes it.
    Unused,
    /// One byte, spelled `<0x00>` to `<0xFF>`.
    Byte,
}

/// How text is cut into tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Scheme {
    /// Byte-level BPE with ranked merges (GGUF's `gpt2`).
    Bpe {
        /// Names the expressions that split text into words (GGUF's `tokenizer.ggml.pre`).
        pre: String,
        /// `left right`, best first.
        merges: Vec<String>,
    },
    /// SentencePiece's BPE: adjacent pieces merge, highest score of the result first (GGUF's `llama`).
    SentencePiece {
        /// One per token; higher merges earlier.
        scores: Vec<f32>,
    },
}
