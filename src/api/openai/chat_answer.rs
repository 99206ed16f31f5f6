//! An answer as Chat Completions tell it, streamed or whole: its parts, its calls by number, its finish reason and its
//! tokens of reasoning.

use super::chat_types::{Call, CalledFunction, Message};
use crate::protocol::{FinishReason, StreamId, TokenEvent};
use crate::text::{AnswerFormat, AnswerParser, Piece, ReasoningCount, Tokenizer};

/// One answer being read.
#[derive(Debug)]
pub(super) struct Answer {
    parser: AnswerParser,
    reasoning: ReasoningCount,
    /// Calls that the client has been told of: one parser step may have begun several.
    num_told: usize,
}

/// The id of a call: the same each time a stream is read.
pub(super) fn call_id(stream: StreamId, index: usize) -> String {
    format!("call_{stream}_{index}")
}

impl Answer {
    pub(super) fn new(format: &AnswerFormat) -> Self {
        Self { parser: AnswerParser::new(format), reasoning: ReasoningCount::default(), num_told: 0 }
    }

    /// Takes the text that comes next.
    pub(super) fn push(&mut self, token: &TokenEvent, tokenizer: &Tokenizer) -> Vec<Piece> {
        let pieces = self.parser.push(&token.text);
        let lens = token.tokens.iter().map(|&token| tokenizer.output_bytes(token).len());
        self.reasoning.push(lens, &self.parser);
        pieces
    }

    /// The text is over.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        self.parser.finish()
    }

    /// A call begins; its number.
    pub(super) fn begin_call(&mut self) -> usize {
        self.num_told += 1;
        self.call_index()
    }

    /// The number of the call that began last.
    pub(super) fn call_index(&self) -> usize {
        self.num_told.saturating_sub(1)
    }

    /// The wire word for the end.
    pub(super) fn finish_reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Stop if self.parser.num_calls() > 0 => FinishReason::ToolCalls.as_str(),
            reason => reason.as_str(),
        }
    }

    /// Tokens of reasoning; all are known at the end.
    pub(super) fn reasoning_tokens(&mut self) -> usize {
        self.reasoning.num_tokens(&self.parser)
    }

    /// The whole answer of `token` as a message.
    pub(super) fn message(&mut self, token: &TokenEvent, tokenizer: &Tokenizer, stream: StreamId) -> Message {
        let (mut content, mut reasoning) = (String::new(), String::new());
        let mut tool_calls: Vec<Call> = Vec::new();
        let mut pieces = self.push(token, tokenizer);
        pieces.extend(self.finish());
        for piece in pieces {
            match piece {
                Piece::Content(text) => content.push_str(&text),
                Piece::Reasoning(text) => reasoning.push_str(&text),
                Piece::CallBegin { name } => {
                    let id = call_id(stream, self.begin_call());
                    let function = CalledFunction { name, arguments: String::new() };
                    tool_calls.push(Call { id, kind: "function", function });
                }
                Piece::CallArguments(text) => {
                    if let Some(call) = tool_calls.last_mut() {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
        Message {
            role: "assistant",
            content: Some(content).filter(|text| !text.is_empty() || tool_calls.is_empty()),
            refusal: None,
            reasoning_content: Some(reasoning).filter(|text| !text.is_empty()),
            tool_calls,
        }
    }
}
