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
    row("model.preload", "preload", Kind::Bool, "false", "Load all models at start; a lone one always is"),
    row("model.pinned", "pinned", Kind::Bool, "false", "Never unload a model that is loaded"),
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
    row(
        "model.memory_max",
        "memory-max",
        Bytes { min: 0, max: 1 << 50 },
        "0",
        "Most memory of loaded models with their keys and values; the one used least recently makes room; 0 is no bound",
    ),
    row(
        "model.idle_unload_ms",
        "idle-unload-ms",
        Millis { min: 0, max: 1000 * HOUR_MS },
        "0",
        "Unload a model that nothing was asked of for so long; 0 is never",
    ),
    row(
        "model.stay_min_ms",
        "stay-min-ms",
        Millis { min: 0, max: HOUR_MS },
        "10000",
        "A loaded model is not unloaded before it was there for so long",
    ),
    row(
        "model.more",
        "more-models",
        Kind::List,
        "",
        "Further models to serve, each loaded when it is first asked for; `[[models]]` in the file can say more of each",
    ),
    row(
        "model.served_name",
        "served-name",
        Kind::List,
        "",
        "Names of the models on the wire, in their order; their own by default",
    ),
];
