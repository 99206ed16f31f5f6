//! A log read as a response: entry by entry into numbered events and an object. Nothing but the log and the request goes
//! in, so that whoever reads the same log sees the same events under the same numbers.
//!
//! ```text
//! queued  -> response.created, response.queued
//! started -> response.in_progress
//! token   -> pieces: open an item where the kind changes (closing the one before), then a delta
//! end     -> close the open item, then response.completed, .incomplete, .cancelled or .failed
//! ```

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::store::Described;
use crate::error::ErrorKind;
use crate::protocol::{ErrorInfo, Event, FinishReason, TokenEvent, TokenLogprob, Usage};
use crate::stream::Entry;
use crate::text::{AnswerParser, Piece, Tokenizer};

/// What OpenAI's clients are told where a probability is 0: JSON has no infinity.
const LOGPROB_MIN: f32 = -9999.0;

/// An event of the wire: its type, and its data in order.
pub(super) type Emitted = (&'static str, Value);

/// How far a log has been read.
pub(super) struct Assembly {
    described: Arc<Described>,
    tokenizer: Arc<Tokenizer>,
    parser: AnswerParser,
    next_number: u64,
    status: &'static str,
    is_created: bool,
    is_started: bool,
    /// Items that are complete.
    output: Vec<Value>,
    open: Option<Open>,
    num_calls: usize,
    /// Log-probabilities of text that the parser holds back.
    held_logprobs: Vec<Value>,
    num_reasoning_tokens: usize,
    usage: Option<Usage>,
    error: Value,
    failure: Option<ErrorInfo>,
    emitted: Vec<Emitted>,
}

/// The item that is being written.
struct Open {
    kind: Kind,
    id: String,
    text: String,
    logprobs: Vec<Value>,
    /// Of a call.
    name: String,
    call_id: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    Call,
}

impl Kind {
    /// What its ids begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Message => "msg",
            Self::Reasoning => "rs",
            Self::Call => "fc",
        }
    }
}

impl Assembly {
    pub(super) fn new(described: Arc<Described>, tokenizer: Arc<Tokenizer>) -> Self {
        let parser = AnswerParser::new(&described.format);
        Self {
            described,
            tokenizer,
            parser,
            next_number: 0,
            status: "queued",
            is_created: false,
            is_started: false,
            output: Vec::new(),
            open: None,
            num_calls: 0,
            held_logprobs: Vec::new(),
            num_reasoning_tokens: 0,
            usage: None,
            error: Value::Null,
            failure: None,
            emitted: Vec::new(),
        }
    }

    /// Takes the entry that comes next, and returns the events that it means.
    pub(super) fn take(&mut self, entry: &Entry) -> Vec<Emitted> {
        if !self.is_created {
            self.is_created = true;
            self.emit_response("response.created");
            self.emit_response("response.queued");
        }
        match &entry.event {
            // Told again while it waits; here its place is nobody's business.
            Event::Queued { .. } | Event::Prompt { .. } | Event::Embedding { .. } => {}
            Event::Started { .. } => self.start(),
            Event::Token(token) => {
                self.start();
                self.token(token);
            }
            Event::Done { finish_reason, usage, .. } => {
                self.start();
                self.done(*finish_reason, *usage);
            }
            Event::Error(info) => self.fail(info),
        }
        std::mem::take(&mut self.emitted)
    }

    /// The number of the next event.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Why it failed, if it did.
    pub(super) fn failure(&self) -> Option<&ErrorInfo> {
        self.failure.as_ref()
    }

    /// Whether it has ended.
    pub(super) fn is_terminal(&self) -> bool {
        !matches!(self.status, "queued" | "in_progress")
    }

    /// The items that are complete.
    pub(super) fn into_output(self) -> Vec<Value> {
        self.output
    }

