//! Configuration in two stages: what was typed ([`Typed`] flags, the environment, a file: `sources`) becomes one
//! [`Config`] of plain, checked values. `settings` is the table both stages read. Config is passed down, never
//! global, and knows none of the rooms it configures: `cli/serve` hands its values to them.

mod check;
mod keys;
mod models;
mod resolve;
mod row;
mod settings;
mod show;
mod sources;
mod table;
mod table_embeddings;
mod table_keys;
mod table_memory;
mod table_models;

use std::path::PathBuf;

pub use keys::{KeyConfig, Secret};
pub use row::{ACTIVATIONS, DEVICES, LOG_FORMATS};
pub use settings::{Kind, SETTINGS, Setting, Value, setting, show_bytes};
pub use sources::{CONFIG_ENV, DEFAULT_FILE, Origin, Sources, Typed};

use crate::error::Result;
use crate::protocol::OwnerLimits;
use models::ModelNames;
use resolve::Values;

/// Everything a server must be told, resolved and checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The listener and the HTTP wires.
    pub server: ServerConfig,
    /// Who may ask.
    pub keys: KeysConfig,
    /// The table of streams.
    pub streams: StreamsConfig,
    /// What a request may ask for.
    pub requests: RequestsConfig,
    /// Stored responses.
    pub responses: ResponsesConfig,
    /// Workers, scheduler, queue.
    pub engine: EngineSection,
    /// The model that is meant where a request names none, and how it is run.
    pub model: ModelSection,
    /// Further models.
    pub more_models: Vec<ModelSection>,
    /// When models are loaded and unloaded.
    pub models: ModelsConfig,
    /// As they were typed; `model` and `more_models` have them each.
    names: ModelNames,
    /// Where weights are kept.
    pub registry: RegistryConfig,
    /// The log.
    pub log: LogConfig,
    /// What requests hold in memory.
    pub memory: MemoryConfig,
    /// Texts to vectors.
    pub embeddings: EmbeddingsConfig,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Each setting's final value and where it came from, in the order of [`SETTINGS`].
    pub resolved: Vec<(&'static Setting, Value, Origin)>,
}

/// The listener and the HTTP wires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Address or host name to listen on.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Most open connections.
    pub connections_max: usize,
    /// Most of one address; 0 is no bound.
    pub connections_per_address_max: usize,
    /// Longest request body.
    pub body_bytes_max: usize,
    /// Deepest nesting in a request body.
    pub json_depth_max: usize,
    /// Longest request head.
    pub header_bytes_max: usize,
    /// Most header lines of a request.
    pub headers_max: usize,
    /// The kernel's buffer for a connection that is slow to read.
    pub send_buffer_bytes: usize,
    /// How long a write may make no progress before its connection ends.
    pub write_stall_timeout_ms: u64,
    /// Longest silence on an event stream.
    pub heartbeat_ms: u64,
    /// How long the head of a stream waits for the first token.
    pub head_wait_ms: u64,
    /// How long running streams may go on after the signal to end.
    pub drain_timeout_ms: u64,
    /// How long connections may then take to hear the end.
    pub close_timeout_ms: u64,
    /// How long a request head may take, and how long an idle connection is kept.
    pub header_read_timeout_ms: u64,
    /// How long a request body may take.
    pub body_read_timeout_ms: u64,
    /// How often the retention of streams is looked at.
    pub sweep_interval_ms: u64,
    /// Origins that browsers may call from; `*` is any.
    pub cors_origins: Vec<String>,
    /// Further names by which the server may be called.
    pub allowed_hosts: Vec<String>,
}

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysConfig {
    /// Every key, those of the file too; none lets everybody in.
    pub keys: Vec<KeyConfig>,
    /// Of everybody together, if there are no keys.
    pub limits: OwnerLimits,
    /// Most open requests of one key; 0 is no bound.
    pub open_requests_max: usize,
}

/// The table of streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamsConfig {
    /// Folder where streams are kept, if they are.
    pub store: Option<PathBuf>,
    /// Most requests and events in it.
    pub store_bytes_max: u64,
    /// How long tokens are gathered before they are written.
    pub store_interval_ms: u64,
    /// How long a cancellation may take to be kept in the store.
    pub cancel_wait_ms: u64,
    /// Most streams, live and retained.
    pub num_streams_max: usize,
    /// Most memory for their events.
    pub num_bytes_max: usize,
    /// Most memory for the events of one stream.
    pub stream_bytes_max: usize,
    /// How long a stream whose policy is cancel waits for its first reader.
    pub unread_grace_ms: u64,
    /// How many expired streams are remembered as such.
    pub num_expired_max: usize,
    /// Lifecycle events that are kept for operators.
    pub feed_events_max: usize,
    /// How long a finished stream can be replayed.
    pub retention_ms: u64,
}

