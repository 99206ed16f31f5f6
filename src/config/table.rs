//! Every setting of the server, one row each, in the order in which `--help` and the table at start show them.

use super::settings::Kind::{self, Bytes, Count, List, Millis, OneOf, Secrets, Text};
use super::settings::{GIB, KIB, MIB, Setting};

const HOUR_MS: u64 = 3_600_000;
/// The highest count of anything: large enough to mean "no bound in practice", small enough that sums cannot wrap.
const COUNT_MAX: u64 = 1 << 32;

const fn count(min: u64, unit: &'static str) -> Kind {
    Count { min, max: COUNT_MAX, unit, auto: false }
}

/// A bound of what one key may use.
const fn limit(unit: &'static str) -> Kind {
    Count { min: 0, max: u32::MAX as u64, unit, auto: false }
}

const fn row(key: &'static str, flag: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Setting {
    Setting { key, flag, kind, default, help }
}

/// The words of `--device`.
pub const DEVICES: &[&str] = &["cpu", "cuda", "metal"];
/// The words of `--activations`.
pub const ACTIVATIONS: &[&str] = &["f32", "int8"];
/// The words of `--call-format`.
pub const CALL_FORMATS: &[&str] = &["auto", "hermes", "llama3", "mistral"];
/// The words of `--reasoning-format`.
pub const REASONING_FORMATS: &[&str] = &["auto", "none", "think", "bracket"];
/// The words of `--log-format`.
pub const LOG_FORMATS: &[&str] = &["text", "json"];

