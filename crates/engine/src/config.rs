//! The engine's settings: every bound has a name here.

use std::time::Duration;

use super::queue::QueueLimits;
use super::scheduler::SchedulerLimits;
use crate::sampling::grammar::GrammarLimits;
use tallow_stream::error::{Error, Result};
use tallow_stream::settings;
use tallow_stream::settings::{COUNT_MAX, HOUR_MS, Kind, common, count, millis, setting};

/// A preempted sequence that was passed this many times is the next to continue, unless its owner has more than its
/// part.
const PASSED_MAX: usize = 64;
/// How many tokens of others' work one step of a request's priority is worth: about one long answer, so that two steps put a
/// request before all that came in the last minute, and no step puts it before everything.
pub const PRIORITY_STEP_TOKENS: u64 = 4096;

settings! {
    /// How much the engine takes on.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct EngineConfig {
        /// Inference workers; the cores are split between them.
        ///
        /// Each has a model, KV memory and threads of its own.
        pub num_workers: usize = 1 => common("engine.num_workers", "workers", count(1, 64, "workers"));
        /// Most sequences in one step of a worker.
        pub max_num_seqs: usize = 64 => common("engine.max_num_seqs", "max-num-seqs", count(1, 4096, "sequences"));
        /// Most tokens in one step of a worker.
        ///
        /// At least `max_num_seqs`. More makes long prompts faster and steps longer.
        pub max_num_batched_tokens: usize = 512
            => setting("engine.max_num_batched_tokens", "max-num-batched-tokens", count(1, 1 << 20, "tokens"));
        /// Most prompt tokens in a step while others decode.
        ///
        /// This, and not the length of a newcomer's prompt, bounds the time between two tokens, however many sequences wait
        /// for their next.
        pub prefill_tokens_per_step_max: usize = 256
            => setting("engine.prefill_tokens_per_step_max", "prefill-tokens-per-step-max", count(1, 1 << 20, "tokens"));
        /// Most waiting requests; beyond it 429.
        pub queue_requests_max: usize = 1024
            => common("engine.queue_requests_max", "queue-requests-max", count(1, 1 << 20, "requests"));
        /// Most tokens of waiting requests, prompt and output; beyond, 429.
        ///
        /// A request larger than that is still taken when nothing else waits.
        pub queue_tokens_max: usize = 1 << 20
            => setting("engine.queue_tokens_max", "queue-tokens-max", count(1, COUNT_MAX, "tokens"));
        /// A waiting request hears of its place at most this often: people read no faster.
        pub queue_note_interval: Duration = Duration::from_secs(1);
        /// Reuse the KV blocks of prompts that begin alike.
        ///
        /// Within a tenant.
        pub prefix_cache: bool = true => setting("engine.prefix_cache", "prefix-cache", Kind::Bool);
        /// How often in a row a worker that lost its model tries to load it again before it gives up. At least 1. With the
        /// pauses below, a file or a device has a few seconds to come back; what is broken for longer needs an operator.
        pub worker_load_attempts_max: u32 = 5;
        /// Before a restart a worker waits this long, twice as long after each further failure ...
        pub worker_backoff_min: Duration = Duration::from_millis(100);
        /// ... and never longer than this.
        pub worker_backoff_max: Duration = Duration::from_secs(5);
        /// Replace a worker that makes no progress within a step for this long.
        pub step_time_max: Duration = Duration::from_secs(5)
            => setting("engine.step_time_max_ms", "step-time-max-ms", millis(100, HOUR_MS));
        /// A worker that computes nothing in a step for so long is not ready. Matrix products of a slow machine beat many times
        /// a second, so this is no load, and balancers look about as often.
        pub stall_time_max: Duration = Duration::from_millis(1500);
        /// Most hung workers that are replaced within `abandoned_time`, those not counted whose threads have ended; a further one
        /// is replaced when the oldest of them was given up longer ago. Each keeps its memory and threads while it hangs, so
        /// that more would take the machine from the workers that run.
        pub workers_abandoned_max: u64 = 3;
        /// See `workers_abandoned_max`.
        pub abandoned_time: Duration = Duration::from_secs(600);
        /// How long a shutdown waits for a step to end before it leaves the worker behind: twice what counts as hung.
        pub shutdown_time_max: Duration = Duration::from_secs(10);
        /// How much grammars may take.
        pub grammars: GrammarLimits = GrammarLimits::default();
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
            priority_step_tokens: PRIORITY_STEP_TOKENS,
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
