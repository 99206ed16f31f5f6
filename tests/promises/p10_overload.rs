//! P10: overload is refused at once. Requests come at fifty times what the server can do, whatever it answers; those it
//! takes all finish, the others get 429 and a time to come back, and it goes on at full speed in flat memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::host::{CHAT, chat, metric};
use crate::common::{ChildServer, Figure, Options, Wire, is_long, memory, quantile, scale};

const STEP_MS: u64 = 25;
const MAX_NUM_SEQS: usize = 4;
const MAX_TOKENS: usize = 10;
const TIMES_CAPACITY: f64 = 50.0;
/// The prompt's step gives the first token.
const CAPACITY_PER_S: f64 = MAX_NUM_SEQS as f64 * 1000.0 / (STEP_MS as f64 * MAX_TOKENS as f64);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Finished,
    /// With what both headers ask for; how long it took.
    Refused {
        ms: f64,
    },
    /// Anything else.
    Broken(&'static str),
}

async fn ask(to: SocketAddr) -> Answer {
    let asked_at = Instant::now();
    let Ok(mut wire) = Wire::connect(to).await else { return Answer::Broken("no connection") };
    let body = chat("overload", MAX_TOKENS, true).to_string();
    let sent = wire.send("POST", CHAT, &[], &body).await;
    let Ok(head) = (match sent {
        Ok(()) => wire.head().await,
        Err(e) => Err(e),
    }) else {
        return Answer::Broken("cut before the head");
    };
    let ms = asked_at.elapsed().as_secs_f64() * 1e3;
    let number = |name: &str| head.headers.get(name).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    match head.status {
        200 => match wire.rest().await {
            Ok(bytes) if bytes.ends_with(b"data: [DONE]\n\n") => Answer::Finished,
            _ => Answer::Broken("accepted and not finished"),
        },
        429 if number("retry-after") > 0 && number("retry-after-ms") > 0 => Answer::Refused { ms },
        429 => Answer::Broken("429 without a time to come back"),
        _ => Answer::Broken("another status"),
    }
}

/// Tokens a second over `time`, while others keep it busy.
async fn tokens_per_s(of: SocketAddr, time: Duration) -> f64 {
    let (began, before) = (Instant::now(), metric(of, "tallow_completion_tokens_total").await);
    tokio::time::sleep(time).await;
    (metric(of, "tallow_completion_tokens_total").await - before) / began.elapsed().as_secs_f64()
}

/// As many clients as it serves at once and as many again, each asking anew when it has its answer.
async fn peak(of: SocketAddr, time: Duration) -> f64 {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..2 * MAX_NUM_SEQS {
        clients.spawn(async move {
            loop {
                assert_eq!(ask(of).await, Answer::Finished);
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let peak = tokens_per_s(of, time).await;
    clients.shutdown().await;
    peak
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_overload_is_refused_at_once_and_what_is_taken_finishes() {
    let time = Duration::from_secs(scale(4, 30) as u64);
    let options = Options {
        max_num_seqs: MAX_NUM_SEQS,
        queue_requests_max: 2 * MAX_NUM_SEQS,
        step_delay_us: STEP_MS * 1000,
        head_wait_ms: 15_000,
        retention_ms: 500,
        ..Options::default()
    };
    let server = ChildServer::start(&options);
    let peak = peak(server.address, time).await;

    let per_s = CAPACITY_PER_S * TIMES_CAPACITY;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_s));
    let mut asked = Vec::new();
    // The overload of a second before anything is measured: what the first of it needs is needed once.
    let mut load = async |time: Duration| {
        let began = Instant::now();
        while began.elapsed() < time {
            ticks.tick().await;
            asked.push(tokio::spawn(ask(server.address)));
        }
    };
    load(Duration::from_secs(1)).await;
    let before = memory::resident(server.pid());
    let ((), under_load) = tokio::join!(load(time), tokens_per_s(server.address, time - Duration::from_millis(200)));
    let after = memory::resident(server.pid());
    let (mut finished, mut refused_ms, mut broken) = (0, Vec::new(), Vec::new());
    for answer in asked {
        match answer.await.unwrap() {
            Answer::Finished => finished += 1,
            Answer::Refused { ms } => refused_ms.push(ms),
            Answer::Broken(what) => broken.push(what),
        }
    }
    let num_asked = finished + refused_ms.len() + broken.len();
    let p99_ms = quantile(&mut refused_ms, 0.99);
    let figure =
        |what, asked, measured, is_reached| Figure { promise: "P10", what, asked, measured, is_reached }.record();
    let measured = format!("{p99_ms:.1} ms p99 of {} at {per_s:.0} requests/s", refused_ms.len());
    figure("429 with Retry-After at 50x capacity", "<= 5 ms p99", measured, p99_ms <= 5.0);
    let measured = format!("{} of {num_asked} ({finished} taken)", broken.len());
    figure("requests neither finished nor refused", "0", measured, broken.is_empty());
    let percent = 100.0 * under_load / peak;
    figure(
        "throughput under overload",
        ">= 95 % of peak",
        format!("{percent:.1} % of {peak:.0} tokens/s"),
        percent >= 95.0,
    );
    let grown_mib = (after as f64 - before as f64) / f64::from(1 << 20);
    let measured =
        format!("{grown_mib:+.1} MiB in {} s, {:.0} MiB in all", time.as_secs(), after as f64 / f64::from(1 << 20));
    figure("memory under overload", "flat (+<= 8 MiB)", measured, grown_mib <= 8.0);
    assert_eq!(broken, [""; 0]);
    assert!(refused_ms.len() > 10 * finished && finished > 0, "{finished} finished, {} refused", refused_ms.len());
    assert!(!is_long() || percent >= 95.0, "throughput fell to {percent:.1} %");
}
