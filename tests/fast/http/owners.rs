//! Keys and what belongs to them: streams, limits, prefixes; and the names by which a server may be called.

use std::sync::Arc;

use serde_json::{Value, json};
use tallow::api::ApiKey;
use tallow::api::openapi::ROUTES;
use tallow::engine::EngineConfig;
use tallow::model::stub::StubConfig;
use tallow::protocol::{Owner, OwnerLimits, StreamId, Tenant};
use tallow::service::LocalBackend;

use crate::http::common::{Client, Reply, Setup, TestServer, get, request};
use crate::http::engine;

const ANN: &str = "sk-ann-0123";
const BOB: &str = "sk-bob-0123";
const OPS: &str = "sk-ops-0123";
/// Whether the process lives, and the pages' own files: what needs no key.
const OPEN: [&str; 11] = [
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
const BODY: &str = r#"{"prompt": "the same words for everybody, and enough of them to fill a block", "max_tokens": 4}"#;

fn owner(tenant: u64, limits: OwnerLimits) -> Arc<Owner> {
    let name = format!("owner-{tenant}");
    Arc::new(Owner { tenant: Tenant(tenant), name, is_admin: false, limits, ..Owner::anonymous() })
}

/// Ann has `limits`, Bob has none.
fn with_keys(limits: OwnerLimits) -> impl FnOnce(&mut Setup) {
    move |setup| {
        let owners = [owner(1, limits), owner(2, OwnerLimits::default())];
        setup.api.keys = vec![ApiKey::new(ANN, owners[0].clone()), ApiKey::new(BOB, owners[1].clone())];
        setup.service.owners = owners.to_vec();
    }
}

async fn real(limits: OwnerLimits) -> TestServer<LocalBackend> {
    let mut setup = Setup::default();
    with_keys(limits)(&mut setup);
    engine::start(EngineConfig::default(), StubConfig::default(), setup).await
}

async fn ask<B>(server: &TestServer<B>, key: &str, method: &str, path: &str, body: &str) -> Reply {
    let bearer = format!("Bearer {key}");
    Client::connect(server.address).await.exchange(&request(method, path, &[("authorization", &bearer)], body)).await
}

#[tokio::test]
async fn every_route_but_liveness_and_the_page_needs_a_key() {
    let server = TestServer::with(with_keys(OwnerLimits::default())).await;
    let id = StreamId::random().to_string();
    let mut routes = vec![("GET".to_owned(), "/nowhere".to_owned())];
    for route in ROUTES.iter().filter(|route| !OPEN.contains(&route.path)) {
        routes.push((route.method.to_uppercase(), route.path.replace("{id}", &id).replace("{model}", "stub")));
    }
    for path in ["/v1/events", "/openapi.json"] {
        assert!(routes.contains(&("GET".to_owned(), path.to_owned())), "{routes:?}");
    }
    for (method, path) in &routes {
        for headers in [&[][..], &[("authorization", "Bearer sk-ann-0124")], &[("x-api-key", "")]] {
            let mut client = Client::connect(server.address).await;
            client.send(&request(method, path, headers, "")).await;
            // Before the body: what is let through may have none that ends.
            let head = client.head().await;
            assert_eq!(head.status, 401, "{method} {path} {headers:?}");
            assert_eq!(head.headers["www-authenticate"], "Bearer");
            let body = client.body(&head.headers).await;
            assert!(!body.contains("sk-ann"), "{body}");
            let error = serde_json::from_str::<Value>(&body).unwrap()["error"].clone();
            // Anthropic's errors have no code.
            let is_anthropic = path.starts_with("/v1/messages");
            let (field, word) =
                if is_anthropic { ("type", "authentication_error") } else { ("code", "invalid_api_key") };
            assert_eq!(error[field], word, "{method} {path}");
        }
    }
    for path in OPEN {
        assert_eq!(get(server.address, path, &[]).await.status, 200, "{path}");
    }
    for header in [("authorization", format!("bearer {ANN}")), ("x-api-key", ANN.to_owned())] {
        let reply = get(server.address, "/v1/models", &[(header.0, &header.1)]).await;
        assert_eq!(reply.status, 200, "{header:?}");
    }
}

#[tokio::test]
async fn what_everybody_does_is_shown_to_an_admins_key_alone() {
    let server = TestServer::with(|setup| {
        with_keys(OwnerLimits::default())(setup);
        let ops = Owner { tenant: Tenant(3), name: "ops".to_owned(), is_admin: true, ..Owner::anonymous() };
        let ops = Arc::new(ops);
        setup.api.keys.push(ApiKey::new(OPS, ops.clone()));
        setup.service.owners.push(ops);
    })
    .await;
    let bearer = |key: &str| format!("Bearer {key}");
    let (ann, ops, nobody) = (bearer(ANN), bearer(OPS), bearer("sk-nobody-0123"));
    for (headers, status, code) in [
        (vec![], 401, "invalid_api_key"),
        (vec![("authorization", nobody.as_str())], 401, "invalid_api_key"),
        (vec![("authorization", ann.as_str())], 403, "not_admin"),
        (vec![("x-api-key", BOB)], 403, "not_admin"),
    ] {
        for path in ["/v1/events", "/metrics"] {
            let (mut client, head) = Client::open(server.address, path, &headers).await;
            assert_eq!(head.status, status, "{path} {headers:?}");
            let body: Value = serde_json::from_str(&client.body(&head.headers).await).unwrap();
            assert_eq!(body["error"]["code"], code, "{path} {headers:?}");
            let message = body["error"]["message"].as_str().unwrap();
            assert!(status != 403 || message.contains(path) && message.contains("admin=true"), "{message}");
        }
    }
    let begun = ask(&server, OPS, "POST", "/v1/session", "").await;
    let cookie = begun.headers["set-cookie"].split(';').next().unwrap();
    for header in [("authorization", ops.as_str()), ("x-api-key", OPS), ("cookie", cookie)] {
        assert_eq!(get(server.address, "/metrics", &[header]).await.status, 200, "{header:?}");
        let (mut live, head) = Client::open(server.address, "/v1/events", &[header]).await;
        assert_eq!((head.status, head.headers["content-type"].as_str()), (200, "text/event-stream"), "{header:?}");
        live.until("retry: ").await;
        assert_eq!(ask(&server, ANN, "POST", "/v1/streams", BODY).await.status, 201);
        let id = server.backend.job().await.log.id().to_string();
        let told = live.until("event: queued").await;
        assert!(told.contains(&id), "{told}");
    }
}

#[tokio::test]
async fn what_is_another_owners_does_not_exist() {
    let server = real(OwnerLimits::default()).await;
    let created = ask(&server, ANN, "POST", "/v1/streams", BODY).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let path = created.headers["location"].clone();
    let own = ask(&server, ANN, "GET", &path, "").await;
    assert!(own.body.contains("event: done"), "{}", own.body);
    let never = format!("/v1/streams/{}", StreamId::random());
    let resumed = format!("{path}?last_event_id={:x}-1", server.service.table().epoch().0);
    let cancel = format!("/v1/chat/completions/chatcmpl-{}/cancel", path.trim_start_matches("/v1/streams/"));
    assert_eq!(ask(&server, BOB, "POST", &cancel, "").await.status, 404);
    assert_eq!(ask(&server, ANN, "POST", &cancel, "").await.status, 204);
    for (method, path) in [("GET", &path), ("GET", &resumed), ("DELETE", &path)] {
        let theirs = ask(&server, BOB, method, path, "").await;
        let unknown = ask(&server, BOB, method, &never, "").await;
        assert_eq!((theirs.status, unknown.status), (404, 404), "{method} {path}");
        let id = |path: &str| path.trim_start_matches("/v1/streams/")[..32].to_owned();
        assert_eq!(theirs.body.replace(&id(path), "ID"), unknown.body.replace(&id(&never), "ID"));
    }
    let list = |reply: Reply| reply.json()["data"].as_array().map(Vec::len);
    assert_eq!(list(ask(&server, BOB, "GET", "/v1/streams", "").await), Some(0));
    assert_eq!(list(ask(&server, ANN, "GET", "/v1/streams", "").await), Some(1));
    assert_eq!(ask(&server, ANN, "GET", &path, "").await.body.matches("event: done").count(), 1, "still there");
}

/// 32 requests of 128 choices took all 4096 streams that are kept, and with them what every other key had.
#[tokio::test]
async fn one_keys_flood_of_choices_does_not_evict_anothers_streams_and_responses() {
    let mut setup = Setup::default();
    with_keys(OwnerLimits::default())(&mut setup);
    setup.table.num_streams_max = 256;
    let server = engine::start(EngineConfig::default(), StubConfig::default(), setup).await;
    let created = ask(&server, ANN, "POST", "/v1/streams", BODY).await;
    let path = created.headers["location"].clone();
    let whole = ask(&server, ANN, "GET", &path, "").await.body;
    let asked = r#"{"input": "hi", "max_output_tokens": 2}"#;
    let response = ask(&server, ANN, "POST", "/v1/responses", asked).await;
    assert_eq!(response.status, 200, "{}", response.body);
    let response_path = format!("/v1/responses/{}", response.json()["id"].as_str().unwrap());
    for _ in 0..8 {
        let flood = ask(&server, BOB, "POST", "/v1/completions", r#"{"prompt": "a", "max_tokens": 1, "n": 128}"#).await;
        assert_eq!(flood.status, 200, "{}", flood.body);
        server.service.sweep();
    }
    assert_eq!(server.service.table().len(), 256, "what Ann does not want, Bob may have");
    let again = ask(&server, ANN, "GET", &path, "").await;
    assert_eq!(
        (again.status, again.body.matches("event: token").count()),
        (200, whole.matches("event: token").count())
    );
    assert_eq!(ask(&server, ANN, "GET", &response_path, "").await.status, 200);
}

#[tokio::test]
async fn one_key_may_have_so_many_requests_open_and_another_one_its_own() {
    let server = TestServer::with(|setup| {
        with_keys(OwnerLimits::default())(setup);
        setup.api.open_requests_max = 2;
    })
    .await;
    let created = ask(&server, ANN, "POST", "/v1/streams", BODY).await;
    let (path, bearer) = (created.headers["location"].clone(), format!("Bearer {ANN}"));
    let job = server.backend.job().await;
    let (first, head) = Client::open(server.address, &path, &[("authorization", &bearer)]).await;
    let (mut second, _) = Client::open(server.address, &path, &[("authorization", &bearer)]).await;
    assert_eq!(head.status, 200);
    let refused = ask(&server, ANN, "GET", "/v1/models", "").await;
    assert_eq!((refused.status, refused.headers.contains_key("retry-after")), (429, true));
    assert!(refused.body.contains("at most 2 requests of one key"), "{}", refused.body);
    assert_eq!(ask(&server, BOB, "GET", "/v1/models", "").await.status, 200);
    job.run(&["x"]);
    second.rest().await;
    first.close();
    // Its connection's end is noticed a little later.
    while ask(&server, ANN, "GET", "/v1/models", "").await.status == 429 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn prefixes_are_not_shared_between_owners() {
    let server = real(OwnerLimits::default()).await;
    let mut cached = Vec::new();
    for key in [ANN, BOB, ANN, BOB] {
        let created = ask(&server, key, "POST", "/v1/streams", BODY).await;
        let followed = ask(&server, key, "GET", &created.headers["location"], "").await;
        let started = followed.body.lines().find(|l| l.contains("\"type\":\"started\"")).expect("it started");
        let data: Value = serde_json::from_str(started.trim_start_matches("data: ")).expect("JSON");
        cached.push(data["cached_tokens"].as_u64().expect("a number"));
    }
    assert_eq!(cached[..2], [0, 0], "the second owner finds nothing of the first one's");
    assert!(cached[2] > 0 && cached[3] > 0, "each finds its own: {cached:?}");
}

#[tokio::test]
async fn limits_are_told_kept_and_each_keys_own() {
    let limits = OwnerLimits { requests_per_minute: Some(2), tokens_per_minute: Some(6000), concurrency_max: None };
    let server = real(limits).await;
    for remaining in ["1", "0"] {
        let reply = ask(&server, ANN, "POST", "/v1/streams", BODY).await;
        assert_eq!(reply.status, 201, "{}", reply.body);
        assert_eq!(reply.headers["x-ratelimit-limit-requests"], "2");
        assert_eq!(reply.headers["x-ratelimit-remaining-requests"], remaining);
        assert_eq!(reply.headers["x-ratelimit-limit-tokens"], "6000");
        assert!(reply.headers["x-ratelimit-reset-requests"].ends_with('s'));
    }
    let refused = ask(&server, ANN, "POST", "/v1/streams", BODY).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    let error = &refused.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("rate_limit_exceeded")));
    let (seconds, ms): (u64, u64) =
        (refused.headers["retry-after"].parse().unwrap(), refused.headers["retry-after-ms"].parse().unwrap());
    assert!(ms <= 30_000 && seconds == ms.div_ceil(1000), "two a minute are one every thirty seconds: {ms}");
    assert_eq!(ask(&server, BOB, "POST", "/v1/streams", BODY).await.status, 201, "Bob has no limit");
}

#[tokio::test]
async fn a_key_at_its_concurrency_waits_for_its_own() {
    let limits = OwnerLimits { concurrency_max: Some(1), ..OwnerLimits::default() };
    let server = TestServer::with(with_keys(limits)).await;
    assert_eq!(ask(&server, ANN, "POST", "/v1/streams", BODY).await.status, 201);
    let refused = ask(&server, ANN, "POST", "/v1/streams", BODY).await;
    assert_eq!((refused.status, refused.headers.contains_key("retry-after")), (429, true), "{}", refused.body);
    assert_eq!(ask(&server, BOB, "POST", "/v1/streams", BODY).await.status, 201);
    server.backend.job().await.run(&["a"]);
    assert_eq!(ask(&server, ANN, "POST", "/v1/streams", BODY).await.status, 201, "the first has ended");
}

#[tokio::test]
async fn on_loopback_a_server_answers_to_its_own_names_only() {
    let server = TestServer::with(|setup| setup.api.allowed_hosts = vec!["box.example".to_owned()]).await;
    let port = server.address.port();
    for (host, status) in [
        ("localhost", 200),
        ("127.0.0.1", 200),
        (&*format!("127.0.0.1:{port}"), 200),
        ("[::1]:80", 200),
        ("box.example", 200),
        ("evil.example", 421),
        (&*format!("127.0.0.1.evil.example:{port}"), 421),
    ] {
        let text = format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let reply = Client::connect(server.address).await.exchange(&text).await;
        assert_eq!(reply.status, status, "{host}");
        if status == 421 {
            assert_eq!(reply.json()["error"]["code"], "wrong_host");
        }
        // A proxy may have gone by the name in the target.
        let text = format!("GET http://{host}/v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let reply = Client::connect(server.address).await.exchange(&text).await;
        assert_eq!(reply.status, status, "{host} in the target");
    }
}
