//! The engine with its threads, on the stub model: sharing steps, cancelling, refusing, failing and stopping. A gate
//! in the stub decides when steps run, so nothing here sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tallow::engine::{Embedding, Engine, EngineConfig};
use tallow::error::{ErrorKind, Result};
use tallow::metrics::Metrics;
use tallow::model::ModelFactory;
use tallow::model::stub::{StubConfig, StubFaults, StubGate, StubModel};
use tallow::protocol::{
    ErrorInfo, Event, FinishReason, OnDisconnect, QueueTerms, SamplingParams, StopParams, StreamId, Tenant, TokenId,
    ValidInput, ValidRequest,
};
use tallow::stream::{CancelCause, StreamLog};
use tallow::text::Tokenizer;

mod lost;
mod unload;

struct Server {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
}

impl Server {
    fn start(config: EngineConfig, stub: StubConfig) -> Self {
        Self::with_factory(config, StubModel::factory(stub)).expect("the stub loads")
    }

    fn with_factory(config: EngineConfig, factory: ModelFactory) -> Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let engine = Engine::start(config, factory, Arc::new(Tokenizer::byte_level()), metrics.clone())?;
        Ok(Self { engine, metrics })
    }

    #[track_caller]
    fn submit(&self, request: ValidRequest) -> Arc<StreamLog> {
        self.try_submit(request).expect("accepted")
    }

    fn try_submit(&self, request: ValidRequest) -> Result<Arc<StreamLog>> {
        let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
        self.engine.submit(request, log.clone()).map(|()| log)
    }

    /// (running, waiting, blocks used)
    fn gauges(&self) -> (i64, i64, i64) {
        let m = &self.metrics;
        (m.num_running.get(), m.num_waiting.get(), m.kv_blocks_used.get())
    }
}

/// Waits for something that must come.
#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// A request of its own: another prompt, seed and length for every number.
fn request(number: u32) -> ValidRequest {
    let prompt = (0..20 + number * 7).map(|i| 97 + (i * 31 + number) % 26).collect();
    let sampling = SamplingParams {
        temperature: if number.is_multiple_of(4) { 0.0 } else { 0.9 },
        seed: Some(u64::from(number)),
        ..SamplingParams::default()
    };
    ValidRequest {
        constraint: None,
        leader: None,
        resumed: None,
        id: StreamId(u128::from(number) + 1),
        tenant: Tenant(0),
        prompt,
        max_tokens: 40 + number as usize,
        sampling,
        stop: StopParams::default(),
        on_disconnect: OnDisconnect::Detach,
        queue: QueueTerms::default(),
    }
}

fn endless(number: u32) -> ValidRequest {
    let stop = StopParams { ignore_eos: true, ..StopParams::default() };
    ValidRequest { max_tokens: 2000, stop, ..request(number) }
}

fn with_token(number: u32, token: TokenId) -> ValidRequest {
    let mut request = request(number);
    request.prompt[3] = token;
    request
}

/// All events, once the terminal one is there.
#[track_caller]
fn events(log: &Arc<StreamLog>) -> Vec<Event> {
    wait_for("the end of a stream", || log.is_finished());
    let mut reader = log.reader(0);
    std::iter::from_fn(|| reader.try_next()).map(|(_, event)| event).collect()
}

/// Text and finish reason of a generation that went well.
#[track_caller]
fn transcript(log: &Arc<StreamLog>) -> (String, FinishReason, usize) {
    let events = events(log);
    let text = events.iter().filter_map(|e| if let Event::Token(t) = e { Some(t.text.as_str()) } else { None });
    match events.last() {
        Some(Event::Done { finish_reason, usage, .. }) => (text.collect(), *finish_reason, usage.completion_tokens),
        other => panic!("ended with {other:?}"),
    }
}

#[track_caller]
fn error(log: &Arc<StreamLog>) -> ErrorInfo {
    match events(log).pop() {
        Some(Event::Error(info)) => info,
        other => panic!("ended with {other:?}"),
    }
}

