//! The engine on the real decoder with tiny random models: a generation must be the same to the bit of every
//! log-probability when it runs alone, in a batch, after a prefix hit, in chunks, and after preemption.

use crate::gated;
use crate::tiny;

use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use gated::gated;
use tallow::engine::{Embedding, Engine, EngineConfig};
use tallow::metrics::Metrics;
use tallow::model::decoder::{ActivationType, Compute, DecoderOptions, DecoderWeights};
use tallow::model::gguf::Gguf;
use tallow::model::stub::StubGate;
use tallow::model::{Model, ModelFactory};
use tallow::protocol::{
    Event, OnDisconnect, QueueTerms, SamplingParams, StopParams, StreamId, Tenant, ValidInput, ValidRequest,
};
use tallow::stream::StreamLog;
use tallow::text::Tokenizer;
use tiny::Tiny;

/// Of each sequence's output.
const MAX_TOKENS: usize = 60;

fn factory(path: &Path, activations: ActivationType, num_blocks: usize) -> ModelFactory {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    let options = DecoderOptions {
        compute: Compute::Cpu { num_threads: 2, activations },
        max_model_len: Some(256),
        kv_bytes_max: usize::MAX / 2,
        max_num_seqs: 64,
    };
    let block_bytes = DecoderWeights::load(&gguf, &options).unwrap().config().kv_block_bytes();
    let options = DecoderOptions { kv_bytes_max: num_blocks * block_bytes, ..options };
    let weights = DecoderWeights::load(&gguf, &options).unwrap();
    Arc::new(move || Ok(Box::new(weights.decoder()?) as Box<dyn Model>))
}

/// Six prompts of which each begins like the one before.
fn request(number: usize) -> ValidRequest {
    let prompt = (0..40 + number * 9).map(|i| 97 + (i as u32 * 31) % 26).collect();
    ValidRequest {
        constraint: None,
        leader: None,
        resumed: None,
        id: StreamId(number as u128 + 1),
        tenant: Tenant(0),
        prompt,
        max_tokens: MAX_TOKENS,
        sampling: SamplingParams {
            temperature: if number.is_multiple_of(2) { 0.8 } else { 0.0 },
            seed: Some(number as u64),
            top_logprobs: Some(3),
            ..SamplingParams::default()
        },
        stop: StopParams { ignore_eos: true, ..StopParams::default() },
        on_disconnect: OnDisconnect::Detach,
        queue: QueueTerms::default(),
    }
}

/// Every token with the bits of its log-probability and its rivals'.
type Transcript = Vec<(u32, u32, Vec<(u32, u32)>)>;

fn transcript(log: &Arc<StreamLog>) -> Transcript {
    while !log.is_finished() {
        std::thread::yield_now();
    }
    let mut reader = log.reader(0);
    let events: Vec<Event> = std::iter::from_fn(|| reader.try_next()).map(|(_, event)| event).collect();
    assert!(matches!(events.last(), Some(Event::Done { .. })), "ended with {:?}", events.last());
    let tokens = events.into_iter().filter_map(|e| if let Event::Token(t) = e { Some(t.logprobs) } else { None });
    let bits = |t: &tallow::protocol::TokenLogprob| {
        (t.token, t.logprob.to_bits(), t.top.iter().map(|(id, p)| (*id, p.to_bits())).collect())
    };
    tokens.flatten().map(|t| bits(&t)).collect()
}

struct Run {
    transcripts: Vec<Transcript>,
    metrics: Arc<Metrics>,
}

/// Runs all requests; one after another, or at once.
fn run(config: EngineConfig, factory: ModelFactory, at_once: bool) -> Run {
    // Shut until all are there: they are to share steps however fast the model is.
    let (metrics, gate) = (Arc::new(Metrics::default()), StubGate::new());
    if !at_once {
        gate.open();
    }
    let factory = gated(factory, gate.clone());
    let engine = Engine::start(config, factory, Arc::new(Tokenizer::byte_level()), metrics.clone()).unwrap();
    let submit = |number| {
        let request = request(number);
        let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
        engine.submit(request, log.clone()).unwrap();
        log
    };
    let transcripts = if at_once {
        let logs: Vec<_> = (0..6).map(submit).collect();
        gate.open();
        logs.iter().map(transcript).collect()
    } else {
        (0..6).map(|number| transcript(&submit(number))).collect()
    };
    Run { transcripts, metrics }
}

