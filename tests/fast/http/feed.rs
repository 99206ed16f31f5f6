//! `/v1/events`: what operators see of everybody's streams; and the metrics that move with it.

use serde_json::{Value, json};
use tallow::engine::EngineConfig;
use tallow::error::{Error, ErrorKind};
use tallow::model::stub::StubConfig;

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, Setup, TestServer, get, post, request};
use crate::http::engine;

/// Type and stream of each event, without the opening.
pub(crate) fn happenings(text: &str) -> Vec<(String, Option<String>)> {
    let events = SseParser::parse(text).events;
    let of = |data: Value| {
        assert!(data["source"].as_str().unwrap().starts_with("tallow/") && data["time"].is_u64(), "{data}");
        (data["type"].as_str().unwrap().to_owned(), data["stream"].as_str().map(str::to_owned))
    };
    events.iter().map(|e| of(e.json())).collect()
}

#[tokio::test]
async fn the_feed_tells_of_every_stream_in_one_envelope_and_resumes() {
    let server = TestServer::start().await;
    let (mut live, head) = Client::open(server.address, "/v1/events", &[]).await;
    assert_eq!((head.status, head.headers["content-type"].as_str()), (200, "text/event-stream"));
    let opening = live.until("retry: ").await;
    post(server.address, "/v1/streams", &json!({"prompt": "hi", "on_disconnect": "detach"})).await;
    let first = server.backend.job().await;
    first.run(&["a", "b"]);
    let mut text = opening + &live.until("event: finished").await;
    let resumed_at = SseParser::parse(&text).last_id;
    drop(live);

    server.backend.refuse_next(Error::overloaded("the queue is full: 9 requests wait", 1500));
    assert_eq!(post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await.status, 429);
    let path = post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await.headers["location"].clone();
    let second = server.backend.job().await;
    Client::connect(server.address).await.exchange(&request("DELETE", &path, &[], "")).await;
    post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await;
    let third = server.backend.job().await;
    third.fail(ErrorKind::Internal, "it broke");
    let (mut live, _) = Client::open(server.address, "/v1/events", &[("last-event-id", &resumed_at)]).await;
    text = text + &live.until("event: failed").await;
    drop(live);

    let [first, second, third] = [first, second, third].map(|job| Some(job.log.id().to_string()));
    let expect = [
        ("queued", &first),
        ("started", &first),
        ("finished", &first),
        ("rejected", &None),
        ("queued", &second),
        ("cancelled", &second),
        ("queued", &third),
        ("failed", &third),
    ];
    let got = happenings(&text);
    assert_eq!(got, expect.map(|(name, stream)| (name.to_owned(), stream.clone())), "{text}");
    assert!(text.contains("the queue is full: 9 requests wait") && text.contains("\"cause\":\"requested\""), "{text}");

    // From the very beginning: the model came first.
    let epoch = resumed_at.split_once('-').unwrap().0;
    let (mut all, _) = Client::open(server.address, &format!("/v1/events?last_event_id={epoch}-start"), &[]).await;
    let all = all.until("event: failed").await;
    assert_eq!(happenings(&all)[0].0, "model_loaded");
    // Of another life, or past what there is: everything that is kept, after saying so.
    for cursor in ["ab-1".to_owned(), format!("{epoch}-999999"), format!("{epoch}-{}", u64::MAX)] {
        let (mut lost, _) = Client::open(server.address, &format!("/v1/events?last_event_id={cursor}"), &[]).await;
        let told = happenings(&lost.until("event: failed").await);
        assert_eq!((told[0].0.as_str(), told[1].0.as_str()), ("gap", "model_loaded"), "{cursor}");
    }
    assert_eq!(get(server.address, "/v1/events?last_event_id=x", &[]).await.status, 400);
}

#[tokio::test]
async fn what_is_no_longer_kept_is_a_gap() {
    let server = TestServer::with(|setup| setup.table.feed_events_max = 2).await;
    for _ in 0..2 {
        post(server.address, "/v1/streams", &json!({"prompt": "hi", "on_disconnect": "detach"})).await;
        server.backend.job().await.run(&["a"]);
    }
    let start = format!("{:x}-start", server.service.table().feed_epoch().0);
    let (mut live, _) = Client::open(server.address, &format!("/v1/events?last_event_id={start}"), &[]).await;
    let text = live.until("event: finished").await;
    let names: Vec<String> = happenings(&text).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["gap", "started", "finished"]);
}

/// The value of a line of the metrics.
pub(crate) async fn metric<B>(server: &TestServer<B>, name: &str) -> f64 {
    let text = get(server.address, "/metrics", &[]).await.body;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn every_metric_of_a_streams_life_moves() {
    let server = engine::start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    let body = json!({"prompt": "a prompt that is long enough to fill a block of the cache", "max_tokens": 20,
                      "ignore_eos": true, "on_disconnect": "detach"});
    for _ in 0..2 {
        let path = post(server.address, "/v1/streams", &body).await.headers["location"].clone();
        get(server.address, &path, &[]).await;
        let id = format!("{:x}-2", server.service.table().epoch().0);
        get(server.address, &path, &[("last-event-id", &id)]).await;
    }
    let endless = json!({"prompt": "x", "max_tokens": 4000, "ignore_eos": true});
    let path = post(server.address, "/v1/streams", &endless).await.headers["location"].clone();
    Client::connect(server.address).await.exchange(&request("DELETE", &path, &[], "")).await;
    get(server.address, &path, &[]).await;
    for name in [
        "steps_total",
        "step_sequences_total",
        "step_tokens_total",
        "step_seconds_count",
        "batch_sequences_count",
        "mean_batch_size",
        "prompt_tokens_total",
        "cached_tokens_total",
        "completion_tokens_total",
        "requests_accepted_total",
        "requests_done_total",
        "requests_cancelled_total",
        "cancels_total{cause=\"requested\"}",
        "queue_wait_seconds_count",
        "ttft_seconds_count",
        "itl_seconds_count",
        "e2e_seconds_count",
        "kv_blocks_total",
        "kv_blocks_cached",
        "resumes_total",
        "replayed_events_total",
        "stream_bytes",
        "streams",
    ] {
        assert!(metric(&server, &format!("tallow_{name}")).await > 0.0, "{name} stands still");
    }
    for name in ["num_waiting", "num_running", "queue_tokens", "readers", "kv_blocks_used"] {
        assert_eq!(metric(&server, &format!("tallow_{name}")).await, 0.0, "{name} is not back");
    }
}
