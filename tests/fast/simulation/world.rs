//! Plays a schedule step by step, and checks after every step what must always hold, and at the end what must have
//! come of each request.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use tallow::cache::{BLOCK_SIZE, BlockId, HashChain};
use tallow::engine::MaskWait;
use tallow::engine::core::{EngineCore, Step};
use tallow::engine::parts::CoreParts;
use tallow::engine::queue::{Queue, QueueLimits};
use tallow::engine::scheduler::SchedulerLimits;
use tallow::error::ErrorKind;
use tallow::metrics::Metrics;
use tallow::model::Model;
use tallow::model::stub::{StubConfig, StubFaults, StubModel};
use tallow::protocol::{ErrorInfo, Event, FinishReason, Tenant, TokenEvent, TokenId, Usage, ValidRequest, WEIGHT_MAX};
use tallow::sampling::grammar::{Grammar, GrammarCompiler, GrammarLimits};
use tallow::stream::{CancelCause, StreamLog};
use tallow::text::Tokenizer;

use super::audience::Audience;
use super::fairness::Fairness;
use super::model::{Mutation, Observed, lock};
use super::schedule::{NAN_TOKEN, PANIC_TOKEN, Random, Schedule};

/// More steps than any schedule needs; one that takes more stands still.
const NUM_STEPS_MAX: usize = 5000;

/// What happened, over all schedules: a simulation in which nothing happens proves nothing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Coverage(HashMap<&'static str, u64>);

impl Coverage {
    fn count(&mut self, what: &'static str, n: u64) {
        *self.0.entry(what).or_default() += n;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, n) in &other.0 {
            self.count(what, *n);
        }
    }

    pub(crate) fn count_of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    pub(crate) fn assert_everything_happened(&self) {
        let all = [
            "cancelled in decode",
            "cancelled in prefill",
            "cancelled in the queue",
            "ended as the cause",
            "ended by length",
            "ended by stop",
            "fair preemptions",
            "forced tokens",
            "forgotten",
            "left for good",
            "nan",
            "no room in the table",
            "outlingered",
            "owed a place",
            "panics",
            "passed as often as may be",
            "places told again",
            "preemptions",
            "prefix hits",
            "queue time-outs",
            "readers",
            "refused",
            "resumed",
            "shutdowns",
            "strangers",
            "taken over",
            "told that it expired",
        ];
        // A token that makes the stub panic may come up in a text while a newcomer's prompt is computed; that is rare.
        assert!(100 * self.count_of("ended for another's panic") <= self.count_of("panics"), "{self:?}");
        for what in all {
            assert!(self.count_of(what) >= 10, "hardly ever happened: {what}: {self:?}");
        }
    }
}

pub(crate) struct World {
    schedule: Schedule,
    mutation: Option<Mutation>,
    metrics: Arc<Metrics>,
    parts: CoreParts,
    time_ms: Arc<AtomicU64>,
    workers: Vec<Worker>,
    /// By index of the schedule's requests; `None` until it came, or if it was refused.
    logs: Vec<Option<Arc<StreamLog>>>,
    /// Requests that ended as the cause of a panic.
    in_panic: Vec<bool>,
    audience: Audience,
    fairness: Fairness,
    random: Random,
    seen: Coverage,
}

struct Worker {
    core: EngineCore,
    stub: Arc<Mutex<StubModel>>,
}

impl World {
    pub(crate) fn new(schedule: Schedule, mutation: Option<Mutation>) -> Self {
        let (metrics, time_ms) = (Arc::new(Metrics::default()), Arc::new(AtomicU64::new(0)));
        let parts = parts(schedule.limits, schedule.queue, metrics.clone(), time_ms.clone());
        let parts = CoreParts { mask_wait: MaskWait::Drawn(schedule.seed), ..parts };
        let workers = (0..schedule.num_workers).map(|_| worker(&schedule, &parts, mutation)).collect();
        let num_requests = schedule.requests.len();
        Self {
            mutation,
            metrics,
            audience: Audience::new(schedule.seed, time_ms.clone()),
            fairness: Fairness::default(),
            parts,
            time_ms,
            workers,
            logs: vec![None; num_requests],
            in_panic: vec![false; num_requests],
            random: Random::new(!schedule.seed),
            seen: Coverage::default(),
            schedule,
        }
    }

