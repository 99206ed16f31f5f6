//! Chat Completions from the caller's side: one request, a stream of pieces back, and every failure as a sentence
//! that says what to do. Dropping a [`ReplyStream`] closes its connection, which cancels the generation.

use std::time::Duration;

use reqwest::{Response, StatusCode, redirect};
use serde_json::{Value, json};

use super::sse::SseParser;
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::ChatMessage;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One event of a stream; a piece of text is a few bytes, an error a few hundred.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// Of an error's body or a list of models.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Of what a server says of an error: enough for our longest messages, too little to fill a terminal.
const SAID_CHARS_MAX: usize = 2000;
/// Redirects that are followed within the server's own origin.
const REDIRECTS_MAX: usize = 5;
/// When a server is busy and does not say for how long.
const RETRY_AFTER_DEFAULT_MS: u64 = 1000;

/// A server and how to reach it.
#[derive(Debug, Clone)]
pub struct ChatClient {
    http: reqwest::Client,
    /// Ends in `/v1`.
    base: String,
    api_key: Option<String>,
}

/// What goes with every turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChatParams {
    /// The model's name on that server.
    pub model: String,
    /// Sampling temperature; the server's default if absent.
    pub temperature: Option<f32>,
    /// Most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// Same seed, same answer, where the server promises that.
    pub seed: Option<u64>,
}

/// What arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyPiece {
    /// Text of the answer.
    Text(String),
    /// Text that the model thinks before it answers.
    Reasoning(String),
    /// Why the answer ended.
    Finish(String),
    /// Tokens of the answer, as the server counted them.
    CompletionTokens(u64),
}

