//! The stream of Messages: `message_start`, a `ping`, blocks each with its start, deltas and stop, `message_delta`,
//! `message_stop`. Every event is named, none has an id. The message starts when a worker does: only then is it known
//! how much of the prompt came from the cache.

use serde::Serialize;

use super::envelope::ErrorFrame;
use super::message::{Block, MessageObject, UsageObject, call_id, stop_reason};
use crate::api::event_body::{self, Dialect};
use crate::api::fold;
use crate::api::problem::Problem;
use crate::api::sse::SseWriter;
use crate::protocol::{Event, FinishReason, Usage};
use crate::stream::{Entry, Gap, StreamLog};
use crate::text::{AnswerParser, Piece};

/// A reader this many tokens behind gets them as one delta: catching up matters more to it than the grain.
const MERGE_BACKLOG: usize = 64;

/// One client's view of a generation as events of a message.
pub(super) struct MessageEvents {
    id: String,
    model: String,
    prompt_tokens: usize,
    parser: AnswerParser,
    is_started: bool,
    /// Blocks begun.
    num_blocks: usize,
    num_calls: usize,
    /// The kind of the block that was begun last, until its end.
    open: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    ToolUse,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Frame<'a> {
    MessageStart { message: MessageObject<'a> },
    Ping {},
    ContentBlockStart { index: usize, content_block: Block },
    ContentBlockDelta { index: usize, delta: Delta<'a> },
    ContentBlockStop { index: usize },
    MessageDelta { delta: End<'a>, usage: UsageObject },
    MessageStop {},
}

#[derive(Debug, Serialize)]
#[serde(tag = "type")]
enum Delta<'a> {
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
}

#[derive(Debug, Serialize)]
struct End<'a> {
    stop_reason: &'static str,
    stop_sequence: Option<&'a str>,
}

impl Frame<'_> {
    fn write(&self, out: &mut SseWriter) {
        let name = match self {
            Self::MessageStart { .. } => "message_start",
            Self::Ping {} => "ping",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop {} => "message_stop",
        };
        out.named(name, self);
    }
}

impl Dialect for MessageEvents {
    fn open(&mut self, _out: &mut SseWriter) {}

    fn event(&mut self, entry: &Entry, out: &mut SseWriter) {
        match &entry.event {
            Event::Queued { .. } | Event::Prompt { .. } => {}
            Event::Started { cached_tokens, .. } => self.start(*cached_tokens, out),
            Event::Token(token) => {
                self.start(0, out);
                for piece in self.parser.push(&token.text) {
                    self.piece(&piece, out);
                }
            }
            Event::Done { finish_reason, usage, stop } => self.finish(*finish_reason, *usage, stop.as_deref(), out),
            Event::Error(info) => out.named("error", &ErrorFrame::new(&Problem::from(info), None)),
        }
    }

    fn gap(&mut self, gap: Gap, out: &mut SseWriter) -> bool {
        event_body::end_at_gap(self, gap, out)
    }

    /// A client of this dialect does not come back to a stream: it is told that this one ends here.
    fn suspended(&mut self, log: &StreamLog, out: &mut SseWriter) {
        if let Some(info) = fold::suspension(log) {
            out.named("error", &ErrorFrame::new(&Problem::from(&info), None));
        }
    }

    fn merge_backlog(&self) -> Option<usize> {
        Some(MERGE_BACKLOG)
    }
}

impl MessageEvents {
    /// Nothing written yet.
    pub(super) fn new(id: String, model: &str, prompt_tokens: usize, parser: AnswerParser) -> Self {
        let model = model.to_owned();
        Self { id, model, prompt_tokens, parser, is_started: false, num_blocks: 0, num_calls: 0, open: None }
    }

    fn start(&mut self, cached_tokens: usize, out: &mut SseWriter) {
        if std::mem::replace(&mut self.is_started, true) {
            return;
        }
        let usage = Usage { prompt_tokens: self.prompt_tokens, cached_tokens, completion_tokens: 0 };
        Frame::MessageStart { message: MessageObject::new(&self.id, &self.model, usage) }.write(out);
        Frame::Ping {}.write(out);
    }

