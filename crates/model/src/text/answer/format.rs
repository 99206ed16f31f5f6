//! How to read one answer: the form of its calls, and of the reasoning before its content.

/// The form in which a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum CallSyntax {
    /// `<tool_call>{"name": "f", "arguments": {}}</tool_call>`: Hermes and other ChatML models, Qwen.
    Hermes,
    /// `{"name": "f", "parameters": {}}` as the whole answer, or behind `<|python_tag|>`.
    Llama3,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {}}]`, newer `[TOOL_CALLS]f[ARGS]{}`.
    Mistral,
}

impl CallSyntax {
    /// The marker before a call, anywhere in the answer.
    pub fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// The form that a template of this source teaches its model, if it teaches any.
    pub fn of_template(source: &str) -> Option<Self> {
        // Llama's marker is tried last: models derived from Llama keep its tokens and have call forms of their own.
        [Self::Mistral, Self::Hermes, Self::Llama3].into_iter().find(|syntax| source.contains(syntax.opening()))
    }
}

/// The markers around a model's reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ReasoningSyntax {
    /// `<think>` and `</think>`.
    Think,
    /// `[THINK]` and `[/THINK]`, as Mistral's models have it.
    Bracket,
}

impl ReasoningSyntax {
    /// The marker before the reasoning.
    pub fn opening(self) -> &'static str {
        match self {
            Self::Think => "<think>",
            Self::Bracket => "[THINK]",
        }
    }

    /// The marker that ends the reasoning.
    pub fn closing(self) -> &'static str {
        match self {
            Self::Think => "</think>",
            Self::Bracket => "[/THINK]",
        }
    }

    /// The markers that a template of this source mentions. The closing marker decides: templates that open the section
    /// themselves, and templates that cut it out of earlier turns, all contain it.
    pub fn of_template(source: &str) -> Option<Self> {
        [Self::Think, Self::Bracket].into_iter().find(|syntax| source.contains(syntax.closing()))
    }
}

/// Spellings of control tokens that are part of an answer's form. A control token has no text of its own. These tokens
/// do have text when a model writes them, because otherwise no reader could tell a call from content.
pub(in crate::text) const MARKERS: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[CALL_ID]",
    "[ARGS]",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
];

/// How to read the text of one answer. By default the whole text is content.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct AnswerFormat {
    /// The form of calls, if the request has tools.
    pub calls: Option<CallFormat>,
    /// The form of reasoning, if the model knows one.
    pub reasoning: Option<ReasoningFormat>,
}

/// What counts as a call.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CallFormat {
    /// How it is written.
    pub syntax: CallSyntax,
    /// The tools of the request. A call without a marker before it must name one of them, because an answer may also be
    /// plain JSON.
    pub names: Vec<String>,
    /// Whether an answer may have several calls. If not, text that looks like a second call is content.
    pub is_parallel: bool,
    /// The tool whose input is the whole answer, without a call around it: a grammar of free text does not survive JSON's
    /// escapes, so a call that must come of such a tool is asked for bare.
    pub whole: Option<String>,
}

/// The one argument of a tool that takes free text.
pub const FREE_TEXT: &str = "input";

/// Where reasoning is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReasoningFormat {
    /// How it is marked.
    pub syntax: ReasoningSyntax,
    /// Whether the prompt opened the reasoning, so that the answer begins within it.
    pub is_open: bool,
}
