//! SentencePiece's BPE (GGUF's `llama`): adjacent pieces merge while the result is a piece, best score first, the
//! leftmost of equal ones first (Kudo and Richardson 2018; `bpe_model.cc` is the reference the ids are tested against).
//! What is left as a single unknown character becomes its bytes.
//!
//! ```text
//! symbols := the characters of the text
//! heap    := every adjacent pair whose joint spelling is a piece, by (score, leftmost)
//! while heap: pop; if both sides are unchanged: join them, push the two pairs that arise
//! ```
//!
//! Our own and not the tokenizers library: deriving ranked merges from scores means finding every way to cut a quarter
//! of a million pieces, which costs seconds at load; looking up the joint spelling costs nothing and is what the
//! reference does. O(n log n) in the text.
//!
//! SentencePiece writes `▁` for a space inside its pieces. Here pieces are stored with the space they mean, so text is
//! looked up as it is. A `▁` in the text is taken for a space, as SentencePiece does: the one character that does not
//! come back.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::pieces::{PieceIndex, Pieces, byte_of_spelling};
use super::vocab::{TokenKind, Vocab};
use super::words;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// SentencePiece's stand-in for a space.
pub(super) const SPACE_MARK: char = '\u{2581}';

/// Text to ids by scores.
#[derive(Debug)]
pub(super) struct SentencePiece {
    index: PieceIndex,
    scores: Vec<f32>,
    /// Sorted; merges may pass through them, but they are taken apart again at the end.
    unused: Vec<TokenId>,
    byte_tokens: Vec<Option<TokenId>>,
    unknown: Option<TokenId>,
    add_space_prefix: bool,
}

impl SentencePiece {
    /// Sets up the model of a checked vocabulary whose bytes are in `pieces`.
    pub(crate) fn new(vocab: &Vocab, scores: &[f32], pieces: &Pieces) -> Self {
        let ids_of = |kind| (0..).zip(&vocab.kinds).filter(move |(_, k)| **k == kind).map(|(id, _): (TokenId, _)| id);
        let mergeable = (0..).zip(&vocab.kinds).filter(|(_, k)| matches!(k, TokenKind::Normal | TokenKind::Unused));
        let mut byte_tokens = vec![None; 256];
        for id in ids_of(TokenKind::Byte) {
            if let Some(byte) = byte_of_spelling(&vocab.tokens[id as usize]) {
                byte_tokens[byte as usize].get_or_insert(id);
            }
        }
        Self {
            index: PieceIndex::new(pieces, mergeable.map(|(id, _)| id)),
            // Adding zero makes the two zeros one, so that they compare as equal scores.
            scores: scores.iter().map(|score| score + 0.0).collect(),
            unused: ids_of(TokenKind::Unused).collect(),
            byte_tokens,
            unknown: ids_of(TokenKind::Unknown).next(),
            add_space_prefix: vocab.add_space_prefix,
        }
    }

    /// Whether a space goes in front of text at the beginning and behind special tokens.
    pub(crate) fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// Appends the ids of `text`; `at_start` if nothing or a special token precedes it.
    ///
    /// # Errors
    /// For a text that is too long; if a character is no piece and the vocabulary has neither byte nor unknown tokens.
    pub(crate) fn encode(&self, pieces: &Pieces, text: &str, at_start: bool, ids: &mut Vec<TokenId>) -> Result<()> {
        words::check(text, words::STRETCH_BYTES_MAX)?;
        let mut text = Cow::Borrowed(text);
        if text.contains(SPACE_MARK) {
            text = Cow::Owned(text.replace(SPACE_MARK, " "));
        }
        if at_start && self.add_space_prefix {
            text = Cow::Owned(format!(" {text}"));
        }
        let mut merger = Merger::new(self, pieces, &text);
        merger.run();
        let mut symbol = Some(0);
        while let Some(index) = symbol {
            let Symbol { start, len, next, .. } = merger.symbols[index];
            self.emit(pieces, &text.as_bytes()[start..start + len], &merger.unused_cuts, ids)?;
            symbol = next;
        }
        Ok(())
    }

