//! An answer's text, taken apart as it comes: what is said, what is thought, what is called. A log holds the text as the
//! model wrote it; each dialect reads it through a parser of its own, from the first event on.

/// How the text of one answer is to be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerFormat {}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the user; not empty.
    Content(String),
    /// Text that the model wrote for itself; not empty.
    Reasoning(String),
    /// A call of a tool begins. Calls are numbered by their order, from 0.
    CallBegin {
        /// Which function.
        name: String,
    },
    /// More of the arguments of the call that began last, as JSON text; not empty.
    CallArguments(String),
}

/// Reads one answer. Text that may be the beginning of a marker is held back.
#[derive(Debug)]
pub struct AnswerParser {}

impl AnswerParser {
    /// Nothing read yet.
    pub fn new(_format: &AnswerFormat) -> Self {
        Self {}
    }

    /// Takes the text that comes next.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        if text.is_empty() { Vec::new() } else { vec![Piece::Content(text.to_owned())] }
    }

    /// The text is over: what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        Vec::new()
    }

    /// Calls so far.
    pub fn num_calls(&self) -> usize {
        0
    }
}
