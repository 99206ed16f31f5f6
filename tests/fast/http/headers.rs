//! What stands around the bodies: request ids, CORS, methods, the page, the metrics.

use serde_json::json;

use crate::http::common::{Client, TestServer, get, post, request};

#[tokio::test]
async fn every_response_has_a_request_id() {
    let server = TestServer::start().await;
    for path in ["/", "/v1/models", "/nowhere"] {
        let made = get(server.address, path, &[]).await;
        assert!(made.headers["x-request-id"].starts_with("req_"), "{path}");
        let kept = get(server.address, path, &[("x-request-id", "abc-1.2_3")]).await;
        assert_eq!(kept.headers["x-request-id"], "abc-1.2_3");
        for bad in ["a b", "<x>", &"x".repeat(129)] {
            let replaced = get(server.address, path, &[("x-request-id", bad)]).await;
            assert!(replaced.headers["x-request-id"].starts_with("req_"), "{bad}");
        }
    }
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_have_the_one_shape() {
    let server = TestServer::start().await;
    for (method, path, status, allow) in [
        ("GET", "/nowhere", 404, None),
        ("GET", "/v1", 404, None),
        ("GET", "/v1/chat/completions", 405, Some("POST")),
        ("PUT", "/v1/streams", 405, Some("GET,HEAD,POST")),
        ("OPTIONS", "/v1/models", 405, Some("GET,HEAD")),
        ("POST", "/v1/streams/0", 405, Some("GET,HEAD,DELETE")),
    ] {
        let reply = Client::connect(server.address).await.exchange(&request(method, path, &[], "")).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
        assert_eq!(reply.headers.get("allow").map(String::as_str), allow, "{method} {path}");
    }
}

#[tokio::test]
async fn a_head_request_gets_the_head() {
    let server = TestServer::start().await;
    for path in ["/", "/v1/models", "/health/live", "/metrics"] {
        let mut client = Client::connect(server.address).await;
        let head = client.exchange(&request("HEAD", path, &[], "")).await;
        let full = client.exchange(&request("GET", path, &[], "")).await;
        assert_eq!((head.status, full.status), (200, 200), "{path}");
        assert_eq!(head.headers.get("content-type"), full.headers.get("content-type"));
    }
}

#[tokio::test]
async fn without_configuration_no_other_origin_is_let_in() {
    let server = TestServer::start().await;
    let reply = get(server.address, "/v1/models", &[("origin", "https://elsewhere.example")]).await;
    assert!(reply.headers.keys().all(|name| !name.starts_with("access-control-")));
}

#[tokio::test]
async fn a_configured_origin_may_call_and_read_the_headers_it_needs() {
    let server = TestServer::with(|s| s.api.cors_origins = vec!["https://app.example".to_owned()]).await;
    let preflight = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type,last-event-id,x-stream-on-disconnect,x-stainless-os",
        ),
    ];
    let asked =
        Client::connect(server.address).await.exchange(&request("OPTIONS", "/v1/streams", &preflight, "")).await;
    assert_eq!(asked.status, 200);
    assert_eq!(asked.headers["access-control-allow-origin"], "https://app.example");
    for method in ["GET", "POST", "DELETE"] {
        assert!(asked.headers["access-control-allow-methods"].contains(method));
    }
    for header in ["authorization", "content-type", "last-event-id", "x-stream-on-disconnect", "x-stainless-os"] {
        assert!(asked.headers["access-control-allow-headers"].contains(header), "{header}");
    }

    // Failures can be read too.
    for path in ["/v1/models", "/nowhere"] {
        let reply = get(server.address, path, &[("origin", "https://app.example")]).await;
        assert_eq!(reply.headers["access-control-allow-origin"], "https://app.example");
        for header in ["x-request-id", "x-stream-id", "location", "retry-after", "retry-after-ms"] {
            assert!(reply.headers["access-control-expose-headers"].contains(header), "{header}");
        }
    }
    let stranger = get(server.address, "/v1/models", &[("origin", "https://elsewhere.example")]).await;
    assert!(!stranger.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn any_origin_can_be_let_in() {
    let server = TestServer::with(|s| s.api.cors_origins = vec!["*".to_owned()]).await;
    let reply = get(server.address, "/v1/models", &[("origin", "https://elsewhere.example")]).await;
    assert_eq!(reply.headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn the_page_is_small_and_loads_from_here_only() {
    let server = TestServer::start().await;
    let mut num_bytes = 0;
    for (path, content_type) in [("/", "text/html"), ("/style.css", "text/css"), ("/app.js", "text/javascript")] {
        let reply = get(server.address, path, &[]).await;
        assert_eq!(reply.status, 200);
        assert!(reply.headers["content-type"].starts_with(content_type), "{path}");
        assert_eq!(reply.headers["x-content-type-options"], "nosniff");
        let csp = &reply.headers["content-security-policy"];
        assert!(csp.starts_with("default-src 'none'") && !csp.contains("unsafe"), "{csp}");
        for place in ["src=\"http", "href=\"http", "url(http", "import ", "style=\"", "onclick"] {
            assert!(!reply.body.contains(place), "{path}: {place}");
        }
        num_bytes += reply.body.len();
    }
    assert!(num_bytes < 20_000, "{num_bytes}");
}

#[tokio::test]
async fn metrics_are_openmetrics_and_count_readers() {
    let server = TestServer::start().await;
    post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await;
    let path = format!("/v1/streams/{}", server.backend.job().await.log.id());
    let (_reader, _) = Client::open(server.address, &path, &[]).await;
    let reply = get(server.address, "/metrics", &[]).await;
    assert_eq!(reply.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(reply.body.contains("tallow_readers 1\n"), "{}", reply.body);
    assert!(reply.body.ends_with("# EOF\n"));
}