#[test]
fn batches_prefix_hits_chunks_and_preemption_do_not_change_a_bit() {
    let dir = tempfile::tempdir().unwrap();
    for (architecture, activations) in [
        ("llama", ActivationType::F32),
        ("llama", ActivationType::Int8),
        ("gemma3", ActivationType::F32),
        ("qwen3", ActivationType::Int8),
    ] {
        let t = Tiny { vocab: 257, dtype: GgmlDType::Q8_0, window: Some(50), ..Tiny::new(architecture) };
        let path = t.write(dir.path());
        let name = format!("{architecture} {activations:?}");
        let plain = || EngineConfig { prefix_cache: false, ..EngineConfig::default() };

        let alone = run(plain(), factory(&path, activations, 64), false);
        assert!(alone.transcripts.iter().all(|t| !t.is_empty()), "{name}: every stream has text");

        let batched = run(plain(), factory(&path, activations, 64), true);
        assert_eq!(batched.transcripts, alone.transcripts, "{name} batched");

        let config = EngineConfig { max_num_batched_tokens: 64, prefill_tokens_per_step_max: 5, ..plain() };
        let chunked = run(config, factory(&path, activations, 64), true);
        assert_eq!(chunked.transcripts, alone.transcripts, "{name} chunked");

        let hit = run(EngineConfig::default(), factory(&path, activations, 64), false);
        assert!(hit.metrics.cached_tokens.get() >= 5 * 32, "{name}: prompts share their first block");
        assert_eq!(hit.transcripts, alone.transcripts, "{name} with prefix hits");

        // Room for two or three of the six at full length.
        let tight = run(plain(), factory(&path, activations, 11), true);
        assert!(tight.metrics.preemptions.get() > 0, "{name}: somebody was preempted");
        assert_eq!(tight.transcripts, alone.transcripts, "{name} preempted");
    }
}

/// Four choices of one prompt of 101 tokens: three full blocks and a part of one. Returns texts, and the prompt's
/// tokens that were computed.
fn choices(config: EngineConfig, factory: ModelFactory, is_shared: bool) -> (Vec<Transcript>, u64) {
    let metrics = Arc::new(Metrics::default());
    let engine = Engine::start(config, factory, Arc::new(Tokenizer::byte_level()), metrics.clone()).unwrap();
    let logs: Vec<_> = (0..4)
        .map(|index| {
            let mut request = request(0);
            request.prompt = (0..101).map(|i| 97 + (i as u32 * 31) % 26).collect();
            (request.id, request.sampling.seed) = (StreamId(index + 1), Some(index as u64));
            request.leader = (is_shared && index > 0).then_some(StreamId(1));
            let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
            engine.submit(request, log.clone()).unwrap();
            if !is_shared {
                transcript(&log);
            }
            log
        })
        .collect();
    let transcripts = logs.iter().map(transcript).collect();
    (transcripts, metrics.prompt_tokens.get() - metrics.cached_tokens.get())
}

#[test]
fn choices_share_one_prefill_and_not_a_bit_changes() {
    let dir = tempfile::tempdir().unwrap();
    let t = Tiny { vocab: 257, dtype: GgmlDType::Q8_0, window: Some(50), ..Tiny::new("gemma3") };
    let path = t.write(dir.path());
    let plain = || EngineConfig { prefix_cache: false, ..EngineConfig::default() };
    for activations in [ActivationType::F32, ActivationType::Int8] {
        let make = |num_blocks| factory(&path, activations, num_blocks);
        let (alone, num_computed) = choices(plain(), make(64), false);
        assert_eq!(num_computed, 4 * 101);
        assert!(alone.windows(2).all(|two| two[0] != two[1]), "seeds differ, and so do texts");
        let chunked = EngineConfig { max_num_batched_tokens: 64, prefill_tokens_per_step_max: 5, ..plain() };
        for (name, config) in [("copied", plain()), ("found", EngineConfig::default()), ("in chunks", chunked)] {
            let (shared, num_computed) = choices(config, make(64), true);
            assert_eq!(shared, alone, "{name}, {activations:?}");
            assert_eq!(num_computed, 101 + 3, "{name}: one prefill, and each other's last token");
        }
        // Room for two at full length.
        let (tight, _) = choices(plain(), make(12), true);
        assert_eq!(tight, alone, "preempted, {activations:?}");
    }
}

