//! The reading half of server-sent events: bytes in, in whatever pieces the network cut them, events out. Written
//! after WHATWG HTML, "Interpreting an event stream": lines end in LF, CR or CRLF; `:` begins a comment; a blank line
//! dispatches; an event without data is none. It knows nothing of HTTP or JSON.

use std::collections::VecDeque;

/// One dispatched event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SseEvent {
    /// The `event` field; empty stands for `message`.
    pub name: String,
    /// The `data` lines, joined by LF.
    pub data: String,
    /// The last `id` seen so far on this stream.
    pub id: String,
}

/// A push parser. Memory is bounded by `event_bytes_max`.
#[derive(Debug)]
pub struct SseParser {
    /// The line being received. Bytes, as a cut may fall inside a character.
    line: Vec<u8>,
    /// The last byte was CR: an LF right after it belongs to the same line end.
    after_cr: bool,
    /// Nothing but (part of) a byte order mark has come yet.
    at_start: bool,
    name: String,
    data: String,
    has_data: bool,
    id: String,
    ready: VecDeque<SseEvent>,
    event_bytes_max: usize,
}

/// An event longer than the parser's bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than {event_bytes_max} bytes")]
pub struct EventTooLong {
    /// The bound.
    pub(crate) event_bytes_max: usize,
}

impl SseParser {
    /// A parser at the beginning of a stream that refuses events over `event_bytes_max` bytes.
    pub fn new(event_bytes_max: usize) -> Self {
        Self {
            line: Vec::new(),
            after_cr: false,
            at_start: true,
            name: String::new(),
            data: String::new(),
            has_data: false,
            id: String::new(),
            ready: VecDeque::new(),
            event_bytes_max,
        }
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// If an event grows beyond the bound; the stream is useless then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), EventTooLong> {
        for &byte in bytes {
            let ends_crlf = std::mem::replace(&mut self.after_cr, byte == b'\r') && byte == b'\n';
            match byte {
                _ if ends_crlf => {}
                b'\r' | b'\n' => self.end_line(),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > self.event_bytes_max {
                return Err(EventTooLong { event_bytes_max: self.event_bytes_max });
            }
        }
        Ok(())
    }

    /// The next complete event. One that the stream's end cut off never comes, as the standard wants it.
    pub fn next_event(&mut self) -> Option<SseEvent> {
        self.ready.pop_front()
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.dispatch();
            return;
        }
        let text = String::from_utf8_lossy(line);
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.name),
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            // Comments (an empty field name), `retry` and fields of the future say nothing to this client.
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        // A `data` line without text is data too: the standard fires an event with an empty text.
        if std::mem::take(&mut self.has_data) {
            self.ready.push_back(SseEvent { name, data, id: self.id.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<SseEvent> {
        let mut parser = SseParser::new(1 << 20);
        let mut events = Vec::new();
        for chunk in chunks {
            parser.push(chunk).expect("short events");
            events.extend(std::iter::from_fn(|| parser.next_event()));
        }
        events
    }

    #[track_caller]
    fn check(stream: &str, expect: &[(&str, &str, &str)]) {
        let expect: Vec<SseEvent> = expect
            .iter()
            .map(|(name, data, id)| SseEvent { name: (*name).into(), data: (*data).into(), id: (*id).into() })
            .collect();
        let bytes = stream.as_bytes();
        assert_eq!(parse(&[bytes]), expect, "whole");
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(parse(&single), expect, "byte by byte");
        for cut in 0..=bytes.len() {
            assert_eq!(parse(&[&bytes[..cut], &bytes[cut..]]), expect, "cut at {cut}");
        }
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        check("data: a\n\ndata: b\n\n", &[("", "a", ""), ("", "b", "")]);
        check("data: zwölf 🦀\n\n", &[("", "zwölf 🦀", "")]);
        check("data: a\r\n\r\ndata: b\r\rdata: c\n\n", &[("", "a", ""), ("", "b", ""), ("", "c", "")]);
        check("event: token\nid: 1f-3\ndata: {}\n\n", &[("token", "{}", "1f-3")]);
    }

    #[test]
    fn the_standards_corner_cases_hold() {
        check(":\n:\ndata: a\n:hb\n\n", &[("", "a", "")]);
        check("data: one\ndata: two\n\n", &[("", "one\ntwo", "")]);
        check("data:x\ndata:  y\n\n", &[("", "x\n y", "")]);
        check("data\n\ndata\ndata\n\n", &[("", "", ""), ("", "\n", "")]);
        check("event: ping\n\ndata: a\n\n", &[("", "a", "")]);
        check("id: 7\n\ndata: a\n\ndata: b\n\n", &[("", "a", "7"), ("", "b", "7")]);
        check("id: a\0b\ndata: a\n\n", &[("", "a", "")]);
        check("retry: 10\nfoo: bar\ndata: a\n\n", &[("", "a", "")]);
        check("\u{feff}data: a\n\n", &[("", "a", "")]);
        check("data: cut off by the end", &[]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::new(16);
        assert_eq!(parser.push(b"data: 0123456789012"), Err(EventTooLong { event_bytes_max: 16 }));
    }
}