#[test]
fn thirty_two_requests_share_steps_and_each_equals_its_solo_run() {
    let solo: Vec<_> = {
        let server = Server::start(EngineConfig::default(), StubConfig::default());
        (0..32).map(|n| transcript(&server.submit(request(n)))).collect()
    };
    let gate = StubGate::new();
    let stub = StubConfig { gate: Some(gate.clone()), ..StubConfig::default() };
    let server = Server::start(EngineConfig::default(), stub);
    let logs: Vec<_> = (0..32).map(|n| server.submit(request(n))).collect();
    gate.open();
    let together: Vec<_> = logs.iter().map(transcript).collect();
    assert_eq!(together, solo);
    let mean = server.metrics.step_sequences.get() as f64 / server.metrics.steps.get() as f64;
    assert!(mean > 8.0, "mean batch {mean}");
    assert_eq!(server.gauges(), (0, 0, 0));
    assert!(server.engine.is_idle());
}

#[test]
fn two_workers_serve_one_queue() {
    let config = EngineConfig { num_workers: 2, ..EngineConfig::default() };
    let server = Server::start(config, StubConfig::default());
    let logs: Vec<_> = (0..16).map(|n| server.submit(request(n))).collect();
    let solo = Server::start(EngineConfig::default(), StubConfig::default());
    for (n, log) in logs.iter().enumerate() {
        assert_eq!(transcript(log), transcript(&solo.submit(request(n as u32))), "request {n}");
    }
    assert_eq!(server.metrics.kv_blocks_total.get(), 2048);
}

#[test]
fn events_come_in_order() {
    let server = Server::start(EngineConfig::default(), StubConfig::default());
    let events = events(&server.submit(request(3)));
    assert_eq!(events[0], Event::Queued { position: 0, wait_ms: None });
    assert_eq!(events[1], Event::Started { prompt_tokens: 41, cached_tokens: 0 });
    assert!(events[2..events.len() - 1].iter().all(|e| matches!(e, Event::Token(_))), "{events:?}");
    assert!(events[events.len() - 1].is_terminal());
}

#[test]
fn cancelling_a_queued_request_takes_it_out_at_once() {
    let gate = StubGate::new();
    let config = EngineConfig { max_num_seqs: 1, ..EngineConfig::default() };
    let server = Server::start(config, StubConfig { gate: Some(gate.clone()), ..StubConfig::default() });
    let first = server.submit(endless(0));
    gate.wait_arrived(1);
    let second = server.submit(request(1));
    assert_eq!(server.gauges().1, 1);
    second.cancel(CancelCause::Requested);
    // No step has run in between: this thread has ended it.
    assert_eq!(error(&second).kind, ErrorKind::Cancelled);
    assert_eq!(server.gauges().1, 0);
    assert_eq!(events(&second).len(), 2, "never started");
    first.cancel(CancelCause::Requested);
    gate.open();
    assert_eq!(error(&first).kind, ErrorKind::Cancelled);
}

/// Cancels while a step is held, lets it and one more go, and finds everything free.
fn check_freed_within_one_step(config: EngineConfig, num_steps_before: u64) {
    let gate = StubGate::new();
    let server = Server::start(config, StubConfig { gate: Some(gate.clone()), ..StubConfig::default() });
    let log = server.submit(endless(9));
    gate.allow(num_steps_before);
    gate.wait_arrived(num_steps_before + 1);
    assert_eq!(server.gauges().0, 1);
    assert!(server.gauges().2 > 0);
    log.cancel(CancelCause::ReaderLeft);
    gate.allow(1);
    assert_eq!(error(&log).kind, ErrorKind::Cancelled);
    assert_eq!(server.gauges(), (0, 0, 0), "free before the end is told");
    assert_eq!(gate.num_arrived(), num_steps_before + 1, "no further step was run for it");
    assert_eq!(server.metrics.requests_cancelled.get(), 1);
}

#[test]
fn cancelling_in_prefill_frees_slot_and_blocks_within_one_step() {
    let config = EngineConfig { max_num_batched_tokens: 16, max_num_seqs: 4, ..EngineConfig::default() };
    check_freed_within_one_step(config, 2);
}

