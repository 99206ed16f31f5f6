//! P24: no request, however it is shaped, holds up the others. A real server with two keys; one of them attacks, two
//! requests at a time, with everything in `common/hostile.rs`, while the other reads a stream, somebody asks whether
//! the server lives, and newcomers ask for a first token.
//!
//! Times are compared with those while the same key asks for as much honest work: the long version takes both in turn. What
//! is asserted are counts: nobody's stream ends, no worker is lost, nothing is answered with a 500, and what the other
//! key has stays.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::hostile::{Attack, Outcome, attacks};
use crate::common::{Figure, SseParser, Wire, http, is_long, memory, quantile, scale};
use crate::server::Server;

const HOSTILE: (&str, &str) = ("authorization", "Bearer sk-hostile-1");
const OTHER: (&str, &str) = ("authorization", "Bearer sk-other-01");
/// Has one stream, which is to be kept.
const QUIET: (&str, &str) = ("authorization", "Bearer sk-quiet-01");
const KEYS: &str = "hostile:sk-hostile-1,other:sk-other-01,quiet:sk-quiet-01";

/// Attackers at once.
const AT_ONCE: usize = 2;
const LIVE_MAX: Duration = Duration::from_millis(50);
const GAP_RATIO_MAX: f64 = 1.2;
/// Pairs of windows, honest and hostile, of the long version.
const ROUNDS: usize = 3;
/// The seven largest of 700 gaps make a 99th percentile: an attack that exceeds is measured on, up to so many pairs. Every
/// time taken counts.
const ROUNDS_MAX: usize = 15;
/// Keys and values, which the server touches as it needs them.
const KV_BYTES: u64 = 256 << 20;
/// What a server may hold more at any moment than before, beside keys and values: bodies, answers, grammars and matchers of
/// two attackers, and the events of streams that ended.
const MEMORY_MAX: u64 = 400 << 20;

