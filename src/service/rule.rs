//! How an error tells that a parameter breaks a rule: the parameter, the rule and the value.

use crate::error::Error;

/// How much of a text an error repeats.
const SHOWN_BYTES_MAX: usize = 256;

/// The error of `param`, which breaks `rule`, a phrase like "must be at least 1", with `value`.
pub(super) fn rule(param: &str, rule: impl std::fmt::Display, value: impl std::fmt::Display) -> Error {
    Error::invalid(param, format!("`{param}` {rule}, got {value}"))
}

/// A text as an error repeats it. Megabytes would be spelled here on an async thread.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)])
}
