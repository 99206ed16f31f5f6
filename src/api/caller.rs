//! Who is asking, as the handlers know it, and what the request brings for it: a key of its own, an admin's key. Whether a
//! key is one of this server's, `auth` says before they are called.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode};

use super::problem::Problem;
use crate::protocol::Owner;

pub(super) const KEY_WANTED: &str = "an API key must be sent, as `Authorization: Bearer KEY` or `x-api-key: KEY`";

/// Who is asking; every handler behind `authenticate` finds it in the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub Arc<Owner>);

/// Says that the request brings a key itself. Behind `authenticate`, so it is a good one.
///
/// # Errors
/// 401 for one that was let through by its cookie.
pub(super) fn require_key(headers: &HeaderMap) -> Result<(), Problem> {
    secret(headers)?.map(|_| ()).ok_or_else(|| unauthorized(KEY_WANTED))
}

/// The key that a request brings. Where both headers come, as some clients send them, it is the one of `authorization`.
///
/// # Errors
/// 400 if one of them comes several times: a proxy may have looked at another line.
pub(super) fn secret(headers: &HeaderMap) -> Result<Option<&[u8]>, Problem> {
    let bearer = once(headers, "authorization")?.and_then(|value| {
        let (scheme, rest) = value.split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
    });
    let own = once(headers, "x-api-key")?.map(<[u8]>::trim_ascii);
    Ok(bearer.or(own).filter(|secret| !secret.is_empty()))
}

fn once<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a [u8]>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(HeaderValue::as_bytes);
    if values.next().is_some() {
        return Err(Problem::http(StatusCode::BAD_REQUEST, Some("several_keys"), format!("`{name}` must come once")));
    }
    Ok(first)
}

pub(super) fn unauthorized(message: &str) -> Problem {
    Problem::http(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
}

/// Lets an admin through: `what` is shown to nobody else.
///
/// # Errors
/// 403.
pub(super) fn require_admin(owner: &Owner, what: &str) -> Result<(), Problem> {
    if owner.is_admin {
        return Ok(());
    }
    let message =
        format!("{what} must be asked for with an admin's key: `admin=true` in --api-keys-file makes a key one");
    Err(Problem::http(StatusCode::FORBIDDEN, Some("not_admin"), message))
}
