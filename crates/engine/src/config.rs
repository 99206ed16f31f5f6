//! The engine's settings: every bound has a name here.

use std::time::Duration;

use super::queue::QueueLimits;
use super::scheduler::SchedulerLimits;
use crate::sampling::grammar::GrammarLimits;
use tallow_stream::error::{Error, Result};

/// A preempted sequence that was passed this many times is the next to continue, unless its owner has more than its
/// part.
const PASSED_MAX: usize = 64;

/// How much the engine takes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Workers, each with a model, KV memory and threads of its own. 1 to 64.
    pub num_workers: usize,
    /// Most sequences a worker runs at once. 1 to 4096.
    pub max_num_seqs: usize,
    /// Most tokens a worker computes in a step; at least `max_num_seqs`. More makes long prompts faster and steps
    /// longer.
    pub max_num_batched_tokens: usize,
    /// Most prompt tokens in a step in which other sequences wait for their next token, however many sequences those
    /// are. This setting, and not the length of a newcomer's prompt, bounds the time between two tokens. At least 1.
    pub prefill_tokens_per_step_max: usize,
    /// Most requests that wait for a worker. At least 1.
    pub queue_requests_max: usize,
    /// Most tokens (prompt and `max_tokens`) that wait for a worker. At least 1. A request larger than that is still
    /// taken when nothing else waits.
    pub queue_tokens_max: usize,
    /// How many tokens of others' work one step of a request's priority is worth. At least 1.
    pub priority_step_tokens: u64,
    /// Least time between two reports of its place to a waiting request.
    pub queue_note_interval: Duration,
    /// Whether KV blocks of equal prompt beginnings are reused, within a tenant.
    pub prefix_cache: bool,
    /// How often in a row a worker that lost its model tries to load it again before it gives up. At least 1.
    pub worker_load_attempts_max: u32,
    /// Before a restart a worker waits this long, twice as long after each further failure ...
    pub worker_backoff_min: Duration,
    /// ... and never longer than this.
    pub worker_backoff_max: Duration,
    /// A worker whose step takes longer than this counts as hung, and the engine as not ready.
    pub step_time_max: Duration,
    /// A worker that computes nothing in a step for this long is not ready.
    pub stall_time_max: Duration,
    /// Most hung workers that are replaced within `abandoned_time`. A hung worker whose thread has ended does not
    /// count. A further one is replaced once the oldest of them was given up longer ago than that. Each keeps its
    /// memory and threads while it hangs.
    pub workers_abandoned_max: u64,
    /// See `workers_abandoned_max`.
    pub abandoned_time: Duration,
    /// How long a shutdown waits for a step to end before it leaves the worker behind.
    pub shutdown_time_max: Duration,
    /// The bounds of grammars.
    pub grammars: GrammarLimits,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            num_workers: 1,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            prefill_tokens_per_step_max: 256,
            queue_requests_max: 1024,
            queue_tokens_max: 1 << 20,
            priority_step_tokens: 4096,
            queue_note_interval: Duration::from_secs(1),
            prefix_cache: true,
            worker_load_attempts_max: 5,
            worker_backoff_min: Duration::from_millis(100),
            worker_backoff_max: Duration::from_secs(5),
            step_time_max: Duration::from_secs(5),
            stall_time_max: Duration::from_millis(1500),
            workers_abandoned_max: 3,
            abandoned_time: Duration::from_secs(600),
            shutdown_time_max: Duration::from_secs(10),
            grammars: GrammarLimits::default(),
        }
    }
}

impl EngineConfig {
    /// Whether every setting keeps its rule.
    ///
    /// # Errors
    /// Names the first setting that does not, the rule and the value.
    pub fn validate(&self) -> Result<()> {
        let in_range = |name: &str, value: usize, min: usize, max: usize| {
            let message = || format!("`{name}` must be from {min} to {max}, got {value}");
            if (min..=max).contains(&value) { Ok(()) } else { Err(Error::invalid(name, message())) }
        };
        in_range("num_workers", self.num_workers, 1, 64)?;
        in_range("max_num_seqs", self.max_num_seqs, 1, 4096)?;
        in_range("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs, 1 << 20)?;
        in_range("prefill_tokens_per_step_max", self.prefill_tokens_per_step_max, 1, 1 << 20)?;
        in_range("queue_requests_max", self.queue_requests_max, 1, 1 << 20)?;
        in_range("queue_tokens_max", self.queue_tokens_max, 1, 1 << 40)?;
        in_range("worker_load_attempts_max", self.worker_load_attempts_max as usize, 1, 1000)
    }

    pub(super) fn scheduler_limits(&self) -> SchedulerLimits {
        SchedulerLimits {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            prefill_tokens_per_step_max: self.prefill_tokens_per_step_max,
            attention_span: usize::MAX,
            passed_max: PASSED_MAX,
        }
    }

    pub(super) fn queue_limits(&self) -> QueueLimits {
        QueueLimits {
            requests_max: self.queue_requests_max,
            tokens_max: self.queue_tokens_max,
            priority_step_tokens: self.priority_step_tokens,
            note_interval: self.queue_note_interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(config: &EngineConfig, expect: Option<&str>) {
        let error = config.validate().err();
        assert_eq!(error.as_ref().and_then(Error::param), expect, "{error:?}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let base = EngineConfig::default();
        check(&base, None);
        check(&EngineConfig { num_workers: 0, ..base.clone() }, Some("num_workers"));
        check(&EngineConfig { max_num_seqs: 0, ..base.clone() }, Some("max_num_seqs"));
        check(&EngineConfig { max_num_batched_tokens: 63, ..base.clone() }, Some("max_num_batched_tokens"));
        check(&EngineConfig { prefill_tokens_per_step_max: 0, ..base.clone() }, Some("prefill_tokens_per_step_max"));
        check(&EngineConfig { queue_requests_max: 0, ..base.clone() }, Some("queue_requests_max"));
        check(&EngineConfig { worker_load_attempts_max: 0, ..base }, Some("worker_load_attempts_max"));
    }
}
