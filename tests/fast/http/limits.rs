//! The bounds of a connection, over real sockets: each is met by an answer that says so, or by a close.

use std::time::Duration;

use serde_json::json;

use crate::http::common::{Client, TestServer, get, post, request};

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let server = TestServer::with(|s| s.api.header_bytes_max = 2048).await;
    let fits = "x".repeat(1000);
    assert_eq!(get(server.address, "/health/live", &[("x-long", &fits)]).await.status, 200);
    for num_bytes in [3000, 100_000] {
        let long = "x".repeat(num_bytes);
        let mut client = Client::connect(server.address).await;
        client.send(&request("GET", "/health/live", &[("x-long", &long)], "")[..2500]).await;
        assert_eq!(client.head().await.status, 431, "without waiting for its end");
        client.closed().await;
    }
}

#[tokio::test]
async fn too_many_header_lines_are_refused() {
    let server = TestServer::start().await;
    // With `host`.
    assert_eq!(get(server.address, "/health/live", &[("x-a", "b"); 99]).await.status, 200);
    assert_eq!(get(server.address, "/health/live", &[("x-a", "b"); 100]).await.status, 431);
}

#[tokio::test]
async fn a_body_that_nests_too_deep_is_refused_wherever_it_nests() {
    let server = TestServer::start().await;
    for (depth, status) in [(63, 201), (64, 400), (5000, 400)] {
        // In a field that nobody asks for.
        let body = format!(r#"{{"prompt": "[[[[[[[[[[", "more": {}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let mut client = Client::connect(server.address).await;
        let reply = client.exchange(&request("POST", "/v1/streams", &[], &body)).await;
        assert_eq!(reply.status, status, "{depth}: {}", reply.body);
        if status == 400 {
            assert_eq!(reply.json()["error"]["code"], "json_too_deep");
            assert!(reply.body.contains("at most 64"), "{}", reply.body);
        }
    }
}

#[tokio::test]
async fn a_connection_that_idles_between_requests_is_closed() {
    let server = TestServer::with(|s| s.api.header_read_timeout = Duration::from_millis(50)).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(client.exchange(&request("GET", "/health/live", &[], "")).await.status, 200);
    client.closed().await;
}

#[tokio::test]
async fn idling_on_a_stream_is_no_idling() {
    let server = TestServer::with(|s| {
        s.api.header_read_timeout = Duration::from_millis(5);
        s.api.heartbeat = Duration::from_millis(5);
    })
    .await;
    post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await;
    let job = server.backend.job().await;
    let (mut reader, _) = Client::open(server.address, &format!("/v1/streams/{}", job.log.id()), &[]).await;
    for _ in 0..5 {
        reader.until(":\n").await;
    }
    job.run(&["still here"]);
    assert!(reader.rest().await.contains("still here"));
}