    /// Plays the schedule to its end.
    pub(crate) fn run(mut self) -> Coverage {
        for step in 0.. {
            assert!(step < NUM_STEPS_MAX, "stands still after {step} steps");
            self.time_ms.fetch_add(1, Ordering::Relaxed);
            self.happen(step);
            self.audience.act();
            if self.random.one_in(4) {
                self.parts.queue.sweep();
            }
            let which = self.random.pick(0..self.workers.len());
            let outcome = self.step(which);
            self.check();
            let all_came = self.schedule.requests.iter().all(|a| a.at <= step);
            if outcome == Step::Stopped || (all_came && self.parts.queue.is_idle()) {
                break;
            }
        }
        self.finish()
    }

    /// What the schedule says for the time before this step.
    fn happen(&mut self, step: usize) {
        for index in 0..self.schedule.requests.len() {
            let arrival = &self.schedule.requests[index];
            if arrival.at == step {
                self.submit(index);
            }
            let arrival = &self.schedule.requests[index];
            let Some(log) = &self.logs[index] else { continue };
            if arrival.cancel_at.is_some_and(|at| at.max(arrival.at) == step) && log.cancel(CancelCause::Requested) {
                let what = match log.len() {
                    _ if log.is_finished() => "cancelled in the queue",
                    _ if !has_token(log) => "cancelled in prefill",
                    _ => "cancelled in decode",
                };
                self.seen.count(what, 1);
            }
        }
        if self.schedule.stop_at == Some(step) {
            self.seen.count("shutdowns", 1);
            self.parts.queue.stop("the end");
        }
    }

