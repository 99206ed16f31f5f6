//! Request bodies: read within bounds of size and time, checked to be JSON, and turned into a dialect's type with the
//! path of what is wrong.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::error::Error;

/// Reads a JSON body of at most `bytes_max` bytes that arrives within `timeout`.
///
/// # Errors
/// 400 `unsupported_content_type` (what OpenAI answers, and no browser sends JSON across origins without asking
/// first), 413, 408.
pub async fn read(request: Request, bytes_max: usize, timeout: Duration) -> Result<Bytes, Problem> {
    check_content_type(request.headers())?;
    let too_large = || {
        let message = format!("the body must have at most {bytes_max} bytes");
        Problem::http(StatusCode::PAYLOAD_TOO_LARGE, Some("body_too_large"), message)
    };
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| n > bytes_max as u64) {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), bytes_max).collect();
    match tokio::time::timeout(timeout, body).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(Problem::http(StatusCode::BAD_REQUEST, None, format!("the body could not be read: {e}"))),
        Err(_elapsed) => {
            let message = format!("the body must arrive within {} seconds", timeout.as_secs_f32());
            Err(Problem::http(StatusCode::REQUEST_TIMEOUT, None, message))
        }
    }
}

/// Reads `json` as a `T`.
///
/// # Errors
/// 400: malformed JSON by line and column, a wrong type by its path.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
        let path = e.path().to_string();
        let cause = e.into_inner();
        if !cause.is_data() {
            return not_json(&cause);
        }
        // At the top there is no path.
        match path.as_str() {
            "." => Problem::http(StatusCode::BAD_REQUEST, None, format!("the body is wrong: {cause}")),
            path => Error::invalid(path, format!("`{path}` is wrong: {cause}")).into(),
        }
    })?;
    deserializer.end().map_err(|e| not_json(&e))?;
    Ok(value)
}

fn not_json(cause: &serde_json::Error) -> Problem {
    Problem::http(StatusCode::BAD_REQUEST, Some("invalid_json"), format!("the body must be JSON: {cause}"))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).map_or("", |v| v.to_str().unwrap_or("?"));
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" {
        return Ok(());
    }
    let message = format!("`content-type` must be application/json, got {given:?}");
    Err(Problem::http(StatusCode::BAD_REQUEST, Some("unsupported_content_type"), message))
}
