//! The body of `POST /v1/responses`: what it asks of a generation, and what every object of the response repeats.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::input::{Input, given, wrong};
use crate::api::problem::Problem;
use crate::api::{body, fields};
use crate::error::Error;
use crate::protocol::{Constraint, Function, SamplingParams, StopParams, Tool, ToolChoice};

/// OpenAI's bounds of `metadata`: pairs, bytes of a key, bytes of a value.
const METADATA_MAX: (usize, usize, usize) = (16, 64, 512);

/// What `include` may name. Only log-probabilities exist here; the others belong to tools that no answer used, and to
/// reasoning that is not encrypted, so there is nothing of them to include.
const INCLUDABLE: [&str; 8] = [
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];

/// Fields that would change the output and do not exist here. What the text must look like is said in `text.format`.
const UNSUPPORTED: [&str; 10] = [
    "conversation",
    "prompt",
    "context_management",
    "moderation",
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "structured_outputs",
];

/// Fields of this dialect's own meaning, or too large to be looked at twice: not shared with the other dialects.
const OWN: [&str; 9] = [
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "top_logprobs",
    "metadata",
    "text",
    "reasoning",
    "parallel_tool_calls",
];

/// The fields as they came.
#[derive(Debug, Deserialize)]
pub(super) struct CreateFields {
    pub(super) model: Option<String>,
    pub(super) input: Option<Input>,
    pub(super) instructions: Option<String>,
    pub(super) stream: Option<bool>,
    stream_options: Option<Map<String, Value>>,
    pub(super) background: Option<bool>,
    pub(super) store: Option<bool>,
    pub(super) previous_response_id: Option<String>,
    max_output_tokens: Option<i64>,
    max_tool_calls: Option<i64>,
    top_logprobs: Option<i64>,
    include: Option<Vec<String>>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    pub(super) parallel_tool_calls: Option<bool>,
    text: Option<Map<String, Value>>,
    reasoning: Option<Map<String, Value>>,
    metadata: Option<Map<String, Value>>,
    user: Option<String>,
    service_tier: Option<String>,
    truncation: Option<String>,
    pub(super) priority: Option<i32>,
}

/// What is asked of the generation.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) sampling: SamplingParams,
    pub(super) stop: StopParams,
    pub(super) tools: Vec<Tool>,
    pub(super) tool_choice: ToolChoice,
    pub(super) constraint: Option<Constraint>,
    /// The fields that every object of the response repeats.
    pub(super) echo: Map<String, Value>,
    /// Of these, as JSON.
    pub(super) echo_bytes: usize,
}

/// The fields of a body that have the same meaning in other dialects, and those that do not exist here.
struct UsualFields(Map<String, Value>);

impl<'de> Deserialize<'de> for UsualFields {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct SharedVisitor;
        impl<'de> Visitor<'de> for SharedVisitor {
            type Value = UsualFields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UsualFields, A::Error> {
                let mut shared = Map::new();
                while let Some(name) = map.next_key::<String>()? {
                    if OWN.contains(&name.as_str()) {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        shared.insert(name, map.next_value()?);
                    }
                }
                Ok(UsualFields(shared))
            }
        }
        d.deserialize_map(SharedVisitor)
    }
}

/// Reads `json`.
///
/// # Errors
/// 400 with the path of what is wrong or not supported.
pub(super) fn read(json: &[u8]) -> Result<(CreateFields, Asked), Problem> {
    let UsualFields(shared) = body::parse(json)?;
    let fields: CreateFields = body::parse(json)?;
    if let Some(name) = UNSUPPORTED.iter().find(|name| shared.get(**name).is_some_and(|v| !v.is_null())) {
        return Err(Problem::unsupported(name, "is not supported by this server"));
    }
    let shared = serde_json::to_vec(&shared).map_err(|e| Error::internal(e.to_string()))?;
    let (mut sampling, mut stop) = self::fields::sampling(&shared)?;
    check_words(&fields)?;
    if let Some(n) = fields.max_output_tokens {
        stop.max_tokens = Some(at_least("max_output_tokens", n, 1)?);
    }
    sampling.top_logprobs = top_logprobs(&fields)?;
    let tools = tools(fields.tools.as_deref().unwrap_or_default())?;
    let tool_choice = tool_choice(fields.tool_choice.as_ref(), &tools)?;
    let constraint = constraint(fields.text.as_ref())?;
    check_metadata(fields.metadata.as_ref())?;
    let echo = echo(&fields, &sampling);
    let echo_bytes = echo.values().map(|value| value.to_string().len()).sum();
    Ok((fields, Asked { sampling, stop, tools, tool_choice, constraint, echo, echo_bytes }))
}

