//! Values of a request that break a rule, by their path.

use serde_json::Value;

use crate::api::problem::Problem;
use crate::error::Error;

/// A field that is of the wrong type, or not there.
pub(super) fn given(param: &str, rule: &str, value: Option<&Value>) -> Problem {
    match value {
        Some(value) => wrong(param, rule, value),
        None => Error::invalid(param, format!("`{param}` must be given")).into(),
    }
}

/// A value that is not what the rule says.
pub(super) fn wrong(param: &str, rule: &str, value: &Value) -> Problem {
    Error::invalid(param, format!("`{param}` must be {rule}, got {value}")).into()
}
