//! `POST /tokenize` and `POST /detokenize`, as vLLM has them: what a prompt is to the model, and back.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::problem::Problem;
use super::{App, body, fields};
use crate::error::Error;
use crate::protocol::{GenerateRequest, Prompt, TokenId};
use crate::text::Tokenizer;

/// A prompt or a chat; what would change its tokens and cannot be done is refused.
#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<fields::MessageFields>>,
    /// `false` leaves out the beginning-of-text token of a prompt. A chat has those that its template writes.
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

/// The tokens on the wire.
#[derive(Debug, Serialize)]
pub struct Tokens {
    count: usize,
    /// Longest sequence, prompt and output together.
    max_model_len: usize,
    tokens: Vec<TokenId>,
    /// How each is spelled, where asked for; half a character as U+FFFD.
    token_strs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Option<Vec<TokenId>>,
}

/// The text on the wire.
#[derive(Debug, Serialize)]
pub struct Text {
    prompt: String,
}

/// A prompt's tokens, as a generation from it would begin. One longer than the context is none that fails.
///
/// # Errors
/// The body's; 400 without `prompt` and `messages` or with both, for unsupported fields, and for what the template
/// rejects; 404 for another model.
pub async fn tokenize(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Json<Tokens>, Problem> {
    let json = body::read(request, &app.config).await?;
    fields::check_supported(&json, &[])?;
    let f: TokenizeRequest = body::parse(&json)?;
    drop(json);
    let is_chat = f.messages.is_some();
    let prompt = match (f.prompt, f.messages) {
        (Some(text), None) => Prompt::Text(text),
        (None, Some(messages)) => Prompt::Chat(fields::messages(messages)?),
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
    let generate = GenerateRequest { model: f.model, ..GenerateRequest::new(owner, prompt) };
    let mut tokens = app.service.prompt_tokens(generate).await?;
    let tokenizer = app.service.tokenizer();
    // No text of a user is ever taken for the beginning-of-text token: it was added.
    let is_begun = tokenizer.adds_bos() && tokens.first().copied() == tokenizer.bos();
    if !is_chat && f.add_special_tokens == Some(false) && is_begun {
        tokens.remove(0);
    }
    let token_strs = f.return_token_strs.unwrap_or(false).then(|| spell(&tokens, tokenizer));
    Ok(Json(Tokens { count: tokens.len(), max_model_len: app.service.context_len(), tokens, token_strs }))
}

/// The text of tokens, without control tokens.
///
/// # Errors
/// The body's; 400 for an id that is no token; 404 for another model.
pub async fn detokenize(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Json<Text>, Problem> {
    let json = body::read(request, &app.config).await?;
    let f: DetokenizeRequest = body::parse(&json)?;
    let tokens = f.tokens.ok_or_else(|| Error::invalid("tokens", "`tokens` must be given"))?;
    let generate = GenerateRequest { model: f.model, ..GenerateRequest::new(owner, Prompt::Tokens(tokens)) };
    let tokens = app.service.prompt_tokens(generate).await?;
    Ok(Json(Text { prompt: app.service.text_of(tokens).await? }))
}

fn spell(tokens: &[TokenId], tokenizer: &Tokenizer) -> Vec<String> {
    let one = |&token: &TokenId| match tokenizer.special_spelling(token) {
        Some(spelling) => spelling.to_owned(),
        None => String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned(),
    };
    tokens.iter().map(one).collect()
}
