//! What a worker's core shares with the rest of the engine. Its successor gets the same when the worker is lost.

use std::sync::Arc;

use super::masks::MaskWait;
use super::queue::Queue;
use super::scheduler::SchedulerLimits;
use crate::metrics::Metrics;
use tallow_model::text::Tokenizer;
use tallow_stream::protocol::TokenId;

/// What a worker's core shares with the rest of the engine.
#[derive(Debug, Clone)]
pub struct CoreParts {
    /// Bounds of a step.
    pub limits: SchedulerLimits,
    /// Where work comes from.
    pub queue: Arc<Queue>,
    /// Tokens to bytes.
    pub tokenizer: Arc<Tokenizer>,
    /// The vocabulary's own stop tokens.
    pub end_of_generation: Arc<[TokenId]>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How long steps wait for masks.
    pub mask_wait: MaskWait,
}
