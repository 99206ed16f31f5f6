//! The words every floor shares: ids, the request as it comes in and as it is once validated, and the events a
//! generation is made of. Plain data; nothing here knows HTTP, a tokenizer or a tensor.

mod chat;
mod claim;
mod constraint;
mod event;
mod field;
mod ids;
mod owner;
mod request;

pub use chat::{ChatMessage, FreeText, Function, FunctionCall, Tool, ToolCall, ToolChoice};
pub use claim::Claim;
pub use constraint::Constraint;
pub use event::{ErrorInfo, Event, FinishReason, TokenEvent, TokenLogprob, Usage};
pub use field::{Field, Place};
pub use ids::{Epoch, EventId, StreamId, Tenant, TokenId};
pub use owner::{Owner, OwnerLimits, PRIORITY_MAX, PRIORITY_MIN, QueueTerms, WEIGHT_MAX, WEIGHT_MIN};
pub use request::{
    GenerateRequest, OnDisconnect, Prompt, PromptEnding, Resumed, SamplingParams, StopParams, ValidInput, ValidRequest,
};
