//! The decoder: token ids to logits over ragged batches, for every architecture that [`ModelConfig`] describes. The
//! arithmetic is written twice: `fused` (custom ops on packed weights, for the CPU) and `composed` (candle's
//! primitives, for a GPU and as the reference).

mod composed;
mod fused;
mod rope;
mod weights;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use candle_core::Device;

use super::config::ModelConfig;
use super::device::OrDevice;
use super::gguf::Gguf;
use super::{Batch, Model, ModelSpec};
use rope::Rope;
use tallow_kernels::BLOCK_SIZE;
use tallow_kernels::{self, Isa, Pool};
use tallow_stream::error::{Error, Result};
use tallow_stream::settings::words;

/// Where the decoder runs and how.
#[derive(Debug, Clone)]
pub enum Compute {
    /// Fused stages on the CPU.
    Cpu {
        /// Threads of each worker.
        num_threads: usize,
        /// The type in which the inputs of quantised matrices are multiplied.
        activations: ActivationType,
    },
    /// candle's primitives on any device.
    Composed(Device),
}

words! {
    /// How the inputs of quantised matrices are represented. Either way the same request gives the same bytes on every CPU;
    /// the two give different bytes from each other.
    pub enum ActivationType {
        /// As they are: nothing is rounded but the sums.
        F32 = "f32",
        /// In blocks of 32 signed bytes with one scale: several times faster where arithmetic is the limit, with rounding
        /// errors of 1/254 of a block's greatest value.
        Int8 = "int8",
    }
}

/// Bounds of one worker's decoder.
#[derive(Debug, Clone)]
pub struct DecoderOptions {
    /// Where it runs.
    pub compute: Compute,
    /// Longest sequence; `None` takes the model's own.
    pub max_model_len: Option<usize>,
    /// Memory for keys and values.
    pub kv_bytes_max: usize,
    /// Most sequences at once. The KV memory has no more blocks than these sequences can fill.
    pub max_num_seqs: usize,
}

/// Names the arithmetic: the order of all operations, and every rounding in them. Raise this number when the golden
/// texts change, and never otherwise (`tests/real/golden.rs`).
pub const ARITHMETIC: u32 = 1;

impl DecoderOptions {
    /// Describes everything that decides the bits of a result besides the file and [`ARITHMETIC`]: the device, the
    /// rounding of inputs, and the rotations, because some rotations depend on the longest context.
    pub(super) fn arithmetic(&self, config: &ModelConfig) -> String {
        let compute = match &self.compute {
            Compute::Cpu { activations, .. } => format!("{activations:?}"),
            Compute::Composed(device) => format!("{device:?}"),
        };
        format!("{compute} {:?}", config.ropes)
    }
}

/// A model's description, without its weights.
pub struct DescribedModel {
    /// The architecture's description.
    pub config: Arc<ModelConfig>,
    /// What the engine must know.
    pub spec: ModelSpec,
    /// The instruction set that the kernels use.
    pub isa: Isa,
}

/// Weights and description, shared by all workers' decoders.
#[derive(Clone)]
pub struct DecoderWeights {
    config: Arc<ModelConfig>,
    spec: ModelSpec,
    loaded: Loaded,
    compute: Compute,
    isa: Isa,
}

#[derive(Clone)]
enum Loaded {
    Fused(Arc<fused::Weights>),
    Composed(Arc<composed::Weights>),
}

impl DecoderWeights {
    /// Reads a file's description of its model.
    ///
    /// # Errors
    /// If the architecture is not supported, or the KV memory cannot hold one block.
    pub fn describe(gguf: &Arc<Gguf>, options: &DecoderOptions) -> Result<DescribedModel> {
        let config = ModelConfig::from_gguf(gguf, options.max_model_len)?;
        let spec = spec(&config, options)?;
        // The description is read again with the length that the KV memory allows, because rope factors may depend on
        // it.
        let config = Arc::new(ModelConfig::from_gguf(gguf, Some(spec.max_model_len))?);
        let isa = Isa::from_env().map_err(kernel_error)?;
        Ok(DescribedModel { config, spec, isa })
    }

    /// Loads a file's weights.
    ///
    /// # Errors
    /// As [`Self::describe`], and if a tensor is missing or misshapen (the message names it).
    pub fn load(gguf: &Arc<Gguf>, options: &DecoderOptions) -> Result<Self> {
        let DescribedModel { config, spec, isa } = Self::describe(gguf, options)?;
        let loaded = match &options.compute {
            Compute::Cpu { num_threads, .. } => {
                let mut pool = Pool::new(*num_threads);
                Loaded::Fused(Arc::new(fused::Weights::load(gguf, config.clone(), &mut pool)?))
            }
            Compute::Composed(device) => Loaded::Composed(Arc::new(composed::Weights::load(gguf, &config, device)?)),
        };
        Ok(Self { config, spec, loaded, compute: options.compute.clone(), isa })
    }

    /// The architecture's description.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the engine must know.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The instruction set in use, for the log.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// A decoder with its own KV memory and threads.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn decoder(&self) -> Result<Decoder> {
        let num_blocks = self.spec.num_blocks;
        let stages = match (&self.loaded, &self.compute) {
            (Loaded::Fused(weights), Compute::Cpu { num_threads, activations }) => Stages::Fused(Box::new(
                fused::Fused::new(weights.clone(), num_blocks, self.isa, Pool::new(*num_threads), *activations)?,
            )),
            (Loaded::Composed(weights), _) => {
                Stages::Composed(composed::Composed::new(weights.clone(), num_blocks).or_device()?)
            }
            (Loaded::Fused(_), Compute::Composed(_)) => unreachable!("weights are loaded for their engine"),
        };
        let ropes: Vec<Rope> = self.config.ropes.iter().map(|r| Rope::new(r, self.config.rope_dim)).collect();
        let angles = vec![Default::default(); ropes.len()];
        let beat = match &stages {
            Stages::Fused(stages) => stages.beat(),
            Stages::Composed(_) => Arc::default(),
        };
        Ok(Decoder { spec: self.spec.clone(), ropes, stages, angles, tables: Vec::new(), beat })
    }
}

