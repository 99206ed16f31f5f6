//! Input items: from JSON to the messages that a model reads, and to the form in which they are listed again. A chain
//! of responses is its items in a row, so this is also how an earlier output becomes part of a later prompt.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::tools;
use crate::api::many::{MESSAGES_MAX, Many};
use crate::api::problem::Problem;
use crate::api::{parts, tool_fields};
use crate::error::Error;
use crate::protocol::{ChatMessage, FunctionCall, ToolCall};
use crate::text::FREE_TEXT;

/// The items of a request's `input`, each checked and in its listed form, yet without the ids that were not given. Items that
/// say nothing to a model that reads text are left out: what OpenAI's servers ran, and thoughts that only they can read.
///
/// # Errors
/// 400 with the path of what is wrong.
pub(super) fn items(input: Input) -> Result<Vec<Value>, Problem> {
    match input {
        Input::Text(text) => Ok(vec![message_item("user", &json!([{"type": "input_text", "text": text}]))]),
        Input::Items(items) => {
            // What the user asks about now; what came before it is history, in which nothing is refused.
            let asked = items.0.iter().rposition(|item| item["role"] == "user");
            let items = items.0.into_iter().enumerate();
            let items = items.map(|(i, item)| self::item(item, &format!("input[{i}]"), asked == Some(i)));
            items.filter_map(Result::transpose).collect()
        }
        Input::Other(other) => Err(wrong("input", "a string or a list of items", &other)),
    }
}

/// The id of the item that `item` stands for, if it refers to one.
pub(super) fn reference(item: &Value) -> Option<&str> {
    (item["type"] == "item_reference").then(|| text_of(item, "id"))
}

