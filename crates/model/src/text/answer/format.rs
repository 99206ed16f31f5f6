//! How one answer is to be read: the form of its calls, and of what the model thinks before it speaks.

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
    /// What stands before a call, wherever in the answer it comes.
    pub fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// The form that a template of this source teaches its model, if it teaches any.
    pub fn of_template(source: &str) -> Option<Self> {
        // Llama's markers last: others that grew out of it keep its tokens and have calls of their own.
        [Self::Mistral, Self::Hermes, Self::Llama3].into_iter().find(|syntax| source.contains(syntax.opening()))
    }
}

/// The markers around what a model thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ReasoningSyntax {
    /// `<think>` and `</think>`.
    Think,
    /// `[THINK]` and `[/THINK]`, as Mistral's models have it.
    Bracket,
}

impl ReasoningSyntax {
    /// What stands before it.
    pub fn opening(self) -> &'static str {
        match self {
            Self::Think => "<think>",
            Self::Bracket => "[THINK]",
        }
    }

    /// What ends it.
    pub fn closing(self) -> &'static str {
        match self {
            Self::Think => "</think>",
            Self::Bracket => "[/THINK]",
        }
    }

    /// The markers that a template of this source mentions. The closing one tells: templates that open the section
    /// themselves, and those that cut it out of earlier turns, all have it.
    pub fn of_template(source: &str) -> Option<Self> {
        [Self::Think, Self::Bracket].into_iter().find(|syntax| source.contains(syntax.closing()))
    }
}

/// Spellings of control tokens that are part of an answer's form. A control token has no text of its own; these have
/// it where a model writes them, or nobody could tell a call from an answer.
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

/// How the text of one answer is to be read. The default takes it as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct AnswerFormat {
    /// The form of calls, where the model was told of tools.
    pub calls: Option<CallFormat>,
    /// The form of reasoning, where the model knows one.
    pub reasoning: Option<ReasoningFormat>,
}

/// What counts as a call.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CallFormat {
    /// How it is written.
    pub syntax: CallSyntax,
    /// The tools of the request. A call without a marker before it must name one: an answer may be JSON, too.
    pub names: Vec<String>,
    /// Whether there may be several; what looks like a second call is content otherwise.
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
    /// Whether the prompt opened it, so that the answer begins within.
    pub is_open: bool,
}