fn check_words(fields: &CreateFields) -> Result<(), Problem> {
    if let Some(word) = fields.truncation.as_deref().filter(|word| *word != "disabled") {
        return Err(Problem::unsupported("truncation", &format!("must be disabled on this server, got {word:?}")));
    }
    if fields.stream_options.is_some() && fields.stream != Some(true) {
        let message = "`stream_options` must come with `stream: true`, got it without";
        return Err(Error::invalid("stream_options", message).into());
    }
    if let Some((i, name)) =
        fields.include.iter().flatten().enumerate().find(|(_, name)| !INCLUDABLE.contains(&name.as_str()))
    {
        let rule = format!("must be one of {}, got {name:?}", INCLUDABLE.join(", "));
        return Err(Error::invalid(format!("include[{i}]"), format!("`include[{i}]` {rule}")).into());
    }
    if fields.background == Some(true) && fields.store == Some(false) {
        let message = "`background` must come with `store: true`, got `store: false`";
        return Err(Error::invalid("background", message).into());
    }
    Ok(())
}

fn top_logprobs(fields: &CreateFields) -> Result<Option<usize>, Problem> {
    let num = fields.top_logprobs.map(|n| at_least("top_logprobs", n, 0)).transpose()?;
    let is_included = fields.include.iter().flatten().any(|name| name == INCLUDABLE[0]);
    Ok(if is_included { Some(num.unwrap_or(0)) } else { num.filter(|n| *n > 0) })
}

fn at_least(name: &str, n: i64, min: i64) -> Result<usize, Problem> {
    if n >= min {
        return Ok(n as usize);
    }
    Err(Error::invalid(name, format!("`{name}` must be at least {min}, got {n}")).into())
}

fn tools(tools: &[Value]) -> Result<Vec<Tool>, Problem> {
    let tool = |(i, tool): (usize, &Value)| {
        let path = format!("tools[{i}]");
        match &tool["type"] {
            Value::String(kind) if kind == "function" => {}
            Value::String(kind) => {
                let rule = format!("must be function on this server, got {kind:?}");
                return Err(Problem::unsupported(&format!("{path}.type"), &rule));
            }
            _ => return Err(given(&format!("{path}.type"), "a string", tool.get("type"))),
        }
        let Some(name) = tool["name"].as_str().filter(|name| !name.is_empty()) else {
            return Err(given(&format!("{path}.name"), "a string that is not empty", tool.get("name")));
        };
        let parameters = match tool.get("parameters") {
            None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
            Some(schema @ Value::Object(_)) => schema.clone(),
            Some(other) => return Err(wrong(&format!("{path}.parameters"), "an object", other)),
        };
        let description = match tool.get("description") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => return Err(wrong(&format!("{path}.description"), "a string", other)),
        };
        let strict = match tool.get("strict") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(strict)) => *strict,
            Some(other) => return Err(wrong(&format!("{path}.strict"), "a boolean", other)),
        };
        Ok(Tool { kind: "function", function: Function { name: name.to_owned(), description, parameters, strict } })
    };
    tools.iter().enumerate().map(tool).collect()
}