    fn submit(&mut self, index: usize) {
        let mut request = self.schedule.requests[index].request.clone();
        match self.mutation {
            Some(Mutation::SharedTenants) => request.tenant = Tenant(0),
            Some(Mutation::FalseWeight) if request.tenant == Tenant(0) => request.queue.weight = WEIGHT_MAX,
            _ => {}
        }
        let Some(log) = self.audience.open(request.id, request.tenant) else { return };
        let chain = self.schedule.prefix_cache.then(|| HashChain::new(request.tenant, &request.prompt));
        let grammar = grammar(&request);
        let submitted = self.parts.queue.submit_constrained(request, chain, grammar, &log);
        self.audience.settle(&log, submitted.is_ok());
        match submitted {
            Ok(()) => self.logs[index] = Some(log),
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable), "{e:?}");
                assert!(e.kind() != ErrorKind::Overloaded || e.retry_after_ms().is_some_and(|ms| ms > 0));
                assert!(log.is_empty(), "a refused request left a trace");
                self.seen.count("refused", 1);
            }
        }
    }

    fn step(&mut self, which: usize) -> Step {
        let scheduler = self.workers[which].core.scheduler();
        let owed = self.fairness.owed(which, &self.schedule, scheduler, &self.logs);
        let core = &mut self.workers[which].core;
        match catch_unwind(AssertUnwindSafe(|| core.step())) {
            Ok(step) => {
                let step = step.expect("the stub's device does not fail here");
                if step == Step::Stopped {
                    // The others learn of it in their next step.
                    for other in &mut self.workers {
                        assert_eq!(other.core.step(), Ok(Step::Stopped));
                    }
                }
                self.fairness.check(which, &owed, &self.schedule, &self.logs);
                step
            }
            Err(panic) => {
                let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                assert!(message.starts_with("the stub was told to"), "a real panic: {message}");
                self.restart(which);
                Step::Ran
            }
        }
    }

    fn restart(&mut self, which: usize) {
        self.seen.count("panics", 1);
        let before: Vec<bool> = self.logs.iter().flatten().map(|log| log.is_finished()).collect();
        self.workers[which].core.hand_over("the worker failed");
        self.workers[which] = worker(&self.schedule, &self.parts, self.mutation);
        let present = (0..self.logs.len()).filter(|&i| self.logs[i].is_some());
        for (index, was_finished) in present.zip(before) {
            let is_finished = self.logs[index].as_ref().is_some_and(|log| log.is_finished());
            self.in_panic[index] |= is_finished && !was_finished;
        }
    }

    /// What holds after every step.
    fn check(&self) {
        let (mut running, mut waiting, mut blocks) = (0, self.parts.queue.depth().0, 0);
        for Worker { core, stub } in &self.workers {
            let scheduler = core.scheduler();
            scheduler.check();
            assert!(scheduler.num_running() <= self.schedule.limits.max_num_seqs);
            running += scheduler.num_running();
            waiting += scheduler.num_waiting();
            blocks += scheduler.pool().num_referenced();
            let mut stub = lock(stub);
            for block in (0..self.schedule.num_blocks as u32).map(BlockId) {
                if scheduler.pool().is_meaningless(block) {
                    stub.poison(block);
                }
            }
        }
        let m = &self.metrics;
        let gauges = [m.num_running.get(), m.num_waiting.get(), m.kv_blocks_used.get()];
        if !self.is_stopped() {
            assert_eq!(gauges, [running as i64, waiting as i64, blocks as i64], "gauges");
        }
    }

    fn is_stopped(&self) -> bool {
        !self.parts.queue.is_open()
    }

    fn finish(mut self) -> Coverage {
        assert!(self.parts.queue.is_idle(), "a request without an end");
        let m = &self.metrics;
        let ended = m.requests_done.get() + m.requests_cancelled.get() + m.requests_failed.get();
        assert_eq!(m.requests_accepted.get(), ended, "every accepted request is counted once");
        assert_eq!([m.num_running.get(), m.num_waiting.get(), m.kv_blocks_used.get()], [0; 3], "all is free");
        self.seen.count("preemptions", m.preemptions.get());
        self.seen.count("fair preemptions", m.fair_preemptions.get());
        self.seen.count("forced tokens", m.forced_tokens.get());
        self.seen.count("taken over", m.requests_taken_over.get());
        self.audience.finish();
        let seen = std::mem::take(&mut self.audience.seen).into_iter().chain(std::mem::take(&mut self.fairness.seen));
        seen.for_each(|what| self.seen.count(what, 1));
        let mut solo = Solo::new();
        let mut transcripts = Vec::new();
        for index in 0..self.logs.len() {
            let Some(log) = self.logs[index].clone() else { continue };
            let transcript = Transcript::read(&log);
            self.seen.count("places told again", transcript.num_places_told as u64 - 1);
            self.judge(index, &transcript, &solo.run(&self.schedule.requests[index].request));
            transcripts.push((index, transcript));
        }
        self.check_prefix_hits(&transcripts);
        self.seen
    }

    /// Whether a request ended as it may, given what happened to it.
    fn judge(&mut self, index: usize, got: &Transcript, solo: &Transcript) {
        let arrival = &self.schedule.requests[index];
        let prompt = &arrival.request.prompt;
        let is_prefix = solo.tokens.starts_with(&got.tokens);
        assert!(is_prefix, "request {index} differs from its solo run:\n{got:?}\n{solo:?}");
        match &got.end {
            Event::Done { finish_reason, usage, .. } => {
                let Event::Done { finish_reason: solo_reason, usage: solo_usage, .. } = &solo.end else {
                    panic!("request {index} ended well, alone it did not: {solo:?}")
                };
                let spent = |u: &Usage| (u.prompt_tokens, u.completion_tokens);
                assert_eq!(got.tokens, solo.tokens, "request {index} differs from its solo run");
                assert_eq!((finish_reason, spent(usage)), (solo_reason, spent(solo_usage)), "request {index}");
                let what = if *finish_reason == FinishReason::Stop { "ended by stop" } else { "ended by length" };
                self.seen.count(what, 1);
            }
            Event::Error(info) => match info.kind {
                ErrorKind::Cancelled => {
                    let log = self.logs[index].as_ref().expect("it was accepted");
                    let by_whom = arrival.cancel_at.is_some() || self.audience.has_left(log);
                    assert!(by_whom, "request {index} was not cancelled");
                }
                ErrorKind::QueueTimeout => {
                    assert!(arrival.request.queue.timeout_ms.is_some(), "request {index} was willing to wait");
                    assert!(got.tokens.is_empty() && !got.is_started, "request {index} was not waiting any more");
                    self.seen.count("queue time-outs", 1);
                }
                ErrorKind::Unavailable => assert!(self.is_stopped(), "request {index} was ended without a shutdown"),
                ErrorKind::Internal if info.message.contains("NaN") => {
                    assert!(holds(NAN_TOKEN, prompt, got), "request {index} has no NaN of its own");
                    self.seen.count("nan", 1);
                }
                ErrorKind::Internal => {
                    assert!(self.in_panic[index], "request {index} failed without a panic");
                    let is_cause = holds(PANIC_TOKEN, prompt, got);
                    self.seen.count(if is_cause { "ended as the cause" } else { "ended for another's panic" }, 1);
                }
                kind => panic!("request {index} ended with {kind:?}"),
            },
            other => panic!("request {index} ended with {other:?}"),
        }
        assert!(!prompt.contains(&PANIC_TOKEN) || !matches!(got.end, Event::Done { .. }), "the stub did not panic");
    }

    /// What came from the cache must have been computed for the same tenant.
    fn check_prefix_hits(&mut self, transcripts: &[(usize, Transcript)]) {
        let request = |index: usize| &self.schedule.requests[index].request;
        let mut num_hits = 0;
        for (index, transcript) in transcripts.iter().filter(|(_, t)| t.cached_tokens > 0) {
            assert!(self.schedule.prefix_cache && transcript.cached_tokens % BLOCK_SIZE == 0);
            let beginning = &request(*index).prompt[..transcript.cached_tokens];
            assert!(beginning.len() < request(*index).prompt.len(), "the last token is always computed");
            let has_it = |(other, t): &(usize, Transcript)| {
                let mut all = request(*other).prompt.clone();
                all.extend(t.tokens.iter().flat_map(|e| &e.tokens));
                // What a stop string cut off was computed, and nobody was told of it.
                let num_computed = request(*other).prompt.len() + t.num_completion_tokens();
                let num_told = all.len().min(beginning.len());
                other != index
                    && request(*other).tenant == request(*index).tenant
                    && all.starts_with(&beginning[..num_told])
                    && num_computed >= beginning.len()
            };
            assert!(transcripts.iter().any(has_it), "request {index} was given a stranger's blocks");
            num_hits += 1;
        }
        self.seen.count("prefix hits", num_hits);
    }
}

