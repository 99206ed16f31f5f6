//! P3: resuming is exact. Streams are followed through a proxy that cuts connections at random bytes, in the head as
//! in the middle of a character; the reader comes back with what it has, and at the end has every event once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::host::{create, native};
use crate::common::{
    ChildServer, Fault, Figure, Host, Options, Proxy, Random, SseEvent, SseParser, Wire, http, quantile, scale,
};

const SEED: u64 = 103;
const MAX_TOKENS: usize = 150;
/// Streams that are followed at the same time.
const NUM_AT_ONCE: usize = 32;
/// More connections than any stream needs.
const NUM_CONNECTIONS_MAX: usize = 2000;

fn fault(random: &mut Random) -> Fault {
    // Mostly a few events, sometimes a few bytes, sometimes much.
    let scale = random.of(&[100, 600, 2_000, 2_000, 8_000]);
    let stall = |random: &mut Random| (random.below(2_000), Duration::from_millis(random.below(5) as u64));
    Fault {
        cut_at: Some(random.below(scale)),
        by_reset: random.one_in(2),
        stall_at: random.one_in(20).then(|| stall(random)),
        is_trickle: random.one_in(10),
    }
}

/// One reader over all its connections.
struct Reader {
    events: Vec<SseEvent>,
    last_id: String,
    num_live_resumes: usize,
}

impl Reader {
    async fn follow(path: &str, proxy: SocketAddr, is_live: impl Fn() -> bool) -> Self {
        let mut reader = Self { events: Vec::new(), last_id: String::new(), num_live_resumes: 0 };
        for n in 0.. {
            assert!(n < NUM_CONNECTIONS_MAX, "{path}: no end after {n} connections at {:?}", reader.last_id);
            reader.num_live_resumes += usize::from(n > 0 && is_live());
            // A cut may end it anywhere, so its error says nothing.
            let _ = reader.connect(path, proxy).await;
            if reader.events.last().is_some_and(SseEvent::is_terminal) {
                break;
            }
        }
        reader
    }

    async fn connect(&mut self, path: &str, to: SocketAddr) -> std::io::Result<()> {
        let cursor = [("last-event-id", self.last_id.as_str())];
        let headers = if self.last_id.is_empty() { &[][..] } else { &cursor };
        let (mut wire, head) = Wire::open(to, "GET", path, headers, "").await?;
        assert_eq!(head.status, 200, "{path} after {:?}", self.last_id);
        let mut parser = SseParser::resumed(&self.last_id);
        while let Some(bytes) = wire.some().await? {
            self.events.extend(parser.push(&bytes));
            self.last_id.clone_from(&parser.last_id);
            assert_eq!(parser.oddities, [""; 0]);
        }
        Ok(())
    }
}

/// Events lost and events too many, compared with an uncut reader.
fn compare(got: &[SseEvent], expect: &[SseEvent]) -> (usize, usize) {
    let num_missing = expect.iter().filter(|e| !got.contains(e)).count();
    let num_doubled = got.len() + num_missing - expect.len();
    assert!(num_missing + num_doubled > 0 || got == expect, "the order differs");
    (num_missing, num_doubled)
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_resume_loses_and_doubles_nothing_at_random_cuts() {
    let num_cuts_min = scale(1_500, 10_000);
    println!("seed {SEED}");
    let host = Arc::new(Host::start(&Options { step_delay_us: 1_000, ..Options::default() }).await);
    let mut random = Random::new(SEED);
    let proxy = Arc::new(Proxy::start(host.address, move || fault(&mut random)).await);
    let num_started = Arc::new(AtomicUsize::new(0));
    let tasks = (0..NUM_AT_ONCE).map(|_| {
        let (host, proxy, num_started) = (host.clone(), proxy.clone(), num_started.clone());
        tokio::spawn(async move {
            let (mut lost, mut doubled, mut live) = (0, 0, 0);
            while proxy.num_cuts() < num_cuts_min {
                let seed = num_started.fetch_add(1, Ordering::Relaxed) as u64;
                let path = create(host.address, &native(MAX_TOKENS, seed, &json!("detach"))).await;
                let log = host.service.table().live().into_iter().find(|log| path.ends_with(&log.id().to_string()));
                let is_live = || log.as_ref().is_some_and(|log| !log.is_finished());
                let reader = Reader::follow(&path, proxy.address, is_live).await;
                let whole = http(host.address, "GET", &path, &[], "").await.unwrap().body;
                let (l, d) = compare(&reader.events, &SseParser::parse(&whole));
                (lost, doubled, live) = (lost + l, doubled + d, live + reader.num_live_resumes);
            }
            (lost, doubled, live)
        })
    });
    let (mut lost, mut doubled, mut live) = (0, 0, 0);
    for task in tasks.collect::<Vec<_>>() {
        let (l, d, n) = task.await.unwrap();
        (lost, doubled, live) = (lost + l, doubled + d, live + n);
    }
    let num_cuts = proxy.num_cuts();
    let measured = format!("{lost} lost, {doubled} doubled in {num_cuts} cuts, {live} of them while generating");
    let (what, asked) = ("events after cuts at random bytes", "0 lost, 0 doubled in 10,000 cuts");
    Figure { promise: "P3", what, asked, measured, is_reached: lost + doubled == 0 }.record();
    assert_eq!((lost, doubled), (0, 0));
    assert!(num_cuts >= num_cuts_min && live * 10 > num_cuts, "{live} of {num_cuts} cuts while generating");
    host.idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_resume_has_its_first_byte_soon() {
    let num_resumes = scale(300, 3_000);
    let options = Options { step_delay_us: 1_000, max_model_len: 65_536, ..Options::default() };
    let server = ChildServer::start(&options);
    // Half of them of a stream that has ended, half of one that goes on.
    let ended = create(server.address, &native(MAX_TOKENS, 1, &json!("detach"))).await;
    let whole = http(server.address, "GET", &ended, &[], "").await.unwrap().body;
    let ids: Vec<String> = SseParser::parse(&whole).into_iter().map(|e| e.id).collect();
    let live = create(server.address, &native(60_000, 2, &json!("detach"))).await;
    let mut random = Random::new(SEED);
    let mut times_ms = Vec::new();
    for n in 0..num_resumes {
        // Both streams have the events up to this one, and more.
        let (path, end) = if n % 2 == 0 { (&live, 2) } else { (&ended, ids.len() - 1) };
        let asked_at = Instant::now();
        let headers = [("last-event-id", ids[random.below(end)].as_str())];
        let (mut wire, head) = Wire::open(server.address, "GET", path, &headers, "").await.unwrap();
        let first = wire.some().await.unwrap();
        times_ms.push(asked_at.elapsed().as_secs_f64() * 1e3);
        assert!(head.status == 200 && first.is_some());
    }
    let p99_ms = quantile(&mut times_ms, 0.99);
    let measured = format!("{p99_ms:.1} ms p99 of {num_resumes}, connecting included");
    let (what, asked) = ("first byte after a resume", "<= 5 ms p99");
    Figure { promise: "P3", what, asked, measured, is_reached: p99_ms <= 5.0 }.record();
    assert_eq!(http(server.address, "DELETE", &live, &[], "").await.unwrap().status, 204);
}
