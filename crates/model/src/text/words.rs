//! Limits the length of a stretch of text that is merged as a whole. Memory and time of a merge grow with its stretch,
//! by about 150 bytes and 2 microseconds per byte, and a merge cannot be interrupted. Ordinary text has a break after a
//! few bytes.

use tallow_stream::error::{Error, Result};

/// The parameter of an error about a text. This file does not know the origin of the text, so the caller replaces it.
pub const TEXT_PARAM: &str = "text";

/// Longest word that a splitter may leave: 128 KiB cost 20 MB and a quarter of a second. Text in scripts without spaces
/// has punctuation long before that.
pub(super) const WORD_BYTES_MAX: usize = 128 << 10;

/// Longest text of a scheme that has no words (SentencePiece): 1 MiB costs 110 MB, and is more tokens than any
/// published model of this scheme takes.
pub(super) const STRETCH_BYTES_MAX: usize = 1 << 20;

/// Refuses a text longer than `bytes_max`.
///
/// # Errors
/// [`tallow_stream::error::ErrorKind::InvalidRequest`] about [`TEXT_PARAM`].
pub(super) fn check(text: &str, bytes_max: usize) -> Result<()> {
    if text.len() <= bytes_max {
        return Ok(());
    }
    let message = format!("a run of text without a break must have at most {bytes_max} bytes, got {}", text.len());
    Err(Error::invalid(TEXT_PARAM, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Scheme, TokenKind, Tokenizer, Vocab};
    use tallow_stream::error::ErrorKind;

    fn tokenizer(scheme: Scheme) -> Tokenizer {
        let tokens = vec!["a".to_owned(), "b".to_owned(), "aa".to_owned()];
        let kinds = vec![TokenKind::Normal; tokens.len()];
        let (bos, eos, end_of_generation, add_bos) = (None, None, Vec::new(), false);
        let vocab = Vocab { tokens, kinds, scheme, bos, eos, end_of_generation, add_bos, add_space_prefix: false };
        Tokenizer::from_vocab(vocab).expect("a vocabulary")
    }

    /// One word of 4 MB took 7 seconds and 600 MB.
    #[test]
    fn a_word_may_be_so_long_and_a_text_of_words_as_long_as_it_likes() {
        let merges = vec!["a a".to_owned()];
        let bpe = tokenizer(Scheme::Bpe { pre: "gpt-2".to_owned(), merges });
        let word = "a".repeat(WORD_BYTES_MAX);
        assert_eq!(bpe.encode(&word, false).map(|ids| ids.len()), Ok(WORD_BYTES_MAX / 2));
        let error = bpe.encode(&format!("b 1 {word}a"), false).expect_err("a word that is too long");
        assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some(TEXT_PARAM)));
        assert!(error.message().contains("at most 131072 bytes, got 13107"), "{error}");
        let words = "aaaa ".repeat(WORD_BYTES_MAX / 2);
        assert!(bpe.encode(&words, false).is_ok());
    }

    #[test]
    fn where_there_are_no_words_the_text_may_be_so_long() {
        let scores = vec![0.0, 0.0, 1.0];
        let pieces = tokenizer(Scheme::SentencePiece { scores });
        assert!(pieces.encode(&"a".repeat(STRETCH_BYTES_MAX), false).is_ok());
        let error = pieces.encode(&"a".repeat(STRETCH_BYTES_MAX + 1), false).expect_err("a text that is too long");
        assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some(TEXT_PARAM)));
    }
}
