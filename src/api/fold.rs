//! A stream folded to its end, for calls that want one answer.

use crate::error::ErrorKind;
use crate::protocol::{ErrorInfo, Event, FinishReason, TokenEvent, Usage};
use crate::stream::StreamReader;

/// Everything a generation said, and how it ended.
#[derive(Debug)]
pub struct Folded {
    /// All pieces as one.
    pub token: TokenEvent,
    /// The terminal event.
    pub end: Result<(FinishReason, Usage), ErrorInfo>,
    /// The stop string that ended it, if one did.
    pub stop: Option<String>,
}

/// Reads to the end. Dropping the future leaves the stream.
pub async fn to_end(mut reader: StreamReader) -> Folded {
    let mut token = TokenEvent::default();
    while let Some((_, event)) = reader.next().await {
        match event {
            Event::Queued { .. } | Event::Started { .. } => {}
            Event::Token(piece) => {
                token.text.push_str(&piece.text);
                token.tokens.extend(piece.tokens);
                token.logprobs.extend(piece.logprobs);
            }
            Event::Done { finish_reason, usage, stop } => {
                return Folded { token, end: Ok((finish_reason, usage)), stop };
            }
            Event::Error(info) => return Folded { token, end: Err(info), stop: None },
        }
    }
    // The log asserts that a terminal event comes; a reader that missed it is a bug here, told as one.
    let message = "the stream had no end".to_owned();
    Folded { token, end: Err(ErrorInfo { kind: ErrorKind::Internal, message, usage: Usage::default() }), stop: None }
}
