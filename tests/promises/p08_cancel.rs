//! P8: whoever cancels gives the slot back: while it waits, in the midst of its prompt, and while it decodes; by closing,
//! by a reset, and by asking; of a streamed answer and of a whole one. Steps are counted at a gate, not timed: between
//! the cancellation and the free slot no step may begin. The real model stands at the same gate.

use std::sync::Arc;

use tallow::model::decoder::{ActivationType, Compute, DecoderOptions};
use tallow::model::load;
use tallow::model::stub::StubGate;
use tallow::protocol::Event;
use tallow::stream::StreamLog;

use crate::common::host::{CHAT, OtherModel, STREAMS, chat};
use crate::common::{Figure, Host, Options, Wire, http, scale};
use crate::gated::gated;
use crate::real;

/// Smaller than the long prompts below, so that these take several steps.
const BATCHED_TOKENS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Prefill,
    Decode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Fin,
    Rst,
    Delete,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    phase: Phase,
    way: Way,
    is_stream: bool,
}

const PHASES: [Phase; 3] = [Phase::Queued, Phase::Prefill, Phase::Decode];
const WAYS: [Way; 3] = [Way::Fin, Way::Rst, Way::Delete];

fn options() -> Options {
    Options {
        max_num_seqs: 1,
        max_num_batched_tokens: BATCHED_TOKENS,
        is_gated: true,
        num_streams_max: 16,
        num_blocks: 256,
        ..Options::default()
    }
}

/// One request on its way, and its stream.
struct Victim {
    wire: Wire,
    log: Arc<StreamLog>,
}

impl Victim {
    /// Sends the `n`th request, whose prompt is like no other's from the start, and waits until it is accepted.
    async fn send(host: &Host, n: usize, case: Case) -> Self {
        let more = if case.phase == Phase::Prefill { " and tell me more".repeat(30) } else { String::new() };
        let body = chat(&format!("{n:05}{more}"), 100, case.is_stream).to_string();
        let accepted = host.metrics().requests_accepted.get();
        let mut wire = Wire::connect(host.address).await.unwrap();
        wire.send("POST", CHAT, &[], &body).await.unwrap();
        if case.is_stream {
            assert_eq!(wire.head().await.unwrap().status, 200);
        }
        while host.metrics().requests_accepted.get() == accepted {
            tokio::task::yield_now().await;
        }
        let newest = host.service.table().live().into_iter().max_by_key(|log| (log.created_ms(), log.is_empty()));
        Self { wire, log: newest.expect("it was accepted") }
    }

    /// Goes away, and waits until the server knows.
    async fn cancel(self, host: &Host, case: Case) -> Arc<StreamLog> {
        let Self { mut wire, log } = self;
        let mut asked = None;
        match case.way {
            Way::Fin => wire.close(),
            Way::Rst => wire.reset(),
            Way::Delete => {
                let path = format!("{STREAMS}/{}", log.id());
                assert_eq!(http(host.address, "DELETE", &path, &[], "").await.unwrap().status, 204);
                // Its reader is told; by the end of the step at the latest.
                asked = Some(tokio::spawn(async move {
                    if !case.is_stream {
                        assert!(wire.head().await.unwrap().status >= 400);
                    }
                    assert!(String::from_utf8_lossy(&wire.rest().await.unwrap()).contains("cancelled"));
                }));
            }
        }
        while log.cancelled().is_none() {
            tokio::task::yield_now().await;
        }
        if case.phase != Phase::Queued {
            host.gate.allow(1);
        }
        log.finished().await;
        if let Some(asked) = asked {
            asked.await.unwrap();
        }
        log
    }
}

/// How far a generation came, by its events; it has ended.
fn reached(log: &Arc<StreamLog>) -> Phase {
    let mut reader = log.reader(0);
    let events: Vec<Event> = std::iter::from_fn(|| reader.try_next()).map(|(_, event)| event).collect();
    if events.iter().any(|e| matches!(e, Event::Token(_))) {
        return Phase::Decode;
    }
    let is_started = events.iter().any(|e| matches!(e, Event::Started { .. }));
    if is_started { Phase::Prefill } else { Phase::Queued }
}

