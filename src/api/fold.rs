//! A stream folded to its end, for calls that want one answer.

use crate::error::ErrorKind;
use crate::protocol::{ErrorInfo, Event, FinishReason, TokenEvent, TokenLogprob, Usage};
use crate::stream::{StreamLog, StreamReader};

/// Everything a generation said, and how it ended.
#[derive(Debug)]
pub(crate) struct Folded {
    /// The prompt's log-probabilities, where they were asked for.
    pub prompt: Vec<TokenLogprob>,
    /// All pieces as one.
    pub token: TokenEvent,
    /// The terminal event.
    pub end: Result<(FinishReason, Usage), ErrorInfo>,
    /// The stop string that ended it, if one did.
    pub stop: Option<String>,
}

/// What a log-probability takes on the wire, about: a token by its text, its bytes and a number.
const LOGPROB_BYTES: usize = 80;

impl Folded {
    /// How long it will be as JSON, about.
    pub(crate) fn num_json_bytes(&self) -> usize {
        self.token.text.len() + logprobs_bytes(&self.token.logprobs) + logprobs_bytes(&self.prompt)
    }
}

fn logprobs_bytes(all: &[TokenLogprob]) -> usize {
    all.iter().map(|l| LOGPROB_BYTES * (1 + l.top.len())).sum()
}

/// Reads to the end. Dropping the future leaves the stream.
pub(crate) async fn to_end(mut reader: StreamReader) -> Folded {
    let (mut prompt, mut token) = (Vec::new(), TokenEvent::default());
    while let Some((_, event)) = reader.next().await {
        match event {
            Event::Queued { .. } | Event::Started { .. } => {}
            Event::Prompt { logprobs } => prompt = logprobs,
            Event::Token(piece) => {
                token.text.push_str(&piece.text);
                token.tokens.extend(piece.tokens);
                token.logprobs.extend(piece.logprobs);
            }
            Event::Done { finish_reason, usage, stop } => {
                return Folded { prompt, token, end: Ok((finish_reason, usage)), stop };
            }
            Event::Error(info) => return Folded { prompt, token, end: Err(info), stop: None },
        }
    }
    if let Some(info) = suspension(reader.log()) {
        return Folded { prompt, token, end: Err(info), stop: None };
    }
    // The log asserts that a terminal event comes; a reader that missed it is a bug here, told as one.
    let message = "the stream had no end".to_owned();
    let info = ErrorInfo { kind: ErrorKind::Internal, message, usage: Usage::default() };
    Folded { prompt, token, end: Err(info), stop: None }
}

/// What a client is told whose stream goes on in another process, if it does, and that would not look for it there.
pub(crate) fn suspension(log: &StreamLog) -> Option<ErrorInfo> {
    let id = log.id();
    let message = format!("the server is restarting; this generation goes on as stream {id}: GET /v1/streams/{id}");
    log.is_suspended().then(|| ErrorInfo { kind: ErrorKind::Unavailable, message, usage: Usage::default() })
}
