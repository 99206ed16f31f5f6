//! Every rule of a request, in one place. Each error names the parameter and says rule and value.

use super::config::QUEUE_TIMEOUT_MS_MAX;
use super::rule::{rule, shown};
use super::{ServiceConfig, tool_rules};
use crate::error::{Error, Result};
use crate::protocol::{
    ChatMessage, Field, GenerateRequest, OnDisconnect, PRIORITY_MAX, PRIORITY_MIN, Prompt, QueueTerms, SamplingParams,
    StopParams, StreamId, Tenant, TokenId, ValidInput, ValidRequest,
};

/// The roles a message can have.
const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "developer"];

/// Least and largest `repetition_penalty`. Logits are divided by it or multiplied with it: one of 1e-45 makes an infinity of
/// any of them, and no token is left. Nobody uses more than 2.
const REPETITION_PENALTIES: (f32, f32) = (0.01, 100.0);

/// Most stop strings. Every token is compared with all of them.
const STOP_STRINGS_MAX: usize = 64;
/// Longest stop string: so much text is held back, for a page of text is no stop.
const STOP_STRING_BYTES_MAX: usize = 1024;
/// Most stop tokens. They are compared with every token; no vocabulary has as many that end a text.
const STOP_TOKENS_MAX: usize = 128;
/// Most tokens with a bias. OpenAI takes 300; beyond this a step would spend its time on them.
const LOGIT_BIAS_MAX: usize = 1024;
/// Most rivals whose log-probability is told: OpenAI's bound.
const TOP_LOGPROBS_MAX: usize = 20;

/// What the rules depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'a> {
    /// Bounds of the parameters.
    pub config: &'a ServiceConfig,
    /// Ids are below this.
    pub vocab_size: usize,
    /// Longest sequence, prompt and output together.
    pub(crate) context_len: usize,
    /// Longest of a request that does not say how long: more would be refused, and nobody has asked for it.
    pub(crate) unasked_len: usize,
}

/// Checks everything that needs no tokens, so that a wrong parameter costs no tokenising.
///
/// # Errors
/// [`crate::error::ErrorKind::InvalidRequest`] with the parameter at fault.
pub(crate) fn parameters(request: &GenerateRequest, limits: Limits<'_>) -> Result<()> {
    match &request.prompt {
        Prompt::Chat(messages) => {
            messages_rules(messages)?;
            tool_rules::tools(request)?;
            tool_rules::answers(messages)?;
        }
        Prompt::Text(_) => {}
        Prompt::Tokens(tokens) => {
            if let Some((i, token)) = unknown_token(tokens, limits.vocab_size) {
                let rule = format!("must be a token id below {}, got {token}", limits.vocab_size);
                return Err(Error::rule(Field::Tokens(Some(i)), rule));
            }
        }
    }
    sampling_rules(&request.sampling, limits)?;
    stop_rules(&request.stop, limits)?;
    queue_rules(request)?;
    match request.on_disconnect {
        OnDisconnect::Linger { grace_ms } if grace_ms > limits.config.linger_ms_max => Err(rule(
            "on_disconnect",
            format!("must linger at most {} seconds", limits.config.linger_ms_max / 1000),
            grace_ms as f64 / 1000.0,
        )),
        _ => Ok(()),
    }
}

/// Checks how many generations are asked for.
///
/// # Errors
/// [`crate::error::ErrorKind::InvalidRequest`].
pub(crate) fn choices(num_choices: usize, config: &ServiceConfig) -> Result<()> {
    let max = config.choices_max;
    if (1..=max).contains(&num_choices) { Ok(()) } else { Err(rule("n", format!("must be 1 to {max}"), num_choices)) }
}

