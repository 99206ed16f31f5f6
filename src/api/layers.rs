//! What every request passes through: a request id, a net for panics, and CORS where it is configured.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body::Body as _;
use tower_http::cors::{AllowHeaders, AllowOrigin, AllowPrivateNetwork, Any, CorsLayer};
use tracing::Instrument;

use super::answer::SMALL_BYTES;
use super::ignored::IGNORED;
use super::peer::{Pace, Running};
use super::problem::{self, Problem};
use super::quota_headers;
use super::trace::RequestSpan;
use crate::error::{Error, Result};
use crate::protocol::StreamId;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// How long a browser may remember a preflight's answer.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(3600);

/// Gives the response a request id (the client's, if it is a sane one) and turns a panic into a 500.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).filter(|v| is_sane(v.as_bytes())).cloned();
    let made = || HeaderValue::try_from(format!("req_{}", StreamId::random())).ok();
    let id = given.or_else(made);
    let traced = RequestSpan::new(&request, id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default());
    let pace = request.extensions().get::<Pace>().cloned();
    // A handler holds nothing across a panic that another request could see: shared state is behind locks that
    // survive poisoning, and a half-started stream leaves through its reader's drop.
    let mut response = match AssertUnwindSafe(next.run(request).instrument(traced.span.clone())).catch_unwind().await {
        Ok(response) => problem::in_shape(response),
        Err(_panic) => Problem::from(Error::internal("the server hit a bug on this request")).into_response(),
    };
    traced.answered(&response);
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    match pace {
        Some(pace) => paced(response, &pace),
        None => response,
    }
}

/// Holds the client of a large whole answer to a least rate. An event stream has no size that is known.
fn paced(response: Response, pace: &Pace) -> Response {
    let is_large = response.body().size_hint().exact().is_some_and(|num_bytes| num_bytes > SMALL_BYTES as u64);
    if !is_large {
        return response;
    }
    let running = pace.begin();
    response.map(|body| Body::new(PacedBody { body, _running: running }))
}

/// A body that is under way for as long as it lives.
struct PacedBody {
    body: Body,
    _running: Running,
}

impl http_body::Body for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The CORS layer for `origins`; none for an empty list, so that only the server's own pages can call it.
///
/// # Errors
/// If an origin cannot be one.
pub(crate) fn cors(origins: &[String]) -> Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let is_any = origins.iter().any(|o| o == "*");
    let listed: Vec<HeaderValue> =
        if is_any { Vec::new() } else { origins.iter().map(|o| origin(o)).collect::<Result<_>>()? };
    let allowed = if is_any { AllowOrigin::from(Any) } else { AllowOrigin::list(listed.clone()) };
    // A page from the public network asks whether it may call a server of the local one.
    let private_network = AllowPrivateNetwork::predicate(move |origin, _| is_any || listed.contains(origin));
    let response_headers: Vec<HeaderName> = [
        header::LOCATION,
        header::RETRY_AFTER,
        HeaderName::from_static("retry-after-ms"),
        HeaderName::from_static("x-stream-id"),
        REQUEST_ID,
        IGNORED,
    ]
    .into_iter()
    .chain(quota_headers::REQUESTS)
    .chain(quota_headers::TOKENS)
    .collect();
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_private_network(private_network)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // Whatever an allowed page sends: SDKs add a dozen headers of their own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(response_headers)
        .max_age(PREFLIGHT_MAX_AGE);
    Ok(Some(layer))
}

/// An origin as browsers send it: those of desktop apps and extensions have schemes of their own (`app://obsidian.md`).
fn origin(text: &str) -> Result<HeaderValue> {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
    };
    let is_host = |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@".contains(&b));
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| is_scheme(scheme) && is_host(host));
    match HeaderValue::from_str(text) {
        Ok(value) if is_origin => Ok(value),
        _ => {
            let message = format!("a CORS origin must be * or scheme://host[:port], got {text:?}");
            Err(Error::invalid("cors_origins", message))
        }
    }
}

fn is_sane(id: &[u8]) -> bool {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(is_plain)
}
