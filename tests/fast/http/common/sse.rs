//! A parser of event streams by the letter of the WHATWG algorithm, fed byte by byte, and stricter than it: what we
//! never write (CR, a BOM, fields without the one space, unknown fields) is a failure.

/// One dispatched event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SseEvent {
    pub name: String,
    pub data: String,
    /// The client's cursor after it.
    pub last_id: String,
}

impl SseEvent {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {:?}", self.data))
    }
}

#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    name: String,
    data: Vec<String>,
    id_buffer: String,
    pub last_id: String,
    pub retry: Option<u64>,
    pub num_heartbeats: usize,
    pub events: Vec<SseEvent>,
}

impl SseParser {
    /// Everything of a finished stream.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parser = Self::default();
        for &byte in text.as_bytes() {
            parser.push(byte);
        }
        assert!(parser.line.is_empty() && parser.data.is_empty(), "ends within a block: {text:?}");
        parser
    }

    pub(crate) fn push(&mut self, byte: u8) {
        assert!(byte != b'\r' && byte != 0, "a byte that has no place in a stream");
        if byte != b'\n' {
            self.line.push(byte);
            return;
        }
        let line = String::from_utf8(std::mem::take(&mut self.line)).expect("UTF-8");
        assert!(!line.starts_with('\u{feff}'), "a BOM");
        if line.is_empty() {
            self.dispatch();
        } else if line == ":" {
            assert!(self.data.is_empty() && self.name.is_empty(), "a heartbeat within a block");
            self.num_heartbeats += 1;
        } else {
            self.field(&line);
        }
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("not a field: {line:?}"));
        match name {
            "data" => self.data.push(value.to_owned()),
            "event" => self.name = value.to_owned(),
            "retry" => self.retry = Some(value.parse().expect("digits")),
            "id" => {
                let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
                assert!(value.len() <= 64 && value.bytes().all(is_plain), "id {value:?}");
                self.id_buffer = value.to_owned();
            }
            _ => panic!("unknown field {name:?}"),
        }
    }

    fn dispatch(&mut self) {
        self.last_id = self.id_buffer.clone();
        if self.data.is_empty() {
            assert!(self.name.is_empty(), "a named block without data never fires");
            return;
        }
        let data = std::mem::take(&mut self.data).join("\n");
        let name = std::mem::take(&mut self.name);
        self.events.push(SseEvent { name, data, last_id: self.last_id.clone() });
    }
}
