//! Turns of a conversation: Anthropic's content blocks to the messages that chat templates know. A turn can become
//! several messages, since results of tools are messages of their own there.

use std::collections::HashMap;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use crate::api::many::{Many, PARTS_MAX};
use crate::api::problem::Problem;
use crate::api::{parts, tool_fields};
use crate::error::Error;
use crate::protocol::{ChatMessage, FunctionCall, ToolCall};

/// One turn as it came.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Turn {
    pub(super) role: Option<String>,
    content: Option<Content>,
}

/// A string, or a list of blocks.
#[derive(Debug)]
pub(super) enum Content {
    Text(String),
    Blocks(Many<ContentBlock, PARTS_MAX>),
}

/// A block with the fields of every type; which ones it must have depends on `type`. `cache_control` and `citations`
/// are not read: prefixes are cached without being asked.
#[derive(Debug, serde::Deserialize)]
pub(super) struct ContentBlock {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    thinking: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    tool_use_id: Option<String>,
    content: Option<Content>,
    is_error: Option<bool>,
    /// Of an image or a document.
    source: Option<Value>,
}

/// The conversation, `system` first.
///
/// # Errors
/// 400 with the path of what is missing, of a type that cannot be read, and of a result that answers no call.
pub(super) fn messages(system: Option<Content>, turns: Vec<Turn>) -> Result<Vec<ChatMessage>, Problem> {
    if turns.is_empty() {
        return Err(Error::invalid("messages", "`messages` must have at least one message, got none").into());
    }
    let mut reading = Reading::default();
    if let Some(system) = system {
        reading.messages.push(ChatMessage::new("system", system.into_text("system", false)?));
    }
    // What the user asks about now; what came before it is history, in which nothing is refused.
    let asked = turns.iter().rposition(|turn| turn.role.as_deref() == Some("user"));
    for (i, turn) in turns.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let role = required(turn.role, &path, "role")?;
        let content = required(turn.content, &path, "content")?;
        match role.as_str() {
            "user" => reading.user(content, &format!("{path}.content"), asked == Some(i))?,
            "assistant" => reading.assistant(content, &format!("{path}.content"))?,
            "system" => {
                let text = content.into_text(&format!("{path}.content"), false)?;
                reading.messages.push(ChatMessage::new("system", text));
            }
            _ => return Err(wrong(&format!("{path}.role"), "must be one of user, assistant, system", Some(&role))),
        }
    }
    Ok(reading.messages)
}

#[derive(Debug, Default)]
struct Reading {
    messages: Vec<ChatMessage>,
    /// The functions that were called so far, by the calls' ids: templates want to know which tool answers.
    called: HashMap<String, String>,
}

impl Reading {
    fn user(&mut self, content: Content, path: &str, is_asked: bool) -> Result<(), Problem> {
        let blocks = match content {
            Content::Text(text) => {
                self.messages.push(ChatMessage::new("user", text));
                return Ok(());
            }
            Content::Blocks(blocks) => blocks.0,
        };
        let mut text: Option<String> = blocks.is_empty().then(String::new);
        for (j, block) in blocks.into_iter().enumerate() {
            let path = format!("{path}[{j}]");
            match block.kind.as_deref() {
                Some("text") => {
                    text.get_or_insert_default().push_str(&required(block.text, &path, "text")?);
                }
                // Of a search that Anthropic's servers ran; it is in their own form, for their own models.
                Some(kind) if kind.ends_with("_tool_result") => {}
                Some("tool_result") => {
                    self.messages.extend(text.take().map(|text| ChatMessage::new("user", text)));
                    let result = self.result(block, &path)?;
                    self.messages.push(result);
                }
                Some(_) => text.get_or_insert_default().push_str(&block.foreign(&path, is_asked)?),
                None => return required(None, &path, "type"),
            }
        }
        self.messages.extend(text.map(|text| ChatMessage::new("user", text)));
        Ok(())
    }

