//! Request bodies: read within bounds of size, depth and time, checked to be JSON, and turned into a dialect's type with the
//! path of what is wrong.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::ApiConfig;
use super::problem::Problem;
use crate::error::Error;

/// Reads a JSON body that is as short, as flat and as quick to arrive as `config` says.
///
/// # Errors
/// 400 `unsupported_content_type` (what OpenAI answers, and no browser sends JSON across origins without asking
/// first), `json_too_deep`, 413, 408.
pub async fn read(request: Request, config: &ApiConfig) -> Result<Bytes, Problem> {
    let (bytes_max, timeout) = (config.body_bytes_max, config.body_read_timeout);
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
        Ok(Ok(collected)) => {
            let bytes = collected.to_bytes();
            check_depth(&bytes, config.json_depth_max)?;
            Ok(bytes)
        }
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

/// Before parsing, so that the bound holds for what no field asks for too.
fn check_depth(json: &[u8], depth_max: usize) -> Result<(), Problem> {
    let (mut depth, mut is_text, mut is_escaped) = (0usize, false, false);
    for &byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > depth_max {
                    let message = format!("the body must nest at most {depth_max} arrays and objects");
                    return Err(Problem::http(StatusCode::BAD_REQUEST, Some("json_too_deep"), message));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, depth: usize) {
        assert!(check_depth(json.as_bytes(), depth).is_ok(), "{json}");
        assert!(depth == 0 || check_depth(json.as_bytes(), depth - 1).is_err(), "{json}");
    }

    #[test]
    fn depth_counts_what_nests_and_nothing_in_texts() {
        check("1", 0);
        check(r#"{"a": [], "b": {}}"#, 2);
        check(r#"{"a": "[[[", "b": "\"[[[\\"}"#, 1);
        check(r#"["\\", [[1], [2]]]"#, 3);
        check("]]][", 1);
    }
}
