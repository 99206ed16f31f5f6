//! A reader of event streams by the letter of the standard (WHATWG HTML, "Parsing an event stream" and
//! "Interpreting an event stream"), byte by byte; it shares nothing with `crates/bench/src/client/sse.rs`.
//!
//! Being a proof of what we write, it also notes what the standard would forgive: see [`SseParser::oddities`].

/// One dispatched event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SseEvent {
    /// Its type; `message` where none is given.
    pub name: String,
    pub data: String,
    /// The last event id string when it was dispatched.
    pub id: String,
}

impl SseEvent {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {:?}", self.data))
    }

    /// Whether it is a native stream's last.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.name.as_str(), "done" | "error")
    }

    /// Its number in the stream, as its id has it.
    pub(crate) fn seq(&self) -> u64 {
        self.id.rsplit_once('-').and_then(|(_, seq)| seq.parse().ok()).unwrap_or_else(|| panic!("id {:?}", self.id))
    }
}

#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    is_after_cr: bool,
    is_begun: bool,
    event_type: String,
    data: String,
    has_data: bool,
    id_buffer: String,
    /// What a reconnecting client would send.
    pub last_id: String,
    pub retry_ms: Option<u64>,
    pub num_comments: usize,
    /// Bytes that are legal and that we never write.
    pub oddities: Vec<String>,
}

impl SseParser {
    /// Goes on after a reconnection: the cursor stays, half a block is lost.
    pub(crate) fn resumed(last_id: &str) -> Self {
        Self { id_buffer: last_id.to_owned(), last_id: last_id.to_owned(), ..Self::default() }
    }

    /// All events of a whole stream.
    pub(crate) fn parse(bytes: &[u8]) -> Vec<SseEvent> {
        let mut parser = Self::default();
        let events = parser.push(bytes);
        assert!(parser.is_between_blocks(), "ends within a block");
        assert_eq!(parser.oddities, [""; 0]);
        events
    }

    /// Takes bytes, cut anywhere; gives what they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        bytes.iter().filter_map(|&byte| self.push_byte(byte)).collect()
    }

    pub(crate) fn push_byte(&mut self, byte: u8) -> Option<SseEvent> {
        let was_after_cr = std::mem::replace(&mut self.is_after_cr, byte == b'\r');
        match byte {
            b'\n' if was_after_cr => None,
            b'\n' => self.end_line(),
            b'\r' => {
                self.odd("a carriage return");
                self.end_line()
            }
            _ => {
                self.line.push(byte);
                None
            }
        }
    }

    pub(crate) fn is_between_blocks(&self) -> bool {
        self.line.is_empty() && !self.has_data && self.event_type.is_empty()
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let bytes = std::mem::take(&mut self.line);
        let mut line = match String::from_utf8(bytes) {
            Ok(line) => line,
            Err(e) => {
                self.odd("not UTF-8");
                String::from_utf8_lossy(e.as_bytes()).into_owned()
            }
        };
        if !std::mem::replace(&mut self.is_begun, true)
            && let Some(rest) = line.strip_prefix('\u{feff}')
        {
            self.odd("a byte order mark");
            line = rest.to_owned();
        }
        if line.is_empty() {
            return self.dispatch();
        }
        match line.split_once(':') {
            Some(("", comment)) => self.comment(comment),
            Some((field, value)) => {
                let stripped = value.strip_prefix(' ');
                if stripped.is_none() {
                    self.odd("no space after the colon");
                }
                self.field(field, stripped.unwrap_or(value));
            }
            None => {
                self.odd("a field without a colon");
                self.field(&line, "");
            }
        }
        None
    }

    fn comment(&mut self, comment: &str) {
        self.num_comments += 1;
        if self.has_data || !self.event_type.is_empty() || !comment.is_empty() {
            self.odd("a heartbeat within a block, or one that says something");
        }
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => value.clone_into(&mut self.event_type),
            "data" => {
                if self.has_data {
                    self.odd("two lines of data");
                }
                self.has_data = true;
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" => {
                let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
                if value.len() > 64 || !value.bytes().all(is_plain) {
                    self.odd("an id that a browser would ask leave for");
                }
                if !value.contains('\0') {
                    value.clone_into(&mut self.id_buffer);
                }
            }
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.retry_ms = value.parse().ok();
            }
            _ => self.odd("a field that clients ignore"),
        }
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        self.last_id.clone_from(&self.id_buffer);
        let (name, has_data) = (std::mem::take(&mut self.event_type), std::mem::take(&mut self.has_data));
        let mut data = std::mem::take(&mut self.data);
        if !has_data {
            if !name.is_empty() {
                self.odd("a named block without data never fires");
            }
            return None;
        }
        data.pop();
        if data.is_empty() {
            self.odd("an event that says nothing");
        }
        let name = if name.is_empty() { "message".to_owned() } else { name };
        Some(SseEvent { name, data, id: self.last_id.clone() })
    }

    fn odd(&mut self, what: &str) {
        self.oddities.push(what.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: &[(&str, &str, &str)], num_oddities: usize) {
        let mut parser = SseParser::default();
        let events = parser.push(text.as_bytes());
        let got: Vec<_> = events.iter().map(|e| (e.name.as_str(), e.data.as_str(), e.id.as_str())).collect();
        assert_eq!((got.as_slice(), parser.oddities.len()), (expect, num_oddities), "{:?}", parser.oddities);
    }

    /// The standard's own examples, and what lies between its lines.
    #[test]
    fn the_standards_examples_are_read_as_it_says() {
        check("data: YHOO\ndata: +2\ndata: 10\n\n", &[("message", "YHOO\n+2\n10", "")], 2);
        let text = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        check(
            text,
            &[("message", "first event", "1"), ("message", "second event", ""), ("message", " third event", "")],
            3,
        );
        check("data\n\ndata\ndata\n\ndata:", &[("message", "", ""), ("message", "\n", "")], 5);
        check("data: half", &[], 0);
        check(
            "\u{feff}data: a\r\ndata: b\r\rid: 7\n\nevent: x\ndata: c\n\n",
            &[("message", "a\nb", ""), ("x", "c", "7")],
            5,
        );
        check("id: a\0b\nnothing: x\nretry: 1x\ndata: a\n\n", &[("message", "a", "")], 3);
    }
}
