//! Every metric is a field, its unit in its name. The engine and the wires hold an `Arc<Metrics>` and count; `api/`
//! renders the registry as Prometheus text.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What refused a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RejectLabel {
    /// One of the words below.
    pub reason: &'static str,
}

impl RejectLabel {
    /// The queue is full.
    pub(crate) const QUEUE_FULL: Self = Self { reason: "queue_full" };
    /// The table is full of live streams.
    pub const STREAMS_FULL: Self = Self { reason: "streams_full" };
    /// An owner is over a limit of its own.
    pub const OWNER_LIMIT: Self = Self { reason: "owner_limit" };
    /// Too many requests of an owner wait for a grammar to be compiled, or one has waited too long.
    pub const GRAMMARS_FULL: Self = Self { reason: "grammars_full" };
    /// As many responses as may be kept are still running.
    pub const RESPONSES_FULL: Self = Self { reason: "responses_full" };
    /// As many large requests of an owner wait to be prepared as may.
    pub const BACKGROUND_FULL: Self = Self { reason: "background_full" };
    /// The bodies or answers that are held at once take as much memory as they may.
    pub const MEMORY_FULL: Self = Self { reason: "memory_full" };
    /// The disk that keeps the streams does not keep up.
    pub const STORE_BEHIND: Self = Self { reason: "store_behind" };
    /// The server is about to end, or has no worker left.
    pub(crate) const UNAVAILABLE: Self = Self { reason: "unavailable" };
}

/// Who cancelled a generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CancelLabel {
    /// `reader_left` or `requested`.
    pub cause: &'static str,
}

impl CancelLabel {
    /// The label of a log's cause.
    pub(crate) fn new(cause: &'static str) -> Self {
        Self { cause }
    }
}

/// The model that a metric is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

