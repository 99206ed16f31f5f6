//! A model's vocabulary in the form that llguidance needs: a trie over the bytes of all tokens, and how the model would
//! cut a text into tokens.
//!
//! Control tokens are no text. In the trie they begin with a byte that no text has, so that only a grammar that names
//! one gets it. Other tokens that begin with that byte cannot be part of a text either, and are left out.

use std::sync::Arc;

use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use tallow_model::text::Tokenizer;
use tallow_stream::protocol::TokenId;

struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

/// The vocabulary of `tokenizer`. Takes some tens of milliseconds for a large one.
pub(super) fn environment(tokenizer: &Arc<Tokenizer>) -> TokEnv {
    let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as TokenId).map(|id| word(tokenizer, id)).collect();
    let ends: Vec<TokenId> = (0..words.len() as TokenId).filter(|id| tokenizer.is_end_of_generation(*id)).collect();
    let eos = tokenizer.eos().or(ends.first().copied()).unwrap_or(INVALID_TOKEN);
    let mut trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, eos), &words);
    if !ends.is_empty() {
        trie = trie.with_eos_tokens(&ends);
    }
    Arc::new(Vocabulary { tokenizer: tokenizer.clone(), trie })
}

fn word(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    match (bytes.first(), tokenizer.special_spelling(id)) {
        (None, None) | (Some(&TokTrie::SPECIAL_TOKEN_MARKER), _) => Vec::new(),
        (None, Some(spelling)) => [&[TokTrie::SPECIAL_TOKEN_MARKER], spelling.as_bytes()].concat(),
        (Some(_), _) => bytes.to_vec(),
    }
}

impl Vocabulary {
    /// The tokens that the model would use for `text` in the middle of other text.
    fn canonical(&self, text: &str) -> Vec<TokenId> {
        let tokens = self.tokenizer.encode_behind(text).unwrap_or_default();
        let bytes = tokens.iter().flat_map(|token| self.tokenizer.token_bytes(*token)).copied();
        // A normaliser may change the text, but the forced tokens must give the text itself.
        if bytes.eq(text.bytes()) { tokens } else { self.trie.greedy_tokenize(text.as_bytes()) }
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.canonical(text))
    }
}
