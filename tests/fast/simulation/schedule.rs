//! One random schedule: a small engine, some requests, and what happens to them when.

use std::time::Duration;

use tallow::engine::queue::QueueLimits;
use tallow::engine::scheduler::{Scheduler, SchedulerLimits};
use tallow::protocol::{
    Constraint, OnDisconnect, QueueTerms, SamplingParams, StopParams, StreamId, Tenant, TokenId, ValidRequest,
};
use tallow::sampling::random_u64;

/// In a prompt, makes the stub panic when it computes it.
pub(crate) const PANIC_TOKEN: TokenId = 1;
/// In a prompt, makes the sequence's logits NaN.
pub(crate) const NAN_TOKEN: TokenId = 2;

/// The engine's size and everything that will happen to it.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub seed: u64,
    pub limits: SchedulerLimits,
    pub queue: QueueLimits,
    pub num_blocks: usize,
    pub num_workers: usize,
    pub prefix_cache: bool,
    /// By owner.
    pub weights: [u32; 3],
    pub requests: Vec<Arrival>,
    /// The engine is stopped before this step.
    pub stop_at: Option<usize>,
}

/// A request and its fate.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub request: ValidRequest,
    /// Before this step.
    pub at: usize,
    /// Before this step; before its arrival where that is later.
    pub cancel_at: Option<usize>,
}

/// Random numbers from a seed.
pub(crate) struct Random {
    seed: u64,
    position: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    /// From `range`.
    pub(crate) fn pick(&mut self, range: std::ops::Range<usize>) -> usize {
        self.position += 1;
        range.start + (random_u64(self.seed, self.position) % (range.end - range.start) as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.pick(0..n) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.pick(0..choices.len())]
    }
}

impl Schedule {
    pub(crate) fn random(seed: u64) -> Self {
        let mut r = Random::new(seed);
        let max_num_seqs = r.pick(1..7);
        let limits = SchedulerLimits {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + r.pick(0..100),
            prefill_tokens_per_step_max: r.pick(1..50),
            // The model says; a step has the same rules whatever it is.
            attention_span: usize::MAX,
            passed_max: r.of(&[1, 2, 64]),
        };
        // Too few for all, or enough for whoever has a place.
        let num_blocks = if r.one_in(3) { r.pick(20..40) } else { r.pick(3..11) };
        let num_requests = r.pick(2..12);
        let last_at = r.pick(1..60);
        let weights = std::array::from_fn(|_| r.of(&[1, 1, 5]));
        let requests = (0..num_requests).map(|id| arrival(&mut r, id, num_blocks, last_at, weights)).collect();
        Self {
            seed,
            limits,
            queue: QueueLimits {
                requests_max: r.pick(1..10),
                tokens_max: r.pick(100..2000),
                priority_step_tokens: r.of(&[1, 50, 5000]),
                note_interval: Duration::from_millis(r.of(&[1, 10])),
            },
            num_blocks,
            num_workers: r.of(&[1, 1, 2]),
            prefix_cache: !r.one_in(5),
            weights,
            requests,
            stop_at: r.one_in(25).then(|| r.pick(0..60)),
        }
    }
}

