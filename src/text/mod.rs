//! Tokens to text and back. Built from plain data (a vocabulary), so this floor knows no model file and no template.

mod tokenizer;

pub use tokenizer::Tokenizer;
