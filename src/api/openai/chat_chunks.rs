//! The stream of Chat Completions: role chunk, content chunks, finish chunk, usage chunk where asked for, `[DONE]`.
//! No ids, no names, no retry: blocks without data break OpenAI's own clients.

use std::sync::Arc;

use super::chat_types::{Chunk, ChunkChoice, Delta, Logprobs, UsageObject};
use crate::api::event_body::Dialect;
use crate::api::problem::{ErrorBody, ErrorEnvelope};
use crate::api::sse::SseWriter;
use crate::protocol::{Event, TokenEvent};
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
    pub(super) with_logprobs: bool,
    pub(super) tokenizer: Arc<Tokenizer>,
}

impl Dialect for ChatChunks {
    fn open(&mut self, out: &mut SseWriter) {
        let role = Delta { role: Some("assistant"), content: Some("") };
        self.choice(role, None, None, out);
    }

    fn event(&mut self, entry: &Entry, out: &mut SseWriter) {
        match &entry.event {
            Event::Queued { .. } | Event::Started { .. } => {}
            Event::Token(token) => {
                let delta = Delta { role: None, content: Some(&token.text) };
                self.choice(delta, self.logprobs(token), None, out);
            }
            Event::Done { finish_reason, usage, .. } => {
                self.choice(Delta::default(), None, Some(finish_reason.as_str()), out);
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
    fn choice(
        &self,
        delta: Delta<'_>,
        logprobs: Option<Logprobs>,
        finish_reason: Option<&'static str>,
        out: &mut SseWriter,
    ) {
        self.chunk(vec![ChunkChoice { index: 0, delta, logprobs, finish_reason }], None, out);
    }

    fn chunk(&self, choices: Vec<ChunkChoice<'_>>, usage: Option<UsageObject>, out: &mut SseWriter) {
        out.data(&Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage: self.include_usage.then_some(usage),
        });
    }

    fn logprobs(&self, token: &TokenEvent) -> Option<Logprobs> {
        self.with_logprobs.then(|| Logprobs::new(&token.logprobs, &self.tokenizer))
    }
}