/// Stored responses, by owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponsesConfig {
    /// Most of them.
    pub num_responses_max: usize,
    /// Most memory for their requests and input items.
    pub num_bytes_max: usize,
}

/// What a request may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestsConfig {
    /// Tokens of an answer whose request does not say; `None` goes on to the context limit.
    pub max_tokens_default: Option<usize>,
    /// Most generations of one request.
    pub choices_max: usize,
    /// Most tools.
    pub tools_max: usize,
    /// Most stop strings.
    pub stop_strings_max: usize,
    /// Longest stop string.
    pub stop_string_bytes_max: usize,
    /// Most stop tokens.
    pub stop_tokens_max: usize,
    /// Most tokens with a bias.
    pub logit_bias_max: usize,
    /// Most rivals whose log-probability is told.
    pub top_logprobs_max: usize,
    /// Longest grace time of a lingering stream.
    pub linger_ms_max: u64,
    /// How long a request waits for a worker if it does not say.
    pub queue_timeout_ms: u64,
    /// How long it may ask to wait.
    pub queue_timeout_ms_max: u64,
    /// Longer bodies, prompts and answers are worked on away from the async threads.
    pub inline_bytes_max: usize,
    /// Threads for what is longer; `None` takes half of the cores, at least two.
    pub background_threads: Option<usize>,
}

/// What requests hold in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Most texts, arrays and objects in a request body.
    pub json_values_max: usize,
    /// Most memory of all request bodies.
    pub bodies_bytes_max: usize,
    /// Most memory of all large answers.
    pub answers_bytes_max: usize,
}

/// Workers, scheduler, queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSection {
    /// Inference workers.
    pub num_workers: usize,
    /// Compute threads of all workers together; `None` takes every core.
    pub threads: Option<usize>,
    /// Most sequences in a step.
    pub max_num_seqs: usize,
    /// Most tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Most prompt tokens in a step while others decode.
    pub prefill_tokens_per_step_max: usize,
    /// Most waiting requests.
    pub queue_requests_max: usize,
    /// Most tokens of waiting requests.
    pub queue_tokens_max: usize,
    /// How many tokens of others' work one step of priority is worth.
    pub priority_step_tokens: u64,
    /// A waiting stream hears of its place at most this often.
    pub queue_note_interval_ms: u64,
    /// Whether equal prompt beginnings share KV blocks.
    pub prefix_cache: bool,
    /// How often in a row a failed worker is restarted.
    pub worker_load_attempts_max: u32,
    /// First wait before a restart.
    pub worker_backoff_min_ms: u64,
    /// Longest wait before a restart.
    pub worker_backoff_max_ms: u64,
    /// A worker whose step takes longer counts as hung.
    pub step_time_max_ms: u64,
    /// How long a worker may compute nothing and still count as ready.
    pub stall_time_max_ms: u64,
    /// Hung workers that are replaced.
    pub workers_abandoned_max: u64,
    /// How long the end waits for a step.
    pub shutdown_time_max_ms: u64,
    /// Compiled grammars that are kept ...
    pub grammars_max: usize,
    /// ... and their memory.
    pub grammars_bytes_max: usize,
    /// Longest schema or grammar.
    pub grammar_bytes_max: usize,
    /// Longest time to compile one.
    pub grammar_compile_time_max_ms: u64,
    /// Most compiled at once.
    pub grammars_compiling_max: usize,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Our kernels on this machine's cores.
    Cpu,
    /// candle on an NVIDIA card.
    Cuda,
    /// candle on Apple graphics.
    Metal,
}

/// What the inputs of quantised matrices are multiplied as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// As they are.
    F32,
    /// Rounded to 8 bits.
    Int8,
}