fn arrival(r: &mut Random, id: usize, num_blocks: usize, last_at: usize, weights: [u32; 3]) -> Arrival {
    let mut prompt = prompt(r);
    let mut max_tokens = r.of(&[1, 3, 10, 40, 90, 90]);
    while !Scheduler::can_ever_fit(prompt.len() + max_tokens, num_blocks) {
        prompt.truncate(prompt.len().div_ceil(2));
        max_tokens = max_tokens.div_ceil(2);
    }
    if r.one_in(40) {
        let place = r.pick(0..prompt.len());
        prompt[place] = r.of(&[PANIC_TOKEN, NAN_TOKEN, NAN_TOKEN]);
    }
    let at = r.pick(0..last_at);
    // Half are of the first owner.
    let owner = r.of(&[0, 0, 0, 1, 1, 2]);
    let queue = QueueTerms {
        weight: weights[owner],
        priority: r.of(&[0, 0, 0, -3, 2]),
        timeout_ms: r.one_in(12).then(|| r.pick(0..30) as u64),
    };
    let request = ValidRequest {
        constraint: constraint(id + at),
        leader: None,
        resumed: None,
        id: StreamId(id as u128),
        tenant: Tenant(owner as u64),
        prompt,
        max_tokens,
        sampling: sampling(r),
        stop: stop(r, max_tokens),
        on_disconnect: OnDisconnect::Detach,
        queue,
    };
    Arrival { request, at, cancel_at: r.one_in(6).then(|| r.pick(0..100)) }
}

/// One of a few beginnings, cut anywhere, and an end of its own.
fn prompt(r: &mut Random) -> Vec<TokenId> {
    let text = r.pick(0..3) as TokenId;
    let len = r.of(&[0, 16, 31, 32, 33, 64, 65, 100]);
    let mut prompt: Vec<TokenId> = (0..len).map(|i| 97 + (i * 7 + text * 5) % 26).collect();
    let num_own = r.of(&[0, 1, 2, 30]) + usize::from(prompt.is_empty());
    prompt.extend((0..num_own).map(|_| r.pick(32..127) as TokenId));
    prompt
}

fn sampling(r: &mut Random) -> SamplingParams {
    let mut p = SamplingParams { seed: Some(r.pick(0..1000) as u64), temperature: 0.0, ..SamplingParams::default() };
    if r.one_in(3) {
        return p;
    }
    p.temperature = r.of(&[0.3, 0.8, 1.0, 1.5]);
    if r.one_in(3) {
        p.top_k = r.of(&[1, 5, 40, 256]);
    }
    if r.one_in(3) {
        p.top_p = r.of(&[0.1, 0.5, 0.9, 0.99]);
    }
    if r.one_in(4) {
        p.min_p = r.of(&[0.01, 0.3]);
    }
    if r.one_in(6) {
        p.typical_p = r.of(&[0.2, 0.9]);
    }
    if r.one_in(3) {
        p.repetition_penalty = r.of(&[0.8, 1.3]);
        p.presence_penalty = r.of(&[0.0, 1.5]);
        p.frequency_penalty = r.of(&[0.0, 0.5, -0.5]);
    }
    if r.one_in(5) {
        p.logit_bias = vec![(101, 5.0), (r.pick(0..257) as TokenId, -100.0)];
    }
    if r.one_in(5) {
        p.top_logprobs = Some(r.pick(0..4));
    }
    p
}

/// For some: an endless one that forces much, one that ends anywhere, and one with characters of several bytes.
fn constraint(number: usize) -> Option<Constraint> {
    match number % 8 {
        0 => Some(Constraint::Regex("(the long way to [a-z]{1,3}; )+".to_owned())),
        3 => {
            Some(Constraint::JsonSchema(r#"{"type": "array", "items": {"enum": ["é", 1, "long enough"]}}"#.to_owned()))
        }
        5 => Some(Constraint::Lark("start: (WORD | \"€\")+\nWORD: /[a-fé]{2}/".to_owned())),
        _ => None,
    }
}

fn stop(r: &mut Random, max_tokens: usize) -> StopParams {
    let mut stop = StopParams { ignore_eos: r.one_in(4), ..StopParams::default() };
    if r.one_in(3) {
        stop.strings = (0..r.pick(1..3)).map(|_| r.of(&["e", "a ", "th", "xyz", "\u{e9}", "zz"]).to_owned()).collect();
    }
    if r.one_in(6) {
        stop.token_ids = vec![r.pick(97..123) as TokenId];
    }
    if r.one_in(5) {
        stop.min_tokens = r.pick(0..max_tokens + 1);
    }
    stop
}
