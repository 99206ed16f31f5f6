//! A log read as a response: entry by entry into numbered events and an object. Nothing but the log and the request goes
//! in, so that whoever reads the same log sees the same events under the same numbers.
//!
//! ```text
//! queued  -> response.created, response.queued
//! started -> response.in_progress
//! token   -> pieces: open an item where the kind changes (closing the one before), then a delta
//! end     -> close the open item, then response.completed, .incomplete, .cancelled or .failed
//! ```

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::described::Described;
use super::json::{ObjectText, text};
use super::tools::ToolNames;
use crate::api::tool_fields;
use crate::error::ErrorKind;
use crate::protocol::{ErrorInfo, Event, FinishReason, TokenEvent, TokenLogprob, Usage};
use crate::stream::Entry;
use crate::text::{AnswerParser, Piece, Tokenizer};

/// What OpenAI's clients are told where a probability is 0: JSON has no infinity.
const LOGPROB_MIN: f32 = -9999.0;

/// An event of the wire.
pub(super) struct Emitted {
    /// Its type.
    pub(super) name: &'static str,
    /// Its data, as JSON.
    pub(super) data: String,
}

/// How far a log has been read.
pub(super) struct Assembly {
    described: Arc<Described>,
    tokenizer: Arc<Tokenizer>,
    parser: AnswerParser,
    next_number: u64,
    /// Events before this number are counted and not written.
    from: u64,
    status: &'static str,
    is_created: bool,
    is_started: bool,
    /// Items that are complete, each as JSON.
    output: Vec<String>,
    open: Option<Open>,
    num_calls: usize,
    /// Log-probabilities of text that the parser holds back, as the elements of a JSON list.
    held_logprobs: String,
    num_reasoning_tokens: usize,
    usage: Option<Usage>,
    failure: Option<ErrorInfo>,
    emitted: Vec<Emitted>,
}

/// The item that is being written.
struct Open {
    kind: Kind,
    id: String,
    text: String,
    /// The elements of a JSON list.
    logprobs: String,
    /// Of a call: the name that the model knows the tool by.
    name: String,
    call_id: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    Call,
    /// A call of a tool that takes free text.
    CustomCall,
}

impl Kind {
    /// What its ids begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Message => "msg",
            Self::Reasoning => "rs",
            Self::Call => "fc",
            Self::CustomCall => "ctc",
        }
    }
}

