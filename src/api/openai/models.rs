//! `GET /v1/models`: the model that is served, and the encoder beside it if there is one. Anthropic's clients ask the
//! same route, and get their own shape.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api::{App, anthropic, problem::Problem};
use crate::service::ServedEncoder;

/// A model on the wire.
#[derive(Debug, Serialize)]
pub struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Longest sequence, prompt and output together; vLLM's name for it.
    max_model_len: usize,
    /// Whether it takes `messages`: it brought a chat template.
    chat: bool,
}

/// The list on the wire.
#[derive(Debug, Serialize)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

/// All models.
pub async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    if anthropic::has_version(&headers) {
        return Json(anthropic::models(&app)).into_response();
    }
    let data = std::iter::once(served(&app)).chain(app.service.encoder().map(|e| encoder(&app, e)));
    Json(ModelList { object: "list", data: data.collect() }).into_response()
}

/// One model by name, which may contain slashes.
///
/// # Errors
/// 404 `model_not_found`.
pub async fn get(
    State(app): State<App>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    // A name that is no UTF-8 is unknown, not malformed.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    if let Some(found) = app.service.encoder_named(Some(&name)) {
        return Ok(Json(encoder(&app, found)).into_response());
    }
    app.service.check_model(Some(&name))?;
    if anthropic::has_version(&headers) {
        return Ok(Json(anthropic::model(&app)).into_response());
    }
    Ok(Json(served(&app)).into_response())
}

fn served(app: &App) -> ModelObject {
    let service = &app.service;
    object(app, service.model_name(), service.context_len(), service.has_template())
}

/// What only embeds.
fn encoder(app: &App, encoder: &ServedEncoder) -> ModelObject {
    object(app, &encoder.name, encoder.max_model_len(), false)
}

fn object(app: &App, name: &str, max_model_len: usize, chat: bool) -> ModelObject {
    let created = app.service.created_ms() / 1000;
    ModelObject { id: name.to_owned(), object: "model", created, owned_by: "tallow", max_model_len, chat }
}