/// Cancels `num` requests that wait behind one that is held in a step.
async fn cancel_queued(host: &Host, case: Case, num: usize, base: u64) -> u64 {
    let holder = Victim::send(host, base as usize, Case { is_stream: true, ..case }).await;
    host.arrived(base + 1).await;
    for n in 0..num {
        let mut victim = Victim::send(host, n, case).await;
        let holder_id = holder.log.id();
        let mut others = host.service.table().live().into_iter().filter(|log| log.id() != holder_id);
        victim.log = others.next().expect("one waits");
        assert_eq!(host.metrics().num_waiting.get(), 1, "{case:?} {n}");
        let log = victim.cancel(host, case).await;
        assert_eq!((host.metrics().num_waiting.get(), reached(&log)), (0, Phase::Queued), "{case:?} {n}");
    }
    assert_eq!(host.gate.num_arrived(), base + 1, "{case:?}: no step was run for them");
    holder.cancel(host, Case { phase: Phase::Decode, way: Way::Fin, is_stream: true }).await;
    host.idle().await;
    base + 1
}

/// Cancels one that runs, whose step `base + n` is held at the gate; returns how many steps have come there in all.
async fn cancel_running(host: &Host, case: Case, n: usize, base: u64) -> u64 {
    let num_tokens = || host.metrics().completion_tokens.get();
    let before = num_tokens();
    let victim = Victim::send(host, n, case).await;
    let mut held = base + 1;
    host.arrived(held).await;
    // The second part of the prompt; or so many tokens that one of them ends a character. A reader would tell more,
    // but it might be the last to leave.
    let is_there = |held| match case.phase {
        Phase::Prefill => held == base + 2,
        _ => num_tokens() >= before + 5,
    };
    while !is_there(held) {
        host.gate.allow(1);
        held += 1;
        host.arrived(held).await;
    }
    let m = host.metrics();
    assert!(m.num_running.get() == 1 && m.kv_blocks_used.get() > 0, "{case:?} {n}");
    let log = victim.cancel(host, case).await;
    host.idle().await;
    assert_eq!(host.gate.num_arrived(), held, "{case:?} {n}: a step began after the cancellation");
    assert_eq!(reached(&log), case.phase, "{case:?} {n}");
    held
}

/// All ways in all phases; returns how many were cancelled, and how many steps were run for that.
async fn cancel_everywhere(host: &Host, num_each: usize) -> (usize, u64) {
    let (mut held, mut num_cancelled, mut n) = (0, 0, 0);
    for phase in PHASES {
        for (way, is_stream) in WAYS.into_iter().flat_map(|way| [(way, true), (way, false)]) {
            let case = Case { phase, way, is_stream };
            if phase == Phase::Queued {
                held = cancel_queued(host, case, num_each, held).await;
                num_cancelled += 1;
            } else {
                for _ in 0..num_each {
                    n += 1;
                    held = cancel_running(host, case, n, held).await;
                }
            }
            num_cancelled += num_each;
            println!("{case:?}: {num_each} cancelled, nothing left");
        }
    }
    assert_eq!(host.metrics().requests_cancelled.get(), num_cancelled as u64);
    while host.metrics().readers.get() > 0 {
        tokio::task::yield_now().await;
    }
    (num_cancelled, held)
}

fn record(what: &str, asked: &str, num_cancelled: usize) {
    // Whatever leaked or took a step too many has failed an assertion by now.
    let measured = format!("0 leaked of {num_cancelled}, each free without a further step");
    Figure { promise: "P8", what, asked, measured, is_reached: true }.record();
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_cancelled_request_is_gone_within_a_step() {
    let host = Host::start(&options()).await;
    let (num_cancelled, _) = cancel_everywhere(&host, scale(30, 1_000)).await;
    record(
        "cancels in 3 phases x 3 ways x streamed or whole",
        "free within a step, 0 leaked in 1,000 each",
        num_cancelled,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_cancelled_request_of_a_real_model_is_gone_within_a_step() {
    let path = real::path(real::SMOLLM2);
    let compute = Compute::Cpu { num_threads: 2, activations: ActivationType::Int8 };
    let options = DecoderOptions { compute, max_model_len: None, kv_bytes_max: 64 << 20, max_num_seqs: 1 };
    let loaded = load::open(&path, &options).unwrap();
    let gate = StubGate::new();
    let model = OtherModel { factory: gated(loaded.load().unwrap(), gate.clone()), tokenizer: loaded.tokenizer };
    let host = Host::with_model(&self::options(), model, gate).await;
    let (num_cancelled, _) = cancel_everywhere(&host, scale(2, 50)).await;
    record("the same with SmolLM2", "free within a step, 0 leaked in 50 each", num_cancelled);
}
