//! What becomes of requests whose worker is lost: the cause ends, all others go on with the same text.

use super::*;

/// A server whose first model has these faults; its successors are fine.
fn failing_once(faults: StubFaults, gate: Option<Arc<StubGate>>, config: EngineConfig) -> Server {
    let num_made = AtomicUsize::new(0);
    let factory: ModelFactory = Arc::new(move || {
        let is_first = num_made.fetch_add(1, Ordering::SeqCst) == 0;
        let faults = if is_first { faults.clone() } else { StubFaults::default() };
        let gate = gate.clone().filter(|_| is_first);
        Ok(Box::new(StubModel::new(StubConfig { faults, gate, ..StubConfig::default() })))
    });
    Server::with_factory(config, factory).expect("the stub loads")
}

fn brisk() -> EngineConfig {
    EngineConfig { worker_backoff_min: Duration::from_millis(1), ..EngineConfig::default() }
}

#[track_caller]
pub(super) fn solo(request: ValidRequest) -> (String, FinishReason, usize) {
    transcript(&Server::start(EngineConfig::default(), StubConfig::default()).submit(request))
}

#[test]
fn a_panic_ends_the_request_that_caused_it_and_the_others_go_on_with_the_same_text() {
    let faults = StubFaults { panic_on_token: Some(1), ..StubFaults::default() };
    let gate = StubGate::new();
    let server = Server::start(brisk(), StubConfig { faults, gate: Some(gate.clone()), ..StubConfig::default() });
    let neighbours = [server.submit(request(4)), server.submit(endless(9))];
    gate.allow(3);
    gate.wait_arrived(4);
    let bad = server.submit(with_token(1, 1));
    gate.open();
    let info = error(&bad);
    assert_eq!(info.kind, ErrorKind::Internal);
    assert!(info.message.contains("told to panic on token 1, and this request was the cause"), "{}", info.message);
    for (log, expect) in neighbours.iter().zip([request(4), endless(9)]) {
        assert_eq!(transcript(log), solo(expect));
    }
    let m = &server.metrics;
    assert_eq!((m.worker_restarts.get(), m.requests_failed.get(), m.requests_taken_over.get()), (1, 1, 2));
    assert_eq!((m.requests_accepted.get(), m.requests_done.get()), (3, 2));
    assert_eq!(server.gauges(), (0, 0, 0));
    assert!(server.engine.is_ready() && server.engine.is_idle());
}

/// The stub panics on prompts alone here, so several of them begin in one step and none can be named.
#[test]
fn of_several_suspects_each_begins_alone_until_the_cause_is_found() {
    let faults = StubFaults { panic_on_token: Some(1), ..StubFaults::default() };
    let gate = StubGate::new();
    let server = Server::start(brisk(), StubConfig { faults, gate: Some(gate.clone()), ..StubConfig::default() });
    let logs: Vec<_> = (0..6).map(|n| server.submit(if n == 3 { with_token(n, 1) } else { request(n) })).collect();
    gate.open();
    for (n, log) in logs.iter().enumerate() {
        match n {
            3 => assert!(error(log).message.ends_with("this request was the cause")),
            n => assert_eq!(transcript(log), solo(request(n as u32)), "request {n}"),
        }
    }
    assert_eq!(server.metrics.requests_failed.get(), 1);
}

#[test]
fn a_device_that_fails_once_costs_nobody_its_text() {
    let server = failing_once(StubFaults { error_at_step: Some(5), ..StubFaults::default() }, None, brisk());
    let logs: Vec<_> = (0..8).map(|n| server.submit(request(n))).collect();
    for (n, log) in logs.iter().enumerate() {
        assert_eq!(transcript(log), solo(request(n as u32)), "request {n}");
    }
    assert_eq!((server.metrics.worker_restarts.get(), server.metrics.requests_failed.get()), (1, 0));
}

#[test]
fn a_request_that_loses_worker_after_worker_ends() {
    let faults = StubFaults { error_at_step: Some(2), ..StubFaults::default() };
    let server = Server::start(brisk(), StubConfig { faults, ..StubConfig::default() });
    assert_eq!(error(&server.submit(endless(0))).kind, ErrorKind::Internal);
    assert_eq!(server.metrics.worker_restarts.get(), 2, "once it has come back, it is not settled after two tokens");
}

#[test]
fn what_a_hung_worker_had_goes_on_with_another_and_can_still_be_cancelled() {
    let gate = StubGate::new();
    let config = EngineConfig { step_time_max: Duration::from_millis(20), ..brisk() };
    let faults = StubFaults { silent_from_step: Some(0), ..StubFaults::default() };
    let server = failing_once(faults, Some(gate.clone()), config);
    let logs = [server.submit(request(4)), server.submit(request(5)), server.submit(endless(6))];
    gate.allow(6);
    gate.wait_arrived(7);
    logs[2].cancel(CancelCause::Requested);
    wait_for("the successor", || {
        server.engine.sweep();
        server.metrics.worker_restarts.get() == 1
    });
    for (log, number) in logs[..2].iter().zip([4, 5]) {
        assert_eq!(transcript(log), solo(request(number)));
    }
    assert_eq!(error(&logs[2]).kind, ErrorKind::Cancelled);
    // What the hung one does when it wakes reaches nobody.
    gate.open();
    assert_eq!(transcript(&server.submit(request(7))), solo(request(7)));
    let m = &server.metrics;
    assert_eq!((m.requests_done.get(), m.requests_failed.get(), m.requests_cancelled.get()), (3, 0, 1));
    assert_eq!(server.gauges(), (0, 0, 0));
    assert!(server.engine.is_idle());
}

