//! The rules of tools: what may be called, what must be, and that every call has its answer.

use super::rule::shown;
use crate::error::{Error, Result};
use crate::protocol::{ChatMessage, Constraint, Field, GenerateRequest, ToolChoice};

/// Most tools of a request. All of them stand in every prompt.
const TOOLS_MAX: usize = 512;
/// Longest name of a function: Anthropic's bound. MCP's servers use it, with dots and colons; OpenAI takes 64.
const NAME_BYTES_MAX: usize = 128;
/// Variables of a template that are not a client's to set.
const RESERVED_KWARGS: &[&str] = &["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];

/// Checks the tools, the choice among them, and the template's variables.
///
/// # Errors
/// [`crate::error::ErrorKind::InvalidRequest`] with the parameter at fault.
pub(super) fn tools(request: &GenerateRequest) -> Result<()> {
    let tools = &request.tools;
    if tools.len() > TOOLS_MAX {
        return Err(Error::rule(Field::Tools, format!("must have at most {TOOLS_MAX} tools, got {}", tools.len())));
    }
    for (i, tool) in tools.iter().enumerate() {
        let name = &tool.function.name;
        if !is_name(name) {
            let rule = format!("must have 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, _, -, . and :, got {}", shown(name));
            return Err(Error::rule(Field::ToolName(i), rule));
        }
        if tools[..i].iter().any(|earlier| earlier.function.name == *name) {
            let rule = format!("must be the only tool of this name, got {} again", shown(name));
            return Err(Error::rule(Field::ToolName(i), rule));
        }
        if !tool.function.parameters.is_object() {
            let rule = format!("must be a JSON schema, got {}", shown(&tool.function.parameters.to_string()));
            return Err(Error::rule(Field::ToolParameters(i), rule));
        }
    }
    match &request.tool_choice {
        ToolChoice::Auto | ToolChoice::None => {}
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.function.name == *name) => {
            return Err(Error::rule(Field::ToolChoice, format!("must name one of `tools`, got {}", shown(name))));
        }
        ToolChoice::Required if tools.is_empty() => {
            return Err(Error::rule(Field::ToolChoice, "must come with `tools`, got none"));
        }
        // A call leaves no text that a JSON format would be about; other constraints are about every text.
        ToolChoice::Required | ToolChoice::Named(_) => match &request.constraint {
            None | Some(Constraint::JsonObject | Constraint::JsonSchema(_)) => {}
            Some(_) => {
                let rule = "must leave the choice to the model beside another grammar, got a call that must come";
                return Err(Error::rule(Field::ToolChoice, rule));
            }
        },
    }
    match request.template_kwargs.keys().find(|key| RESERVED_KWARGS.contains(&key.as_str())) {
        Some(key) => Err(Error::invalid(
            format!("chat_template_kwargs.{key}"),
            format!("`chat_template_kwargs` must leave {} to the server, got {key:?}", RESERVED_KWARGS.join(", ")),
        )),
        None => Ok(()),
    }
}

/// Checks that every message of a tool answers a call right before it, and every call is answered.
///
/// # Errors
/// [`crate::error::ErrorKind::InvalidRequest`] with the message at fault.
pub(super) fn answers(messages: &[ChatMessage]) -> Result<()> {
    let mut open: Vec<&str> = Vec::new();
    let mut calls_at = 0;
    for (i, message) in messages.iter().enumerate() {
        if message.role == "tool" {
            let id = message.tool_call_id.as_deref().unwrap_or_default();
            let Some(at) = open.iter().position(|call| *call == id) else {
                let rule = format!("must be the id of a call in the assistant's message before, got {}", shown(id));
                return Err(Error::rule(Field::Message(i, "tool_call_id"), rule));
            };
            open.swap_remove(at);
            continue;
        }
        unanswered(&open, calls_at)?;
        open = message.tool_calls.iter().map(|call| call.id.as_str()).collect();
        calls_at = i;
    }
    unanswered(&open, calls_at)
}

fn unanswered(open: &[&str], calls_at: usize) -> Result<()> {
    let Some(id) = open.first() else { return Ok(()) };
    let rule = format!("must be followed by an answer to each call, got none for {}", shown(id));
    Err(Error::rule(Field::Message(calls_at, "tool_calls"), rule))
}

fn is_name(name: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::{Function, Owner, Prompt, Tool};

    #[test]
    fn a_call_that_must_come_leaves_room_for_no_grammar_but_of_json() {
        let function =
            Function { name: "f".to_owned(), description: None, parameters: serde_json::json!({}), free_text: None };
        let asking = |constraint| GenerateRequest {
            tools: vec![Tool { kind: "function", function: function.clone() }],
            tool_choice: ToolChoice::Required,
            constraint: Some(constraint),
            ..GenerateRequest::new(Arc::new(Owner::anonymous()), Prompt::Chat(Vec::new()))
        };
        assert_eq!(tools(&asking(Constraint::JsonObject)), Ok(()));
        let error = tools(&asking(Constraint::Regex("a+".to_owned()))).expect_err("both cannot be kept");
        assert_eq!(error.param(), Some("tool_choice"));
        assert!(error.message().contains("beside another grammar"), "{error}");
    }
}
