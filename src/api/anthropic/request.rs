//! The body of a Messages request, and what it asks for in the house's words.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::content::{self, Content, Turn, required, wrong, wrong_value};
use crate::api::ignored::Ignored;
use crate::api::many::{MESSAGES_MAX, Many};
use crate::api::numbers::Whole;
use crate::api::problem::Problem;
use crate::api::tool_fields::{self, Offered};
use crate::api::{body, fields, template};
use crate::protocol::{
    Constraint, GenerateRequest, Owner, Prompt, PromptEnding, SamplingParams, StopParams, ToolChoice,
};
use crate::service::schema;

/// The fields that mean something here. `metadata`, `service_tier` and `cache_control` are accepted and change nothing.
#[derive(Debug, Deserialize)]
pub(super) struct MessagesRequest {
    model: Option<String>,
    max_tokens: Option<Whole>,
    messages: Option<Many<Turn, MESSAGES_MAX>>,
    system: Option<Content>,
    stop_sequences: Option<Vec<String>>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<Whole>,
    pub(super) stream: Option<bool>,
    tools: Option<Vec<ToolFields>>,
    tool_choice: Option<ToolChoiceFields>,
    thinking: Option<ThinkingFields>,
    /// A hint how to shorten a long conversation; here nothing is shortened.
    context_management: Option<Value>,
    container: Option<Value>,
    mcp_servers: Option<Value>,
    output_config: Option<OutputConfig>,
    /// The earlier name of `output_config.format`.
    output_format: Option<OutputFormat>,
}

#[derive(Debug, Deserialize)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<OutputFormat>,
}

/// What the text must look like.
#[derive(Debug, Deserialize)]
struct OutputFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    schema: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct ToolFields {
    /// Absent or `custom`; others are run by Anthropic's servers.
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct ToolChoiceFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ThinkingFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    /// How long to think; no model here is told.
    budget_tokens: Option<Value>,
}

impl MessagesRequest {
    /// The request in a body.
    ///
    /// # Errors
    /// 400 for a wrong type, or a field of other dialects that would change the answer.
    pub(super) fn read(json: &[u8]) -> Result<Self, Problem> {
        fields::check_supported(json, &["tools", "tool_choice"])?;
        body::parse(json)
    }

    /// The rule of a request that generates, beyond those of one that is counted.
    ///
    /// # Errors
    /// 400 without `max_tokens`.
    pub(super) fn check_generation(&self) -> Result<(), Problem> {
        required(self.max_tokens, "", "max_tokens").map(drop)
    }

    /// What it asks for.
    ///
    /// # Errors
    /// 400 with the path at fault.
    pub(super) fn into_generate(self, owner: Arc<Owner>) -> Result<AskedMessage, Problem> {
        let mut ignored = Ignored::default();
        ignored.hint("container", self.container.as_ref());
        ignored.hint("context_management", self.context_management.as_ref());
        ignored.hint("mcp_servers", self.mcp_servers.as_ref());
        let temperature = self.temperature.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&temperature) {
            return Err(wrong_value("temperature", "must be 0 to 1", temperature));
        }
        let top_k = match self.top_k.map_or(0, |k| k.0) {
            k if k < 0 => return Err(wrong_value("top_k", "must be at least 0", k)),
            k => k as usize,
        };
        let mut offered = tools(self.tools.unwrap_or_default())?;
        let is_single = self.tool_choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use);
        let tool_choice = tool_choice(self.tool_choice, &mut offered)?;
        ignored.extend(offered.left_out);
        let config = self.output_config.unwrap_or(OutputConfig { effort: None, format: None });
        let (format, param) = match config.format {
            Some(format) => (Some(format), "output_config.format"),
            None => (self.output_format, "output_format"),
        };
        let constraint = format.map(|format| constraint(format, param)).transpose()?;
        let turns = required(self.messages, "", "messages")?.0;
        let default = SamplingParams::default();
        let generate = GenerateRequest {
            model: self.model,
            sampling: SamplingParams { temperature, top_k, top_p: self.top_p.unwrap_or(default.top_p), ..default },
            stop: StopParams {
                max_tokens: fields::ceiling("max_tokens", self.max_tokens, 1)?,
                strings: self.stop_sequences.unwrap_or_default(),
                ..StopParams::default()
            },
            tools: offered.tools,
            tool_choice,
            parallel_tool_calls: !is_single.unwrap_or(false),
            template_kwargs: template::kwargs(thinking(self.thinking, config.effort.as_deref(), &mut ignored)?),
            ending: PromptEnding::Continue,
            constraint,
            constraint_param: param,
            ..GenerateRequest::new(owner, Prompt::Chat(content::messages(self.system, turns)?))
        };
        Ok(AskedMessage { generate, ignored, paths: offered.paths })
    }
}

