//! The stream of Completions: text chunks of every choice as they come, a finish chunk each, usage where asked for,
//! `[DONE]` after the last. Each choice is a stream of its own with a [`CompletionChunks`] of its own; what they have
//! in common is in [`ChoicesShared`].

use std::sync::Arc;

use super::chat_types::UsageObject;
use super::completion_types::{TextChoice, TextCompletion, TextLogprobs};
use super::usage_sum::{self, SharedSum};
use crate::api::event_body::{self, Dialect};
use crate::api::fold;
use crate::api::problem::{ErrorBody, ErrorEnvelope};
use crate::api::sse::SseWriter;
use crate::protocol::{Event, TokenId, Usage};
use crate::stream::{Entry, Gap, StreamLog};
use crate::text::Tokenizer;

/// A reader this many tokens behind gets them as one chunk: catching up matters more to it than the grain.
const MERGE_BACKLOG: usize = 64;

/// What the choices of one answer have in common.
pub(super) struct ChoicesShared {
    /// The same in every chunk.
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) include_usage: bool,
    pub(super) with_logprobs: bool,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) sum: SharedSum,
}

/// The prompt as it is given back before the text.
#[derive(Debug, Clone)]
pub(super) struct Echo {
    pub(super) text: String,
    pub(super) first_token: Option<TokenId>,
}

/// One choice.
pub(super) struct CompletionChunks {
    pub(super) shared: Arc<ChoicesShared>,
    pub(super) index: usize,
    pub(super) is_first_of_prompt: bool,
    /// Until it was written.
    pub(super) echo: Option<Echo>,
    /// Only the prompt was asked for: what the model says is not shown.
    pub(super) is_silent: bool,
    /// What was spent so far, where every chunk is to tell it.
    pub(super) running: Option<Usage>,
    /// Characters written.
    pub(super) offset: usize,
}

impl Dialect for CompletionChunks {
    fn open(&mut self, _out: &mut SseWriter) {}

    fn event(&mut self, entry: &Entry, out: &mut SseWriter) {
        match &entry.event {
            Event::Queued { .. } => {}
            Event::Started { cached_tokens, .. } => {
                if let Some(running) = &mut self.running {
                    running.cached_tokens = *cached_tokens;
                }
                // With log-probabilities, the prompt comes when they are there.
                if !self.shared.with_logprobs
                    && let Some(echo) = self.echo.take()
                {
                    self.text(&echo.text, None, None, out);
                }
            }
            Event::Prompt { logprobs } => {
                if let Some(echo) = self.echo.take() {
                    let tokenizer = self.shared.tokenizer.clone();
                    let mut all = TextLogprobs::default();
                    if let Some(first) = echo.first_token {
                        all.push_first(first, &tokenizer, &mut self.offset);
                    }
                    logprobs.iter().for_each(|logprob| all.push(logprob, &tokenizer, &mut self.offset));
                    self.text(&echo.text, Some(all), None, out);
                }
            }
            Event::Token(_) if self.is_silent => {}
            Event::Token(token) => {
                if let Some(running) = &mut self.running {
                    running.completion_tokens += token.tokens.len();
                }
                let logprobs = self.shared.with_logprobs.then(|| {
                    let mut all = TextLogprobs::default();
                    token.logprobs.iter().for_each(|l| all.push(l, &self.shared.tokenizer, &mut self.offset));
                    all
                });
                self.text(&token.text, logprobs, None, out);
            }
            Event::Done { finish_reason, usage, .. } => {
                let completion_tokens = if self.is_silent { 0 } else { usage.completion_tokens };
                let usage = Usage { completion_tokens, ..*usage };
                self.running = self.running.map(|_| usage);
                self.text("", None, Some(finish_reason.as_str()), out);
                if let Some(sum) = usage_sum::add(&self.shared.sum, usage, 0, self.is_first_of_prompt) {
                    if self.shared.include_usage {
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

    fn suspended(&mut self, log: &StreamLog, out: &mut SseWriter) {
        if let Some(info) = fold::suspension(log) {
            out.data(&ErrorEnvelope { error: &ErrorBody::from(&info) });
        }
    }

    fn merge_backlog(&self) -> Option<usize> {
        Some(MERGE_BACKLOG)
    }
}

impl CompletionChunks {
    fn text(
        &self,
        text: &str,
        logprobs: Option<TextLogprobs>,
        finish_reason: Option<&'static str>,
        out: &mut SseWriter,
    ) {
        self.chunk(vec![TextChoice { text: text.into(), index: self.index, logprobs, finish_reason }], None, out);
    }

    fn chunk(&self, choices: Vec<TextChoice<'_>>, usage: Option<UsageObject>, out: &mut SseWriter) {
        let ChoicesShared { id, created, model, include_usage, .. } = &*self.shared;
        let usage = include_usage.then(|| usage.or_else(|| self.running.map(|usage| UsageObject::new(usage, 0))));
        let (id, model) = (id.into(), model.into());
        out.data(&TextCompletion { id, object: "text_completion", created: *created, model, choices, usage });
    }
}