fn tool_choice(choice: Option<&Value>, tools: &[Tool]) -> Result<ToolChoice, Problem> {
    let choice = match choice {
        None | Some(Value::Null) => return Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => return Ok(ToolChoice::Auto),
            "none" => return Ok(ToolChoice::None),
            "required" => ToolChoice::Required,
            _ => return Err(wrong("tool_choice", "auto, none, required or a function", &json!(word))),
        },
        Some(Value::Object(fields)) => match (fields.get("type").and_then(Value::as_str), fields.get("name")) {
            (Some("function"), Some(Value::String(name))) => ToolChoice::Named(name.clone()),
            (Some("function"), name) => return Err(given("tool_choice.name", "a string", name)),
            (Some(kind), _) => {
                let rule = format!("must be function on this server, got {kind:?}");
                return Err(Problem::unsupported("tool_choice.type", &rule));
            }
            (None, _) => return Err(given("tool_choice.type", "a string", fields.get("type"))),
        },
        Some(other) => return Err(wrong("tool_choice", "auto, none, required or a function", other)),
    };
    match &choice {
        ToolChoice::Named(name) if tools.iter().all(|tool| tool.function.name != *name) => {
            Err(wrong("tool_choice.name", "the name of one of `tools`", &json!(name)))
        }
        ToolChoice::Required if tools.is_empty() => {
            Err(Error::invalid("tool_choice", "`tool_choice` must come with `tools`, got \"required\" without").into())
        }
        _ => Ok(choice),
    }
}

fn constraint(text: Option<&Map<String, Value>>) -> Result<Option<Constraint>, Problem> {
    let Some(text) = text else { return Ok(None) };
    // `medium` is OpenAI's default, and so asks for nothing.
    if let Some(word) = text.get("verbosity").filter(|word| !word.is_null() && **word != "medium") {
        return Err(Problem::unsupported("text.verbosity", &format!("must be medium on this server, got {word}")));
    }
    let Some(format) = text.get("format").filter(|format| !format.is_null()) else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint::JsonObject)),
        Some("json_schema") => match format.get("schema") {
            Some(schema @ Value::Object(_)) => Ok(Some(Constraint::JsonSchema(schema.to_string()))),
            other => Err(given("text.format.schema", "an object", other)),
        },
        _ => Err(given("text.format.type", "text, json_object or json_schema", format.get("type"))),
    }
}

fn check_metadata(metadata: Option<&Map<String, Value>>) -> Result<(), Problem> {
    let Some(metadata) = metadata else { return Ok(()) };
    let (num_max, key_max, value_max) = METADATA_MAX;
    if metadata.len() > num_max {
        let message = format!("`metadata` must have at most {num_max} pairs, got {}", metadata.len());
        return Err(Error::invalid("metadata", message).into());
    }
    for (key, value) in metadata {
        let is_short = value.as_str().is_some_and(|text| text.len() <= value_max);
        if key.len() > key_max || !is_short {
            let rule = format!("a string of at most {value_max} bytes under a key of at most {key_max}");
            return Err(wrong(&format!("metadata.{key}"), &rule, value));
        }
    }
    Ok(())
}

fn echo(fields: &CreateFields, sampling: &SamplingParams) -> Map<String, Value> {
    let reasoning = |name| fields.reasoning.as_ref().and_then(|r| r.get(name)).cloned();
    let mut text = fields.text.clone().unwrap_or_default();
    text.entry("format").or_insert_with(|| json!({"type": "text"}));
    // A float as it was written: widening an `f32` would show digits that nobody asked for.
    let short = |x: f32| x.to_string().parse::<f64>().unwrap_or(f64::from(x));
    let echo = json!({
        "background": fields.background.unwrap_or(false),
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "max_tool_calls": fields.max_tool_calls,
        "parallel_tool_calls": fields.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": fields.previous_response_id,
        "reasoning": {"effort": reasoning("effort"), "summary": reasoning("summary")},
        "service_tier": fields.service_tier.as_deref().unwrap_or("default"),
        "store": fields.store.unwrap_or(true),
        "temperature": short(sampling.temperature),
        "text": text,
        "tool_choice": fields.tool_choice.clone().filter(|choice| !choice.is_null()).unwrap_or_else(|| json!("auto")),
        "tools": fields.tools.as_deref().unwrap_or_default(),
        "top_logprobs": fields.top_logprobs.unwrap_or(0),
        "top_p": short(sampling.top_p),
        "truncation": "disabled",
        "user": fields.user,
        "metadata": fields.metadata.clone().unwrap_or_default(),
    });
    match echo {
        Value::Object(echo) => echo,
        _ => Map::new(),
    }
}
