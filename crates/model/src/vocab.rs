//! From a file's metadata to a [`Vocab`]: the only place that knows under which keys GGUF keeps a vocabulary. What
//! the tokens do with text is `text/`'s business.
//!
//! Defaults for absent keys are llama.cpp's, because files are written with it in mind: SentencePiece vocabularies
//! begin prompts with bos (id 1) and a space, byte-level ones with neither, except the families of Llama 3 and
//! Tekken, whose early files lack the flag and are wrong without bos.

use std::path::{Path, PathBuf};

use crate::gguf::Metadata;
use crate::text::{Scheme, TokenKind, Vocab};
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// What a byte-level vocabulary without [`PRE`] is split by.
const PRE_DEFAULT: &str = "default";

/// Byte-level families that begin with bos even where the file does not say so.
const PRE_WITH_BOS: [&str; 8] =
    ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken", "chameleon"];

/// Control tokens that end a turn or a text, in the spellings of the model families that use them. Only control
/// tokens count: in Gemma's vocabulary `</s>` is the HTML tag.
const END_SPELLINGS: [&str; 19] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
];

/// The file that takes the place of a model file's own vocabulary, where there is one.
pub(crate) fn tokenizer_beside(path: &Path) -> PathBuf {
    path.with_file_name("tokenizer.json")
}

/// The vocabulary that a file describes.
///
/// # Errors
/// If a key is missing, has the wrong type or a value out of range, arrays disagree about their length, or the kind
/// of vocabulary is not supported. The message names the key.
pub fn vocab_from_gguf(meta: &Metadata) -> Result<Vocab> {
    let is_sentencepiece = match meta.get_str(MODEL)? {
        "gpt2" => false,
        "llama" => true,
        other => {
            return Err(Error::bad_model(format!(
                "key `{MODEL}` is {other:?}, which is not supported; supported are \"gpt2\" and \"llama\""
            )));
        }
    };
    let tokens: Vec<String> = meta.strings(TOKENS)?.iter().map(str::to_owned).collect();
    if tokens.is_empty() {
        return Err(Error::bad_model(format!("key `{TOKENS}` is empty")));
    }
    let kinds = kinds(meta, tokens.len())?;
    let scheme = if is_sentencepiece { sentencepiece(meta, tokens.len())? } else { bpe(meta)? };
    let bos_default = if is_sentencepiece { Some(1) } else { None };
    let bos = token_id(meta, BOS, tokens.len())?.or(bos_default.filter(|&id| (id as usize) < tokens.len()));
    let eos = token_id(meta, EOS, tokens.len())?;
    let add_bos_default = match &scheme {
        Scheme::SentencePiece { .. } => true,
        Scheme::Bpe { pre, .. } => PRE_WITH_BOS.contains(&pre.as_str()),
    };
    let add_bos = match meta.opt_bool(ADD_BOS)? {
        Some(true) if bos.is_none() => {
            return Err(Error::bad_model(format!("key `{ADD_BOS}` is true, but key `{BOS}` is missing")));
        }
        Some(add_bos) => add_bos,
        None => add_bos_default && bos.is_some(),
    };
    let add_space_prefix = meta.opt_bool(ADD_SPACE_PREFIX)?.unwrap_or(is_sentencepiece);
    let end_of_generation = end_of_generation(meta, &tokens, &kinds, eos)?;
    Ok(Vocab { tokens, kinds, scheme, bos, eos, end_of_generation, add_bos, add_space_prefix })
}

/// Types of the tokens; without the key all are normal.
fn kinds(meta: &Metadata, num_tokens: usize) -> Result<Vec<TokenKind>> {
    let Some(types) = meta.opt_i32s(TOKEN_TYPE)? else {
        return Ok(vec![TokenKind::Normal; num_tokens]);
    };
    check_len(TOKEN_TYPE, types.len(), num_tokens)?;
    let kind = |(i, &t): (usize, &i32)| match t {
        1 => Ok(TokenKind::Normal),
        2 => Ok(TokenKind::Unknown),
        3 => Ok(TokenKind::Control),
        4 => Ok(TokenKind::UserDefined),
        5 => Ok(TokenKind::Unused),
        6 => Ok(TokenKind::Byte),
        _ => Err(Error::bad_model(format!("key `{TOKEN_TYPE}`: element {i} must be 1 to 6, is {t}"))),
    };
    types.iter().enumerate().map(kind).collect()
}

