//! In front of the engine: waiting with a place in line, and not for ever.

use serde_json::{Value, json};
use tallow::engine::EngineConfig;
use tallow::model::stub::{StubConfig, StubGate};

use crate::http::common::sse::{SseEvent, SseParser};
use crate::http::common::{Client, Setup, TestServer, get, post, request};
use crate::http::engine;

/// One sequence at a time, each step when the test says so.
async fn narrow(config: EngineConfig) -> (TestServer<tallow::service::LocalBackend>, std::sync::Arc<StubGate>) {
    let gate = StubGate::new();
    let stub = StubConfig { gate: Some(gate.clone()), ..StubConfig::default() };
    (engine::start(EngineConfig { max_num_seqs: 1, ..config }, stub, Setup::default()).await, gate)
}

/// Waits until so many steps in all have come to the gate.
pub(crate) async fn arrived(gate: &std::sync::Arc<StubGate>, n: u64) {
    let gate = gate.clone();
    tokio::task::spawn_blocking(move || gate.wait_arrived(n)).await.unwrap();
}

fn stream(max_tokens: usize) -> Value {
    json!({"prompt": "hi", "max_tokens": max_tokens, "ignore_eos": true, "on_disconnect": "detach"})
}

#[tokio::test]
async fn a_request_that_waits_too_long_is_told_so_and_never_runs() {
    let (server, gate) = narrow(EngineConfig::default()).await;
    post(server.address, "/v1/streams", &stream(3)).await;
    arrived(&gate, 1).await;
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "stream": false}).to_string();
    let text = request("POST", "/v1/chat/completions", &[("x-queue-timeout", "0.05")], &chat);
    let reply = Client::connect(server.address).await.exchange(&text).await;
    assert_eq!(reply.status, 503, "{}", reply.body);
    assert_eq!(reply.json()["error"]["code"], "queue_timeout");
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("0.05 s"), "{}", reply.body);
    let metrics = server.service.metrics();
    assert_eq!((metrics.queue_timeouts.get(), metrics.num_waiting.get()), (1, 0));
    gate.open();
    server.service.drained().await;
    assert_eq!(metrics.requests_done.get(), 1, "only the first one ran");
}

#[tokio::test]
async fn a_queue_time_out_is_seconds_and_bounded() {
    let (server, _gate) = narrow(EngineConfig::default()).await;
    for (value, expect) in [("-1", "must be seconds from 0"), ("soon", "must be seconds from 0"), ("1e9", "at most")] {
        let text = request("POST", "/v1/streams", &[("x-queue-timeout", value)], &stream(1).to_string());
        let reply = Client::connect(server.address).await.exchange(&text).await;
        assert_eq!(reply.status, 400, "{value}: {}", reply.body);
        assert!(reply.body.contains(expect) && reply.body.contains("x-queue-timeout"), "{}", reply.body);
    }
}

#[tokio::test]
async fn who_waits_hears_of_its_place_as_it_changes() {
    let note = EngineConfig { queue_note_interval: std::time::Duration::from_millis(1), ..EngineConfig::default() };
    let (server, gate) = narrow(note).await;
    let mut paths = Vec::new();
    for i in 0..4 {
        paths.push(post(server.address, "/v1/streams", &stream(2)).await.headers["location"].clone());
        if i == 0 {
            // The worker has taken the first one out of the line.
            arrived(&gate, 1).await;
        }
    }
    let (mut last, _) = Client::open(server.address, &paths[3], &[]).await;
    let mut text = last.until("\"position\":2").await;
    // One after another ends; each time the last one in line moves up.
    for position in [1, 0] {
        let done = get_done(&server, &gate, &paths[1 - position]).await;
        assert!(done.contains("event: done"));
        text.push_str(&last.until(&format!("\"position\":{position}")).await);
    }
    gate.open();
    text.push_str(&last.rest().await);
    let events = SseParser::parse(&text).events;
    let queued: Vec<Value> = events.iter().filter(|e| e.name == "queued").map(SseEvent::json).collect();
    let positions: Vec<u64> = queued.iter().map(|q| q["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [2, 1, 0]);
    assert!(
        queued.iter().any(|q| q["estimated_wait_ms"].is_u64()),
        "once one was served the wait is known: {queued:?}"
    );
    assert_eq!(events.last().map(|e| e.name.as_str()), Some("done"));
}

/// Lets steps run until this stream has ended.
async fn get_done(
    server: &TestServer<tallow::service::LocalBackend>,
    gate: &std::sync::Arc<StubGate>,
    path: &str,
) -> String {
    gate.allow(2);
    get(server.address, path, &[]).await.body
}
