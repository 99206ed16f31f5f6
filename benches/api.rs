//! What the API costs beside the model: processor time per streamed token, and the time from a chat's messages to a
//! request that an engine can take.
//!
//! `cargo bench --bench api` (the second needs `tallow pull smollm2-135m-instruct`; Linux)
//!
//! The first is taken from the process's own account, while the stub says some 10,000 tokens a second on 64 streams: all
//! of the server, and the engine alone in a process that serves nobody. What is between them is HTTP and SSE. The bounds
//! asked are 60 us per token for these, and 1 ms for a chat of 1,000 tokens.

#[path = "../tests/common/server.rs"]
mod binary;
#[path = "../tests/common/corpus.rs"]
#[allow(dead_code)] // It belongs to the tests, which ask more of it.
mod corpus;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::json;
use tallow::engine::{Engine, EngineConfig, Load};
use tallow::error::Result;
use tallow::hub::{CacheDir, list};
use tallow::metrics::Metrics;
use tallow::model::decoder::{ActivationType, Compute, DecoderOptions};
use tallow::model::load::{OpenModel, open};
use tallow::model::stub::{StubConfig, StubModel};
use tallow::protocol::{
    ChatMessage, Event, FinishReason, GenerateRequest, OnDisconnect, Owner, Prompt, QueueTerms, SamplingParams,
    StopParams, StreamId, Tenant, Usage, ValidInput, ValidRequest,
};
use tallow::service::{
    Backend, ChatTemplate, Embedding, ModelLimits, Models, Readiness, Served, ServedConfig, Service, ServiceConfig,
};
use tallow::stream::{StreamLog, StreamTable, TableLimits};
use tallow::text::Tokenizer;

const MODEL: &str = "smollm2-135m-instruct";
const NUM_STREAMS: usize = 64;
/// With what a step takes besides, some 10,000 tokens a second.
const STEP_MS: u64 = 4;
const MEASURED: Duration = Duration::from_secs(5);
/// More than are said while it is measured.
const MAX_TOKENS: usize = 4000;
const PROMPT_TOKENS: usize = 1000;
const NUM_CHATS: usize = 500;

#[tokio::main]
async fn main() {
    let (rate, server_us) = cost_of_server().await;
    let engine_us = cost_of_engine();
    println!(
        "api: {NUM_STREAMS} streams of chat chunks at {rate:.0} tokens/s: {:.1} us of processor time per token for HTTP \
         and SSE (asked: < 60), {server_us:.1} for all of the server, {engine_us:.1} for its engine alone",
        server_us - engine_us
    );
    match cached() {
        Some(model) => cost_of_chat(model).await,
        None => println!("api: {MODEL} is not cached (`tallow pull {MODEL}`): the way to the engine is not measured"),
    }
}

/// Tokens per second, and microseconds of the server's processor time for each.
async fn cost_of_server() -> (f64, f64) {
    let (step, seqs) = (format!("stub:{STEP_MS}"), NUM_STREAMS.to_string());
    let server = binary::Server::start(&["--model", &step, "--max-num-seqs", &seqs]);
    let mut readers = Vec::new();
    for seed in 0..NUM_STREAMS {
        let message = json!({"role": "user", "content": format!("stream {seed}")});
        let body = json!({
            "messages": [message], "stream": true, "max_tokens": MAX_TOKENS, "ignore_eos": true, "seed": seed,
        });
        let mut chunks = server.chat(&body).await.bytes_stream();
        chunks.next().await.expect("a first chunk").expect("it is read");
        // Ends when the server does.
        readers.push(tokio::spawn(async move { while let Some(Ok(_)) = chunks.next().await {} }));
    }
    let began = Instant::now();
    let before = (server.metric("tallow_completion_tokens_total").await, processor_us(server.pid()));
    tokio::time::sleep(MEASURED).await;
    let after = (server.metric("tallow_completion_tokens_total").await, processor_us(server.pid()));
    let took = began.elapsed();
    assert!(readers.iter().all(|reader| !reader.is_finished()), "a stream has ended while it was measured");
    let num_tokens = after.0 - before.0;
    (num_tokens / took.as_secs_f64(), (after.1 - before.1) / num_tokens)
}

/// Microseconds of processor time per token of an engine whose streams nobody reads.
fn cost_of_engine() -> f64 {
    let stub = StubConfig { step_delay: Duration::from_millis(STEP_MS), num_blocks: 1 << 16, ..StubConfig::default() };
    let config = EngineConfig { max_num_seqs: NUM_STREAMS, ..EngineConfig::default() };
    let metrics = Arc::new(Metrics::default());
    let tokenizer = Arc::new(Tokenizer::byte_level());
    let engine = Engine::start(config, StubModel::factory(stub), tokenizer, metrics.clone()).expect("it starts");
    let logs: Vec<_> = (0..NUM_STREAMS).map(|number| submit(&engine, number)).collect();
    while metrics.completion_tokens.get() < NUM_STREAMS as u64 {
        std::thread::yield_now();
    }
    let before = (metrics.completion_tokens.get(), processor_us(std::process::id()));
    std::thread::sleep(MEASURED);
    let after = (metrics.completion_tokens.get(), processor_us(std::process::id()));
    assert!(logs.iter().all(|log| !log.is_finished()), "a stream has ended while it was measured");
    engine.shutdown("measured");
    (after.1 - before.1) / (after.0 - before.0) as f64
}

