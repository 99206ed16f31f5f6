//! The settings of models, as `table` has all others. Most hold for each model that `[[models]]` does not say otherwise of.

use super::row::{ACTIVATIONS, CALL_FORMATS, COUNT_MAX, DEVICES, HOUR_MS, REASONING_FORMATS, row};
use super::settings::Kind::{self, Bytes, Count, Millis, OneOf, Text};
use super::settings::{MIB, Setting};

pub(super) const ROWS: &[Setting] = &[
    row(
        "model.name",
        "model",
        Text,
        "smollm2-135m-instruct",
        "A name of `tallow models`, PATH.gguf, or hub:OWNER/REPO[:FILE]",
    ),
    row(
        "model.preload",
        "preload",
        Kind::Bool,
        "false",
        "Load all models at start; a single model is always loaded then",
    ),
    row("model.pinned", "pinned", Kind::Bool, "false", "Never unload a loaded model"),
    row("model.device", "device", OneOf(DEVICES), "cpu", "Where to compute"),
    row(
        "model.activations",
        "activations",
        OneOf(ACTIVATIONS),
        "int8",
        "Inputs of quantised matrices on the CPU: int8 is fast, f32 does not round them",
    ),
    row(
        "model.reference",
        "reference",
        Kind::Bool,
        "false",
        "Decode with candle's own operations (slow; the reference for the fused ones)",
    ),
    row(
        "model.call_format",
        "call-format",
        OneOf(CALL_FORMATS),
        "auto",
        "Syntax of the model's tool calls; auto reads it from the chat template",
    ),
    row(
        "model.reasoning_format",
        "reasoning-format",
        OneOf(REASONING_FORMATS),
        "auto",
        "Syntax of the model's reasoning; auto reads it from the chat template",
    ),
    row(
        "model.max_model_len",
        "max-model-len",
        Count { min: 1, max: COUNT_MAX, unit: "tokens", auto: true },
        "auto",
        "Longest sequence, prompt and output together; auto is the model's own limit",
    ),
    row(
        "model.kv_cache_bytes",
        "kv-cache-bytes",
        Bytes { min: MIB, max: 1 << 50 },
        "1GiB",
        "Memory for keys and values, per worker",
    ),
    row(
        "model.memory_max",
        "memory-max",
        Bytes { min: 0, max: 1 << 50 },
        "0",
        "Memory limit for loaded models with their KV caches; the least recently used is unloaded first; 0 is no limit",
    ),
    row(
        "model.idle_unload_ms",
        "idle-unload-ms",
        Millis { min: 0, max: 1000 * HOUR_MS },
        "0",
        "Unload a model that has had no request for this long; 0 is never",
    ),
    row(
        "model.stay_min_ms",
        "stay-min-ms",
        Millis { min: 0, max: HOUR_MS },
        "10000",
        "Keep a loaded model for at least this long",
    ),
    row(
        "model.more",
        "more-models",
        Kind::List,
        "",
        "Further models, each loaded on its first request; `[[models]]` in the file can set more for each",
    ),
    row(
        "model.served_name",
        "served-name",
        Kind::List,
        "",
        "Names that requests use for the models, in order; by default each model's own",
    ),
];
