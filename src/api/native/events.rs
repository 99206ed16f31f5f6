//! The native stream: every event of the log with an id, so that a client can leave after any and come back.

use std::sync::Arc;

use serde::Serialize;

use super::cursor::{Cursor, GapReason, Resume};
use crate::api::event_body::Dialect;
use crate::api::problem::ErrorBody;
use crate::api::sse::SseWriter;
use crate::protocol::{Epoch, ErrorInfo, Event, EventId, TokenEvent, TokenId, TokenLogprob, Usage};
use crate::stream::{Entry, Gap, StreamLog};
use crate::text::Tokenizer;

/// A connected reader this many tokens behind gets them as one event with the last one's id.
const MERGE_BACKLOG: usize = 64;

/// One client's view of a generation as native events.
pub(super) struct NativeEvents {
    /// The stream's name, spelled once.
    pub(super) stream: String,
    pub(super) epoch: Epoch,
    pub(super) resume: Resume,
    /// Jittered by the caller, so that a restarted server is not met by all clients at once.
    pub(super) retry_ms: u64,
    pub(super) now_ms: u64,
    /// The event that comes next.
    pub(super) next_seq: u64,
    /// The first event that did not exist yet when this client connected.
    pub(super) live_from: u64,
    pub(super) tokenizer: Arc<Tokenizer>,
}

/// What every event's data begins with.
#[derive(Debug, Serialize)]
struct Data<'a, T> {
    stream: &'a str,
    /// Its place in the log; for `gap`, which is not in the log, the place of the event that follows.
    seq: u64,
    #[serde(rename = "type")]
    event_type: &'static str,
    /// Milliseconds since the Unix epoch.
    ts: u64,
    #[serde(flatten)]
    more: T,
}

#[derive(Debug, Serialize)]
struct Queued {
    position: usize,
    /// `null` before anything was measured.
    estimated_wait_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct StartedData {
    prompt_tokens: usize,
    cached_tokens: usize,
}

#[derive(Debug, Serialize)]
struct PromptData {
    logprobs: Vec<Logprob>,
}

#[derive(Debug, Serialize)]
struct Token<'a> {
    /// The place of the first of several events that came as this one, for a reader that lagged.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_seq: Option<u64>,
    text: &'a str,
    tokens: &'a [TokenId],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Logprob>,
}

#[derive(Debug, Serialize)]
struct Logprob {
    #[serde(flatten)]
    token: Spelled,
    top: Vec<Spelled>,
}

/// A token by id and bytes, with the natural logarithm of its probability (`null` if that is 0).
#[derive(Debug, Serialize)]
struct Spelled {
    token: TokenId,
    bytes: Vec<u8>,
    logprob: f32,
}

#[derive(Debug, Serialize)]
struct Done {
    finish_reason: &'static str,
    usage: UsageObject,
}

#[derive(Debug, Serialize)]
struct Failed {
    error: ErrorBody,
    usage: UsageObject,
}

#[derive(Debug, Serialize)]
struct GapData {
    reason: &'static str,
}

#[derive(Debug, Serialize)]
struct UsageObject {
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

impl From<Usage> for UsageObject {
    fn from(u: Usage) -> Self {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = u;
        Self { prompt_tokens, cached_tokens, completion_tokens }
    }
}

impl Dialect for NativeEvents {
    fn open(&mut self, out: &mut SseWriter) {
        let cursor = match self.resume {
            Resume::From(seq) if seq > 0 => self.id(seq - 1),
            _ => Cursor::Start(self.epoch),
        };
        out.beginning(cursor, self.retry_ms);
        if let Resume::Gap { from, reason } = self.resume {
            self.write_gap(from, self.now_ms, reason, out);
        }
    }

    fn gap(&mut self, gap: Gap, out: &mut SseWriter) -> bool {
        self.write_gap(gap.next_seq, gap.ts_ms, GapReason::Trimmed, out);
        self.next_seq = gap.next_seq;
        true
    }

    /// Only what came while this client was connected: what it is given on resuming is what it would have been given.
    /// Its clients come back by themselves, with the last id that they have.
    fn suspended(&mut self, _log: &StreamLog, _out: &mut SseWriter) {}

    fn merge_backlog(&self) -> Option<usize> {
        (self.next_seq >= self.live_from).then_some(MERGE_BACKLOG)
    }

    fn event(&mut self, entry: &Entry, out: &mut SseWriter) {
        match &entry.event {
            Event::Queued { position, wait_ms } => {
                self.write("queued", entry, Queued { position: *position, estimated_wait_ms: *wait_ms }, out);
            }
            Event::Started { prompt_tokens, cached_tokens } => {
                let more = StartedData { prompt_tokens: *prompt_tokens, cached_tokens: *cached_tokens };
                self.write("started", entry, more, out);
            }
            Event::Prompt { logprobs } => {
                self.write("prompt", entry, PromptData { logprobs: self.logprobs(logprobs) }, out);
            }
            // No client can follow such a stream.
            Event::Token(token) => {
                let first_seq = (self.next_seq < entry.seq).then_some(self.next_seq);
                self.write("token", entry, self.token(token, first_seq), out);
            }
            Event::Done { finish_reason, usage, .. } => {
                let more = Done { finish_reason: finish_reason.as_str(), usage: (*usage).into() };
                self.write("done", entry, more, out);
            }
            Event::Error(info) => self.write("error", entry, failed(info), out),
        }
        self.next_seq = entry.seq + 1;
    }
}

impl NativeEvents {
    fn write(&self, name: &'static str, entry: &Entry, more: impl Serialize, out: &mut SseWriter) {
        out.event(self.id(entry.seq), name, &self.data(name, entry.seq, entry.ts_ms, more));
    }

    fn data<T>(&self, event_type: &'static str, seq: u64, ts: u64, more: T) -> Data<'_, T> {
        Data { stream: &self.stream, seq, event_type, ts, more }
    }

    fn id(&self, seq: u64) -> Cursor {
        Cursor::After(EventId { epoch: self.epoch, seq })
    }

    /// `from` is the place of the event that follows, so a client cut right here comes back to it.
    fn write_gap(&self, from: u64, ts_ms: u64, reason: GapReason, out: &mut SseWriter) {
        let id = if from == 0 { Cursor::Start(self.epoch) } else { self.id(from - 1) };
        out.event(id, "gap", &self.data("gap", from, ts_ms, GapData { reason: reason.as_str() }));
    }

    fn token<'a>(&self, token: &'a TokenEvent, first_seq: Option<u64>) -> Token<'a> {
        let logprobs = self.logprobs(&token.logprobs);
        Token { first_seq, text: &token.text, tokens: &token.tokens, logprobs }
    }

    fn logprobs(&self, logprobs: &[TokenLogprob]) -> Vec<Logprob> {
        let spell = |token: TokenId, logprob: f32| Spelled {
            token,
            bytes: self.tokenizer.token_bytes(token).to_vec(),
            logprob,
        };
        let logprobs = logprobs.iter().map(|l| Logprob {
            token: spell(l.token, l.logprob),
            top: l.top.iter().map(|&(t, p)| spell(t, p)).collect(),
        });
        logprobs.collect()
    }
}

fn failed(info: &ErrorInfo) -> Failed {
    Failed { error: info.into(), usage: info.usage.into() }
}
