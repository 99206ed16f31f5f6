//! An answer as Chat Completions tell it, streamed or whole: its parts, its calls by number, its finish reason and its
//! tokens of reasoning.

use super::chat_types::{Call, Called, CalledFunction, CustomCalled, Message};
use crate::api::tool_fields;
use crate::protocol::{FinishReason, StreamId, TokenEvent};
use crate::text::{AnswerFormat, AnswerParser, Piece, ReasoningCount, Tokenizer};

/// One answer being read.
#[derive(Debug)]
pub(super) struct Answer {
    parser: AnswerParser,
    reasoning: ReasoningCount,
    /// Calls that the client has been told of: one parser step may have begun several.
    num_told: usize,
    /// Names of the tools that take free text.
    custom: Vec<String>,
    /// A call of such a tool that is being read: its name and arguments so far.
    free_text: Option<(String, String)>,
}

/// A part of an answer as this dialect tells it.
#[derive(Debug)]
pub(super) enum Part {
    Piece(Piece),
    /// A whole call of a tool that takes free text.
    Custom {
        name: String,
        input: String,
    },
}

/// The id of a call: the same each time a stream is read.
pub(super) fn call_id(stream: StreamId, index: usize) -> String {
    format!("call_{stream}_{index}")
}

impl Answer {
    /// `custom` are the names of the tools that take free text.
    pub(super) fn new(format: &AnswerFormat, custom: Vec<String>) -> Self {
        let (parser, reasoning) = (AnswerParser::new(format), ReasoningCount::default());
        Self { parser, reasoning, num_told: 0, custom, free_text: None }
    }

    /// Takes the text that comes next.
    pub(super) fn push(&mut self, token: &TokenEvent, tokenizer: &Tokenizer) -> Vec<Part> {
        let pieces = self.parser.push(&token.text);
        let lens = token.tokens.iter().map(|&token| tokenizer.output_bytes(token).len());
        self.reasoning.push(lens, &self.parser);
        self.parts(pieces)
    }

    /// The text is over.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        let pieces = self.parser.finish();
        let mut parts = self.parts(pieces);
        parts.extend(self.end_custom());
        parts
    }

    /// Calls of tools that take free text are told once they are whole.
    fn parts(&mut self, pieces: Vec<Piece>) -> Vec<Part> {
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match (piece, &mut self.free_text) {
                (Piece::CallArguments(more), Some((_, arguments))) => arguments.push_str(&more),
                (Piece::CallBegin { name }, _) if self.custom.contains(&name) => {
                    parts.extend(self.end_custom());
                    self.free_text = Some((name, String::new()));
                }
                (piece, _) => {
                    parts.extend(self.end_custom());
                    parts.push(Part::Piece(piece));
                }
            }
        }
        parts
    }

    fn end_custom(&mut self) -> Option<Part> {
        let (name, arguments) = self.free_text.take()?;
        Some(Part::Custom { name, input: tool_fields::free_text(&arguments) })
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
        for part in pieces {
            match part {
                Part::Piece(Piece::Content(text)) => content.push_str(&text),
                Part::Piece(Piece::Reasoning(text)) => reasoning.push_str(&text),
                Part::Piece(Piece::CallBegin { name }) => {
                    let id = call_id(stream, self.begin_call());
                    let function = CalledFunction { name, arguments: String::new() };
                    tool_calls.push(Call { id, called: Called::Function { function } });
                }
                Part::Piece(Piece::CallArguments(text)) => {
                    if let Some(Call { called: Called::Function { function }, .. }) = tool_calls.last_mut() {
                        function.arguments.push_str(&text);
                    }
                }
                Part::Custom { name, input } => {
                    let id = call_id(stream, self.begin_call());
                    tool_calls.push(Call { id, called: Called::Custom { custom: CustomCalled { name, input } } });
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
