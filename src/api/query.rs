//! What a query string says, where its fields are optional: the last of a name counts, an empty one is none.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;

use super::problem::Problem;
use crate::error::Error;

/// A query string, as a handler takes it.
pub(crate) type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// Its names and values.
///
/// # Errors
/// 400 for what is no query string.
pub(crate) fn pairs(query: Pairs) -> Result<Vec<(String, String)>, Problem> {
    let Query(pairs) = query.map_err(|e| Error::invalid("query", e.body_text()))?;
    Ok(pairs)
}

/// The value of `name`.
pub(crate) fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().rfind(|(n, value)| n == name && !value.is_empty()).map(|(_, value)| value.as_str())
}

/// How many of a list are wanted: `limit`, from 1 to `max`.
///
/// # Errors
/// 400 for anything else.
pub(crate) fn limit(pairs: &[(String, String)], default: usize, max: usize) -> Result<usize, Problem> {
    match value(pairs, "limit").map(|text| (text, text.parse())) {
        None => Ok(default),
        Some((_, Ok(limit))) if (1..=max).contains(&limit) => Ok(limit),
        Some((text, _)) => Err(broken("limit", &format!("a number from 1 to {max}"), text)),
    }
}

/// A value that breaks its rule.
pub(crate) fn broken(name: &str, rule: &str, value: &str) -> Problem {
    Error::invalid(name, format!("`{name}` must be {rule}, got {value:?}")).into()
}
