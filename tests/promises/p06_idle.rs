//! P6: idle streams are cheap: each has a reader that hears heartbeats and nothing else, and none is dropped.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::host::{STREAMS, metric, native};
use crate::common::{ChildServer, Figure, Options, Wire, memory, quantile, scale};

const HEARTBEAT_MS: u64 = 1_000;
const NUM_HEARTBEATS: usize = 3;
/// Files a process has open beside its sockets.
const NUM_OTHER_FILES: usize = 100;
/// Connections that are opened at the same time.
const NUM_AT_ONCE: usize = 50;

/// Makes a stream, follows it; then waits for that many heartbeats at each word to go on.
async fn idle(mut wire: Wire, num_heartbeats: usize) -> Wire {
    let mut num_heard = 0;
    while num_heard < num_heartbeats {
        let bytes = wire.some().await.expect("an idle reader is not dropped").expect("the stream goes on");
        num_heard += bytes.split_inclusive(|&b| b == b'\n').filter(|line| line == b":\n").count();
    }
    wire
}

async fn create_and_follow(to: std::net::SocketAddr, seed: u64) -> Wire {
    let mut wire = Wire::connect(to).await.unwrap();
    let request = native(100, seed, &json!("detach")).to_string();
    let created = wire.exchange("POST", STREAMS, &[], &request).await.unwrap();
    assert_eq!(created.status, 201);
    wire.send("GET", &created.headers["location"], &[], "").await.unwrap();
    assert_eq!(wire.head().await.unwrap().status, 200);
    wire
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_idle_readers_are_cheap_and_none_is_dropped() {
    let wanted = scale(1_000, 10_000);
    let files_max = memory::raise_open_files() as usize;
    let num_readers = wanted.min(files_max.saturating_sub(NUM_OTHER_FILES));
    let options = Options {
        is_gated: true,
        heartbeat_ms: HEARTBEAT_MS,
        num_streams_max: wanted + 100,
        connections_max: wanted + 100,
        queue_requests_max: wanted + 100,
        ..Options::default()
    };
    let server = ChildServer::start(&options);
    // What the first streams need once is not what each of them needs.
    let mut wires = Vec::new();
    for seed in 0..NUM_AT_ONCE {
        wires.push(create_and_follow(server.address, seed as u64).await);
    }
    let before = memory::resident(server.pid());
    while wires.len() < num_readers {
        let n = NUM_AT_ONCE.min(num_readers - wires.len());
        let seed = wires.len();
        let more: Vec<_> = (0..n).map(|i| tokio::spawn(create_and_follow(server.address, (seed + i) as u64))).collect();
        for wire in more {
            wires.push(wire.await.unwrap());
        }
    }
    let began = Instant::now();
    let readers: Vec<_> = wires.into_iter().map(|wire| tokio::spawn(idle(wire, NUM_HEARTBEATS))).collect();
    let mut wires = Vec::new();
    for reader in readers {
        wires.push(reader.await.unwrap());
    }
    let waited = began.elapsed();
    let counted = metric(server.address, "tallow_readers").await;
    let mut samples: Vec<f64> = Vec::new();
    for _ in 0..5 {
        samples.push(memory::resident(server.pid()) as f64);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let num_measured = num_readers - NUM_AT_ONCE;
    let each_kib = (quantile(&mut samples, 0.5) - before as f64) / num_measured as f64 / 1024.0;
    let measured = format!("{each_kib:.1} KiB for each of {num_readers} streams with a reader");
    let (what, asked) = ("resident memory of an idle reader", "<= 16 KiB of 10,000");
    Figure { promise: "P6", what, asked, measured, is_reached: each_kib <= 16.0 && num_readers == wanted }.record();
    let num_dropped = num_readers - counted as usize;
    let measured = format!("{num_dropped} in {:.0} s, {NUM_HEARTBEATS} heartbeats each", waited.as_secs_f64());
    Figure { promise: "P6", what: "idle readers dropped", asked: "0", measured, is_reached: num_dropped == 0 }.record();
    assert_eq!(num_dropped, 0);
    // Far above what is asked: a reader that costs this much has a buffer that it does not need.
    assert!(each_kib < 64.0, "{each_kib} KiB each");
    drop(wires);
}
