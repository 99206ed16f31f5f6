//! How every request for a generation begins, whatever its dialect: two headers, then the body.

use axum::extract::Request;

use super::body::{self, Body};
use super::problem::Problem;
use super::{App, disconnect, queue_timeout};
use crate::protocol::{OnDisconnect, Tenant};

/// What the dialects read in the same way.
pub(crate) struct Opening {
    /// What to do when the last reader leaves, where a header says so.
    pub policy: Option<OnDisconnect>,
    /// How long it may wait for a worker, where a header says so.
    pub queue_timeout_ms: Option<u64>,
    /// The body, not looked into yet.
    pub body: Body,
}

impl Opening {
    /// Reads it.
    ///
    /// # Errors
    /// Those of either header, then those of [`body::read`].
    pub(crate) async fn read(request: Request, app: &App, tenant: Tenant) -> Result<Self, Problem> {
        let policy = disconnect::from_header(request.headers())?;
        let queue_timeout_ms = queue_timeout::from_header(request.headers())?;
        let body = body::read(request, app, tenant).await?;
        Ok(Self { policy, queue_timeout_ms, body })
    }
}