/// All rows, in the order in which `--help` and the table at start show them.
pub static SETTINGS: &[Setting] = &[
    row("server.host", "host", Text, "127.0.0.1", "Address or host name to listen on"),
    row(
        "server.port",
        "port",
        Count { min: 0, max: 65_535, unit: "", auto: false },
        "8080",
        "Port; 0 takes a free one",
    ),
    row("server.connections_max", "connections-max", count(1, "connections"), "4096", "Most open connections"),
    row("server.body_bytes_max", "body-bytes-max", Bytes { min: KIB, max: GIB }, "4MiB", "Longest request body"),
    row(
        "server.json_depth_max",
        "json-depth-max",
        // The parser's own bound is 128.
        Count { min: 8, max: 127, unit: "levels", auto: false },
        "64",
        "Deepest nesting in a request body",
    ),
    row(
        "server.header_bytes_max",
        "header-bytes-max",
        Bytes { min: KIB, max: MIB },
        "16KiB",
        "Longest request head, and the buffer of a connection that is slow to read",
    ),
    row(
        "server.headers_max",
        "headers-max",
        Count { min: 1, max: 4096, unit: "lines", auto: false },
        "100",
        "Most header lines of a request",
    ),
    row(
        "server.send_buffer_bytes",
        "send-buffer-bytes",
        Bytes { min: 4 * KIB, max: GIB },
        "64KiB",
        "The kernel's buffer for a connection that is slow to read",
    ),
    row(
        "server.write_stall_timeout_ms",
        "write-stall-timeout-ms",
        Millis { min: 1, max: HOUR_MS },
        "30000",
        "How long a client may take nothing of what waits for it before its connection ends",
    ),
    row(
        "server.heartbeat_ms",
        "heartbeat-ms",
        Millis { min: 100, max: HOUR_MS },
        "15000",
        "Longest silence on an event stream before a heartbeat",
    ),
    row(
        "server.head_wait_ms",
        "head-wait-ms",
        Millis { min: 0, max: HOUR_MS },
        "15000",
        "How long a chat stream waits for its first token before it answers 200, so that early failures have a status",
    ),
    row(
        "server.drain_timeout_ms",
        "drain-timeout-ms",
        Millis { min: 0, max: HOUR_MS },
        "30000",
        "How long running streams may go on after SIGTERM or SIGINT",
    ),
    row(
        "server.close_timeout_ms",
        "close-timeout-ms",
        Millis { min: 0, max: HOUR_MS },
        "5000",
        "How long connections may then take to hear the end",
    ),
    row(
        "server.header_read_timeout_ms",
        "header-read-timeout-ms",
        Millis { min: 100, max: HOUR_MS },
        "60000",
        "How long a request head may take, and how long an idle connection is kept",
    ),
    row(
        "server.body_read_timeout_ms",
        "body-read-timeout-ms",
        Millis { min: 100, max: HOUR_MS },
        "30000",
        "How long a request body may take",
    ),
    row(
        "server.sweep_interval_ms",
        "sweep-interval-ms",
        Millis { min: 10, max: 60_000 },
        "250",
        "How often the retention of streams is looked at",
    ),
    row("server.cors_origins", "cors-origins", List, "", "Origins that browsers may call from, or *; none by default"),
    row(
        "server.allowed_hosts",
        "allowed-hosts",
        List,
        "",
        "Names by which the server may be called; on loopback, or if there are any, no others but localhost",
    ),
    row(
        "keys.list",
        "api-keys",
        Secrets,
        "",
        "API keys, KEY or NAME:KEY; better not on a command line that others see",
    ),
    row(
        "keys.file",
        "api-keys-file",
        Text,
        "",
        "API keys with their weights and limits: `NAME KEY [...]` lines, or TOML",
    ),
    row(
        "keys.requests_per_minute",
        "key-requests-per-minute",
        limit("requests"),
        "0",
        "Requests per minute of a key that does not say, or of all without keys; 0 is no limit",
    ),
    row(
        "keys.tokens_per_minute",
        "key-tokens-per-minute",
        limit("tokens"),
        "0",
        "The same for tokens, prompt and max_tokens; 0 is no limit",
    ),
    row(
        "keys.concurrency_max",
        "key-concurrency-max",
        limit("generations"),
        "0",
        "The same for generations that wait or run at once; 0 is no limit",
    ),
    row("streams.num_streams_max", "streams-max", count(1, "streams"), "4096", "Most streams, live and retained"),
    row(
        "streams.num_bytes_max",
        "streams-bytes-max",
        Bytes { min: MIB, max: 1 << 50 },
        "256MiB",
        "Most memory for the events of all streams",
    ),
    row(
        "streams.stream_bytes_max",
        "stream-bytes-max",
        Bytes { min: 4 * KIB, max: 1 << 50 },
        "16MiB",
        "Most memory for the events of one stream; beyond, its oldest go and late readers get a gap",
    ),
    row(
        "streams.unread_grace_ms",
        "unread-grace-ms",
        Millis { min: 0, max: HOUR_MS },
        "30000",
        "How long a stream whose policy is cancel waits for its first reader",
    ),
    row(
        "streams.num_expired_max",
        "expired-streams-max",
        count(0, "streams"),
        "16384",
        "How many expired streams are remembered as such",
    ),
    row(
        "streams.retention_ms",
        "retention-ms",
        Millis { min: 0, max: 24 * HOUR_MS },
        "600000",
        "How long a finished stream can be replayed",
    ),
    row(
        "responses.num_responses_max",
        "responses-max",
        count(1, "responses"),
        "1024",
        "Most stored responses of one owner; its oldest that has ended makes room",
    ),
    row(
        "responses.num_bytes_max",
        "responses-bytes-max",
        Bytes { min: 64 * KIB, max: 1 << 50 },
        "64MiB",
        "Most memory for the requests and input items of one owner's stored responses",
    ),
    row(
        "streams.feed_events_max",
        "feed-events-max",
        count(1, "events"),
        "4096",
        "Lifecycle events that /v1/events can go back to",
    ),
    row(
        "streams.store",
        "stream-store",
        Text,
        "",
        "Folder where streams are kept, so that they outlive the process; none by default",
    ),
    row(
        "streams.store_bytes_max",
        "stream-store-bytes-max",
        Bytes { min: MIB, max: 1 << 50 },
        "1GiB",
        "Most requests and events in the store; beyond, what ended first goes",
    ),
    row(
        "streams.store_interval_ms",
        "stream-store-interval-ms",
        Millis { min: 0, max: 10_000 },
        "20",
        "How long the store gathers tokens before it writes them",
    ),
    row(
        "streams.cancel_wait_ms",
        "cancel-wait-ms",
        Millis { min: 1, max: HOUR_MS },
        "10000",
        "How long a cancellation may take to be in the store before its answer is 503",
    ),
    row(
        "requests.max_tokens_default",
        "max-tokens-default",
        Count { min: 1, max: COUNT_MAX, unit: "tokens", auto: true },
        "auto",
        "Tokens of an answer whose request does not say; auto goes on to the context limit",
    ),
    row(
        "requests.choices_max",
        "choices-max",
        count(1, "choices"),
        "128",
        "Most generations that one request may ask for: its prompts times n, or best_of",
    ),
    row("requests.tools_max", "tools-max", count(0, "tools"), "128", "Most tools of a request"),
    row("requests.stop_strings_max", "stop-strings-max", count(0, "strings"), "4", "Most stop strings of a request"),
    row(
        "requests.stop_string_bytes_max",
        "stop-string-bytes-max",
        Bytes { min: 1, max: MIB },
        "1KiB",
        "Longest stop string; this much text may be held back",
    ),
    row("requests.stop_tokens_max", "stop-tokens-max", count(0, "tokens"), "128", "Most stop tokens of a request"),
    row(
        "requests.logit_bias_max",
        "logit-bias-max",
        count(0, "tokens"),
        "1024",
        "Most tokens with a bias in a request",
    ),
    row(
        "requests.top_logprobs_max",
        "top-logprobs-max",
        count(0, "tokens"),
        "20",
        "Most rivals whose log-probability is told",
    ),
    row(
        "requests.linger_ms_max",
        "linger-ms-max",
        Millis { min: 0, max: 24 * HOUR_MS },
        "3600000",
        "Longest time a request may ask its stream to run on without readers",
    ),
    row(
        "requests.queue_timeout_ms",
        "queue-timeout-ms",
        Millis { min: 0, max: 24 * HOUR_MS },
        "300000",
        "How long a request waits for a worker if x-queue-timeout does not say; beyond, 503",
    ),
    row(
        "requests.queue_timeout_ms_max",
        "queue-timeout-ms-max",
        Millis { min: 0, max: 24 * HOUR_MS },
        "3600000",
        "Longest time that x-queue-timeout may ask for",
    ),
    row(
        "requests.inline_bytes_max",
        "inline-bytes-max",
        Bytes { min: 0, max: MIB },
        "4KiB",
        "Longer prompts are tokenised away from the async threads",
    ),
    row(
        "requests.tokenising_max",
        "tokenising-max",
        Count { min: 1, max: 4096, unit: "prompts", auto: true },
        "auto",
        "Prompts tokenised at once; auto takes the number of cores",
    ),
    row(
        "engine.num_workers",
        "workers",
        Count { min: 1, max: 64, unit: "workers", auto: false },
        "1",
        "Inference workers; the cores are split between them",
    ),
    row(
        "engine.threads",
        "threads",
        Count { min: 1, max: 4096, unit: "threads", auto: true },
        "auto",
        "Compute threads of all workers together; auto takes every core",
    ),
    row(
        "engine.max_num_seqs",
        "max-num-seqs",
        Count { min: 1, max: 4096, unit: "sequences", auto: false },
        "64",
        "Most sequences in one step of a worker",
    ),
    row(
        "engine.max_num_batched_tokens",
        "max-num-batched-tokens",
        Count { min: 1, max: 1 << 20, unit: "tokens", auto: false },
        "512",
        "Most tokens in one step of a worker",
    ),
    row(
        "engine.prefill_tokens_per_step_max",
        "prefill-tokens-per-step-max",
        Count { min: 1, max: 1 << 20, unit: "tokens", auto: false },
        "256",
        "Most prompt tokens in a step while others decode",
    ),
    row(
        "engine.queue_requests_max",
        "queue-requests-max",
        Count { min: 1, max: 1 << 20, unit: "requests", auto: false },
        "1024",
        "Most waiting requests; beyond, 429",
    ),
    row(
        "engine.queue_tokens_max",
        "queue-tokens-max",
        count(1, "tokens"),
        "1048576",
        "Most tokens of waiting requests, prompt and output; beyond, 429",
    ),
    row(
        "engine.priority_step_tokens",
        "priority-step-tokens",
        count(1, "tokens"),
        "4096",
        "How many tokens of others' work one step of a request's priority is worth",
    ),
    row(
        "engine.queue_note_interval_ms",
        "queue-note-interval-ms",
        Millis { min: 10, max: HOUR_MS },
        "1000",
        "A waiting stream hears of its place at most this often",
    ),
    row("engine.prefix_cache", "prefix-cache", Kind::Bool, "true", "Reuse the KV blocks of equal prompt beginnings"),
    row(
        "engine.worker_load_attempts_max",
        "worker-load-attempts-max",
        Count { min: 1, max: 1000, unit: "attempts", auto: false },
        "5",
        "How often in a row a failed worker is restarted",
    ),
    row(
        "engine.worker_backoff_min_ms",
        "worker-backoff-min-ms",
        Millis { min: 1, max: HOUR_MS },
        "100",
        "First wait before a worker's restart; each further one is twice as long",
    ),
    row(
        "engine.worker_backoff_max_ms",
        "worker-backoff-max-ms",
        Millis { min: 1, max: HOUR_MS },
        "5000",
        "Longest wait before a worker's restart",
    ),
    row(
        "engine.step_time_max_ms",
        "step-time-max-ms",
        Millis { min: 100, max: HOUR_MS },
        "5000",
        "A worker that computes nothing in a step for so long is given up and replaced",
    ),
    row(
        "engine.stall_time_max_ms",
        "stall-time-max-ms",
        Millis { min: 10, max: HOUR_MS },
        "1500",
        "A worker that computes nothing in a step for so long is not ready",
    ),
    row(
        "engine.workers_abandoned_max",
        "workers-abandoned-max",
        count(0, "workers"),
        "3",
        "Hung workers that are replaced; each keeps its memory and threads",
    ),
    row(
        "engine.shutdown_time_max_ms",
        "shutdown-time-max-ms",
        Millis { min: 0, max: HOUR_MS },
        "10000",
        "How long the end waits for a step",
    ),
    row("engine.grammars_max", "grammars-max", count(1, "grammars"), "128", "Most compiled grammars that are kept"),
    row(
        "engine.grammars_bytes_max",
        "grammars-bytes-max",
        Bytes { min: MIB, max: 1 << 50 },
        "64MiB",
        "Most memory of compiled grammars that nobody uses",
    ),
    row(
        "engine.grammar_bytes_max",
        "grammar-bytes-max",
        Bytes { min: 64, max: GIB },
        "64KiB",
        "Longest schema or grammar",
    ),
    row(
        "engine.grammar_compile_time_max_ms",
        "grammar-compile-time-max-ms",
        Millis { min: 1, max: 60_000 },
        "2000",
        "Longest time to compile a schema or grammar; beyond, 400",
    ),
    row("engine.grammars_compiling_max", "grammars-compiling-max", count(1, "grammars"), "4", "Most compiled at once"),
    row(
        "model.name",
        "model",
        Text,
        "smollm2-135m-instruct",
        "A name of `tallow models`, PATH.gguf, or hub:OWNER/REPO[:FILE]",
    ),
    row("model.served_name", "served-name", Text, "", "Name of the model on the wire; its own by default"),
    row("model.device", "device", OneOf(DEVICES), "cpu", "Where to compute"),
    row(
        "model.activations",
        "activations",
        OneOf(ACTIVATIONS),
        "int8",
        "Inputs of quantised matrices on the CPU: int8 is fast, f32 rounds nothing",
    ),
    row(
        "model.reference",
        "reference",
        Kind::Bool,
        "false",
        "Decode with candle's own operations (slow; the yardstick for the fused ones)",
    ),
    row(
        "model.call_format",
        "call-format",
        OneOf(CALL_FORMATS),
        "auto",
        "How the model writes calls of tools; auto goes by its chat template",
    ),
    row(
        "model.reasoning_format",
        "reasoning-format",
        OneOf(REASONING_FORMATS),
        "auto",
        "How the model marks what it thinks; auto goes by its chat template",
    ),
    row(
        "model.max_model_len",
        "max-model-len",
        Count { min: 1, max: COUNT_MAX, unit: "tokens", auto: true },
        "auto",
        "Longest sequence, prompt and output; auto takes the model's own",
    ),
    row(
        "model.kv_cache_bytes",
        "kv-cache-bytes",
        Bytes { min: MIB, max: 1 << 50 },
        "1GiB",
        "Memory for keys and values, per worker",
    ),
    row("registry.cache_dir", "cache-dir", Text, "", "Where weights are kept; the user's cache directory by default"),
    row("registry.models_dir", "models-dir", Text, "", "A folder with more manifests"),
    row("log.level", "log-level", Text, "info", "error, warn, info, debug, trace, or a filter like tallow::api=debug"),
    row("log.format", "log-format", OneOf(LOG_FORMATS), "text", "Shape of the log on standard error"),
    row("log.prompts", "log-prompts", Kind::Bool, "false", "Write prompts to the log, as the model sees them"),
];
