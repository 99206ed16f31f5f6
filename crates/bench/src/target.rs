//! A server under load: its address, its model, and how requests to it look. All bodies are made before the clock
//! starts, as the generator shares the machine with the server it measures.

use anyhow::{Context, anyhow, bail};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Body, RequestBuilder, Response};
use serde_json::{Value, json};
use std::time::Duration;

use super::plan::{Api, Ask, Mode, ServerAddress};
use super::record::Failure;
use super::workload::{Item, ItemPrompt};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What is read of a body that is no stream: an error, a list of models, a new stream's first answer.
const BODY_BYTES_MAX: usize = 1 << 20;
/// What is kept of it.
const SAID_CHARS_MAX: usize = 200;

/// A server under load.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    http: reqwest::Client,
    /// Ends in `/v1`.
    base: String,
    api_key: Option<String>,
    /// The model's name on that server.
    pub model: String,
}

/// A request, ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// Below `/v1`.
    pub path: &'static str,
    /// JSON.
    pub body: bytes::Bytes,
}

impl Target {
    /// Finds the server's model, if none was named.
    ///
    /// # Errors
    /// If the address is not one of plain HTTP, or the server is asked for its models and does not answer.
    pub(crate) async fn reach(address: &ServerAddress) -> anyhow::Result<Self> {
        let base = base_url(address)?;
        let builder = reqwest::Client::builder();
        // A proxy cannot reach this machine's own loopback.
        let host = base.trim_start_matches("http://");
        let is_loopback = ["127.", "localhost", "[::1]"].iter().any(|own| host.starts_with(own));
        let http = if is_loopback { builder.no_proxy() } else { builder }
            .connect_timeout(CONNECT_TIMEOUT)
            // A connection for each request: some servers close one after a stream without saying so beforehand, and the
            // next request on it would count as theirs to have failed.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("tallow-bench/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("the HTTP client cannot be built")?;
        let mut target = Self { http, base, api_key: address.api_key.clone(), model: String::new() };
        target.model = match &address.model {
            Some(model) => model.clone(),
            None => target.first_model().await.with_context(|| address.flag)?,
        };
        Ok(target)
    }

    /// `http://host:port/v1`
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    async fn first_model(&self) -> anyhow::Result<String> {
        let response = self.get("/models").send().await.map_err(|e| Failure::transport(&e));
        let response = match response {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => {
                let status = response.status();
                bail!("{}/models answered {status}; name the model with --model", self.base)
            }
            Err(failure) => {
                bail!("cannot reach {}: {}; start a server with `tallow serve`", self.base, failure.message())
            }
        };
        let list: Value =
            serde_json::from_slice(&read_body(response).await).with_context(|| format!("{}/models", self.base))?;
        let first = list.pointer("/data/0/id").and_then(Value::as_str);
        first.map(str::to_owned).ok_or_else(|| anyhow!("{} lists no model; name one with --model", self.base))
    }

    /// The request for `item` in this mode.
    pub(crate) fn prepare(&self, item: &Item, ask: &Ask, mode: &Mode) -> Prepared {
        let mut body = json!({
            "model": self.model, "max_tokens": item.max_tokens, "seed": item.seed, "temperature": ask.temperature,
        });
        if ask.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        let is_native = matches!(mode, Mode::Reconnect { .. });
        if is_native {
            // One reader comes and goes; the generation must outlast its absences.
            body["on_disconnect"] = json!("linger");
        } else {
            body["stream"] = true.into();
            body["stream_options"] = json!({ "include_usage": true });
        }
        let path = match (is_native, ask.api) {
            (true, _) => "/streams",
            (false, Api::Chat) => "/chat/completions",
            (false, Api::Completions) => "/completions",
        };
        match (&item.prompt, ask.api) {
            (ItemPrompt::Text(text), Api::Completions) => body["prompt"] = text.as_str().into(),
            (prompt, _) => body["messages"] = prompt.messages(),
        }
        Prepared { path, body: body.to_string().into() }
    }

    /// A POST that is ready to be sent.
    pub(crate) fn post(&self, request: &Prepared) -> RequestBuilder {
        let post = self.http.post(format!("{}{}", self.base, request.path));
        let json = HeaderValue::from_static("application/json");
        self.with_key(post.header(CONTENT_TYPE, json).body(Body::from(request.body.clone())))
    }

    /// A GET that is ready to be sent.
    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.with_key(self.http.get(format!("{}{path}", self.base)))
    }

    /// A GET beside `/v1`.
    pub(crate) fn get_root(&self, path: &str) -> RequestBuilder {
        self.with_key(self.http.get(format!("{}{path}", self.base.trim_end_matches("/v1"))))
    }

    /// The bytes of a POST on a connection of its own, and its host and port: for readers that must not be read for.
    pub(crate) fn raw_post(&self, request: &Prepared) -> (String, Vec<u8>) {
        let rest = self.base.trim_start_matches("http://");
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, "v1"));
        let path = request.path;
        let mut text = format!(
            "POST /{prefix}{path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\nconnection: \
             close\r\ncontent-length: {}\r\n",
            request.body.len()
        );
        if let Some(key) = &self.api_key {
            text += &format!("authorization: Bearer {key}\r\n");
        }
        text += "\r\n";
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        (address, [text.as_bytes(), request.body.as_ref()].concat())
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

/// Checks the address and completes it.
///
/// # Errors
/// If it is not one of plain HTTP; the message names the flag.
pub fn base_url(address: &ServerAddress) -> anyhow::Result<String> {
    let (flag, url) = (address.flag, address.url.as_str());
    let parsed: Option<reqwest::Url> = url.parse().ok();
    match parsed.as_ref().filter(|url| url.has_host()).map(reqwest::Url::scheme) {
        Some("http") => {}
        Some("https") => bail!("{flag}: this client has no TLS and speaks plain http only, got `{url}`"),
        _ => bail!("{flag} must be an address like http://127.0.0.1:8080, got `{url}`"),
    }
    let url = url.trim_end_matches('/');
    Ok(if url.ends_with("/v1") { url.to_owned() } else { format!("{url}/v1") })
}

/// What a status other than success means.
pub(crate) async fn refusal(response: Response) -> Failure {
    let status = response.status().as_u16();
    let body = read_body(response).await;
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = json.pointer("/error/message").or(json.get("error")).and_then(Value::as_str).map(str::to_owned);
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    Failure::Http(status, said.chars().take(SAID_CHARS_MAX).collect())
}

/// The body as far as it comes, and no more of it than its bound.
pub(crate) async fn read_body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        body.extend_from_slice(&bytes);
        if body.len() > BODY_BYTES_MAX {
            body.truncate(BODY_BYTES_MAX);
            break;
        }
    }
    body
}
