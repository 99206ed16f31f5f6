//! The whole corridor but for the weights: HTTP, service, the real engine, the stub model.

use std::sync::Arc;

use serde_json::{Value, json};
use tallow::engine::{Engine, EngineConfig};
use tallow::metrics::Metrics;
use tallow::model::Model;
use tallow::model::stub::{StubConfig, StubGate, StubModel};
use tallow::service::LocalBackend;
use tallow::text::Tokenizer;

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, Setup, TestServer, get, post, request};

const CHAT: &str = "/v1/chat/completions";
const NUM_STREAMS: usize = 32;

pub(crate) async fn start(config: EngineConfig, stub: StubConfig, setup: Setup) -> TestServer<LocalBackend> {
    let metrics = Arc::new(Metrics::default());
    let factory = Arc::new(move || Ok(Box::new(StubModel::new(stub.clone())) as Box<dyn Model>));
    let engine = Engine::start(config, factory, Arc::new(Tokenizer::byte_level()), metrics.clone()).unwrap();
    let setup = Setup { spec: engine.spec().clone(), ..setup };
    TestServer::around(Arc::new(LocalBackend::new(engine)), setup, metrics).await
}

async fn plain() -> TestServer<LocalBackend> {
    start(EngineConfig::default(), StubConfig::default(), Setup::default()).await
}

fn gated() -> (StubConfig, Arc<StubGate>) {
    let gate = StubGate::new();
    (StubConfig { gate: Some(gate.clone()), ..StubConfig::default() }, gate)
}

fn body(n: usize, stream: bool) -> Value {
    let content = "tell me ".repeat(1 + n % 7);
    json!({
        "messages": [{"role": "user", "content": content}], "stream": stream, "seed": n, "max_tokens": 10 + n,
        "stop": ["zq"], "logprobs": n.is_multiple_of(2), "top_logprobs": n.is_multiple_of(2).then_some(2),
    })
}

/// The text of a chat stream, and its finish reason.
fn transcript(bytes: &str) -> (String, String) {
    let events = SseParser::parse(bytes).events;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done.data, "[DONE]");
    let choices: Vec<Value> = chunks.iter().map(|e| e.json()["choices"][0].clone()).collect();
    let text = choices.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
    (text, choices.last().unwrap()["finish_reason"].as_str().unwrap().to_owned())
}

async fn stream(server: &TestServer<LocalBackend>, n: usize) -> (String, String) {
    let (mut client, head) = Client::open_post(server.address, CHAT, &body(n, true)).await;
    assert_eq!(head.status, 200);
    transcript(&client.rest().await)
}

/// Waits until the engine holds nothing, by the events that tell so.
async fn idle(server: &TestServer<LocalBackend>) {
    server.service.drained().await;
    let metrics = server.service.metrics();
    assert_eq!((metrics.num_running.get(), metrics.num_waiting.get(), metrics.kv_blocks_used.get()), (0, 0, 0));
}

#[tokio::test]
async fn many_streams_share_steps_and_each_equals_its_solo_run() {
    let alone = plain().await;
    let mut solo = Vec::new();
    for n in 0..NUM_STREAMS {
        solo.push(stream(&alone, n).await);
    }
    let (stub, gate) = gated();
    let server = start(EngineConfig::default(), stub, Setup::default()).await;
    let mut clients = Vec::new();
    for n in 0..NUM_STREAMS {
        clients.push(Client::open_post(server.address, CHAT, &body(n, true)).await.0);
    }
    gate.open();
    for (client, expect) in clients.iter_mut().zip(&solo) {
        assert_eq!(transcript(&client.rest().await), *expect);
    }
    let metrics = server.service.metrics();
    let mean = metrics.step_sequences.get() as f64 / metrics.steps.get() as f64;
    assert!(mean > 8.0, "mean batch {mean}");
    assert!(solo.iter().any(|(text, _)| !text.is_ascii()), "some text has characters of several bytes");
    idle(&server).await;
}

#[tokio::test]
async fn a_whole_answer_says_what_the_stream_says() {
    let server = plain().await;
    for n in 0..8 {
        let (text, finish_reason) = stream(&server, n).await;
        let whole = post(server.address, CHAT, &body(n, false)).await.json();
        assert_eq!(whole["choices"][0]["message"]["content"], text, "request {n}");
        assert_eq!(whole["choices"][0]["finish_reason"], finish_reason);
    }
}

#[tokio::test]
async fn closing_the_connection_frees_slot_and_blocks_within_one_step() {
    for is_stream in [true, false] {
        let (stub, gate) = gated();
        let server = start(EngineConfig::default(), stub, Setup::default()).await;
        let mut client = Client::connect(server.address).await;
        client.send(&request("POST", CHAT, &[], &body(31, is_stream).to_string())).await;
        gate.allow(3);
        let waiting = gate.clone();
        tokio::task::spawn_blocking(move || waiting.wait_arrived(4)).await.unwrap();
        assert!(server.service.metrics().kv_blocks_used.get() > 0);
        client.close();
        let log = server.service.table().live().pop().unwrap();
        while log.cancelled().is_none() {
            tokio::task::yield_now().await;
        }
        gate.allow(1);
        idle(&server).await;
        assert_eq!(gate.num_arrived(), 4, "no further step was run for it");
        assert_eq!(server.service.metrics().requests_cancelled.get(), 1);
    }
}

