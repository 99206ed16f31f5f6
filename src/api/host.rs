//! The name by which the server was called. A page of a stranger can make its own name point to 127.0.0.1 and then
//! speak to a server there as its own origin (DNS rebinding); what it cannot change is that name, in `Host`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;

/// The names that are answered to: this machine's own, and those of the configuration.
#[derive(Debug, Clone)]
pub(super) struct Hosts(Arc<[String]>);

impl Hosts {
    /// The rule for a server that listens on `address`; `None` where any name will do, because the server is meant to
    /// be reached from elsewhere and nobody said by which names.
    pub(super) fn new(address: SocketAddr, allowed: &[String]) -> Option<Self> {
        let is_checked = address.ip().to_canonical().is_loopback() || !allowed.is_empty();
        is_checked.then(|| Self(allowed.iter().map(|name| name.to_ascii_lowercase()).collect()))
    }

    fn allow(&self, host: &str) -> bool {
        let name = without_port(host);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        // An address is not a name that could be made to point elsewhere.
        name == "localhost" || address.is_ok_and(|ip| ip.is_loopback()) || self.0.contains(&name)
    }
}

/// Answers 421 to a request that was meant for another host, by `Host` or by the name in its target, which a proxy may have
/// gone by. One with neither is of no browser.
pub(super) async fn check(State(hosts): State<Option<Hosts>>, request: Request, next: Next) -> Response {
    let Some(hosts) = hosts else { return next.run(request).await };
    let header = request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or("?"));
    let target = request.uri().authority().map(Authority::as_str);
    if let Some(host) = header.into_iter().chain(target).find(|host| !hosts.allow(host)) {
        let message = format!("this server does not answer to the host {host:?} (--allowed-hosts adds names)");
        return Problem::http(StatusCode::MISDIRECTED_REQUEST, Some("wrong_host"), message).into_response();
    }
    next.run(request).await
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_server_answers_to_its_own_names() {
        let loopback: SocketAddr = "127.0.0.1:80".parse().expect("an address");
        let hosts = Hosts::new(loopback, &["Box.Example".to_owned()]).expect("checked");
        for own in ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80"] {
            assert!(hosts.allow(own), "{own}");
        }
        assert!(hosts.allow("box.example") && hosts.allow("box.example:1234"));
        for foreign in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "192.168.0.1", "", "?"] {
            assert!(!hosts.allow(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_public_server_answers_to_any_name_unless_told() {
        let public: SocketAddr = "0.0.0.0:80".parse().expect("an address");
        assert!(Hosts::new(public, &[]).is_none());
        let hosts = Hosts::new(public, &["box.example".to_owned()]).expect("told");
        assert!(hosts.allow("box.example") && !hosts.allow("other.example"));
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().expect("an address");
        assert!(Hosts::new(mapped, &[]).is_some());
    }
}
