//! What operators ask: alive, ready, and the metrics.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::App;
use super::caller::{self, Caller};
use super::problem::Problem;
use crate::error::{Error, ErrorKind};
use crate::service::Readiness;

/// The process answers.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({"status": "live"}))
}

/// Which program answers.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// Requests will be served. `/health`, `/v1/health` and `/ping` are other servers' names of it, which load generators and
/// load balancers ask.
///
/// # Errors
/// 503 with `Retry-After` while starting or draining, or while the disk that keeps the streams does not keep up.
pub(crate) async fn ready(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let why = match app.service.readiness() {
        Readiness::Ready => {
            app.service.check_disk()?;
            return Ok(Json(json!({"status": "ready"})));
        }
        Readiness::Starting => "no worker is ready: they are starting, or one is being replaced",
        Readiness::Failed => "no worker is left: the server must be restarted, its log says why",
        Readiness::Draining => "the server is draining",
    };
    Err(Error::new(ErrorKind::Unavailable, why).into())
}

/// The metrics as OpenMetrics text. They sum over everybody, and sums that change by one request show its size; so where
/// there are keys, they are an admin's.
///
/// # Errors
/// 403 without an admin key where there are keys.
pub(crate) async fn metrics(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
) -> Result<impl IntoResponse, Problem> {
    caller::require_admin(&owner, "/metrics")?;
    let (m, table) = (app.service.metrics(), app.service.table());
    m.streams.set(table.len() as i64);
    m.stream_bytes.set(table.num_bytes() as i64);
    if let Some(store) = table.store() {
        m.stream_store_failed.set(i64::from(!store.is_open()));
        m.stream_store_changes.set(store.num_waiting() as i64);
        m.stream_store_commit_seconds.set(store.commit_time().as_secs_f64());
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], m.render()))
}
