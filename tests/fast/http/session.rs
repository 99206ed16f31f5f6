//! Sessions of the page: a cookie that no script can read, in place of a key.

use std::sync::Arc;

use tallow::api::ApiKey;
use tallow::protocol::{Owner, Tenant};

use crate::http::common::{Client, Reply, TestServer, get, request};

const ANN: &str = "sk-ann-0123";
const OPS: &str = "sk-ops-0123";
const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");

async fn start() -> TestServer {
    TestServer::with(|setup| {
        let owner = |tenant: u64, is_admin| Owner { tenant: Tenant(tenant), is_admin, ..Owner::anonymous() };
        let (ann, ops) = (Arc::new(owner(1, false)), Arc::new(owner(2, true)));
        setup.api.keys = vec![ApiKey::new(ANN, ann.clone()), ApiKey::new(OPS, ops.clone())];
        setup.service.owners = vec![ann, ops];
    })
    .await
}

async fn ask(server: &TestServer, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    Client::connect(server.address).await.exchange(&request(method, path, headers, body)).await
}

/// `name=value` of the cookie of a new session.
async fn begin(server: &TestServer, key: &str) -> String {
    let reply = ask(server, "POST", "/v1/session", &[("x-api-key", key), SAME], "").await;
    assert_eq!(reply.status, 204, "{}", reply.body);
    reply.headers["set-cookie"].split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_session_stands_for_its_key_until_it_is_ended() {
    let server = start().await;
    let reply = ask(&server, "POST", "/v1/session", &[("authorization", &format!("Bearer {ANN}")), SAME], "").await;
    let set = reply.headers["set-cookie"].clone();
    let (cookie, attributes) = set.split_once("; ").unwrap();
    assert_eq!(attributes, "HttpOnly; SameSite=Strict; Path=/");
    assert!(cookie.starts_with(&format!("tallow-session-{}=", server.address.port())), "{cookie}");
    assert!(!set.contains(ANN) && cookie.len() > 64, "{set}");

    let body = r#"{"prompt": "hi"}"#;
    let created = ask(&server, "POST", "/v1/streams", &[("cookie", cookie), SAME], body).await;
    assert_eq!(created.status, 201, "{}", created.body);
    server.backend.job().await.run(&["x"]);
    // As an EventSource asks.
    let followed = get(server.address, &created.headers["location"], &[("cookie", cookie)]).await;
    assert!(followed.body.contains("event: done"), "{}", followed.body);
    let (listed, refused) =
        (get(server.address, "/v1/streams", &[("x-api-key", ANN)]).await, begin(&server, OPS).await);
    assert_eq!(listed.json()["data"].as_array().map(Vec::len), Some(1), "it is the key's own");
    assert_ne!(refused, cookie);

    let ended = ask(&server, "DELETE", "/v1/session", &[("cookie", cookie), SAME], "").await;
    assert_eq!(ended.status, 204);
    assert!(ended.headers["set-cookie"].contains("Max-Age=0"), "{:?}", ended.headers);
    let after = get(server.address, "/v1/models", &[("cookie", cookie), SAME]).await;
    assert_eq!((after.status, after.json()["error"]["code"].as_str()), (401, Some("invalid_api_key")));
}

#[tokio::test]
async fn a_session_is_begun_by_a_key_and_by_nothing_else() {
    let server = start().await;
    let cookie = begin(&server, ANN).await;
    for headers in [vec![SAME], vec![("x-api-key", "sk-nobody-0"), SAME], vec![("cookie", cookie.as_str()), SAME]] {
        let reply = ask(&server, "POST", "/v1/session", &headers, "").await;
        assert_eq!(reply.status, 401, "{headers:?}");
        assert!(!reply.headers.contains_key("set-cookie"));
    }
    let foreign =
        ask(&server, "POST", "/v1/session", &[("x-api-key", ANN), ("origin", "http://localhost:1")], "").await;
    assert_eq!((foreign.status, foreign.json()["error"]["code"].as_str()), (403, Some("foreign_page")));
    // The page's cookie of before held the key, and any script could read it.
    let old = format!("tallow-key={ANN}");
    assert_eq!(get(server.address, "/v1/models", &[("cookie", &old), SAME]).await.status, 401);
    let without_keys = TestServer::start().await;
    let reply = ask(&without_keys, "POST", "/v1/session", &[SAME], "").await;
    assert_eq!((reply.status, reply.headers.contains_key("set-cookie")), (204, false));
}

#[tokio::test]
async fn over_https_the_cookie_is_bound_to_https_and_this_host() {
    let server = start().await;
    let headers = [("x-api-key", ANN), ("origin", "https://localhost"), SAME];
    let set = ask(&server, "POST", "/v1/session", &headers, "").await.headers["set-cookie"].clone();
    assert!(set.starts_with("__Host-tallow-session-") && set.ends_with("; Path=/; Secure"), "{set}");
    let cookie = set.split(';').next().unwrap();
    assert_eq!(get(server.address, "/v1/models", &[("cookie", cookie), SAME]).await.status, 200);
}

#[tokio::test]
async fn a_cookie_sent_by_another_servers_page_counts_for_nothing() {
    let server = start().await;
    let cookie = begin(&server, ANN).await;
    let body = r#"{"prompt": "hi"}"#;
    for foreign in [
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "cross-site"),
        ("origin", "http://localhost:1"),
        ("x-a", "b"),
    ] {
        let reply = ask(&server, "POST", "/v1/streams", &[("cookie", &cookie), foreign], body).await;
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (403, Some("foreign_page")), "{foreign:?}");
    }
    // Over plain http to a name, browsers send no more than the origin.
    let own = ask(&server, "POST", "/v1/streams", &[("cookie", &cookie), ("origin", "http://localhost")], body).await;
    assert_eq!(own.status, 201, "{}", own.body);
    // A key is sent by programs, which have no pages.
    let by_key = ask(&server, "POST", "/v1/streams", &[("x-api-key", ANN), ("origin", "http://a.example")], body).await;
    assert_eq!(by_key.status, 201);
}

#[test]
fn the_page_keeps_no_key_and_no_cookie_of_its_own() {
    for file in ["app.js", "docs.js"] {
        let script = std::fs::read_to_string(format!("{}/web/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for word in ["document.cookie", "localStorage", "sessionStorage", "indexedDB"] {
            assert!(!script.contains(word), "{file} uses {word}");
        }
    }
}
