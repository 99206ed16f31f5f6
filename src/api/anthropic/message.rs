//! A message as it is answered: its blocks, its end and its usage, as Anthropic spells them.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use crate::protocol::{FinishReason, Usage};
use crate::stream::StreamLog;
use crate::text::{AnswerParser, Piece};

/// A whole message, and the one without content that a stream begins with.
#[derive(Debug, Serialize)]
pub(super) struct MessageObject<'a> {
    pub(super) id: Cow<'a, str>,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) role: &'static str,
    pub(super) model: Cow<'a, str>,
    pub(super) content: Vec<Block>,
    pub(super) stop_reason: Option<&'static str>,
    pub(super) stop_sequence: Option<String>,
    pub(super) usage: UsageObject,
}

impl<'a> MessageObject<'a> {
    /// Nothing said yet.
    pub(super) fn new(id: impl Into<Cow<'a, str>>, model: impl Into<Cow<'a, str>>, usage: Usage) -> Self {
        let (id, model) = (id.into(), model.into());
        let (kind, role, content, usage) = ("message", "assistant", Vec::new(), usage.into());
        Self { id, kind, role, model, content, stop_reason: None, stop_sequence: None, usage }
    }
}

/// A block of an answer.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block {
    Text {
        text: String,
    },
    /// The signature is Anthropic's proof that it was their model that thought; nobody here asks for one.
    Thinking {
        thinking: String,
        signature: &'static str,
    },
    ToolUse {
        id: String,
        name: String,
        input: Value,
    },
}

/// Token counts. As with Anthropic, prompt tokens are `input_tokens` and those read from the cache together.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct UsageObject {
    input_tokens: usize,
    cache_creation_input_tokens: usize,
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

impl From<Usage> for UsageObject {
    fn from(u: Usage) -> Self {
        Self {
            input_tokens: u.prompt_tokens.saturating_sub(u.cached_tokens),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: u.cached_tokens,
            output_tokens: u.completion_tokens,
        }
    }
}

/// The name of a stream's message.
pub(super) fn message_id(log: &StreamLog) -> String {
    format!("msg_{}", log.id())
}

/// The name of a call: the same each time the log is read.
pub(super) fn call_id(message_id: &str, call_index: usize) -> String {
    format!("toolu_{}_{call_index}", message_id.trim_start_matches("msg_"))
}

/// Why a message ended. A call of a tool goes before a stop sequence: the client has something to do.
pub(super) fn stop_reason(reason: FinishReason, num_calls: usize, stop: Option<&str>) -> &'static str {
    match (reason, num_calls, stop) {
        (FinishReason::Length, ..) => "max_tokens",
        (FinishReason::ToolCalls, ..) | (_, 1.., _) => "tool_use",
        (_, 0, Some(_)) => "stop_sequence",
        (_, 0, None) => "end_turn",
    }
}

/// `text` as blocks, and how many calls are among them. There is at least one block, since clients ask for the first.
pub(super) fn blocks(text: &str, mut parser: AnswerParser, message_id: &str) -> (Vec<Block>, usize) {
    let mut pieces = parser.push(text);
    pieces.extend(parser.finish());
    fold(pieces, message_id)
}

fn fold(pieces: Vec<Piece>, message_id: &str) -> (Vec<Block>, usize) {
    let mut blocks = Blocks::default();
    let mut num_calls = 0;
    for piece in pieces {
        match piece {
            Piece::Content(text) => blocks.text(&text),
            Piece::Reasoning(text) => blocks.thinking(&text),
            Piece::CallBegin { name } => {
                blocks.end_call();
                let id = call_id(message_id, num_calls);
                blocks.done.push(Block::ToolUse { id, name, input: Value::Null });
                blocks.arguments = Some(String::new());
                num_calls += 1;
            }
            Piece::CallArguments(json) => blocks.arguments.get_or_insert_default().push_str(&json),
        }
    }
    blocks.end_call();
    if blocks.done.is_empty() {
        blocks.text("");
    }
    (blocks.done, num_calls)
}

#[derive(Debug, Default)]
struct Blocks {
    done: Vec<Block>,
    /// Of the call that is the last block.
    arguments: Option<String>,
}

impl Blocks {
    fn text(&mut self, more: &str) {
        self.end_call();
        match self.done.last_mut() {
            Some(Block::Text { text }) => text.push_str(more),
            _ => self.done.push(Block::Text { text: more.to_owned() }),
        }
    }

    fn thinking(&mut self, more: &str) {
        self.end_call();
        match self.done.last_mut() {
            Some(Block::Thinking { thinking, .. }) => thinking.push_str(more),
            _ => self.done.push(Block::Thinking { thinking: more.to_owned(), signature: "" }),
        }
    }

    /// A call whose arguments are no object, since the message was cut in them, is left out: `input` must be one, here and
    /// when the client sends the message back.
    fn end_call(&mut self) {
        if let (Some(json), Some(Block::ToolUse { input, .. })) = (self.arguments.take(), self.done.last_mut()) {
            let json = if json.trim().is_empty() { "{}" } else { json.as_str() };
            match serde_json::from_str(json) {
                Ok(object @ Value::Object(_)) => *input = object,
                _ => drop(self.done.pop()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pieces: &[Piece], expect: &str) {
        let (blocks, _) = fold(pieces.to_vec(), "msg_1f");
        assert_eq!(serde_json::to_string(&blocks).expect("blocks serialise"), expect);
    }

    #[test]
    fn pieces_of_one_kind_are_one_block() {
        let call = |name: &str| Piece::CallBegin { name: name.to_owned() };
        let arguments = |json: &str| Piece::CallArguments(json.to_owned());
        check(&[], r#"[{"type":"text","text":""}]"#);
        check(
            &[Piece::Reasoning("a".to_owned()), Piece::Reasoning("b".to_owned()), Piece::Content("c".to_owned())],
            r#"[{"type":"thinking","thinking":"ab","signature":""},{"type":"text","text":"c"}]"#,
        );
        check(
            &[call("f"), arguments("{\"x\":"), arguments("1}"), call("g")],
            concat!(
                r#"[{"type":"tool_use","id":"toolu_1f_0","name":"f","input":{"x":1}},"#,
                r#"{"type":"tool_use","id":"toolu_1f_1","name":"g","input":{}}]"#
            ),
        );
        let cut = r#"[{"type":"text","text":"a"}]"#;
        check(&[Piece::Content("a".to_owned()), call("f"), arguments("{\"x\"")], cut);
    }

    #[test]
    fn a_call_goes_before_a_stop_sequence() {
        assert_eq!(stop_reason(FinishReason::Stop, 0, None), "end_turn");
        assert_eq!(stop_reason(FinishReason::Stop, 0, Some("x")), "stop_sequence");
        assert_eq!(stop_reason(FinishReason::Stop, 1, Some("x")), "tool_use");
        assert_eq!(stop_reason(FinishReason::Length, 1, None), "max_tokens");
    }
}
