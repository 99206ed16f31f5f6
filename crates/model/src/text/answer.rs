//! An answer's text, taken apart as it comes: what is said, what is thought, what is called. A log holds the text as the
//! model wrote it; each dialect reads it through a parser of its own, from the first event on.
//!
//! An answer is a reasoning section, if the model knows one and begins with it, then content and calls in any order.
//! Three rules hold whatever a model writes:
//!
//! - text that may be the beginning of a marker, or the space before one, waits until that is known;
//! - what looks like a call and turns out to be none is content again, markers and all, until its name was told; after
//!   that it stays a call, and what does not belong to it is content;
//! - space next to markers is the format's own and belongs to no piece.

mod call;
mod count;
mod format;
mod scan;

use call::{Accept, CallProgress, CallReader};
pub use count::ReasoningCount;
pub(in crate::text) use format::MARKERS;
pub use format::{AnswerFormat, CallFormat, CallSyntax, FREE_TEXT, ReasoningFormat, ReasoningSyntax};

/// Longest name before the arguments of Mistral's newer form; what is longer is none.
const NAME_BYTES_MAX: usize = 256;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the user; not empty.
    Content(String),
    /// Text that the model wrote for itself; not empty.
    Reasoning(String),
    /// A call of a tool begins. Calls are numbered by their order, from 0.
    CallBegin {
        /// Which function.
        name: String,
    },
    /// More of the arguments of the call that began last, as JSON text; not empty.
    CallArguments(String),
}

/// Reads one answer. Text that may be the beginning of a marker is held back.
#[derive(Debug)]
pub struct AnswerParser {
    format: AnswerFormat,
    state: AnswerState,
    /// What has come and is not understood yet.
    held: String,
    num_calls: usize,
    num_bytes: usize,
    reasoning_end: Option<usize>,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum AnswerState {
    /// Nothing but space has come.
    Start,
    /// Within the reasoning; its leading space is dropped.
    Reasoning { is_empty: bool },
    /// The reasoning is over, and the space behind it is dropped.
    Thought,
    /// Within content, or between calls.
    Content { is_after_call: bool },
    /// Behind the marker of a call, which is kept in case it is none.
    Opened { raw: String },
    /// Within a list of calls, before one.
    Item { raw: String },
    /// Within a call.
    Call { raw: String, reader: Box<CallReader>, is_item: bool },
    /// Behind a call.
    AfterCall { is_item: bool },
    /// Within an answer that is one tool's input as a whole.
    Whole,
}

/// Whether a text begins with a marker.
#[derive(PartialEq, Eq)]
enum Look {
    Here,
    /// It may, when more has come.
    Perhaps,
    Not,
}

impl AnswerParser {
    /// Nothing read yet.
    pub fn new(format: &AnswerFormat) -> Self {
        let is_bare = format.calls.as_ref().is_some_and(|calls| calls.syntax == CallSyntax::Llama3);
        let (state, reasoning_end) = match format.reasoning {
            Some(reasoning) if reasoning.is_open => (AnswerState::Reasoning { is_empty: true }, None),
            Some(_) => (AnswerState::Start, None),
            None if is_bare || format.calls.as_ref().is_some_and(|calls| calls.whole.is_some()) => {
                (AnswerState::Start, Some(0))
            }
            None => (AnswerState::Content { is_after_call: false }, Some(0)),
        };
        let format = format.clone();
        Self { format, state, held: String::new(), num_calls: 0, num_bytes: 0, reasoning_end, pieces: Vec::new() }
    }

    /// Takes the text that comes next.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.num_bytes += text.len();
        self.held.push_str(text);
        while self.step(false) {}
        std::mem::take(&mut self.pieces)
    }

