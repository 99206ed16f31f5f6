//! Byte-level BPE (GGUF's `gpt2`): the tokenizers library's model, set up from a vocabulary. Its splitters are not used:
//! they keep account of where each byte came from, which nobody asks here, and took four fifths of the time.
//!
//! Text is split into words by the rules of its `pre`, each byte of a word is shown as one printable character (GPT-2's
//! table), and ranked merges join characters into tokens. Special tokens have been cut out before; control tokens are
//! not in the model's vocabulary at all, so no text can become one here.

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};

use super::pieces::byte_of_spelling;
use super::pretokenizer::{Splitter, rules_of};
use super::vocab::{TokenKind, Vocab};
use super::words;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// Words to ids.
#[derive(Debug)]
pub(super) struct Bpe {
    /// Each cuts what the ones before it left.
    splits: Vec<Splitter>,
    /// How each byte is shown.
    shown: [char; 256],
    model: BPE,
}

impl Bpe {
    /// Sets up the model of a checked vocabulary.
    ///
    /// A merge whose parts or result are no tokens can never lead to one and is left out, as llama.cpp does.
    ///
    /// # Errors
    /// [`tallow_stream::error::ErrorKind::BadModel`] for an unknown `pre` or a merge that is not two pieces.
    pub(crate) fn new(vocab: &Vocab, pre: &str, merges: &[String]) -> Result<Self> {
        let rules = rules_of(pre)?;
        let mut ids = BpeVocab::with_capacity(vocab.tokens.len());
        for (id, (token, kind)) in vocab.tokens.iter().zip(&vocab.kinds).enumerate() {
            if !matches!(kind, TokenKind::Control | TokenKind::Unknown) {
                ids.entry(token.clone()).or_insert(id as TokenId);
            }
        }
        let mut pairs = Vec::with_capacity(merges.len());
        let mut joined = String::new();
        for (rank, merge) in merges.iter().enumerate() {
            let (left, right) = split_merge(merge).ok_or_else(|| {
                Error::bad_model(format!("merge {rank} must be two pieces and a space, got `{merge}`"))
            })?;
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            if [left, right, &joined].iter().all(|piece| ids.contains_key(*piece)) {
                pairs.push((left.to_owned(), right.to_owned()));
            }
        }
        let model = BPE::builder()
            .vocab_and_merges(ids, pairs)
            .ignore_merges(rules.ignore_merges)
            .build()
            .map_err(|e| Error::bad_model(format!("the vocabulary's merges do not fit: {e}")))?;
        let splits = rules.expressions.iter().map(|expression| Splitter::new(expression)).collect::<Result<_>>()?;
        Ok(Self { splits, shown: shown(), model })
    }

