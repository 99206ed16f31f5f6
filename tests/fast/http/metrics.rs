//! Metrics that only an unlucky generation moves: refusals by what refused them, readers that leave, workers that panic,
//! sequences that lose their memory to others.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tallow::api::ResponseLimits;
use tallow::engine::EngineConfig;
use tallow::model::stub::{StubConfig, StubFaults, StubGate};
use tallow::protocol::{Owner, OwnerLimits};
use tallow::sampling::grammar::GrammarLimits;

use crate::http::admission::arrived;
use crate::http::common::{Client, Setup, get, post};
use crate::http::engine;
use crate::http::feed::{happenings, metric};

const STREAMS: &str = "/v1/streams";

/// A server that is full after two requests, and what it refuses then.
struct Full {
    reason: &'static str,
    config: EngineConfig,
    setup: Setup,
    path: &'static str,
    taken: Value,
    refused: Value,
}

fn gated() -> (StubConfig, Arc<StubGate>) {
    let gate = StubGate::new();
    (StubConfig { gate: Some(gate.clone()), ..StubConfig::default() }, gate)
}

fn setup(change: impl FnOnce(&mut Setup)) -> Setup {
    let mut setup = Setup::default();
    change(&mut setup);
    setup
}

fn detached() -> Value {
    json!({"prompt": "hi", "max_tokens": 4, "ignore_eos": true, "on_disconnect": "detach"})
}

/// One that has room, and would refuse for this reason.
fn full_by(reason: &'static str) -> Full {
    let (config, setup) = (EngineConfig::default(), Setup::default());
    Full { reason, config, setup, path: STREAMS, taken: detached(), refused: detached() }
}

fn all_full() -> [Full; 5] {
    let narrow = EngineConfig { max_num_seqs: 1, queue_requests_max: 1, ..EngineConfig::default() };
    let limits = OwnerLimits { requests_per_minute: Some(2), ..OwnerLimits::default() };
    let everybody = Arc::new(Owner { limits, ..Owner::anonymous() });
    // Nobody waits for a grammar to be compiled.
    let grammars = GrammarLimits { compile_time_max: Duration::ZERO, ..GrammarLimits::default() };
    let mut constrained = detached();
    constrained["guided_regex"] = json!("a+");
    let responses = ResponseLimits { num_responses_max: 2, ..ResponseLimits::default() };
    let background = || json!({"input": "hi", "background": true});
    [
        Full { config: narrow, ..full_by("queue_full") },
        Full { setup: setup(|s| s.table.num_streams_max = 2), ..full_by("streams_full") },
        Full { setup: setup(|s| s.service.owners = vec![everybody]), ..full_by("owner_limit") },
        Full {
            config: EngineConfig { grammars, ..EngineConfig::default() },
            refused: constrained,
            ..full_by("grammars_full")
        },
        Full {
            setup: setup(|s| s.api.responses = responses),
            path: "/v1/responses",
            taken: background(),
            refused: background(),
            ..full_by("responses_full")
        },
    ]
}

#[tokio::test]
async fn a_refusal_is_counted_once_by_what_refused() {
    for Full { reason, config, setup, path, taken, refused } in all_full() {
        let (stub, gate) = gated();
        let server = engine::start(config, stub, setup).await;
        for _ in 0..2 {
            let reply = post(server.address, path, &taken).await;
            assert!(reply.status < 300, "{reason}: {}", reply.body);
            // The first has left the queue, and makes room for the second.
            arrived(&gate, 1).await;
        }
        let reply = post(server.address, path, &refused).await;
        let expect = if reason == "grammars_full" { 503 } else { 429 };
        let has_retry_after = reply.headers.contains_key("retry-after");
        assert_eq!((reply.status, has_retry_after), (expect, true), "{reason}: {}", reply.body);
        let text = get(server.address, "/metrics", &[]).await.body;
        let counted: Vec<&str> = text.lines().filter(|line| line.starts_with("tallow_rejects_total{")).collect();
        assert_eq!(counted, [format!("tallow_rejects_total{{reason=\"{reason}\"}} 1")]);
        // There was room for what only the key's limit refused.
        let is_own = reason == "owner_limit";
        let totals = [
            metric(&server, "tallow_requests_rejected_total").await,
            metric(&server, "tallow_requests_limited_total").await,
        ];
        assert_eq!(totals, [f64::from(!is_own), f64::from(is_own)], "{reason}");
        gate.open();
    }
}

