//! The stream of Chat Completions: role chunk, content chunks, finish chunk, usage chunk where asked for, `[DONE]`.
//! No ids, no names, no retry: blocks without data break OpenAI's own clients.

use std::sync::Arc;

use super::chat_types::{Chunk, ChunkChoice, Delta, Logprobs, UsageObject};
use crate::api::event_body::Dialect;
use crate::api::problem::{ErrorBody, ErrorEnvelope};
use crate::api::sse::SseWriter;
use crate::protocol::{Event, TokenEvent, Usage};
use crate::stream::Entry;
use crate::text::Tokenizer;

/// A reader this many tokens behind gets them as one delta: catching up matters more to it than the grain.
const MERGE_BACKLOG: usize = 64;

/// One client's view of a generation as chat chunks.
pub(super) struct ChatChunks {
    /// The same in every chunk.
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) include_usage: bool,
    /// What was spent so far, where every chunk is to tell it.
    pub(super) running: Option<Usage>,
    pub(super) with_logprobs: bool,
    pub(super) tokenizer: Arc<Tokenizer>,
}

impl Dialect for ChatChunks {
    fn open(&mut self, out: &mut SseWriter) {
        let role = Delta { role: Some("assistant"), content: Some("") };
        self.choice(role, None, out);
    }

    fn event(&mut self, entry: &Entry, out: &mut SseWriter) {
        match &entry.event {
            Event::Queued { .. } => {}
            Event::Started { prompt_tokens, cached_tokens } => {
                if let Some(running) = &mut self.running {
                    (running.prompt_tokens, running.cached_tokens) = (*prompt_tokens, *cached_tokens);
                }
            }
            Event::Token(token) => {
                if let Some(running) = &mut self.running {
                    running.completion_tokens += token.tokens.len();
                }
                let delta = Delta { role: None, content: Some(&token.text) };
                self.choice(delta, self.logprobs(token), out);
            }
            Event::Done { finish_reason, usage, stop } => {
                self.running = self.running.map(|_| *usage);
                let (delta, finish_reason) = (Delta::default(), Some(finish_reason.as_str()));
                let stop_reason = stop.as_deref();
                self.chunk(
                    vec![ChunkChoice { index: 0, delta, logprobs: None, finish_reason, stop_reason }],
                    None,
                    out,
                );
                if self.include_usage {
                    self.chunk(Vec::new(), Some((*usage).into()), out);
                }
                out.raw_data("[DONE]");
            }
            Event::Error(info) => out.data(&ErrorEnvelope { error: &ErrorBody::from(info) }),
        }
    }

    fn merge_backlog(&self) -> Option<usize> {
        Some(MERGE_BACKLOG)
    }
}

impl ChatChunks {
    fn choice(&self, delta: Delta<'_>, logprobs: Option<Logprobs>, out: &mut SseWriter) {
        let choice = ChunkChoice { index: 0, delta, logprobs, finish_reason: None, stop_reason: None };
        self.chunk(vec![choice], None, out);
    }

    fn chunk(&self, choices: Vec<ChunkChoice<'_>>, usage: Option<UsageObject>, out: &mut SseWriter) {
        out.data(&Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage: self.include_usage.then(|| usage.or_else(|| self.running.map(Into::into))),
        });
    }

    fn logprobs(&self, token: &TokenEvent) -> Option<Logprobs> {
        self.with_logprobs.then(|| Logprobs::new(&token.logprobs, &self.tokenizer))
    }
}