    /// The text is over: what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        while self.step(true) {}
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, AnswerState::Content { is_after_call: false }) {
            AnswerState::Reasoning { .. } => {
                self.reasoning_end.get_or_insert(self.num_bytes);
            }
            AnswerState::Call { raw, reader, .. } if !reader.is_begun() => self.content(&(raw + &held)),
            AnswerState::Opened { raw } | AnswerState::Item { raw } => self.content(&(raw + &held)),
            AnswerState::Content { is_after_call: true } | AnswerState::AfterCall { .. } if held.trim().is_empty() => {}
            AnswerState::Whole => self.pieces.push(Piece::CallArguments("\"}".to_owned())),
            _ => self.content(&held),
        }
        self.reasoning_end.get_or_insert(0);
        std::mem::take(&mut self.pieces)
    }

    /// Calls so far.
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// How many bytes of the text are reasoning, its markers included, once that is known: after its end, or after the
    /// first characters of an answer without it.
    pub(crate) fn reasoning_bytes(&self) -> Option<usize> {
        self.reasoning_end
    }

    /// Understands some of what is held; `false` if more text must come first.
    fn step(&mut self, is_end: bool) -> bool {
        match &mut self.state {
            AnswerState::Start => self.step_start(is_end),
            AnswerState::Reasoning { .. } => self.step_reasoning(is_end),
            AnswerState::Thought => {
                drop_space(&mut self.held);
                !self.held.is_empty() && self.begin_content()
            }
            AnswerState::Content { .. } => self.step_content(is_end),
            AnswerState::Opened { .. } => self.step_opened(is_end),
            AnswerState::Item { .. } => self.step_item(),
            AnswerState::Call { .. } => self.step_call(),
            AnswerState::AfterCall { .. } => self.step_after_call(is_end),
            AnswerState::Whole => self.step_whole(),
        }
    }

    fn step_start(&mut self, is_end: bool) -> bool {
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        if let Some(reasoning) = self.format.reasoning {
            match look(text, reasoning.syntax.opening()) {
                Look::Perhaps if !is_end => return false,
                Look::Here => {
                    self.held = text[reasoning.syntax.opening().len()..].to_owned();
                    self.state = AnswerState::Reasoning { is_empty: true };
                    return true;
                }
                Look::Perhaps | Look::Not => {}
            }
        }
        self.reasoning_end.get_or_insert(0);
        self.begin_content()
    }

    /// The first characters of what is said are there; they may be a call without a marker.
    fn begin_content(&mut self) -> bool {
        match &self.format.calls {
            Some(CallFormat { whole: Some(name), .. }) => {
                self.num_calls += 1;
                self.pieces.push(Piece::CallBegin { name: name.clone() });
                self.pieces.push(Piece::CallArguments(format!("{{\"{FREE_TEXT}\": \"")));
                self.state = AnswerState::Whole;
            }
            Some(calls) if calls.syntax == CallSyntax::Llama3 && self.held.trim_start().starts_with('{') => {
                self.state = bare_call(calls, String::new());
            }
            _ => self.state = AnswerState::Content { is_after_call: false },
        }
        true
    }

    /// The text as the value of a JSON string.
    fn step_whole(&mut self) -> bool {
        if !self.held.is_empty() {
            let quoted = serde_json::Value::from(std::mem::take(&mut self.held)).to_string();
            self.pieces.push(Piece::CallArguments(quoted[1..quoted.len() - 1].to_owned()));
        }
        false
    }

    fn step_reasoning(&mut self, is_end: bool) -> bool {
        let Some(reasoning) = self.format.reasoning else { return false };
        let AnswerState::Reasoning { is_empty } = &mut self.state else { return false };
        if *is_empty {
            drop_space(&mut self.held);
            // Some models open again what the prompt has opened.
            if reasoning.is_open {
                match look(&self.held, reasoning.syntax.opening()) {
                    Look::Perhaps if !is_end => return false,
                    Look::Here => {
                        drop_front(&mut self.held, reasoning.syntax.opening().len());
                        return true;
                    }
                    Look::Perhaps | Look::Not => {}
                }
            }
            if self.held.is_empty() {
                return false;
            }
        }
        let closing = reasoning.syntax.closing();
        let found = self.held.find(closing);
        let len = found.unwrap_or_else(|| if is_end { self.held.len() } else { safe_len(&self.held, closing) });
        let text = &self.held[..len];
        let text = if found.is_some() || is_end { text.trim_end() } else { text };
        if !text.is_empty() {
            *is_empty = false;
            self.pieces.push(Piece::Reasoning(text.to_owned()));
        }
        drop_front(&mut self.held, found.map_or(len, |at| at + closing.len()));
        if found.is_some() {
            self.reasoning_end = Some(self.num_bytes - self.held.len());
            self.state = AnswerState::Thought;
        }
        found.is_some()
    }

    fn step_content(&mut self, is_end: bool) -> bool {
        let Some(marker) = self.next_marker() else {
            // Behind the only call there may be, space is still the format's.
            if matches!(self.state, AnswerState::Content { is_after_call: true }) && self.held.trim().is_empty() {
                return false;
            }
            self.state = AnswerState::Content { is_after_call: false };
            let held = std::mem::take(&mut self.held);
            self.content(&held);
            return false;
        };
        if let Some(at) = self.held.find(marker) {
            let len = self.held[..at].trim_end().len();
            let raw = self.held[len..at + marker.len()].to_owned();
            let text = self.held[..len].to_owned();
            drop_front(&mut self.held, at + marker.len());
            self.content(&text);
            self.state = AnswerState::Opened { raw };
            return true;
        }
        let len = if is_end { 0 } else { safe_len(&self.held, marker) };
        if len > 0 {
            let text = self.held[..len].to_owned();
            drop_front(&mut self.held, len);
            self.content(&text);
            self.state = AnswerState::Content { is_after_call: false };
        }
        false
    }

    fn step_opened(&mut self, is_end: bool) -> bool {
        let AnswerState::Opened { raw } = &mut self.state else { return false };
        move_space(&mut self.held, raw);
        let Some(first) = self.held.chars().next() else { return false };
        let raw = std::mem::take(raw);
        if first == '{' {
            self.state = AnswerState::Call { raw, reader: Box::new(CallReader::object(Accept::Any)), is_item: false };
            return true;
        }
        let is_mistral = self.format.calls.as_ref().is_some_and(|calls| calls.syntax == CallSyntax::Mistral);
        if is_mistral && first == '[' {
            drop_front(&mut self.held, 1);
            self.state = AnswerState::Item { raw: raw + "[" };
            return true;
        }
        let named = if is_mistral { named_call(&self.held) } else { Named::Not };
        match named {
            Named::Perhaps if !is_end => {
                self.state = AnswerState::Opened { raw };
                false
            }
            Named::Here { name_len, head_len } => {
                let reader = Box::new(CallReader::arguments(self.held[..name_len].to_owned()));
                let raw = raw + &self.held[..head_len];
                drop_front(&mut self.held, head_len);
                self.state = AnswerState::Call { raw, reader, is_item: false };
                true
            }
            Named::Perhaps | Named::Not => self.give_back(&raw),
        }
    }

    fn step_item(&mut self) -> bool {
        let AnswerState::Item { raw } = &mut self.state else { return false };
        move_space(&mut self.held, raw);
        match self.held.chars().next() {
            None => false,
            Some('{') if self.may_call() => {
                let AnswerState::Item { raw } = &mut self.state else { return false };
                let reader = Box::new(CallReader::object(Accept::Any));
                self.state = AnswerState::Call { raw: std::mem::take(raw), reader, is_item: true };
                true
            }
            Some(']') if self.num_calls > 0 => {
                drop_front(&mut self.held, 1);
                self.state = AnswerState::Content { is_after_call: true };
                true
            }
            Some(_) => {
                let AnswerState::Item { raw } = &mut self.state else { return false };
                let raw = std::mem::take(raw);
                self.give_back(&raw)
            }
        }
    }

    fn step_call(&mut self) -> bool {
        let AnswerState::Call { raw, reader, is_item } = &mut self.state else { return false };
        let is_item = *is_item;
        let (len, progress) = reader.read(&self.held);
        let (name, arguments, is_begun) = (reader.take_name(), reader.take_arguments(), reader.is_begun());
        raw.push_str(&self.held[..len]);
        // Still to be given back, or not needed any more.
        let raw = if is_begun || progress == CallProgress::Wrong { std::mem::take(raw) } else { String::new() };
        drop_front(&mut self.held, len);
        if let Some(name) = name {
            self.num_calls += 1;
            self.pieces.push(Piece::CallBegin { name });
        }
        if !arguments.is_empty() {
            self.pieces.push(Piece::CallArguments(arguments));
        }
        match progress {
            CallProgress::Unfinished => false,
            CallProgress::Wrong if !is_begun => self.give_back(&raw),
            CallProgress::Done | CallProgress::Wrong => {
                self.state = AnswerState::AfterCall { is_item };
                true
            }
        }
    }

    fn step_after_call(&mut self, is_end: bool) -> bool {
        let AnswerState::AfterCall { is_item } = self.state else { return false };
        let Some(calls) = &self.format.calls else { return false };
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        let mut next = AnswerState::Content { is_after_call: true };
        match calls.syntax {
            CallSyntax::Hermes => match look(text, "</tool_call>") {
                Look::Perhaps if !is_end => return false,
                Look::Here => self.held = text["</tool_call>".len()..].to_owned(),
                Look::Perhaps | Look::Not => {}
            },
            CallSyntax::Llama3 if self.may_call() => {
                // Calls that follow one another, apart by what models put there.
                let rest = text.trim_start_matches([';', ',', ' ', '\n', '\r', '\t']);
                if rest.is_empty() && !is_end {
                    return false;
                }
                if rest.starts_with('{') {
                    let separator = self.held[..self.held.len() - rest.len()].to_owned();
                    next = bare_call(calls, separator);
                    self.held = rest.to_owned();
                }
            }
            CallSyntax::Mistral if is_item => {
                let raw = self.held[..self.held.len() - text.len()].to_owned();
                let has_comma = text.starts_with(',');
                self.held = text[usize::from(has_comma)..].to_owned();
                next = AnswerState::Item { raw: raw + if has_comma { "," } else { "" } };
            }
            CallSyntax::Llama3 | CallSyntax::Mistral => {}
        }
        self.state = next;
        true
    }

    /// Whether a further call would be one.
    fn may_call(&self) -> bool {
        self.format.calls.as_ref().is_some_and(|calls| calls.is_parallel || self.num_calls == 0)
    }

    /// The marker that may come next.
    fn next_marker(&self) -> Option<&'static str> {
        self.format.calls.as_ref().filter(|_| self.may_call()).map(|calls| calls.syntax.opening())
    }

    /// It was no call: its text is content, and what follows is looked at anew.
    fn give_back(&mut self, raw: &str) -> bool {
        self.content(raw);
        self.state = AnswerState::Content { is_after_call: false };
        true
    }

    fn content(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Content(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Content(text.to_owned())),
        }
    }
}

