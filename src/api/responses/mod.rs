//! The Responses API: create, follow, cancel, delete, and what a response was asked.
//!
//! A response is a stream: `resp_` and the stream's id name it, the log is where its output lives, and every event with
//! its number follows from the log alone. What a log does not hold (the request, its input) is in `store`, for as long
//! as the log is kept. Data flows: `request` reads JSON, with `input` for its items; `assembly` reads a log into events
//! and an object, which `reading` does for polls and `kept` remembers; `events` puts them on the wire; `routes` ties them.

mod assembly;
mod described;
mod events;
mod input;
mod json;
mod kept;
mod reading;
mod request;
mod routes;
mod store;
mod tools;

pub(crate) use routes::{cancel, create, delete, get, input_items, input_tokens};
pub use store::ResponseLimits;
pub(crate) use store::ResponseStore;
