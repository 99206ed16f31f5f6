//! The body of `POST /v1/responses`: what it asks of a generation, and what every object of the response repeats.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::input::{Input, given, wrong};
use super::tools::{self, ToolNames};
use crate::api::ignored::Ignored;
use crate::api::numbers::Whole;
use crate::api::problem::Problem;
use crate::api::{body, fields, template, tool_fields};
use crate::error::Error;
use crate::protocol::{Constraint, SamplingParams, StopParams, Tool, ToolChoice};
use crate::service::schema;

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
const UNSUPPORTED: [&str; 8] = [
    "conversation",
    "prompt",
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
    max_output_tokens: Option<Whole>,
    max_tool_calls: Option<Whole>,
    top_logprobs: Option<Whole>,
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
    pub(super) priority: Option<Whole>,
    context_management: Option<Value>,
    moderation: Option<Value>,
}

/// What is asked of the generation.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) sampling: SamplingParams,
    pub(super) stop: StopParams,
    pub(super) tools: Vec<Tool>,
    /// Where each tool stands in the request.
    pub(super) paths: Vec<String>,
    pub(super) tool_choice: ToolChoice,
    /// How calls are told of again.
    pub(super) names: ToolNames,
    pub(super) template_kwargs: BTreeMap<String, Value>,
    pub(super) ignored: Ignored,
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
    stop.max_tokens = self::fields::ceiling("max_output_tokens", fields.max_output_tokens, 1)?.or(stop.max_tokens);
    sampling.top_logprobs = top_logprobs(&fields)?;
    let (mut offered, names) = tools::read(fields.tools.as_deref().unwrap_or_default())?;
    let choice = fields.tool_choice.as_ref().filter(|choice| !choice.is_null());
    let choice = choice.map(tool_fields::choice).transpose()?.unwrap_or_default();
    let tool_choice = tool_fields::choose(choice, &mut offered)?;
    let mut ignored = Ignored::default();
    ignored.extend(offered.left_out);
    let effort = hints(&fields, &mut ignored);
    let template_kwargs = template::kwargs(template::Thinking { effort, ..template::Thinking::default() });
    let constraint = constraint(fields.text.as_ref())?;
    check_metadata(fields.metadata.as_ref())?;
    let echo = echo(&fields, &sampling);
    let echo_bytes = echo.values().map(|value| value.to_string().len()).sum();
    let (tools, paths) = (offered.tools, offered.paths);
    let asked = Asked {
        sampling,
        stop,
        tools,
        paths,
        tool_choice,
        names,
        template_kwargs,
        ignored,
        constraint,
        echo,
        echo_bytes,
    };
    Ok((fields, asked))
}

/// Adds the hints that no model here can follow, and returns how hard to think, which some can.
fn hints(fields: &CreateFields, ignored: &mut Ignored) -> Option<String> {
    let of = |object: &Option<Map<String, Value>>, name: &str| object.as_ref().and_then(|o| o.get(name)).cloned();
    ignored.hint("text.verbosity", of(&fields.text, "verbosity").as_ref());
    ignored.hint("reasoning.summary", of(&fields.reasoning, "summary").as_ref());
    ignored.hint("context_management", fields.context_management.as_ref());
    ignored.hint("moderation", fields.moderation.as_ref());
    if fields.max_tool_calls.is_some() {
        // It bounds calls of tools that OpenAI's servers run.
        ignored.push("max_tool_calls");
    }
    of(&fields.reasoning, "effort").and_then(|effort| effort.as_str().map(str::to_owned))
}

fn check_words(fields: &CreateFields) -> Result<(), Problem> {
    if let Some(word) = fields.truncation.as_deref().filter(|word| !["disabled", "auto"].contains(word)) {
        return Err(wrong("truncation", "auto or disabled", &json!(word)));
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
    let num = self::fields::count("top_logprobs", fields.top_logprobs, 0)?;
    let is_included = fields.include.iter().flatten().any(|name| name == INCLUDABLE[0]);
    Ok(if is_included { Some(num.unwrap_or(0)) } else { num.filter(|n| *n > 0) })
}

fn constraint(text: Option<&Map<String, Value>>) -> Result<Option<Constraint>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let Some(format) = text.get("format").filter(|format| !format.is_null()) else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint::JsonObject)),
        Some("json_schema") => match format.get("schema") {
            Some(given @ Value::Object(_)) => {
                let mut schema = given.clone();
                if format["strict"] == true {
                    schema::close(&mut schema);
                }
                Ok(Some(Constraint::JsonSchema(schema.to_string())))
            }
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
        "max_output_tokens": fields.max_output_tokens.map(|n| n.0),
        "max_tool_calls": fields.max_tool_calls.map(|n| n.0),
        "parallel_tool_calls": fields.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": fields.previous_response_id,
        "reasoning": {"effort": reasoning("effort"), "summary": reasoning("summary")},
        "service_tier": fields.service_tier.as_deref().unwrap_or("default"),
        "store": fields.store.unwrap_or(true),
        "temperature": short(sampling.temperature),
        "text": text,
        "tool_choice": fields.tool_choice.clone().filter(|choice| !choice.is_null()).unwrap_or_else(|| json!("auto")),
        "tools": fields.tools.as_deref().unwrap_or_default(),
        "top_logprobs": fields.top_logprobs.map_or(0, |n| n.0),
        "top_p": short(sampling.top_p),
        "truncation": fields.truncation.as_deref().unwrap_or("disabled"),
        "user": fields.user,
        "metadata": fields.metadata.clone().unwrap_or_default(),
    });
    match echo {
        Value::Object(echo) => echo,
        _ => Map::new(),
    }
}