#[test]
fn cancelling_in_decode_frees_slot_and_blocks_within_one_step() {
    check_freed_within_one_step(EngineConfig::default(), 10);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let gate = StubGate::new();
    let config = EngineConfig { max_num_seqs: 1, queue_requests_max: 2, ..EngineConfig::default() };
    let server = Server::start(config, StubConfig { gate: Some(gate.clone()), ..StubConfig::default() });
    let running = server.submit(request(0));
    gate.wait_arrived(1);
    let waiting = [server.submit(request(1)), server.submit(request(2))];
    let log = StreamLog::new(StreamId(99), Tenant(0), OnDisconnect::Detach);
    let refused = server.engine.submit(request(3), log.clone()).expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.retry_after_ms().is_some_and(|ms| ms > 0), "{refused:?}");
    assert!(log.is_empty(), "a refused request leaves no trace");
    assert_eq!(server.metrics.requests_rejected.get(), 1);
    gate.open();
    for log in waiting.iter().chain([&running]) {
        transcript(log);
    }
    transcript(&server.submit(request(3)));
}

#[test]
fn what_can_never_run_is_refused_with_the_reason() {
    let stub = StubConfig { num_blocks: 4, max_model_len: 200, ..StubConfig::default() };
    let server = Server::start(EngineConfig::default(), stub);
    let sized = |prompt: usize, max_tokens| ValidRequest { prompt: vec![97; prompt], max_tokens, ..request(0) };
    let refused = |r: ValidRequest| server.try_submit(r).expect_err("refused");
    let e = refused(sized(100, 30));
    assert_eq!(e.kind(), ErrorKind::ContextLengthExceeded);
    assert!(e.message().contains("KV memory of 128 tokens"), "{e}");
    assert!(refused(sized(190, 20)).message().contains("context of 200 tokens"));
    assert_eq!(refused(ValidRequest { prompt: vec![999], ..request(0) }).kind(), ErrorKind::InvalidRequest);
    transcript(&server.submit(sized(100, 29)));
}

#[test]
fn a_worker_without_a_model_is_not_ready_and_still_stops_at_once() {
    let faults = StubFaults { panic_on_token: Some(1), ..StubFaults::default() };
    let pause = Duration::from_secs(3600);
    let config = EngineConfig { worker_backoff_min: pause, worker_backoff_max: pause, ..EngineConfig::default() };
    let server = Server::start(config, StubConfig { faults, ..StubConfig::default() });
    assert!(server.engine.is_ready());
    assert_eq!(error(&server.submit(with_token(1, 1))).kind, ErrorKind::Internal);
    assert!(!server.engine.is_ready(), "no model before the pause is over");
    let waiting = server.submit(request(2));
    server.engine.shutdown("not worth waiting");
    assert_eq!(error(&waiting).message, "not worth waiting");
}

#[test]
fn a_poisonous_request_cannot_use_the_restarts_up() {
    let faults = StubFaults { panic_on_token: Some(1), ..StubFaults::default() };
    let config = EngineConfig {
        worker_backoff_min: Duration::from_micros(10),
        worker_backoff_max: Duration::from_millis(1),
        ..EngineConfig::default()
    };
    let server = Server::start(config, StubConfig { faults, ..StubConfig::default() });
    for _ in 0..20 {
        assert_eq!(error(&server.submit(with_token(1, 1))).kind, ErrorKind::Internal);
    }
    transcript(&server.submit(request(2)));
}

#[test]
fn a_model_that_does_not_load_again_is_given_up_and_nobody_is_left_waiting() {
    let num_loads = AtomicUsize::new(0);
    let faults = StubFaults { panic_at_step: Some(1), ..StubFaults::default() };
    let stub = StubConfig { faults, ..StubConfig::default() };
    let factory: ModelFactory = Arc::new(move || match num_loads.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(Box::new(StubModel::new(stub.clone()))),
        _ => Err(tallow::error::Error::bad_model("gone")),
    });
    let config = EngineConfig {
        max_num_seqs: 1,
        worker_load_attempts_max: 3,
        worker_backoff_min: Duration::from_millis(1),
        ..EngineConfig::default()
    };
    let server = Server::with_factory(config, factory).expect("the first load is fine");
    let logs: Vec<_> = (0..3).map(|n| server.submit(endless(n))).collect();
    let kinds: Vec<_> = logs.iter().map(|log| error(log).kind).collect();
    assert_eq!(kinds, [ErrorKind::Unavailable; 3]);
    assert!(!server.engine.is_ready());
    assert_eq!(server.try_submit(request(0)).expect_err("nobody there").kind(), ErrorKind::Unavailable);
}

