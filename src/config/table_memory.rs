//! The settings that bound what requests hold in memory, as `table` has all others.

use super::row::{count, row};
use super::settings::Kind::Bytes;
use super::settings::{GIB, MIB, Setting};

pub(super) const ROWS: &[Setting] = &[
    row(
        "memory.json_values_max",
        "json-values-max",
        count(1024, "values"),
        "65536",
        "Most texts, arrays and objects in a request body; numbers are not counted",
    ),
    row(
        "memory.bodies_bytes_max",
        "bodies-bytes-max",
        Bytes { min: MIB, max: 1024 * GIB },
        "256MiB",
        "Memory limit for all request bodies in progress, half of it for one key; beyond it 429 or 503",
    ),
    row(
        "memory.answers_bytes_max",
        "answers-bytes-max",
        Bytes { min: MIB, max: 1024 * GIB },
        "256MiB",
        "Memory limit for all large answers not yet read, half of it for one key; beyond it 429 or 503",
    ),
];
