//! One span per request, so that every line of the log that belongs to it says so; and the caller's trace, where it sends
//! one (W3C Trace Context, section 3.2: `traceparent`).

use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;
use tracing::{Span, field};

/// The span of a request.
pub(super) struct RequestSpan {
    pub(super) span: Span,
    began: Instant,
    /// Asked every few seconds by whoever watches; not worth a line each.
    is_quiet: bool,
    is_answered: bool,
}

impl RequestSpan {
    pub(super) fn new(request: &Request, request_id: &str) -> Self {
        let path = request.uri().path();
        let span =
            tracing::info_span!("request", id = request_id, method = %request.method(), path, trace = field::Empty);
        if let Some(trace) = trace_id(request.headers()) {
            span.record("trace", trace);
        }
        let is_quiet = path.starts_with("/health/") || path == "/metrics";
        Self { span, began: Instant::now(), is_quiet, is_answered: false }
    }

    /// Logs what came of it. A stream has only begun by now; its end is logged where the generation ends.
    pub(super) fn answered(mut self, response: &Response) {
        self.is_answered = true;
        let (status, ms) = (response.status().as_u16(), self.began.elapsed().as_millis() as u64);
        let stream = response.headers().get("x-stream-id").and_then(|v| v.to_str().ok());
        if self.is_quiet {
            tracing::debug!(parent: &self.span, status, ms, "answered");
        } else {
            tracing::info!(parent: &self.span, status, ms, stream, "answered");
        }
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        if !self.is_answered {
            let ms = self.began.elapsed().as_millis() as u64;
            tracing::info!(parent: &self.span, ms, "left before the answer");
        }
    }
}

/// The trace id of a `traceparent` that is right by its rules; of versions to come the part that will stay.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut fields = text.split('-');
    let [version, trace, parent, flags] = [fields.next()?, fields.next()?, fields.next()?, fields.next()?];
    let is_hex = |text: &str, len| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_set = |text: &str| text.bytes().any(|b| b != b'0');
    let is_right = is_hex(version, 2) && version != "ff" && (version != "00" || fields.next().is_none());
    let has_ids = is_hex(trace, 32) && is_set(trace) && is_hex(parent, 16) && is_set(parent) && is_hex(flags, 2);
    (is_right && has_ids).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_traceparent_is_taken_by_its_rules() {
        #[track_caller]
        fn check(text: &'static str, expect: Option<&str>) {
            let headers =
                HeaderMap::from_iter([("traceparent".parse().expect("a name"), HeaderValue::from_static(text))]);
            assert_eq!(trace_id(&headers), expect, "{text}");
        }
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(TRACE));
        check("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", Some(TRACE));
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None);
        check("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None);
        check("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None);
        check("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None);
        check("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", None);
        check("", None);
    }
}
