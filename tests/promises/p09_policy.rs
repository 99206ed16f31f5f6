//! P9: what a stream does without readers is what it declared: `cancel` ends at once, `linger` when its grace is over
//! and nobody came back, `detach` runs on. Leaving is by an ordinary close or a reset.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tallow::stream::{CancelCause, StreamLog};
use tokio::sync::Semaphore;

use crate::common::host::{CHAT, chat, create, native};
use crate::common::{Figure, Host, Options, Random, Wire, http, scale};

const SEED: u64 = 109;
/// Short, so that the proof is; long beside the sweep that measures it.
const GRACE_MS: u64 = 60;
/// Where somebody must be back within it, on a machine that does other things too.
const LONG_GRACE_MS: u64 = 1_000;

/// Cases, each with a server of its own, that are played at the same time.
const NUM_AT_ONCE: usize = 16;

/// What the readers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visit {
    /// Nobody ever comes.
    Nobody,
    /// One comes and leaves.
    Leaves,
    /// One comes, leaves, and is back before the grace is over.
    ComesBack,
    /// One of two leaves.
    OneOfTwo,
}

const VISITS: [Visit; 4] = [Visit::Nobody, Visit::Leaves, Visit::ComesBack, Visit::OneOfTwo];

fn leave(wire: Wire, by_reset: bool) {
    if by_reset { wire.reset() } else { wire.close() }
}

/// Waits for the cancellation without reading.
async fn cancelled(log: &StreamLog) -> CancelCause {
    loop {
        match log.cancelled() {
            Some(cause) => return cause,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn readers_are(host: &Host, log: &StreamLog, num_readers: i64) {
    while host.metrics().readers.get() != num_readers {
        assert!(log.cancelled().is_none() || num_readers == 0);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn grace_ms(visit: Visit) -> u64 {
    if matches!(visit, Visit::ComesBack | Visit::OneOfTwo) { LONG_GRACE_MS } else { GRACE_MS }
}

fn policy(name: &str, visit: Visit) -> Value {
    let grace_ms = grace_ms(visit);
    if name == "linger" { json!({"linger": grace_ms as f64 / 1000.0}) } else { json!(name) }
}

/// Plays one case; whether the stream did as declared.
async fn plays(name: &'static str, visit: Visit, by_reset: bool) -> bool {
    let options = Options { is_gated: true, sweep_ms: 5, ..Options::default() };
    let host = Host::start(&options).await;
    // Before it is there: its grace begins with the first sweep, not with the answer.
    let asked_at = std::time::Instant::now();
    // By the header as well as by the field.
    let path = create(host.address, &native(20, 7, &policy(name, visit))).await;
    let log = host.service.table().live().pop().unwrap();
    let open = async || Wire::open(host.address, "GET", &path, &[], "").await.unwrap().0;
    let mut stays = Vec::new();
    match visit {
        Visit::Nobody => {}
        Visit::Leaves => {
            leave(open().await, by_reset);
        }
        Visit::ComesBack => {
            let (first, second) = (open().await, name != "cancel");
            leave(first, by_reset);
            readers_are(&host, &log, 0).await;
            if second {
                stays.push(open().await);
            }
        }
        Visit::OneOfTwo => {
            stays.push(open().await);
            leave(open().await, by_reset);
            readers_are(&host, &log, 1).await;
        }
    }
    let is_alone = stays.is_empty();
    let is_cancelling = match name {
        "cancel" => is_alone && visit != Visit::Nobody,
        "linger" => is_alone,
        _ => false,
    };
    let as_declared = if is_cancelling {
        let cause = cancelled(&log).await;
        // The log's clock counts whole milliseconds.
        let was_patient = name != "linger" || asked_at.elapsed() >= Duration::from_millis(GRACE_MS - 1);
        cause == CancelCause::ReaderLeft && was_patient
    } else {
        // Beyond the grace, in which nothing may happen.
        tokio::time::sleep(Duration::from_millis(grace_ms(visit) + 100)).await;
        log.cancelled().is_none()
    };
    host.gate.open();
    host.idle().await;
    as_declared && (log.status() == tallow::stream::StreamStatus::Done) != is_cancelling
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_stream_without_readers_does_as_it_declared() {
    let num_rounds = scale(2, 20);
    println!("seed {SEED}");
    let mut random = Random::new(SEED);
    let permits = Arc::new(Semaphore::new(NUM_AT_ONCE));
    let mut cases = Vec::new();
    for name in ["cancel", "linger", "detach"].into_iter().cycle().take(3 * num_rounds) {
        for visit in VISITS {
            let by_reset = random.one_in(2);
            let (permits, case) = (permits.clone(), format!("{name} {visit:?}"));
            let task = tokio::spawn(async move {
                let _permit = permits.acquire().await.unwrap();
                plays(name, visit, by_reset).await
            });
            cases.push((case, task));
        }
    }
    let num_cases = cases.len();
    let mut broken = Vec::new();
    for (case, task) in cases {
        if !task.await.unwrap() {
            broken.push(case);
        }
    }
    let percent = 100.0 * (num_cases - broken.len()) as f64 / num_cases as f64;
    let (what, asked) = ("streams that do as they declared", "100 %");
    let measured = format!("{percent} % of {num_cases}");
    Figure { promise: "P9", what, asked, measured, is_reached: broken.is_empty() }.record();
    assert_eq!(broken, [""; 0]);
}

#[tokio::test]
async fn p9_a_chat_cancels_by_default_and_runs_on_where_its_header_says_so() {
    for (header, is_cancelled) in [(None, true), (Some("detach"), false), (Some("cancel"), true)] {
        let host = Host::start(&Options { is_gated: true, ..Options::default() }).await;
        let headers: Vec<_> = header.map(|policy| ("x-stream-on-disconnect", policy)).into_iter().collect();
        let body = chat("hi", 5, true).to_string();
        let (wire, head) = Wire::open(host.address, "POST", CHAT, &headers, &body).await.unwrap();
        assert_eq!(head.status, 200);
        let log = host.service.table().live().pop().unwrap();
        wire.close();
        readers_are(&host, &log, 0).await;
        host.gate.open();
        host.idle().await;
        assert_eq!(log.cancelled().is_some(), is_cancelled, "{header:?}");
        let path = format!("/v1/streams/{}", log.id());
        assert_eq!(http(host.address, "GET", &path, &[], "").await.unwrap().status, 200, "what it said stays");
    }
}
