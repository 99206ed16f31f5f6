//! The fields of a request that have another name in each dialect. A rule that is broken names the field by this type, and
//! the dialect of the request spells it. A field with one name everywhere, such as `temperature`, needs none of this.

use std::fmt;

/// A field whose name depends on the dialect. Displayed, it has the name that it has in Chat Completions and on native streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The conversation.
    Messages,
    /// A part of one message, by the message's index: `role`, `tool_calls`, `tool_call_id`.
    Message(usize, &'static str),
    /// The prompt as text.
    Prompt,
    /// The prompt as token ids, or one of them.
    Tokens(Option<usize>),
    /// How long the output may be.
    MaxTokens,
    /// The stop strings, or one of them.
    Stop(Option<usize>),
    /// The tools.
    Tools,
    /// The name of one tool.
    ToolName(usize),
    /// The schema of one tool's arguments.
    ToolParameters(usize),
    /// The grammar of one tool's free text.
    ToolFormat(usize),
    /// Which tool is to be called.
    ToolChoice,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages => f.write_str("messages"),
            Self::Message(index, part) => write!(f, "messages[{index}].{part}"),
            Self::Prompt => f.write_str("prompt"),
            Self::Tokens(index) => write!(f, "tokens{}", Place(*index)),
            Self::MaxTokens => f.write_str("max_tokens"),
            Self::Stop(index) => write!(f, "stop{}", Place(*index)),
            Self::Tools => f.write_str("tools"),
            Self::ToolName(index) => write!(f, "tools[{index}].function.name"),
            Self::ToolParameters(index) => write!(f, "tools[{index}].function.parameters"),
            Self::ToolFormat(index) => write!(f, "tools[{index}].custom.format"),
            Self::ToolChoice => f.write_str("tool_choice"),
        }
    }
}

/// `[3]` for an element of a list, nothing for the list.
#[derive(Debug, Clone, Copy)]
pub struct Place(pub Option<usize>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |index| write!(f, "[{index}]"))
    }
}