    /// Appends the token of a finished symbol, the parts of an unused one, or its bytes.
    fn emit(
        &self,
        pieces: &Pieces,
        bytes: &[u8],
        unused_cuts: &HashMap<TokenId, usize>,
        ids: &mut Vec<TokenId>,
    ) -> Result<()> {
        // Parts still to do, the next one last; a cut leaves two shorter ones, so this ends.
        let mut todo = vec![bytes];
        while let Some(bytes) = todo.pop() {
            let Some(id) = self.index.get(pieces, bytes) else {
                self.emit_bytes(bytes, ids)?;
                continue;
            };
            match unused_cuts.get(&id) {
                Some(&cut) => todo.extend([&bytes[cut..], &bytes[..cut]]),
                None => ids.push(id),
            }
        }
        Ok(())
    }

    fn emit_bytes(&self, bytes: &[u8], ids: &mut Vec<TokenId>) -> Result<()> {
        let before = ids.len();
        for &byte in bytes {
            let Some(id) = self.byte_tokens[byte as usize] else {
                ids.truncate(before);
                let unknown = self.unknown.ok_or_else(|| {
                    let character = String::from_utf8_lossy(bytes).into_owned();
                    Error::invalid("prompt", format!("this model's vocabulary cannot spell {character:?}"))
                })?;
                // A run of unknown characters is one unknown token.
                if ids.last() != Some(&unknown) {
                    ids.push(unknown);
                }
                return Ok(());
            };
            ids.push(id);
        }
        Ok(())
    }
}

/// One run of merging over one text.
struct Merger<'a> {
    model: &'a SentencePiece,
    pieces: &'a Pieces,
    text: &'a [u8],
    symbols: Vec<Symbol>,
    heap: BinaryHeap<PieceCandidate>,
    /// Where an unused piece was joined, to take it apart again.
    unused_cuts: HashMap<TokenId, usize>,
}

/// A stretch of the text in a doubly linked list; of length 0 once merged into its left neighbour.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours whose joint spelling is a piece.
struct PieceCandidate {
    score: f32,
    left: usize,
    right: usize,
    /// Joint length when found; differs from today's once a side has grown.
    len: usize,
}

impl<'a> Merger<'a> {
    fn new(model: &'a SentencePiece, pieces: &'a Pieces, text: &'a str) -> Self {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                prev: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let heap = BinaryHeap::with_capacity(symbols.len());
        Self { model, pieces, text: text.as_bytes(), symbols, heap, unused_cuts: HashMap::new() }
    }

    fn run(&mut self) {
        for right in 1..self.symbols.len() {
            self.consider(right - 1, right);
        }
        while let Some(PieceCandidate { left, right, len, .. }) = self.heap.pop() {
            let (a, b) = (self.symbols[left], self.symbols[right]);
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue;
            }
            self.symbols[left] = Symbol { len, next: b.next, ..a };
            self.symbols[right].len = 0;
            if let Some(next) = b.next {
                self.symbols[next].prev = Some(left);
                self.consider(left, next);
            }
            if let Some(prev) = a.prev {
                self.consider(prev, left);
            }
        }
    }

    /// Pushes the pair if it spells a piece.
    fn consider(&mut self, left: usize, right: usize) {
        let (a, b) = (self.symbols[left], self.symbols[right]);
        let len = a.len + b.len;
        let Some(id) = self.model.index.get(self.pieces, &self.text[a.start..a.start + len]) else { return };
        if self.model.unused.binary_search(&id).is_ok() {
            self.unused_cuts.insert(id, a.len);
        }
        self.heap.push(PieceCandidate { score: self.model.scores[id as usize], left, right, len });
    }
}

impl Ord for PieceCandidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for PieceCandidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PieceCandidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PieceCandidate {}

/// The bytes that a token of a SentencePiece vocabulary stands for, in text and in output.
pub(super) fn token_bytes(token: &str, kind: TokenKind) -> Vec<u8> {
    match kind {
        TokenKind::Control | TokenKind::Unknown => Vec::new(),
        TokenKind::Byte => byte_of_spelling(token).map_or_else(|| token.as_bytes().to_vec(), |byte| vec![byte]),
        TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused => token.replace(SPACE_MARK, " ").into_bytes(),
    }
}