/// A request's `input` as it came.
#[derive(Debug)]
pub(super) enum Input {
    Text(String),
    Items(Many<Value, MESSAGES_MAX>),
    /// No input, but JSON.
    Other(Value),
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct InputVisitor;
        impl<'de> Visitor<'de> for InputVisitor {
            type Value = Input;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of items")
            }
            fn visit_str<E>(self, text: &str) -> Result<Input, E> {
                Ok(Input::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Input, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(items)).map(Input::Items)
            }
            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Input, A::Error> {
                Deserialize::deserialize(MapAccessDeserializer::new(fields)).map(Input::Other)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Input, E> {
                Ok(Input::Other(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Input, E> {
                Ok(Input::Other(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Input, E> {
                Ok(Input::Other(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Input, E> {
                Ok(Input::Other(value.into()))
            }
        }
        d.deserialize_any(InputVisitor)
    }
}

/// What the model reads for `items`, which [`items`] or an answer made.
pub(super) fn messages(items: &[Value]) -> Vec<ChatMessage> {
    let mut messages: Vec<ChatMessage> = Vec::new();
    let mut reasoning = None;
    for item in items {
        match text_of(item, "type") {
            "reasoning" => reasoning = Some(joined(&item["content"])).filter(|text| !text.is_empty()),
            "function_call" | "custom_tool_call" => {
                let call = tool_call(item);
                match messages.last_mut().filter(|m| m.role == "assistant" && reasoning.is_none()) {
                    // A turn that speaks and calls, or calls more than once, is one message to a template.
                    Some(message) => message.tool_calls.push(call),
                    None => messages.push(ChatMessage {
                        tool_calls: vec![call],
                        reasoning_content: reasoning.take(),
                        ..ChatMessage::new("assistant", "")
                    }),
                }
            }
            "function_call_output" | "custom_tool_call_output" => messages.push(ChatMessage {
                tool_call_id: Some(text_of(item, "call_id").to_owned()),
                ..ChatMessage::new("tool", output_text(&item["output"]))
            }),
            _ => {
                let role = text_of(item, "role");
                let thought = if role == "assistant" { reasoning.take() } else { None };
                let message = ChatMessage::new(role, joined(&item["content"]));
                messages.push(ChatMessage { reasoning_content: thought, ..message });
            }
        }
    }
    messages
}

fn item(item: Value, path: &str, is_asked: bool) -> Result<Option<Value>, Problem> {
    let Value::Object(fields) = item else { return Err(wrong(path, "an object", &item)) };
    let kind = match fields.get("type") {
        None | Some(Value::Null) if fields.contains_key("role") => "message",
        // OpenAI's libraries write a reference without a type.
        None | Some(Value::Null) => "item_reference",
        Some(Value::String(kind)) => kind.as_str(),
        Some(other) => return Err(wrong(&format!("{path}.type"), "a string", other)),
    };
    let mut item = match kind {
        "message" => message(&fields, path, is_asked)?,
        "function_call" => json!({
            "type": kind, "status": "completed", "call_id": string(&fields, "call_id", path)?,
            "name": string(&fields, "name", path)?, "arguments": string(&fields, "arguments", path)?,
        }),
        "custom_tool_call" => json!({
            "type": kind, "status": "completed", "call_id": string(&fields, "call_id", path)?,
            "name": string(&fields, "name", path)?, "input": string(&fields, "input", path)?,
        }),
        "function_call_output" | "custom_tool_call_output" => json!({
            "type": kind, "status": "completed", "call_id": string(&fields, "call_id", path)?,
            "output": output(&fields, path)?,
        }),
        "reasoning" => reasoning(&fields, path)?,
        "item_reference" => return Ok(Some(json!({"type": kind, "id": string(&fields, "id", path)?}))),
        kind => match foreign(kind, &fields) {
            Some(item) => item,
            None => return Ok(None),
        },
    };
    for name in ["id", "namespace"] {
        if let Some(Value::String(text)) = fields.get(name) {
            item[name] = json!(text);
        }
    }
    Ok(Some(item))
}

/// An item of a tool that OpenAI's servers or its own clients have built in. A call that the client answered (it has a `call_id`)
/// is told as a function's, named after the type, with its other fields as arguments; others are left out.
fn foreign(kind: &str, fields: &Map<String, Value>) -> Option<Value> {
    let call_id = fields.get("call_id")?.as_str()?;
    if kind.ends_with("_output") {
        let output = match fields.get("output") {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        return Some(json!({
            "type": "function_call_output", "status": "completed", "call_id": call_id, "output": output,
        }));
    }
    let name = kind.strip_suffix("_call")?;
    let own = fields.iter().filter(|(field, _)| !["type", "id", "call_id", "status"].contains(&field.as_str()));
    let arguments: Map<String, Value> = own.map(|(field, value)| (field.clone(), value.clone())).collect();
    Some(json!({
        "type": "function_call", "status": "completed", "call_id": call_id, "name": name,
        "arguments": Value::Object(arguments).to_string(),
    }))
}

fn message(fields: &Map<String, Value>, path: &str, is_asked: bool) -> Result<Value, Problem> {
    let role = string(fields, "role", path)?;
    if !["user", "assistant", "system", "developer"].contains(&role) {
        let param = format!("{path}.role");
        let message = format!("`{param}` must be user, assistant, system or developer, got {role:?}");
        return Err(Error::invalid(param, message).into());
    }
    let path = format!("{path}.content");
    let (own, annotated) = if role == "assistant" { ("output_text", true) } else { ("input_text", false) };
    let content = match fields.get("content") {
        Some(Value::String(text)) => vec![part(own, annotated, text)],
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .map(|(i, p)| Ok(part(own, annotated, &part_text(p, &format!("{path}[{i}]"), is_asked)?)))
            .collect::<Result<_, Problem>>()?,
        other => return Err(given(&path, "a string or a list of content parts", other)),
    };
    Ok(message_item(role, &content.into()))
}

fn message_item(role: &str, content: &Value) -> Value {
    json!({"type": "message", "status": "completed", "role": role, "content": content})
}

fn part(kind: &str, annotated: bool, text: &str) -> Value {
    let mut part = json!({"type": kind, "text": text});
    if annotated {
        part["annotations"] = json!([]);
    }
    part
}

fn part_text(part: &Value, path: &str, is_asked: bool) -> Result<String, Problem> {
    let Value::Object(fields) = part else { return Err(wrong(path, "an object", part)) };
    match string(fields, "type", path)? {
        "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => {
            string(fields, "text", path).map(str::to_owned)
        }
        "refusal" => string(fields, "refusal", path).map(str::to_owned),
        kind => parts::foreign(kind, &format!("{path}.type"), is_asked),
    }
}

fn output(fields: &Map<String, Value>, path: &str) -> Result<Value, Problem> {
    let path = format!("{path}.output");
    match fields.get("output") {
        Some(Value::String(text)) => Ok(json!(text)),
        Some(Value::Array(parts)) => {
            let parts = parts.iter().enumerate();
            let parts =
                parts.map(|(i, p)| Ok(part("input_text", false, &part_text(p, &format!("{path}[{i}]"), false)?)));
            Ok(parts.collect::<Result<Vec<_>, Problem>>()?.into())
        }
        other => Err(given(&path, "a string or a list of content parts", other)),
    }
}

/// Summaries are for people; what goes back to the model is the text itself, where a client has it.
fn reasoning(fields: &Map<String, Value>, path: &str) -> Result<Value, Problem> {
    let path = format!("{path}.content");
    let content = match fields.get("content") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .map(|(i, p)| Ok(part("reasoning_text", false, &part_text(p, &format!("{path}[{i}]"), false)?)))
            .collect::<Result<_, Problem>>()?,
        other => return Err(given(&path, "a list of content parts", other)),
    };
    let summary = fields.get("summary").cloned().unwrap_or_else(|| json!([]));
    Ok(json!({"type": "reasoning", "summary": summary, "content": content}))
}

fn tool_call(item: &Value) -> ToolCall {
    let name = tools::model_name(item["namespace"].as_str(), text_of(item, "name"));
    let arguments = match item.get("input") {
        Some(input) => json!({FREE_TEXT: input}),
        None => tool_fields::arguments(json!(text_of(item, "arguments"))),
    };
    ToolCall { id: text_of(item, "call_id").to_owned(), kind: "function", function: FunctionCall { name, arguments } }
}

fn output_text(output: &Value) -> String {
    output.as_str().map_or_else(|| joined(output), str::to_owned)
}

fn joined(parts: &Value) -> String {
    parts.as_array().into_iter().flatten().map(|part| text_of(part, "text")).collect()
}

fn text_of<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn string<'a>(fields: &'a Map<String, Value>, name: &str, path: &str) -> Result<&'a str, Problem> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text),
        other => Err(given(&format!("{path}.{name}"), "a string", other)),
    }
}

/// A field that is of the wrong type, or not there.
pub(super) fn given(param: &str, rule: &str, value: Option<&Value>) -> Problem {
    match value {
        Some(value) => wrong(param, rule, value),
        None => Error::invalid(param, format!("`{param}` must be given")).into(),
    }
}

pub(super) fn wrong(param: &str, rule: &str, value: &Value) -> Problem {
    Error::invalid(param, format!("`{param}` must be {rule}, got {value}")).into()
}