#[tokio::test]
async fn closing_the_connection_takes_a_waiting_request_out_of_the_queue() {
    let (stub, gate) = gated();
    let server = start(EngineConfig { max_num_seqs: 1, ..EngineConfig::default() }, stub, Setup::default()).await;
    let (first, _) = Client::open_post(server.address, CHAT, &body(0, true)).await;
    let waiting = gate.clone();
    tokio::task::spawn_blocking(move || waiting.wait_arrived(1)).await.unwrap();
    for is_stream in [true, false] {
        let mut client = Client::connect(server.address).await;
        client.send(&request("POST", CHAT, &[], &body(1, is_stream).to_string())).await;
        while server.service.metrics().num_waiting.get() == 0 {
            tokio::task::yield_now().await;
        }
        client.close();
        // The step that runs is held at the gate all along.
        while server.service.metrics().num_waiting.get() > 0 {
            tokio::task::yield_now().await;
        }
    }
    first.close();
    gate.open();
    idle(&server).await;
}

#[tokio::test]
async fn a_full_queue_is_429_with_a_time_to_come_back() {
    let (stub, gate) = gated();
    let config = EngineConfig { max_num_seqs: 1, queue_requests_max: 1, ..EngineConfig::default() };
    let server = start(config, stub, Setup::default()).await;
    let detached = json!({"prompt": "hi", "max_tokens": 3, "on_disconnect": "detach"});
    assert_eq!(post(server.address, "/v1/streams", &detached).await.status, 201);
    let waiting = gate.clone();
    tokio::task::spawn_blocking(move || waiting.wait_arrived(1)).await.unwrap();
    assert_eq!(post(server.address, "/v1/streams", &detached).await.status, 201);
    let refused = post(server.address, "/v1/streams", &detached).await;
    assert_eq!(refused.status, 429);
    assert!(refused.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    assert!(refused.headers["retry-after-ms"].parse::<u64>().unwrap() >= 1);
    for several in [json!({"prompt": "a", "n": 100}), json!({"prompt": ["a", "b", "c"]})] {
        assert_eq!(post(server.address, "/v1/completions", &several).await.status, 429, "{several}");
    }
    assert_eq!(server.service.table().len(), 2, "the refused ones left nothing");
    assert_eq!(server.service.metrics().requests_accepted.get(), 2, "none was taken in to be thrown out again");
    gate.open();
    idle(&server).await;
}

#[tokio::test]
async fn a_native_stream_resumes_on_a_running_generation() {
    let server = plain().await;
    let created = post(server.address, "/v1/streams", &json!({"prompt": "abc", "seed": 5, "max_tokens": 60})).await;
    let path = created.headers["location"].clone();
    let whole = get(server.address, &path, &[]).await.body;
    let events = SseParser::parse(&whole).events;
    assert_eq!(events.last().unwrap().name, "done");
    let middle = &events[events.len() / 2];
    let rest = get(server.address, &path, &[("last-event-id", &middle.last_id)]).await.body;
    assert_eq!(SseParser::parse(&rest).events, events[events.len() / 2 + 1..]);
    // The same seed says the same again.
    let again = post(server.address, "/v1/streams", &json!({"prompt": "abc", "seed": 5, "max_tokens": 60})).await;
    let again = SseParser::parse(&get(server.address, &again.headers["location"], &[]).await.body).events;
    let texts = |events: &[crate::http::common::sse::SseEvent]| -> String {
        events.iter().filter_map(|e| e.json()["text"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(texts(&again), texts(&events));
}

#[tokio::test]
async fn the_end_of_the_server_is_told_to_a_stuck_generation() {
    let (stub, gate) = gated();
    let mut setup = Setup::default();
    setup.api.drain_timeout = std::time::Duration::from_millis(5);
    let mut server = start(EngineConfig { max_num_seqs: 1, ..EngineConfig::default() }, stub, setup).await;
    let (mut running, _) = Client::open_post(server.address, CHAT, &body(0, true)).await;
    let (mut waiting, _) = Client::open_post(server.address, CHAT, &body(1, true)).await;
    let arrived = gate.clone();
    tokio::task::spawn_blocking(move || arrived.wait_arrived(1)).await.unwrap();
    server.stop();
    // The waiting one ends at the deadline although the worker is in a step; the running one with that step.
    let last = |bytes: &str| SseParser::parse(bytes).events.last().unwrap().json();
    assert_eq!(last(&waiting.rest().await)["error"]["code"], "unavailable");
    gate.open();
    assert_eq!(last(&running.rest().await)["error"]["code"], "unavailable");
    server.stopped().await;
}