    /// The response as it stands, what is being written included.
    pub(super) fn object(&self) -> Value {
        let described = &self.described;
        let open = self.open.as_ref().map(|open| open.item("in_progress"));
        let output: Vec<&Value> = self.output.iter().chain(&open).collect();
        let incomplete = (self.status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let mut object = json!({
            "id": described.response_id(),
            "object": "response",
            "created_at": described.created_s,
            "status": self.status,
            "error": self.error,
            "incomplete_details": incomplete,
            "model": described.model,
            "output": output,
            "usage": self.usage.map(|usage| self.usage_object(usage)),
        });
        if let Value::Object(fields) = &mut object {
            fields.extend(described.echo.clone());
        }
        object
    }

    fn start(&mut self) {
        if !std::mem::replace(&mut self.is_started, true) {
            self.status = "in_progress";
            self.emit_response("response.in_progress");
        }
    }

    fn token(&mut self, token: &TokenEvent) {
        if self.described.with_logprobs {
            let spelled = token.logprobs.iter().map(|l| logprob(l, &self.tokenizer));
            self.held_logprobs.extend(spelled);
        }
        let pieces = self.parser.push(&token.text);
        if !pieces.is_empty() && pieces.iter().all(|piece| matches!(piece, Piece::Reasoning(_))) {
            self.num_reasoning_tokens += token.tokens.len();
        }
        pieces.into_iter().for_each(|piece| self.piece(piece));
    }

    fn piece(&mut self, piece: Piece) {
        let logprobs = match &piece {
            Piece::Content(_) => std::mem::take(&mut self.held_logprobs),
            // They belong to text that has no place for them.
            _ => {
                self.held_logprobs.clear();
                Vec::new()
            }
        };
        match piece {
            Piece::Content(text) => {
                self.open(Kind::Message);
                let more = json!({"content_index": 0, "delta": text, "logprobs": logprobs});
                self.emit_open("response.output_text.delta", more);
                self.append(&text, logprobs);
            }
            Piece::Reasoning(text) => {
                self.open(Kind::Reasoning);
                self.emit_open("response.reasoning_text.delta", json!({"content_index": 0, "delta": text}));
                self.append(&text, Vec::new());
            }
            Piece::CallBegin { name } => self.begin_call(name),
            Piece::CallArguments(text) => {
                self.emit_open("response.function_call_arguments.delta", json!({"delta": text}));
                self.append(&text, Vec::new());
            }
        }
    }

    fn append(&mut self, text: &str, logprobs: Vec<Value>) {
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
            open.logprobs.extend(logprobs);
        }
    }

