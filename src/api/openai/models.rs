//! `GET /v1/models`: the models that are served, those among them that only embed. Anthropic's clients ask the same route,
//! and get their own shape. An admin may load a model before somebody asks for it, and unload one.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;

use crate::api::caller::{self, Caller};
use crate::api::{App, anthropic, problem::Problem};
use crate::error::{Error, ErrorKind};
use crate::service::Served;

/// A model on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Longest sequence, prompt and output together; vLLM's name for it.
    max_model_len: usize,
    /// Whether it takes `messages`: it brought a chat template.
    chat: bool,
    /// Where its weights are: `unloaded`, `loading`, `loaded`, `unloading` or `failed`. A request loads it.
    state: &'static str,
}

/// The list on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

/// All models.
pub(crate) async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    if anthropic::has_version(&headers) {
        return Json(anthropic::models(&app)).into_response();
    }
    let data = app.service.models().all().iter().map(|model| served(&app, model));
    Json(ModelList { object: "list", data: data.collect() }).into_response()
}

/// One model by name, which may contain slashes.
///
/// # Errors
/// 404 `model_not_found`.
pub(crate) async fn get(
    State(app): State<App>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    // A name that is no UTF-8 is unknown, not malformed.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let found = app.service.served(Some(&name))?;
    if anthropic::has_version(&headers) {
        return Ok(Json(anthropic::model(&app, found)).into_response());
    }
    Ok(Json(served(&app, found)).into_response())
}

/// `POST /v1/models/{name}/load` and `/unload`, which answer when it is done. An admin's, where there are keys.
///
/// # Errors
/// 403 without an admin key where there are keys; 404 `model_not_found`, and for any other path; 409 to unload
/// one that is in use; 503 if it cannot be loaded.
pub(crate) async fn change(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, Problem> {
    let path = path.map(|Path(path)| path).unwrap_or_default();
    let Some((name, what)) = path.rsplit_once('/').filter(|(_, what)| matches!(*what, "load" | "unload")) else {
        return Err(Error::new(ErrorKind::NotFound, "what is posted to a model ends in `/load` or `/unload`").into());
    };
    caller::require_admin(&owner, "loading and unloading of models")?;
    let (models, found) = (app.service.models(), app.service.served(Some(name))?);
    if what == "load" {
        models.load(found).await?;
    } else if !models.unload(found).await {
        let message = format!("{:?} is in use: it can be unloaded once nothing waits for it or runs", found.name());
        return Err(Problem::http(StatusCode::CONFLICT, Some("model_in_use"), message));
    }
    Ok(Json(served(&app, found)))
}

fn served(app: &App, model: &Served) -> ModelObject {
    ModelObject {
        id: model.name().to_owned(),
        object: "model",
        created: app.service.created_ms() / 1000,
        owned_by: "tallow",
        max_model_len: model.context_len(),
        chat: model.has_template(),
        state: model.backend().residence().as_str(),
    }
}