#[test]
fn an_engine_without_a_model_does_not_start() {
    let factory: ModelFactory = Arc::new(|| Err(tallow::error::Error::bad_model("x.gguf: not there")));
    let e = Server::with_factory(EngineConfig::default(), factory).err().expect("no model");
    assert_eq!((e.kind(), e.message()), (ErrorKind::BadModel, "x.gguf: not there"));
}

#[test]
fn states_that_cannot_be_read_end_their_own_input_only() {
    let faults = StubFaults { no_states_of_token: Some(2), ..StubFaults::default() };
    let gate = StubGate::new();
    let stub = StubConfig { faults, gate: Some(gate.clone()), ..StubConfig::default() };
    let server = Server::start(EngineConfig::default(), stub);
    let embed = |server: &Server, request: ValidRequest| {
        let ValidRequest { id, tenant, prompt: tokens, queue, .. } = request;
        server.engine.embed(ValidInput { id, tenant, tokens, queue }).expect("room")
    };
    let generation = server.submit(request(1));
    let [bad, good] = [embed(&server, with_token(2, 2)), embed(&server, request(3))];
    gate.open();
    let info = error(bad.reader.log());
    assert!(info.kind == ErrorKind::Internal && info.message.contains("no states"), "{info:?}");
    let solo = Server::start(EngineConfig::default(), StubConfig::default());
    assert_eq!(transcript(&generation), transcript(&solo.submit(request(1))));
    let vector = |embedding: Embedding| {
        assert_eq!(transcript(embedding.reader.log()), (String::new(), FinishReason::Stop, 0));
        embedding.take().expect("it was told as done")
    };
    assert_eq!(vector(good), vector(embed(&solo, request(3))));
    assert_eq!(server.metrics.worker_restarts.get(), 0);
}

#[test]
fn a_row_of_nan_ends_its_own_sequence_only() {
    let faults = StubFaults { nan_on_token: Some(2), ..StubFaults::default() };
    let gate = StubGate::new();
    let stub = StubConfig { faults, gate: Some(gate.clone()), ..StubConfig::default() };
    let server = Server::start(EngineConfig::default(), stub);
    let logs = [request(1), with_token(2, 2), request(3)].map(|r| server.submit(r));
    gate.open();
    let info = error(&logs[1]);
    assert_eq!(info.kind, ErrorKind::Internal);
    assert!(info.message.contains("NaN"), "{}", info.message);
    let solo = Server::start(EngineConfig::default(), StubConfig::default());
    for (log, number) in [(&logs[0], 1), (&logs[2], 3)] {
        assert_eq!(transcript(log), transcript(&solo.submit(request(number))));
    }
    assert_eq!(server.metrics.worker_restarts.get(), 0);
}

/// The prompts of one key took the whole of each step, so that another key's request began when they were done.
#[test]
fn a_newcomer_s_first_token_does_not_wait_for_another_owner_s_long_prompts() {
    let gate = StubGate::new();
    let stub = StubConfig { gate: Some(gate.clone()), num_blocks: 4096, ..StubConfig::default() };
    let server = Server::start(EngineConfig { max_num_batched_tokens: 128, ..EngineConfig::default() }, stub);
    let long = |n: u32| ValidRequest { prompt: vec![97 + n; 3000], tenant: Tenant(1), max_tokens: 1, ..request(n) };
    let many: Vec<_> = (0..8).map(|n| server.submit(long(n))).collect();
    gate.allow(2);
    gate.wait_arrived(3);
    let other = server.submit(ValidRequest { tenant: Tenant(2), ..request(20) });
    gate.allow(8);
    gate.wait_arrived(11);
    assert!(other.len() > 2, "no token in eight steps: {:?}", other.status());
    gate.open();
    transcript(&other);
    many.iter().for_each(|log| drop(transcript(log)));
}

#[test]
fn draining_finishes_what_is_here_and_refuses_the_rest() {
    let gate = StubGate::new();
    let server =
        Server::start(EngineConfig::default(), StubConfig { gate: Some(gate.clone()), ..StubConfig::default() });
    let log = server.submit(request(0));
    server.engine.drain();
    assert!(!server.engine.is_ready() && !server.engine.is_idle());
    assert_eq!(server.try_submit(request(1)).expect_err("draining").kind(), ErrorKind::Unavailable);
    gate.open();
    transcript(&log);
    assert!(server.engine.is_idle());
}

