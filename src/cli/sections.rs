//! From the resolved configuration to what each room takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use sha2::{Digest, Sha256};

use crate::api::{ApiConfig, ApiKey, ResponseLimits};
use crate::config::{Activations, Config, DeviceKind, KeyConfig, ModelSection};
use crate::engine::EngineConfig;
use crate::engine::encoder::EncoderLimits;
use crate::error::{Error, Result};
use crate::model::decoder::{ActivationType, Compute, DecoderOptions};
use crate::protocol::{Owner, Tenant};
use crate::sampling::grammar::GrammarLimits;
use crate::service::{BackgroundLimits, ServedConfig, ServiceConfig};
use crate::stream::{StoreLimits, TableLimits};
use crate::text::{CallSyntax, ReasoningSyntax};

pub(super) fn api(config: &Config) -> ApiConfig {
    let server = &config.server;
    ApiConfig {
        heartbeat: Duration::from_millis(server.heartbeat_ms),
        head_wait: Duration::from_millis(server.head_wait_ms),
        cors_origins: server.cors_origins.clone(),
        allowed_hosts: server.allowed_hosts.clone(),
        keys: config.keys.keys.iter().map(|key| ApiKey::new(&key.secret.0, Arc::new(owner(key)))).collect(),
        open_requests_max: config.keys.open_requests_max,
        responses: ResponseLimits {
            num_responses_max: config.responses.num_responses_max,
            num_bytes_max: config.responses.num_bytes_max,
        },
        body_bytes_max: server.body_bytes_max,
        json_depth_max: server.json_depth_max,
        json_values_max: config.memory.json_values_max,
        bodies_bytes_max: config.memory.bodies_bytes_max,
        answers_bytes_max: config.memory.answers_bytes_max,
        header_bytes_max: server.header_bytes_max,
        headers_max: server.headers_max,
        write_stall_timeout: Duration::from_millis(server.write_stall_timeout_ms),
        send_buffer_bytes: server.send_buffer_bytes,
        body_read_timeout: Duration::from_millis(server.body_read_timeout_ms),
        header_read_timeout: Duration::from_millis(server.header_read_timeout_ms),
        connections_max: server.connections_max,
        connections_per_address_max: server.connections_per_address_max,
        sweep_interval: Duration::from_millis(server.sweep_interval_ms),
        drain_timeout: Duration::from_millis(server.drain_timeout_ms),
        close_timeout: Duration::from_millis(server.close_timeout_ms),
    }
}

/// Whose a key's streams are. The tenant follows from the name alone, so that it outlives the key and the process.
fn owner(key: &KeyConfig) -> Owner {
    let digest = Sha256::digest(format!("tallow owner {}", key.name));
    let tenant = digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    Owner {
        // 0 is the anonymous owner's.
        tenant: Tenant(tenant.max(1)),
        name: key.name.clone(),
        is_admin: key.is_admin,
        weight: key.weight,
        priority: key.priority,
        limits: key.limits,
    }
}

/// Everybody who may ask.
fn owners(config: &Config) -> Vec<Arc<Owner>> {
    match config.keys.keys.as_slice() {
        [] => vec![Arc::new(Owner { limits: config.keys.limits, ..Owner::anonymous() })],
        keys => keys.iter().map(|key| Arc::new(owner(key))).collect(),
    }
}

pub(super) fn streams(config: &Config) -> TableLimits {
    let streams = &config.streams;
    TableLimits {
        num_streams_max: streams.num_streams_max,
        num_bytes_max: streams.num_bytes_max,
        stream_bytes_max: streams.stream_bytes_max,
        unread_grace_ms: streams.unread_grace_ms,
        retention_ms: streams.retention_ms,
        num_expired_max: streams.num_expired_max,
        feed_events_max: streams.feed_events_max,
    }
}

