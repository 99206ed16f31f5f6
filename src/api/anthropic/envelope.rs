//! Errors as Anthropic's clients expect them. Whoever fails - a route, the keys, the check of the host, the bounds of a
//! body, a bug - answers with the one [`Problem`]; on Anthropic's routes it leaves in Anthropic's shape.
//!
//! 503 becomes 529, Anthropic's own status for a server that cannot take more: their SDKs retry both, and have a class
//! of errors for 529 that callers branch on. A full queue stays 429 with `Retry-After`, as on every other route.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api::layers::REQUEST_ID;
use crate::api::problem::Problem;

/// Where Anthropic's SDKs look for the request's id.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// An error in a response or in the middle of a stream.
#[derive(Debug, Serialize)]
pub(super) struct ErrorFrame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: ErrorObject<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct ErrorObject<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

impl<'a> ErrorFrame<'a> {
    /// `problem` in Anthropic's words.
    pub(super) fn new(problem: &'a Problem, request_id: Option<&'a str>) -> Self {
        let error = ErrorObject { kind: error_type(problem.status()), message: problem.message() };
        Self { kind: "error", error, request_id }
    }
}

/// Gives answers on Anthropic's routes the request's id where their SDKs look for it, and errors their shape.
/// Stands outside of everything that can refuse a request.
pub(crate) async fn reshape(request: Request, next: Next) -> Response {
    let is_ours = is_anthropic(request.uri().path(), request.headers());
    let response = next.run(request).await;
    if !is_ours {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let request_id = parts.headers.get(REQUEST_ID).cloned();
    if let Some(id) = &request_id {
        parts.headers.insert(ANTHROPIC_REQUEST_ID, id.clone());
    }
    let Some(problem) = parts.extensions.remove::<Problem>() else { return Response::from_parts(parts, body) };
    let request_id = request_id.as_ref().and_then(|id| id.to_str().ok());
    let mut response = Json(ErrorFrame::new(&problem, request_id)).into_response();
    // The headers of the first body but for those that describe it.
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::CONTENT_TYPE);
    response.headers_mut().extend(parts.headers);
    *response.status_mut() = match problem.status() {
        StatusCode::SERVICE_UNAVAILABLE => StatusCode::from_u16(529).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        status => status,
    };
    response
}

/// Models are both dialects' route.
fn is_anthropic(path: &str, headers: &HeaderMap) -> bool {
    let under = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    under("/v1/messages") || (under("/v1/models") && has_version(headers))
}

/// Whether the caller is a client of Anthropic's: they always send their version.
pub(crate) fn has_version(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

fn error_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        // 499, a cancelled call, is not the request's fault.
        499 | 500.. => "api_error",
        _ => "invalid_request_error",
    }
}
