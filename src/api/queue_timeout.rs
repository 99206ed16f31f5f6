//! How a client says for how long its request may wait for a worker: the header `x-queue-timeout`, in seconds.

use axum::http::HeaderMap;

use super::problem::Problem;
use crate::error::Error;

/// The request header.
const HEADER: &str = "x-queue-timeout";

/// The header's time in milliseconds, if there is one. The upper bound is the service's to check.
///
/// # Errors
/// 400 for anything but seconds from 0.
pub(super) fn from_header(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let text = value.to_str().unwrap_or("?").trim();
    match text.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 && seconds.is_finite() => Ok(Some((seconds * 1000.0) as u64)),
        _ => Err(Error::invalid(HEADER, format!("`{HEADER}` must be seconds from 0, got {text:?}")).into()),
    }
}