/// Embeds the six prompts, one after another or at once, with `num_neighbours` generations that began before them.
/// Returns the bits of the vectors, and the preemptions.
fn embed(config: EngineConfig, factory: ModelFactory, num_neighbours: Option<usize>) -> (Vec<Vec<u32>>, u64) {
    let metrics = Arc::new(Metrics::default());
    let engine = Engine::start(config, factory, Arc::new(Tokenizer::byte_level()), metrics.clone()).unwrap();
    let submit = |request: ValidRequest| {
        let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
        engine.submit(request, log.clone()).unwrap();
        log
    };
    let neighbours: Vec<_> = (0..num_neighbours.unwrap_or(0)).map(|number| submit(request(number))).collect();
    let embedding = |number: usize| {
        let ValidRequest { tenant, prompt: tokens, queue, .. } = request(number);
        let id = StreamId(100 + number as u128);
        engine.embed(ValidInput { id, tenant, tokens, queue }).unwrap()
    };
    let vectors = if num_neighbours.is_some() {
        // The longest first: it is under way for longer than it takes its neighbours to need its blocks.
        let all: Vec<_> = (0..6).rev().map(embedding).collect();
        all.into_iter().rev().map(vector).collect()
    } else {
        (0..6).map(|number| vector(embedding(number))).collect()
    };
    neighbours.iter().for_each(|log| assert!(!transcript(log).is_empty()));
    (vectors, metrics.preemptions.get())
}

/// The vector, whose log has a beginning and an end and nothing else.
fn vector(mut embedding: Embedding) -> Vec<u32> {
    let log = embedding.reader.log().clone();
    while !log.is_finished() {
        std::thread::yield_now();
    }
    let events: Vec<Event> = std::iter::from_fn(|| embedding.reader.try_next()).map(|(_, event)| event).collect();
    let [.., Event::Started { .. }, Event::Done { usage, .. }] = &events[..] else {
        panic!("not the end of a vector: {events:?}");
    };
    assert_eq!((usage.completion_tokens, usage.cached_tokens), (0, 0));
    embedding.take().unwrap().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_vector_is_the_same_to_the_bit_alone_batched_chunked_and_preempted() {
    let dir = tempfile::tempdir().unwrap();
    for (architecture, activations) in
        [("llama", ActivationType::F32), ("gemma3", ActivationType::Int8), ("qwen3", ActivationType::Int8)]
    {
        let t = Tiny { vocab: 257, dtype: GgmlDType::Q8_0, window: Some(50), ..Tiny::new(architecture) };
        let path = t.write(dir.path());
        let name = format!("{architecture} {activations:?}");
        // With the prefix cache, which vectors pass by.
        let (alone, _) = embed(EngineConfig::default(), factory(&path, activations, 64), None);
        assert!(alone.windows(2).all(|two| two[0] != two[1]), "{name}: texts differ, and so do vectors");
        let (batched, _) = embed(EngineConfig::default(), factory(&path, activations, 64), Some(6));
        assert_eq!(batched, alone, "{name} batched");
        // A token of a vector's text for one of its neighbour's, which grows from two blocks to four of six.
        let config =
            EngineConfig { max_num_batched_tokens: 64, prefill_tokens_per_step_max: 1, ..EngineConfig::default() };
        let (chunked, num_preemptions) = embed(config, factory(&path, activations, 6), Some(1));
        assert!(num_preemptions > 0, "{name}: somebody was preempted");
        assert_eq!(chunked, alone, "{name} chunked and preempted");
    }
}

#[test]
fn a_vector_is_the_reference_s() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "gemma3", "qwen3"] {
        let path = Tiny { vocab: 257, dtype: GgmlDType::Q8_0, ..Tiny::new(architecture) }.write(dir.path());
        let (fused, _) = embed(EngineConfig::default(), factory(&path, ActivationType::F32, 64), None);
        let options = DecoderOptions {
            compute: Compute::Composed(candle_core::Device::Cpu),
            max_model_len: Some(256),
            kv_bytes_max: 1 << 26,
            max_num_seqs: 4,
        };
        let weights = DecoderWeights::load(&Arc::new(Gguf::open(&path).unwrap()), &options).unwrap();
        let reference: ModelFactory = Arc::new(move || Ok(Box::new(weights.decoder()?) as Box<dyn Model>));
        let (reference, _) = embed(EngineConfig::default(), reference, None);
        for (a, b) in fused.iter().flatten().zip(reference.iter().flatten()) {
            let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
            // Keys and values are f16 in one and f32 in the other.
            assert!((a - b).abs() < 5e-3, "{architecture}: {a} and {b}");
        }
    }
}
