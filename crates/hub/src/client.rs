//! Requests to the hub, and to where it points: which addresses are asked, how often, and with which headers.
//!
//! A hub keeps files elsewhere and redirects to them, so an answer names the next address. The rules for it:
//!
//! ```text
//! token      only to the hub's own origin (scheme, host and port), and not after a redirect has left it once
//! scheme     http or https, and never from https to http
//! address    without a user or a password in it
//! redirects  at most REDIRECTS_MAX in a row
//! ```
//!
//! ureq's own redirects compare hosts alone, so a server on another port of the hub's host would get the token. They
//! are switched off, and the client that hf-hub builds never has the token: it is added here to single requests.

use std::io::Read;
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo};
use url::Url;

use super::config::HubConfig;
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::excerpt;

/// Redirects followed for one request. The hub needs two: a renamed repository, and the storage.
const REDIRECTS_MAX: usize = 5;
/// Longest time for an answer that is read whole, so that one that comes byte by byte has an end.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Sends requests about one repository at one revision.
pub(super) struct HubClient<'a> {
    config: &'a HubConfig,
    endpoint: Url,
    repo: ApiRepo,
}

/// Which redirects to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Redirects {
    /// All.
    Follow,
    /// Those within the hub, until an answer has this header: what is known of a file stands in the hub's last answer,
    /// which redirects to the storage.
    FollowUntil(&'static str),
}

/// The answer to one request.
pub(super) struct HubAnswer {
    pub(super) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(super) body: Box<dyn Read>,
}

impl<'a> HubClient<'a> {
    pub(super) fn new(config: &'a HubConfig, repo: Repo) -> Result<Self> {
        let endpoint = Url::parse(&config.endpoint)
            .map_err(|e| Error::io(format!("the hub's address {}", excerpt(&config.endpoint)), e))?;
        let api: Api = ApiBuilder::from_cache(Cache::new(config.cache.clone()))
            .with_endpoint(config.endpoint.clone())
            .with_token(None)
            .with_user_agent("tallow", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|e| Error::io("cannot make a client for the hub", e))?;
        Ok(Self { config, endpoint, repo: api.repo(repo) })
    }

    /// The address of a file of the repository.
    pub(super) fn file_address(&self, file: &str) -> String {
        self.repo.url(file)
    }

    /// Asks for `address`, or for a range of it, and follows redirects by the rules.
    ///
    /// # Errors
    /// If no answer comes, or a redirect breaks a rule.
    pub(super) fn get(&self, address: &str, range: Option<&str>, redirects: Redirects) -> Result<HubAnswer> {
        let mut at = Url::parse(address).map_err(|e| Error::io(format!("the address {}", excerpt(address)), e))?;
        check_scheme(&at)?;
        let mut is_at_hub = true;
        for _ in 0..=REDIRECTS_MAX {
            is_at_hub &= at.origin() == self.endpoint.origin();
            let answer = self.get_once(&at, range, self.config.token.as_deref().filter(|_| is_at_hub))?;
            if !answer.is_redirect() {
                return Ok(answer);
            }
            let next = answer.next(&at)?;
            if let Redirects::FollowUntil(header) = redirects
                && (answer.header(header).is_some() || next.origin() != self.endpoint.origin())
            {
                return Ok(answer);
            }
            at = next;
        }
        Err(Error::new(ErrorKind::Io, format!("redirects more than {REDIRECTS_MAX} times, last to {}", shown(&at))))
    }

    fn get_once(&self, at: &Url, range: Option<&str>, token: Option<&str>) -> Result<HubAnswer> {
        let mut request = self.repo.info_request().uri(at.as_str()).header("accept-encoding", "identity");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request
            .config()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(self.config.connect_timeout))
            .timeout_connect(Some(self.config.connect_timeout))
            .timeout_recv_response(Some(self.config.silence_timeout))
            .timeout_per_read(Some(self.config.silence_timeout))
            .build()
            .call()
            .map_err(|e| Error::io(format!("cannot reach {}", shown(at)), e))?;
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        Ok(HubAnswer {
            status: response.status().as_u16(),
            headers: response.headers().iter().map(|(k, v)| (k.as_str().to_owned(), text(v.as_bytes()))).collect(),
            body: Box::new(response.into_body().into_reader()),
        })
    }
}

