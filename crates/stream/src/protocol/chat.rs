//! A conversation: messages, and the tools that a model may call in it. Serialised as chat templates expect them, which
//! is how the transformers library hands them over.

use serde_json::Value;

use super::Constraint;

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool` or `developer`.
    pub role: String,
    /// Its text; empty for an assistant that only called tools.
    pub content: String,
    /// What the assistant thought before it spoke, for models that are shown it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// What the assistant called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a `tool` message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who speaks, or which tool answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatMessage {
    /// A message of text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// Bytes of its text, calls included: what rendering it costs follows from them.
    pub fn num_bytes(&self) -> usize {
        let reasoning = self.reasoning_content.as_ref().map_or(0, String::len);
        let calls = self.tool_calls.iter().map(|call| {
            let function = &call.function;
            call.id.len() + function.name.len() + function.arguments.to_string().len()
        });
        self.role.len() + self.content.len() + reasoning + calls.sum::<usize>()
    }
}

/// A call of a tool, made by an assistant in an earlier turn.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ToolCall {
    /// What its answer refers to.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What was called.
    pub function: FunctionCall,
}

/// A function's name with its arguments.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FunctionCall {
    /// Which function.
    pub name: String,
    /// An object where the model wrote one, else the text that it wrote.
    pub arguments: Value,
}

/// Something that a model may call.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Tool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What can be called.
    pub function: Function,
}

/// A function as the model is told of it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Function {
    /// Which function.
    pub name: String,
    /// What it does, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub parameters: Value,
    /// What its one argument must look like, for a tool that takes free text in place of arguments.
    #[serde(skip)]
    pub free_text: Option<FreeText>,
}

/// The input of a tool that takes free text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FreeText {
    /// The rule that it keeps, where a call must come.
    pub grammar: Option<Constraint>,
}

/// Whether the model may call tools, or must.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It is not told of any.
    None,
    /// At least one call.
    Required,
    /// A call of this one.
    Named(String),
}
