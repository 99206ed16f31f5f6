//! `tallow chat`: a client of the HTTP API, for tallow or any other server that speaks Chat Completions. It shares only
//! the types of [`tallow_stream::protocol`] with the server. All text that it shows comes over the wire, so it reaches
//! a terminal only through [`tallow_stream::printable`].
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