    fn piece(&mut self, piece: &Piece, out: &mut SseWriter) {
        let delta = match piece {
            Piece::Content(text) => {
                let block = || Block::Text { text: String::new() };
                self.go_on(Kind::Text, block, out);
                Delta::Text { text }
            }
            Piece::Reasoning(thinking) => {
                let block = || Block::Thinking { thinking: String::new(), signature: "" };
                self.go_on(Kind::Thinking, block, out);
                Delta::Thinking { thinking }
            }
            Piece::CallBegin { name } => {
                let id = call_id(&self.id, self.num_calls);
                self.num_calls += 1;
                let input = serde_json::json!({});
                self.begin(Kind::ToolUse, Block::ToolUse { id, name: name.clone(), input }, out);
                return;
            }
            Piece::CallArguments(partial_json) => Delta::InputJson { partial_json },
        };
        Frame::ContentBlockDelta { index: self.num_blocks.saturating_sub(1), delta }.write(out);
    }

    /// Begins a block unless one of its kind is open.
    fn go_on(&mut self, kind: Kind, block: impl FnOnce() -> Block, out: &mut SseWriter) {
        if self.open != Some(kind) {
            self.begin(kind, block(), out);
        }
    }

    fn begin(&mut self, kind: Kind, content_block: Block, out: &mut SseWriter) {
        self.end_block(out);
        Frame::ContentBlockStart { index: self.num_blocks, content_block }.write(out);
        self.num_blocks += 1;
        self.open = Some(kind);
    }

    fn end_block(&mut self, out: &mut SseWriter) {
        if self.open.take().is_some() {
            Frame::ContentBlockStop { index: self.num_blocks - 1 }.write(out);
        }
    }

    fn finish(&mut self, reason: FinishReason, usage: Usage, stop: Option<&str>, out: &mut SseWriter) {
        self.start(usage.cached_tokens, out);
        for piece in self.parser.finish() {
            self.piece(&piece, out);
        }
        if self.num_blocks == 0 {
            // Clients ask for the first block.
            self.begin(Kind::Text, Block::Text { text: String::new() }, out);
        }
        self.end_block(out);
        let stop_reason = stop_reason(reason, self.num_calls, stop);
        let stop_sequence = stop.filter(|_| stop_reason == "stop_sequence");
        Frame::MessageDelta { delta: End { stop_reason, stop_sequence }, usage: usage.into() }.write(out);
        Frame::MessageStop {}.write(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::AnswerFormat;

    #[test]
    fn thoughts_text_and_calls_are_blocks_of_their_own() {
        let parser = AnswerParser::new(&AnswerFormat::default());
        let mut events = MessageEvents::new("msg_1f".to_owned(), "m", 1, parser);
        let mut out = SseWriter::default();
        events.start(0, &mut out);
        out.take();
        let arguments = |json: &str| Piece::CallArguments(json.to_owned());
        let pieces = [
            Piece::Reasoning("a".to_owned()),
            Piece::Content("b".to_owned()),
            Piece::Content("c".to_owned()),
            Piece::CallBegin { name: "f".to_owned() },
            arguments("{\"x\":"),
            arguments("1}"),
            Piece::CallBegin { name: "g".to_owned() },
        ];
        pieces.iter().for_each(|piece| events.piece(piece, &mut out));
        events.finish(FinishReason::Stop, Usage::default(), None, &mut out);
        let text = String::from_utf8(out.take().to_vec()).expect("UTF-8");
        let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let expect = [
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"a"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"b"}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"c"}}"#,
            r#"{"type":"content_block_stop","index":1}"#,
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_1f_0","name":"f","input":{}}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"x\":"}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"1}"}}"#,
            r#"{"type":"content_block_stop","index":2}"#,
            r#"{"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"toolu_1f_1","name":"g","input":{}}}"#,
            r#"{"type":"content_block_stop","index":3}"#,
        ];
        assert_eq!(lines[..lines.len() - 2], expect);
        assert!(lines[lines.len() - 2].contains(r#""stop_reason":"tool_use""#), "{text}");
    }
}
