//! The settings of embeddings, as `table` has all others.

use super::row::{count, row};
use super::settings::Kind::Text;
use super::settings::Setting;

pub(super) const ROWS: &[Setting] = &[
    row(
        "embeddings.model",
        "embedding-model",
        Text,
        "",
        "An encoder to serve beside the model: a name of `tallow models`, or PATH/model.safetensors",
    ),
    row("embeddings.inputs_max", "embedding-inputs-max", count(1, "texts"), "2048", "Most texts of one request"),
    row(
        "embeddings.inputs_at_once",
        "embedding-inputs-at-once",
        count(1, "texts"),
        "64",
        "So many of them wait or run at once, so that one request does not fill a queue",
    ),
    row(
        "embeddings.queue_max",
        "embedding-queue-max",
        count(1, "texts"),
        "256",
        "Most texts that wait for the encoder; beyond, 429",
    ),
];