/// Whether a request has `token`: in its prompt, or in its text, as half a character may be followed by any byte.
fn holds(token: TokenId, prompt: &[TokenId], got: &Transcript) -> bool {
    prompt.iter().chain(got.tokens.iter().flat_map(|e| &e.tokens)).any(|t| *t == token)
}

/// A stream as its reader sees it.
#[derive(Debug, Clone)]
struct Transcript {
    is_started: bool,
    num_places_told: usize,
    cached_tokens: usize,
    tokens: Vec<TokenEvent>,
    end: Event,
}

impl Transcript {
    fn num_completion_tokens(&self) -> usize {
        match &self.end {
            Event::Done { usage, .. } | Event::Error(ErrorInfo { usage, .. }) => usage.completion_tokens,
            other => panic!("it ended with {other:?}"),
        }
    }

    /// Checks the order of events on the way.
    fn read(log: &Arc<StreamLog>) -> Self {
        let mut reader = log.reader(0);
        let mut events = Vec::new();
        while let Some((seq, event)) = reader.try_next() {
            assert_eq!(seq, events.len() as u64, "ids are dense");
            events.push(event);
        }
        let end = events.pop().expect("an accepted request has events");
        assert!(end.is_terminal(), "the last event is {end:?}");
        let mut events = events.into_iter();
        let mut num_places_told = 0;
        let mut next = events.next();
        while let Some(Event::Queued { .. }) = next {
            num_places_told += 1;
            next = events.next();
        }
        assert!(num_places_told > 0, "the first event is Queued");
        let is_started = next.is_some();
        let cached_tokens = match next {
            Some(Event::Started { cached_tokens, .. }) => cached_tokens,
            None => 0,
            Some(other) => panic!("after Queued came {other:?}"),
        };
        let token = |event| match event {
            Event::Token(token) => token,
            other => panic!("{other:?} among the tokens"),
        };
        let tokens: Vec<TokenEvent> = events.map(token).collect();
        assert!(tokens.iter().all(|t| !t.text.is_empty()), "an event without text");
        Self { is_started, num_places_told, cached_tokens, tokens, end }
    }
}

