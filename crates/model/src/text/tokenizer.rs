//! The vocabulary: text to ids, and each id's bytes.
//!
//! Text is first cut at the spellings of special tokens, the stretches between them go through the scheme (byte-level
//! BPE, SentencePiece, or a `tokenizer.json`), and ids go back to bytes through one table, whatever the scheme.

use std::collections::HashMap;

use super::answer::MARKERS;
use super::bpe::{self, Bpe};
use super::framed::{FramedTokenizer, WORD_BYTES_MAX};
use super::json::JsonModel;
use super::pieces::Pieces;
use super::sentencepiece::{self, SPACE_MARK, SentencePiece};
use super::special::{Segment, SpecialTokens};
use super::vocab::{Scheme, TokenKind, Vocab};
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// A model's vocabulary. Cheap to share behind an `Arc`; every method takes `&self`.
#[derive(Debug)]
pub struct Tokenizer {
    /// Bytes of each token; empty for control tokens.
    pieces: Pieces,
    scheme: PieceEncoder,
    /// Spellings that are tokens in text a template rendered: control, unknown and user-defined.
    all_special: SpecialTokens,
    /// Spellings that are tokens in any text: user-defined.
    user_defined: SpecialTokens,
    /// How the special tokens are spelled.
    spellings: HashMap<TokenId, String>,
    /// Control tokens that are part of an answer's form.
    markers: HashMap<TokenId, &'static str>,
    /// Whether encoding puts a space in front of text, which decoding takes away again.
    adds_space_prefix: bool,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    end_of_generation: Vec<TokenId>,
}

#[derive(Debug)]
enum PieceEncoder {
    Bytes,
    Bpe(Box<Bpe>),
    SentencePiece(SentencePiece),
    Json(Box<JsonModel>),
    Framed(Box<FramedTokenizer>),
}

impl Tokenizer {
    /// One token per byte value, and token 256 as end of generation: the stub model's vocabulary.
    pub fn byte_level() -> Self {
        let mut pieces = Pieces::default();
        for byte in 0..=255u8 {
            pieces.push(&[byte]);
        }
        pieces.push(&[]);
        Self::plain(pieces, PieceEncoder::Bytes).with_ends(None, Some(256), Vec::new())
    }

    /// Builds the tokenizer a vocabulary describes.
    ///
    /// # Errors
    /// [`tallow_stream::error::ErrorKind::BadModel`] if the vocabulary's parts do not fit together ([`Vocab::check`]), its
    /// `pre` is unknown or a merge is malformed.
    pub fn from_vocab(vocab: Vocab) -> Result<Self> {
        vocab.check()?;
        let mut pieces = Pieces::default();
        for (token, &kind) in vocab.tokens.iter().zip(&vocab.kinds) {
            pieces.push(&match vocab.scheme {
                Scheme::Bpe { .. } => bpe::token_bytes(token, kind),
                Scheme::SentencePiece { .. } => sentencepiece::token_bytes(token, kind),
            });
        }
        let encoder = match &vocab.scheme {
            Scheme::Bpe { pre, merges } => PieceEncoder::Bpe(Box::new(Bpe::new(&vocab, pre, merges)?)),
            Scheme::SentencePiece { scores } => {
                PieceEncoder::SentencePiece(SentencePiece::new(&vocab, scores, &pieces))
            }
        };
        let mut tokenizer = Self::plain(pieces, encoder);
        tokenizer.add_bos = vocab.add_bos;
        tokenizer.set_special(&vocab);
        tokenizer.set_markers();
        Ok(tokenizer.with_ends(vocab.bos, vocab.eos, vocab.end_of_generation))
    }

    /// Reads a `tokenizer.json`. What such a file does not say (beginning and end of text) comes from `vocab`, or
    /// without one from the file's post-processor and the usual spellings.
    ///
    /// # Errors
    /// [`tallow_stream::error::ErrorKind::BadModel`] if the file is damaged, uses what the tokenizers library lacks, or has
    /// more tokens than `vocab`.
    pub fn from_json(json: &[u8], vocab: Option<Vocab>) -> Result<Self> {
        let model = JsonModel::new(json)?;
        let facts = model.facts();
        let mut pieces = model.pieces()?;
        if let Some(vocab) = &vocab {
            vocab.check()?;
            if pieces.len() > vocab.tokens.len() {
                let (got, most) = (pieces.len(), vocab.tokens.len());
                return Err(Error::bad_model(format!("tokenizer.json has {got} tokens, the model file {most}")));
            }
            // Model files pad their vocabulary; the padding has no text.
            while pieces.len() < vocab.tokens.len() {
                pieces.push(&[]);
            }
        }
        let spellings = model.special_spellings();
        let mut tokenizer = Self::plain(pieces, PieceEncoder::Json(Box::new(model)));
        tokenizer = match vocab {
            Some(vocab) => {
                tokenizer.add_bos = vocab.add_bos;
                tokenizer.with_ends(vocab.bos, vocab.eos, vocab.end_of_generation)
            }
            None => {
                tokenizer.add_bos = facts.bos.is_some();
                tokenizer.with_ends(facts.bos, facts.end_of_generation.first().copied(), facts.end_of_generation)
            }
        };
        tokenizer.all_special = SpecialTokens::new(spellings.iter().map(|(id, text)| (*id, text.as_str())));
        tokenizer.spellings = spellings;
        tokenizer.set_markers();
        let first = tokenizer.encode("a", false)?.first().copied();
        tokenizer.adds_space_prefix = first.is_some_and(|id| tokenizer.token_bytes(id).first() == Some(&b' '));
        Ok(tokenizer)
    }

