//! The HTTP wires. Every route ends in the same [`Service`]; dialects differ in how they read a request and spell
//! events, never in how a generation runs. This is the only floor that knows HTTP and dialect JSON.
//!
//! A request: `server` (connection) -> `layers` (request id, panics), `host`, CORS, `auth` (whose it is) -> a route -> `body`, `fields` (JSON with
//! the path of what is wrong) -> `Service::start` -> `event_body` with a `Dialect`, or `fold` -> `sse` bytes.

mod answer;
mod anthropic;
mod auth;
mod body;
mod budget;
mod caller;
mod config;
mod disconnect;
mod event_body;
mod feed;
mod fields;
mod fold;
mod head;
mod head_check;
mod health;
mod host;
mod ignored;
mod layers;
mod many;
mod native;
mod numbers;
mod openai;
pub mod openapi;
mod opening;
mod page;
mod parts;
mod peer;
mod places;
mod problem;
mod query;
mod queue_timeout;
mod quota_headers;
mod responses;
mod server;
mod session;
mod sse;
mod structured;
mod template;
mod tokens;
mod tool_fields;
mod trace;
mod words;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post};
use tower_http::decompression::RequestDecompressionLayer;

pub use auth::ApiKey;
pub use config::ApiConfig;
pub use responses::ResponseLimits;
pub use server::serve;
pub(crate) use server::serve_while;

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::RejectLabel;
use crate::protocol::{Owner, StreamId, Tenant};
use crate::service::Service;
use budget::Budget;
use host::Hosts;
use places::Places;
use problem::Problem;
use responses::ResponseStore;
use session::Sessions;

/// What every route has at hand.
#[derive(Clone)]
struct App {
    service: Arc<Service>,
    config: Arc<ApiConfig>,
    responses: Arc<ResponseStore>,
    sessions: Arc<Sessions>,
    open_requests: Arc<Places<Tenant>>,
    /// Memory of bodies on their way in.
    bodies: Arc<Budget>,
    /// Memory of answers on their way out.
    answers: Arc<Budget>,
    /// Everybody, if there are no keys.
    anonymous: Arc<Owner>,
}

impl App {
    /// Counts and tells a request that finds no memory.
    fn refuse_memory(&self, e: &Error) {
        self.service.metrics().reject(&RejectLabel::MEMORY_FULL);
        self.service.tell_rejected(e);
    }
}

/// All routes, for a server of one's own that listens on `address`; [`serve`] is the whole thing.
///
/// # Errors
/// If an origin in the configuration is none.
pub fn router(service: Arc<Service>, config: ApiConfig, address: SocketAddr) -> Result<Router> {
    let cors = layers::cors(&config.cors_origins)?;
    let hosts = Hosts::new(address, &config.allowed_hosts);
    let responses = Arc::new(ResponseStore::new(config.responses));
    let sessions = Arc::new(Sessions::new(address.port()));
    let open_requests = Places::new(config.open_requests_max);
    let app = App {
        service,
        responses,
        sessions,
        open_requests,
        bodies: Budget::new("request bodies", config.bodies_bytes_max, config.body_bytes_max),
        answers: Budget::new("answers", config.answers_bytes_max, 0),
        config: Arc::new(config),
        anonymous: Arc::new(Owner::anonymous()),
    };
    let mut router = Router::new()
        .route("/", get(page::index))
        .route("/style.css", get(page::style))
        .route("/app.js", get(page::script))
        .route("/docs", get(page::docs))
        .route("/docs.js", get(page::docs_script))
        .route("/openapi.json", get(openapi::json))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health", get(health::ready))
        .route("/v1/health", get(health::ready))
        .route("/ping", get(health::ready))
        .route("/version", get(health::version))
        .route("/metrics", get(health::metrics))
        .route("/v1/models", get(openai::list_models))
        .route("/v1/models/{*name}", get(openai::get_model).post(openai::change_model))
        .route("/v1/chat/completions", post(openai::create))
        .route("/v1/chat/completions/{id}/cancel", post(openai::cancel))
        .route("/v1/completions", post(openai::create_text))
        .route("/v1/completions/{id}/cancel", post(openai::cancel))
        .route("/v1/embeddings", post(openai::create_embeddings))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/input_tokens", post(responses::input_tokens))
        .route("/v1/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/session", post(session::begin).delete(session::end))
        .route("/v1/events", get(feed::follow))
        .route("/v1/streams", get(native::list).post(native::create))
        .route("/v1/streams/{id}", get(native::follow).delete(native::cancel))
        .merge(without_version())
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(RequestDecompressionLayer::new().gzip(true))
        .layer(from_fn_with_state(app.clone(), auth::authenticate))
        .with_state(app);
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    let router = router.layer(from_fn_with_state(hosts, host::check)).layer(from_fn(layers::guard));
    Ok(router.layer(from_fn(anthropic::reshape)))
}

/// OpenAI's routes as clients call them whose base URL lacks `/v1`: many set up for llama.cpp or Ollama do.
fn without_version() -> Router<App> {
    Router::new()
        .route("/models", get(openai::list_models))
        .route("/chat/completions", post(openai::create))
        .route("/completions", post(openai::create_text))
        .route("/embeddings", post(openai::create_embeddings))
        .route("/responses", post(responses::create))
}

/// The routes of a server whose model is not there yet. Each answer closes its connection, so that none outlives them.
fn loading_router(config: &ApiConfig, address: SocketAddr) -> Result<Router> {
    let hosts = Hosts::new(address, &config.allowed_hosts);
    let loading = async || Problem::from(Error::new(ErrorKind::Unavailable, "the model is loading"));
    let close = async |mut response: Response| {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    };
    let mut router = Router::new().route("/health/live", get(health::live)).fallback(loading);
    if let Some(cors) = layers::cors(&config.cors_origins)? {
        router = router.layer(cors);
    }
    let router = router.layer(from_fn_with_state(hosts, host::check)).layer(from_fn(layers::guard));
    Ok(router.layer(from_fn(anthropic::reshape)).layer(map_response(close)))
}

async fn no_route(method: Method, uri: Uri) -> Problem {
    Problem::http(StatusCode::NOT_FOUND, Some("unknown_route"), format!("no route {method} {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let message = format!("{} does not take {method}", uri.path());
    Problem::http(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
}

/// Names the stream in a response, so that any client can attach to the native stream of the same generation.
fn with_stream_id(mut response: Response, id: StreamId) -> Response {
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().insert("x-stream-id", value);
    }
    response
}
