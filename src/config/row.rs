//! What the rows of the table are made with: short forms of common kinds, and the words of settings that have some.

use super::settings::Kind::{self, Count};
use super::settings::Setting;

pub(super) const HOUR_MS: u64 = 3_600_000;
/// The highest count of anything: large enough to mean "no bound in practice", small enough that sums cannot wrap.
pub(super) const COUNT_MAX: u64 = 1 << 32;

pub(super) const fn count(min: u64, unit: &'static str) -> Kind {
    Count { min, max: COUNT_MAX, unit, auto: false }
}

/// A bound of what one key may use.
pub(super) const fn limit(unit: &'static str) -> Kind {
    Count { min: 0, max: u32::MAX as u64, unit, auto: false }
}

pub(super) const fn row(
    key: &'static str,
    flag: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, flag, kind, default, help }
}

/// The words of `--device`.
pub const DEVICES: &[&str] = &["cpu", "cuda", "metal"];
/// The words of `--activations`.
pub const ACTIVATIONS: &[&str] = &["f32", "int8"];
/// The words of `--call-format`.
pub(super) const CALL_FORMATS: &[&str] = &["auto", "hermes", "llama3", "mistral"];
/// The words of `--reasoning-format`.
pub(super) const REASONING_FORMATS: &[&str] = &["auto", "none", "think", "bracket"];
/// The words of `--log-format`.
pub const LOG_FORMATS: &[&str] = &["text", "json"];
