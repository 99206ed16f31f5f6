//! A disk that stalls under the kept streams: it holds up what must be kept, and neither HTTP nor a cancellation. When it is
//! back, everything goes on with the bytes that it would have had.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tallow::engine::EngineConfig;
use tallow::model::stub::{StubConfig, StubGate};
use tallow::service::LocalBackend;
use tallow::stream::{StoreLimits, StreamStore};

use crate::http::common::sse::{SseEvent, SseParser};
use crate::http::common::{Client, Reply, Setup, TestServer, get, post, request};

const PATIENCE: Duration = Duration::from_secs(60);
const STREAMS: &str = "/v1/streams";
/// Changes that were on their way at most before whoever brought more waited.
const NUM_CHANGES_MAX: usize = 16_384;
const NUM_READ: usize = 3;
const NUM_CHOICES: usize = 128;

fn limits(stall_time_max: Duration) -> StoreLimits {
    StoreLimits { commit_interval: Duration::from_millis(1), num_bytes_max: 1 << 30, stall_time_max }
}

async fn start(store: Option<Arc<StreamStore>>, gate: Option<Arc<StubGate>>) -> TestServer<LocalBackend> {
    let config = EngineConfig {
        queue_requests_max: 1 << 16,
        stall_time_max: Duration::from_millis(500),
        step_time_max: Duration::from_secs(1),
        ..EngineConfig::default()
    };
    let mut setup = Setup { store, ..Setup::default() };
    setup.table.num_streams_max = 1 << 16;
    setup.api.sweep_interval = Duration::from_millis(10);
    setup.service.cancel_wait = Duration::from_millis(50);
    crate::http::engine::start(config, StubConfig { gate, ..StubConfig::default() }, setup).await
}

/// What hangs is a failure, not a test without end.
async fn prompt<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} waits for the disk"))
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "it never comes: {what}");
        tokio::task::yield_now().await;
    }
}

fn long(seed: usize) -> Value {
    json!({"prompt": "a long way", "seed": seed, "max_tokens": 2500, "ignore_eos": true, "on_disconnect": "detach"})
}

/// Many streams in one request, which end as its connection does.
fn many() -> Value {
    json!({"prompt": "hi", "n": NUM_CHOICES, "seed": 1, "max_tokens": 4, "stream": true})
}

async fn create(server: &TestServer<LocalBackend>, seed: usize) -> String {
    let created = prompt("a new stream", post(server.address, STREAMS, &long(seed))).await;
    assert_eq!(created.status, 201, "{}", created.body);
    created.headers["location"].clone()
}

/// A stream's text and its end, once it has one; the ids must be dense where nothing was merged.
async fn read(server: &TestServer<LocalBackend>, path: &str) -> (String, Value) {
    let (mut client, head) = Client::open(server.address, path, &[]).await;
    assert_eq!(head.status, 200);
    let events: Vec<Value> = SseParser::parse(&prompt("a reader", client.rest()).await)
        .events
        .iter()
        .filter(|event| event.name != "heartbeat" && !event.data.is_empty())
        .map(SseEvent::json)
        .collect();
    let text = events.iter().filter_map(|event| event["text"].as_str()).collect();
    let end = events.last().unwrap();
    assert_eq!(end["type"], "done", "{end}");
    (text, json!([end["finish_reason"], end["usage"]]))
}

async fn health(server: &TestServer<LocalBackend>, which: &str) -> Reply {
    prompt(which, get(server.address, &format!("/health/{which}"), &[])).await
}

