//! P3: what it costs that streams outlive the process: tokens per second of the real binary with and without a store,
//! and how long it takes a process to be ready that finds streams there.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::common::{Figure, scale};
use crate::server::Server;

const NUM_STREAMS: usize = 64;
const ASKED: &str = "measured, none asked";

fn request(seed: usize, max_tokens: usize) -> Value {
    let prompt = format!("stream {seed}");
    json!({"prompt": prompt, "seed": seed, "max_tokens": max_tokens, "ignore_eos": true, "on_disconnect": "detach"})
}

async fn create(server: &Server, request: &Value) -> String {
    let reply = server.http.post(format!("{}/v1/streams", server.url)).json(request).send().await.unwrap();
    assert_eq!(reply.status(), 201);
    reply.headers()["location"].to_str().unwrap().to_owned()
}

/// Makes a stream and follows it to its end.
async fn run(server: &Server, seed: usize, max_tokens: usize) {
    let path = create(server, &request(seed, max_tokens)).await;
    let text = server.http.get(format!("{}{path}", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("event: done"), "{path}");
}

/// How long as many streams as a step takes need for these tokens each.
async fn round(server: &Server, max_tokens: usize) -> Duration {
    let began = Instant::now();
    join_all((0..NUM_STREAMS).map(|seed| run(server, seed, max_tokens))).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_what_a_store_costs_in_tokens_per_second() {
    let (num_rounds, max_tokens) = (scale(1, 5), scale(20, 400));
    for (model, what) in [
        ("stub", "tokens per second of 64 streams with a store, as a share of those without; steps without delay"),
        ("stub:10", "tokens per second of 64 streams with a store, as a share of those without; steps of 10 ms"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let args = ["--model", model, "--max-num-seqs", "64"];
        let plain = Server::start(&args);
        let kept = Server::start(&[&args[..], &["--stream-store", dir.path().to_str().unwrap()]].concat());
        let mut seconds = [0.0; 2];
        // In turns, so that what else the machine does meets both.
        for _ in 0..num_rounds {
            for (server, seconds) in [&plain, &kept].into_iter().zip(&mut seconds) {
                *seconds += round(server, max_tokens).await.as_secs_f64();
            }
        }
        assert_eq!(kept.metric("tallow_stream_store_failed").await, 0.0);
        let rate = |seconds: f64| (num_rounds * NUM_STREAMS * max_tokens) as f64 / seconds;
        let [without, with] = seconds.map(rate);
        let measured = format!("{:.0} % ({with:.0} of {without:.0} tokens/s)", 100.0 * with / without);
        Figure { promise: "P3", what, asked: ASKED, measured, is_reached: true }.record();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_how_long_a_process_takes_that_finds_streams() {
    let (num_finished, num_unfinished) = (scale(60, 1_000), scale(10, 100));
    let (full, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = |dir: &tempfile::TempDir| dir.path().to_str().unwrap().to_owned();
    let start = |model: &str, dir: &tempfile::TempDir| {
        let began = Instant::now();
        (Server::start(&["--model", model, "--stream-store", &store(dir)]), began.elapsed())
    };
    let (mut server, _) = start("stub", &full);
    let seeds: Vec<usize> = (0..num_finished).collect();
    for some in seeds.chunks(NUM_STREAMS) {
        join_all(some.iter().map(|&seed| run(&server, seed, 100))).await;
    }
    // Ends gently, so that the ends are on the disk too.
    server.signal("TERM");
    server.wait();
    let (server, _) = start("stub:1000", &full);
    for seed in 0..num_unfinished {
        create(&server, &request(seed, 1_000)).await;
    }
    server.signal("KILL");
    drop(server);

    let (server, took) = start("stub:1000", &full);
    let (_bare, took_empty) = start("stub:1000", &empty);
    assert_eq!(server.metric("tallow_streams").await, (num_finished + num_unfinished) as f64);
    assert_eq!(server.metric("tallow_requests_accepted_total").await, num_unfinished as f64);
    let measured = format!(
        "{} ms with {num_finished} finished and {num_unfinished} unfinished streams, {} ms with none",
        took.as_millis(),
        took_empty.as_millis()
    );
    let what = "from the start of a process until it is ready";
    Figure { promise: "P3", what, asked: ASKED, measured, is_reached: true }.record();
}
