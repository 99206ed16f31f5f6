//! Tokens per second without HTTP: the decoder alone, and the engine around it.
//!
//! ```text
//! load the file; warm up
//! repetitions times: model   one prompt of `prefill` tokens in one step
//!                            for each batch: `context` tokens a sequence, then `decode` steps of one token each
//! repetitions times: engine  the same as requests: queue, scheduler, sampling, text; if asked for, whole requests in
//!                            a closed loop, prompts and all, which is what a server has to do
//! report the medians
//! ```
//!
//! The model's rows do what `llama-bench` and `llama-batched-bench` do, so that both can be put side by side: random
//! tokens, logits of each sequence's last, no sampling. In the engine's rows the time of decoding begins when the
//! last sequence has its first token and ends when the first has its last, so that all of them decode all the time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;

use super::offline_report::{FigureRow, MeasuredLayer, OfflineReport, Phase};
use tallow_engine::cache::{BLOCK_SIZE, BlockId};
use tallow_engine::metrics::Metrics;
use tallow_engine::{Engine, EngineConfig};
use tallow_kernels::Isa;
use tallow_model::decoder::{Compute, DecoderOptions};
use tallow_model::gguf::Gguf;
use tallow_model::load::{OpenModel, open};
use tallow_model::{Batch, Model, ModelFactory};
use tallow_stream::protocol::{
    Event, OnDisconnect, QueueTerms, SamplingParams, StopParams, StreamId, Tenant, TokenEvent, TokenId, ValidRequest,
};
use tallow_stream::{Clock, StreamLog, StreamStatus};

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct OfflineWorkload {
    /// Tokens of the prompt whose computation is timed.
    pub prefill: usize,
    /// Tokens of each sequence before decoding is timed.
    pub context: usize,
    /// Tokens decoded per sequence.
    pub decode: usize,
    /// Numbers of sequences that decode at once.
    pub batches: Vec<usize>,
    /// Requests that each sequence of a batch runs one after another, prompts of `context` tokens included; 0 for none.
    pub requests_per_seq: usize,
    /// What is driven.
    pub layers: Layers,
    /// Measurements of each kind; the report has their medians.
    pub repetitions: usize,
    /// Of the engine's requests; the model's rows do not sample.
    pub temperature: f32,
}

/// What is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    /// The decoder alone.
    Model,
    /// The engine with the decoder in it.
    Engine,
    /// One after the other.
    Both,
}

/// What it is measured on.
#[derive(Debug, Clone)]
pub struct Subject {
    /// What to call the model.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// How the decoder runs. Its bounds are overruled by what the workload needs.
    pub options: DecoderOptions,
    /// How the engine runs; likewise.
    pub engine: EngineConfig,
}

impl OfflineWorkload {
    fn num_seqs_max(&self) -> usize {
        self.batches.iter().copied().max().unwrap_or(1)
    }

    /// The engine samples one token more than it decodes: the prompt's step gives the first.
    fn max_model_len(&self) -> usize {
        self.prefill.max(self.context + self.decode) + 1
    }

    fn blocks_per_seq(&self) -> usize {
        self.max_model_len().div_ceil(BLOCK_SIZE)
    }
}