impl ChatClient {
    /// A client of the server at `url`, with or without `/v1` at its end.
    ///
    /// # Errors
    /// If `url` is no plain HTTP address: there is no TLS in this build.
    pub fn new(url: &str, api_key: Option<String>) -> Result<Self> {
        let parsed: Option<reqwest::Url> = url.parse().ok();
        match parsed.as_ref().filter(|url| url.has_host()).map(reqwest::Url::scheme) {
            Some("http") => {}
            Some("https") => {
                let message = format!("--url: this client has no TLS and speaks plain http only, got `{url}`");
                return Err(Error::invalid("url", message));
            }
            _ => {
                let message = format!("--url must be an address like http://127.0.0.1:8080, got `{url}`");
                return Err(Error::invalid("url", message));
            }
        }
        let builder = reqwest::Client::builder();
        // A proxy cannot reach this machine's own loopback.
        let is_loopback =
            ["127.", "localhost", "[::1]"].iter().any(|h| url.trim_start_matches("http://").starts_with(h));
        let http = if is_loopback { builder.no_proxy() } else { builder }
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::custom(follow_within_origin))
            .user_agent(concat!("tallow/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::internal(format!("the HTTP client cannot be built: {e}")))?;
        let url = url.trim_end_matches('/');
        let base = if url.ends_with("/v1") { url.to_owned() } else { format!("{url}/v1") };
        Ok(Self { http, base, api_key })
    }

    /// The first model the server lists.
    ///
    /// # Errors
    /// If the server cannot be reached, refuses, or has none.
    pub(crate) async fn first_model(&self) -> Result<String> {
        let response = self.send(self.http.get(format!("{}/models", self.base))).await?;
        let body = read_body(response).await.map_err(|e| self.transport(&e))?;
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        let first = list.pointer("/data/0/id").and_then(Value::as_str).map(str::to_owned);
        first.ok_or_else(|| {
            Error::new(ErrorKind::ModelNotFound, format!("{} lists no model; name one with --model", self.base))
        })
    }

    /// Sends `messages` and opens the stream of the answer.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] with the time to come back if the server is busy; otherwise whatever it said.
    pub async fn chat(&self, params: &ChatParams, messages: &[ChatMessage]) -> Result<ReplyStream> {
        let mut body = json!({
            "model": params.model,
            "messages": messages,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        let optional = [
            ("temperature", params.temperature.map(Value::from)),
            ("max_tokens", params.max_tokens.map(Value::from)),
            ("seed", params.seed.map(Value::from)),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        let response = self.send(self.http.post(format!("{}/chat/completions", self.base)).json(&body)).await?;
        let content_type = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("none");
        if !content_type.starts_with("text/event-stream") {
            let message = format!("{} answered with {content_type}, not with an event stream", self.base);
            return Err(Error::new(ErrorKind::Io, message));
        }
        Ok(ReplyStream {
            client: self.clone(),
            response,
            parser: SseParser::new(EVENT_BYTES_MAX),
            state: ReplyState::Open,
        })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response> {
        let request = match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.map_err(|e| self.transport(&e))?;
        if response.status() == StatusCode::OK { Ok(response) } else { Err(refusal(response).await) }
    }

    /// A failure below HTTP, down to its root: reqwest's own text says only that sending failed.
    fn transport(&self, error: &reqwest::Error) -> Error {
        let mut root: &dyn std::error::Error = error;
        while let Some(source) = root.source() {
            root = source;
        }
        if error.is_connect() {
            let message = format!(
                "cannot reach {}: {root}; start a server with `tallow serve` or name one with --url",
                self.base
            );
            return Error::new(ErrorKind::Unavailable, message);
        }
        Error::io(&self.base, root)
    }
}

/// The conversation goes with a redirect that keeps the body, so it may lead to the server's own scheme, host and port
/// alone. Another one ends here, and its status is told.
fn follow_within_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let is_own = attempt.previous().first().is_some_and(|first| first.origin() == attempt.url().origin());
    if is_own && attempt.previous().len() <= REDIRECTS_MAX { attempt.follow() } else { attempt.stop() }
}

/// What a status other than 200 means.
async fn refusal(response: Response) -> Error {
    let status = response.status();
    let retry_after_ms = retry_after_ms(&response);
    let body = read_body(response).await.unwrap_or_default();
    let said = serde_json::from_slice(&body).ok().as_ref().and_then(error_message);
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().chars().take(200).collect());
    let message = if said.is_empty() { format!("the server answered {status}") } else { format!("{said} ({status})") };
    match status {
        StatusCode::TOO_MANY_REQUESTS => Error::overloaded(message, retry_after_ms.unwrap_or(RETRY_AFTER_DEFAULT_MS)),
        // A draining or loading server; only worth another try if it says when.
        StatusCode::SERVICE_UNAVAILABLE => match retry_after_ms {
            Some(ms) => Error::overloaded(message, ms),
            None => Error::new(ErrorKind::Unavailable, message),
        },
        StatusCode::NOT_FOUND => Error::new(ErrorKind::ModelNotFound, message),
        s if s.is_client_error() => Error::new(ErrorKind::InvalidRequest, message),
        _ => Error::new(ErrorKind::Internal, message),
    }
}

/// `retry-after-ms`, else `Retry-After` in seconds. Its date form is treated as absent.
fn retry_after_ms(response: &Response) -> Option<u64> {
    let header = |name: &str| response.headers().get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let ms = header("retry-after-ms").or_else(|| header("retry-after").map(|seconds| seconds * 1000.0))?;
    (ms >= 0.0).then_some(ms as u64)
}

fn error_message(body: &Value) -> Option<String> {
    let error = body.get("error").filter(|error| !error.is_null())?;
    let text = error.get("message").unwrap_or(error);
    let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
    Some(text.chars().take(SAID_CHARS_MAX).collect())
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > BODY_BYTES_MAX {
            body.truncate(BODY_BYTES_MAX);
            break;
        }
    }
    Ok(body)
}

/// An answer on its way.
#[derive(Debug)]
pub struct ReplyStream {
    client: ChatClient,
    response: Response,
    parser: SseParser,
    state: ReplyState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyState {
    Open,
    /// A finish reason came, so that a missing `[DONE]` is forgiven.
    Finished,
    Closed,
}

impl ReplyStream {
    /// The next pieces, at least one; `None` once the answer is complete. Cancel-safe: bytes are taken up whole.
    ///
    /// # Errors
    /// If the server reports a failure, the connection breaks, or the stream ends in the middle.
    pub async fn next(&mut self) -> Result<Option<Vec<ReplyPiece>>> {
        loop {
            while let Some(event) = self.parser.next_event() {
                if event.data == "[DONE]" {
                    self.state = ReplyState::Closed;
                }
                if self.state == ReplyState::Closed {
                    return Ok(None);
                }
                let pieces = pieces(&event.data)?;
                if pieces.iter().any(|piece| matches!(piece, ReplyPiece::Finish(_))) {
                    self.state = ReplyState::Finished;
                }
                if !pieces.is_empty() {
                    return Ok(Some(pieces));
                }
            }
            match (self.response.chunk().await, self.state) {
                (Ok(Some(bytes)), _) => {
                    self.parser.push(&bytes).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
                }
                (Ok(None), ReplyState::Open) => {
                    return Err(Error::new(ErrorKind::Io, "the stream ended in the middle of the answer"));
                }
                (Ok(None) | Err(_), ReplyState::Finished | ReplyState::Closed) => return Ok(None),
                (Err(e), ReplyState::Open) => return Err(self.client.transport(&e)),
            }
        }
    }
}

/// What one chunk says. Unknown fields are nobody's business; a chunk that is no JSON is an error.
fn pieces(data: &str) -> Result<Vec<ReplyPiece>> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    let chunk: Value = serde_json::from_str(data)
        .map_err(|e| Error::new(ErrorKind::Io, format!("the server sent an event that is no JSON: {e}")))?;
    if let Some(message) = error_message(&chunk) {
        return Err(Error::new(ErrorKind::Internal, format!("the server gave up: {message}")));
    }
    let text = |pointer: &str| chunk.pointer(pointer).and_then(Value::as_str).filter(|s| !s.is_empty());
    let mut pieces = Vec::new();
    if let Some(reasoning) = text("/choices/0/delta/reasoning_content") {
        pieces.push(ReplyPiece::Reasoning(reasoning.to_owned()));
    }
    if let Some(content) = text("/choices/0/delta/content") {
        pieces.push(ReplyPiece::Text(content.to_owned()));
    }
    if let Some(reason) = text("/choices/0/finish_reason") {
        pieces.push(ReplyPiece::Finish(reason.to_owned()));
    }
    if let Some(tokens) = chunk.pointer("/usage/completion_tokens").and_then(Value::as_u64) {
        pieces.push(ReplyPiece::CompletionTokens(tokens));
    }
    Ok(pieces)
}
