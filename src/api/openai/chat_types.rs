//! Chat Completions' JSON, private to this dialect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::fields::MessageFields;
use crate::api::many::{MESSAGES_MAX, Many};
use crate::api::numbers::Whole;
use crate::api::tool_fields::ToolFields;
use crate::protocol::{TokenId, TokenLogprob, Usage};
use crate::text::Tokenizer;

/// What OpenAI's clients are told where a probability is 0: JSON has no infinity.
pub(super) const LOGPROB_MIN: f32 = -9999.0;

/// The fields of a request that only this dialect has; sampling is in `api::fields`.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    pub(super) model: Option<String>,
    pub(super) messages: Option<Many<MessageFields, MESSAGES_MAX>>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) tools: Option<Vec<ToolFields>>,
    pub(super) tool_choice: Option<Value>,
    pub(super) parallel_tool_calls: Option<bool>,
    /// Variables of the template, as vLLM names them.
    pub(super) chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// vLLM's: a lower one goes first.
    pub(super) priority: Option<Whole>,
    /// Whether the output goes on from the last message, if that is the assistant's. It does unless this says no.
    pub(super) continue_final_message: Option<bool>,
    /// Whether the prompt ends where an answer begins.
    pub(super) add_generation_prompt: Option<bool>,
    /// How hard to think: `none` turns it off, in templates that can.
    pub(super) reasoning_effort: Option<String>,
    /// The variable of many templates, as llama.cpp's and SGLang's users write it.
    pub(super) enable_thinking: Option<bool>,
    /// How much to say; no model here is told.
    pub(super) verbosity: Option<Value>,
    /// What the answer may be like, for speed.
    pub(super) prediction: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
    /// vLLM's: with `include_usage`, what was spent so far in every chunk.
    pub(super) continuous_usage_stats: Option<bool>,
}

/// One chunk of a stream. `usage` is left out unless the client asked for it; then it is `null` but in the last.
#[derive(Debug, Serialize)]
pub(super) struct Chunk<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: Vec<ChunkChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<UsageObject>>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChunkChoice<'a> {
    pub(super) index: usize,
    pub(super) delta: Delta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: Option<&'static str>,
    /// vLLM's: the stop string that ended the text, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stop_reason: Option<&'a str>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool_calls: Option<[CallDelta<'a>; 1]>,
}

/// A call's beginning, or more of its arguments.
#[derive(Debug, Serialize)]
pub(super) struct CallDelta<'a> {
    pub(super) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) function: Option<FunctionDelta<'a>>,
    /// Of a tool that takes free text, which comes as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) custom: Option<CustomCalled>,
}

#[derive(Debug, Serialize)]
pub(super) struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    pub(super) arguments: &'a str,
}

/// The answer to a call without `stream`.
#[derive(Debug, Serialize)]
pub(super) struct Completion {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) choices: Vec<Choice>,
    pub(super) usage: UsageObject,
}

#[derive(Debug, Serialize)]
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) message: Message,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: &'static str,
    /// vLLM's: the stop string that ended the text, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stop_reason: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Message {
    pub(super) role: &'static str,
    /// `null` if there are only calls.
    pub(super) content: Option<String>,
    pub(super) refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<Call>,
}

/// A call of a tool with arguments, or of one that takes free text.
#[derive(Debug, Serialize)]
pub(super) struct Call {
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) called: Called,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Called {
    Function { function: CalledFunction },
    Custom { custom: CustomCalled },
}

#[derive(Debug, Serialize)]
pub(super) struct CustomCalled {
    pub(super) name: String,
    pub(super) input: String,
}

#[derive(Debug, Serialize)]
pub(super) struct CalledFunction {
    pub(super) name: String,
    pub(super) arguments: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Logprobs {
    content: Vec<TokenObject>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct TokenObject {
    #[serde(flatten)]
    token: TokenSpelling,
    top_logprobs: Vec<TokenSpelling>,
}

#[derive(Debug, Serialize)]
struct TokenSpelling {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Logprobs {
    pub(super) fn new(logprobs: &[TokenLogprob], tokenizer: &Tokenizer) -> Self {
        let content = logprobs.iter().map(|l| TokenObject {
            token: TokenSpelling::new(l.token, l.logprob, tokenizer),
            top_logprobs: l.top.iter().map(|&(t, p)| TokenSpelling::new(t, p, tokenizer)).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

impl TokenSpelling {
    fn new(token: TokenId, logprob: f32, tokenizer: &Tokenizer) -> Self {
        let bytes = tokenizer.token_bytes(token).to_vec();
        let logprob = if logprob.is_finite() { logprob } else { LOGPROB_MIN };
        Self { token: String::from_utf8_lossy(&bytes).into_owned(), logprob, bytes }
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct UsageObject {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokens,
    completion_tokens_details: CompletionTokens,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PromptTokens {
    cached_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct CompletionTokens {
    reasoning_tokens: usize,
}

impl UsageObject {
    pub(super) fn new(u: Usage, reasoning_tokens: usize) -> Self {
        Self {
            prompt_tokens: u.prompt_tokens,
            completion_tokens: u.completion_tokens,
            total_tokens: u.prompt_tokens + u.completion_tokens,
            prompt_tokens_details: PromptTokens { cached_tokens: u.cached_tokens },
            completion_tokens_details: CompletionTokens { reasoning_tokens },
        }
    }
}
