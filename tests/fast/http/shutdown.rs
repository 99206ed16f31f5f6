//! The end: running generations finish, what is left at the deadline is told.

use std::time::Duration;

use serde_json::{Value, json};
use tallow::protocol::FinishReason;
use tokio::time::timeout;

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, TestServer, post, request};
use crate::http::feed::happenings;

const LONG: Duration = Duration::from_secs(600);
/// Shorter than that, so that a server which is held up for so long is seen to be.
const PATIENCE: Duration = Duration::from_secs(60);

fn body(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

#[tokio::test]
async fn running_generations_finish_and_then_the_server_ends() {
    let mut server = TestServer::with(|s| (s.api.drain_timeout, s.api.close_timeout) = (LONG, LONG)).await;
    let (mut client, _) = Client::open_post(server.address, "/v1/chat/completions", &body(true)).await;
    let job = server.backend.job().await;
    let mut whole = Client::connect(server.address).await;
    whole.send(&request("POST", "/v1/chat/completions", &[], &body(false).to_string())).await;
    let whole_job = server.backend.job().await;
    let mut idle = Client::connect(server.address).await;
    assert_eq!(idle.exchange(&request("GET", "/health/ready", &[], "")).await.status, 200);
    job.start();
    job.say("before ");
    client.until("before ").await;

    server.stop();
    let mut late = Client::connect(server.address).await;
    let refused = late.exchange(&request("GET", "/health/ready", &[], "")).await;
    assert_eq!((refused.status, refused.headers.contains_key("retry-after")), (503, true));
    let refused = late.exchange(&request("POST", "/v1/chat/completions", &[], &body(false).to_string())).await;
    assert_eq!((refused.status, refused.headers.contains_key("retry-after")), (503, true));
    job.say("after");
    job.finish(FinishReason::Stop);
    let rest = client.rest().await;
    assert!(rest.contains("after") && rest.ends_with("data: [DONE]\n\n"), "{rest}");
    whole_job.run(&["whole"]);
    assert_eq!(whole.head().await.status, 200);
    server.stopped().await;
}

#[tokio::test]
async fn what_is_left_at_the_deadline_ends_with_an_error_event() {
    let mut server = TestServer::with(|s| {
        (s.api.drain_timeout, s.api.close_timeout) = (Duration::from_millis(5), LONG);
    })
    .await;
    let (mut client, _) = Client::open_post(server.address, "/v1/chat/completions", &body(true)).await;
    let job = server.backend.job().await;
    let mut whole = Client::connect(server.address).await;
    whole.send(&request("POST", "/v1/chat/completions", &[], &body(false).to_string())).await;
    server.backend.job().await.start();
    job.start();
    server.stop();
    let events = SseParser::parse(&client.rest().await).events;
    let error = events.last().unwrap().json()["error"].clone();
    assert_eq!(
        (error["code"].as_str(), error["message"].as_str()),
        (Some("unavailable"), Some("the server is shutting down"))
    );
    let head = whole.head().await;
    assert_eq!(head.status, 503);
    assert!(head.headers.contains_key("retry-after"));
    server.stopped().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_cannot_hold_the_server() {
    let mut server = TestServer::with(|s| {
        (s.api.drain_timeout, s.api.close_timeout) = (Duration::from_millis(5), Duration::from_millis(5));
    })
    .await;
    let (_deaf, _) = Client::open_post(server.address, "/v1/chat/completions", &body(true)).await;
    let job = server.backend.job().await;
    job.start();
    // More than the socket buffers hold.
    let text = "x".repeat(1 << 20);
    for _ in 0..16 {
        job.say(&text);
    }
    server.stop();
    server.stopped().await;
}

/// Follows the feed from its beginning on.
async fn follow(server: &TestServer) -> Client {
    let epoch = server.service.table().feed_epoch().0;
    let (live, head) = Client::open(server.address, &format!("/v1/events?last_event_id={epoch:x}-start"), &[]).await;
    assert_eq!(head.status, 200);
    live
}

/// What a follower is told until its body ends, which must be whole, and then the server with it.
async fn told_to_the_end(server: TestServer, mut live: Client) -> Vec<String> {
    let text = timeout(PATIENCE, live.whole_rest()).await.expect("a follower's body ends with the server");
    timeout(PATIENCE, server.stopped()).await.expect("a follower does not hold the server up");
    happenings(&text).into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn a_follower_of_the_feed_gets_all_of_it_and_holds_nobody_up() {
    // Their events are more than goes out in one write.
    const NUM_STREAMS: usize = 100;
    let mut server = TestServer::with(|s| (s.api.drain_timeout, s.api.close_timeout) = (LONG, LONG)).await;
    let live = follow(&server).await;
    let stream = json!({"prompt": "hi", "on_disconnect": "detach"});
    for _ in 0..NUM_STREAMS {
        post(server.address, "/v1/streams", &stream).await;
        server.backend.job().await.run(&["a"]);
    }
    post(server.address, "/v1/streams", &stream).await;
    let last = server.backend.job().await;
    last.start();
    server.stop();
    // Answered while it drains, so the end has begun.
    let mut late = Client::connect(server.address).await;
    assert_eq!(late.exchange(&request("GET", "/health/ready", &[], "")).await.status, 503);
    last.finish(FinishReason::Stop);
    let mut expect = vec!["model_loaded"];
    (0..=NUM_STREAMS).for_each(|_| expect.extend(["queued", "started", "finished"]));
    assert_eq!(told_to_the_end(server, live).await, expect);
}

#[tokio::test]
async fn a_follower_of_the_feed_hears_of_what_the_deadline_cuts() {
    let mut server = TestServer::with(|s| {
        (s.api.drain_timeout, s.api.close_timeout) = (Duration::from_millis(5), LONG);
    })
    .await;
    let live = follow(&server).await;
    post(server.address, "/v1/streams", &json!({"prompt": "hi", "on_disconnect": "detach"})).await;
    let job = server.backend.job().await;
    job.start();
    server.stop();
    assert_eq!(told_to_the_end(server, live).await, ["model_loaded", "queued", "started", "failed"]);
}
