//! `POST /tokenize` and `POST /detokenize`, as vLLM has them: what a prompt is to the model, and back.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::caller::Caller;
use super::many::{MESSAGES_MAX, Many};
use super::problem::Problem;
use super::tool_fields::{self, ToolFields};
use super::{App, answer, body, fields, template};
use crate::error::Error;
use crate::protocol::{GenerateRequest, Owner, Prompt, TokenId};
use crate::text::Tokenizer;

/// Fields about tools and templates, which other routes than chats refuse.
const KNOWN: [&str; 4] = ["chat_template_kwargs", "continue_final_message", "enable_thinking", "tools"];

/// What a token takes on the wire, about, with its spelling.
const TOKEN_BYTES: usize = 12;

/// A prompt or a chat; what would change its tokens and cannot be done is refused.
#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Many<fields::MessageFields, MESSAGES_MAX>>,
    /// `false` leaves out the beginning-of-text token of a prompt. A chat has those that its template writes.
    add_special_tokens: Option<bool>,
    /// As in Chat Completions, so that what a chat costs can be counted.
    tools: Option<Vec<ToolFields>>,
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    enable_thinking: Option<bool>,
    reasoning_effort: Option<String>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    return_token_strs: Option<bool>,
}

/// The tokens on the wire.
#[derive(Serialize)]
struct Tokens<'a> {
    count: usize,
    /// Longest sequence, prompt and output together.
    max_model_len: usize,
    tokens: &'a [TokenId],
    /// How each is spelled, where asked for; half a character as U+FFFD.
    token_strs: Option<Spelled<'a>>,
}

/// Tokens that are spelled one by one as they are written: there can be millions.
struct Spelled<'a> {
    tokens: &'a [TokenId],
    tokenizer: &'a Tokenizer,
}

impl Serialize for Spelled<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.tokens.iter().map(|&token| match self.tokenizer.special_spelling(token) {
            Some(spelling) => Cow::Borrowed(spelling),
            None => String::from_utf8_lossy(self.tokenizer.token_bytes(token)),
        }))
    }
}

/// The answer to a request.
struct Tokenized {
    tokens: Vec<TokenId>,
    max_model_len: usize,
    is_spelled: bool,
    tokenizer: Arc<Tokenizer>,
}

impl Serialize for Tokenized {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let (tokens, tokenizer) = (&self.tokens[..], &self.tokenizer);
        let token_strs = self.is_spelled.then_some(Spelled { tokens, tokenizer });
        Tokens { count: tokens.len(), max_model_len: self.max_model_len, tokens, token_strs }.serialize(s)
    }
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Option<Vec<TokenId>>,
}

/// The text on the wire.
#[derive(Debug, Serialize)]
struct DetokenizedText {
    prompt: String,
}

/// A prompt's tokens, as a generation from it would begin. One longer than the context is none that fails.
///
/// # Errors
/// The body's; 400 without `prompt` and `messages` or with both, for unsupported fields, and for what the template
/// rejects; 404 for another model.
pub(crate) async fn tokenize(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let tenant = owner.tenant;
    let body = body::read(request, &app, tenant).await?;
    let (asked, _held) = body.parse(&app, tenant, move |json| read(json, owner)).await?;
    let Asked { generate, is_chat, adds_special, is_spelled } = asked;
    let served = app.service.generating(generate.model.as_deref())?.clone();
    let mut tokens = app.service.prompt_tokens(generate).await?;
    let tokenizer = served.tokenizer().clone();
    // No text of a user is ever taken for the beginning-of-text token: it was added.
    let is_begun = tokenizer.adds_bos() && tokens.first().copied() == tokenizer.bos();
    if !is_chat && !adds_special && is_begun {
        tokens.remove(0);
    }
    let (num_bytes, max_model_len) = (tokens.len() * TOKEN_BYTES, served.context_len());
    let make = move || Ok(Tokenized { tokens, max_model_len, is_spelled, tokenizer });
    answer::json(&app, tenant, num_bytes, make).await
}

/// What a body asks for.
struct Asked {
    generate: GenerateRequest,
    is_chat: bool,
    adds_special: bool,
    is_spelled: bool,
}

fn read(json: &[u8], owner: Arc<Owner>) -> Result<Asked, Problem> {
    fields::check_supported(json, &KNOWN)?;
    let f: TokenizeRequest = body::parse(json)?;
    let is_chat = f.messages.is_some();
    let prefix = f.messages.as_ref().is_some_and(|messages| fields::has_prefix(&messages.0)).then_some(true);
    let ending = template::ending(f.add_generation_prompt, f.continue_final_message.or(prefix));
    let thinking = template::Thinking {
        kwargs: f.chat_template_kwargs.unwrap_or_default(),
        is_enabled: f.enable_thinking,
        effort: f.reasoning_effort,
    };
    let tools = tool_fields::tools(f.tools.unwrap_or_default())?.tools;
    let prompt = match (f.prompt, f.messages) {
        (Some(text), None) => Prompt::Text(text),
        (None, Some(messages)) => Prompt::Chat(fields::messages(messages.0)?),
        (None, None) => return Err(Error::invalid("prompt", "`prompt` or `messages` must be given").into()),
        (Some(_), Some(_)) => {
            let message = "`prompt` must come without `messages`, got both";
            return Err(Error::invalid("prompt", message).into());
        }
    };
    if is_chat && f.add_special_tokens == Some(true) {
        let rule = "must be false with `messages`: the template writes special tokens itself, got true";
        return Err(Error::invalid("add_special_tokens", format!("`add_special_tokens` {rule}")).into());
    }
    let template_kwargs = template::kwargs(thinking);
    let generate =
        GenerateRequest { model: f.model, tools, template_kwargs, ending, ..GenerateRequest::new(owner, prompt) };
    let adds_special = f.add_special_tokens != Some(false);
    Ok(Asked { generate, is_chat, adds_special, is_spelled: f.return_token_strs.unwrap_or(false) })
}

/// The text of tokens, without control tokens.
///
/// # Errors
/// The body's; 400 for an id that is no token; 404 for another model.
pub(crate) async fn detokenize(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let tenant = owner.tenant;
    let body = body::read(request, &app, tenant).await?;
    let read = |json: &[u8]| {
        let f: DetokenizeRequest = body::parse(json)?;
        Ok((f.model, f.tokens.ok_or_else(|| Error::invalid("tokens", "`tokens` must be given"))?))
    };
    let ((model, tokens), _held) = body.parse(&app, tenant, read).await?;
    let prompt = app.service.text_of(&owner, model, tokens).await?;
    answer::json(&app, tenant, prompt.len(), move || Ok(DetokenizedText { prompt })).await
}