/// Writes the struct and the registration of each field from one row.
macro_rules! metrics {
    (
        by_model { $($(#[$doc:meta])* $name:ident: $kind:ty = $default:expr, $help:literal;)* }
        process { $($(#[$process_doc:meta])* $process:ident: $process_kind:ty = $process_default:expr, $process_help:literal;)* }
    ) => {
        /// The metrics of one server, or of one of its models with those of the server.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[$doc])* pub $name: $kind,)*
            $($(#[$process_doc])* pub $process: $process_kind,)*
            registry: Registry,
            models: Vec<Arc<Metrics>>,
        }

        impl Default for Metrics {
            /// Of a server whose models are not told apart.
            fn default() -> Self {
                let mut registry = Registry::with_prefix("tallow");
                $(let $name: $kind = $default; registry.register(stringify!($name), $help, $name.clone());)*
                $(
                    let $process: $process_kind = $process_default;
                    registry.register(stringify!($process), $process_help, $process.clone());
                )*
                Self { $($name,)* $($process,)* registry, models: Vec::new() }
            }
        }

        impl Metrics {
            /// Names of those that each model has, with the label `model`.
            pub const BY_MODEL: &[&str] = &[$(stringify!($name)),*];

            /// Of a server with these models, and of each of them.
            pub fn by_model(names: &[&str]) -> (Arc<Self>, Vec<Arc<Self>>) {
                let mut registry = Registry::with_prefix("tallow");
                $(
                    let $name = Family::<ModelLabel, $kind, fn() -> $kind>::new_with_constructor(|| $default);
                    registry.register(stringify!($name), $help, $name.clone());
                )*
                $(
                    let $process: $process_kind = $process_default;
                    registry.register(stringify!($process), $process_help, $process.clone());
                )*
                let of = |name: &&str| {
                    let label = ModelLabel { model: (*name).to_owned() };
                    Arc::new(Self {
                        $($name: $name.get_or_create(&label).clone(),)*
                        $($process: $process.clone(),)*
                        registry: Registry::default(),
                        models: Vec::new(),
                    })
                };
                let models: Vec<Arc<Self>> = names.iter().map(of).collect();
                let server = Self { $($name: $default,)* $($process,)* registry, models: models.clone() };
                (Arc::new(server), models)
            }
        }
    };
}

/// From `first` seconds on, each bucket twice as wide as the one before.
fn seconds(first: f64) -> Histogram {
    Histogram::new(exponential_buckets(first, 2.0, 16))
}

metrics! {
    by_model {
        /// Sequences waiting in the queue.
        num_waiting: Gauge = Gauge::default(), "Sequences waiting in the queue";
        /// Sequences that hold a slot in a worker.
        num_running: Gauge = Gauge::default(), "Sequences that hold a slot in a worker";
        /// KV blocks referenced by running sequences.
        kv_blocks_used: Gauge = Gauge::default(), "KV blocks referenced by running sequences";
        /// KV blocks that no sequence references and that a prefix can still be found in.
        kv_blocks_cached: Gauge = Gauge::default(), "KV blocks kept for prefix reuse alone";
        /// KV blocks in all.
        kv_blocks_total: Gauge = Gauge::default(), "KV blocks in all";
        /// Steps run by all workers.
        steps: Counter = Counter::default(), "Steps run by all workers";
        /// Sequences that took part in a step, summed over steps; divided by `steps` it is the mean batch size.
        step_sequences: Counter = Counter::default(), "Sequences in a step, summed over steps";
        /// Sequences in a step.
        batch_sequences: Histogram = Histogram::new(exponential_buckets(1.0, 2.0, 11)), "Sequences in a step";
        /// Sequences per step since the start; set when rendered.
        mean_batch_size: Gauge<f64, AtomicU64> = Gauge::default(), "Sequences per step since the start";
        /// Tokens computed (prompt and output), summed over steps.
        step_tokens: Counter = Counter::default(), "Tokens computed, summed over steps";
        /// Prompt tokens of started requests.
        prompt_tokens: Counter = Counter::default(), "Prompt tokens of started requests";
        /// Prompt tokens that came from the prefix cache.
        cached_tokens: Counter = Counter::default(), "Prompt tokens that came from the prefix cache";
        /// Tokens sampled.
        completion_tokens: Counter = Counter::default(), "Tokens sampled";
        /// Texts embedded, by the model or an encoder.
        embeddings: Counter = Counter::default(), "Texts embedded";
        /// Tokens of the texts embedded.
        embedding_tokens: Counter = Counter::default(), "Tokens of the texts embedded";
        /// Requests accepted into the queue.
        requests_accepted: Counter = Counter::default(), "Requests accepted into the queue";
        /// Tokens (prompt and `max_tokens`) of the requests that wait in the queue.
        queue_tokens: Gauge = Gauge::default(), "Tokens of the requests that wait in the queue";
        /// From acceptance to the end of a generation.
        e2e_seconds: Histogram = seconds(0.004), "From acceptance to the end of a generation";
        /// Workers given up because they hung in a step.
        workers_abandoned: Counter = Counter::default(), "Workers given up in a step";
        /// Generations that went on with another worker after theirs was lost.
        requests_taken_over: Counter = Counter::default(), "Generations that went on after their worker was lost";
        /// Generations that ended with `done`.
        requests_done: Counter = Counter::default(), "Generations that ended with done";
        /// Generations that were cancelled.
        requests_cancelled: Counter = Counter::default(), "Generations that were cancelled";
        /// Generations that failed.
        requests_failed: Counter = Counter::default(), "Generations that failed";
        /// Requests that waited longer than they were willing to; they count as failed too.
        queue_timeouts: Counter = Counter::default(), "Requests that no worker took in time";
        /// Sequences preempted for lack of blocks.
        preemptions: Counter = Counter::default(), "Sequences preempted for lack of blocks";
        /// Sequences preempted for another owner, which had fewer places in the worker per weight.
        fair_preemptions: Counter = Counter::default(), "Sequences preempted for an owner with a smaller share";
        /// Workers restarted after a panic.
        worker_restarts: Counter = Counter::default(), "Workers restarted after a panic";
        /// Workers that begin no step because the disk that keeps the streams is far behind.
        workers_held_up: Gauge = Gauge::default(), "Workers that wait for the disk of the stream store";
        /// Duration of a step.
        step_seconds: Histogram = seconds(0.000_25), "Duration of a step";
        /// Time to compile a grammar, the failed ones included.
        grammar_compile_seconds: Histogram = seconds(0.000_5), "Time to compile a grammar";
        /// Grammars that were found compiled.
        grammar_cache_hits: Counter = Counter::default(), "Grammars that were found compiled";
        /// Time to find the tokens that a grammar allows next, for one text.
        grammar_mask_seconds: Histogram = seconds(0.000_01), "Time to find the tokens that a grammar allows next";
        /// Tokens that a grammar forced, which were not sampled.
        forced_tokens: Counter = Counter::default(), "Tokens that a grammar forced";
        /// From acceptance to the first step.
        queue_wait_seconds: Histogram = seconds(0.001), "From acceptance to the first step";
        /// From acceptance to the first token.
        ttft_seconds: Histogram = seconds(0.002), "From acceptance to the first token";
        /// Between one token and the next of a sequence.
        itl_seconds: Histogram = seconds(0.001), "Between one token and the next of a sequence";
        /// From the cancellation of a running generation to its slot and blocks being free.
        disconnect_to_free_seconds: Histogram = seconds(0.001), "From a running generation's cancellation to its slot and blocks being free";
    }
    process {
        /// Requests refused because a bound was reached.
        requests_rejected: Counter = Counter::default(), "Requests refused because a bound was reached";
        /// Requests refused, by what refused them.
        rejects: Family<RejectLabel, Counter> = Family::default(), "Requests refused, by what refused them";
        /// Generations cancelled, by who did.
        cancels: Family<CancelLabel, Counter> = Family::default(), "Generations cancelled, by who did";
        /// Connections that asked for a stream from an event on.
        resumes: Counter = Counter::default(), "Connections that asked for a stream from an event on";
        /// Events of logs that were read for somebody who asks for a response as it stands.
        response_events_read: Counter = Counter::default(), "Events read for clients that poll responses";
        /// Events that were there already when a connection asked for them.
        replayed_events: Counter = Counter::default(), "Events that were there already when a connection asked for them";
        /// Memory of the events of all streams; set when rendered.
        stream_bytes: Gauge = Gauge::default(), "Memory of the events of all streams";
        /// Streams, live and retained; set when rendered.
        streams: Gauge = Gauge::default(), "Streams, live and retained";
        /// Whether the stream store has failed, so that streams are in memory alone; set when rendered.
        stream_store_failed: Gauge = Gauge::default(), "1 once the stream store has failed and streams are in memory alone";
        /// Changes that wait for the disk that keeps the streams; set when rendered.
        stream_store_changes: Gauge = Gauge::default(), "Changes that wait for the disk of the stream store";
        /// How long the stream store's commit under way has taken so far; set when rendered.
        stream_store_commit_seconds: Gauge<f64, AtomicU64> = Gauge::default(), "Seconds that the stream store's commit under way has taken so far";
        /// Requests refused because a limit of their owner was used up.
        requests_limited: Counter = Counter::default(), "Requests over a limit of their key";
        /// Readers following a stream now.
        readers: Gauge = Gauge::default(), "Readers following a stream";
    }
}

impl Metrics {
    /// Counts a request that a bound or the server's state has refused.
    pub fn reject(&self, label: &RejectLabel) {
        self.requests_rejected.inc();
        self.rejects.get_or_create(label).inc();
    }

    /// The registry as OpenMetrics text.
    pub fn render(&self) -> String {
        for one in std::iter::once(self).chain(self.models.iter().map(|model| &**model)) {
            if one.steps.get() > 0 {
                one.mean_batch_size.set(one.step_sequences.get() as f64 / one.steps.get() as f64);
            }
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

    #[test]
    fn each_model_counts_for_itself_and_the_server_for_all() {
        let (server, models) = Metrics::by_model(&["a", "b"]);
        models[0].steps.inc();
        models[1].steps.inc_by(2);
        models[1].step_sequences.inc_by(8);
        models[0].reject(&RejectLabel::QUEUE_FULL);
        server.reject(&RejectLabel::QUEUE_FULL);
        let text = server.render();
        for line in [
            "tallow_steps_total{model=\"a\"} 1",
            "tallow_steps_total{model=\"b\"} 2",
            "tallow_mean_batch_size{model=\"b\"} 4.0",
            "tallow_rejects_total{reason=\"queue_full\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE tallow_steps counter").count(), 1, "{text}");
    }
}