    fn result(&self, block: ContentBlock, path: &str) -> Result<ChatMessage, Problem> {
        let id = required(block.tool_use_id, path, "tool_use_id")?;
        let Some(name) = self.called.get(&id) else {
            return Err(wrong(&format!("{path}.tool_use_id"), "must be the id of a `tool_use` before it", Some(&id)));
        };
        let mut text = match block.content {
            Some(content) => content.into_text(&format!("{path}.content"), false)?,
            None => String::new(),
        };
        if block.is_error.unwrap_or(false) {
            // Templates have no word for it, and the model must hear of it.
            text.insert_str(0, "Error: ");
        }
        Ok(ChatMessage { tool_call_id: Some(id), name: Some(name.clone()), ..ChatMessage::new("tool", text) })
    }

    fn assistant(&mut self, content: Content, path: &str) -> Result<(), Problem> {
        let mut message = ChatMessage::new("assistant", "");
        let blocks = match content {
            Content::Text(text) => {
                message.content = text;
                Vec::new()
            }
            Content::Blocks(blocks) => blocks.0,
        };
        for (j, block) in blocks.into_iter().enumerate() {
            let path = format!("{path}[{j}]");
            match block.kind.as_deref() {
                Some("text") => message.content.push_str(&required(block.text, &path, "text")?),
                Some("thinking") => {
                    let thinking = required(block.thinking, &path, "thinking")?;
                    message.reasoning_content.get_or_insert_default().push_str(&thinking);
                }
                Some("tool_use") => {
                    let id = required(block.id, &path, "id")?;
                    let name = required(block.name, &path, "name")?;
                    let arguments = tool_fields::arguments(required(block.input, &path, "input")?);
                    self.called.insert(id.clone(), name.clone());
                    let function = FunctionCall { name, arguments };
                    message.tool_calls.push(ToolCall { id, kind: "function", function });
                }
                // Thoughts that only Anthropic can read, and what their servers ran.
                Some(_) => {}
                None => return required(None, &path, "type"),
            }
        }
        self.messages.push(message);
        Ok(())
    }
}

impl ContentBlock {
    /// What the model reads of a block that is no text: the text of a document that has one, else that there was something.
    fn foreign(self, path: &str, is_asked: bool) -> Result<String, Problem> {
        let source = self.source.as_ref();
        if let Some(text) = source.filter(|source| source["type"] == "text").and_then(|source| source["data"].as_str())
        {
            return Ok(text.to_owned());
        }
        parts::foreign(self.kind.as_deref().unwrap_or_default(), &format!("{path}.type"), is_asked)
    }
}

impl Content {
    /// Its text; a short text stands for what is none.
    fn into_text(self, path: &str, is_asked: bool) -> Result<String, Problem> {
        let blocks = match self {
            Self::Text(text) => return Ok(text),
            Self::Blocks(blocks) => blocks.0,
        };
        let mut text = String::new();
        for (j, block) in blocks.into_iter().enumerate() {
            let path = format!("{path}[{j}]");
            match block.kind.as_deref() {
                Some("text") => text.push_str(&required(block.text, &path, "text")?),
                Some(_) => text.push_str(&block.foreign(&path, is_asked)?),
                None => return required(None, &path, "type"),
            }
        }
        Ok(text)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content blocks")
            }
            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, blocks: A) -> Result<Content, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(blocks)).map(Content::Blocks)
            }
        }
        d.deserialize_any(ContentVisitor)
    }
}

/// `value`, which `field` of the object at `path` must have.
pub(super) fn required<T>(value: Option<T>, path: &str, field: &str) -> Result<T, Problem> {
    value.ok_or_else(|| {
        let param = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
        Error::invalid(param.clone(), format!("`{param}` must be given")).into()
    })
}

/// A rule that a word breaks.
pub(super) fn wrong(param: &str, rule: &str, got: Option<&str>) -> Problem {
    let got = got.map_or_else(|| "nothing".to_owned(), |got| format!("{got:?}"));
    Error::invalid(param, format!("`{param}` {rule}, got {got}")).into()
}

/// A rule that any other value breaks.
pub(super) fn wrong_value(param: &str, rule: &str, got: impl fmt::Display) -> Problem {
    Error::invalid(param, format!("`{param}` {rule}, got {got}")).into()
}
