//! Every metric is a field, its unit in its name. The engine and the wires hold an `Arc<Metrics>` and count; `api/`
//! renders the registry as Prometheus text.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// All metrics of one server.
#[derive(Debug)]
pub struct Metrics {
    /// Sequences waiting in the queue.
    pub num_waiting: Gauge,
    /// Sequences that hold a slot in a worker.
    pub num_running: Gauge,
    /// KV blocks referenced by running sequences.
    pub kv_blocks_used: Gauge,
    /// KV blocks that no sequence references and that a prefix can still be found in.
    pub kv_blocks_cached: Gauge,
    /// KV blocks in all.
    pub kv_blocks_total: Gauge,
    /// Steps run by all workers.
    pub steps: Counter,
    /// Sequences that took part in a step, summed over steps; divided by `steps` it is the mean batch size.
    pub step_sequences: Counter,
    /// Sequences per step since the start; set when rendered.
    pub mean_batch_size: Gauge<f64, AtomicU64>,
    /// Tokens computed (prompt and output), summed over steps.
    pub step_tokens: Counter,
    /// Prompt tokens of started requests.
    pub prompt_tokens: Counter,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: Counter,
    /// Tokens sampled.
    pub completion_tokens: Counter,
    /// Requests accepted into the queue.
    pub requests_accepted: Counter,
    /// Requests refused because a bound was reached.
    pub requests_rejected: Counter,
    /// Generations that ended with `done`.
    pub requests_done: Counter,
    /// Generations that were cancelled.
    pub requests_cancelled: Counter,
    /// Generations that failed.
    pub requests_failed: Counter,
    /// Requests that waited longer than they were willing to; they count as failed too.
    pub queue_timeouts: Counter,
    /// Requests refused because a limit of their owner was used up.
    pub requests_limited: Counter,
    /// Sequences preempted for lack of blocks.
    pub preemptions: Counter,
    /// Workers restarted after a panic.
    pub worker_restarts: Counter,
    /// Readers following a stream now.
    pub readers: Gauge,
    /// Duration of a step.
    pub step_seconds: Histogram,
    /// From acceptance to the first step.
    pub queue_wait_seconds: Histogram,
    /// From acceptance to the first token.
    pub ttft_seconds: Histogram,
    /// Between one token and the next of a sequence.
    pub itl_seconds: Histogram,
    /// From the cancellation of a running generation to its slot and blocks being free.
    pub disconnect_to_free_seconds: Histogram,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = |first: f64| Histogram::new(exponential_buckets(first, 2.0, 16));
        let mut m = Self {
            num_waiting: Gauge::default(),
            num_running: Gauge::default(),
            kv_blocks_used: Gauge::default(),
            kv_blocks_cached: Gauge::default(),
            kv_blocks_total: Gauge::default(),
            steps: Counter::default(),
            step_sequences: Counter::default(),
            mean_batch_size: Gauge::default(),
            step_tokens: Counter::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            requests_accepted: Counter::default(),
            requests_rejected: Counter::default(),
            requests_done: Counter::default(),
            requests_cancelled: Counter::default(),
            requests_failed: Counter::default(),
            queue_timeouts: Counter::default(),
            requests_limited: Counter::default(),
            preemptions: Counter::default(),
            worker_restarts: Counter::default(),
            readers: Gauge::default(),
            step_seconds: seconds(0.000_25),
            queue_wait_seconds: seconds(0.001),
            ttft_seconds: seconds(0.002),
            itl_seconds: seconds(0.001),
            disconnect_to_free_seconds: seconds(0.001),
            registry: Registry::with_prefix("tallow"),
        };
        let r = &mut m.registry;
        r.register("num_waiting", "Sequences waiting in the queue", m.num_waiting.clone());
        r.register("num_running", "Sequences that hold a slot in a worker", m.num_running.clone());
        r.register("kv_blocks_used", "KV blocks referenced by running sequences", m.kv_blocks_used.clone());
        r.register("kv_blocks_cached", "KV blocks kept for prefix reuse alone", m.kv_blocks_cached.clone());
        r.register("kv_blocks_total", "KV blocks in all", m.kv_blocks_total.clone());
        r.register("steps", "Steps run by all workers", m.steps.clone());
        r.register("step_sequences", "Sequences in a step, summed over steps", m.step_sequences.clone());
        r.register("mean_batch_size", "Sequences per step since the start", m.mean_batch_size.clone());
        r.register("step_tokens", "Tokens computed, summed over steps", m.step_tokens.clone());
        r.register("prompt_tokens", "Prompt tokens of started requests", m.prompt_tokens.clone());
        r.register("cached_tokens", "Prompt tokens that came from the prefix cache", m.cached_tokens.clone());
        r.register("completion_tokens", "Tokens sampled", m.completion_tokens.clone());
        r.register("requests_accepted", "Requests accepted into the queue", m.requests_accepted.clone());
        r.register("requests_rejected", "Requests refused because a bound was reached", m.requests_rejected.clone());
        r.register("requests_done", "Generations that ended with done", m.requests_done.clone());
        r.register("requests_cancelled", "Generations that were cancelled", m.requests_cancelled.clone());
        r.register("requests_failed", "Generations that failed", m.requests_failed.clone());
        r.register("queue_timeouts", "Requests that no worker took in time", m.queue_timeouts.clone());
        r.register("requests_limited", "Requests over a limit of their key", m.requests_limited.clone());
        r.register("preemptions", "Sequences preempted for lack of blocks", m.preemptions.clone());
        r.register("worker_restarts", "Workers restarted after a panic", m.worker_restarts.clone());
        r.register("readers", "Readers following a stream", m.readers.clone());
        r.register("step_seconds", "Duration of a step", m.step_seconds.clone());
        r.register("queue_wait_seconds", "From acceptance to the first step", m.queue_wait_seconds.clone());
        r.register("ttft_seconds", "From acceptance to the first token", m.ttft_seconds.clone());
        r.register("itl_seconds", "Between one token and the next of a sequence", m.itl_seconds.clone());
        let help = "From a running generation's cancellation to its slot and blocks being free";
        r.register("disconnect_to_free_seconds", help, m.disconnect_to_free_seconds.clone());
        m
    }
}

impl Metrics {
    /// The registry as OpenMetrics text.
    pub fn render(&self) -> String {
        if self.steps.get() > 0 {
            self.mean_batch_size.set(self.step_sequences.get() as f64 / self.steps.get() as f64);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_values_are_rendered() {
        let m = Metrics::default();
        m.steps.inc_by(3);
        m.step_sequences.inc_by(15);
        m.num_running.set(2);
        let text = m.render();
        assert!(text.contains("tallow_steps_total 3"), "{text}");
        assert!(text.contains("tallow_num_running 2"), "{text}");
        assert!(text.contains("tallow_mean_batch_size 5.0"), "{text}");
    }
}