/// Times taken on a thread of their own, so that what this process sends does not stand in their way.
#[derive(Default)]
struct Watch {
    live_ms: Mutex<Vec<f64>>,
    gaps_ms: Mutex<Vec<f64>>,
    ttfts_ms: Mutex<Vec<f64>>,
    num_ended: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Watch {
    const READER: u8 = 0;
    const NEWCOMER: u8 = 1;
    const HEALTH: u8 = 2;

    fn start(address: SocketAddr) -> Arc<Self> {
        let watch = Arc::new(Self::default());
        for manner in [Self::READER, Self::NEWCOMER, Self::HEALTH] {
            let watch = watch.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    while !watch.is_over.load(Ordering::Relaxed) {
                        match manner {
                            Self::READER => watch.read(address).await,
                            Self::NEWCOMER => watch.come(address).await,
                            _ => watch.ask(address).await,
                        }
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

    /// Asks for one token.
    async fn come(&self, address: SocketAddr) {
        let began = Instant::now();
        let body = json!({"prompt": "hello", "max_tokens": 1, "seed": 1}).to_string();
        let status = http(address, "POST", "/v1/completions", &[OTHER], &body).await.map_or(0, |reply| reply.status);
        push(&self.ttfts_ms, began.elapsed().as_secs_f64() * 1e3);
        if status != 200 {
            push(&self.num_ended, format!("a newcomer got status {status}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    async fn ask(&self, address: SocketAddr) {
        let began = Instant::now();
        let status = http(address, "GET", "/health/live", &[], "").await.map_or(0, |reply| reply.status);
        push(&self.live_ms, began.elapsed().as_secs_f64() * 1e3);
        assert_eq!(status, 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    /// The times since the last call.
    fn take(&self) -> Times {
        let take = |all: &Mutex<Vec<f64>>| std::mem::take(&mut *all.lock().unwrap_or_else(PoisonError::into_inner));
        Times { live: take(&self.live_ms), gaps: take(&self.gaps_ms), ttfts: take(&self.ttfts_ms) }
    }
}

/// Milliseconds: of asking whether it lives, between two events, to a newcomer's token.
#[derive(Default)]
struct Times {
    live: Vec<f64>,
    gaps: Vec<f64>,
    ttfts: Vec<f64>,
}

impl Times {
    fn add(&mut self, other: Self) {
        self.live.extend(other.live);
        self.gaps.extend(other.gaps);
        self.ttfts.extend(other.ttfts);
    }

    /// The 99th percentiles.
    fn p99(&mut self) -> [f64; 3] {
        [&mut self.live, &mut self.gaps, &mut self.ttfts].map(|times| quantile(times, 0.99))
    }

    /// Whether gaps or newcomers take longer than is asked, against those beside honest work.
    fn exceeds(&mut self, honest: &mut Self) -> bool {
        let ([_, gap, ttft], [_, honest_gap, honest_ttft]) = (self.p99(), honest.p99());
        gap > honest_gap * GAP_RATIO_MAX || ttft > honest_ttft * GAP_RATIO_MAX
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
    const NONE: Self = Self { value: 0.0, by: "" };

    fn see(&mut self, value: f64, by: &'static str) {
        if value > self.value {
            *self = Self { value, by };
        }
    }
}

async fn p24(model: &str, name: &str) {
    let kv_bytes = KV_BYTES.to_string();
    let own = ["--model", model, "--api-keys", KEYS, "--log-level", "error", "--kv-cache-bytes", &kv_bytes];
    let server = Server::start(&[&own[..], &["--retention-ms", "3600000"]].concat());
    let address: SocketAddr = server.url.trim_start_matches("http://").parse().unwrap();
    let kept = json!({"prompt": "to be kept", "max_tokens": 3, "on_disconnect": "detach", "ignore_eos": true});
    let kept =
        http(address, "POST", "/v1/streams", &[QUIET], &kept.to_string()).await.unwrap().headers["location"].clone();
    let window = Duration::from_millis(scale(200, 3000) as u64);
    let watch = Watch::start(address);
    let before = memory::resident(server.pid());
    let (mut live, mut gaps, mut ttfts, mut memory_max) = (Worst::NONE, Vec::new(), Vec::new(), 0);
    for shot in attacks() {
        let (mut beside_twin, mut beside_attack, mut outcomes) = (Times::default(), Times::default(), Vec::new());
        for round in 1..=scale(1, ROUNDS_MAX) {
            watch.take();
            if is_long() {
                attack(&shot.twin(), address, window).await;
            } else {
                tokio::time::sleep(window).await;
            }
            beside_twin.add(watch.take());
            outcomes.extend(attack(&shot, address, window).await);
            beside_attack.add(watch.take());
            if round >= ROUNDS && !beside_attack.exceeds(&mut beside_twin) {
                break;
            }
        }
        let ([_, gap_alone, ttft_alone], [live_ms, gap_ms, ttft_ms]) = (beside_twin.p99(), beside_attack.p99());
        let grown = memory::resident(server.pid()).saturating_sub(before);
        memory_max = memory_max.max(grown);
        println!(
            "{:42} live {live_ms:5.1} ms, gaps {gap_alone:6.1} -> {gap_ms:6.1} ms, newcomers {ttft_alone:6.1} -> \
             {ttft_ms:6.1} ms, +{:3} MiB, {:?}",
            shot.name,
            grown >> 20,
            outcomes.first()
        );
        live.see(live_ms, shot.name);
        gaps.push((gap_ms / gap_alone, shot.name));
        ttfts.push((ttft_ms / ttft_alone, shot.name));
        let is_fault =
            |outcome: &&Outcome| matches!(outcome, Outcome::Answered(status) if *status >= 500 && *status != 503);
        assert_eq!(outcomes.iter().find(is_fault), None, "{}", shot.name);
        let ended = watch.num_ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(ended.is_empty(), "{}: the other key's stream ended: {ended:?}", shot.name);
    }
    watch.is_over.store(true, Ordering::Relaxed);
    let status = |path: &'static str| async move { http(address, "GET", path, &[OTHER], "").await.unwrap().status };
    assert_eq!(status("/health/ready").await, 200);
    let kept = http(address, "GET", &kept, &[QUIET], "").await.unwrap();
    assert_eq!(kept.status, 200, "what the other key had is kept");
    assert!(kept.text().contains("event: done"));
    assert!(memory_max < MEMORY_MAX + KV_BYTES, "{} MiB more than before", memory_max >> 20);
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
    for (what, ratios) in
        [("gap between tokens, a neighbour's", &mut gaps), ("answer of one token, a newcomer's", &mut ttfts)]
    {
        // By attack, and not over all times at once: those beside the heaviest work would hide the others.
        let worst = ratios.iter().max_by(|a, b| a.0.total_cmp(&b.0)).copied().unwrap_or((0.0, ""));
        let median = quantile(&mut ratios.iter().map(|(ratio, _)| *ratio).collect::<Vec<_>>(), 0.5);
        let percent = |ratio: f64| (ratio - 1.0) * 100.0;
        Figure {
            promise: "P24",
            what: &format!("{what}, p99 against as much honest work, {name}"),
            asked: "+<= 20 % under each attack",
            measured: format!(
                "{:+.0} % at worst ({}), median {:+.0} %; memory +{} MiB",
                percent(worst.0),
                worst.1,
                percent(median),
                memory_max >> 20
            ),
            is_reached: worst.0 <= GAP_RATIO_MAX,
        }
        .record();
    }
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
