//! What structured output costs: the same engine on the same real model, with as many streams, once free and once within
//! a JSON schema, in turns, so that a machine that slows down slows both.
//!
//! `cargo bench --bench structured` (needs `tallow pull smollm2-135m-instruct`)
//!
//! A step of constrained streams may be slower, for the masks; tokens may come faster, since those that are forced are
//! not sampled. Both ratios are told. The first is the one that a bound is put on: at most 1.10 with 8 streams.

use std::sync::Arc;
use std::time::Instant;

use tallow::engine::{Engine, EngineConfig};
use tallow::hub::{CacheDir, list};
use tallow::metrics::Metrics;
use tallow::model::decoder::{ActivationType, Compute, DecoderOptions};
use tallow::model::load::open;
use tallow::protocol::{
    Constraint, Event, OnDisconnect, QueueTerms, SamplingParams, StopParams, StreamId, Tenant, TokenId, ValidRequest,
};
use tallow::stream::StreamLog;

const MODEL: &str = "smollm2-135m-instruct";
const NUM_STREAMS: usize = 8;
const NUM_TOKENS: usize = 256;
const NUM_TURNS: usize = 7;

/// Never complete within the tokens, and mostly text that is not forced.
const SCHEMA: &str = r#"{
    "type": "array", "minItems": 1000,
    "items": {
        "type": "object", "required": ["title", "text", "year"], "additionalProperties": false,
        "properties": {
            "title": {"type": "string", "maxLength": 60}, "text": {"type": "string", "maxLength": 400},
            "year": {"type": "integer", "minimum": 1000, "maximum": 2100}
        }
    }
}"#;

/// One turn: seconds per step and per token.
#[derive(Debug, Clone, Copy)]
struct Turn {
    step_seconds: f64,
    token_seconds: f64,
}

fn request(turn: usize, stream: usize, constraint: Option<Constraint>) -> ValidRequest {
    let number = turn * NUM_STREAMS + stream;
    ValidRequest {
        constraint,
        leader: None,
        resumed: None,
        id: StreamId(number as u128 + 1),
        tenant: Tenant(0),
        prompt: (0..16).map(|i| (1000 + i * 37 + number * 11) as TokenId).collect(),
        max_tokens: NUM_TOKENS,
        sampling: SamplingParams { seed: Some(number as u64), ..SamplingParams::default() },
        stop: StopParams { ignore_eos: true, ..StopParams::default() },
        on_disconnect: OnDisconnect::Detach,
        queue: QueueTerms::default(),
    }
}

fn run(engine: &Engine, metrics: &Metrics, turn: usize, constraint: Option<&Constraint>) -> Turn {
    let num_steps = metrics.steps.get();
    let began = Instant::now();
    let logs: Vec<Arc<StreamLog>> = (0..NUM_STREAMS)
        .map(|stream| {
            let request = request(turn, stream, constraint.cloned());
            let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
            engine.submit(request, log.clone()).expect("room for all");
            log
        })
        .collect();
    let mut num_tokens = 0;
    for log in logs {
        wait(&log);
        let mut reader = log.reader(0);
        match std::iter::from_fn(|| reader.try_next()).last() {
            Some((_, Event::Done { usage, .. })) => num_tokens += usage.completion_tokens,
            other => panic!("a stream ended with {other:?}"),
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    Turn {
        step_seconds: seconds / (metrics.steps.get() - num_steps) as f64,
        token_seconds: seconds / num_tokens as f64,
    }
}

/// Waits without taking a core from those that compute.
fn wait(log: &Arc<StreamLog>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(log.finished());
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let cached = CacheDir::from_env().and_then(|cache| list(&cache)).unwrap_or_default();
    let Some(path) = cached.into_iter().find(|model| model.spec == MODEL).and_then(|model| model.cached) else {
        println!("skipped: {MODEL} is not cached (`tallow pull {MODEL}`)");
        return;
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let compute = Compute::Cpu { num_threads, activations: ActivationType::Int8 };
    let options =
        DecoderOptions { compute, max_model_len: Some(512), kv_bytes_max: 1 << 30, max_num_seqs: NUM_STREAMS };
    let model = open(&path, &options).expect("the model loads");
    let metrics = Arc::new(Metrics::default());
    let config = EngineConfig { max_num_seqs: NUM_STREAMS, prefix_cache: false, ..EngineConfig::default() };
    let engine = Engine::start(config, model.load().expect("its weights load"), model.tokenizer, metrics.clone())
        .expect("the engine starts");
    let schema = Constraint::JsonSchema(SCHEMA.to_owned());
    // Warm: pages, and the grammar.
    run(&engine, &metrics, 0, None);
    run(&engine, &metrics, 0, Some(&schema));
    let (mut steps, mut tokens) = (Vec::new(), Vec::new());
    for turn in 1..=NUM_TURNS {
        let free = run(&engine, &metrics, turn, None);
        let within = run(&engine, &metrics, turn, Some(&schema));
        println!(
            "turn {turn}: step {:.2} ms free, {:.2} ms within the schema; token {:.3} ms and {:.3} ms",
            1e3 * free.step_seconds,
            1e3 * within.step_seconds,
            1e3 * free.token_seconds,
            1e3 * within.token_seconds
        );
        steps.push(within.step_seconds / free.step_seconds);
        tokens.push(within.token_seconds / free.token_seconds);
    }
    println!(
        "{NUM_STREAMS} streams of {NUM_TOKENS} tokens, medians of {NUM_TURNS}: a step takes {:.3} times as long, a token {:.3}",
        median(steps),
        median(tokens)
    );
}
