//! An event as a log has it: with its place and its time. And what it takes in memory, roughly.

use std::mem::size_of;

use crate::protocol::{Event, TokenLogprob};

/// One event with its place and time, as readers get it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// Its place in the log, from 0.
    pub seq: u64,
    /// When it was appended, by the log's clock.
    pub ts_ms: u64,
    /// What happened.
    pub event: Event,
}

/// An entry of the log with all that it holds.
pub(crate) fn event_bytes(event: &Event) -> usize {
    size_of::<Entry>() + payload_bytes(event)
}

/// What an event holds beside itself.
pub(crate) fn payload_bytes(event: &Event) -> usize {
    match event {
        Event::Token(t) => t.text.len() + 4 * t.tokens.len() + logprobs_bytes(&t.logprobs),
        Event::Prompt { logprobs } => logprobs_bytes(logprobs),
        Event::Error(info) => info.message.len(),
        Event::Queued { .. } | Event::Started { .. } | Event::Done { .. } => 0,
    }
}

fn logprobs_bytes(logprobs: &[TokenLogprob]) -> usize {
    logprobs.iter().map(|l| size_of::<TokenLogprob>() + 8 * l.top.len()).sum()
}
