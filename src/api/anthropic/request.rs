//! The body of a Messages request, and what it asks for in the house's words.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::content::{self, Content, Turn, required, wrong, wrong_value};
use crate::api::many::{MESSAGES_MAX, Many};
use crate::api::problem::Problem;
use crate::api::{body, fields};
use crate::protocol::{Function, GenerateRequest, Owner, Prompt, SamplingParams, StopParams, Tool, ToolChoice};

/// The fields that mean something here. `metadata`, `service_tier` and `cache_control` are accepted and change nothing.
#[derive(Debug, Deserialize)]
pub(super) struct MessagesRequest {
    model: Option<String>,
    max_tokens: Option<i64>,
    messages: Option<Many<Turn, MESSAGES_MAX>>,
    system: Option<Content>,
    stop_sequences: Option<Vec<String>>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    pub(super) stream: Option<bool>,
    tools: Option<Vec<ToolFields>>,
    tool_choice: Option<ToolChoiceFields>,
    thinking: Option<Thinking>,
    container: Option<Value>,
    context_management: Option<Value>,
    mcp_servers: Option<Value>,
    output_config: Option<Value>,
    output_format: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct ToolFields {
    /// Absent or `custom`; others are run by Anthropic's servers.
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ToolChoiceFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: Option<String>,
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

    /// The rules of a request that generates, beyond those of one that is counted.
    ///
    /// # Errors
    /// 400: no `max_tokens`; a last turn of the assistant's, which templates would end rather than go on with.
    pub(super) fn check_generation(&self) -> Result<(), Problem> {
        let max_tokens = required(self.max_tokens, "", "max_tokens")?;
        if max_tokens < 1 {
            return Err(wrong_value("max_tokens", "must be at least 1", max_tokens));
        }
        let turns = self.messages.as_ref().map_or(&[][..], |turns| &turns.0);
        match turns.last() {
            Some(Turn { role: Some(role), .. }) if role == "assistant" => {
                let param = format!("messages[{}].role", turns.len() - 1);
                let rule = "must be \"user\" in the last message (an answer that was begun cannot be gone on with)";
                Err(wrong(&param, rule, Some(role)))
            }
            _ => Ok(()),
        }
    }

    /// What it asks for.
    ///
    /// # Errors
    /// 400 with the path at fault.
    pub(super) fn into_generate(self, owner: Arc<Owner>) -> Result<GenerateRequest, Problem> {
        self.check_unsupported()?;
        let temperature = self.temperature.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&temperature) {
            return Err(wrong_value("temperature", "must be 0 to 1", temperature));
        }
        let top_k = match self.top_k.unwrap_or(0) {
            k if k < 0 => return Err(wrong_value("top_k", "must be at least 0", k)),
            k => k as usize,
        };
        let tools = tools(self.tools.unwrap_or_default())?;
        let is_single = self.tool_choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use);
        let tool_choice = tool_choice(self.tool_choice, &tools)?;
        let turns = required(self.messages, "", "messages")?.0;
        let default = SamplingParams::default();
        Ok(GenerateRequest {
            model: self.model,
            sampling: SamplingParams { temperature, top_k, top_p: self.top_p.unwrap_or(default.top_p), ..default },
            stop: StopParams {
                max_tokens: self.max_tokens.map(|n| n.max(1) as usize),
                strings: self.stop_sequences.unwrap_or_default(),
                ..StopParams::default()
            },
            tools,
            tool_choice,
            parallel_tool_calls: !is_single.unwrap_or(false),
            ..GenerateRequest::new(owner, Prompt::Chat(content::messages(self.system, turns)?))
        })
    }

    fn check_unsupported(&self) -> Result<(), Problem> {
        let refused = [
            ("container", &self.container),
            ("context_management", &self.context_management),
            ("mcp_servers", &self.mcp_servers),
            ("output_config", &self.output_config),
            ("output_format", &self.output_format),
        ];
        let asks = |value: &Value| match value {
            Value::Array(list) => !list.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        };
        if let Some((name, _)) = refused.iter().find(|(_, value)| value.as_ref().is_some_and(asks)) {
            return Err(Problem::unsupported(name, "is not supported by this server"));
        }
        match self.thinking.as_ref().map(|thinking| thinking.kind.as_deref()) {
            // Whether to think is the model's own choice, which is what `adaptive` says.
            None | Some(Some("disabled" | "adaptive")) => Ok(()),
            Some(Some("enabled")) => {
                Err(Problem::unsupported("thinking.type", "\"enabled\" is not supported by this server"))
            }
            Some(kind) => Err(wrong("thinking.type", "must be one of disabled, adaptive, enabled", kind)),
        }
    }
}

fn tools(fields: Vec<ToolFields>) -> Result<Vec<Tool>, Problem> {
    fields.into_iter().enumerate().map(|(i, tool)| self::tool(&format!("tools[{i}]"), tool)).collect()
}

fn tool(path: &str, tool: ToolFields) -> Result<Tool, Problem> {
    if let Some(kind) = tool.kind.as_deref().filter(|kind| *kind != "custom") {
        return Err(wrong(&format!("{path}.type"), "must be \"custom\"", Some(kind)));
    }
    let name = required(tool.name, path, "name")?;
    let parameters = required(tool.input_schema, path, "input_schema")?;
    if !parameters.is_object() {
        return Err(wrong_value(&format!("{path}.input_schema"), "must be an object", &parameters));
    }
    let strict = tool.strict.unwrap_or(false);
    let function = Function { name, description: tool.description, parameters, strict };
    Ok(Tool { kind: "function", function })
}

fn tool_choice(choice: Option<ToolChoiceFields>, tools: &[Tool]) -> Result<ToolChoice, Problem> {
    let Some(choice) = choice else { return Ok(ToolChoice::default()) };
    let choice = match choice.kind.as_deref() {
        Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("any") => ToolChoice::Required,
        Some("tool") => {
            let name = required(choice.name, "tool_choice", "name")?;
            if !tools.iter().any(|tool| tool.function.name == name) {
                return Err(wrong("tool_choice.name", "must be the name of one of `tools`", Some(&name)));
            }
            ToolChoice::Named(name)
        }
        kind => return Err(wrong("tool_choice.type", "must be one of auto, any, tool, none", kind)),
    };
    if tools.is_empty() && choice == ToolChoice::Required {
        return Err(wrong("tool_choice.type", "must come with `tools`", Some("any")));
    }
    Ok(choice)
}
