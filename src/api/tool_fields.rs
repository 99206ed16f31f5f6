//! Tools and calls as they come in JSON: the fields, their types and which must be there. What they may say is
//! `service/tool_rules.rs`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;
use crate::error::Error;
use crate::protocol::{Constraint, Field, FreeText, Function, FunctionCall, Tool, ToolCall, ToolChoice};
use crate::text::FREE_TEXT;

/// A tool with arguments.
const FUNCTION: &str = "function";
/// A tool that takes free text.
const CUSTOM: &str = "custom";

/// One of `tools`.
#[derive(Debug, Deserialize)]
pub(crate) struct ToolFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<FunctionFields>,
    custom: Option<CustomFields>,
}

#[derive(Debug, Deserialize)]
struct FunctionFields {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct CustomFields {
    name: Option<String>,
    description: Option<String>,
    format: Option<Value>,
}

/// One of an assistant's `tool_calls`.
#[derive(Debug, Deserialize)]
pub(crate) struct CallFields {
    id: Option<String>,
    function: Option<CalledFields>,
    custom: Option<CustomCallFields>,
}

#[derive(Debug, Deserialize)]
struct CalledFields {
    name: Option<String>,
    /// JSON in a string; some clients send the object.
    arguments: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct CustomCallFields {
    name: Option<String>,
    input: Option<String>,
}

/// The tools that a request offers.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    /// Those that the model is told of.
    pub(crate) tools: Vec<Tool>,
    /// Where each of them stands in the request.
    pub(crate) paths: Vec<String>,
    /// Paths of those that only somebody else's servers can run.
    pub(crate) left_out: Vec<String>,
}

impl Offered {
    /// Adds a tool that stands at `path`.
    pub(crate) fn push(&mut self, path: String, tool: Tool) {
        self.paths.push(path);
        self.tools.push(tool);
    }
}

/// Where the tool stands in the request that is number `index` of those the model is told of.
pub(crate) fn path(paths: &[String], index: usize) -> &str {
    paths.get(index).map_or("tools", String::as_str)
}

/// The tools of a request.
///
/// # Errors
/// 400 for a tool without a name.
pub(crate) fn tools(fields: Vec<ToolFields>) -> Result<Offered, Problem> {
    let mut offered = Offered::default();
    for (i, tool) in fields.into_iter().enumerate() {
        let path = format!("tools[{i}]");
        match (tool.kind.as_deref(), tool.function, tool.custom) {
            (Some(FUNCTION) | None, function, None) => {
                let function = given(function, &format!("{path}.function"))?;
                let name = given(function.name, &format!("{path}.function.name"))?;
                offered.push(path, self::function(name, function.description, function.parameters));
            }
            (Some(CUSTOM) | None, None, custom) => {
                let custom = given(custom, &format!("{path}.custom"))?;
                let name = given(custom.name, &format!("{path}.custom.name"))?;
                let grammar = grammar(custom.format.as_ref(), &format!("{path}.custom.format"))?;
                offered.push(path, self::custom(name, custom.description, grammar));
            }
            _ => offered.left_out.push(path),
        }
    }
    Ok(offered)
}

/// A tool that is called with arguments; without a schema there are none.
pub(crate) fn function(name: String, description: Option<String>, parameters: Option<Value>) -> Tool {
    let parameters = parameters.filter(|schema| !schema.is_null());
    let parameters = parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    Tool { kind: FUNCTION, function: Function { name, description, parameters, free_text: None } }
}

/// A tool that takes free text. The model is told of one argument that has it.
pub(crate) fn custom(name: String, description: Option<String>, grammar: Option<Constraint>) -> Tool {
    let mut input = json!({"type": "string"});
    let mut description = description.unwrap_or_default();
    match &grammar {
        Some(Constraint::Regex(regex)) => {
            input["pattern"] = json!(format!("^(?:{regex})$"));
        }
        Some(Constraint::Lark(lark)) => {
            description.push_str("\nThe input is a text of this grammar:\n");
            description.push_str(lark);
        }
        _ => {}
    }
    let parameters = json!({
        "type": "object", "properties": {FREE_TEXT: input}, "required": [FREE_TEXT], "additionalProperties": false,
    });
    let description = Some(description).filter(|text| !text.is_empty());
    Tool { kind: FUNCTION, function: Function { name, description, parameters, free_text: Some(FreeText { grammar }) } }
}

/// The grammar of a free text, from `format`: OpenAI's `text`, or `grammar` whose parts stand in it or one object below.
///
/// # Errors
/// 400 for another type or syntax.
pub(crate) fn grammar(format: Option<&Value>, path: &str) -> Result<Option<Constraint>, Problem> {
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    match format["type"].as_str() {
        None | Some("text") => return Ok(None),
        Some("grammar") => {}
        Some(kind) => return Err(word(&format!("{path}.type"), "text or grammar", kind)),
    }
    let grammar = format.get("grammar").unwrap_or(format);
    let definition = given(grammar["definition"].as_str(), &format!("{path}.definition"))?.to_owned();
    match given(grammar["syntax"].as_str(), &format!("{path}.syntax"))? {
        "lark" => Ok(Some(Constraint::Lark(definition))),
        "regex" => Ok(Some(Constraint::Regex(definition))),
        syntax => Err(word(&format!("{path}.syntax"), "lark or regex", syntax)),
    }
}

/// How a tool is written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolForm {
    /// Its parts stand in an object under its type, as in Chat Completions.
    Nested,
    /// They stand beside its type, as in Responses.
    Flat,
}

