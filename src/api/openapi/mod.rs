//! What the server can be asked, as data: one table of routes and one of request fields, from which `/openapi.json`, the
//! page at `/docs` and the table in `docs/api.md` are made. Tests ask a server every row, so the tables cannot drift
//! from the code that reads requests.
//!
//! Not derived from the request types: a body is parsed in groups of fields, several times, and what is refused by name
//! is in no type at all.

mod document;
mod fields;
mod routes;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

pub use document::document;
pub use fields::{FIELDS, Field, field_table};
pub use routes::{BodyKind, Link, ROUTES, Route};

use super::App;

/// `GET /openapi.json`
pub(super) async fn json(State(app): State<App>) -> impl IntoResponse {
    let models = app.service.models();
    let encoders: Vec<&str> = models.all().iter().filter(|m| m.only_embeds()).map(|m| m.name()).collect();
    ([(header::CACHE_CONTROL, "no-cache")], Json(document(models.default_model().name(), &encoders)))
}