/// The number of context positions at which a token's attention takes as long as its multiplications with the weights.
/// Attention is computed in f32; matrices in bytes take about a quarter of the time.
fn attention_span(config: &ModelConfig, compute: &Compute) -> usize {
    let attended = config.num_heads * config.head_dim;
    let matrices = config.hidden_size * (config.qkv_size() + attended + 3 * config.intermediate_size);
    let is_int8 = matches!(compute, Compute::Cpu { activations: ActivationType::Int8, .. });
    (matrices / (2 * attended * if is_int8 { 4 } else { 1 })).max(1)
}

fn spec(config: &ModelConfig, options: &DecoderOptions) -> Result<ModelSpec> {
    let max_model_len = options.max_model_len.unwrap_or(config.context_length);
    if max_model_len > config.context_length {
        let longest = config.context_length;
        return Err(Error::invalid(
            "max_model_len",
            format!("max_model_len must be at most the model's context of {longest}, got {max_model_len}"),
        ));
    }
    let block_bytes = config.kv_block_bytes() * if matches!(options.compute, Compute::Composed(_)) { 2 } else { 1 };
    let useful = options.max_num_seqs.max(1).saturating_mul(max_model_len.div_ceil(BLOCK_SIZE));
    let num_blocks = (options.kv_bytes_max / block_bytes).min(useful);
    if num_blocks == 0 {
        let got = options.kv_bytes_max;
        return Err(Error::invalid(
            "kv_bytes_max",
            format!("KV memory must hold a block of {block_bytes} bytes, got {got}"),
        ));
    }
    // A sequence longer than the whole KV memory could never finish.
    let max_model_len = max_model_len.min(num_blocks * BLOCK_SIZE);
    let attention_span = attention_span(config, &options.compute);
    Ok(ModelSpec { vocab_size: config.vocab_size, max_model_len, num_blocks, attention_span })
}

/// A decoder with its KV memory. Each worker has its own.
pub struct Decoder {
    spec: ModelSpec,
    ropes: Vec<Rope>,
    stages: Stages,
    /// Cosines and sines of the step, one pair per rope.
    angles: Vec<(Vec<f32>, Vec<f32>)>,
    /// The step's block tables as plain numbers.
    tables: Vec<u32>,
    /// Counts computed parts of jobs, or computed layers if candle's own operations compute them.
    beat: Arc<AtomicU64>,
}

enum Stages {
    Fused(Box<fused::Fused>),
    Composed(composed::Composed),
}

impl Model for Decoder {
    fn beat(&self) -> Option<Arc<AtomicU64>> {
        Some(self.beat.clone())
    }

    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()> {
        check(batch, &self.spec);
        if batch.logits_indices.is_empty() && batch.num_tokens() == 0 {
            logits.clear();
            return Ok(());
        }
        for (rope, (cos, sin)) in self.ropes.iter().zip(&mut self.angles) {
            rope.angles(&batch.positions, cos, sin);
        }
        self.tables.clear();
        self.tables.extend(batch.block_tables.iter().map(|block| block.0));
        match &mut self.stages {
            Stages::Fused(stages) => stages.forward(batch, &self.angles, &self.tables, logits),
            Stages::Composed(stages) => {
                stages.forward(batch, &self.angles, &self.tables, &self.beat, logits).or_device()
            }
        }
    }

    fn hidden_states(&mut self, batch: &Batch, rows: Range<usize>, states: &mut Vec<f32>) -> Result<()> {
        assert!(rows.end <= batch.num_tokens(), "a row outside the batch");
        match &mut self.stages {
            Stages::Fused(stages) => stages.hidden_states(rows, states),
            Stages::Composed(stages) => stages.hidden_states(rows, states).or_device(),
        }
    }
}

/// Panics on a malformed batch, which is a bug of the scheduler.
fn check(batch: &Batch, spec: &ModelSpec) {
    let num_tokens = batch.num_tokens();
    assert!(batch.positions.len() == num_tokens && batch.slot_mapping.len() == num_tokens, "ragged arrays differ");
    assert_eq!(batch.cu_seqlens.last().map(|n| *n as usize), Some(num_tokens), "cu_seqlens ends elsewhere");
    assert!(batch.cu_seqlens.windows(2).all(|w| w[0] < w[1]), "a sequence without tokens");
    assert_eq!(batch.cu_blocks.len(), batch.cu_seqlens.len(), "one block table per sequence");
    assert!(batch.token_ids.iter().all(|id| (*id as usize) < spec.vocab_size), "a token outside the vocabulary");
    assert!(batch.logits_indices.iter().all(|i| (*i as usize) < num_tokens), "a row outside the batch");
}

/// Converts an error of the kernels into the error that a caller of the model sees.
fn kernel_error(e: tallow_kernels::Error) -> Error {
    match e {
        tallow_kernels::Error::BadWeights(message) => Error::bad_model(message),
        e @ tallow_kernels::Error::NoMemory { .. } => Error::internal(e.to_string()),
        e @ tallow_kernels::Error::UnknownIsa { .. } => Error::invalid("TALLOW_ISA", e.to_string()),
    }
}
