//! What is known of one request when it is over: its times, its tokens, how it ended.

use std::time::{Duration, Instant};

use serde::Deserialize;

/// One request.
#[derive(Debug)]
pub(crate) struct Record {
    /// When its text came.
    pub(crate) timeline: Timeline,
    /// From sending to the end of the answer.
    pub(crate) e2e: Duration,
    /// Tokens as the server counted them.
    pub usage: Option<TokenUsage>,
    /// How it ended.
    pub end: RequestEnd,
    /// tallow's name for the generation.
    pub stream_id: Option<String>,
    /// From being accepted to a worker's beginning with it, where the server says.
    pub(crate) queue_wait: Option<Duration>,
    /// What came of cutting and resuming.
    pub resumed: Option<ResumedReport>,
}

impl Record {
    /// Nothing has come yet. `begin` is when the request is sent, or should have been.
    pub(crate) fn begin(begin: Instant) -> Self {
        Self {
            timeline: Timeline::from(begin),
            e2e: Duration::ZERO,
            usage: None,
            end: RequestEnd::Complete,
            stream_id: None,
            queue_wait: None,
            resumed: None,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RequestEnd {
    /// With the whole answer.
    Complete,
    /// Closed by us, as the mode wants it.
    Cancelled,
    /// Otherwise.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A status other than success, and what the server said.
    Http(u16, String),
    /// No connection.
    Connect(String),
    /// Not done in time.
    TimedOut,
    /// The connection ended before the answer did.
    Truncated(String),
    /// The answer is not what the protocol says.
    Protocol(String),
    /// The server reported an error in the middle of the stream.
    Server(String),
}

impl Failure {
    /// The kind, as reports count it.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Http(status, _) => format!("http_{status}"),
            Self::Connect(_) => "connect".to_owned(),
            Self::TimedOut => "timed_out".to_owned(),
            Self::Truncated(_) => "truncated".to_owned(),
            Self::Protocol(_) => "protocol".to_owned(),
            Self::Server(_) => "server_error".to_owned(),
        }
    }

    /// What was said about it.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Http(_, text)
            | Self::Connect(text)
            | Self::Truncated(text)
            | Self::Protocol(text)
            | Self::Server(text) => text,
            Self::TimedOut => "not done within --timeout",
        }
    }

    /// A failure of the HTTP client, told by its root cause: its own text says only that sending failed.
    pub(crate) fn transport(error: &reqwest::Error) -> Self {
        let mut root: &dyn std::error::Error = error;
        while let Some(source) = root.source() {
            root = source;
        }
        match error {
            e if e.is_connect() => Self::Connect(root.to_string()),
            e if e.is_timeout() => Self::TimedOut,
            _ => Self::Truncated(root.to_string()),
        }
    }
}

/// Tokens as the server counted them. The names are those of both OpenAI's usage and tallow's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct TokenUsage {
    /// Of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
    /// Of the prompt, found in a cache.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Where OpenAI keeps the cached ones.
    #[serde(default)]
    pub prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct PromptDetails {
    /// Of the prompt, found in a cache.
    #[serde(default)]
    pub cached_tokens: Option<u64>,
}

impl TokenUsage {
    /// Prompt tokens that were found in a cache.
    pub(crate) fn cached(&self) -> u64 {
        self.prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(self.cached_tokens)
    }
}

/// When text came.
#[derive(Debug, Clone)]
pub(crate) struct Timeline {
    /// When the request was sent, or should have been.
    pub begin: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Microseconds between one piece and the next.
    pub(crate) gaps_us: Vec<u32>,
}

impl Timeline {
    /// Begins now, or with the moment at which the request was due.
    pub(crate) fn from(begin: Instant) -> Self {
        Self { begin, first: None, last: None, gaps_us: Vec::new() }
    }

    /// A piece of text that is not empty has come.
    pub(crate) fn piece(&mut self, now: Instant) {
        match self.last.replace(now) {
            None => self.first = Some(now),
            Some(last) => self.gaps_us.push(u32::try_from((now - last).as_micros()).unwrap_or(u32::MAX)),
        }
    }

    /// Pieces so far.
    pub(crate) fn num_pieces(&self) -> usize {
        self.gaps_us.len() + usize::from(self.first.is_some())
    }

    /// Begin and end of what lies between one piece and the next.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = (Instant, Instant)> {
        let mut at = self.first.unwrap_or(self.begin);
        self.gaps_us.iter().map(move |&us| {
            let begin = at;
            at += Duration::from_micros(u64::from(us));
            (begin, at)
        })
    }

    /// Time to the first piece.
    pub(crate) fn ttft(&self) -> Option<Duration> {
        self.first.map(|first| first - self.begin)
    }
}

/// What came of cutting and resuming one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct ResumedReport {
    /// Streams read this way.
    pub streams: u64,
    /// Connections that were cut.
    pub cuts: u64,
    /// Events of the uninterrupted read.
    pub events: u64,
    /// Events of the uninterrupted read that did not come over the cut connections.
    pub lost: u64,
    /// Events that came more than once.
    pub doubled: u64,
    /// Events that came with other bytes, out of order, or are not in the uninterrupted read.
    pub different: u64,
    /// Gaps that the server reported.
    pub gaps: u64,
    /// Streams whose numbering has holes.
    pub not_dense: u64,
}

impl ResumedReport {
    /// Adds up.
    pub fn add(&mut self, other: &Self) {
        let Self { streams, cuts, events, lost, doubled, different, gaps, not_dense } = other;
        self.streams += streams;
        self.cuts += cuts;
        self.events += events;
        self.lost += lost;
        self.doubled += doubled;
        self.different += different;
        self.gaps += gaps;
        self.not_dense += not_dense;
    }

    /// Whether every stream came through whole.
    pub fn is_whole(&self) -> bool {
        self.lost + self.doubled + self.different + self.gaps + self.not_dense == 0
    }
}