impl Assembly {
    /// Of a log of which nothing was read, for a reader who wants the events from number `from` on; an object needs none.
    pub(super) fn new(described: Arc<Described>, tokenizer: Arc<Tokenizer>, from: u64) -> Self {
        let parser = AnswerParser::new(&described.format);
        Self {
            described,
            tokenizer,
            parser,
            next_number: 0,
            from,
            status: "queued",
            is_created: false,
            is_started: false,
            output: Vec::new(),
            open: None,
            num_calls: 0,
            held_logprobs: String::new(),
            num_reasoning_tokens: 0,
            usage: None,
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
            Event::Queued { .. } | Event::Prompt { .. } => {}
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

    /// The memory of what was said, about; its object is as long.
    pub(super) fn num_bytes(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |open| open.text.len() + open.logprobs.len());
        self.output.iter().map(String::len).sum::<usize>() + open + self.held_logprobs.len()
    }

    /// The items that are complete.
    pub(super) fn output(&self) -> impl Iterator<Item = Value> {
        // What was written here can be read.
        self.output.iter().filter_map(|item| serde_json::from_str(item).ok())
    }

    /// The response as it stands, what is being written included, as JSON.
    pub(super) fn object(&self) -> String {
        let described = &self.described;
        let open = self.open.as_ref().map(|open| open.item("in_progress", &described.names));
        let output = self.output.iter().chain(&open).map(String::as_str);
        let incomplete = (self.status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let failure = self.failure.as_ref().filter(|_| self.status == "failed");
        let error = failure.map(|info| json!({"code": "server_error", "message": info.message}));
        let object = ObjectText::new()
            .field("id", &described.response_id())
            .field("object", "response")
            .field("created_at", &described.created_s)
            .field("status", self.status)
            .field("error", &error)
            .field("incomplete_details", &incomplete)
            .field("model", &described.model)
            .list("output", output)
            .field("usage", &self.usage.map(|usage| self.usage_object(usage)));
        described.echo.iter().fold(object, |object, (name, value)| object.field(name, value)).end()
    }

    fn start(&mut self) {
        if !std::mem::replace(&mut self.is_started, true) {
            self.status = "in_progress";
            self.emit_response("response.in_progress");
        }
    }

    fn token(&mut self, token: &TokenEvent) {
        if self.described.with_logprobs {
            token.logprobs.iter().for_each(|l| push_element(&mut self.held_logprobs, &logprob(l, &self.tokenizer)));
        }
        let pieces = self.parser.push(&token.text);
        if !pieces.is_empty() && pieces.iter().all(|piece| matches!(piece, Piece::Reasoning(_))) {
            self.num_reasoning_tokens += token.tokens.len();
        }
        pieces.into_iter().for_each(|piece| self.piece(piece));
    }

    fn piece(&mut self, piece: Piece) {
        // They belong to content; other text has no place for them.
        let logprobs = std::mem::take(&mut self.held_logprobs);
        match piece {
            Piece::Content(text) => {
                self.open(Kind::Message);
                self.emit_open("response.output_text.delta", |data, _| {
                    data.field("content_index", &0).field("delta", &text).list("logprobs", elements(&logprobs))
                });
                self.append(&text, &logprobs);
            }
            Piece::Reasoning(text) => {
                self.open(Kind::Reasoning);
                self.emit_open("response.reasoning_text.delta", |data, _| {
                    data.field("content_index", &0).field("delta", &text)
                });
                self.append(&text, "");
            }
            Piece::CallBegin { name } => self.begin_call(name),
            Piece::CallArguments(text) => {
                // Free text stands within JSON; it is told once the call is whole.
                if self.open.as_ref().is_some_and(|open| open.kind == Kind::Call) {
                    self.emit_open("response.function_call_arguments.delta", |data, _| data.field("delta", &text));
                }
                self.append(&text, "");
            }
        }
    }

    fn append(&mut self, text: &str, logprobs: &str) {
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
            push_element(&mut open.logprobs, logprobs);
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
        let kind = if self.described.names.is_custom(&name) { Kind::CustomCall } else { Kind::Call };
        self.begin(kind, name, call_id);
    }

    fn begin(&mut self, kind: Kind, name: String, call_id: String) {
        self.close("completed");
        let id = format!("{}_{}_{}", kind.prefix(), self.described.id, self.output.len());
        let open = Open { kind, id, text: String::new(), logprobs: String::new(), name, call_id };
        let (output_index, item) = (self.output.len(), open.bare(&self.described.names));
        self.emit("response.output_item.added", |data| data.field("output_index", &output_index).joined("item", &item));
        self.open = Some(open);
        self.emit_part("response.content_part.added");
    }

    /// Ends the open item, if there is one.
    fn close(&mut self, status: &'static str) {
        let Some(kind) = self.open.as_ref().map(|open| open.kind) else { return };
        match kind {
            Kind::Message => self.emit_open("response.output_text.done", |data, open| {
                data.field("content_index", &0).field("text", &open.text).list("logprobs", elements(&open.logprobs))
            }),
            Kind::Reasoning => self.emit_open("response.reasoning_text.done", |data, open| {
                data.field("content_index", &0).field("text", &open.text)
            }),
            Kind::Call => {
                let described = self.described.clone();
                self.emit_open("response.function_call_arguments.done", |data, open| {
                    data.field("name", described.names.of(&open.name).1).field("arguments", &open.text)
                });
            }
            Kind::CustomCall => {
                let input = |open: &Open| tool_fields::free_text(&open.text);
                self.emit_open("response.custom_tool_call_input.delta", |data, open| data.field("delta", &input(open)));
                self.emit_open("response.custom_tool_call_input.done", |data, open| data.field("input", &input(open)));
            }
        }
        self.emit_part("response.content_part.done");
        let Some(item) = self.open.take().map(|open| open.item(status, &self.described.names)) else { return };
        let output_index = self.output.len();
        self.emit("response.output_item.done", |data| data.field("output_index", &output_index).joined("item", &item));
        self.output.push(item);
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
        self.emit("error", |data| {
            data.field("code", "server_error").field("message", &info.message).field("param", &Value::Null)
        });
        self.emit_response("response.failed");
    }

    fn emit_response(&mut self, name: &'static str) {
        let response = if self.is_wanted() { self.object() } else { String::new() };
        self.emit(name, |data| data.joined("response", &response));
    }

    /// An event about the open item's part, if it has one.
    fn emit_part(&mut self, name: &'static str) {
        if self.open.as_ref().is_some_and(|open| !open.is_call()) {
            self.emit_open(name, |data, open| {
                data.field("content_index", &0).joined("part", &open.part().unwrap_or_default())
            });
        }
    }

    /// An event of the open item.
    fn emit_open(&mut self, name: &'static str, more: impl FnOnce(ObjectText, &Open) -> ObjectText) {
        let Some(open) = self.open.take() else { return };
        let output_index = self.output.len();
        self.emit(name, |data| more(data.field("item_id", &open.id).field("output_index", &output_index), &open));
        self.open = Some(open);
    }

    fn emit(&mut self, name: &'static str, more: impl FnOnce(ObjectText) -> ObjectText) {
        if self.is_wanted() {
            let data = ObjectText::new().field("type", name).field("sequence_number", &self.next_number);
            self.emitted.push(Emitted { name, data: more(data).end() });
        }
        self.next_number += 1;
    }

    /// Whether the next event is.
    fn is_wanted(&self) -> bool {
        self.next_number >= self.from
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
    fn is_call(&self) -> bool {
        matches!(self.kind, Kind::Call | Kind::CustomCall)
    }

    /// As it is first told of.
    fn bare(&self, names: &ToolNames) -> String {
        if self.is_call() { self.item("in_progress", names) } else { self.with_content("in_progress", "[]") }
    }

    fn item(&self, status: &str, names: &ToolNames) -> String {
        if let Some(part) = self.part() {
            return self.with_content(status, &format!("[{part}]"));
        }
        let (namespace, name) = names.of(&self.name);
        let kind = if self.kind == Kind::CustomCall { "custom_tool_call" } else { "function_call" };
        let item = ObjectText::new().field("id", &self.id).field("type", kind).field("status", status);
        let item = item.field("call_id", &self.call_id).field("name", name);
        let item = match namespace {
            Some(namespace) => item.field("namespace", namespace),
            None => item,
        };
        match self.kind {
            Kind::CustomCall => item.field("input", &tool_fields::free_text(&self.text)).end(),
            _ => item.field("arguments", &self.text).end(),
        }
    }

    fn with_content(&self, status: &str, content: &str) -> String {
        let item = ObjectText::new().field("id", &self.id);
        if self.kind == Kind::Message {
            let item = item.field("type", "message").field("status", status).field("role", "assistant");
            return item.joined("content", content).end();
        }
        let item = item.field("type", "reasoning").joined("summary", "[]").joined("content", content);
        item.field("status", status).end()
    }

    /// The one content part of an item that has parts.
    fn part(&self) -> Option<String> {
        let part = match self.kind {
            Kind::Message => ObjectText::new()
                .field("type", "output_text")
                .field("text", &self.text)
                .joined("annotations", "[]")
                .list("logprobs", elements(&self.logprobs)),
            Kind::Reasoning => ObjectText::new().field("type", "reasoning_text").field("text", &self.text),
            Kind::Call | Kind::CustomCall => return None,
        };
        Some(part.end())
    }
}

/// Appends to the elements of a list.
fn push_element(list: &mut String, elements: &str) {
    if !list.is_empty() && !elements.is_empty() {
        list.push(',');
    }
    list.push_str(elements);
}

/// Elements that are joined already, as one.
fn elements(list: &str) -> Option<&str> {
    (!list.is_empty()).then_some(list)
}

/// A log-probability as JSON.
fn logprob(l: &TokenLogprob, tokenizer: &Tokenizer) -> String {
    #[derive(Serialize)]
    struct Spelled<'a> {
        token: Cow<'a, str>,
        logprob: f32,
        bytes: &'a [u8],
    }
    #[derive(Serialize)]
    struct Measured<'a> {
        #[serde(flatten)]
        token: Spelled<'a>,
        top_logprobs: Vec<Spelled<'a>>,
    }
    let spell = |token, logprob: f32| {
        let bytes = tokenizer.token_bytes(token);
        let logprob = if logprob.is_finite() { logprob } else { LOGPROB_MIN };
        Spelled { token: String::from_utf8_lossy(bytes), logprob, bytes }
    };
    let top_logprobs = l.top.iter().map(|&(t, p)| spell(t, p)).collect();
    text(&Measured { token: spell(l.token, l.logprob), top_logprobs })
}
