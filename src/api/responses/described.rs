//! What a response is, apart from its log: what was asked, and how it is to be told.

use serde_json::{Map, Value};

use super::tools::ToolNames;
use crate::protocol::StreamId;
use crate::text::AnswerFormat;

/// A response is named as its stream, behind this.
pub(super) const ID_PREFIX: &str = "resp_";

/// What a response is, apart from its log.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) id: StreamId,
    pub(super) created_s: u64,
    pub(super) model: String,
    pub(super) format: AnswerFormat,
    pub(super) names: ToolNames,
    pub(super) with_logprobs: bool,
    pub(super) is_background: bool,
    /// The request's fields that its object repeats.
    pub(super) echo: Map<String, Value>,
    /// Everything that it answers: items of the responses before it, and its own.
    pub(super) items: Vec<Value>,
    /// Of items and echo, as JSON, which is near enough to what they take.
    pub(super) num_bytes: usize,
}

impl Described {
    pub(super) fn response_id(&self) -> String {
        format!("{ID_PREFIX}{}", self.id)
    }
}
