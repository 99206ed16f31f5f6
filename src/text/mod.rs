//! Tokens to text and back. Built from plain data (a vocabulary), so this floor knows no model file and no template.

mod detokenizer;
mod stop;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use stop::{StopOutcome, StopStrings};
pub use tokenizer::Tokenizer;
