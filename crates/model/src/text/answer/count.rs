//! How many tokens of an answer were reasoning.

use super::AnswerParser;

/// Counts tokens by where in the text they begin.
#[derive(Debug, Default)]
pub struct ReasoningCount {
    /// Bytes of the tokens so far.
    num_bytes: usize,
    /// Where the tokens begin that are not yet known to be reasoning or not.
    waiting: Vec<usize>,
    num_tokens: usize,
}

impl ReasoningCount {
    /// Adds tokens by the bytes of each, after `parser` has taken their text.
    pub fn push(&mut self, token_bytes: impl Iterator<Item = usize>, parser: &AnswerParser) {
        if parser.reasoning_bytes() == Some(0) && self.waiting.is_empty() {
            return;
        }
        for len in token_bytes {
            self.waiting.push(self.num_bytes);
            self.num_bytes += len;
        }
        self.settle(parser);
    }

    /// Tokens of reasoning, its markers included. All are known once `parser` has finished.
    pub fn num_tokens(&mut self, parser: &AnswerParser) -> usize {
        self.settle(parser);
        self.num_tokens
    }

    fn settle(&mut self, parser: &AnswerParser) {
        if let Some(end) = parser.reasoning_bytes() {
            self.num_tokens += self.waiting.drain(..).filter(|&at| at < end).count();
        }
    }
}
