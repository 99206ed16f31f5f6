//! Anthropic's wire: Messages, streamed and whole, and the counting of tokens. A request becomes the same
//! `GenerateRequest` as every other dialect's; `envelope` gives errors on these routes Anthropic's shape.

mod content;
mod envelope;
mod events;
mod message;
mod messages;
mod models;
mod request;

pub(crate) use envelope::{has_version, reshape};
pub(crate) use messages::{count_tokens, create};
pub(crate) use models::{model, models};
