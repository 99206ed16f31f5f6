//! Settings of the process itself: where it listens, which models it serves and how, where things are kept.

use std::path::PathBuf;

use crate::model::decoder::ActivationType;
use crate::settings;
use crate::settings::{COUNT_MAX, Kind, MIB, bytes, common, count, setting, words};

settings! {
    /// What the process is put together from.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ProcessConfig {
        /// Address or host name to listen on.
        pub host: String = "127.0.0.1".to_owned() => common("server.host", "host", Kind::NonEmpty);
        /// Port; 0 takes a free one.
        pub port: u16 = 8080 => common("server.port", "port", count(0, 65_535, ""));
        /// Folder in which streams survive a restart; none by default.
        pub store: Option<PathBuf> = None => common("streams.store", "stream-store", Kind::Text);
        /// Compute threads of all workers together; auto takes every core.
        pub threads: Option<usize> = None => common("engine.threads", "threads", count(1, 4096, "threads").or("auto"));
        /// Further models, each loaded on its first request; `[[models]]` in the file can set more for each.
        pub more_models: Vec<String> = Vec::new() => common("model.more", "more-models", Kind::List);
        /// Names that requests use for the models, in order; by default each model's own.
        pub served_names: Vec<String> = Vec::new() => common("model.served_name", "served-name", Kind::List);
        /// An encoder to serve beside the model: a name of `tallow models`, or PATH/model.safetensors.
        pub embedding_model: Option<String> = None => common("embeddings.model", "embedding-model", Kind::Text);
        /// Most texts that wait for the encoder; beyond, 429.
        pub embedding_queue_max: usize = 256
            => setting("embeddings.queue_max", "embedding-queue-max", count(1, COUNT_MAX, "texts"));
        /// Whether the encoder is never unloaded, as `--pinned` says for every model that has no settings of its own.
        pub embedding_pinned: bool = false;
        /// Where weights are kept; the user's cache directory by default.
        pub cache_dir: PathBuf = PathBuf::new() => common("registry.cache_dir", "cache-dir", Kind::Text);
        /// Folder with additional model manifests.
        pub models_dir: Option<PathBuf> = None => setting("registry.models_dir", "models-dir", Kind::Text);
    }
}

words! {
    /// Where to compute.
    pub enum DeviceKind {
        /// Our kernels on this machine's cores.
        Cpu = "cpu",
        /// candle on an NVIDIA card.
        Cuda = "cuda",
        /// candle on Apple graphics.
        Metal = "metal",
    }
}

settings! {
    /// A model, and how it is run. The settings hold for each model that `[[models]]` does not say otherwise of.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ModelSection {
        /// A name of `tallow models`, PATH.gguf, or hub:OWNER/REPO[:FILE].
        pub name: String = "smollm2-135m-instruct".to_owned() => common("model.name", "model", Kind::NonEmpty);
        /// Name on the wire; `None` takes its own.
        pub served_name: Option<String> = None;
        /// Further names on the wire.
        pub aliases: Vec<String> = Vec::new();
        /// Load all models at start; a single model is always loaded then.
        pub preload: bool = false => setting("model.preload", "preload", Kind::Bool);
        /// Never unload a loaded model.
        pub pinned: bool = false => setting("model.pinned", "pinned", Kind::Bool);
        /// Where to compute.
        pub device: DeviceKind = DeviceKind::Cpu => common("model.device", "device", Kind::OneOf(DeviceKind::WORDS));
        /// Inputs of quantised matrices on the CPU: int8 is fast, f32 does not round them.
        pub activations: ActivationType = ActivationType::Int8
            => common("model.activations", "activations", Kind::OneOf(ActivationType::WORDS));
        /// Decode with candle's own operations (slow; the reference for the fused ones).
        pub reference: bool = false => setting("model.reference", "reference", Kind::Bool);
        /// Syntax of the model's tool calls; auto reads it from the chat template.
        pub call_format: String = "auto".to_owned()
            => setting("model.call_format", "call-format", Kind::OneOf(&["auto", "hermes", "llama3", "mistral"]));
        /// Syntax of the model's reasoning; auto reads it from the chat template.
        pub reasoning_format: String = "auto".to_owned()
            => setting("model.reasoning_format", "reasoning-format", Kind::OneOf(&["auto", "none", "think", "bracket"]));
        /// Longest sequence, prompt and output together; auto is the model's own limit.
        pub max_model_len: Option<usize> = None
            => common("model.max_model_len", "max-model-len", count(1, COUNT_MAX, "tokens").or("auto"));
        /// Memory for keys and values, per worker.
        pub kv_cache_bytes: usize = 1 << 30 => common("model.kv_cache_bytes", "kv-cache-bytes", bytes(MIB, 1 << 50));
    }
}