fn submit(engine: &Engine, number: usize) -> Arc<StreamLog> {
    let request = ValidRequest {
        id: StreamId(number as u128 + 1),
        tenant: Tenant(0),
        prompt: format!("stream {number}").bytes().map(u32::from).collect(),
        max_tokens: MAX_TOKENS,
        sampling: SamplingParams { seed: Some(number as u64), ..SamplingParams::default() },
        stop: StopParams { ignore_eos: true, ..StopParams::default() },
        on_disconnect: OnDisconnect::Detach,
        queue: QueueTerms::default(),
        constraint: None,
        leader: None,
        resumed: None,
    };
    let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
    engine.submit(request, log.clone()).expect("room for all");
    log
}

/// Processor time that a process has used, in its own code and in the system for it (proc(5), `stat`, fields 14 and 15,
/// in hundredths of a second).
fn processor_us(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a Linux system");
    // The second field is the program's name in parentheses, and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) * 10_000.0
}

/// From messages to a valid request in a backend's hands, with a new text each time.
async fn cost_of_chat(model: OpenModel) {
    let source = model.chat_template.as_deref().expect("it chats");
    let template = ChatTemplate::new(source, &model.bos_text, &model.eos_text).expect("its template is one");
    let metrics = Arc::new(Metrics::default());
    let (tokenizer, spec) = (model.tokenizer.clone(), model.spec.clone());
    let config = ServedConfig::named(MODEL);
    let served = Served::new(config, tokenizer, Some(template), spec, Arc::new(Nowhere), metrics.clone());
    let models = Models::new(vec![Arc::new(served)], ModelLimits::default()).expect("one model");
    let table = Arc::new(StreamTable::new(TableLimits::default()));
    let service = Service::new(ServiceConfig::default(), models, table, metrics).expect("threads");
    let owner = Arc::new(Owner::anonymous());
    let (mut us, mut num_tokens) = (Vec::with_capacity(NUM_CHATS), 0);
    for seed in 0..NUM_CHATS {
        let content = text(&model.tokenizer, seed as u64);
        let prompt = Prompt::Chat(vec![ChatMessage::new("user", content)]);
        let request = GenerateRequest::new(owner.clone(), prompt);
        let began = Instant::now();
        let started = service.start(request).await.expect("a valid request");
        us.push(began.elapsed().as_secs_f64() * 1e6);
        num_tokens += started.prompt_tokens;
    }
    us.sort_by(f64::total_cmp);
    println!(
        "api: template, tokenising and validation of a chat of {} tokens: {:.0} us at the median, {:.0} us at p99 (asked: \
         < 1000), over {NUM_CHATS} texts",
        num_tokens / NUM_CHATS,
        us[NUM_CHATS / 2],
        us[NUM_CHATS * 99 / 100]
    );
}

/// Plain words of about as many tokens as asked: what chats are made of, rather than what is hard on tokenizers.
fn text(tokenizer: &Tokenizer, seed: u64) -> String {
    const WORDS: [&str; 16] = [
        "the",
        "stream",
        "of",
        "a",
        "model",
        "river",
        "answers",
        "questions",
        "quickly",
        "Tuesday,",
        "42",
        "under",
        "cloud",
        "measure",
        "it.",
        "again",
    ];
    let mut rng = corpus::SplitMix(seed);
    let mut text = String::new();
    while tokenizer.encode(&text, false).expect("any text has tokens").len() < PROMPT_TOKENS {
        for _ in 0..50 {
            text.push_str(rng.pick(&WORDS));
            text.push(' ');
        }
    }
    text
}

fn cached() -> Option<OpenModel> {
    let found = list(&CacheDir::from_env().ok()?).ok()?.into_iter().find(|model| model.spec == MODEL)?;
    let compute = Compute::Cpu { num_threads: 1, activations: ActivationType::Int8 };
    let options = DecoderOptions { compute, max_model_len: Some(2048), kv_bytes_max: 1 << 28, max_num_seqs: 1 };
    open(&found.cached?, &options).ok()
}

/// Takes every request and ends it.
struct Nowhere;

impl Backend for Nowhere {
    fn submit(&self, request: ValidRequest, log: Arc<StreamLog>) -> Result<()> {
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        log.append(Event::Done { finish_reason: FinishReason::Length, usage, stop: None });
        Ok(())
    }

    fn embed(&self, _input: ValidInput) -> Result<Embedding> {
        Ok(Box::pin(std::future::ready(Ok(vec![1.0]))))
    }

    fn check_room(&self, _tenant: Tenant, _coming: Load) -> Result<()> {
        Ok(())
    }

    fn sweep(&self) {}

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn drain(&self) {}

    fn is_idle(&self) -> bool {
        true
    }

    fn shutdown(&self, _message: &str) {}
}
