//! From typed values to sections: each setting is read once, in the order of the table.

use std::path::PathBuf;

use super::models::ModelNames;
use super::{
    Activations, DeviceKind, EmbeddingsConfig, EngineSection, KeysConfig, MemoryConfig, ModelSection, ModelsConfig,
    Origin, RegistryConfig, RequestsConfig, ServerConfig, Setting, Sources, Value, keys, setting,
};
use crate::error::Result;
use crate::protocol::OwnerLimits;

/// Reads settings in the order of the table and remembers what it read.
pub(super) struct Values<'a> {
    pub(super) sources: &'a Sources,
    pub(super) resolved: Vec<(&'static Setting, Value, Origin)>,
}

impl Values<'_> {
    pub(super) fn take(&mut self, key: &str) -> Result<Value> {
        let setting = setting(key);
        let (value, origin) = self.sources.value(setting)?;
        self.resolved.push((setting, value.clone(), origin));
        Ok(value)
    }

    pub(super) fn number<T: TryFrom<u64>>(&mut self, key: &str) -> Result<T> {
        self.number_or_auto(key).map(|number| number.unwrap_or_else(|| panic!("{key} cannot be auto")))
    }

    pub(super) fn number_or_auto<T: TryFrom<u64>>(&mut self, key: &str) -> Result<Option<T>> {
        match self.take(key)? {
            Value::Auto => Ok(None),
            Value::Number(n) => match T::try_from(n) {
                Ok(number) => Ok(Some(number)),
                Err(_) => {
                    let message = format!("--{} must fit this machine's word, got {n}", setting(key).flag);
                    Err(crate::error::Error::invalid(key, message))
                }
            },
            other => panic!("{key} is not a number: {other:?}"),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Result<String> {
        match self.take(key)? {
            Value::Text(text) => Ok(text),
            other => panic!("{key} is not a text: {other:?}"),
        }
    }

    pub(super) fn bool(&mut self, key: &str) -> Result<bool> {
        match self.take(key)? {
            Value::Bool(b) => Ok(b),
            other => panic!("{key} is not a switch: {other:?}"),
        }
    }

    pub(super) fn list(&mut self, key: &str) -> Result<Vec<String>> {
        match self.take(key)? {
            Value::List(items) => Ok(items),
            other => panic!("{key} is not a list: {other:?}"),
        }
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        self.resolved.iter().find(|(s, _, _)| s.key == key).map_or(Origin::Default, |(_, _, origin)| *origin)
    }

    pub(super) fn server(&mut self) -> Result<ServerConfig> {
        Ok(ServerConfig {
            host: self.text("server.host")?,
            port: self.number("server.port")?,
            connections_max: self.number("server.connections_max")?,
            connections_per_address_max: self.number("server.connections_per_address_max")?,
            body_bytes_max: self.number("server.body_bytes_max")?,
            json_depth_max: self.number("server.json_depth_max")?,
            header_bytes_max: self.number("server.header_bytes_max")?,
            headers_max: self.number("server.headers_max")?,
            send_buffer_bytes: self.number("server.send_buffer_bytes")?,
            write_stall_timeout_ms: self.number("server.write_stall_timeout_ms")?,
            heartbeat_ms: self.number("server.heartbeat_ms")?,
            head_wait_ms: self.number("server.head_wait_ms")?,
            drain_timeout_ms: self.number("server.drain_timeout_ms")?,
            close_timeout_ms: self.number("server.close_timeout_ms")?,
            header_read_timeout_ms: self.number("server.header_read_timeout_ms")?,
            body_read_timeout_ms: self.number("server.body_read_timeout_ms")?,
            sweep_interval_ms: self.number("server.sweep_interval_ms")?,
            cors_origins: self.list("server.cors_origins")?,
            allowed_hosts: self.list("server.allowed_hosts")?,
        })
    }

    pub(super) fn keys(&mut self) -> Result<KeysConfig> {
        let typed = self.list("keys.list")?;
        // What is kept for the table that is shown has their number and nothing else.
        if let Some((_, value, _)) = self.resolved.last_mut() {
            *value = Value::Text(if typed.is_empty() { String::new() } else { format!("{} given", typed.len()) });
        }
        let file = Some(self.text("keys.file")?).filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut limit = |key| self.number::<u32>(key).map(|n| Some(n).filter(|n| *n > 0));
        let limits = OwnerLimits {
            requests_per_minute: limit("keys.requests_per_minute")?,
            tokens_per_minute: limit("keys.tokens_per_minute")?,
            concurrency_max: limit("keys.concurrency_max")?,
        };
        let open_requests_max = self.number("keys.open_requests_max")?;
        Ok(KeysConfig { keys: keys::collect(&typed, file.as_deref(), limits)?, limits, open_requests_max })
    }

    pub(super) fn requests(&mut self) -> Result<RequestsConfig> {
        Ok(RequestsConfig {
            max_tokens_default: self.number_or_auto("requests.max_tokens_default")?,
            choices_max: self.number("requests.choices_max")?,
            tools_max: self.number("requests.tools_max")?,
            stop_strings_max: self.number("requests.stop_strings_max")?,
            stop_string_bytes_max: self.number("requests.stop_string_bytes_max")?,
            stop_tokens_max: self.number("requests.stop_tokens_max")?,
            logit_bias_max: self.number("requests.logit_bias_max")?,
            top_logprobs_max: self.number("requests.top_logprobs_max")?,
            linger_ms_max: self.number("requests.linger_ms_max")?,
            queue_timeout_ms: self.number("requests.queue_timeout_ms")?,
            queue_timeout_ms_max: self.number("requests.queue_timeout_ms_max")?,
            inline_bytes_max: self.number("requests.inline_bytes_max")?,
            background_threads: self.number_or_auto("requests.background_threads")?,
        })
    }

    pub(super) fn memory(&mut self) -> Result<MemoryConfig> {
        Ok(MemoryConfig {
            json_values_max: self.number("memory.json_values_max")?,
            bodies_bytes_max: self.number("memory.bodies_bytes_max")?,
            answers_bytes_max: self.number("memory.answers_bytes_max")?,
        })
    }

    pub(super) fn engine(&mut self) -> Result<EngineSection> {
        Ok(EngineSection {
            num_workers: self.number("engine.num_workers")?,
            threads: self.number_or_auto("engine.threads")?,
            max_num_seqs: self.number("engine.max_num_seqs")?,
            max_num_batched_tokens: self.number("engine.max_num_batched_tokens")?,
            prefill_tokens_per_step_max: self.number("engine.prefill_tokens_per_step_max")?,
            queue_requests_max: self.number("engine.queue_requests_max")?,
            queue_tokens_max: self.number("engine.queue_tokens_max")?,
            priority_step_tokens: self.number("engine.priority_step_tokens")?,
            queue_note_interval_ms: self.number("engine.queue_note_interval_ms")?,
            prefix_cache: self.bool("engine.prefix_cache")?,
            worker_load_attempts_max: self.number("engine.worker_load_attempts_max")?,
            worker_backoff_min_ms: self.number("engine.worker_backoff_min_ms")?,
            worker_backoff_max_ms: self.number("engine.worker_backoff_max_ms")?,
            step_time_max_ms: self.number("engine.step_time_max_ms")?,
            stall_time_max_ms: self.number("engine.stall_time_max_ms")?,
            workers_abandoned_max: self.number("engine.workers_abandoned_max")?,
            shutdown_time_max_ms: self.number("engine.shutdown_time_max_ms")?,
            grammars_max: self.number("engine.grammars_max")?,
            grammars_bytes_max: self.number("engine.grammars_bytes_max")?,
            grammar_bytes_max: self.number("engine.grammar_bytes_max")?,
            grammar_compile_time_max_ms: self.number("engine.grammar_compile_time_max_ms")?,
            grammars_compiling_max: self.number("engine.grammars_compiling_max")?,
        })
    }

    pub(super) fn registry(&mut self) -> Result<RegistryConfig> {
        Ok(RegistryConfig {
            cache_dir: self.text("registry.cache_dir")?.into(),
            models_dir: Some(self.text("registry.models_dir")?).filter(|dir| !dir.is_empty()).map(PathBuf::from),
        })
    }

    pub(super) fn embeddings(&mut self) -> Result<EmbeddingsConfig> {
        Ok(EmbeddingsConfig {
            model: Some(self.text("embeddings.model")?).filter(|name| !name.is_empty()),
            inputs_max: self.number("embeddings.inputs_max")?,
            inputs_at_once: self.number("embeddings.inputs_at_once")?,
            queue_max: self.number("embeddings.queue_max")?,
            pinned: false,
        })
    }

    /// When models are loaded and unloaded.
    pub(super) fn models(&mut self) -> Result<ModelsConfig> {
        let not_zero = |number: u64| Some(number).filter(|number| *number > 0);
        Ok(ModelsConfig {
            memory_max: not_zero(self.number("model.memory_max")?),
            idle_unload_ms: not_zero(self.number("model.idle_unload_ms")?),
            stay_min_ms: self.number("model.stay_min_ms")?,
        })
    }

    /// Further models, and the names of all on the wire.
    pub(super) fn model_names(&mut self) -> Result<ModelNames> {
        Ok(ModelNames { more: self.list("model.more")?, served: self.list("model.served_name")? })
    }

    /// What holds for every model that does not say otherwise, and the first one's name.
    pub(super) fn model(&mut self) -> Result<ModelSection> {
        Ok(ModelSection {
            name: self.text("model.name")?,
            served_name: None,
            aliases: Vec::new(),
            preload: self.bool("model.preload")?,
            pinned: self.bool("model.pinned")?,
            device: device(&self.text("model.device")?),
            activations: activations(&self.text("model.activations")?),
            reference: self.bool("model.reference")?,
            call_format: self.text("model.call_format")?,
            reasoning_format: self.text("model.reasoning_format")?,
            max_model_len: self.number_or_auto("model.max_model_len")?,
            kv_cache_bytes: self.number("model.kv_cache_bytes")?,
        })
    }
}

/// The word of `--device`.
pub(super) fn device(word: &str) -> DeviceKind {
    match word {
        "cuda" => DeviceKind::Cuda,
        "metal" => DeviceKind::Metal,
        _ => DeviceKind::Cpu,
    }
}

/// The word of `--activations`.
pub(super) fn activations(word: &str) -> Activations {
    if word == "int8" { Activations::Int8 } else { Activations::F32 }
}