fn sentencepiece(meta: &Metadata, num_tokens: usize) -> Result<Scheme> {
    let scores = meta.opt_f32s(SCORES)?.ok_or_else(|| Error::bad_model(format!("key `{SCORES}` is missing")))?;
    check_len(SCORES, scores.len(), num_tokens)?;
    if let Some(i) = scores.iter().position(|s| s.is_nan()) {
        return Err(Error::bad_model(format!("key `{SCORES}`: element {i} is not a number")));
    }
    Ok(Scheme::SentencePiece { scores })
}

fn bpe(meta: &Metadata) -> Result<Scheme> {
    let pre = meta.opt_str(PRE)?.filter(|pre| !pre.is_empty()).unwrap_or(PRE_DEFAULT).to_owned();
    let merges = meta.strings(MERGES)?.iter().map(str::to_owned).collect();
    Ok(Scheme::Bpe { pre, merges })
}

/// The eos token first, then the others in order of their ids.
fn end_of_generation(
    meta: &Metadata,
    tokens: &[String],
    kinds: &[TokenKind],
    eos: Option<TokenId>,
) -> Result<Vec<TokenId>> {
    let mut ends = Vec::new();
    for key in [EOT, EOM] {
        ends.extend(token_id(meta, key, tokens.len())?);
    }
    for (id, (token, &kind)) in tokens.iter().zip(kinds).enumerate() {
        if kind == TokenKind::Control && END_SPELLINGS.contains(&token.as_str()) {
            // Fewer than 2^24 tokens: the reader's limit on arrays.
            ends.push(id as TokenId);
        }
    }
    ends.sort_unstable();
    ends.dedup();
    ends.retain(|&id| Some(id) != eos);
    Ok(eos.into_iter().chain(ends).collect())
}

fn token_id(meta: &Metadata, key: &str, num_tokens: usize) -> Result<Option<TokenId>> {
    match meta.opt_u32(key)? {
        Some(id) if id as usize >= num_tokens => {
            Err(Error::bad_model(format!("key `{key}` must be less than the number of tokens {num_tokens}, is {id}")))
        }
        id => Ok(id),
    }
}

