//! Reads one call as it comes: `{"name": ..., "arguments": ...}` in any order, or arguments alone whose name is known.
//! Arguments are handed on character by character once the name is known; before, they wait.

use super::scan::{JsonScan, Scanned};

/// Which functions may be called.
#[derive(Debug, Clone)]
pub(super) enum Accept {
    /// Any: a marker said that this is a call. Whether such a function exists is the client's to say.
    Any,
    /// One of these, with an object of arguments: nothing but its look says that this is a call.
    Known(Vec<String>),
}

/// How far reading came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallProgress {
    /// All was read, and more must come.
    Unfinished,
    /// The call is whole.
    Done,
    /// What comes next has no place in a call.
    Wrong,
}

/// One call in the making.
#[derive(Debug)]
pub(super) struct CallReader {
    accept: Accept,
    at: At,
    scan: JsonScan,
    /// The key or value that is being read, unless it is handed on at once.
    text: String,
    name: Option<String>,
    /// Arguments that came before the name.
    waiting: Option<String>,
    has_arguments: bool,
    /// Whether the arguments are all there is, without an object around.
    is_bare_value: bool,
    is_begun: bool,
    begun_name: Option<String>,
    arguments: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Open,
    KeyOrEnd,
    Key,
    Colon(CallField),
    ValueStart(CallField),
    Value(CallField),
    CommaOrEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallField {
    Name,
    Arguments,
    Other,
}

impl CallReader {
    /// Reads an object with a name and arguments.
    pub(super) fn object(accept: Accept) -> Self {
        Self {
            accept,
            at: At::Open,
            scan: JsonScan::default(),
            text: String::new(),
            name: None,
            waiting: None,
            has_arguments: false,
            is_bare_value: false,
            is_begun: false,
            begun_name: None,
            arguments: String::new(),
        }
    }

    /// Reads the arguments of `name`.
    pub(super) fn arguments(name: String) -> Self {
        let at = At::ValueStart(CallField::Arguments);
        Self { at, name: Some(name), is_bare_value: true, ..Self::object(Accept::Any) }
    }

    /// Reads on; returns how many bytes of `text` belong to the call.
    pub(super) fn read(&mut self, text: &str) -> (usize, CallProgress) {
        for (at, c) in text.char_indices() {
            match self.push(c) {
                CallProgress::Unfinished => {}
                CallProgress::Done => return (at + c.len_utf8(), CallProgress::Done),
                CallProgress::Wrong => return (at, CallProgress::Wrong),
            }
        }
        (text.len(), CallProgress::Unfinished)
    }

    /// The function, once: as soon as it is sure that this is a call.
    pub(super) fn take_name(&mut self) -> Option<String> {
        self.begun_name.take()
    }

    /// Arguments since the last call.
    pub(super) fn take_arguments(&mut self) -> String {
        std::mem::take(&mut self.arguments)
    }

    /// Whether the name was told, so that this can no longer be anything but a call.
    pub(super) fn is_begun(&self) -> bool {
        self.is_begun
    }

    fn push(&mut self, c: char) -> CallProgress {
        let is_space = matches!(c, ' ' | '\n' | '\r' | '\t');
        match self.at {
            At::Key => self.push_key(c),
            At::Value(field) => self.push_value(field, c),
            _ if is_space => CallProgress::Unfinished,
            At::ValueStart(field) => {
                if field == CallField::Arguments && c != '{' && (self.is_bare_value || self.must_be_known()) {
                    return CallProgress::Wrong;
                }
                (self.scan, self.at) = (JsonScan::default(), At::Value(field));
                self.text.clear();
                self.push_value(field, c)
            }
            At::Open if c == '{' => self.go(At::KeyOrEnd),
            At::KeyOrEnd if c == '"' => {
                (self.scan, self.at) = (JsonScan::default(), At::Key);
                self.text.clear();
                self.push_key(c)
            }
            At::Colon(field) if c == ':' => self.go(At::ValueStart(field)),
            At::CommaOrEnd if c == ',' => self.go(At::KeyOrEnd),
            At::KeyOrEnd | At::CommaOrEnd if c == '}' => self.end(),
            At::Open | At::KeyOrEnd | At::Colon(_) | At::CommaOrEnd => CallProgress::Wrong,
        }
    }

