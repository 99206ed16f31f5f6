//! P24: no request, however it is shaped, holds up the others. A real server with two keys; one of them attacks, two
//! requests at a time, with everything in `common/hostile.rs`, while the other reads a stream and somebody asks whether
//! the server lives.
//!
//! Times are measured and compared with those just before, when the same key asked for as much honest work, or for none; what is asserted are counts: nobody's stream ends, no worker is
//! lost, nothing is answered with a 500, and what the other key has stays.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::binary::Server;
use crate::common::hostile::{Attack, Outcome, attacks};
use crate::common::{Figure, SseParser, Wire, http, is_long, memory, quantile, scale};

const HOSTILE: (&str, &str) = ("authorization", "Bearer sk-hostile-1");
const OTHER: (&str, &str) = ("authorization", "Bearer sk-other-01");
const KEYS: &str = "hostile:sk-hostile-1,other:sk-other-01";

/// Attackers at once.
const AT_ONCE: usize = 2;
const LIVE_MAX: Duration = Duration::from_millis(50);
const GAP_RATIO_MAX: f64 = 1.2;
/// What a server may hold more at any moment than before: bodies, answers, grammars and matchers of two attackers.
const MEMORY_MAX: u64 = 400 << 20;

/// Times taken on a thread of their own, so that what this process sends does not stand in their way.
#[derive(Default)]
struct Watch {
    live_ms: Mutex<Vec<f64>>,
    gaps_ms: Mutex<Vec<f64>>,
    num_ended: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Watch {
    fn start(address: SocketAddr) -> Arc<Self> {
        let watch = Arc::new(Self::default());
        for is_reader in [true, false] {
            let watch = watch.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    while !watch.is_over.load(Ordering::Relaxed) {
                        if is_reader { watch.read(address).await } else { watch.ask(address).await }
                    }
                });
            });
        }
        watch
    }

    /// Reads a stream to its end.
    async fn read(&self, address: SocketAddr) {
        let body = json!({"prompt": "hello", "max_tokens": 2000, "stream": true, "ignore_eos": true, "seed": 1});
        let opened = Wire::open(address, "POST", "/v1/completions", &[OTHER], &body.to_string()).await;
        let (mut wire, head) = opened.unwrap();
        if head.status != 200 {
            return push(&self.num_ended, format!("status {}", head.status));
        }
        let (mut parser, mut last) = (SseParser::default(), None::<Instant>);
        while let Ok(Some(bytes)) = wire.some().await {
            let now = Instant::now();
            for event in parser.push(&bytes) {
                if event.data.contains("\"error\"") {
                    return push(&self.num_ended, event.data);
                }
                if let Some(last) = last.replace(now).filter(|last| *last != now) {
                    push(&self.gaps_ms, (now - last).as_secs_f64() * 1e3);
                }
                if event.data == "[DONE]" || self.is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
        push(&self.num_ended, "the connection was cut".to_owned());
    }

    async fn ask(&self, address: SocketAddr) {
        let began = Instant::now();
        let status = http(address, "GET", "/health/live", &[], "").await.map_or(0, |reply| reply.status);
        push(&self.live_ms, began.elapsed().as_secs_f64() * 1e3);
        assert_eq!(status, 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    /// The 99th percentiles since the last call: of asking whether it lives, and of the time between two events.
    fn take(&self) -> (f64, f64) {
        let take = |all: &Mutex<Vec<f64>>| {
            quantile(&mut std::mem::take(&mut *all.lock().unwrap_or_else(PoisonError::into_inner)), 0.99)
        };
        (take(&self.live_ms), take(&self.gaps_ms))
    }
}

fn push<T>(all: &Mutex<Vec<T>>, value: T) {
    all.lock().unwrap_or_else(PoisonError::into_inner).push(value);
}

/// Shoots with `AT_ONCE` clients for a while, at least once each; gives what came of it.
async fn attack(attack: &Attack, address: SocketAddr, time: Duration) -> Vec<Outcome> {
    let began = Instant::now();
    let clients = (0..AT_ONCE).map(|_| {
        let attack = attack.clone();
        tokio::spawn(async move {
            let mut outcomes = Vec::new();
            while outcomes.is_empty() || began.elapsed() < time {
                outcomes.push(attack.shoot(address, HOSTILE).await);
            }
            outcomes
        })
    });
    let mut all = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        all.extend(client.await.unwrap());
    }
    all
}

/// The worst of a kind, with the attack that did it.
struct Worst {
    value: f64,
    by: &'static str,
}

impl Worst {
    fn see(&mut self, value: f64, by: &'static str) {
        if value > self.value {
            *self = Self { value, by };
        }
    }
}

async fn p24(model: &str, name: &str) {
    let server = Server::start(&["--model", model, "--api-keys", KEYS, "--log-level", "error"]);
    let address: SocketAddr = server.url.trim_start_matches("http://").parse().unwrap();
    let kept = json!({"prompt": "to be kept", "max_tokens": 3, "on_disconnect": "detach", "ignore_eos": true});
    let kept =
        http(address, "POST", "/v1/streams", &[OTHER], &kept.to_string()).await.unwrap().headers["location"].clone();
    let window = Duration::from_millis(scale(400, 5000) as u64);
    let watch = Watch::start(address);
    let before = memory::resident(server.pid());
    let (mut live, mut ratio) = (Worst { value: 0.0, by: "" }, Worst { value: 0.0, by: "" });
    let mut memory_max = 0;
    for shot in attacks() {
        watch.take();
        match shot.twin().filter(|_| is_long()) {
            Some(twin) => drop(attack(&twin, address, window).await),
            None => tokio::time::sleep(window).await,
        }
        let (_, gap_alone) = watch.take();
        let outcomes = attack(&shot, address, window).await;
        let (live_ms, gap_ms) = watch.take();
        let grown = memory::resident(server.pid()).saturating_sub(before);
        memory_max = memory_max.max(grown);
        println!(
            "{:42} {:5.1} ms live, gaps {:6.1} -> {:6.1} ms, +{:3} MiB, {:?}",
            shot.name,
            live_ms,
            gap_alone,
            gap_ms,
            grown >> 20,
            outcomes.first()
        );
        live.see(live_ms, shot.name);
        ratio.see(gap_ms / gap_alone, shot.name);
        let is_fault =
            |outcome: &&Outcome| matches!(outcome, Outcome::Answered(status) if *status >= 500 && *status != 503);
        assert_eq!(outcomes.iter().find(is_fault), None, "{}", shot.name);
        let ended = watch.num_ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(ended.is_empty(), "{}: the other key's stream ended: {ended:?}", shot.name);
    }
    watch.is_over.store(true, Ordering::Relaxed);
    let status = |path: &'static str| async move { http(address, "GET", path, &[OTHER], "").await.unwrap().status };
    assert_eq!(status("/health/ready").await, 200);
    let kept = http(address, "GET", &kept, &[OTHER], "").await.unwrap();
    assert_eq!(kept.status, 200, "what the other key had is kept");
    assert!(kept.text().contains("event: done"));
    assert!(memory_max < MEMORY_MAX, "{} MiB more than before", memory_max >> 20);
    let num_attacks = attacks().len();
    Figure {
        promise: "P24",
        what: &format!("/health/live p99 under {num_attacks} attacks, two at once, {name}"),
        asked: "<= 50 ms",
        measured: format!("{:.1} ms ({})", live.value, live.by),
        is_reached: live.value <= LIVE_MAX.as_secs_f64() * 1e3,
    }
    .record();
    if !is_long() {
        // Without the twins there is nothing to compare with.
        return;
    }
    Figure {
        promise: "P24",
        what: &format!("a neighbour's gap between tokens, p99, {name}"),
        asked: "+<= 20 %",
        measured: format!(
            "{:+.0} % ({}); memory +{} MiB at most",
            (ratio.value - 1.0) * 100.0,
            ratio.by,
            memory_max >> 20
        ),
        is_reached: ratio.value <= GAP_RATIO_MAX,
    }
    .record();
}

#[tokio::test(flavor = "multi_thread")]
async fn p24_no_request_holds_up_the_others() {
    p24("stub:10", "the stub at 10 ms a step").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p24_no_request_holds_up_the_others_of_a_real_model() {
    if !is_long() {
        println!("skipped: the real model is attacked by `make prove`; the stub is attacked here");
        return;
    }
    p24(crate::real::SMOLLM2, "SmolLM2").await;
}
