//! Sessions of the page. An `EventSource` sends no headers of its own, so the page needs a cookie; the cookie names a
//! session and never holds the key.
//!
//! ```text
//! POST /v1/session, key in a header   -> Set-Cookie: tallow-session-PORT=ID.SECRET; HttpOnly; SameSite=Strict; Path=/
//! any route, with the cookie          -> the owner of that key, if the request comes from the server's own page
//! DELETE /v1/session, with the cookie -> the session has ended
//! ```
//! No script can read the cookie. Other servers on the same host name can: a browser sends a cookie to every port, and
//! only over https (`__Host-`, `Secure`) to no other scheme. So what they get ends by itself, is of use only until the server
//! restarts, and is not the key. The port in the name keeps two servers on one host from ending each other's sessions.
//!
//! Sessions live in memory only, are bounded per owner and in all, and end after [`LIFETIME`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::App;
use super::caller::{self, Caller};
use super::problem::Problem;
use crate::error::Error;
use crate::protocol::{Owner, StreamId, Tenant};

/// A working day, and a stolen cookie's longest use.
const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// Of one owner: its people's browsers. The owner's oldest session makes room for its next.
const NUM_PER_OWNER_MAX: usize = 64;
/// Of all owners: a megabyte. Beyond it, the oldest session of the owner with the most goes.
const NUM_MAX: usize = 4096;

const NAME: &str = "tallow-session-";
/// A browser takes a cookie of such a name only over https, for this host alone, and for every path.
const SECURE_PREFIX: &str = "__Host-";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// All sessions of a server.
pub(super) struct Sessions {
    /// Of the listener: part of the cookie's name.
    port: u16,
    // A std mutex: held for map operations only.
    inner: Mutex<HashMap<StreamId, Session>>,
}

struct Session {
    /// The second half of the cookie. It is compared in constant time; the first half only finds it.
    secret: [u8; 16],
    owner: Arc<Owner>,
    began: Instant,
}

/// Why a cookie does not stand for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such session, or no longer.
    Ended,
    /// The request was not made by the server's own page.
    Foreign,
}

impl Sessions {
    /// None yet, of a server that listens on `port`.
    pub(super) fn new(port: u16) -> Self {
        Self { port, inner: Mutex::default() }
    }

    /// Whose the request is by its cookie; `None` without one.
    pub(super) fn owner_of(&self, method: &Method, headers: &HeaderMap) -> Option<Result<Arc<Owner>, Refusal>> {
        let cookie = self.cookie_of(headers)?;
        if !is_own_page(method, headers) {
            return Some(Err(Refusal::Foreign));
        }
        Some(self.find(cookie, Instant::now()).ok_or(Refusal::Ended))
    }

    /// Begins a session; returns the cookie's value.
    fn begin(&self, owner: Arc<Owner>, now: Instant) -> String {
        let (id, secret) = (StreamId::random(), StreamId::random());
        let mut sessions = self.lock();
        sessions.retain(|_, session| now.duration_since(session.began) < LIFETIME);
        let tenant = owner.tenant;
        while sessions.values().filter(|s| s.owner.tenant == tenant).count() >= NUM_PER_OWNER_MAX {
            end_oldest(&mut sessions, tenant);
        }
        if sessions.len() >= NUM_MAX {
            let mut nums: HashMap<Tenant, usize> = HashMap::new();
            sessions.values().for_each(|s| *nums.entry(s.owner.tenant).or_default() += 1);
            let most = nums.into_iter().max_by_key(|(_, num)| *num).map_or(tenant, |(tenant, _)| tenant);
            end_oldest(&mut sessions, most);
        }
        sessions.insert(id, Session { secret: secret.0.to_be_bytes(), owner, began: now });
        format!("{id}.{secret}")
    }

    fn find(&self, cookie: &str, now: Instant) -> Option<Arc<Owner>> {
        let (id, secret) = parse(cookie)?;
        let sessions = self.lock();
        let session = sessions.get(&id)?;
        let is_it = bool::from(session.secret.ct_eq(&secret)) && now.duration_since(session.began) < LIFETIME;
        is_it.then(|| session.owner.clone())
    }

    /// Ends the session that the cookie names, if it is one.
    fn end(&self, cookie: &str) {
        if self.find(cookie, Instant::now()).is_some()
            && let Some((id, _)) = parse(cookie)
        {
            self.lock().remove(&id);
        }
    }