/// Loads the model and measures it. Blocks.
///
/// # Errors
/// If the model does not load, is too short for the workload, or the engine fails.
pub fn run(subject: &Subject, work: &OfflineWorkload, progress: &dyn Fn(&str)) -> anyhow::Result<OfflineReport> {
    let began = Instant::now();
    let options = DecoderOptions {
        max_model_len: Some(work.max_model_len()),
        // As much as the sequences need, which is what bounds it in the decoder.
        kv_bytes_max: usize::MAX / 2,
        max_num_seqs: work.num_seqs_max(),
        ..subject.options.clone()
    };
    let model = open(&subject.path, &options)?;
    let factory = model.load()?;
    let load_seconds = began.elapsed().as_secs_f64();
    let loaded_resident_bytes = resident_bytes();
    progress(&format!("{}: {}", subject.name, model.description));

    let mut rows = Vec::new();
    if work.layers != Layers::Engine {
        rows.extend(model_rows(&factory, work, progress)?);
    }
    if work.layers != Layers::Model {
        rows.extend(engine_rows(&model, &factory, &subject.engine, work, progress)?);
    }
    let weight_bytes = weight_bytes(&subject.path)?;
    let decode_1 =
        rows.iter().find(|row| row.layer == MeasuredLayer::Model && row.phase == Phase::Decode && row.batch == 1);
    let weight_gb_per_second = decode_1.map(|row| row.tokens_per_second * weight_bytes as f64 / 1e9);
    let (threads, activations) = match &options.compute {
        Compute::Cpu { num_threads, activations } => (*num_threads, format!("{activations:?}").to_lowercase()),
        Compute::Composed(device) => (0, format!("{device:?}").to_lowercase()),
    };
    Ok(OfflineReport {
        version: env!("CARGO_PKG_VERSION"),
        model: subject.name.clone(),
        description: model.description,
        isa: Isa::from_env()?.to_string(),
        threads,
        activations,
        load_seconds,
        file_bytes: std::fs::metadata(&subject.path).context("the model's file")?.len(),
        loaded_resident_bytes,
        resident_bytes: resident_bytes(),
        weight_bytes,
        weight_gb_per_second,
        context: work.context,
        repetitions: work.repetitions,
        temperature: work.temperature,
        rows,
    })
}

/// Bytes of the file's tensors that every step reads: all but an embedding table that is not the head too.
fn weight_bytes(path: &Path) -> anyhow::Result<u64> {
    let gguf = Gguf::open(path)?;
    let is_tied = gguf.opt_tensor("output.weight").is_none();
    let read = gguf.tensors().iter().filter(|tensor| is_tied || tensor.name != "token_embd.weight");
    Ok(read.map(|tensor| tensor.num_bytes() as u64).sum())
}

/// This process's resident memory, where the system says it in Linux's way.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Samples by phase and batch, in the order of the rows.
struct Samples {
    layer: MeasuredLayer,
    num_tokens: usize,
    prefill: Vec<f64>,
    decode: Vec<(usize, Vec<f64>)>,
    requests: Vec<(usize, Vec<f64>)>,
}

impl Samples {
    fn new(layer: MeasuredLayer, work: &OfflineWorkload) -> Self {
        let of_batches = |batches: &[usize]| batches.iter().map(|&batch| (batch, Vec::new())).collect();
        let has_requests = layer == MeasuredLayer::Engine && work.requests_per_seq > 0;
        let requests = of_batches(if has_requests { &work.batches } else { &[] });
        Self { layer, num_tokens: work.decode, prefill: Vec::new(), decode: of_batches(&work.batches), requests }
    }

    fn rows(self, work: &OfflineWorkload) -> Vec<FigureRow> {
        let prefill = FigureRow::new(self.layer, Phase::Prefill, 1, work.prefill, self.prefill);
        let decode = self
            .decode
            .into_iter()
            .map(|(batch, samples)| FigureRow::new(self.layer, Phase::Decode, batch, batch * self.num_tokens, samples));
        let requests = self.requests.into_iter().map(|(batch, samples)| {
            let num_tokens = batch * work.requests_per_seq * self.num_tokens;
            FigureRow::new(self.layer, Phase::Requests, batch, num_tokens, samples)
        });
        std::iter::once(prefill).chain(decode).chain(requests).collect()
    }
}

fn model_rows(
    factory: &ModelFactory,
    work: &OfflineWorkload,
    progress: &dyn Fn(&str),
) -> anyhow::Result<Vec<FigureRow>> {
    let mut bare = BareModel {
        model: factory()?,
        batch: Batch::default(),
        logits: Vec::new(),
        blocks_per_seq: work.blocks_per_seq(),
    };
    bare.step(1, 0..work.prefill)?;
    bare.decode(work.num_seqs_max(), work.context, work.decode.min(2))?;
    let mut samples = Samples::new(MeasuredLayer::Model, work);
    for repetition in 1..=work.repetitions {
        progress(&format!("model, repetition {repetition} of {}", work.repetitions));
        let began = Instant::now();
        bare.step(1, 0..work.prefill)?;
        samples.prefill.push(work.prefill as f64 / began.elapsed().as_secs_f64());
        for (batch, of_batch) in &mut samples.decode {
            of_batch.push(bare.decode(*batch, work.context, work.decode)?);
        }
    }
    Ok(samples.rows(work))
}