impl HubAnswer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub(super) fn is_redirect(&self) -> bool {
        matches!(self.status, 301 | 302 | 303 | 307 | 308)
    }

    /// The whole body.
    ///
    /// # Errors
    /// If it breaks off, has more than `bytes_max` bytes, or takes longer than a minute.
    pub(super) fn whole(self, bytes_max: u64) -> Result<Vec<u8>> {
        let end = Instant::now() + WHOLE_TIMEOUT;
        let mut body = self.body.take(bytes_max + 1);
        let mut bytes = Vec::new();
        let mut chunk = [0; 16 << 10];
        loop {
            match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => bytes.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("broke off", e)),
            }
            if Instant::now() > end {
                return Err(Error::new(ErrorKind::Io, format!("took more than {} s", WHOLE_TIMEOUT.as_secs())));
            }
        }
        if bytes.len() as u64 > bytes_max {
            return Err(Error::new(ErrorKind::Io, format!("must have at most {bytes_max} bytes")));
        }
        Ok(bytes)
    }

    /// Where a redirect leads that was given `at` this address.
    fn next(&self, at: &Url) -> Result<Url> {
        let location = self
            .header("location")
            .ok_or_else(|| Error::new(ErrorKind::Io, format!("{} redirects to no place", shown(at))))?;
        let refuse = |rule: &str| {
            Error::new(ErrorKind::Io, format!("{} redirects to `{}`, {rule}", shown(at), excerpt(location)))
        };
        let next = at.join(location).map_err(|_| refuse("which is no address"))?;
        check_scheme(&next).map_err(|_| refuse("but a redirect must lead to http or https"))?;
        if at.scheme() == "https" && next.scheme() != "https" {
            return Err(refuse("but a redirect must not lead from https to http"));
        }
        if !next.username().is_empty() || next.password().is_some() {
            return Err(refuse("but a redirect must not have a user or a password"));
        }
        Ok(next)
    }
}

fn check_scheme(address: &Url) -> Result<()> {
    if matches!(address.scheme(), "http" | "https") {
        return Ok(());
    }
    let message = format!("the hub's address must begin with http:// or https://, got `{}:`", address.scheme());
    Err(Error::new(ErrorKind::Io, message))
}

/// An address for messages, without what is secret in it: a signature in the query of the storage's addresses, a
/// password in the operator's.
fn shown(address: &Url) -> String {
    excerpt(&format!("{}{}", address.origin().ascii_serialization(), address.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(at: &str, location: &str) -> Result<String> {
        let headers = vec![("location".to_owned(), location.to_owned())];
        let answer = HubAnswer { status: 302, headers, body: Box::new(std::io::empty()) };
        answer.next(&Url::parse(at).expect("an address")).map(|next| next.to_string())
    }

    #[test]
    fn redirects_lead_to_the_web_and_never_from_https_to_http() {
        let at = "https://hub.test/a/b";
        assert_eq!(next(at, "/c?d=e").as_deref(), Ok("https://hub.test/c?d=e"));
        assert_eq!(next(at, "//cdn.test:444/c").as_deref(), Ok("https://cdn.test:444/c"));
        assert_eq!(next("http://hub.test/a", "https://hub.test/").as_deref(), Ok("https://hub.test/"));
        for (location, rule) in [
            ("http://hub.test/a/b", "must not lead from https to http"),
            ("file:///etc/passwd", "must lead to http or https"),
            ("ftp://hub.test/x", "must lead to http or https"),
            ("data:text/plain,x", "must lead to http or https"),
            ("https://hub.test@evil.test/", "must not have a user"),
            ("https://[::1/", "is no address"),
        ] {
            let error = next(at, location).expect_err(location);
            assert!(error.message().contains(rule), "{location}: {error}");
        }
        let error = next(at, "x://\u{1b}]0;pwned\u{7}").expect_err("no web address");
        assert!(!error.message().contains('\u{1b}') && error.message().contains(r"\u{1b}]0;pwned"), "{error}");
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let address = Url::parse("https://user:secret@cdn.test:443/x?signature=secret#y").expect("an address");
        assert_eq!(shown(&address), "https://cdn.test/x");
    }
}
