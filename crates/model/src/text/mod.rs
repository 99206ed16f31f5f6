//! Tokens to text and back, and text made fit for a terminal. Built from plain data (a vocabulary), so this floor knows
//! no model file and no template.

mod answer;
mod bpe;
mod detokenizer;
mod framed;
mod json;
mod pieces;
mod pretokenizer;
mod sentencepiece;
mod shield;
mod special;
mod stop;
mod tokenizer;
mod vocab;
mod words;

pub use answer::{
    AnswerFormat, AnswerParser, CallFormat, CallSyntax, FREE_TEXT, Piece, ReasoningCount, ReasoningFormat,
    ReasoningSyntax,
};
pub use detokenizer::Detokenizer;
pub use stop::{StopOutcome, StopStrings};
pub use tallow_stream::{excerpt, printable, printable_json, printable_line};
pub use tokenizer::Tokenizer;
pub use vocab::{Scheme, TokenKind, Vocab};
pub use words::TEXT_PARAM;
