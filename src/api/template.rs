//! What a request says of the chat template: its variables, whether the model is to think, and how the prompt ends. Dialects
//! have different words for the same few wishes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::protocol::PromptEnding;

/// The variable by which templates of models that can think or not are told.
const ENABLE_THINKING: &str = "enable_thinking";
/// The variable of templates that know several degrees of it.
const REASONING_EFFORT: &str = "reasoning_effort";

/// Wishes about thinking, and the variables that were set by name.
#[derive(Debug, Default)]
pub(crate) struct Thinking {
    /// Variables as the client named them; they have the last word.
    pub(crate) kwargs: BTreeMap<String, Value>,
    /// Whether to think, where that was said.
    pub(crate) is_enabled: Option<bool>,
    /// How hard; `none` is not at all.
    pub(crate) effort: Option<String>,
}

/// The template's variables. One that the template does not read changes nothing.
pub(crate) fn kwargs(thinking: Thinking) -> BTreeMap<String, Value> {
    let Thinking { mut kwargs, is_enabled, effort } = thinking;
    let is_enabled = is_enabled.or(effort.as_deref().map(|effort| effort != "none"));
    if let Some(is_enabled) = is_enabled {
        kwargs.entry(ENABLE_THINKING.to_owned()).or_insert(json!(is_enabled));
    }
    if let Some(effort) = effort {
        kwargs.entry(REASONING_EFFORT.to_owned()).or_insert(json!(effort));
    }
    kwargs
}

/// How the prompt ends. A last message of the assistant's is gone on with unless the request says otherwise.
pub(crate) fn ending(add_generation_prompt: Option<bool>, continue_final_message: Option<bool>) -> PromptEnding {
    match (add_generation_prompt, continue_final_message) {
        (_, Some(true)) => PromptEnding::Continue,
        (Some(false), _) => PromptEnding::Messages,
        (Some(true), _) | (None, Some(false)) => PromptEnding::Answer,
        (None, None) => PromptEnding::Continue,
    }
}
