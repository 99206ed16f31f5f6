//! Anthropic's wire: Messages, streamed and whole, and the counting of tokens. A request becomes the same
//! `GenerateRequest` as every other dialect's; `envelope` gives errors on these routes Anthropic's shape.

mod content;
mod envelope;
mod events;
mod message;
mod messages;
mod models;
mod request;

pub use envelope::{has_version, reshape};
pub use messages::{count_tokens, create};
pub use models::{model, models};