    /// Reads the `tokenizer.json` of an encoder, whose texts stand between tokens of their own. Its tokens are never spelled
    /// back, so none has bytes.
    ///
    /// # Errors
    /// [`tallow_stream::error::ErrorKind::BadModel`] if the file is damaged.
    pub fn framed(json: &[u8]) -> Result<Self> {
        let model = FramedTokenizer::from_json(json)?;
        let mut pieces = Pieces::default();
        (0..model.vocab_size()).for_each(|_| pieces.push(&[]));
        Ok(Self::plain(pieces, PieceEncoder::Framed(Box::new(model))))
    }

    /// Ids of `text`. With `parse_special`, the spelling of a control token in the text becomes that token (for text
    /// that a template rendered); without, it stays text (for text that a user wrote). Adds nothing of its own:
    /// a prompt goes through [`Tokenizer::begin`] then.
    ///
    /// # Errors
    /// If the text cannot be spelled in this vocabulary.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<TokenId>> {
        let mut ids = Vec::new();
        if let PieceEncoder::Json(model) = &self.scheme {
            model.encode(text, parse_special, &mut ids)?;
            return Ok(ids);
        }
        if let PieceEncoder::Framed(model) = &self.scheme {
            return model.encode(text);
        }
        let special = if parse_special { &self.all_special } else { &self.user_defined };
        let mut at_start = true;
        for segment in special.split(text) {
            match segment {
                Segment::Token(id) => ids.push(id),
                Segment::Text(text) => self.encode_words(text, at_start, &mut ids)?,
            }
            at_start = matches!(segment, Segment::Token(_));
        }
        Ok(ids)
    }

    /// Puts the beginning-of-text token in front of a prompt, if this model's prompts begin with it and it does not stand
    /// there already, as a template may have written it.
    pub fn begin(&self, ids: &mut Vec<TokenId>) {
        let bos = self.bos.filter(|&bos| self.add_bos && ids.first() != Some(&bos));
        if let Some(bos) = bos {
            ids.insert(0, bos);
        }
    }

    /// The text of `ids`, without control tokens: the inverse of [`Tokenizer::encode`]. A space that encoding put in
    /// front of text (at the beginning and behind special tokens) is taken away again, which is the difference to
    /// joining [`Tokenizer::token_bytes`].
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut bytes = Vec::new();
        let mut at_start = true;
        for &id in ids {
            let piece = self.token_bytes(id);
            let is_special = self.spellings.contains_key(&id);
            let is_prefixed = self.adds_space_prefix && at_start && !is_special;
            bytes.extend_from_slice(if is_prefixed { piece.strip_prefix(b" ").unwrap_or(piece) } else { piece });
            at_start = is_special;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes `token` stands for; empty for control tokens and unknown ids.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.pieces.get(token)
    }

    /// The bytes `token` adds to a generation's text: [`Tokenizer::token_bytes`], and the spelling of control tokens
    /// that mark calls and reasoning. Whoever takes an answer apart finds them in its text, whatever kind of token a
    /// vocabulary makes of them. In a prompt they stay what they are.
    pub fn output_bytes(&self, token: TokenId) -> &[u8] {
        self.markers.get(&token).map_or_else(|| self.token_bytes(token), |spelling| spelling.as_bytes())
    }

    /// The control token of a marker of calls or reasoning; `None` where it is text.
    pub fn marker_token(&self, spelling: &str) -> Option<TokenId> {
        self.markers.iter().find(|(_, marker)| **marker == spelling).map(|(token, _)| *token)
    }

    /// How a special token is written in text (`<|im_end|>`), for templates and messages; `None` for other tokens.
    pub fn special_spelling(&self, token: TokenId) -> Option<&str> {
        self.spellings.get(&token).map(String::as_str)
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// No token stands for more bytes of a text. Without a bound where a normaliser may take any number of bytes away.
    pub fn token_bytes_max(&self) -> usize {
        match &self.scheme {
            PieceEncoder::Json(_) => usize::MAX,
            PieceEncoder::Framed(_) => WORD_BYTES_MAX,
            _ => self.spellings.values().map(String::len).fold(self.pieces.longest(), usize::max),
        }
    }

    /// Whether `token` ends a generation (end of text, end of turn).
    pub fn is_end_of_generation(&self, token: TokenId) -> bool {
        self.end_of_generation.contains(&token)
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The end-of-text token.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// Whether a prompt must begin with [`Tokenizer::bos`]. A prompt that is text gets it by
    /// [`Tokenizer::begin`]; token ids that a client sends are taken as they are.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Ids of `text` where it stands behind other text: as [`Tokenizer::encode`] without special tokens, but no space
    /// goes in front.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_behind(&self, text: &str) -> Result<Vec<TokenId>> {
        let mut ids = Vec::new();
        for segment in self.user_defined.split(text) {
            match segment {
                Segment::Token(id) => ids.push(id),
                Segment::Text(text) => self.encode_words(text, false, &mut ids)?,
            }
        }
        Ok(ids)
    }

    pub(super) fn special(&self) -> &SpecialTokens {
        &self.all_special
    }

    pub(super) fn encode_words(&self, text: &str, at_start: bool, ids: &mut Vec<TokenId>) -> Result<()> {
        match &self.scheme {
            PieceEncoder::Bytes => ids.extend(text.bytes().map(TokenId::from)),
            PieceEncoder::Bpe(model) => model.encode(text, ids)?,
            PieceEncoder::SentencePiece(model) => model.encode(&self.pieces, text, at_start, ids)?,
            PieceEncoder::Json(model) => model.encode(text, false, ids)?,
            PieceEncoder::Framed(model) => ids.extend(model.encode(text)?),
        }
        Ok(())
    }

    /// Without special tokens and ends.
    fn plain(pieces: Pieces, scheme: PieceEncoder) -> Self {
        let adds_space_prefix = matches!(&scheme, PieceEncoder::SentencePiece(model) if model.adds_space_prefix());
        Self {
            pieces,
            scheme,
            all_special: SpecialTokens::default(),
            user_defined: SpecialTokens::default(),
            spellings: HashMap::new(),
            markers: HashMap::new(),
            adds_space_prefix,
            bos: None,
            eos: None,
            add_bos: false,
            end_of_generation: Vec::new(),
        }
    }

    fn with_ends(mut self, bos: Option<TokenId>, eos: Option<TokenId>, end_of_generation: Vec<TokenId>) -> Self {
        self.bos = bos;
        self.eos = eos;
        self.end_of_generation = end_of_generation;
        self.end_of_generation.extend(eos);
        self.end_of_generation.sort_unstable();
        self.end_of_generation.dedup();
        self
    }

    fn set_markers(&mut self) {
        let marker = |text: &str| MARKERS.iter().find(|marker| **marker == text).copied();
        let markers = self.spellings.iter().filter_map(|(id, text)| Some((*id, marker(text)?)));
        self.markers = markers.filter(|(id, _)| self.pieces.get(*id).is_empty()).collect();
    }

    fn set_special(&mut self, vocab: &Vocab) {
        let of = |kinds: &'static [TokenKind]| {
            let numbered = (0..).zip(vocab.tokens.iter().zip(&vocab.kinds));
            numbered
                .filter(|(_, (_, kind))| kinds.contains(kind))
                .map(|(id, (token, _)): (TokenId, _)| (id, token.as_str()))
        };
        // Files spell a user-defined run of spaces either way; text may hold either.
        let marked: Vec<(TokenId, String)> = match vocab.scheme {
            Scheme::Bpe { .. } => Vec::new(),
            Scheme::SentencePiece { .. } => of(&[TokenKind::UserDefined])
                .filter(|(_, token)| token.contains([' ', SPACE_MARK]))
                .flat_map(|(id, token)| [(id, token.replace(' ', "\u{2581}")), (id, token.replace(SPACE_MARK, " "))])
                .collect(),
        };
        let marked = || marked.iter().map(|(id, token)| (*id, token.as_str()));
        self.user_defined = SpecialTokens::new(of(&[TokenKind::UserDefined]).chain(marked()));
        const SPECIAL: &[TokenKind] = &[TokenKind::Control, TokenKind::Unknown, TokenKind::UserDefined];
        self.all_special = SpecialTokens::new(of(SPECIAL).chain(marked()));
        self.spellings = of(SPECIAL).map(|(id, token)| (id, token.to_owned())).collect();
    }
}

#[cfg(test)]
mod tests;