/// The stub panics when the token that this text draws comes to be computed: never while a prompt is, so other requests begin
/// beside it all the time.
#[test]
fn a_request_that_panics_while_it_decodes_ends_and_newcomers_do_not_end_for_it() {
    let text = solo(request(9)).0;
    // A character of this text that no prompt and no other text here has.
    let others: String = (10..16).map(|n| solo(request(n)).0).collect();
    let prompts: Vec<TokenId> = (9..16).flat_map(|n| request(n).prompt).collect();
    let rare = text.bytes().skip(8).find(|b| !others.as_bytes().contains(b) && !prompts.contains(&TokenId::from(*b)));
    let faults = StubFaults { panic_on_token: Some(rare.expect("such a character").into()), ..StubFaults::default() };
    let gate = StubGate::new();
    let server = Server::start(brisk(), StubConfig { faults, gate: Some(gate.clone()), ..StubConfig::default() });
    let bad = server.submit(request(9));
    let mut logs = Vec::new();
    for (n, num_steps) in (10..16).zip(1..) {
        gate.wait_arrived(num_steps);
        logs.push((n, server.submit(request(n))));
        gate.allow(1);
    }
    gate.open();
    assert!(error(&bad).message.ends_with("this request was the cause"));
    for (n, log) in &logs {
        assert_eq!(transcript(log), solo(request(*n)), "request {n}");
    }
    assert_eq!((server.metrics.worker_restarts.get(), server.metrics.requests_failed.get()), (2, 1));
}

#[test]
fn with_two_workers_a_poisonous_prompt_among_many_ends_alone() {
    let faults = StubFaults { panic_on_token: Some(1), ..StubFaults::default() };
    let gate = StubGate::new();
    let stub = StubConfig { faults, gate: Some(gate.clone()), ..StubConfig::default() };
    let server = Server::start(EngineConfig { num_workers: 2, ..brisk() }, stub);
    let logs: Vec<_> = (0..24).map(|n| server.submit(if n == 13 { with_token(n, 1) } else { request(n) })).collect();
    gate.open();
    for (n, log) in logs.iter().enumerate() {
        match n {
            13 => assert!(error(log).message.ends_with("this request was the cause")),
            n => assert_eq!(transcript(log), solo(request(n as u32)), "request {n}"),
        }
    }
    let m = &server.metrics;
    assert_eq!((m.requests_failed.get(), m.requests_done.get(), m.requests_accepted.get()), (1, 23, 24));
}

/// Two failures of the device, with many streams under way: they all go on, and so do requests that come later.
#[test]
fn failures_of_the_device_do_not_make_the_server_serial() {
    let num_made = AtomicUsize::new(0);
    let factory: ModelFactory = Arc::new(move || {
        // The second comes when all that came back are settled.
        let error_at_step = [Some(200), Some(1200), None][num_made.fetch_add(1, Ordering::SeqCst).min(2)];
        let faults = StubFaults { error_at_step, ..StubFaults::default() };
        Ok(Box::new(StubModel::new(StubConfig { faults, num_blocks: 4096, ..StubConfig::default() })))
    });
    let server = Server::with_factory(brisk(), factory).expect("the stub loads");
    let logs: Vec<_> = (0..16).map(|n| server.submit(endless(n))).collect();
    wait_for("two failures", || server.metrics.worker_restarts.get() == 2);
    let (steps, sequences) = (server.metrics.steps.get(), server.metrics.step_sequences.get());
    let late = server.submit(request(20));
    assert_eq!(transcript(&late), solo(request(20)));
    for (n, log) in logs.iter().enumerate() {
        assert_eq!(transcript(log), solo(endless(n as u32)), "request {n}");
    }
    let (steps, sequences) = (server.metrics.steps.get() - steps, server.metrics.step_sequences.get() - sequences);
    assert!(sequences > 4 * steps, "{sequences} parts in {steps} steps: the batch has not filled again");
    assert_eq!(server.metrics.requests_failed.get(), 0);
}

/// It was looked for in the queue while it was nowhere, and would have waited for its turn.
#[test]
fn what_was_cancelled_while_its_worker_hung_ends_with_the_worker_though_there_is_no_other() {
    let gate = StubGate::new();
    let step_time_max = Duration::from_millis(20);
    let config = EngineConfig { step_time_max, workers_abandoned_max: 0, shutdown_time_max: Duration::MAX, ..brisk() };
    let faults = StubFaults { silent_from_step: Some(0), ..StubFaults::default() };
    let server = failing_once(faults, Some(gate.clone()), config);
    let logs = [server.submit(request(4)), server.submit(request(5))];
    gate.allow(6);
    gate.wait_arrived(7);
    logs[0].cancel(CancelCause::Requested);
    wait_for("the worker to be given up", || {
        server.engine.sweep();
        server.metrics.workers_abandoned.get() == 1
    });
    let info = error(&logs[0]);
    assert_eq!(info.kind, ErrorKind::Cancelled);
    assert!(info.usage.completion_tokens > 0 && info.usage.prompt_tokens == request(4).prompt.len(), "{info:?}");
    assert!(!logs[1].is_finished() && server.engine.queue().depth().0 == 1, "the other one waits");
    // Nobody counts it out but the shutdown, which would wait for it.
    gate.open();
    server.engine.shutdown("the end");
    assert_eq!(error(&logs[1]).message, "the end");
    assert!(server.engine.is_idle());
}
