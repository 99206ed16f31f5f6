//! Tokens to text and back. Built from plain data (a vocabulary), so this floor knows no model file and no template.

mod tokenizer;
mod vocab;

pub use tokenizer::Tokenizer;
pub use vocab::{Scheme, TokenKind, Vocab};
