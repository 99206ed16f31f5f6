//! P6: idle streams are cheap: each waits, and has a reader that hears heartbeats and nothing else; none is dropped.
//!
//! What a reader costs was measured with large pages in the allocator's hands and without: 17 to 20 KiB and 12 KiB. Most
//! of it is two buffers of hyper's, 8 KiB each, for the request's head and for the answer's, of which a reader touches the
//! beginning. In small pages that is 4 KiB each; in a large one both count whole. So the allocator takes none (`no_thp`);
//! the weights, which are mapped by themselves, still do. A system whose large pages are always on decides for itself.
//! Ours is small: the connection 0.6 KiB and as much again inside hyper, the answer's body 0.5. That hyper reads while it
//! writes, to see a close, costs nothing to be measured (11.8 KiB with, 12.0 without).

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::json;

use crate::common::host::{STREAMS, metric, native};
use crate::common::{ChildServer, Figure, Options, Wire, memory, scale};

const HEARTBEAT_MS: u64 = 1_000;
const NUM_HEARTBEATS: usize = 3;
const KIB_ASKED: f64 = 16.0;
/// Files a process has open beside its sockets.
const NUM_OTHER_FILES: usize = 100;
/// Connections that are opened at the same time.
const NUM_AT_ONCE: usize = 50;

/// Hears that many heartbeats.
async fn idle(mut wire: Wire, num_heartbeats: usize) -> Wire {
    let mut num_heard = 0;
    while num_heard < num_heartbeats {
        let bytes = wire.some().await.expect("an idle reader is not dropped").expect("the stream goes on");
        num_heard += bytes.split_inclusive(|&b| b == b'\n').filter(|line| line == b":\n").count();
    }
    wire
}

/// Makes that many streams, which wait, over one connection; gives their paths.
async fn make(to: SocketAddr, num_streams: usize) -> Vec<String> {
    let mut wire = Wire::connect(to).await.unwrap();
    let mut paths = Vec::new();
    for seed in 0..num_streams {
        let request = native(100, seed as u64, &json!("detach")).to_string();
        let created = wire.exchange("POST", STREAMS, &[], &request).await.unwrap();
        assert_eq!(created.status, 201);
        paths.push(created.headers["location"].clone());
    }
    paths
}

async fn follow(to: SocketAddr, path: String) -> Wire {
    let (wire, head) = Wire::open(to, "GET", &path, &[], "").await.unwrap();
    assert_eq!(head.status, 200);
    wire
}

/// Follows each of these, some at a time.
async fn follow_all(to: SocketAddr, paths: &[String]) -> Vec<Wire> {
    let mut wires = Vec::new();
    for some in paths.chunks(NUM_AT_ONCE) {
        let more: Vec<_> = some.iter().map(|path| tokio::spawn(follow(to, path.clone()))).collect();
        for wire in more {
            wires.push(wire.await.unwrap());
        }
    }
    wires
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_idle_readers_are_cheap_and_none_is_dropped() {
    let wanted = scale(1_000, 10_000);
    let files_max = memory::raise_open_files() as usize;
    let num_readers = wanted.min(files_max.saturating_sub(NUM_OTHER_FILES));
    let options = Options {
        is_gated: true,
        heartbeat_ms: HEARTBEAT_MS,
        num_streams_max: 2 * wanted,
        connections_max: 2 * wanted,
        queue_requests_max: 2 * wanted,
        ..Options::default()
    };
    let server = ChildServer::start(&options);
    // What the first streams and readers need once is not what each of them needs.
    let first = make(server.address, NUM_AT_ONCE).await;
    let mut wires = follow_all(server.address, &first).await;
    let num_measured = num_readers - NUM_AT_ONCE;
    let each_kib = |before: u64, after: u64| (after as f64 - before as f64) / num_measured as f64 / 1024.0;
    let before = memory::resident(server.pid());
    let paths = make(server.address, num_measured).await;
    let with_streams = memory::resident(server.pid());
    wires.extend(follow_all(server.address, &paths).await);
    let began = Instant::now();
    let readers: Vec<_> = wires.into_iter().map(|wire| tokio::spawn(idle(wire, NUM_HEARTBEATS))).collect();
    let mut wires = Vec::new();
    for reader in readers {
        wires.push(reader.await.unwrap());
    }
    let waited = began.elapsed();
    let counted = metric(server.address, "tallow_readers").await;
    let with_readers = memory::resident(server.pid());
    let (stream_kib, reader_kib) = (each_kib(before, with_streams), each_kib(with_streams, with_readers));
    let is_reached = |kib: f64| kib <= KIB_ASKED && num_readers == wanted;
    let measured = format!("{reader_kib:.1} KiB for each of {num_readers}");
    let (what, asked) = ("resident memory of an idle reader", "<= 16 KiB of 10,000");
    Figure { promise: "P6", what, asked, measured, is_reached: is_reached(reader_kib) }.record();
    let measured = format!("{stream_kib:.1} KiB for each of {num_readers}");
    let what = "resident memory of a stream that waits";
    Figure { promise: "P6", what, asked, measured, is_reached: is_reached(stream_kib) }.record();
    let num_dropped = num_readers - counted as usize;
    let measured = format!("{num_dropped} in {:.0} s, {NUM_HEARTBEATS} heartbeats each", waited.as_secs_f64());
    Figure { promise: "P6", what: "idle readers dropped", asked: "0", measured, is_reached: num_dropped == 0 }.record();
    assert_eq!(num_dropped, 0);
    // Far above what is asked: a reader that costs this much has a buffer that it does not need.
    assert!(reader_kib < 4.0 * KIB_ASKED, "{reader_kib} KiB each");
    drop(wires);
}
