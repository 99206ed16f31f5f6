//! The tokenizer of an encoder: a `tokenizer.json` whose post-processor frames a text in the tokens that the model wants
//! around it (`[CLS]` and `[SEP]`). Apart from the decoders' tokenizers, because nothing is ever spelled back.

use tokenizers::Tokenizer as Library;

use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// The longest word that such a tokenizer looks at: WordPiece has 100 characters, longer ones are one unknown token.
pub(super) const WORD_BYTES_MAX: usize = 400;

/// Texts to the tokens of an encoder.
pub(super) struct FramedTokenizer(Library);

impl FramedTokenizer {
    /// Reads the file.
    ///
    /// # Errors
    /// If it is no such file.
    pub(super) fn from_json(json: &[u8]) -> Result<Self> {
        let unreadable = |e: tokenizers::Error| Error::bad_model(format!("tokenizer.json cannot be read: {e}"));
        let mut library = Library::from_bytes(json).map_err(unreadable)?;
        // Files tell how they were trained: cut and filled up. A text that is too long is refused here, not cut in silence,
        // and none is filled up.
        library.with_truncation(None).map_err(unreadable)?;
        library.with_padding(None);
        // A text that spells `[SEP]` has not got the token.
        library.set_encode_special_tokens(true);
        Ok(Self(library))
    }

    /// The tokens of `text`, with those around it.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<TokenId>> {
        let encoding = self.0.encode_fast(text, true);
        Ok(encoding.map_err(|e| Error::internal(format!("tokenising failed: {e}")))?.get_ids().to_vec())
    }

    /// Tokens there are.
    pub(super) fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }
}

impl std::fmt::Debug for FramedTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FramedTokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