    /// The value of this server's cookie. The one that is safer by its name counts.
    fn cookie_of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let find = |name: &str| {
            let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
            let mut pairs =
                cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
            pairs.find(|(own, _)| *own == name).map(|(_, value)| value)
        };
        find(&self.name(true)).or_else(|| find(&self.name(false)))
    }

    fn name(&self, is_secure: bool) -> String {
        format!("{}{NAME}{}", if is_secure { SECURE_PREFIX } else { "" }, self.port)
    }

    /// The header that gives the cookie `value`; without one, that takes it away.
    fn set_cookie(&self, value: Option<&str>, is_secure: bool) -> Result<HeaderValue, Problem> {
        let (name, secure) = (self.name(is_secure), if is_secure { "; Secure" } else { "" });
        let ended = if value.is_none() { "; Max-Age=0" } else { "" };
        let text = format!("{name}={}; HttpOnly; SameSite=Strict; Path=/{secure}{ended}", value.unwrap_or_default());
        HeaderValue::try_from(text).map_err(|e| Error::internal(e.to_string()).into())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamId, Session>> {
        // Every change is a whole map operation, so a panic elsewhere leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("port", &self.port).finish_non_exhaustive()
    }
}

/// `POST /v1/session`: 204 with the cookie, for a request that brings a key. Without keys there is nothing to remember.
///
/// # Errors
/// 401 for a request that brings no key but a cookie; 403 for a page of another origin.
pub(super) async fn begin(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if app.config.keys.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    // Else whoever has a cookie could make it last for ever.
    caller::require_key(&headers)?;
    let is_of_browser = headers.contains_key(header::ORIGIN) || headers.contains_key(SEC_FETCH_SITE);
    if is_of_browser && !is_own_page(&method, &headers) {
        return Err(foreign());
    }
    // The session that it replaces.
    if let Some(cookie) = app.sessions.cookie_of(&headers) {
        app.sessions.end(cookie);
    }
    let is_https = headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    let value = app.sessions.begin(owner, Instant::now());
    let cookie = app.sessions.set_cookie(Some(&value), is_https)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// `DELETE /v1/session`: ends the session of the request's cookie, and takes the cookie away.
///
/// # Errors
/// None but those of every route.
pub(super) async fn end(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(cookie) = app.sessions.cookie_of(&headers) {
        app.sessions.end(cookie);
        for is_secure in [false, true] {
            response.headers_mut().append(header::SET_COOKIE, app.sessions.set_cookie(None, is_secure)?);
        }
    }
    Ok(response)
}

/// What a request is answered whose cookie does not stand for its owner.
pub(super) fn refused(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Foreign => foreign(),
        Refusal::Ended => {
            let message = "the session of the cookie has ended; `POST /v1/session` with an API key begins one";
            Problem::http(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
        }
    }
}

fn foreign() -> Problem {
    let message = "a session's cookie must come from this server's own page; other callers must send an API key";
    Problem::http(StatusCode::FORBIDDEN, Some("foreign_page"), message)
}

/// Whether the request was made by the server's own page, as far as the browser says. `SameSite=Strict` keeps pages of
/// other sites away; this keeps away those of other servers on the same host, which are of the same site.
///
/// Browsers send `Sec-Fetch-Site` over https and to loopback only. `Origin` they always send with methods that change
/// something, so one of the two must be there. Without both, a GET may be of the page's own `EventSource`; another page
/// can cause one, but cannot read its answer.
fn is_own_page(method: &Method, headers: &HeaderMap) -> bool {
    let is_safe = *method == Method::GET || *method == Method::HEAD;
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        // `none`: somebody typed the address.
        return site == "same-origin" || is_safe && site == "none";
    }
    match headers.get(header::ORIGIN) {
        Some(origin) => is_origin_of(origin, headers.get(header::HOST)),
        None => is_safe,
    }
}

fn is_origin_of(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let authority = |text: &str| text.parse::<Uri>().ok()?.authority().map(|a| a.as_str().to_ascii_lowercase());
    let origin = origin.to_str().ok().and_then(authority);
    let host = host.and_then(|host| host.to_str().ok()).map(str::to_ascii_lowercase);
    origin.is_some() && origin == host
}

fn parse(cookie: &str) -> Option<(StreamId, [u8; 16])> {
    let (id, secret) = cookie.split_once('.')?;
    let secret: StreamId = secret.parse().ok()?;
    Some((id.parse().ok()?, secret.0.to_be_bytes()))
}