/// The store's folder and bounds, where streams are kept.
pub(super) fn store(config: &Config) -> Option<(PathBuf, StoreLimits)> {
    let streams = &config.streams;
    let limits = StoreLimits {
        commit_interval: Duration::from_millis(streams.store_interval_ms),
        num_bytes_max: streams.store_bytes_max,
        stall_time_max: Duration::from_millis(config.engine.stall_time_max_ms),
    };
    Some((streams.store.clone()?, limits))
}

/// What one model is called, and how its answers are read.
pub(super) fn served(section: &ModelSection, name: &str) -> ServedConfig {
    ServedConfig {
        is_pinned: section.pinned,
        call_syntax: match section.call_format.as_str() {
            "hermes" => Some(CallSyntax::Hermes),
            "llama3" => Some(CallSyntax::Llama3),
            "mistral" => Some(CallSyntax::Mistral),
            _ => None,
        },
        reasoning_syntax: match section.reasoning_format.as_str() {
            "none" => Some(None),
            "think" => Some(Some(ReasoningSyntax::Think)),
            "bracket" => Some(Some(ReasoningSyntax::Bracket)),
            _ => None,
        },
        ..ServedConfig::named(name)
    }
}

pub(super) fn service(config: &Config) -> ServiceConfig {
    let (requests, embeddings) = (&config.requests, &config.embeddings);
    ServiceConfig {
        log_prompts: config.log.prompts,
        max_tokens_default: requests.max_tokens_default,
        choices_max: requests.choices_max,
        embedding_inputs_max: embeddings.inputs_max,
        // More than a queue takes of one key would be refused though nobody else is there.
        embedding_inputs_at_once: embeddings
            .inputs_at_once
            .min(queue_part(embeddings.queue_max))
            .min(queue_part(config.engine.queue_requests_max)),
        tools_max: requests.tools_max,
        stop_strings_max: requests.stop_strings_max,
        stop_string_bytes_max: requests.stop_string_bytes_max,
        stop_tokens_max: requests.stop_tokens_max,
        logit_bias_max: requests.logit_bias_max,
        top_logprobs_max: requests.top_logprobs_max,
        linger_ms_max: requests.linger_ms_max,
        queue_timeout_ms: requests.queue_timeout_ms,
        queue_timeout_ms_max: requests.queue_timeout_ms_max,
        cancel_wait_ms: config.streams.cancel_wait_ms,
        owners: owners(config),
        inline_bytes_max: requests.inline_bytes_max,
        background: match requests.background_threads {
            Some(num_threads) => BackgroundLimits { num_threads, ..BackgroundLimits::default() },
            None => BackgroundLimits::default(),
        },
    }
}

/// Most requests of a lone key that a queue of so many takes.
fn queue_part(requests_max: usize) -> usize {
    (requests_max - requests_max / 5).max(1)
}

pub(super) fn engine(config: &Config) -> EngineConfig {
    let engine = &config.engine;
    EngineConfig {
        num_workers: engine.num_workers,
        max_num_seqs: engine.max_num_seqs,
        max_num_batched_tokens: engine.max_num_batched_tokens,
        prefill_tokens_per_step_max: engine.prefill_tokens_per_step_max,
        queue_requests_max: engine.queue_requests_max,
        queue_tokens_max: engine.queue_tokens_max,
        priority_step_tokens: engine.priority_step_tokens,
        queue_note_interval: Duration::from_millis(engine.queue_note_interval_ms),
        prefix_cache: engine.prefix_cache,
        worker_load_attempts_max: engine.worker_load_attempts_max,
        worker_backoff_min: Duration::from_millis(engine.worker_backoff_min_ms),
        worker_backoff_max: Duration::from_millis(engine.worker_backoff_max_ms),
        step_time_max: Duration::from_millis(engine.step_time_max_ms),
        stall_time_max: Duration::from_millis(engine.stall_time_max_ms),
        workers_abandoned_max: engine.workers_abandoned_max,
        abandoned_time: EngineConfig::default().abandoned_time,
        shutdown_time_max: Duration::from_millis(engine.shutdown_time_max_ms),
        grammars: GrammarLimits {
            cached_max: engine.grammars_max,
            cached_bytes_max: engine.grammars_bytes_max,
            source_bytes_max: engine.grammar_bytes_max,
            compile_time_max: Duration::from_millis(engine.grammar_compile_time_max_ms),
            compiling_max: engine.grammars_compiling_max,
        },
    }
}