/// What `tool_choice` asks for, and the names of the tools that it leaves, if it says so. A tool of a type that is not offered
/// here is nobody's to choose: the model does.
///
/// # Errors
/// 400 for anything but the words, and an object that names a tool or several.
pub(crate) fn choice(value: &Value, form: ToolForm) -> Result<(ToolChoice, Option<Vec<String>>), Problem> {
    let kind = value.get("type").and_then(Value::as_str);
    if let Some(choice) = value.as_str().or(kind).and_then(chosen_word) {
        return Ok((choice, None));
    }
    match kind {
        Some("allowed_tools") => allowed(value.get("allowed_tools").unwrap_or(value)),
        Some(kind @ (FUNCTION | CUSTOM)) => {
            let (named, path) = match form {
                ToolForm::Nested => (value.get(kind), format!("tool_choice.{kind}.name")),
                ToolForm::Flat => (Some(value), "tool_choice.name".to_owned()),
            };
            let name = given(named.and_then(|named| named["name"].as_str()), &path)?;
            Ok((ToolChoice::Named(name.to_owned()), None))
        }
        Some(_) => Ok((ToolChoice::Auto, None)),
        None => {
            let message = format!(
                "`tool_choice` must be \"auto\", \"none\", \"required\" or an object that names a function, got {value}"
            );
            Err(Error::invalid("tool_choice", message).into())
        }
    }
}

fn chosen_word(word: &str) -> Option<ToolChoice> {
    match word {
        "auto" => Some(ToolChoice::Auto),
        "none" => Some(ToolChoice::None),
        "required" | "any" => Some(ToolChoice::Required),
        _ => None,
    }
}

fn allowed(fields: &Value) -> Result<(ToolChoice, Option<Vec<String>>), Problem> {
    let mode = given(fields["mode"].as_str(), "tool_choice.mode")?;
    let choice = chosen_word(mode).ok_or_else(|| word("tool_choice.mode", "auto or required", mode))?;
    let tools = given(fields["tools"].as_array(), "tool_choice.tools")?;
    let name = |tool: &Value| {
        let named = tool.get(tool["type"].as_str().unwrap_or(FUNCTION)).unwrap_or(tool);
        named["name"].as_str().map(str::to_owned)
    };
    Ok((choice, Some(tools.iter().filter_map(name).collect())))
}

/// Applies a choice: leaves out the tools that are not allowed. A choice among no tools is none.
///
/// # Errors
/// 400 for a call that must come where there is no tool.
pub(crate) fn choose(
    (choice, allowed): (ToolChoice, Option<Vec<String>>),
    offered: &mut Offered,
) -> Result<ToolChoice, Problem> {
    if let Some(names) = allowed {
        let (tools, paths) = (std::mem::take(&mut offered.tools), std::mem::take(&mut offered.paths));
        let kept = tools.into_iter().zip(paths).filter(|(tool, _)| names.contains(&tool.function.name));
        (offered.tools, offered.paths) = kept.unzip();
    }
    let is_empty = offered.tools.is_empty();
    match choice {
        ToolChoice::Required | ToolChoice::Named(_) if is_empty && offered.left_out.is_empty() => {
            Err(Error::rule(Field::ToolChoice, "must come with `tools`, got it without").into())
        }
        _ if is_empty => Ok(ToolChoice::Auto),
        choice => Ok(choice),
    }
}

/// The calls of a message; `path` is the list's.
///
/// # Errors
/// 400 for one without an id, a name or arguments.
pub(crate) fn calls(fields: Vec<CallFields>, path: &str) -> Result<Vec<ToolCall>, Problem> {
    let call = |(i, call): (usize, CallFields)| {
        let path = format!("{path}[{i}]");
        let id = given(call.id, &format!("{path}.id"))?;
        if let Some(custom) = call.custom {
            let name = given(custom.name, &format!("{path}.custom.name"))?;
            let arguments = json!({FREE_TEXT: custom.input.unwrap_or_default()});
            return Ok(ToolCall { id, kind: FUNCTION, function: FunctionCall { name, arguments } });
        }
        let function = given(call.function, &format!("{path}.function"))?;
        let name = given(function.name, &format!("{path}.function.name"))?;
        let arguments = arguments(given(function.arguments, &format!("{path}.function.arguments"))?);
        Ok(ToolCall { id, kind: FUNCTION, function: FunctionCall { name, arguments } })
    };
    fields.into_iter().enumerate().map(call).collect()
}

/// Arguments as a template writes them: an object. What the model wrote amiss it is shown as it wrote it.
pub(crate) fn arguments(given: Value) -> Value {
    match given {
        Value::String(text) => serde_json::from_str(&text).ok().filter(Value::is_object).unwrap_or(Value::String(text)),
        other => other,
    }
}

/// The text in the arguments of a call of a tool that takes free text: all of them, where the call was cut.
pub(crate) fn free_text(arguments: &str) -> String {
    let whole = serde_json::from_str::<Value>(arguments).ok();
    let text = whole.as_ref().and_then(|whole| whole[FREE_TEXT].as_str());
    text.unwrap_or(arguments).to_owned()
}

fn word(param: &str, rule: &str, got: &str) -> Problem {
    Error::invalid(param, format!("`{param}` must be {rule}, got {got:?}")).into()
}

fn given<T>(value: Option<T>, param: &str) -> Result<T, Problem> {
    value.ok_or_else(|| Error::invalid(param, format!("`{param}` must be given")).into())
}