    /// Makes an item of `kind` the open one.
    fn open(&mut self, kind: Kind) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.begin(kind, String::new(), String::new());
        }
    }

    fn begin_call(&mut self, name: String) {
        let call_id = format!("call_{}_{}", self.described.id, self.num_calls);
        self.num_calls += 1;
        self.begin(Kind::Call, name, call_id);
    }

    fn begin(&mut self, kind: Kind, name: String, call_id: String) {
        self.close("completed");
        let id = format!("{}_{}_{}", kind.prefix(), self.described.id, self.output.len());
        let open = Open { kind, id, text: String::new(), logprobs: Vec::new(), name, call_id };
        let added = json!({"output_index": self.output.len(), "item": open.bare()});
        let part = open.part();
        self.open = Some(open);
        self.emit("response.output_item.added", added);
        if let Some(part) = part {
            self.emit_open("response.content_part.added", json!({"content_index": 0, "part": part}));
        }
    }

    /// Ends the open item, if there is one.
    fn close(&mut self, status: &'static str) {
        let Some(open) = &self.open else { return };
        let (item, part, text) = (open.item(status), open.part(), open.text.clone());
        match open.kind {
            Kind::Message => {
                let more = json!({"content_index": 0, "text": text, "logprobs": open.logprobs});
                self.emit_open("response.output_text.done", more);
            }
            Kind::Reasoning => {
                self.emit_open("response.reasoning_text.done", json!({"content_index": 0, "text": text}));
            }
            Kind::Call => {
                let more = json!({"name": open.name, "arguments": text});
                self.emit_open("response.function_call_arguments.done", more);
            }
        }
        if let Some(part) = part {
            self.emit_open("response.content_part.done", json!({"content_index": 0, "part": part}));
        }
        self.emit("response.output_item.done", json!({"output_index": self.output.len(), "item": item}));
        self.output.push(item);
        self.open = None;
    }

    fn done(&mut self, finish_reason: FinishReason, usage: Usage) {
        let pieces = self.parser.finish();
        pieces.into_iter().for_each(|piece| self.piece(piece));
        if self.open.is_none() && self.output.is_empty() {
            // A client looks for a message, also for one that says nothing.
            self.open(Kind::Message);
        }
        let status = if finish_reason == FinishReason::Length { "incomplete" } else { "completed" };
        self.close(status);
        (self.status, self.usage) = (status, Some(usage));
        self.emit_response(if status == "completed" { "response.completed" } else { "response.incomplete" });
    }

    /// What was said stays in the output, as incomplete.
    fn fail(&mut self, info: &ErrorInfo) {
        self.failure = Some(info.clone());
        if self.is_started {
            let pieces = self.parser.finish();
            pieces.into_iter().for_each(|piece| self.piece(piece));
        }
        self.close("incomplete");
        self.usage = self.is_started.then_some(info.usage);
        if info.kind == ErrorKind::Cancelled {
            self.status = "cancelled";
            self.emit_response("response.cancelled");
            return;
        }
        self.status = "failed";
        self.error = json!({"code": "server_error", "message": info.message});
        self.emit("error", json!({"code": "server_error", "message": info.message, "param": null}));
        self.emit_response("response.failed");
    }

    fn emit_response(&mut self, name: &'static str) {
        let response = self.object();
        self.emit(name, json!({"response": response}));
    }

    /// An event of the open item.
    fn emit_open(&mut self, name: &'static str, more: Value) {
        let Some(open) = &self.open else { return };
        let mut data = json!({"item_id": open.id, "output_index": self.output.len()});
        merge(&mut data, more);
        self.emit(name, data);
    }

    fn emit(&mut self, name: &'static str, more: Value) {
        let mut data = json!({"type": name, "sequence_number": self.next_number});
        self.next_number += 1;
        merge(&mut data, more);
        self.emitted.push((name, data));
    }

    fn usage_object(&self, usage: Usage) -> Value {
        json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.num_reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        })
    }
}

impl Open {
    /// As it is first told of.
    fn bare(&self) -> Value {
        match self.kind {
            Kind::Call => self.item("in_progress"),
            _ => self.with_content("in_progress", &json!([])),
        }
    }

    fn item(&self, status: &str) -> Value {
        match self.kind {
            Kind::Call => json!({
                "id": self.id, "type": "function_call", "status": status, "call_id": self.call_id,
                "name": self.name, "arguments": self.text,
            }),
            _ => self.with_content(status, &json!([self.part()])),
        }
    }

    fn with_content(&self, status: &str, content: &Value) -> Value {
        let (id, is_message) = (&self.id, self.kind == Kind::Message);
        if is_message {
            return json!({
                "id": id, "type": "message", "status": status, "role": "assistant", "content": content,
            });
        }
        json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status})
    }

    /// The one content part of an item that has parts.
    fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Message => Some(json!({
                "type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs,
            })),
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": self.text})),
            Kind::Call => None,
        }
    }
}

fn merge(data: &mut Value, more: Value) {
    if let (Value::Object(data), Value::Object(more)) = (data, more) {
        data.extend(more);
    }
}

fn logprob(l: &TokenLogprob, tokenizer: &Tokenizer) -> Value {
    let spell = |token, logprob: f32| {
        let bytes = tokenizer.token_bytes(token);
        let logprob = if logprob.is_finite() { logprob } else { LOGPROB_MIN };
        Map::from_iter([
            ("token".to_owned(), json!(String::from_utf8_lossy(bytes))),
            ("logprob".to_owned(), json!(logprob)),
            ("bytes".to_owned(), json!(bytes)),
        ])
    };
    let top: Vec<_> = l.top.iter().map(|&(t, p)| spell(t, p)).collect();
    let mut spelled = spell(l.token, l.logprob);
    spelled.insert("top_logprobs".to_owned(), json!(top));
    spelled.into()
}