/// Which model, and how it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSection {
    /// A registry name, a path, or `hub:OWNER/REPO[:FILE]`.
    pub name: String,
    /// Name on the wire; `None` takes its own.
    pub served_name: Option<String>,
    /// Further names on the wire.
    pub aliases: Vec<String>,
    /// Whether it is loaded at start.
    pub preload: bool,
    /// Whether it stays once it is loaded.
    pub pinned: bool,
    /// Where to compute.
    pub device: DeviceKind,
    /// Inputs of quantised matrices on the CPU.
    pub activations: Activations,
    /// Decode with the composed reference.
    pub reference: bool,
    /// How it writes calls: a word of `--call-format`.
    pub call_format: String,
    /// How it marks reasoning: a word of `--reasoning-format`.
    pub reasoning_format: String,
    /// Longest sequence; `None` takes the model's own.
    pub max_model_len: Option<usize>,
    /// Memory for keys and values, per worker.
    pub kv_cache_bytes: u64,
}

/// When models are loaded and unloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelsConfig {
    /// Most memory of all that are loaded; `None` is no bound.
    pub memory_max: Option<u64>,
    /// How long one stays of which nothing is asked; `None` is for ever.
    pub idle_unload_ms: Option<u64>,
    /// How long one stays at least.
    pub stay_min_ms: u64,
}

/// Where weights are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The folder.
    pub cache_dir: PathBuf,
    /// A folder with more manifests.
    pub models_dir: Option<PathBuf>,
}

/// Shape of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level or a filter.
    pub level: String,
    /// Its shape.
    pub format: LogFormat,
    /// Whether prompts go to the log.
    pub prompts: bool,
    /// Whether the level was typed; if not, `RUST_LOG` may say otherwise.
    pub level_given: bool,
}

/// Texts to vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingsConfig {
    /// An encoder beside the model, as it was typed.
    pub model: Option<String>,
    /// Most texts of one request.
    pub inputs_max: usize,
    /// Most of them that wait or run at once.
    pub inputs_at_once: usize,
    /// Most texts that wait for the encoder.
    pub queue_max: usize,
    /// Whether the encoder is never unloaded, as `--pinned` says for every model that has no settings of its own.
    pub pinned: bool,
}

impl Config {
    /// Stage two: reads every setting from `sources` and checks them one by one, then together.
    ///
    /// # Errors
    /// The first broken rule, with the name by which the value was given.
    pub fn resolve(sources: &Sources) -> Result<Self> {
        let mut values = Values { sources, resolved: Vec::with_capacity(SETTINGS.len()) };
        let mut config = Self {
            server: values.server()?,
            streams: StreamsConfig {
                num_streams_max: values.number("streams.num_streams_max")?,
                num_bytes_max: values.number("streams.num_bytes_max")?,
                stream_bytes_max: values.number("streams.stream_bytes_max")?,
                unread_grace_ms: values.number("streams.unread_grace_ms")?,
                num_expired_max: values.number("streams.num_expired_max")?,
                retention_ms: values.number("streams.retention_ms")?,
                feed_events_max: values.number("streams.feed_events_max")?,
                store: Some(values.text("streams.store")?).filter(|dir| !dir.is_empty()).map(PathBuf::from),
                store_bytes_max: values.number("streams.store_bytes_max")?,
                store_interval_ms: values.number("streams.store_interval_ms")?,
                cancel_wait_ms: values.number("streams.cancel_wait_ms")?,
            },
            responses: ResponsesConfig {
                num_responses_max: values.number("responses.num_responses_max")?,
                num_bytes_max: values.number("responses.num_bytes_max")?,
            },
            requests: values.requests()?,
            engine: values.engine()?,
            more_models: Vec::new(),
            registry: values.registry()?,
            log: LogConfig {
                level: values.text("log.level")?,
                format: if values.text("log.format")? == "json" { LogFormat::Json } else { LogFormat::Text },
                prompts: values.bool("log.prompts")?,
                level_given: values.origin("log.level") != Origin::Default,
            },
            keys: values.keys()?,
            memory: values.memory()?,
            embeddings: values.embeddings()?,
            model: values.model()?,
            models: values.models()?,
            names: values.model_names()?,
            file: sources.file_path().map(PathBuf::from),
            resolved: values.resolved,
        };
        models::list(&mut config, sources)?;
        check::together(config)
    }

    /// Where the value of `key` came from.
    ///
    /// # Panics
    /// If there is no such setting.
    pub fn origin(&self, key: &str) -> Origin {
        let entry = self.resolved.iter().find(|(s, _, _)| s.key == key);
        entry.map_or_else(|| panic!("no setting {key}"), |(_, _, origin)| *origin)
    }
}

#[cfg(test)]
mod tests;
