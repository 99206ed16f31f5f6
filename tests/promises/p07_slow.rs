//! P7: a slow reader hurts only itself. Readers at one byte a second follow a long stream beside others at full speed,
//! whose gaps are measured with and without them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::common::host::{NUM_RIVALS_MAX, create, metric, native};
use crate::common::{ChildServer, Figure, Options, SseParser, Wire, memory, quantile, scale};

const STEP_MS: u64 = 10;
/// With the probabilities of every rival, this many tokens are more on the wire than kernels put up with.
const NUM_LONG_TOKENS: usize = 600;
/// What a slow reader's kernel takes off the wire unread.
const RECEIVE_BYTES: u32 = 4096;

/// Gaps between the tokens of one stream, in milliseconds.
async fn gaps(to: SocketAddr, seed: u64, num_tokens: usize) -> Vec<f64> {
    let path = create(to, &native(num_tokens, seed, &json!("cancel"))).await;
    let (mut wire, _) = Wire::open(to, "GET", &path, &[], "").await.unwrap();
    let (mut parser, mut gaps, mut last) = (SseParser::default(), Vec::new(), None::<Instant>);
    while let Some(bytes) = wire.some().await.unwrap() {
        let now = Instant::now();
        for _ in parser.push(&bytes).iter().filter(|e| e.name == "token") {
            gaps.extend(last.replace(now).map(|last| now.duration_since(last).as_secs_f64() * 1e3));
        }
    }
    assert!(gaps.len() > num_tokens / 2);
    gaps
}

async fn all_gaps(to: SocketAddr, num_streams: usize, num_tokens: usize) -> Vec<f64> {
    let streams: Vec<_> = (0..num_streams).map(|seed| tokio::spawn(gaps(to, seed as u64, num_tokens))).collect();
    let mut all = Vec::new();
    for stream in streams {
        all.extend(stream.await.unwrap());
    }
    all
}

/// Follows at a byte a second until dropped.
async fn slow(to: SocketAddr, path: String) {
    let mut wire = Wire::connect_narrow(to, RECEIVE_BYTES).await.unwrap();
    wire.send("GET", &path, &[], "").await.unwrap();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    while wire.stream.read(&mut [0]).await.is_ok_and(|n| n > 0) {
        second.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_slow_readers_hurt_only_themselves() {
    let (num_slow, num_normal) = (50, 50);
    let (num_rounds, num_tokens) = (scale(1, 4), scale(150, 500));
    let options = Options { max_num_seqs: 128, step_delay_us: STEP_MS * 1000, is_ascii: true, ..Options::default() };
    let server = ChildServer::start(&options);
    let mut long = native(NUM_LONG_TOKENS, 1, &json!("detach"));
    (long["logprobs"], long["top_logprobs"]) = (json!(true), json!(NUM_RIVALS_MAX));
    let path = create(server.address, &long).await;
    let (mut wire, _) = Wire::open(server.address, "GET", &path, &[], "").await.unwrap();
    let num_bytes = wire.rest().await.unwrap().len();
    all_gaps(server.address, num_normal, 20).await;

    let (mut without, mut with, mut slow_bytes, mut queued) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..num_rounds {
        without.extend(all_gaps(server.address, num_normal, num_tokens).await);
        let before = memory::resident(server.pid());
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..num_slow {
            readers.spawn(slow(server.address, path.clone()));
        }
        while metric(server.address, "tallow_readers").await < num_slow as f64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        with.extend(all_gaps(server.address, num_normal, num_tokens).await);
        slow_bytes.push((memory::resident(server.pid()) as f64 - before as f64).max(0.0) / num_slow as f64);
        queued.extend(memory::send_queues(server.address.port()).iter().map(|&n| n as f64));
        assert_eq!(metric(server.address, "tallow_readers").await, num_slow as f64, "they are all still there");
        readers.shutdown().await;
        while metric(server.address, "tallow_readers").await > 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let (without_ms, with_ms) = (quantile(&mut without, 0.99), quantile(&mut with, 0.99));
    let more = 100.0 * (with_ms / without_ms - 1.0);
    let measured = format!("{more:+.1} % ({without_ms:.2} to {with_ms:.2} ms p99)");
    let (what, asked) = ("gap of 50 readers beside 50 at 1 B/s", "p99 +<= 5 %");
    Figure { promise: "P7", what, asked, measured, is_reached: more <= 5.0 }.record();
    let each_kib = quantile(&mut slow_bytes, 1.0) / 1024.0;
    let measured = format!("{each_kib:.1} KiB each, of {} KiB they have not read", num_bytes / 1024);
    let (what, asked) = ("resident memory of a slow reader", "<= 256 KiB");
    Figure { promise: "P7", what, asked, measured, is_reached: each_kib <= 256.0 }.record();
    let kernel_kib = quantile(&mut queued, 1.0) / 1024.0;
    let (what, measured) = ("what the kernel holds for a slow reader", format!("{kernel_kib:.1} KiB at most"));
    Figure { promise: "P7", what, asked, measured, is_reached: kernel_kib <= 256.0 }.record();
    assert!(each_kib <= 256.0 && kernel_kib <= 256.0, "{each_kib} KiB each, {kernel_kib} in the kernel");
}
