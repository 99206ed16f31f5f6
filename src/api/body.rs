//! Request bodies: read into one buffer within bounds of size and time, checked to be JSON within bounds of depth and number, and turned into a dialect's type with the
//! path of what is wrong.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::App;
use super::budget::HeldBytes;
use super::problem::Problem;
use crate::error::Error;
use crate::protocol::Tenant;

/// The first buffer of a body that says that it is longer.
const FIRST_BYTES: usize = 64 << 10;

/// Deepest nesting in a body: no schema of a tool nests half as deep, and the parser's own bound is 128.
const JSON_DEPTH_MAX: usize = 64;
/// Most texts, arrays and objects in a body. Each takes tens of bytes of memory whatever it takes in the body; numbers, of which
/// a prompt of tokens has many, are not counted.
const JSON_VALUES_MAX: usize = 65_536;

/// A body that has arrived and was not looked into yet.
pub(crate) struct Body {
    json: Bytes,
    held: HeldBytes,
}

/// Reads a JSON body that is as short and as quick to arrive as the configuration says.
///
/// # Errors
/// 400 `unsupported_content_type` (what OpenAI answers, and no browser sends JSON across origins without asking
/// first), 413, 408; 429 and 503 where the bodies that are being read take as much memory as they may.
pub(crate) async fn read(request: Request, app: &App, tenant: Tenant) -> Result<Body, Problem> {
    let timeout = app.config.body_read_timeout;
    check_content_type(request.headers())?;
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let reading = collect(request.into_body(), declared, app, tenant);
    tokio::time::timeout(timeout, reading).await.unwrap_or_else(|_elapsed| {
        let message = format!("the body must arrive within {} seconds", timeout.as_secs_f32());
        Err(Problem::http(StatusCode::REQUEST_TIMEOUT, None, message))
    })
}

/// Copies every chunk into one buffer: a chunk of one byte would keep the whole buffer alive that it was read into.
async fn collect(
    mut body: axum::body::Body,
    declared: Option<usize>,
    app: &App,
    tenant: Tenant,
) -> Result<Body, Problem> {
    let bytes_max = app.config.body_bytes_max;
    let too_large = || {
        let message = format!("the body must have at most {bytes_max} bytes");
        Problem::http(StatusCode::PAYLOAD_TOO_LARGE, Some("body_too_large"), message)
    };
    if declared.is_some_and(|num_bytes| num_bytes > bytes_max) {
        return Err(too_large());
    }
    let mut held = app.bodies.hold(tenant);
    let mut json = Vec::new();
    while let Some(frame) = body.frame().await {
        let unread = |e| Problem::http(StatusCode::BAD_REQUEST, None, format!("the body could not be read: {e}"));
        let Ok(chunk) = frame.map_err(unread)?.into_data() else { continue };
        if chunk.len() > bytes_max - json.len() {
            return Err(too_large());
        }
        let wanted = json.len() + chunk.len();
        if wanted > json.capacity() {
            // What was declared is believed up to a point only: nothing of it may ever come.
            let at_first = declared.unwrap_or_default().min(FIRST_BYTES);
            let capacity = wanted.max(json.capacity() * 2).max(at_first).min(bytes_max);
            held.grow(capacity - json.capacity()).inspect_err(|e| app.refuse_memory(e))?;
            json.reserve_exact(capacity - json.len());
        }
        json.extend_from_slice(&chunk);
    }
    Ok(Body { json: json.into(), held })
}

impl Body {
    /// Checks that it is JSON of bounded depth and number of values, and reads it with `read`: at once if it is short, else
    /// on the pool, whole and once, errors and what they drop included. The memory counts until the second value is dropped.
    ///
    /// # Errors
    /// 400 `json_too_deep` and `json_too_many_values`; those of `read`; 429 if too many long bodies of this owner wait.
    pub(crate) async fn parse<T: Send + 'static>(
        self,
        app: &App,
        tenant: Tenant,
        read: impl FnOnce(&[u8]) -> Result<T, Problem> + Send + 'static,
    ) -> Result<(T, HeldBytes), Problem> {
        let Self { json, held } = self;
        let num_bytes = json.len();
        let work = move || {
            check_shape(&json, JSON_DEPTH_MAX, JSON_VALUES_MAX)?;
            read(&json)
        };
        let parsed = app.service.sized(tenant, num_bytes, work).await;
        Ok((parsed.inspect_err(|e| app.service.tell_rejected(e))??, held))
    }
}

/// Reads `json` as a `T`.
///
/// # Errors
/// 400: malformed JSON by line and column, a wrong type by its path.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
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

/// Before parsing, so that the bounds hold for what no field asks for too. What is counted is texts, arrays and objects:
/// a byte or two of JSON become dozens in memory there. Numbers are not: token ids come by the hundred thousand.
fn check_shape(json: &[u8], depth_max: usize, values_max: usize) -> Result<(), Problem> {
    let (mut depth, mut num_values, mut is_text, mut is_escaped) = (0usize, 0usize, false, false);
    for &byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => {
                is_text = !is_text;
                num_values += usize::from(is_text);
            }
            _ if is_text => {}
            b'[' | b'{' => {
                depth += 1;
                num_values += 1;
                if depth > depth_max {
                    let message = format!("the body must nest at most {depth_max} arrays and objects");
                    return Err(Problem::http(StatusCode::BAD_REQUEST, Some("json_too_deep"), message));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if num_values > values_max {
            let message = format!("the body must have at most {values_max} texts, arrays and objects");
            return Err(Problem::http(StatusCode::BAD_REQUEST, Some("json_too_many_values"), message));
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
    fn check(json: &str, depth: usize, num_values: usize) {
        let shape = |depth_max, values_max| check_shape(json.as_bytes(), depth_max, values_max).is_ok();
        assert!(shape(depth, num_values), "{json}");
        assert!(depth == 0 || !shape(depth - 1, num_values), "{json}");
        assert!(num_values == 0 || !shape(depth, num_values - 1), "{json}");
    }

    #[test]
    fn what_nests_and_what_takes_memory_is_counted_and_nothing_in_texts() {
        check("1", 0, 0);
        check(r#"{"a": [], "b": {}}"#, 2, 5);
        check(r#"{"a": "[[[", "b": "\"[[[\\"}"#, 1, 5);
        check(r#"["\\", [[1], [2]]]"#, 3, 5);
        check("]]][", 1, 1);
        check("[1,2,3,null,true]", 1, 1);
    }
}