#[tokio::test]
async fn what_comes_while_the_server_drains_is_counted_as_refused_and_told() {
    let server = engine::start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    server.service.drain();
    assert_eq!(post(server.address, STREAMS, &detached()).await.status, 503);
    assert_eq!(metric(&server, "tallow_rejects_total{reason=\"unavailable\"}").await, 1.0);
    assert_eq!(metric(&server, "tallow_requests_rejected_total").await, 1.0);
    let path = format!("/v1/events?last_event_id={:x}-start", server.service.table().feed_epoch().0);
    let (mut feed, _) = Client::open(server.address, &path, &[]).await;
    let told = happenings(&feed.until("event: rejected").await);
    let names: Vec<String> = told.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["model_loaded", "rejected"]);
}

#[tokio::test]
async fn a_reader_that_leaves_is_the_cause_and_its_slot_is_free_in_a_measured_time() {
    let (stub, gate) = gated();
    let server = engine::start(EngineConfig::default(), stub, Setup::default()).await;
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true, "ignore_eos": true});
    let (client, _) = Client::open_post(server.address, "/v1/chat/completions", &chat).await;
    arrived(&gate, 1).await;
    let log = server.service.table().live().pop().unwrap();
    client.close();
    while log.cancelled().is_none() {
        tokio::task::yield_now().await;
    }
    gate.open();
    server.service.drained().await;
    for name in ["requests_cancelled_total", "cancels_total{cause=\"reader_left\"}", "disconnect_to_free_seconds_count"]
    {
        assert_eq!(metric(&server, &format!("tallow_{name}")).await, 1.0, "{name}");
    }
    for name in ["num_running", "kv_blocks_used"] {
        assert_eq!(metric(&server, &format!("tallow_{name}")).await, 0.0, "{name} is not back");
    }
}

#[tokio::test]
async fn a_worker_that_panics_is_restarted_counted_and_told_of() {
    let faults = StubFaults { panic_on_token: Some(u32::from(b'#')), ..StubFaults::default() };
    let stub = StubConfig { faults, ..StubConfig::default() };
    let setup = setup(|s| s.api.sweep_interval = Duration::from_millis(1));
    let server = engine::start(EngineConfig::default(), stub, setup).await;
    let (mut feed, _) = Client::open(server.address, "/v1/events", &[]).await;
    let opening = feed.until("retry: ").await;
    let mut body = detached();
    body["prompt"] = json!("a # b");
    let path = post(server.address, STREAMS, &body).await.headers["location"].clone();
    let lost = get(server.address, &path, &[]).await.body;
    assert!(lost.contains("event: error") && lost.contains("the worker failed"), "{lost}");
    assert_eq!(metric(&server, "tallow_worker_restarts_total").await, 1.0);
    assert_eq!(metric(&server, "tallow_requests_failed_total").await, 1.0);
    let told = happenings(&(opening + &feed.until("event: worker_restarted").await));
    assert!(told.contains(&("worker_restarted".to_owned(), None)), "{told:?}");
    // The one in its place works. A token, should it be the one again, is only computed when another follows it.
    let body = json!({"prompt": "a b", "max_tokens": 1});
    let path = post(server.address, STREAMS, &body).await.headers["location"].clone();
    let served = get(server.address, &path, &[]).await.body;
    assert!(served.contains("event: done"), "{served}");
    assert_eq!(metric(&server, "tallow_worker_restarts_total").await, 1.0);
}

#[tokio::test]
async fn sequences_that_outgrow_the_memory_are_seen_to_make_way() {
    let (stub, gate) = gated();
    // Each of the four grows to more than a quarter of the memory.
    let stub = StubConfig { num_blocks: 12, max_model_len: 384, ..stub };
    let server = engine::start(EngineConfig::default(), stub, Setup::default()).await;
    for seed in 0..4 {
        let mut body = detached();
        (body["seed"], body["max_tokens"]) = (json!(seed), json!(200));
        let reply = post(server.address, STREAMS, &body).await;
        assert_eq!(reply.status, 201, "{}", reply.body);
    }
    gate.open();
    server.service.drained().await;
    assert!(metric(&server, "tallow_preemptions_total").await > 0.0, "nobody made way");
    assert_eq!(metric(&server, "tallow_requests_done_total").await, 4.0);
    assert_eq!(metric(&server, "tallow_kv_blocks_used").await, 0.0);
}
