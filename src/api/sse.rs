//! Server-sent events, as bytes (WHATWG HTML, "Server-sent events").
//!
//! Ours and not a library's, for one line: the heartbeat. It is `:` and one newline. A heartbeat with a blank line
//! dispatches: by the letter it resets the cursor of a fresh connection, and it makes clients that parse every block
//! as JSON fail. Payloads are JSON on one line, so no field ever holds a line break.

use std::fmt::Display;
use std::io::Write;

use bytes::Bytes;
use serde::Serialize;

/// The media type.
pub(crate) const CONTENT_TYPE: &str = "text/event-stream";

/// Room for a token's event, so that its buffer does not grow by and by.
const EVENT_BYTES: usize = 256;

/// Collects frames into one buffer.
#[derive(Debug, Default)]
pub(crate) struct SseWriter {
    buf: Vec<u8>,
}

impl SseWriter {
    /// The block that an event stream begins with: moves the client's cursor, says how long to wait before it reconnects, and
    /// fires no event.
    pub(crate) fn beginning(&mut self, id: impl Display, retry_ms: u64) {
        self.field("id", id);
        self.field("retry", retry_ms);
        self.end();
    }

    /// A comment that keeps proxies and clients from giving up. No blank line follows: see above.
    pub(crate) fn heartbeat(&mut self) {
        self.buf.extend_from_slice(b":\n");
    }

    /// An event without id and name, as plain OpenAI clients want it.
    pub(crate) fn data(&mut self, payload: &impl Serialize) {
        self.json(payload);
        self.end();
    }

    /// A payload that is not JSON: OpenAI's `[DONE]`.
    pub(crate) fn raw_data(&mut self, payload: &'static str) {
        self.field("data", payload);
        self.end();
    }

    /// An event with a name and no id.
    pub(crate) fn named(&mut self, name: &'static str, payload: &impl Serialize) {
        self.field("event", name);
        self.json(payload);
        self.end();
    }

    /// An event with a name and no id, whose payload is JSON already, on one line.
    pub(crate) fn named_json(&mut self, name: &'static str, payload: &str) {
        self.field("event", name);
        self.field("data", payload);
        self.end();
    }

    /// An event with id and name.
    pub(crate) fn event(&mut self, id: impl Display, name: &'static str, payload: &impl Serialize) {
        self.field("id", id);
        self.field("event", name);
        self.json(payload);
        self.end();
    }

    /// Bytes collected so far.
    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Hands over what was collected.
    pub(crate) fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.buf))
    }

    fn field(&mut self, name: &'static str, value: impl Display) {
        self.buf.reserve(EVENT_BYTES);
        self.buf.extend_from_slice(name.as_bytes());
        self.buf.extend_from_slice(b": ");
        let began = self.buf.len();
        write!(self.buf, "{value}").expect("a Vec never refuses");
        debug_assert!(!self.buf[began..].iter().any(|b| b"\n\r\0".contains(b)), "{name}: {value}");
        self.buf.push(b'\n');
    }

    fn json(&mut self, payload: &impl Serialize) {
        self.buf.reserve(EVENT_BYTES);
        self.buf.extend_from_slice(b"data: ");
        // Compact JSON escapes every line break. Our payloads have string keys and a Vec never refuses.
        serde_json::to_writer(&mut self.buf, payload).expect("wire types serialise");
        self.buf.push(b'\n');
    }

    fn end(&mut self) {
        self.buf.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(write: impl FnOnce(&mut SseWriter), expect: &str) {
        let mut out = SseWriter::default();
        write(&mut out);
        assert_eq!(String::from_utf8_lossy(&out.take()), expect);
        assert!(out.is_empty());
    }

    #[test]
    fn frames_are_exact_bytes() {
        check(|o| o.beginning("1f-7", 1500), "id: 1f-7\nretry: 1500\n\n");
        check(SseWriter::heartbeat, ":\n");
        check(|o| o.raw_data("[DONE]"), "data: [DONE]\n\n");
        check(|o| o.data(&json!({"a": 1})), "data: {\"a\":1}\n\n");
        check(|o| o.named("ping", &json!({})), "event: ping\ndata: {}\n\n");
        check(|o| o.event("1f-0", "token", &json!({})), "id: 1f-0\nevent: token\ndata: {}\n\n");
    }

    #[test]
    fn a_payload_stays_on_one_line() {
        check(|o| o.data(&json!({"t": "a\nb\r\n\u{2028}é"})), "data: {\"t\":\"a\\nb\\r\\n\u{2028}é\"}\n\n");
    }
}