/// What a request asks for.
pub(super) struct AskedMessage {
    pub(super) generate: GenerateRequest,
    /// What is left out of it.
    pub(super) ignored: Ignored,
    /// Where each tool stands in the request.
    pub(super) paths: Vec<String>,
}

/// Whether to think. `adaptive` leaves it to the model, and so does a request that says nothing.
fn thinking(
    thinking: Option<ThinkingFields>,
    effort: Option<&str>,
    ignored: &mut Ignored,
) -> Result<template::Thinking, Problem> {
    if effort.is_some() {
        // Claude Code always sends one, whatever the model is: it does not say whether to think.
        ignored.push("output_config.effort");
    }
    let Some(ThinkingFields { kind, budget_tokens }) = thinking else { return Ok(template::Thinking::default()) };
    ignored.hint("thinking.budget_tokens", budget_tokens.as_ref());
    let is_enabled = match kind.as_deref() {
        Some("enabled") => Some(true),
        Some("disabled") => Some(false),
        Some("adaptive") => None,
        kind => return Err(wrong("thinking.type", "must be one of disabled, adaptive, enabled", kind)),
    };
    Ok(template::Thinking { is_enabled, ..template::Thinking::default() })
}

fn constraint(format: OutputFormat, param: &'static str) -> Result<Constraint, Problem> {
    match (format.kind.as_deref(), format.schema) {
        // A strict schema, as Anthropic's always are: a property that it does not name is none.
        (Some("json_schema"), Some(mut schema @ Value::Object(_))) => {
            schema::close(&mut schema);
            Ok(Constraint::JsonSchema(schema.to_string()))
        }
        (Some("json_schema"), Some(other)) => Err(wrong_value(&format!("{param}.schema"), "must be an object", &other)),
        (Some("json_schema"), None) => required(None, param, "schema"),
        (kind, _) => Err(wrong(&format!("{param}.type"), "must be \"json_schema\"", kind)),
    }
}

/// The client's own tools; others are run by Anthropic's servers.
fn tools(fields: Vec<ToolFields>) -> Result<Offered, Problem> {
    let mut offered = Offered::default();
    for (i, tool) in fields.into_iter().enumerate() {
        let path = format!("tools[{i}]");
        if tool.kind.as_deref().is_some_and(|kind| kind != "custom") && tool.input_schema.is_none() {
            offered.left_out.push(path);
            continue;
        }
        let name = required(tool.name, &path, "name")?;
        let parameters = required(tool.input_schema, &path, "input_schema")?;
        if !parameters.is_object() {
            return Err(wrong_value(&format!("{path}.input_schema"), "must be an object", &parameters));
        }
        offered.push(path, tool_fields::function(name, tool.description, Some(parameters)));
    }
    Ok(offered)
}

fn tool_choice(choice: Option<ToolChoiceFields>, offered: &mut Offered) -> Result<ToolChoice, Problem> {
    let Some(choice) = choice else { return Ok(ToolChoice::default()) };
    let choice = match choice.kind.as_deref() {
        Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("any") => ToolChoice::Required,
        Some("tool") => {
            let name = required(choice.name, "tool_choice", "name")?;
            let is_left_out = offered.tools.is_empty() && !offered.left_out.is_empty();
            if !is_left_out && !offered.tools.iter().any(|tool| tool.function.name == name) {
                return Err(wrong("tool_choice.name", "must be the name of one of `tools`", Some(&name)));
            }
            ToolChoice::Named(name)
        }
        kind => return Err(wrong("tool_choice.type", "must be one of auto, any, tool, none", kind)),
    };
    tool_fields::choose((choice, None), offered)
}