/// An engine that runs one request at a time, with room for everything and without a cache.
struct Solo {
    queue: Arc<Queue>,
    core: EngineCore,
}

impl Solo {
    fn new() -> Self {
        let limits = SchedulerLimits {
            max_num_seqs: 1,
            max_num_batched_tokens: 512,
            prefill_tokens_per_step_max: 512,
            attention_span: usize::MAX,
            passed_max: 1,
        };
        let queue = QueueLimits {
            requests_max: 1,
            tokens_max: 1,
            priority_step_tokens: 1,
            note_interval: Duration::from_secs(1),
        };
        let parts = parts(limits, queue, Arc::new(Metrics::default()), Arc::new(AtomicU64::new(0)));
        // The panic is the model's, not the text's: alone, the request shows what it would have said. Its own text may have
        // the token too, for half a character may be followed by any byte.
        let mut config = stub_config(16);
        config.faults.panic_on_token = None;
        Self { queue: parts.queue.clone(), core: EngineCore::new(Box::new(StubModel::new(config)), parts) }
    }

    fn run(&mut self, request: &ValidRequest) -> Transcript {
        let mut request = request.clone();
        request.queue.timeout_ms = None;
        let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
        let grammar = grammar(&request);
        self.queue.submit_constrained(request, None, grammar, &log).expect("room for one");
        while !log.is_finished() {
            self.core.step().expect("no fault");
        }
        Transcript::read(&log)
    }
}

fn parts(limits: SchedulerLimits, queue: QueueLimits, metrics: Arc<Metrics>, time_ms: Arc<AtomicU64>) -> CoreParts {
    let clock = Arc::new(move || Duration::from_millis(time_ms.load(Ordering::Relaxed)));
    CoreParts {
        limits,
        queue: Queue::new(queue, metrics.clone(), clock),
        tokenizer: Arc::new(Tokenizer::byte_level()),
        end_of_generation: Arc::new([256]),
        metrics,
        mask_wait: MaskWait::Grace,
    }
}

fn worker(schedule: &Schedule, parts: &CoreParts, mutation: Option<Mutation>) -> Worker {
    let stub = StubModel::new(StubConfig { poison: true, ..stub_config(schedule.num_blocks) });
    let (spec, stub) = (stub.spec().clone(), Arc::new(Mutex::new(stub)));
    let observed = Observed { stub: stub.clone(), spec, limits: schedule.limits, mutation, num_steps: 0 };
    Worker { core: EngineCore::new(Box::new(observed), parts.clone()), stub }
}

fn stub_config(num_blocks: usize) -> StubConfig {
    let faults =
        StubFaults { panic_on_token: Some(PANIC_TOKEN), nan_on_token: Some(NAN_TOKEN), ..StubFaults::default() };
    StubConfig { num_blocks, eos_probability: 0.01, multibyte_probability: 0.1, faults, ..StubConfig::default() }
}

/// The request's constraint, compiled once for all schedules.
fn grammar(request: &ValidRequest) -> Option<Arc<Grammar>> {
    static COMPILER: LazyLock<Arc<GrammarCompiler>> = LazyLock::new(|| {
        let limits = GrammarLimits { compile_time_max: Duration::from_secs(60), ..GrammarLimits::default() };
        GrammarCompiler::new(Arc::new(Tokenizer::byte_level()), limits, Arc::default())
    });
    request.constraint.as_ref().map(|constraint| COMPILER.compile(constraint).expect("it compiles"))
}

fn has_token(log: &Arc<StreamLog>) -> bool {
    let mut reader = log.reader(0);
    std::iter::from_fn(|| reader.try_next()).any(|(_, event)| matches!(event, Event::Token(_)))
}
