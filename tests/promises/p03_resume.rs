//! P3: resuming is exact. Streams are followed through a proxy that cuts connections at random bytes, in the head as
//! in the middle of a character; the reader comes back with what it has, and at the end has every event once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::host::{create, native};
use crate::common::{Fault, Figure, Host, Options, Proxy, Random, SseEvent, SseParser, Wire, http, quantile, scale};

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
    /// From the request to the first byte of the body, of connections that went straight to the server.
    first_byte_ms: Vec<f64>,
    num_live_resumes: usize,
}

impl Reader {
    async fn follow(path: &str, proxy: SocketAddr, server: SocketAddr, is_live: impl Fn() -> bool) -> Self {
        let mut reader =
            Self { events: Vec::new(), last_id: String::new(), first_byte_ms: Vec::new(), num_live_resumes: 0 };
        for n in 0.. {
            assert!(n < NUM_CONNECTIONS_MAX, "{path}: no end after {n} connections at {:?}", reader.last_id);
            reader.num_live_resumes += usize::from(n > 0 && is_live());
            // Every eighth connection is not cut, so that the time it takes is the server's; it leaves by itself.
            let is_straight = n % 8 == 7;
            // A cut may end it anywhere, so its error says nothing.
            let _ = reader.connect(path, if is_straight { server } else { proxy }, is_straight).await;
            if reader.events.last().is_some_and(SseEvent::is_terminal) {
                break;
            }
        }
        reader
    }

    async fn connect(&mut self, path: &str, to: SocketAddr, is_straight: bool) -> std::io::Result<()> {
        let mut wire = Wire::connect(to).await?;
        let cursor = [("last-event-id", self.last_id.as_str())];
        let asked_at = Instant::now();
        wire.send("GET", path, if self.last_id.is_empty() { &[] } else { &cursor }, "").await?;
        let head = wire.head().await?;
        assert_eq!(head.status, 200, "{path} after {:?}", self.last_id);
        let mut parser = SseParser::resumed(&self.last_id);
        let mut is_first = true;
        while let Some(bytes) = wire.some().await? {
            if std::mem::take(&mut is_first) && is_straight {
                self.first_byte_ms.push(asked_at.elapsed().as_secs_f64() * 1e3);
            }
            self.events.extend(parser.push(&bytes));
            self.last_id.clone_from(&parser.last_id);
            assert_eq!(parser.oddities, [""; 0]);
            if is_straight {
                break;
            }
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
            let (mut lost, mut doubled, mut times, mut live) = (0, 0, Vec::new(), 0);
            while proxy.num_cuts() < num_cuts_min {
                let seed = num_started.fetch_add(1, Ordering::Relaxed) as u64;
                let path = create(host.address, &native(MAX_TOKENS, seed, &json!("detach"))).await;
                let log = host.service.table().live().into_iter().find(|log| path.ends_with(&log.id().to_string()));
                let is_live = || log.as_ref().is_some_and(|log| !log.is_finished());
                let reader = Reader::follow(&path, proxy.address, host.address, is_live).await;
                let whole = http(host.address, "GET", &path, &[], "").await.unwrap().body;
                let (l, d) = compare(&reader.events, &SseParser::parse(&whole));
                (lost, doubled, live) = (lost + l, doubled + d, live + reader.num_live_resumes);
                times.extend(reader.first_byte_ms);
            }
            (lost, doubled, times, live)
        })
    });
    let (mut lost, mut doubled, mut times, mut live) = (0, 0, Vec::new(), 0);
    for task in tasks.collect::<Vec<_>>() {
        let (l, d, t, n) = task.await.unwrap();
        (lost, doubled, live) = (lost + l, doubled + d, live + n);
        times.extend(t);
    }
    let num_cuts = proxy.num_cuts();
    let measured = format!("{lost} lost, {doubled} doubled in {num_cuts} cuts, {live} of them while generating");
    let (what, asked) = ("events after cuts at random bytes", "0 lost, 0 doubled in 10,000 cuts");
    Figure { promise: "P3", what, asked, measured, is_reached: lost + doubled == 0 }.record();
    let p99_ms = quantile(&mut times, 0.99);
    let measured = format!("{p99_ms:.1} ms p99 of {} with {NUM_AT_ONCE} readers at once", times.len());
    let (what, asked) = ("first byte after a resume", "<= 5 ms p99");
    Figure { promise: "P3", what, asked, measured, is_reached: p99_ms <= 5.0 }.record();
    assert_eq!((lost, doubled), (0, 0));
    assert!(num_cuts >= num_cuts_min && live * 10 > num_cuts, "{live} of {num_cuts} cuts while generating");
    host.idle().await;
}
