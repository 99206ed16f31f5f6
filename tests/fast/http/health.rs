//! Health tells the truth: a worker that hangs shows at once, is given up and replaced, and its streams go on; one that is
//! only slow is left alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tallow::engine::{Engine, EngineConfig};
use tallow::metrics::Metrics;
use tallow::model::Model;
use tallow::model::stub::{StubConfig, StubFaults, StubGate, StubModel};
use tallow::service::LocalBackend;
use tallow::text::Tokenizer;

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, Setup, TestServer, get, post};
use crate::http::feed::happenings;

/// A server whose first `num_hanging` models hang in their second step, at a gate that stays shut.
async fn start(num_hanging: usize, config: EngineConfig) -> (TestServer<LocalBackend>, Arc<StubGate>) {
    let gate = StubGate::new();
    gate.allow(1);
    let hanging = StubConfig {
        gate: Some(gate.clone()),
        faults: StubFaults { silent_from_step: Some(0), ..StubFaults::default() },
        ..StubConfig::default()
    };
    let num_made = AtomicUsize::new(0);
    let factory = Arc::new(move || {
        let config = match num_made.fetch_add(1, Ordering::SeqCst) {
            n if n < num_hanging => hanging.clone(),
            _ => StubConfig::default(),
        };
        Ok(Box::new(StubModel::new(config)) as Box<dyn Model>)
    });
    let metrics = Arc::new(Metrics::default());
    let engine = Engine::start(config, factory, Arc::new(Tokenizer::byte_level()), metrics.clone()).unwrap();
    let mut setup = Setup { spec: engine.spec().clone(), ..Setup::default() };
    setup.api.sweep_interval = Duration::from_millis(10);
    (TestServer::around(Arc::new(LocalBackend::new(engine)), setup, metrics).await, gate)
}

fn quick() -> EngineConfig {
    EngineConfig {
        stall_time_max: Duration::from_millis(40),
        step_time_max: Duration::from_millis(200),
        worker_backoff_min: Duration::from_millis(100),
        shutdown_time_max: Duration::from_millis(50),
        ..EngineConfig::default()
    }
}

async fn status(server: &TestServer<LocalBackend>, path: &str) -> u16 {
    get(server.address, path, &[]).await.status
}

/// Asks until the answer is `wanted`; meanwhile the process must say that it lives.
async fn ready_becomes(server: &TestServer<LocalBackend>, wanted: u16) {
    while status(server, "/health/ready").await != wanted {
        assert_eq!(status(server, "/health/live").await, 200);
    }
}

fn body() -> Value {
    json!({"prompt": "hi", "max_tokens": 5, "on_disconnect": "detach", "ignore_eos": true})
}

#[tokio::test]
async fn a_worker_that_hangs_is_seen_given_up_and_replaced() {
    let (server, gate) = start(1, quick()).await;
    assert_eq!(status(&server, "/health/ready").await, 200);
    let blocks = server.service.metrics().kv_blocks_total.get();
    let path = post(server.address, "/v1/streams", &body()).await.headers["location"].clone();
    let (mut client, _) = Client::open(server.address, &path, &[]).await;
    ready_becomes(&server, 503).await;
    ready_becomes(&server, 200).await;
    let whole = SseParser::parse(&client.rest().await).events;
    let last = whole.last().unwrap();
    assert_eq!((last.name.as_str(), &last.json()["usage"]["completion_tokens"]), ("done", &json!(5)));
    let numbers: Vec<u64> = whole.iter().filter_map(|event| event.json()["seq"].as_u64()).collect();
    assert!(numbers.is_sorted_by(|a, b| a + 1 == *b), "the ids are dense: {numbers:?}");
    let metrics = server.service.metrics();
    assert_eq!((metrics.workers_abandoned.get(), metrics.worker_restarts.get()), (1, 1));
    let path = post(server.address, "/v1/streams", &body()).await.headers["location"].clone();
    let served = get(server.address, &path, &[]).await.body;
    assert!(served.contains("event: done"), "{served}");
    // What the hung one does when it wakes reaches nobody.
    gate.open();
    let served = post(server.address, "/v1/streams", &body()).await.headers["location"].clone();
    assert!(get(server.address, &served, &[]).await.body.contains("event: done"));
    let m = server.service.metrics();
    assert_eq!((m.requests_done.get(), m.requests_failed.get(), m.requests_cancelled.get()), (3, 0, 0));
    assert_eq!((m.num_running.get(), m.kv_blocks_used.get(), m.kv_blocks_total.get()), (0, 0, blocks));
}

#[tokio::test]
async fn operators_hear_of_a_worker_that_was_replaced() {
    let (server, _gate) = start(1, quick()).await;
    let (mut feed, _) = Client::open(server.address, "/v1/events", &[]).await;
    let opening = feed.until("retry: ").await;
    assert_eq!(post(server.address, "/v1/streams", &body()).await.status, 201);
    let text = opening + &feed.until("event: worker_restarted").await;
    let names: Vec<String> = happenings(&text).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["queued", "started", "worker_restarted"]);
    let told = SseParser::parse(&text).events.last().unwrap().json();
    assert_eq!((&told["stream"], &told["data"]), (&Value::Null, &json!({"restarts": 1})), "it is no stream's");
}

/// The gate lets one step through in all: the first request loses two workers, and every later one the first that it gets.
#[tokio::test]
async fn hung_workers_are_replaced_only_so_often_and_for_ever() {
    let abandoned_time = Duration::from_millis(1500);
    let config = EngineConfig { workers_abandoned_max: 1, abandoned_time, ..quick() };
    let (server, _gate) = start(4, config).await;
    for n in 0..3 {
        ready_becomes(&server, 200).await;
        let path = post(server.address, "/v1/streams", &body()).await.headers["location"].clone();
        let text = get(server.address, &path, &[]).await.body;
        assert!(
            text.contains("the worker hung in a step and was given up, and this request was the cause"),
            "{n}: {text}"
        );
    }
    ready_becomes(&server, 200).await;
    let path = post(server.address, "/v1/streams", &body()).await.headers["location"].clone();
    assert!(get(server.address, &path, &[]).await.body.contains("event: done"));
    assert_eq!(server.service.metrics().workers_abandoned.get(), 4);
}

#[tokio::test]
async fn a_long_step_is_not_a_hung_one() {
    let config = EngineConfig { stall_time_max: Duration::from_millis(500), ..quick() };
    let config = EngineConfig { step_time_max: Duration::from_millis(600), ..config };
    let stub = StubConfig { step_delay: Duration::from_millis(1500), ..StubConfig::default() };
    let server = crate::http::engine::start(config, stub, Setup::default()).await;
    let body = json!({"prompt": "hi", "max_tokens": 1, "on_disconnect": "detach"});
    let path = post(server.address, "/v1/streams", &body).await.headers["location"].clone();
    let (mut client, _) = Client::open(server.address, &path, &[]).await;
    let reading = client.rest();
    tokio::pin!(reading);
    let text = loop {
        tokio::select! {
            text = &mut reading => break text,
            status = status(&server, "/health/ready") => assert_eq!(status, 200),
        }
    };
    assert!(text.contains("event: done"), "{text}");
    assert_eq!(server.service.metrics().workers_abandoned.get(), 0);
}
