//! Tools and calls as they come in JSON: the fields, their types and which must be there. What they may say is
//! `service/tool_rules.rs`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;
use crate::error::Error;
use crate::protocol::{Function, FunctionCall, Tool, ToolCall, ToolChoice};

/// The only kind of tool and call there is.
const FUNCTION: &str = "function";

/// One of `tools`.
#[derive(Debug, Deserialize)]
pub(crate) struct ToolFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<FunctionFields>,
}

#[derive(Debug, Deserialize)]
struct FunctionFields {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// One of an assistant's `tool_calls`.
#[derive(Debug, Deserialize)]
pub(crate) struct CallFields {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<CalledFields>,
}

#[derive(Debug, Deserialize)]
struct CalledFields {
    name: Option<String>,
    arguments: Option<String>,
}

/// The tools of a request.
///
/// # Errors
/// 400 for a tool of another type or without a name.
pub(crate) fn tools(fields: Vec<ToolFields>) -> Result<Vec<Tool>, Problem> {
    let tool = |(i, tool): (usize, ToolFields)| {
        let path = format!("tools[{i}]");
        check_kind(&path, tool.kind.as_deref())?;
        let function = given(tool.function, &format!("{path}.function"))?;
        let name = given(function.name, &format!("{path}.function.name"))?;
        Ok(Tool {
            kind: FUNCTION,
            function: Function {
                name,
                description: function.description,
                parameters: function.parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}})),
                strict: function.strict.unwrap_or(false),
            },
        })
    };
    fields.into_iter().enumerate().map(tool).collect()
}

/// What `tool_choice` asks for.
///
/// # Errors
/// 400 for anything but the three words and an object that names a function.
pub(crate) fn choice(value: &Value) -> Result<ToolChoice, Problem> {
    match value {
        Value::String(word) if word == "auto" => Ok(ToolChoice::Auto),
        Value::String(word) if word == "none" => Ok(ToolChoice::None),
        Value::String(word) if word == "required" => Ok(ToolChoice::Required),
        Value::Object(fields) => {
            check_kind("tool_choice", fields.get("type").and_then(Value::as_str))?;
            let name = fields.get("function").and_then(|f| f.get("name")).and_then(Value::as_str);
            Ok(ToolChoice::Named(given(name, "tool_choice.function.name")?.to_owned()))
        }
        other => {
            let message = format!(
                "`tool_choice` must be \"auto\", \"none\", \"required\" or an object that names a function, got {other}"
            );
            Err(Error::invalid("tool_choice", message).into())
        }
    }
}

/// The calls of a message; `path` is the list's.
///
/// # Errors
/// 400 for a call of another type, and for one without an id, a name or arguments.
pub(crate) fn calls(fields: Vec<CallFields>, path: &str) -> Result<Vec<ToolCall>, Problem> {
    let call = |(i, call): (usize, CallFields)| {
        let path = format!("{path}[{i}]");
        let id = given(call.id, &format!("{path}.id"))?;
        check_kind(&path, call.kind.as_deref())?;
        let function = given(call.function, &format!("{path}.function"))?;
        let name = given(function.name, &format!("{path}.function.name"))?;
        let text = given(function.arguments, &format!("{path}.function.arguments"))?;
        // Templates write objects in their own way. What the model wrote amiss it is shown as it wrote it.
        let object = serde_json::from_str(&text).ok().filter(Value::is_object);
        let arguments = object.unwrap_or(Value::String(text));
        Ok(ToolCall { id, kind: FUNCTION, function: FunctionCall { name, arguments } })
    };
    fields.into_iter().enumerate().map(call).collect()
}

fn check_kind(path: &str, kind: Option<&str>) -> Result<(), Problem> {
    if kind == Some(FUNCTION) {
        return Ok(());
    }
    let param = format!("{path}.type");
    let got = kind.map_or_else(|| "nothing".to_owned(), |kind| format!("{kind:?}"));
    Err(Error::invalid(param.clone(), format!("`{param}` must be \"function\", got {got}")).into())
}

fn given<T>(value: Option<T>, param: &str) -> Result<T, Problem> {
    value.ok_or_else(|| Error::invalid(param, format!("`{param}` must be given")).into())
}
