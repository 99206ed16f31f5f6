//! The stream of Chat Completions: role chunk, chunks of reasoning, content and calls as the answer's parser tells them
//! apart, finish chunk, usage chunk where asked for, `[DONE]`.
//! No ids, no names, no retry: blocks without data break OpenAI's own clients.

use std::sync::Arc;

use super::chat_answer::{Answer, Part, call_id};
use super::chat_types::{CallDelta, Chunk, ChunkChoice, CustomCalled, Delta, FunctionDelta, Logprobs, UsageObject};
use super::usage_sum::{self, SharedSum};
use crate::api::event_body::{self, Dialect};
use crate::api::fold;
use crate::api::problem::{ErrorBody, ErrorEnvelope};
use crate::api::sse::SseWriter;
use crate::protocol::{Event, FinishReason, StreamId, TokenLogprob, Usage};
use crate::stream::{Entry, Gap, StreamLog};
use crate::text::{Piece, Tokenizer};

/// A reader this many tokens behind gets them as one delta: catching up matters more to it than the grain.
const MERGE_BACKLOG: usize = 64;

/// One client's view of a generation as chat chunks.
pub(super) struct ChatChunks {
    /// The same in every chunk.
    pub(super) id: String,
    /// Which choice.
    pub(super) index: usize,
    /// Of the stream; calls are named after it.
    pub(super) stream: StreamId,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) include_usage: bool,
    /// What was spent so far, where every chunk is to tell it.
    pub(super) running: Option<Usage>,
    pub(super) with_logprobs: bool,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) answer: Answer,
    /// Of all choices.
    pub(super) sum: SharedSum,
    /// Of tokens whose text is held back; they come with the next chunk.
    pub(super) waiting: Vec<TokenLogprob>,
}

impl Dialect for ChatChunks {
    fn open(&mut self, out: &mut SseWriter) {
        let role = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
        self.choice(role, None, out);
    }

    fn event(&mut self, entry: &Entry, out: &mut SseWriter) {
        match &entry.event {
            Event::Queued { .. } | Event::Prompt { .. } => {}
            Event::Started { prompt_tokens, cached_tokens } => {
                if let Some(running) = &mut self.running {
                    (running.prompt_tokens, running.cached_tokens) = (*prompt_tokens, *cached_tokens);
                }
            }
            Event::Token(token) => {
                if let Some(running) = &mut self.running {
                    running.completion_tokens += token.tokens.len();
                }
                let pieces = self.answer.push(token, &self.tokenizer);
                if self.with_logprobs {
                    self.waiting.extend_from_slice(&token.logprobs);
                }
                self.pieces(pieces, out);
            }
            Event::Done { finish_reason, usage, stop } => {
                self.running = self.running.map(|_| *usage);
                let pieces = self.answer.finish();
                self.pieces(pieces, out);
                self.finish(*finish_reason, stop.as_deref(), out);
                let reasoning_tokens = self.answer.reasoning_tokens();
                if let Some(sum) = usage_sum::add(&self.sum, *usage, reasoning_tokens, self.index == 0) {
                    if self.include_usage {
                        self.chunk(Vec::new(), Some(sum), out);
                    }
                    out.raw_data("[DONE]");
                }
            }
            Event::Error(info) => out.data(&ErrorEnvelope { error: &ErrorBody::from(info) }),
        }
    }

    fn gap(&mut self, gap: Gap, out: &mut SseWriter) -> bool {
        event_body::end_at_gap(self, gap, out)
    }

    /// A client of this dialect reads no names of events and does not reconnect: it is told in words.
    fn suspended(&mut self, log: &StreamLog, out: &mut SseWriter) {
        if let Some(info) = fold::suspension(log) {
            out.data(&ErrorEnvelope { error: &ErrorBody::from(&info) });
        }
    }

    fn merge_backlog(&self) -> Option<usize> {
        Some(MERGE_BACKLOG)
    }
}

impl ChatChunks {
    fn choice(&self, delta: Delta<'_>, logprobs: Option<Logprobs>, out: &mut SseWriter) {
        let choice = ChunkChoice { index: self.index, delta, logprobs, finish_reason: None, stop_reason: None };
        self.chunk(vec![choice], None, out);
    }

    fn finish(&mut self, reason: FinishReason, stop_reason: Option<&str>, out: &mut SseWriter) {
        let (logprobs, finish_reason) = (self.take_logprobs(), Some(self.answer.finish_reason(reason)));
        let (index, delta) = (self.index, Delta::default());
        self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason, stop_reason }], None, out);
    }

    fn chunk(&self, choices: Vec<ChunkChoice<'_>>, usage: Option<UsageObject>, out: &mut SseWriter) {
        out.data(&Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage: self.include_usage.then(|| usage.or_else(|| self.running.map(|usage| UsageObject::new(usage, 0)))),
        });
    }

    fn pieces(&mut self, parts: Vec<Part>, out: &mut SseWriter) {
        for part in parts {
            let logprobs = self.take_logprobs();
            let piece = match part {
                Part::Piece(piece) => piece,
                Part::Custom { name, input } => {
                    let (id, index) = (call_id(self.stream, self.answer.begin_call()), self.answer.call_index());
                    let custom = Some(CustomCalled { name, input });
                    let call = CallDelta { index, id: Some(id), kind: Some("custom"), function: None, custom };
                    self.choice(Delta { tool_calls: Some([call]), ..Delta::default() }, logprobs, out);
                    continue;
                }
            };
            let delta = match &piece {
                Piece::Content(text) => Delta { content: Some(text), ..Delta::default() },
                Piece::Reasoning(text) => Delta { reasoning_content: Some(text), ..Delta::default() },
                Piece::CallBegin { name } => {
                    let id = call_id(self.stream, self.answer.begin_call());
                    self.call(Some(id), FunctionDelta { name: Some(name), arguments: "" })
                }
                Piece::CallArguments(text) => self.call(None, FunctionDelta { name: None, arguments: text }),
            };
            self.choice(delta, logprobs, out);
        }
    }

    /// A delta of the call that began last.
    fn call<'a>(&self, id: Option<String>, function: FunctionDelta<'a>) -> Delta<'a> {
        let kind = id.is_some().then_some("function");
        let call = CallDelta { index: self.answer.call_index(), id, kind, function: Some(function), custom: None };
        Delta { tool_calls: Some([call]), ..Delta::default() }
    }

    fn take_logprobs(&mut self) -> Option<Logprobs> {
        let waiting = std::mem::take(&mut self.waiting);
        (!waiting.is_empty()).then(|| Logprobs::new(&waiting, &self.tokenizer))
    }
}