/// A model driven by hand.
struct BareModel {
    model: Box<dyn Model>,
    batch: Batch,
    logits: Vec<f32>,
    blocks_per_seq: usize,
}

impl BareModel {
    /// Decoded tokens per second of `num_seqs` sequences that hold `context` tokens each.
    fn decode(&mut self, num_seqs: usize, context: usize, num_steps: usize) -> anyhow::Result<f64> {
        self.step(num_seqs, 0..context)?;
        let began = Instant::now();
        for position in context..context + num_steps {
            self.step(num_seqs, position..position + 1)?;
        }
        Ok((num_seqs * num_steps) as f64 / began.elapsed().as_secs_f64())
    }

    /// Computes the given positions of all sequences.
    fn step(&mut self, num_seqs: usize, positions: std::ops::Range<usize>) -> anyhow::Result<()> {
        let (batch, vocab_size) = (&mut self.batch, self.model.spec().vocab_size);
        batch.clear();
        for seq in 0..num_seqs {
            let first_block = seq * self.blocks_per_seq;
            for position in positions.clone() {
                let block = first_block + position / BLOCK_SIZE;
                batch.token_ids.push(random_token(vocab_size, 0, seq, position));
                batch.positions.push(position as u32);
                batch.slot_mapping.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as u32);
            }
            batch.cu_seqlens.push(batch.token_ids.len() as u32);
            let table = first_block..first_block + positions.end.div_ceil(BLOCK_SIZE);
            batch.block_tables.extend(table.map(|block| BlockId(block as u32)));
            batch.cu_blocks.push(batch.block_tables.len() as u32);
            batch.logits_indices.push(batch.token_ids.len() as u32 - 1);
        }
        self.model.forward(&self.batch, &mut self.logits)?;
        Ok(())
    }
}