/// Reading a call that no marker precedes.
fn bare_call(calls: &CallFormat, raw: String) -> AnswerState {
    let reader = CallReader::object(Accept::Known(calls.names.clone()));
    AnswerState::Call { raw, reader: Box::new(reader), is_item: false }
}

/// A name with what stands between it and its arguments.
enum Named {
    Here { name_len: usize, head_len: usize },
    Perhaps,
    Not,
}

/// `name[ARGS]`, `name[CALL_ID]id[ARGS]`, or `name` right before its arguments.
fn named_call(text: &str) -> Named {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name_len = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let rest = &text[name_len..];
    if name_len == 0 || name_len > NAME_BYTES_MAX {
        return Named::Not;
    }
    if rest.is_empty() {
        return Named::Perhaps;
    }
    let id_len = match look(rest, "[CALL_ID]") {
        Look::Here => {
            let id = &rest["[CALL_ID]".len()..];
            let id_len = id.find(|c| !is_part(c)).unwrap_or(id.len());
            if id_len > NAME_BYTES_MAX {
                return Named::Not;
            }
            "[CALL_ID]".len() + id_len
        }
        Look::Perhaps => return Named::Perhaps,
        Look::Not => 0,
    };
    let head_len = name_len + id_len;
    match look(&text[head_len..], "[ARGS]") {
        Look::Here => Named::Here { name_len, head_len: head_len + "[ARGS]".len() },
        Look::Perhaps => Named::Perhaps,
        Look::Not if id_len == 0 && rest.trim_start().starts_with('{') => Named::Here { name_len, head_len },
        Look::Not if id_len == 0 && rest.trim().is_empty() => Named::Perhaps,
        Look::Not => Named::Not,
    }
}

fn look(text: &str, marker: &str) -> Look {
    if text.starts_with(marker) {
        Look::Here
    } else if marker.starts_with(text) {
        Look::Perhaps
    } else {
        Look::Not
    }
}

/// How much of `text` can be neither the beginning of `marker` nor the space before it.
fn safe_len(text: &str, marker: &str) -> usize {
    let longest = marker.len().min(text.len());
    let overlap = (1..=longest).rev().find(|&len| text.as_bytes().ends_with(&marker.as_bytes()[..len])).unwrap_or(0);
    text[..text.len() - overlap].trim_end().len()
}

fn drop_front(text: &mut String, len: usize) {
    text.drain(..len);
}

fn drop_space(text: &mut String) {
    let len = text.len() - text.trim_start().len();
    drop_front(text, len);
}

fn move_space(text: &mut String, to: &mut String) {
    let len = text.len() - text.trim_start().len();
    to.push_str(&text[..len]);
    drop_front(text, len);
}

#[cfg(test)]
mod tests;
