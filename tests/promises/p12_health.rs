//! P12: with the defaults, a worker that hangs shows in readiness within 2 s and is replaced within 10 s, one that panics
//! is back at once, and the process is alive throughout.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tallow::engine::{Engine, EngineConfig};
use tallow::metrics::Metrics;
use tallow::model::Model;
use tallow::model::stub::{StubConfig, StubFaults, StubGate, StubModel};
use tallow::protocol::{OnDisconnect, QueueTerms, SamplingParams, StopParams, StreamId, Tenant, ValidRequest};
use tallow::service::{Backend, LocalBackend, Readiness};
use tallow::stream::StreamLog;
use tallow::text::Tokenizer;

use crate::common::Figure;

/// As often as a server looks.
const SWEEP: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(60);

/// A backend whose first model has `faults` and waits at a gate that stays shut if there is one.
fn start(faults: StubFaults, gate: Option<Arc<StubGate>>) -> LocalBackend {
    let faulty = StubConfig { faults, gate, ..StubConfig::default() };
    let num_made = AtomicUsize::new(0);
    let factory = Arc::new(move || {
        let is_first = num_made.fetch_add(1, Ordering::SeqCst) == 0;
        let config = if is_first { faulty.clone() } else { StubConfig::default() };
        Ok(Box::new(StubModel::new(config)) as Box<dyn Model>)
    });
    let tokenizer = Arc::new(Tokenizer::byte_level());
    let metrics = Arc::new(Metrics::default());
    LocalBackend::new(Engine::start(EngineConfig::default(), factory, tokenizer, metrics).expect("it starts"))
}

fn submit(backend: &LocalBackend, number: u128) -> Arc<StreamLog> {
    let (id, tenant, on_disconnect) = (StreamId(number), Tenant(0), OnDisconnect::Detach);
    let request = ValidRequest {
        id,
        tenant,
        prompt: vec![104, 105],
        max_tokens: 4,
        sampling: SamplingParams { seed: Some(1), ..SamplingParams::default() },
        stop: StopParams::default(),
        on_disconnect,
        queue: QueueTerms::default(),
        constraint: None,
        leader: None,
        resumed: None,
    };
    let log = StreamLog::new(id, tenant, on_disconnect);
    backend.submit(request, log.clone()).expect("room");
    log
}

/// Time until readiness is `wanted`, asked as often as a busy prober would, while the server sweeps.
fn until(backend: &LocalBackend, wanted: Readiness) -> Duration {
    let began = Instant::now();
    let mut swept = began;
    while backend.readiness() != wanted {
        assert!(began.elapsed() < PATIENCE, "readiness never becomes {wanted:?}");
        if swept.elapsed() >= SWEEP {
            backend.sweep();
            swept = Instant::now();
        }
        std::thread::yield_now();
    }
    began.elapsed()
}

fn record(what: &str, asked: &str, took: Duration, max: Duration) {
    let (measured, is_reached) = (format!("{:.2} s", took.as_secs_f64()), took <= max);
    Figure { promise: "P12", what, asked, measured, is_reached }.record();
}

#[test]
fn p12_a_hang_and_a_panic_show_and_are_over_in_time() {
    let faults = StubFaults { silent_from_step: Some(0), ..StubFaults::default() };
    let backend = start(faults, Some(StubGate::new()));
    let log = submit(&backend, 1);
    let seen = until(&backend, Readiness::Starting);
    let back = until(&backend, Readiness::Ready);
    assert!(log.is_finished(), "its stream has an end");
    record("a hang shows in readiness", "<= 2 s", seen, Duration::from_secs(2));
    record("a hung worker is replaced", "<= 10 s", seen + back, Duration::from_secs(10));
    let log = submit(&backend, 2);
    while !log.is_finished() {
        std::thread::yield_now();
    }

    let backend = start(StubFaults { panic_at_step: Some(0), ..StubFaults::default() }, None);
    let log = submit(&backend, 1);
    while !log.is_finished() {
        std::thread::yield_now();
    }
    let back = until(&backend, Readiness::Ready);
    record("a worker that panicked is back", "<= 10 s", back, Duration::from_secs(10));
}