/// Fills the room with new streams until one is refused; returns the connections that hold them, and the refusal.
async fn fill(server: &TestServer<LocalBackend>) -> (Vec<Client>, Reply) {
    let (mut clients, body) = (Vec::new(), many());
    loop {
        let open = Client::open_post(server.address, "/v1/completions", &body);
        let (mut client, head) = prompt("a new request", open).await;
        if head.status != 200 {
            let body = client.body(&head.headers).await;
            return (clients, Reply { status: head.status, headers: head.headers, body });
        }
        clients.push(client);
        assert!(clients.len() * NUM_CHOICES < NUM_CHANGES_MAX, "nothing is refused");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_stalls_freezes_nothing_and_costs_no_byte() {
    let alone = start(None, None).await;
    let mut solo = Vec::new();
    for seed in 0..NUM_READ {
        solo.push(read(&alone, &create(&alone, seed).await).await);
    }

    let (dir, gate) = (tempfile::tempdir().unwrap(), StubGate::new());
    let (store, _) = StreamStore::open(dir.path(), limits(Duration::from_secs(3600))).unwrap();
    let server = start(Some(store.clone()), Some(gate.clone())).await;
    let metrics = server.service.metrics().clone();
    let mut paths = Vec::new();
    for seed in 0..=NUM_READ {
        paths.push(create(&server, seed).await);
    }
    let stall = store.stall();
    let chat = json!({
        "messages": [{"role": "user", "content": "hi"}], "stream": true, "max_tokens": 2500, "ignore_eos": true,
    });
    let (left, head) = Client::open_post(server.address, "/v1/chat/completions", &chat).await;
    assert_eq!(head.status, 200);
    stall.wait_reached();
    // A server that freezes goes on after a while, so that it fails the test in place of hanging it.
    let (over, is_over) = std::sync::mpsc::sync_channel::<()>(1);
    let thaw = std::thread::spawn(move || {
        let has_frozen = is_over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
        drop(stall);
        has_frozen
    });
    gate.open();
    until("a worker that the disk holds up", || metrics.workers_held_up.get() == 1).await;
    until("all of them run", || metrics.num_running.get() as usize == NUM_READ + 2).await;

    // A cancellation takes effect although no step begins, by name and by a closed socket; that it is kept is not said.
    let (num_steps, num_blocks) = (metrics.steps.get(), metrics.kv_blocks_used.get());
    let cancelled = paths.pop().unwrap();
    let delete = request("DELETE", &cancelled, &[], "");
    let mut client = Client::connect(server.address).await;
    assert_eq!(prompt("a cancellation", client.exchange(&delete)).await.status, 503, "it is not durable");
    until("its slot is free", || metrics.num_running.get() as usize == NUM_READ + 1).await;
    left.close();
    until("so is that of the one that left", || metrics.num_running.get() as usize == NUM_READ).await;
    assert!(metrics.kv_blocks_used.get() < num_blocks && metrics.steps.get() == num_steps);

    // More than 16,384 changes: first new streams until they are refused, then the ends of those that were accepted.
    let (clients, refused) = fill(&server).await;
    assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (503, "1"), "{}", refused.body);
    assert!(refused.body.contains("the disk that keeps the streams does not keep up"), "{}", refused.body);
    let num_waiting = clients.len() * NUM_CHOICES;
    assert_eq!(metrics.num_waiting.get() as usize, num_waiting);
    clients.into_iter().for_each(Client::close);
    until("they have left the queue", || metrics.num_waiting.get() == 0).await;
    assert!(store.num_waiting() > NUM_CHANGES_MAX + num_waiting / 2, "{}", store.num_waiting());
    let began = Instant::now();
    // Longer than a step may take: a worker that waits for the disk does not hang.
    while began.elapsed() < Duration::from_millis(2500) {
        assert_eq!(health(&server, "live").await.status, 200);
        let ready = health(&server, "ready").await;
        assert_eq!(ready.status, 503);
        assert!(ready.body.contains("does not keep up"), "{}", ready.body);
    }
    let told = prompt("metrics", get(server.address, "/metrics", &[])).await.body;
    assert!(told.contains("tallow_rejects_total{reason=\"store_behind\"} 1"), "{told}");

    drop(over);
    assert!(!thaw.join().unwrap(), "the stall froze the server");
    for (path, solo) in paths.iter().zip(&solo) {
        assert_eq!(read(&server, path).await, *solo, "{path}");
    }
    while health(&server, "ready").await.status != 200 {}
    assert_eq!(read(&server, &create(&server, 0).await).await, solo[0], "new requests are taken again");
    assert_eq!((metrics.workers_abandoned.get(), metrics.worker_restarts.get(), store.has_failed()), (0, 0, false));
    prompt("the last commit", store.flushed()).await;
    drop(store);
    stop(server).await;
    let (_, stored) = StreamStore::open(dir.path(), limits(PATIENCE)).unwrap();
    assert_eq!(stored.len(), NUM_READ + 3 + num_waiting, "no stream is lost");
    for stream in stored {
        let seqs: Vec<u64> = stream.entries.iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, (0..seqs.len() as u64).collect::<Vec<_>>(), "ids are dense");
        assert!(stream.entries.last().is_some_and(|entry| entry.event.is_terminal()));
    }
}

async fn stop(mut server: TestServer<LocalBackend>) {
    server.stop();
    prompt("the end", server.stopped()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_hangs_shows_in_readiness_and_refuses_new_requests() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = StreamStore::open(dir.path(), limits(Duration::from_millis(20))).unwrap();
    let server = start(Some(store.clone()), None).await;
    assert_eq!(health(&server, "ready").await.status, 200);
    let stall = store.stall();
    let body = json!({"prompt": "hi", "max_tokens": 5, "seed": 1, "stream": true});
    let (mut accepted, head) = Client::open_post(server.address, "/v1/completions", &body).await;
    assert_eq!(head.status, 200);
    let ready = loop {
        let ready = health(&server, "ready").await;
        assert_eq!(health(&server, "live").await.status, 200);
        if ready.status != 200 {
            break ready;
        }
    };
    assert_eq!((ready.status, ready.headers.contains_key("retry-after")), (503, true));
    assert!(ready.body.contains("a commit must take at most 0.02 s"), "{}", ready.body);
    for path in ["/v1/completions", STREAMS] {
        let refused = prompt(path, post(server.address, path, &body)).await;
        assert_eq!((refused.status, refused.headers.contains_key("retry-after")), (503, true), "{path}");
    }
    assert_eq!((server.service.table().len(), server.service.metrics().num_waiting.get()), (1, 0), "no trace of them");
    drop(stall);
    let text = prompt("what was accepted", accepted.rest()).await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    while health(&server, "ready").await.status != 200 {}
    assert_eq!(post(server.address, STREAMS, &long(1)).await.status, 201);
}