/// Fits prompt and output into the context and makes the request that the engine takes: an output that may be longer than
/// the room that the prompt leaves is cut to it. `seed` is used where the request has none.
///
/// # Errors
/// [`crate::error::ErrorKind::ContextLengthExceeded`] if the prompt alone is too long, or [`ErrorKind::InvalidRequest`].
pub(crate) fn fit(
    id: StreamId,
    request: GenerateRequest,
    prompt: Vec<TokenId>,
    seed: u64,
    limits: Limits<'_>,
) -> Result<ValidRequest> {
    let field = prompt_field(&request.prompt);
    let (num_prompt, context) = (prompt.len(), limits.context_len);
    if num_prompt == 0 {
        return Err(Error::rule(field, "must have at least one token, got none"));
    }
    if num_prompt >= context {
        return Err(Error::prompt_too_long(field, num_prompt, context));
    }
    let room = context - num_prompt;
    let affordable = limits.unasked_len.saturating_sub(num_prompt);
    let default = limits.config.max_tokens_default.unwrap_or(room).min(affordable).clamp(1, room);
    // A ceiling, not a wish: clients send the same one to every model, and an answer may end before it.
    let max_tokens = request.stop.max_tokens.map_or(default, |asked| asked.min(room));
    if request.stop.min_tokens > max_tokens {
        let at_most = format!("must be at most max_tokens ({max_tokens})");
        return Err(rule("min_tokens", at_most, request.stop.min_tokens));
    }
    let queue = terms(&request, limits);
    let sampling = SamplingParams { seed: Some(request.sampling.seed.unwrap_or(seed)), ..request.sampling };
    let (owner, stop, on_disconnect) = (request.owner, request.stop, request.on_disconnect);
    Ok(ValidRequest {
        id,
        tenant: owner.tenant,
        prompt,
        max_tokens,
        sampling,
        stop,
        on_disconnect,
        queue,
        constraint: request.constraint,
        leader: None,
        resumed: None,
    })
}

/// Makes the input that the engine embeds: nothing is sampled, so it may fill the context.
///
/// # Errors
/// As [`fit`].
pub(crate) fn fit_embedding(
    id: StreamId,
    request: &GenerateRequest,
    tokens: Vec<TokenId>,
    limits: Limits<'_>,
) -> Result<ValidInput> {
    input_length(prompt_field(&request.prompt), tokens.len(), limits.context_len)?;
    Ok(ValidInput { id, tenant: request.owner.tenant, tokens, queue: terms(request, limits) })
}

/// Checks the length of a text to embed.
///
/// # Errors
/// As [`fit`].
pub(crate) fn input_length(field: Field, num_tokens: usize, num_tokens_max: usize) -> Result<()> {
    match num_tokens {
        0 => Err(Error::rule(field, "must have at least one token, got none")),
        n if n > num_tokens_max => Err(Error::prompt_too_long(field, n, num_tokens_max)),
        _ => Ok(()),
    }
}

/// On which terms it waits.
fn terms(request: &GenerateRequest, limits: Limits<'_>) -> QueueTerms {
    QueueTerms {
        weight: request.owner.weight,
        priority: request.priority.unwrap_or(request.owner.priority),
        timeout_ms: Some(request.queue_timeout_ms.unwrap_or(limits.config.queue_timeout_ms)),
    }
}

/// The request field that the prompt came in.
pub(super) fn prompt_field(prompt: &Prompt) -> Field {
    match prompt {
        Prompt::Chat(_) => Field::Messages,
        Prompt::Text(_) => Field::Prompt,
        Prompt::Tokens(_) => Field::Tokens(None),
    }
}

fn messages_rules(messages: &[ChatMessage]) -> Result<()> {
    if messages.is_empty() {
        return Err(Error::rule(Field::Messages, "must have at least one message, got none"));
    }
    for (i, message) in messages.iter().enumerate() {
        if !ROLES.contains(&message.role.as_str()) {
            let rule = format!("must be one of {}, got {}", ROLES.join(", "), shown(&message.role));
            return Err(Error::rule(Field::Message(i, "role"), rule));
        }
    }
    Ok(())
}

