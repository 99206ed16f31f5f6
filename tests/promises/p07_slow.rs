//! P7: a slow reader hurts only itself. Readers at one byte a second follow a stream that is still generated, beside
//! others at full speed, whose gaps are measured with and without them.
//!
//! One that never reads is given what its connection holds and nothing more. So each sleeps at first, and then reads
//! up to where the tokens that have piled up come as one event: what a server holds for a reader is most then.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::common::host::{create, metric, native};
use crate::common::{ChildServer, Figure, Options, SseEvent, SseParser, Wire, memory, quantile, scale};

const NUM_SLOW: usize = 50;
const NUM_NORMAL: usize = 50;
const STEP_MS: u64 = 10;
/// Of the stream that slow readers follow. It outlasts what is measured: with these steps it takes over five minutes.
const NUM_LONG_TOKENS: usize = 1 << 15;
/// As many as a server allows by default; a token is a kilobyte on the wire with them.
const NUM_RIVALS: usize = 20;
/// A slow reader sleeps for so many tokens: about three times what its connection holds.
const NUM_ASLEEP: u64 = 300;
/// What a slow reader's kernel takes off the wire unread.
const RECEIVE_BYTES: u32 = 4096;
/// What no event has but one of several tokens.
const MERGED: &[u8] = b"\"first_seq\":";
const KIB_MAX: f64 = 256.0;

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

async fn all_gaps(to: SocketAddr, num_tokens: usize) -> Vec<f64> {
    let streams: Vec<_> = (0..NUM_NORMAL).map(|seed| tokio::spawn(gaps(to, seed as u64, num_tokens))).collect();
    let mut all = Vec::new();
    for stream in streams {
        all.extend(stream.await.unwrap());
    }
    all
}

/// How far the long stream has come, by a reader at full speed.
#[derive(Debug, Clone, Default)]
struct Long {
    num_events: u64,
    num_bytes: usize,
    last_id: String,
}

/// Follows the long stream; its end, or the server's, is the channel's.
async fn follow(mut wire: Wire, long: watch::Sender<Long>) {
    let mut parser = SseParser::default();
    while let Ok(Some(bytes)) = wire.some().await {
        let last_seq = parser.push(&bytes).last().map(SseEvent::seq);
        long.send_modify(|long| {
            long.num_events = last_seq.map_or(long.num_events, |seq| seq + 1);
            long.num_bytes += bytes.len();
            long.last_id.clone_from(&parser.last_id);
        });
    }
}

/// Follows the long stream from where it stands: asleep, then up to the first event of several tokens, then, having
/// said so, at a byte a second until dropped.
async fn slow(to: SocketAddr, path: String, mut long: watch::Receiver<Long>, is_slow: mpsc::Sender<()>) {
    let Long { num_events, last_id, .. } = long.borrow().clone();
    let mut wire = Wire::connect_narrow(to, RECEIVE_BYTES).await.unwrap();
    wire.send("GET", &path, &[("last-event-id", last_id.as_str())], "").await.unwrap();
    assert_eq!(wire.head().await.unwrap().status, 200);
    assert!(long.wait_for(|long| long.num_events >= num_events + NUM_ASLEEP).await.is_ok(), "it still generates");
    let mut read = Vec::<u8>::new();
    while !read.windows(MERGED.len()).any(|bytes| bytes == MERGED) {
        // The mark may have begun to come.
        read.drain(..read.len().saturating_sub(MERGED.len()));
        read.extend(wire.some().await.unwrap().expect("tokens that have piled up come as one event"));
    }
    is_slow.send(()).await.expect("somebody measures");
    let mut second = tokio::time::interval(Duration::from_secs(1));
    while wire.stream.read(&mut [0]).await.is_ok_and(|n| n > 0) {
        second.tick().await;
    }
}

/// What was measured in all rounds.
#[derive(Debug, Default)]
struct Measured {
    without_ms: Vec<f64>,
    with_ms: Vec<f64>,
    /// Of the server, for each slow reader.
    resident_bytes: Vec<f64>,
    /// In the kernel, for each connection.
    queued_bytes: Vec<f64>,
    /// What the long stream said while they followed it.
    said_bytes: Vec<f64>,
}