#[test]
fn a_shutdown_ends_running_and_waiting_requests_with_an_error_event() {
    let gate = StubGate::new();
    let config = EngineConfig { max_num_seqs: 1, ..EngineConfig::default() };
    let server = Server::start(config, StubConfig { gate: Some(gate.clone()), ..StubConfig::default() });
    let logs = [server.submit(endless(0)), server.submit(endless(1))];
    gate.wait_arrived(1);
    gate.open();
    server.engine.shutdown("going down for tests");
    for log in &logs {
        assert!(log.is_finished(), "ended before shutdown returned");
        let info = error(log);
        assert_eq!((info.kind, info.message.as_str()), (ErrorKind::Unavailable, "going down for tests"));
    }
    assert_eq!(server.gauges(), (0, 0, 0));
    assert_eq!(server.metrics.kv_blocks_total.get(), 0);
    assert_eq!(server.try_submit(request(0)).expect_err("down").kind(), ErrorKind::Unavailable);
    server.engine.shutdown("again");
}

#[test]
fn a_hung_step_shows_in_readiness_and_does_not_hang_the_shutdown() {
    let gate = StubGate::new();
    let config = EngineConfig {
        stall_time_max: Duration::from_millis(5),
        shutdown_time_max: Duration::from_millis(5),
        ..EngineConfig::default()
    };
    let faults = StubFaults { silent_from_step: Some(0), ..StubFaults::default() };
    let server = Server::start(config, StubConfig { gate: Some(gate.clone()), faults, ..StubConfig::default() });
    assert!(server.engine.is_ready());
    let log = server.submit(endless(0));
    gate.wait_arrived(1);
    wait_for("the engine to be not ready", || !server.engine.is_ready());
    server.engine.shutdown("stuck");
    gate.open();
    assert_eq!(error(&log).message, "stuck");
}

#[test]
fn an_equal_beginning_is_computed_once_per_tenant() {
    let server = Server::start(EngineConfig::default(), StubConfig::default());
    let of = |tenant, id| ValidRequest { tenant: Tenant(tenant), id: StreamId(id), ..request(20) };
    let cached = |log: &Arc<StreamLog>| match events(log)[1] {
        Event::Started { cached_tokens, .. } => cached_tokens,
        ref other => panic!("{other:?}"),
    };
    let first = server.submit(of(1, 1));
    assert_eq!(cached(&first), 0);
    let second = server.submit(of(1, 2));
    assert_eq!(cached(&second), 128);
    assert_eq!(transcript(&second).0, transcript(&first).0);
    let foreign = server.submit(of(2, 3));
    assert_eq!(cached(&foreign), 0, "another tenant's blocks are not seen");
}

/// Submits, cancels at random moments of a stream's life, from several threads at once.
#[test]
fn a_thousand_cancellations_from_many_threads_leave_nothing_behind() {
    let config = EngineConfig { num_workers: 2, max_num_seqs: 8, ..EngineConfig::default() };
    let server = Server::start(config, StubConfig { num_blocks: 64, ..StubConfig::default() });
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let server = &server;
            scope.spawn(move || {
                for i in 0..250 {
                    let number = thread * 1000 + i;
                    let random = tallow::sampling::random_u64(1, u64::from(number));
                    let base = endless((random % 10) as u32);
                    let log =
                        server.submit(ValidRequest { id: StreamId(u128::from(number)), max_tokens: 1800, ..base });
                    // 1 is queued, 2 started, more is decoding; a stream may also end before.
                    let num_events = 1 + (random >> 32) as usize % 20;
                    wait_for("events", || log.len() >= num_events || log.is_finished());
                    log.cancel(CancelCause::Requested);
                    wait_for("the end", || log.is_finished());
                }
            });
        }
    });
    let m = &server.metrics;
    // A stream may finish while its thread waits for a core.
    assert_eq!((m.requests_cancelled.get() + m.requests_done.get(), m.requests_failed.get()), (1000, 0));
    assert!(m.requests_cancelled.get() > 0);
    assert_eq!(server.gauges(), (0, 0, 0));
    assert!(server.engine.is_idle());
}
