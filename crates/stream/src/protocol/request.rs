//! A request twice: as a dialect understood it, and as it is once templated, tokenised and checked. The second type
//! is the proof of the check: nothing past `service/` sees the first.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::chat::{ChatMessage, Tool, ToolChoice};
use super::constraint::Constraint;
use super::field::Field;
use super::ids::{StreamId, Tenant, TokenId};
use super::owner::{Owner, QueueTerms};

/// What every dialect turns its JSON into. Values may still break rules.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Whose request it is.
    pub owner: Arc<Owner>,
    /// The model asked for; `None` means the one that is served.
    pub model: Option<String>,
    /// What to go on from.
    pub prompt: Prompt,
    /// How to draw tokens.
    pub sampling: SamplingParams,
    /// When to end.
    pub stop: StopParams,
    /// What to do when the last reader leaves.
    pub on_disconnect: OnDisconnect,
    /// Its place in line; `None` takes the owner's.
    pub priority: Option<i32>,
    /// How long it may wait for a worker, in milliseconds; `None` takes the server's default.
    pub queue_timeout_ms: Option<u64>,
    /// What the model may call; only chats have tools.
    pub tools: Vec<Tool>,
    /// Whether it may, or must.
    pub tool_choice: ToolChoice,
    /// Whether one answer may have several calls.
    pub parallel_tool_calls: bool,
    /// Further variables for the chat template.
    pub template_kwargs: BTreeMap<String, Value>,
    /// How a chat's prompt ends.
    pub ending: PromptEnding,
    /// What the text must look like, whatever the model would rather say.
    pub constraint: Option<Constraint>,
    /// The field that it came in, for errors.
    pub constraint_param: &'static str,
    /// Where the constraint was made of tools, the rule of each with its field: one of them is to blame if it is none.
    pub constraint_tools: Vec<(Field, Constraint)>,
}

impl GenerateRequest {
    /// A request that asks for nothing but the continuation of `prompt`, and is cancelled when its reader leaves.
    pub fn new(owner: Arc<Owner>, prompt: Prompt) -> Self {
        Self {
            owner,
            model: None,
            prompt,
            sampling: SamplingParams::default(),
            stop: StopParams::default(),
            on_disconnect: OnDisconnect::Cancel,
            priority: None,
            queue_timeout_ms: None,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            template_kwargs: BTreeMap::new(),
            ending: PromptEnding::Answer,
            constraint: None,
            constraint_param: "response_format",
            constraint_tools: Vec::new(),
        }
    }
}

/// How a chat's prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PromptEnding {
    /// Where the assistant's answer begins.
    #[default]
    Answer,
    /// Behind the last message, if that is the assistant's within its text: the output goes on from there. Else where an
    /// answer begins.
    Continue,
    /// Behind the last message, with no answer begun.
    Messages,
}

/// What to go on from.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Messages, rendered by the model's own template.
    Chat(Vec<ChatMessage>),
    /// Plain text; special tokens in it are text, not control.
    Text(String),
    /// Token ids as they are.
    Tokens(Vec<TokenId>),
}

/// How tokens are drawn. The default is a plain draw from the model's own distribution.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SamplingParams {
    /// 0 is greedy; at most 2.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this probable relative to the most probable; 0 keeps all.
    pub min_p: f32,
    /// Locally typical sampling's mass; 1 keeps all.
    pub typical_p: f32,
    /// Divides (or multiplies, if negative) the logits of tokens seen in prompt or output; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Added to single tokens' logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The draw at output position `i` depends on this, `i` and the logits only. Drawn by the service where absent.
    pub seed: Option<u64>,
    /// Report the log-probability of each token and of this many rivals.
    pub top_logprobs: Option<usize>,
    /// The same for the prompt's own tokens, each but the first.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            top_logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// When a generation ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct StopParams {
    /// Most tokens to sample; `None` goes on to the context limit.
    pub max_tokens: Option<usize>,
    /// Fewest tokens before an end-of-generation token or stop string counts.
    pub min_tokens: usize,
    /// The text ends before the first of these to appear.
    pub strings: Vec<String>,
    /// Tokens that end it like an end-of-generation token does.
    pub token_ids: Vec<TokenId>,
    /// Go on past end-of-generation tokens.
    pub ignore_eos: bool,
}

/// What happens to a generation when its last reader has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OnDisconnect {
    /// Stop at once.
    Cancel,
    /// Stop if nobody has come back after this many milliseconds.
    Linger {
        /// The grace time.
        grace_ms: u64,
    },
    /// Run to the end.
    Detach,
}

/// A request that keeps every rule: tokenised, within the context, parameters in range, the seed drawn. Only
/// `service::validate` makes them.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ValidRequest {
    /// The name of its stream.
    pub id: StreamId,
    /// Whose work it is.
    pub tenant: Tenant,
    /// At least one token, and shorter than the context.
    pub prompt: Vec<TokenId>,
    /// At least 1; prompt plus this many fits the context.
    pub max_tokens: usize,
    /// Checked, its `seed` present.
    pub sampling: SamplingParams,
    /// Checked, its `max_tokens` superseded by the field above.
    pub stop: StopParams,
    /// What to do when the last reader leaves.
    pub on_disconnect: OnDisconnect,
    /// On which terms it waits.
    pub queue: QueueTerms,
    /// What the text must look like.
    pub constraint: Option<Constraint>,
    /// A stream with the same prompt, submitted just before, whose computation of it this one is to share.
    pub leader: Option<StreamId>,
    /// Where it stands, if it is not new.
    pub resumed: Option<Resumed>,
}

/// A text to embed that keeps every rule: tokenised, within the context. Only `service::validate` makes them. Nothing is
/// sampled from it and nothing of it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidInput {
    /// Tells it from every other text and stream.
    pub id: StreamId,
    /// Whose work it is.
    pub tenant: Tenant,
    /// At least one token, and at most as many as the context has.
    pub tokens: Vec<TokenId>,
    /// On which terms it waits.
    pub queue: QueueTerms,
}

/// Where a request stands that goes on after the end of the process that it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Resumed {
    /// So many tokens at the end of the prompt were sampled, and shown.
    pub num_emitted: usize,
    /// Length of the text that was shown with them.
    pub text_bytes: usize,
    /// Tokens of the prompt that came from the prefix cache then, if a worker had begun on it.
    pub cached_tokens: Option<usize>,
}

impl ValidRequest {
    /// Tokens of the prompt as it came.
    pub fn num_prompt_tokens(&self) -> usize {
        self.prompt.len() - self.resumed.map_or(0, |resumed| resumed.num_emitted)
    }

    /// The most tokens this request can ever hold, which is what admission counts.
    pub fn num_tokens_max(&self) -> usize {
        self.num_prompt_tokens() + self.max_tokens
    }

    /// The seed of its draws.
    ///
    /// # Panics
    /// If validation was skipped: a valid request has a seed.
    pub fn seed(&self) -> u64 {
        self.sampling.seed.expect("a valid request has a seed")
    }
}