impl Measured {
    async fn round(&mut self, server: &ChildServer, path: &str, long: &watch::Receiver<Long>, num_tokens: usize) {
        let to = server.address;
        self.without_ms.extend(all_gaps(to, num_tokens).await);
        let (resident, said) = (memory::resident(server.pid()), long.borrow().num_bytes);
        let (is_slow, mut slow_ones) = mpsc::channel(NUM_SLOW);
        let mut readers = JoinSet::new();
        for _ in 0..NUM_SLOW {
            readers.spawn(slow(to, path.to_owned(), long.clone(), is_slow.clone()));
        }
        for _ in 0..NUM_SLOW {
            tokio::select! {
                slow_one = slow_ones.recv() => slow_one.expect("a sender is kept"),
                ended = readers.join_next() => panic!("a slow reader has ended: {ended:?}"),
            }
        }
        self.with_ms.extend(all_gaps(to, num_tokens).await);
        let grown = memory::resident(server.pid()) as f64 - resident as f64;
        self.resident_bytes.push(grown.max(0.0) / NUM_SLOW as f64);
        self.queued_bytes.extend(memory::send_queues(to.port()).iter().map(|&n| n as f64));
        self.said_bytes.push((long.borrow().num_bytes - said) as f64);
        // And the one at full speed, which goes on.
        assert_eq!(metric(to, "tallow_readers").await, (NUM_SLOW + 1) as f64, "they are all still there");
        readers.shutdown().await;
        while metric(to, "tallow_readers").await > 1.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Records the figures, and says how many KiB a slow reader takes, here and in the kernel.
    fn record(mut self) -> [f64; 2] {
        let figure =
            |what, asked, measured, is_reached| Figure { promise: "P7", what, asked, measured, is_reached }.record();
        let (without_ms, with_ms) = (quantile(&mut self.without_ms, 0.99), quantile(&mut self.with_ms, 0.99));
        let more = 100.0 * (with_ms / without_ms - 1.0);
        let measured = format!("{more:+.1} % ({without_ms:.2} to {with_ms:.2} ms p99)");
        figure("gap of 50 readers beside 50 at 1 B/s", "p99 +<= 5 %", measured, more <= 5.0);
        let most_kib = |bytes: &mut [f64]| quantile(bytes, 1.0) / 1024.0;
        let (each_kib, said_kib) = (most_kib(&mut self.resident_bytes), most_kib(&mut self.said_bytes));
        let measured = format!("{each_kib:.1} KiB each, of {said_kib:.0} KiB that their stream said meanwhile");
        figure("resident memory of a slow reader", "<= 256 KiB", measured, each_kib <= KIB_MAX);
        let kernel_kib = most_kib(&mut self.queued_bytes);
        let measured = format!("{kernel_kib:.1} KiB at most");
        figure("what the kernel holds for a slow reader", "<= 256 KiB", measured, kernel_kib <= KIB_MAX);
        [each_kib, kernel_kib]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_slow_readers_hurt_only_themselves() {
    let (num_rounds, num_tokens) = (scale(1, 4), scale(150, 500));
    let options = Options {
        max_num_seqs: 128,
        max_model_len: 2 * NUM_LONG_TOKENS,
        step_delay_us: STEP_MS * 1000,
        is_ascii: true,
        // What has ended leaves its memory to what comes, or it would be measured too.
        retention_ms: 1_000,
        ..Options::default()
    };
    let server = ChildServer::start(&options);
    let mut request = native(NUM_LONG_TOKENS, 1_000, &json!("detach"));
    (request["logprobs"], request["top_logprobs"]) = (json!(true), json!(NUM_RIVALS));
    let path = create(server.address, &request).await;
    let (wire, _) = Wire::open(server.address, "GET", &path, &[], "").await.unwrap();
    let (sender, mut long) = watch::channel(Long::default());
    tokio::spawn(follow(wire, sender));
    assert!(long.wait_for(|long| long.num_events > 0).await.is_ok(), "it has begun");
    all_gaps(server.address, 20).await;

    let mut measured = Measured::default();
    for _ in 0..num_rounds {
        measured.round(&server, &path, &long, num_tokens).await;
    }
    let kib = measured.record();
    assert!(kib.iter().all(|&kib| kib <= KIB_MAX), "{kib:?} KiB each, in the server and in the kernel");
}