/// What bounds the texts that wait for an encoder.
pub(super) fn encoder(config: &Config) -> EncoderLimits {
    EncoderLimits { queue_max: config.embeddings.queue_max, priority_step_tokens: config.engine.priority_step_tokens }
}

/// How a worker's decoder runs. Threads are split evenly among the workers; KV memory is each worker's own.
///
/// # Errors
/// If the device was not compiled in or does not answer.
pub(super) fn decoder(config: &Config, model: &ModelSection) -> Result<DecoderOptions> {
    let engine = &config.engine;
    let compute = match model.device {
        DeviceKind::Cpu if model.reference => Compute::Composed(Device::Cpu),
        DeviceKind::Cpu => {
            let num_threads = engine.threads.unwrap_or_else(num_cores) / engine.num_workers;
            let activations = match model.activations {
                Activations::F32 => ActivationType::F32,
                Activations::Int8 => ActivationType::Int8,
            };
            Compute::Cpu { num_threads: num_threads.max(1), activations }
        }
        DeviceKind::Cuda => Compute::Composed(device("cuda", Device::new_cuda(0))?),
        DeviceKind::Metal => Compute::Composed(device("metal", Device::new_metal(0))?),
    };
    Ok(DecoderOptions {
        compute,
        max_model_len: model.max_model_len,
        kv_bytes_max: usize::try_from(model.kv_cache_bytes).unwrap_or(usize::MAX),
        max_num_seqs: engine.max_num_seqs,
    })
}

fn device(name: &str, device: candle_core::Result<Device>) -> Result<Device> {
    device.map_err(|e| Error::invalid("--device", format!("--device {name} cannot be used: {e}")))
}

/// Cores this process may use: affinity and control groups count.
fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SETTINGS, Sources, Typed};

    fn config(flags: &[(&str, &str)]) -> Config {
        let row = |flag: &str| SETTINGS.iter().find(|s| s.flag == flag).expect("a flag of ours");
        let mut values: Vec<_> = flags.iter().map(|(flag, text)| (row(flag), (*text).to_owned())).collect();
        values.push((row("cache-dir"), "cache".to_owned()));
        let dir = tempfile::tempdir().expect("a temporary folder");
        let sources = Sources::collect(Typed { values, file: None }, &|_| None, dir.path()).expect("no file");
        Config::resolve(&sources).expect("a good configuration")
    }

    #[test]
    fn defaults_are_those_of_the_rooms() {
        let config = config(&[]);
        assert_eq!(engine(&config), EngineConfig::default());
        assert_eq!(api(&config), ApiConfig::default());
        assert_eq!(service(&config), ServiceConfig::default());
        assert_eq!(served(&config.model, "a"), ServedConfig::named("a"));
        assert_eq!(streams(&config), TableLimits::default());
    }

    #[test]
    fn threads_are_split_between_workers() {
        let options = |flags: &[(&str, &str)]| {
            let config = config(flags);
            decoder(&config, &config.model).expect("a CPU")
        };
        let threads = |flags: &[(&str, &str)]| match options(flags).compute {
            Compute::Cpu { num_threads, .. } => num_threads,
            Compute::Composed(device) => panic!("asked for the CPU, got {device:?}"),
        };
        assert_eq!(threads(&[("threads", "8"), ("workers", "2")]), 4);
        assert_eq!(threads(&[("threads", "3"), ("workers", "2")]), 1);
        assert!(threads(&[]) >= 1);
    }
}
