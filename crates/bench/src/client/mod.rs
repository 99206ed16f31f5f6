//! `tallow chat`: a client of the HTTP API, ours or any that speaks Chat Completions. It shares nothing with the
//! server but the words of [`tallow_stream::protocol`]: what it shows came over the wire, so nothing of it reaches a terminal
//! but through [`tallow_stream::printable`].
//!
//! `terminal` (lines in, text out) -> `session` (history, one turn, stopping) -> `api` (requests, errors) -> `sse`.

mod api;
mod session;
mod sse;
mod terminal;
#[cfg(test)]
mod tests;

pub use api::{ChatClient, ChatParams, ReplyPiece, ReplyStream};
pub use session::{ChatSession, TurnEnd, TurnStats};
pub use sse::{EventTooLong, SseEvent, SseParser};
pub use terminal::{ChatEnd, ChatOptions, run};