fn sampling_rules(s: &SamplingParams, limits: Limits<'_>) -> Result<()> {
    between("temperature", s.temperature, 0.0, 2.0)?;
    above_zero_to_one("top_p", s.top_p)?;
    above_zero_to_one("typical_p", s.typical_p)?;
    between("min_p", s.min_p, 0.0, 1.0)?;
    between("presence_penalty", s.presence_penalty, -2.0, 2.0)?;
    between("frequency_penalty", s.frequency_penalty, -2.0, 2.0)?;
    let (min, max) = REPETITION_PENALTIES;
    between("repetition_penalty", s.repetition_penalty, min, max)?;
    if s.logit_bias.len() > LOGIT_BIAS_MAX {
        return Err(rule("logit_bias", format!("must have at most {LOGIT_BIAS_MAX} entries"), s.logit_bias.len()));
    }
    for &(token, bias) in &s.logit_bias {
        let param = format!("logit_bias.{token}");
        known_token(&param, token, limits.vocab_size)?;
        between(&param, bias, -100.0, 100.0)?;
    }
    match s.top_logprobs.max(s.prompt_logprobs) {
        Some(n) if n > TOP_LOGPROBS_MAX => Err(rule("top_logprobs", format!("must be at most {TOP_LOGPROBS_MAX}"), n)),
        _ => Ok(()),
    }
}

fn stop_rules(s: &StopParams, limits: Limits<'_>) -> Result<()> {
    if s.max_tokens == Some(0) {
        return Err(Error::rule(Field::MaxTokens, "must be at least 1, got 0"));
    }
    if s.strings.len() > STOP_STRINGS_MAX {
        let rule = format!("must have at most {STOP_STRINGS_MAX} strings, got {}", s.strings.len());
        return Err(Error::rule(Field::Stop(None), rule));
    }
    for (i, string) in s.strings.iter().enumerate() {
        let num_bytes = string.len();
        if num_bytes == 0 || num_bytes > STOP_STRING_BYTES_MAX {
            let rule = format!("must have 1 to {STOP_STRING_BYTES_MAX} bytes, got {num_bytes}");
            return Err(Error::rule(Field::Stop(Some(i)), rule));
        }
    }
    if s.token_ids.len() > STOP_TOKENS_MAX {
        let at_most = format!("must have at most {STOP_TOKENS_MAX} ids");
        return Err(rule("stop_token_ids", at_most, s.token_ids.len()));
    }
    tokens_rules("stop_token_ids", &s.token_ids, limits.vocab_size)
}

fn queue_rules(request: &GenerateRequest) -> Result<()> {
    // Without keys nobody is to be protected from anybody; with them a request cannot push past what its key may.
    let is_keyed = request.owner.tenant != Tenant(0);
    let most_urgent = if is_keyed { request.owner.priority } else { PRIORITY_MIN };
    match (request.priority, request.queue_timeout_ms) {
        (Some(priority), _) if !(most_urgent..=PRIORITY_MAX).contains(&priority) => {
            let (key, range) =
                (if is_keyed { " with this key" } else { "" }, format!("{most_urgent} to {PRIORITY_MAX}"));
            Err(rule("priority", format!("must be {range}{key} (lower goes first)"), priority))
        }
        (_, Some(ms)) if ms > QUEUE_TIMEOUT_MS_MAX => {
            let at_most = format!("must be at most {} seconds", QUEUE_TIMEOUT_MS_MAX as f64 / 1000.0);
            Err(rule("x-queue-timeout", at_most, ms as f64 / 1000.0))
        }
        _ => Ok(()),
    }
}

fn tokens_rules(param: &str, tokens: &[TokenId], vocab_size: usize) -> Result<()> {
    let unknown = unknown_token(tokens, vocab_size);
    unknown.map_or(Ok(()), |(i, token)| known_token(&format!("{param}[{i}]"), token, vocab_size))
}

fn unknown_token(tokens: &[TokenId], vocab_size: usize) -> Option<(usize, TokenId)> {
    tokens.iter().copied().enumerate().find(|(_, token)| *token as usize >= vocab_size)
}

fn known_token(param: &str, token: TokenId, vocab_size: usize) -> Result<()> {
    if (token as usize) < vocab_size {
        return Ok(());
    }
    Err(rule(param, format!("must be a token id below {vocab_size}"), token))
}

fn between(param: &str, value: f32, min: f32, max: f32) -> Result<()> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(rule(param, format!("must be {min} to {max}"), value)) }
}

fn above_zero_to_one(param: &str, value: f32) -> Result<()> {
    if value > 0.0 && value <= 1.0 { Ok(()) } else { Err(rule(param, "must be > 0 and <= 1", value)) }
}