fn end_oldest(sessions: &mut HashMap<StreamId, Session>, tenant: Tenant) {
    let own = sessions.iter().filter(|(_, session)| session.owner.tenant == tenant);
    if let Some(id) = own.min_by_key(|(_, session)| session.began).map(|(id, _)| *id) {
        sessions.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(tenant: u64) -> Arc<Owner> {
        Arc::new(Owner { tenant: Tenant(tenant), ..Owner::anonymous() })
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::try_from(*value).expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_session_is_found_by_all_of_its_cookie_until_its_time_is_over() {
        let (sessions, now) = (Sessions::new(80), Instant::now());
        let cookie = sessions.begin(owner(1), now);
        let check = |cookie: &str, after| sessions.find(cookie, now + after).map(|owner| owner.tenant.0);
        assert_eq!(check(&cookie, Duration::ZERO), Some(1));
        assert_eq!(check(&cookie, LIFETIME - Duration::from_secs(1)), Some(1));
        assert_eq!(check(&cookie, LIFETIME), None);
        let (id, secret) = cookie.split_once('.').expect("two halves");
        let last = if secret.ends_with('0') { '1' } else { '0' };
        let other = StreamId::random();
        for wrong in
            [id.to_owned(), format!("{id}."), format!("{id}.{}{last}", &secret[..31]), format!("{other}.{secret}")]
        {
            assert_eq!(check(&wrong, Duration::ZERO), None, "{wrong}");
        }
        sessions.end(&format!("{id}.{other}"));
        assert_eq!(check(&cookie, Duration::ZERO), Some(1), "not without the secret");
        sessions.end(&cookie);
        assert_eq!(check(&cookie, Duration::ZERO), None);
    }

    #[test]
    fn sessions_are_bounded_per_owner_and_in_all() {
        let (sessions, start) = (Sessions::new(80), Instant::now());
        let at = |i: usize| start + Duration::from_millis(i as u64);
        let first = sessions.begin(owner(1), at(0));
        let alone = sessions.begin(owner(2), at(0));
        for i in 1..=NUM_PER_OWNER_MAX {
            sessions.begin(owner(1), at(i));
        }
        assert!(sessions.find(&first, at(99)).is_none(), "its oldest made room");
        for i in 0..2 * NUM_MAX {
            sessions.begin(owner(3 + (i / NUM_PER_OWNER_MAX) as u64), at(1000 + i));
        }
        assert_eq!(sessions.lock().len(), NUM_MAX);
        assert!(sessions.find(&alone, at(9999)).is_some(), "an owner with one keeps it");
    }

    #[test]
    fn a_cookie_counts_only_from_the_servers_own_page() {
        #[track_caller]
        fn check(method: &Method, pairs: &[(&'static str, &str)], expect: bool) {
            assert_eq!(is_own_page(method, &headers(pairs)), expect, "{method} {pairs:?}");
        }
        let (get, post) = (Method::GET, Method::POST);
        check(&get, &[], true);
        check(&post, &[], false);
        check(&Method::DELETE, &[("host", "a:80")], false);
        check(&post, &[("sec-fetch-site", "same-origin")], true);
        check(&post, &[("sec-fetch-site", "none")], false);
        check(&get, &[("sec-fetch-site", "none")], true);
        for site in ["same-site", "cross-site", ""] {
            check(&post, &[("sec-fetch-site", site)], false);
            check(&get, &[("sec-fetch-site", site)], false);
        }
        check(&post, &[("origin", "http://a:80"), ("host", "A:80")], true);
        check(&post, &[("origin", "https://a"), ("host", "a")], true);
        for origin in ["http://a:81", "http://a", "null", "http://a:80.evil", "http://evil"] {
            check(&post, &[("origin", origin), ("host", "a:80")], false);
            check(&get, &[("origin", origin), ("host", "a:80")], false);
        }
    }

    #[test]
    fn the_cookie_is_named_by_the_port() {
        let sessions = Sessions::new(8080);
        let check = |cookies: &str, expect| {
            assert_eq!(sessions.cookie_of(&headers(&[("cookie", cookies)])), expect, "{cookies}");
        };
        check("a=b; tallow-session-8080=x; c=d", Some("x"));
        check("tallow-session-8080=x; __Host-tallow-session-8080=y", Some("y"));
        check("tallow-session-8081=x; tallow-session-808=z; tallow-key=k", None);
    }
}