/// Some token, another one wherever an argument differs.
fn random_token(vocab_size: usize, salt: usize, seq: usize, position: usize) -> TokenId {
    let mixed = (position * 7919 + seq * 104_729 + salt * 1_299_709 + 5) as u64;
    ((mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % vocab_size as u64) as TokenId
}

fn engine_rows(
    model: &OpenModel,
    factory: &ModelFactory,
    config: &EngineConfig,
    work: &OfflineWorkload,
    progress: &dyn Fn(&str),
) -> anyhow::Result<Vec<FigureRow>> {
    let max_num_seqs = config.max_num_seqs.max(work.num_seqs_max());
    let config = EngineConfig {
        num_workers: 1,
        max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens.max(max_num_seqs),
        ..config.clone()
    };
    let engine = Engine::start(config, factory.clone(), model.tokenizer.clone(), Arc::new(Metrics::default()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().context("no async runtime")?;
    let mut client =
        EngineClient { engine, runtime, vocab_size: model.spec.vocab_size, temperature: work.temperature, num_runs: 0 };
    client.decode(work.num_seqs_max(), work.context, work.decode)?;
    let mut samples = Samples::new(MeasuredLayer::Engine, work);
    for repetition in 1..=work.repetitions {
        progress(&format!("engine, repetition {repetition} of {}", work.repetitions));
        samples.prefill.push(client.prefill(work.prefill)?);
        for (batch, of_batch) in &mut samples.decode {
            of_batch.push(client.decode(*batch, work.context, work.decode)?);
        }
        for (batch, of_batch) in &mut samples.requests {
            of_batch.push(client.requests(*batch, work)?);
        }
    }
    Ok(samples.rows(work))
}

/// An engine driven by requests.
struct EngineClient {
    engine: Arc<Engine>,
    runtime: tokio::runtime::Runtime,
    vocab_size: usize,
    temperature: f32,
    /// Salts the prompts, so that no run finds another's in the prefix cache.
    num_runs: usize,
}

/// A request's events with their times in microseconds since its run began.
type Timed = Vec<(u64, Event)>;

impl EngineClient {
    /// Prompt tokens per second, from the request to its first token.
    fn prefill(&mut self, num_tokens: usize) -> anyhow::Result<f64> {
        let runs = self.run(1, num_tokens, 1)?;
        let (end, _) = runs[0].last().context("no events")?;
        Ok(num_tokens as f64 / (*end).max(1) as f64 * 1e6)
    }

    /// Decoded tokens per second of `num_seqs` requests while all of them decode.
    fn decode(&mut self, num_seqs: usize, context: usize, num_tokens: usize) -> anyhow::Result<f64> {
        let runs = self.run(num_seqs, context, num_tokens + 1)?;
        let pieces: Vec<Vec<(u64, usize)>> =
            runs.iter().map(|events| events.iter().filter_map(piece).collect()).collect();
        let firsts = || pieces.iter().filter_map(|of_one| of_one.first()).map(|(at, _)| *at);
        let lasts = || pieces.iter().filter_map(|of_one| of_one.last()).map(|(at, _)| *at);
        let together = firsts().max().zip(lasts().min()).filter(|(begin, end)| begin < end);
        // A tiny model may be through with the first request before the last is submitted: then all the time counts.
        let (begin, end) = together.or_else(|| firsts().min().zip(lasts().max())).context("no text came")?;
        ensure!(begin < end, "all text came at once: --decode {num_tokens} is too short to be timed");
        let inside = pieces.iter().flatten().filter(|(at, _)| (begin + 1..=end).contains(at));
        let num_decoded: usize = inside.map(|(_, num_tokens)| num_tokens).sum();
        Ok(num_decoded as f64 / (end - begin) as f64 * 1e6)
    }

    /// Generated tokens per second of `num_seqs` requests at a time, each followed by the next.
    fn requests(&mut self, num_seqs: usize, work: &OfflineWorkload) -> anyhow::Result<f64> {
        self.num_runs += 1;
        let client = &*self;
        let slot = |seq: usize| async move {
            for i in 0..work.requests_per_seq {
                let request = client.request(seq * work.requests_per_seq + i, work.context, work.decode);
                let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
                client.engine.submit(request, log.clone())?;
                log.finished().await;
                ensure!(log.status() == StreamStatus::Done, "a request ended as {:?}", log.status());
            }
            Ok(())
        };
        let began = Instant::now();
        client.runtime.block_on(try_join_all((0..num_seqs).map(slot)))?;
        Ok((num_seqs * work.requests_per_seq * work.decode) as f64 / began.elapsed().as_secs_f64())
    }

    /// Runs `num_seqs` requests at once, to their end.
    fn run(&mut self, num_seqs: usize, prompt: usize, max_tokens: usize) -> anyhow::Result<Vec<Timed>> {
        self.num_runs += 1;
        let began = Instant::now();
        // A log's clock counts milliseconds; nobody but us reads this one's.
        let clock: Clock = Arc::new(move || began.elapsed().as_micros() as u64);
        let mut logs = Vec::with_capacity(num_seqs);
        for seq in 0..num_seqs {
            let request = self.request(seq, prompt, max_tokens);
            let log = StreamLog::with_clock(request.id, request.tenant, request.on_disconnect, clock.clone());
            self.engine.submit(request, log.clone())?;
            logs.push(log);
        }
        logs.iter().map(|log| self.events(log)).collect()
    }

    fn request(&self, seq: usize, prompt: usize, max_tokens: usize) -> ValidRequest {
        ValidRequest {
            constraint: None,
            leader: None,
            resumed: None,
            id: StreamId::random(),
            tenant: Tenant(0),
            prompt: (0..prompt).map(|i| random_token(self.vocab_size, self.num_runs, seq, i)).collect(),
            max_tokens,
            sampling: SamplingParams {
                temperature: self.temperature,
                seed: Some(seq as u64),
                ..SamplingParams::default()
            },
            stop: StopParams { ignore_eos: true, ..StopParams::default() },
            on_disconnect: OnDisconnect::Detach,
            queue: QueueTerms::default(),
        }
    }

    fn events(&self, log: &Arc<StreamLog>) -> anyhow::Result<Timed> {
        self.runtime.block_on(log.finished());
        let mut reader = log.reader(0);
        let entries = std::iter::from_fn(|| reader.try_next_entry());
        let events: Timed = entries.map(|entry| (entry.ts_ms, entry.event)).collect();
        let (_, last) = events.last().context("no events")?;
        ensure!(matches!(last, Event::Done { .. }), "a request ended with {last:?}");
        Ok(events)
    }
}

/// When tokens came, and how many.
fn piece((at, event): &(u64, Event)) -> Option<(u64, usize)> {
    match event {
        Event::Token(TokenEvent { tokens, .. }) => Some((*at, tokens.len())),
        _ => None,
    }
}
