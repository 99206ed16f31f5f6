//! What a generation is made of: an ordered, append-only run of events, of which exactly one is terminal and last.

use super::ids::TokenId;
use crate::error::ErrorKind;

/// One entry of a stream's log. Its sequence number is its index.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Event {
    /// Accepted and waiting; `position` 0 is next in line. The first event of every stream, and told again while the
    /// request waits and its place changes.
    Queued {
        /// How many requests stand before it.
        position: usize,
        /// How long it should wait still, in milliseconds; `None` before anything was measured.
        wait_ms: Option<u64>,
    },
    /// A worker has begun on it.
    Started {
        /// Prompt tokens, after the chat template.
        prompt_tokens: usize,
        /// Of those, how many came from the prefix cache.
        cached_tokens: usize,
    },
    /// The prompt's tokens, each with its log-probability after those before it, all but the first. Only where they
    /// were asked for, and before any text.
    Prompt {
        /// One per token of the prompt but the first.
        logprobs: Vec<TokenLogprob>,
    },
    /// Text arrived. Never empty, never half a character.
    Token(TokenEvent),
    /// Terminal: the generation ended as it should.
    Done {
        /// Why it ended; never `Cancelled` or `Error`, which end in [`Event::Error`].
        finish_reason: FinishReason,
        /// What it cost.
        usage: Usage,
        /// The stop string that ended it, if one did.
        stop: Option<String>,
    },
    /// Terminal: the generation was cancelled or failed.
    Error(ErrorInfo),
}

impl Event {
    /// Whether this is the last event of its stream.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Error(_))
    }
}

/// A piece of text and the tokens that made it. Tokens whose text is held back (a possible stop string, half a
/// character) travel with the piece that releases it.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct TokenEvent {
    /// Valid UTF-8, not empty.
    pub text: String,
    /// The tokens since the piece before.
    pub tokens: Vec<TokenId>,
    /// One per token where asked for, else empty.
    pub logprobs: Vec<TokenLogprob>,
}

/// The log-probability of a sampled token and of its strongest rivals.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability before temperature and filters.
    pub logprob: f32,
    /// The `top_logprobs` most probable tokens, most probable first.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum FinishReason {
    /// An end-of-generation token, a stop string or a stop token.
    Stop,
    /// `max_tokens` or the context limit.
    Length,
    /// The model called a tool.
    ToolCalls,
    /// The client went away or asked for it.
    Cancelled,
    /// Something failed.
    Error,
}

impl FinishReason {
    /// The wire word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// Token counts of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, how many came from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens sampled, end-of-generation token included.
    pub completion_tokens: usize,
}

impl Usage {
    /// Tokens that a worker had to compute for it.
    pub fn num_computed(&self) -> usize {
        self.prompt_tokens - self.cached_tokens + self.completion_tokens
    }
}

/// Why a generation ended without finishing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ErrorInfo {
    /// What a client can do about it.
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
    /// What was spent until then.
    pub usage: Usage,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store writes an event by its place among them: another order is another format on disk.
    #[test]
    fn events_have_the_places_that_stores_hold() {
        let info = ErrorInfo { kind: ErrorKind::Internal, message: String::new(), usage: Usage::default() };
        let all = [
            Event::Queued { position: 0, wait_ms: None },
            Event::Started { prompt_tokens: 1, cached_tokens: 0 },
            Event::Prompt { logprobs: Vec::new() },
            Event::Token(TokenEvent::default()),
            Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default(), stop: None },
            Event::Error(info),
        ];
        let places = all.map(|event| postcard::to_stdvec(&event).expect("it encodes")[0]);
        assert_eq!(places, [0, 1, 2, 3, 4, 5]);
    }
}
