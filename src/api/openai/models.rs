//! `GET /v1/models`: the one model that is served.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use crate::api::{App, problem::Problem};

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
pub async fn list(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![served(&app)] })
}

/// One model by name, which may contain slashes.
///
/// # Errors
/// 404 `model_not_found`.
pub async fn get(State(app): State<App>, Path(name): Path<String>) -> Result<Json<ModelObject>, Problem> {
    app.service.check_model(Some(&name))?;
    Ok(Json(served(&app)))
}

fn served(app: &App) -> ModelObject {
    ModelObject {
        id: app.service.model_name().to_owned(),
        object: "model",
        created: app.service.created_ms() / 1000,
        owned_by: "tallow",
        max_model_len: app.service.context_len(),
        chat: app.service.has_template(),
    }
}