    /// Appends the ids of `text`. Bytes that are no token of their own (some vocabularies lack the rarest) are
    /// dropped, as both the tokenizers library and llama.cpp do.
    ///
    /// # Errors
    /// For a word that is too long.
    pub(crate) fn encode(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<()> {
        let mut parts = vec![text];
        for split in &self.splits {
            parts = split.isolate(&parts);
        }
        let mut shown = String::new();
        for word in parts {
            words::check(word, words::WORD_BYTES_MAX)?;
            shown.clear();
            shown.extend(word.bytes().map(|byte| self.shown[usize::from(byte)]));
            let tokens = self.model.tokenize(&shown).map_err(|e| Error::internal(format!("merging failed: {e}")))?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }
}

/// The bytes that a token of a byte-level vocabulary adds to the output.
pub(super) fn token_bytes(token: &str, kind: TokenKind) -> Vec<u8> {
    match kind {
        TokenKind::Control | TokenKind::Unknown => Vec::new(),
        TokenKind::UserDefined => token.as_bytes().to_vec(),
        TokenKind::Byte => byte_of_spelling(token).map_or_else(|| token.as_bytes().to_vec(), |byte| vec![byte]),
        TokenKind::Normal | TokenKind::Unused => {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
            bytes.unwrap_or_else(|| token.as_bytes().to_vec())
        }
    }
}

/// Splits at the space; a piece may itself begin with one.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge[first..].find(' ')?;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    (!right.is_empty()).then_some((left, right))
}

/// The character that stands for each byte: [`byte_of_char`] backwards.
fn shown() -> [char; 256] {
    let mut shown = ['\0'; 256];
    for c in ('!'..).take_while(|c| u32::from(*c) < 0x100 + 68) {
        if let Some(byte) = byte_of_char(c) {
            shown[usize::from(byte)] = c;
        }
    }
    shown
}

/// The byte that GPT-2's table shows as `c`: printable Latin-1 stands for itself, the 68 other bytes for U+0100 on, in
/// order (`bytes_to_unicode` in GPT-2's `encoder.py`).
fn byte_of_char(c: char) -> Option<u8> {
    const SHIFTED_FROM: u32 = 0x100;
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        SHIFTED_FROM.. => {
            let nth = (code - SHIFTED_FROM) as usize;
            (0..=255u8).filter(|&byte| !matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)).nth(nth)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_byte_table_agrees_with_the_library() {
        let alphabet = ByteLevel::alphabet();
        assert_eq!(alphabet.len(), 256);
        assert!(shown().iter().all(|c| alphabet.contains(c)));
        let mut seen = [false; 256];
        for c in alphabet {
            let byte = byte_of_char(c).expect("every character of the alphabet is a byte");
            assert!(!std::mem::replace(&mut seen[byte as usize], true));
        }
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
        assert_eq!(byte_of_char(' '), None);
        assert_eq!(byte_of_char('日'), None);
    }

    /// The words of `text`, as the expressions of `pre` leave them.
    fn words(pre: &str, text: &str) -> Vec<String> {
        let mut words = vec![text];
        for expression in rules_of(pre).expect("a known name").expressions {
            words = Splitter::new(expression).expect("it compiles").isolate(&words);
        }
        words.into_iter().map(str::to_owned).collect()
    }

    #[track_caller]
    fn check(pre: &str, text: &str, expect: &[&str]) {
        assert_eq!(words(pre, text), expect, "{pre}");
    }

    #[test]
    fn each_family_splits_in_its_own_way() {
        let text = "I'LL pay 12345 now,\n\n  ok?";
        check("gpt-2", text, &["I", "'", "LL", " pay", " 12345", " now", ",", "\n\n ", " ok", "?"]);
        check(
            "smollm",
            text,
            &["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " now", ",", "\n\n ", " ok", "?"],
        );
        check("llama-bpe", text, &["I", "'LL", " pay", " ", "123", "45", " now", ",\n\n", " ", " ok", "?"]);
        check("qwen2", text, &["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " now", ",\n\n", " ", " ok", "?"]);
        check("tekken", text, &["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " now", ",\n\n", " ", " ok", "?"]);
        check("gpt-4o", text, &["I'LL", " pay", " ", "123", "45", " now", ",\n\n", " ", " ok", "?"]);
        check("falcon", text, &["I", "'", "LL", " pay", " ", "123", "45", " now", ",", "\n\n ", " ok", "?"]);
        check("deepseek-v3", text, &["I", "'LL", " pay", " ", "123", "45", " now", ",\n\n", " ", " ok", "?"]);
        check("deepseek-coder", "a\n b, 12 漢字", &["a", "\n", " b", ",", " ", "1", "2", " ", "漢字"]);
        check("bloom", "Hi (you), ok", &["Hi", " (", "you", "),", " ok"]);
        check("tekken", "camelCase path/to//x\n", &["camel", "Case", " path", "/to", "//", "x", "\n"]);
        check("qwen35", "नमस्ते", &["नमस्ते"]);
        check("qwen2", "नमस्ते", &["नमस", "्त", "े"]);
    }

    #[test]
    fn aliases_split_alike() {
        let text = "It's 2024: naïve café  \t x_y\r\n";
        for (pre, alias) in [
            ("llama-bpe", "llama3"),
            ("llama-bpe", "dbrx"),
            ("qwen2", "deepseek-r1-qwen"),
            ("smollm", "starcoder"),
            ("gpt-2", "olmo"),
        ] {
            assert_eq!(words(pre, text), words(alias, text), "{alias}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = rules_of("nobody-knows").expect_err("not a name");
        assert_eq!(error.kind(), tallow_stream::error::ErrorKind::BadModel);
        assert!(error.message().contains("`nobody-knows`") && error.message().contains("smollm"), "{error}");
    }

    #[test]
    fn merges_split_at_the_space_between_pieces() {
        assert_eq!(split_merge("a b"), Some(("a", "b")));
        assert_eq!(split_merge("  b"), Some((" ", "b")));
        for bad in ["", "a", "a ", "é"] {
            assert_eq!(split_merge(bad), None, "{bad:?}");
        }
    }
}
