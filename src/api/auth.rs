//! Who is asking: an API key in `Authorization: Bearer` or `x-api-key`, told from the others in constant time, or the
//! cookie of a session of the page (`session`). Without keys everybody is one anonymous owner. Preflights never get here: CORS answers them before.

use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::caller::{Caller, KEY_WANTED, secret, unauthorized};
use super::problem::Problem;
use super::{App, quota_headers, session};
use crate::error::Error;
use crate::protocol::Owner;

/// What needs no key: a probe has none, and the pages must be there to be told one. Their
/// files hold nothing that is not in the program; `/openapi.json`, which names the model, is none of them.
const OPEN_PATHS: [&str; 11] = [
    "/health/live",
    "/health/ready",
    "/health",
    "/v1/health",
    "/ping",
    "/version",
    "/",
    "/app.js",
    "/style.css",
    "/docs",
    "/docs.js",
];

/// How long a key with too many open requests is asked to wait: about one short generation.
const RETRY_AFTER_MS: u64 = 1000;

/// A key and whose it is. Only the key's digest is kept: digests are all of one length, so that comparing them tells
/// nothing of a key's.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    digest: [u8; 32],
    owner: Arc<Owner>,
}

impl ApiKey {
    /// The key `secret` of `owner`.
    pub fn new(secret: &str, owner: Arc<Owner>) -> Self {
        Self { digest: Sha256::digest(secret).into(), owner }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// Lets a request through with its [`Caller`], or answers 401. What a caller with limits has left is told in the
/// headers of every answer to a POST.
pub(super) async fn authenticate(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if OPEN_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let owner = match app.owner_of(&request) {
        Ok(owner) => owner,
        Err(problem) => return refused(problem),
    };
    let Some(place) = app.open_requests.enter((!app.config.keys.is_empty()).then_some(owner.tenant)) else {
        return app.too_many_open().into_response();
    };
    let is_post = request.method() == Method::POST;
    request.extensions_mut().insert(Caller(owner.clone()));
    let mut response = place.until_sent(next.run(request).await);
    if is_post && let Some(state) = app.service.quota(&owner) {
        quota_headers::insert(response.headers_mut(), &state);
    }
    response
}

impl App {
    fn too_many_open(&self) -> Problem {
        let max = self.open_requests.num_max();
        let message = format!("at most {max} requests of one key may be open at once, streams that it follows too");
        let e = Error::rate_limited(message, RETRY_AFTER_MS);
        self.service.count_limited(&e);
        self.service.tell_rejected(&e);
        e.into()
    }

    fn owner_of(&self, request: &Request) -> Result<Arc<Owner>, Problem> {
        if self.config.keys.is_empty() {
            return Ok(self.anonymous.clone());
        }
        let Some(secret) = secret(request.headers())? else {
            let by_cookie = self.sessions.owner_of(request.method(), request.headers());
            return by_cookie.map_or_else(|| Err(unauthorized(KEY_WANTED)), |owner| owner.map_err(session::refused));
        };
        find(&self.config.keys, secret)
            .ok_or_else(|| unauthorized("the API key that was sent is not one of this server"))
    }
}

/// Looks at every key, so that the time does not say which one it was.
fn find(keys: &[ApiKey], secret: &[u8]) -> Option<Arc<Owner>> {
    let digest: [u8; 32] = Sha256::digest(secret).into();
    let mut found = None;
    for key in keys {
        if bool::from(key.digest.ct_eq(&digest)) {
            found = Some(key.owner.clone());
        }
    }
    found
}

fn refused(problem: Problem) -> Response {
    let is_unknown = problem.status() == StatusCode::UNAUTHORIZED;
    let mut response = problem.into_response();
    if is_unknown {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Tenant;
    use axum::http::HeaderMap;

    #[test]
    fn a_key_is_found_by_all_of_its_bytes() {
        let owner = |n: u64| Arc::new(Owner { tenant: Tenant(n), ..Owner::anonymous() });
        let keys = [ApiKey::new("sk-one", owner(1)), ApiKey::new("sk-one-and-more", owner(2))];
        let check = |secret: &str| find(&keys, secret.as_bytes()).map(|owner| owner.tenant.0);
        assert_eq!(check("sk-one"), Some(1));
        assert_eq!(check("sk-one-and-more"), Some(2));
        for wrong in ["", "sk-on", "sk-onE", "sk-one ", "sk-one-and-mor"] {
            assert_eq!(check(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_key_is_not_in_its_debug_output() {
        let text = format!("{:?}", ApiKey::new("open-sesame", Arc::new(Owner::anonymous())));
        assert!(!text.contains("sesame") && text.contains("anonymous"), "{text}");
    }

    #[test]
    fn keys_come_in_two_headers_and_no_cookie() {
        #[track_caller]
        fn check(headers: &[(&'static str, &'static str)], expect: Option<&str>) {
            let headers = header_map(headers);
            let found = secret(&headers).ok().flatten();
            assert_eq!(found, expect.map(str::as_bytes));
        }
        check(&[("authorization", "Bearer abc")], Some("abc"));
        check(&[("authorization", "bearer  abc ")], Some("abc"));
        check(&[("x-api-key", "abc")], Some("abc"));
        check(&[("authorization", "Basic zzz"), ("x-api-key", "abc")], Some("abc"));
        check(&[("authorization", "Bearer abc"), ("x-api-key", "other")], Some("abc"));
        check(&[("cookie", "tallow-key=abc")], None);
        for none in ["", "Bearer", "Bearer ", "abc", "Basic abc"] {
            check(&[("authorization", none)], None);
        }
    }

    #[test]
    fn a_header_with_a_key_comes_once() {
        for name in ["authorization", "x-api-key"] {
            let twice = header_map(&[(name, "Bearer abc"), (name, "Bearer abc")]);
            let problem = secret(&twice).expect_err("refused");
            assert_eq!(problem.status(), StatusCode::BAD_REQUEST);
        }
    }

    fn header_map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }
}
