//! Errors on the wire: every failure has a status and the one JSON shape that OpenAI's clients expect, all four keys
//! present. The only place where an [`ErrorKind`] becomes a status.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::words::Words;
use crate::error::{Error, ErrorKind};
use crate::protocol::ErrorInfo;

/// What a 503 asks a client to wait when nobody knows better.
const RETRY_AFTER_MS_DEFAULT: u64 = 1000;

/// Longest sentence of an error, and longest path: rules repeat the value that breaks them, which may have megabytes.
const TEXT_BYTES_MAX: usize = 2048;

/// A failed request: status, body and retry headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    error: ErrorBody,
    retry_after_ms: Option<u64>,
}

/// The inner object of an error, in a response or in the middle of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ErrorBody {
    message: String,
    #[serde(rename = "type")]
    error_type: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

/// The outer object.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorEnvelope<'a> {
    /// The inner one.
    pub error: &'a ErrorBody,
}

impl Problem {
    /// A failure that only HTTP knows: a route, a method, a body.
    pub(crate) fn http(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let error =
            ErrorBody { message: clipped(message.into()), error_type: "invalid_request_error", param: None, code };
        Self { status, error, retry_after_ms: None }
    }

    /// The status it is answered with.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The sentence.
    pub(crate) fn message(&self) -> &str {
        &self.error.message
    }

    /// A field that is known, would change the output, and is not supported.
    pub(crate) fn unsupported(param: &str, rule: &str) -> Self {
        let message = format!("`{param}` {rule}");
        let mut problem = Self::http(StatusCode::BAD_REQUEST, Some("unsupported_parameter"), message);
        problem.error.param = Some(clipped(param.to_owned()));
        problem
    }
}

/// `response`, and an error in the one shape: libraries between a connection and a route have texts of their own.
pub(crate) fn in_shape(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.extensions().get::<Problem>().is_some() {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    let reason = status.canonical_reason().unwrap_or("the request failed").to_lowercase();
    let mut shaped = Problem::http(status, None, reason).into_response();
    shaped.headers_mut().extend(parts.headers);
    shaped
}

impl From<Error> for Problem {
    fn from(e: Error) -> Self {
        Self::spelled(&e, Words::CHAT)
    }
}

impl Problem {
    /// An error in the words of its request's dialect.
    pub(crate) fn spelled(e: &Error, words: Words<'_>) -> Self {
        let (status, error_type, code) = classify(e.kind());
        let (message, param) = words.spell(e);
        let error = ErrorBody { message: clipped(message), error_type, param: param.map(clipped), code };
        let is_temporary = matches!(
            e.kind(),
            ErrorKind::Overloaded | ErrorKind::RateLimited | ErrorKind::QueueTimeout | ErrorKind::Unavailable
        );
        let retry_after_ms = is_temporary.then(|| e.retry_after_ms().unwrap_or(RETRY_AFTER_MS_DEFAULT));
        Self { status, error, retry_after_ms }
    }
}

impl From<&ErrorInfo> for Problem {
    fn from(info: &ErrorInfo) -> Self {
        Error::new(info.kind, info.message.clone()).into()
    }
}

impl ErrorBody {
    /// What `message` is called by its kind.
    pub(crate) fn of(kind: ErrorKind, message: String) -> Self {
        Problem::from(Error::new(kind, message)).error
    }
}

impl From<&ErrorInfo> for ErrorBody {
    fn from(info: &ErrorInfo) -> Self {
        Problem::from(info).error
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(message = self.error.message, "request failed");
        }
        let mut response = (self.status, axum::Json(ErrorEnvelope { error: &self.error })).into_response();
        if let Some(ms) = self.retry_after_ms {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
            headers.insert("retry-after-ms", HeaderValue::from(ms));
        }
        // For a dialect that spells errors otherwise.
        response.extensions_mut().insert(self);
        response
    }
}

/// A text that an error repeats of a request, cut where it helps nobody any more.
fn clipped(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push_str(" ...");
        text.shrink_to_fit();
    }
    text
}

/// Status, `type` and `code` of a kind. A cancelled call answers 499, which SDKs do not retry; they would retry 409.
fn classify(kind: ErrorKind) -> (StatusCode, &'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    let client_closed = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
    match kind {
        ErrorKind::InvalidRequest => (StatusCode::BAD_REQUEST, INVALID, None),
        ErrorKind::ContextLengthExceeded => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
        ErrorKind::ModelNotFound => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, INVALID, Some("not_found")),
        ErrorKind::Expired => (StatusCode::GONE, INVALID, Some("expired")),
        ErrorKind::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("overloaded")),
        ErrorKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded")),
        ErrorKind::QueueTimeout => (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("queue_timeout")),
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable")),
        ErrorKind::Cancelled => (client_closed, "cancelled_error", Some("cancelled")),
        ErrorKind::BadModel | ErrorKind::Io | ErrorKind::Internal => {
            (StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"))
        }
    }
}