    fn go(&mut self, at: At) -> CallProgress {
        self.at = at;
        CallProgress::Unfinished
    }

    fn must_be_known(&self) -> bool {
        matches!(self.accept, Accept::Known(_))
    }

    fn push_key(&mut self, c: char) -> CallProgress {
        self.text.push(c);
        match self.scan.push(c) {
            Scanned::Inner => CallProgress::Unfinished,
            Scanned::Last => {
                let field = match text_of(&self.text).as_deref() {
                    Some("name") => CallField::Name,
                    Some("arguments" | "parameters") => CallField::Arguments,
                    Some(_) => CallField::Other,
                    None => return CallProgress::Wrong,
                };
                let is_again = match field {
                    CallField::Name => self.name.is_some(),
                    CallField::Arguments => self.has_arguments,
                    CallField::Other => false,
                };
                if is_again { CallProgress::Wrong } else { self.go(At::Colon(field)) }
            }
            Scanned::Behind | Scanned::Wrong => CallProgress::Wrong,
        }
    }

    fn push_value(&mut self, field: CallField, c: char) -> CallProgress {
        let scanned = self.scan.push(c);
        match scanned {
            Scanned::Wrong => return CallProgress::Wrong,
            Scanned::Behind => {}
            Scanned::Inner | Scanned::Last => self.append(field, c),
        }
        if scanned == Scanned::Inner {
            return CallProgress::Unfinished;
        }
        self.at = At::CommaOrEnd;
        match self.end_value(field) {
            CallProgress::Unfinished if scanned == Scanned::Behind => self.push(c),
            progress => progress,
        }
    }

    fn append(&mut self, field: CallField, c: char) {
        let is_first = self.text.is_empty();
        if field == CallField::Arguments && self.name.is_some() && (is_first && c == '{' || self.is_begun) {
            self.begin();
            self.arguments.push(c);
        } else {
            self.text.push(c);
        }
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.is_begun, true) {
            self.begun_name = self.name.clone();
        }
    }

    fn end_value(&mut self, field: CallField) -> CallProgress {
        match field {
            CallField::Other => {}
            CallField::Name => {
                let Some(name) = text_of(&self.text).filter(|name| !name.is_empty()) else {
                    return CallProgress::Wrong;
                };
                if matches!(&self.accept, Accept::Known(names) if !names.contains(&name)) {
                    return CallProgress::Wrong;
                }
                self.name = Some(name);
                if let Some(arguments) = self.waiting.take() {
                    self.begin();
                    self.arguments.push_str(&arguments);
                }
            }
            CallField::Arguments => {
                self.has_arguments = true;
                if !self.is_begun {
                    let arguments = arguments_of(&self.text);
                    if self.name.is_some() {
                        self.begin();
                        self.arguments.push_str(&arguments);
                    } else {
                        self.waiting = Some(arguments);
                    }
                }
                if self.is_bare_value {
                    return CallProgress::Done;
                }
            }
        }
        CallProgress::Unfinished
    }

    fn end(&mut self) -> CallProgress {
        if self.is_begun {
            return CallProgress::Done;
        }
        // A name without arguments: a call where a marker said so.
        if self.name.is_none() || self.must_be_known() {
            return CallProgress::Wrong;
        }
        self.begin();
        self.arguments.push_str("{}");
        CallProgress::Done
    }
}

/// The text that a JSON text stands for.
fn text_of(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

/// Arguments as clients want them: an object. Some models write it as a text within the JSON, or nothing.
fn arguments_of(json: &str) -> String {
    match json.as_bytes().first() {
        Some(b'"') => text_of(json).filter(|text| !text.is_empty()).unwrap_or_else(|| json.to_owned()),
        Some(b'n') => "{}".to_owned(),
        _ => json.to_owned(),
    }
}