fn check_len(key: &str, len: usize, num_tokens: usize) -> Result<()> {
    if len == num_tokens {
        return Ok(());
    }
    Err(Error::bad_model(format!("key `{key}` has {len} elements, but key `{TOKENS}` has {num_tokens}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::builder::Builder;

    fn vocab(file: &Builder) -> Result<Vocab> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.gguf");
        std::fs::write(&path, file.build()).unwrap();
        vocab_from_gguf(crate::gguf::Gguf::open(&path).unwrap().metadata())
    }

    fn bpe_file() -> Builder {
        Builder::new()
            .str(MODEL, "gpt2")
            .strings(TOKENS, &["a", "b", "ab", "<|im_end|>", "<|endoftext|>"])
            .i32s(TOKEN_TYPE, &[1, 1, 1, 3, 3])
            .strings(MERGES, &["a b"])
            .u32(EOS, 4)
    }

    fn sentencepiece_file() -> Builder {
        Builder::new()
            .str(MODEL, "llama")
            .strings(TOKENS, &["<unk>", "<s>", "</s>", "<0x00>", "▁a", "b"])
            .f32s(SCORES, &[0.0, 0.0, 0.0, 0.0, -1.0, -2.0])
            .i32s(TOKEN_TYPE, &[2, 3, 4, 6, 1, 5])
    }

    #[track_caller]
    fn check_error(file: &Builder, expected: &str) {
        let error = vocab(file).expect_err("accepted");
        assert!(error.message().contains(expected), "expected `{expected}` in: {error}");
    }

    #[test]
    fn byte_level_vocabulary() {
        let v = vocab(&bpe_file().str(PRE, "smollm")).unwrap();
        assert_eq!(v.scheme, Scheme::Bpe { pre: "smollm".into(), merges: vec!["a b".into()] });
        assert_eq!(v.tokens[2], "ab");
        assert_eq!(v.kinds[3], TokenKind::Control);
        assert_eq!((v.bos, v.eos, v.add_bos, v.add_space_prefix), (None, Some(4), false, false));
        assert_eq!(v.end_of_generation, [4, 3]);
    }

    #[test]
    fn sentencepiece_vocabulary() {
        let v = vocab(&sentencepiece_file()).unwrap();
        assert!(matches!(&v.scheme, Scheme::SentencePiece { scores } if scores[4] == -1.0));
        use TokenKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
        assert_eq!(v.kinds, [Unknown, Control, UserDefined, Byte, Normal, Unused]);
        assert_eq!((v.bos, v.eos, v.add_bos, v.add_space_prefix), (Some(1), None, true, true));
        assert!(v.end_of_generation.is_empty(), "`</s>` is not a control token here, so it is text");
    }

    #[test]
    fn a_byte_level_vocabulary_without_pre_is_split_by_the_default() {
        for file in [bpe_file(), bpe_file().str(PRE, "")] {
            assert!(matches!(vocab(&file).unwrap().scheme, Scheme::Bpe { pre, .. } if pre == "default"));
        }
    }

    #[test]
    fn llama_3_begins_with_bos_unless_the_file_says_otherwise() {
        let file = || bpe_file().str(PRE, "llama-bpe").u32(BOS, 3);
        assert!(vocab(&file()).unwrap().add_bos);
        assert!(!vocab(&file().bool(ADD_BOS, false)).unwrap().add_bos);
    }

    #[test]
    fn eot_and_eom_end_a_generation_once_each() {
        let v = vocab(&bpe_file().u32(EOT, 3).u32(EOM, 0)).unwrap();
        assert_eq!(v.end_of_generation, [4, 0, 3]);
    }

    #[test]
    fn errors_name_the_key() {
        let base = || Builder::new().strings(TOKENS, &["a", "b"]);
        check_error(&base(), "`tokenizer.ggml.model` is missing");
        check_error(&base().str(MODEL, "bert"), "supported are \"gpt2\" and \"llama\"");
        check_error(&Builder::new().str(MODEL, "gpt2"), "`tokenizer.ggml.tokens` is missing");
        check_error(&Builder::new().str(MODEL, "gpt2").strings(TOKENS, &[]), "`tokenizer.ggml.tokens` is empty");
        check_error(&base().str(MODEL, "gpt2"), "`tokenizer.ggml.merges` is missing");
        check_error(&base().str(MODEL, "gpt2").u32(MERGES, 1), "`tokenizer.ggml.merges` must be an array of strings");
        check_error(&base().str(MODEL, "llama"), "`tokenizer.ggml.scores` is missing");
        check_error(&base().str(MODEL, "llama").f32s(SCORES, &[0.0]), "`tokenizer.ggml.scores` has 1 elements");
        check_error(&base().str(MODEL, "llama").f32s(SCORES, &[0.0, f32::NAN]), "element 1 is not a number");
        check_error(&base().str(MODEL, "gpt2").i32s(TOKEN_TYPE, &[1]), "`tokenizer.ggml.token_type` has 1 elements");
        check_error(&base().str(MODEL, "gpt2").i32s(TOKEN_TYPE, &[1, 7]), "element 1 must be 1 to 6, is 7");
        check_error(&bpe_file().u32(BOS, 5), "`tokenizer.ggml.bos_token_id` must be less than");
        check_error(&bpe_file().u32(EOT, 99), "`tokenizer.ggml.eot_token_id` must be less than");
        check_error(&bpe_file().bool(ADD_BOS, true), "`tokenizer.ggml.bos_token_id` is missing");
        check_error(&bpe_file().str(EOM, "x"), "`tokenizer.ggml.eom_token_id` must be an integer");
    }
}
