//! What the server can be asked, as data: one table of routes and one of request fields, from which `/openapi.json`, the
//! page at `/docs` and the table in `docs/api.md` are made. Tests ask a server every row, so the tables cannot drift
//! from the code that reads requests.
//!
//! Not derived from the request types: a body is parsed in groups of fields, several times, and what is refused by name
//! is in no type at all.

mod document;
mod fields;
mod routes;

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;

pub use document::document;
pub use fields::{FIELDS, Field, field_table};
pub use routes::{Body, ROUTES, Route};

/// `GET /openapi.json`
pub(super) async fn json() -> impl IntoResponse {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document().to_string()));
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")], DOCUMENT.clone())
}
