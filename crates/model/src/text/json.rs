//! A `tokenizer.json` as the tokenizers library reads it: normaliser, splitters, model and added tokens are the
//! library's; only the choice whether control tokens may come from text, and the bytes of each token, are ours.

use std::collections::HashMap;

use tokenizers::{AddedVocabulary, Model, OffsetReferential, OffsetType, PreTokenizer, Tokenizer as Library};

use super::bpe;
use super::pieces::Pieces;
use super::sentencepiece;
use super::vocab::TokenKind;
use super::words;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// Spellings by which published models end a text or a turn, for files that come without the model's own word.
const END_SPELLINGS: &[&str] = &[
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<|eot|>",
];

/// No published vocabulary comes near.
const TOKEN_ID_MAX: TokenId = 1 << 22;

/// The library's tokenizer, and its added tokens a second time with the special ones left as text.
pub(super) struct JsonModel {
    library: Library,
    plain_added: AddedVocabulary,
}

/// What the file says about the ends of text.
pub(super) struct JsonFacts {
    /// The token that the post-processor puts in front of a text.
    pub bos: Option<TokenId>,
    /// Special tokens with a well-known end spelling.
    pub end_of_generation: Vec<TokenId>,
}

impl std::fmt::Debug for JsonModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JsonModel").field("vocab_size", &self.library.get_vocab_size(true)).finish_non_exhaustive()
    }
}

impl JsonModel {
    /// Reads the file.
    pub(crate) fn new(json: &[u8]) -> Result<Self> {
        let library =
            Library::from_bytes(json).map_err(|e| Error::bad_model(format!("tokenizer.json cannot be read: {e}")))?;
        let mut plain_added = library.get_added_vocabulary().clone();
        plain_added.set_encode_special_tokens(true);
        Ok(Self { library, plain_added })
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, text: &str, parse_special: bool, ids: &mut Vec<TokenId>) -> Result<()> {
        let added = if parse_special { self.library.get_added_vocabulary() } else { &self.plain_added };
        let mut words = added.extract_and_normalize(self.library.get_normalizer(), text);
        if let Some(splitter) = self.library.get_pre_tokenizer() {
            splitter
                .pre_tokenize(&mut words)
                .map_err(|e| Error::internal(format!("splitting text into words failed: {e}")))?;
        }
        for (word, _, tokens) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => {
                    words::check(word, words::WORD_BYTES_MAX)?;
                    let tokens = self.library.get_model().tokenize(word);
                    let tokens = tokens.map_err(|e| Error::internal(format!("tokenising failed: {e}")))?;
                    ids.extend(tokens.iter().map(|token| token.id));
                }
            }
        }
        Ok(())
    }

    /// The bytes of every token. A byte-level decoder means GPT-2's characters, any other SentencePiece's marks.
    ///
    /// # Errors
    /// [`tallow_stream::error::ErrorKind::BadModel`] if an id is absurdly large: gaps are filled, so it would cost memory.
    pub(crate) fn pieces(&self) -> Result<Pieces> {
        let decoder = self.library.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        let is_byte_level = decoder.is_some_and(|decoder| decoder.contains("ByteLevel"));
        let added = self.library.get_added_tokens_decoder();
        let mut tokens: Vec<(TokenId, String)> =
            self.library.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        if let Some((id, token)) = tokens.last().filter(|(id, _)| *id > TOKEN_ID_MAX) {
            return Err(Error::bad_model(format!("token ids are at most {TOKEN_ID_MAX}, got {id} for `{token}`")));
        }
        let mut pieces = Pieces::default();
        for (id, token) in tokens {
            while pieces.len() < id as usize {
                pieces.push(&[]);
            }
            let kind = match added.get(&id) {
                Some(token) if token.special => TokenKind::Control,
                Some(_) => TokenKind::UserDefined,
                None if !is_byte_level && super::pieces::byte_of_spelling(&token).is_some() => TokenKind::Byte,
                None => TokenKind::Normal,
            };
            if pieces.len() == id as usize {
                let bytes_of = if is_byte_level { bpe::token_bytes } else { sentencepiece::token_bytes };
                pieces.push(&bytes_of(&token, kind));
            }
        }
        Ok(pieces)
    }

    /// How the added tokens are written.
    pub(crate) fn special_spellings(&self) -> HashMap<TokenId, String> {
        self.library.get_added_tokens_decoder().into_iter().map(|(id, token)| (id, token.content)).collect()
    }

    /// What can be known about the ends of text.
    pub(crate) fn facts(&self) -> JsonFacts {
        let added = self.library.get_added_tokens_decoder();
        let first = self.library.encode_fast("", true).ok().and_then(|encoding| encoding.get_ids().first().copied());
        let bos = first.filter(|id| added.get(id).is_some_and(|token| token.special));
        let mut end_of_generation: Vec<TokenId> = added
            .iter()
            .filter(|(_, token)| token.special && END_SPELLINGS.contains(&token.content.as_str()))
            .map(|(id, _)| *id)
            .collect();
        end_of_generation.sort_unstable();
        JsonFacts { bos, end_of_generation }
    }
}
