//! The five stages of a layer on the CPU, each one custom op of candle over packed weights:
//! norm + qkv, rope + KV write + attention, output projection + residual, norm + gate and up + activation,
//! down projection + residual. Tensors travel between the stages; inside one, everything is `kernels/`.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, InplaceOp2, Layout, Result as CandleResult, Storage, Tensor};

use super::weights::{LayerTensors, Matrix, Tensors};
use super::{ActivationType, kernel_error};
use crate::Batch;
use crate::config::ModelConfig;
use crate::device::OrDevice;
use crate::gguf::Gguf;
use tallow_kernels::{
    Activations, AttentionShape, DistinctSlots, Isa, KvLayer, KvStore, MatrixInput, MatrixPart, Memory, Norm, Packed,
    Pool, QkNorm, Ragged, StageOutput, add_rms_norm, attention, dequantize_row, gated, linear, rms_norm,
};
use tallow_stream::error::Result;

/// A model's weights, packed; shared by all workers.
pub(super) struct Weights {
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Packed,
    /// Kept for the embedding rows, which are looked up in the file's own pages.
    gguf: Arc<Gguf>,
    config: Arc<ModelConfig>,
}

struct Layer {
    attn_norm: Vec<f32>,
    qkv: Vec<Projection>,
    attention: AttentionShape,
    rope_index: usize,
    attn_output: Projection,
    post_attn_norm: Option<Vec<f32>>,
    ffn_norm: Vec<f32>,
    gate: Packed,
    up: Packed,
    down: Projection,
    post_ffn_norm: Option<Vec<f32>>,
}

struct Projection {
    weights: Packed,
    bias: Option<Vec<f32>>,
    column: usize,
}

impl Projection {
    fn part(&self) -> MatrixPart<'_> {
        MatrixPart { weights: &self.weights, bias: self.bias.as_deref(), column: self.column }
    }
}

impl Weights {
    /// Packs every matrix of the file, on all threads of `pool`.
    pub(super) fn load(gguf: &Arc<Gguf>, config: Arc<ModelConfig>, pool: &mut Pool) -> Result<Self> {
        let tensors = Tensors::new(gguf, &config);
        tensors.embeddings()?;
        let mut memory = Memory::default();
        let mut pack =
            |m: Matrix<'_>| Packed::pack(m.format, m.n, m.k, m.bytes, &mut memory, pool).map_err(kernel_error);
        let layers = (0..config.layers.len()).map(|i| Layer::load(&config, i, tensors.layer(i)?, &mut pack));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let final_norm = tensors.final_norm()?;
        let head = pack(tensors.head()?)?;
        tensors.finish()?;
        // From here on only rows of embeddings are read from the file.
        let gguf = Arc::new(gguf.mapped_afresh()?);
        Ok(Self { layers, final_norm, head, gguf, config })
    }
}

/// Weights that the next stage reads.
type AheadRanges = [Range<*const u8>; 2];

fn nothing() -> Range<*const u8> {
    std::ptr::null()..std::ptr::null()
}

impl Layer {
    /// From the first matrix to the last, which are packed one after another.
    fn qkv_addresses(&self) -> Range<*const u8> {
        let (first, last) = (&self.qkv[0].weights, &self.qkv[self.qkv.len() - 1].weights);
        first.addresses().start..last.addresses().end
    }

    fn load(
        config: &ModelConfig,
        index: usize,
        t: LayerTensors<'_>,
        pack: &mut impl FnMut(Matrix<'_>) -> Result<Packed>,
    ) -> Result<Self> {
        let layer = config.layers[index];
        let mut qkv = Vec::new();
        let mut column = 0;
        for (matrix, bias) in t.qkv {
            qkv.push(Projection { weights: pack(matrix)?, bias, column });
            column += matrix.n;
        }
        let qk_norm =
            t.q_norm.zip(t.k_norm).map(|(q_weight, k_weight)| QkNorm { q_weight, k_weight, eps: config.norm_eps });
        let attention = AttentionShape {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            window: layer.window,
            rope_pairs: config.rope_pairs,
            qk_norm,
        };
        Ok(Self {
            attn_norm: t.attn_norm,
            qkv,
            attention,
            rope_index: layer.rope_index,
            attn_output: Projection { weights: pack(t.attn_output.0)?, bias: t.attn_output.1, column: 0 },
            post_attn_norm: t.post_attn_norm,
            ffn_norm: t.ffn_norm,
            gate: pack(t.gate)?,
            up: pack(t.up)?,
            down: Projection { weights: pack(t.down)?, bias: None, column: 0 },
            post_ffn_norm: t.post_ffn_norm,
        })
    }
}

/// What one worker owns besides its weights.
pub(super) struct Fused {
    weights: Arc<Weights>,
    kv: KvStore,
    cpu: Cpu,
    states: Option<States>,
}

struct Cpu {
    isa: Isa,
    pool: Pool,
    /// A stage's inputs after its norm, or its outputs before one.
    scratch: Vec<f32>,
    /// `[num_tokens, num_heads * head_dim]`, from attention to the projection after it. No tensor, because an op of
    /// candle's may change one, and attention rotates `qkv` in place.
    attended: Vec<f32>,
    /// Where the compute is in bytes.
    quantized: Option<Quantized>,
}

/// Inputs in bytes.
#[derive(Default)]
struct Quantized {
    /// After a norm.
    normed: Activations,
    /// What attention or the gate made.
    branch: Activations,
}

impl Cpu {
    /// Hands `x: [num_tokens, k]` to `f` after the norm, and with it the place for what the stage makes in bytes.
    fn with_normed(
        &mut self,
        x: &[f32],
        norm: Norm<'_>,
        f: impl FnOnce(Isa, &mut Pool, &MatrixInput<'_>, Option<&mut Activations>),
    ) {
        let Self { isa, pool, scratch, quantized, .. } = self;
        let (isa, num_tokens) = (*isa, x.len() / norm.weight.len());
        let normed = resized(scratch, x.len());
        let (quantized, branch) = match quantized {
            Some(Quantized { normed: quantized, branch }) => {
                quantized.quantize_normed(isa, pool, x, norm, normed);
                (Some(&*quantized), Some(branch))
            }
            None => {
                rms_norm(isa, pool, x, norm, normed);
                (None, None)
            }
        };
        f(isa, pool, &MatrixInput { x: normed, quantized, num_tokens }, branch);
    }

    /// `h += norm(projection(x))`, the norm where there is one; `x` is what attention or the gate made.
    fn project(&mut self, p: &Projection, x: &[f32], norm: Option<Norm<'_>>, next: AheadRanges, h: &mut [f32]) {
        let Self { isa, pool, scratch, quantized, .. } = self;
        let quantized = quantized.as_ref().map(|quantized| &quantized.branch);
        let input = MatrixInput { x, quantized, num_tokens: x.len() / p.weights.k() };
        pool.set_ahead(next);
        let Some(norm) = norm else {
            return linear(*isa, pool, &[p.part()], &input, true, h);
        };
        let projected = resized(scratch, h.len());
        linear(*isa, pool, &[p.part()], &input, false, projected);
        add_rms_norm(*isa, pool, projected, norm, h);
    }
}

/// The first `len` elements of a vector that grows to the largest length asked for.
fn resized(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}

/// The tensors between the stages, which write into them: a new tensor for each of a step's 150 stages would be new
/// memory, zeroed and faulted in page by page.
struct States {
    /// `[capacity, hidden_size]`
    h: Tensor,
    /// `[capacity, qkv_size]`
    qkv: Tensor,
    /// `[capacity, intermediate_size]`
    branch: Tensor,
}

impl States {
    fn new(config: &ModelConfig, capacity: usize) -> CandleResult<Self> {
        let tensor = |width| Tensor::zeros((capacity, width), DType::F32, &Device::Cpu);
        Ok(Self {
            h: tensor(config.hidden_size)?,
            qkv: tensor(config.qkv_size())?,
            branch: tensor(config.intermediate_size)?,
        })
    }

    /// The first `num_tokens` rows of each.
    fn rows(&self, num_tokens: usize) -> CandleResult<Self> {
        let rows = |tensor: &Tensor| tensor.narrow(0, 0, num_tokens);
        Ok(Self { h: rows(&self.h)?, qkv: rows(&self.qkv)?, branch: rows(&self.branch)? })
    }
}

impl Fused {
    pub(super) fn new(
        weights: Arc<Weights>,
        num_blocks: usize,
        isa: Isa,
        pool: Pool,
        activations: ActivationType,
    ) -> Result<Self> {
        let quantized = (activations == ActivationType::Int8).then(Quantized::default);
        let c = &weights.config;
        let kv = KvStore::new(c.layers.len(), num_blocks, c.num_kv_heads, c.head_dim).map_err(kernel_error)?;
        Ok(Self {
            weights,
            kv,
            cpu: Cpu { isa, pool, scratch: Vec::new(), attended: Vec::new(), quantized },
            states: None,
        })
    }

    /// See [`crate::Model::beat`].
    pub(super) fn beat(&self) -> Arc<AtomicU64> {
        self.cpu.pool.beat()
    }

    /// Runs the batch; `angles` has the cosines and sines of each rope, `tables` the block tables as numbers.
    pub(super) fn forward(
        &mut self,
        batch: &Batch,
        angles: &[(Vec<f32>, Vec<f32>)],
        tables: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let Self { weights, kv, cpu, states } = self;
        let num_tokens = batch.num_tokens();
        let states = match states {
            Some(states) if num_tokens <= states.h.dims()[0] => states,
            // The largest batch so far; the scheduler bounds how large they get.
            _ => states.insert(States::new(&weights.config, num_tokens).or_device()?),
        };
        let states = states.rows(num_tokens).or_device()?;
        for (from, to) in &batch.copies {
            kv.layers.iter_mut().for_each(|layer| layer.copy_block(from.0 as usize, to.0 as usize));
        }
        let slots = DistinctSlots::new(&batch.slot_mapping);
        let step = LayerStep { config: &weights.config, batch, slots, angles, tables, states, cpu: RefCell::new(cpu) };
        weights.embed(batch, &step.states.h)?;
        for (i, (layer, kv)) in weights.layers.iter().zip(&mut kv.layers).enumerate() {
            let next = weights.layers.get(i + 1).map_or(weights.head.addresses(), Layer::qkv_addresses);
            step.run(layer, kv, next).or_device()?;
        }
        weights.logits(&step.states.h, batch, step.cpu.into_inner(), logits)
    }

    /// What the step before has left in these rows of `h`, behind the last norm.
    pub(super) fn hidden_states(&mut self, rows: Range<usize>, states: &mut Vec<f32>) -> Result<()> {
        let Self { weights, cpu, states: left, .. } = self;
        let left = left.as_ref().expect("states are asked for after a step");
        let (storage, layout) = left.h.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { unreachable!("fused stages run on the CPU") };
        let hidden = weights.config.hidden_size;
        let h = &floats(storage, layout).or_device()?[rows.start * hidden..rows.end * hidden];
        let norm = Norm { weight: &weights.final_norm, eps: weights.config.norm_eps };
        states.resize(h.len(), 0.0);
        rms_norm(cpu.isa, &mut cpu.pool, h, norm, states);
        Ok(())
    }
}

/// One step's inputs and states, and a layer's stages over them.
struct LayerStep<'a> {
    config: &'a ModelConfig,
    batch: &'a Batch,
    slots: DistinctSlots<'a>,
    angles: &'a [(Vec<f32>, Vec<f32>)],
    tables: &'a [u32],
    states: States,
    cpu: RefCell<&'a mut Cpu>,
}

impl LayerStep<'_> {
    fn norm<'w>(&self, weight: &'w [f32]) -> Norm<'w> {
        Norm { weight, eps: self.config.norm_eps }
    }

    /// All stages of a layer; `next` is what the layer after it reads first.
    fn run(&self, layer: &Layer, kv: &mut KvLayer, next: Range<*const u8>) -> CandleResult<()> {
        self.norm_qkv(layer)?;
        self.attention(layer, kv)?;
        self.attn_output(layer)?;
        self.norm_gate_up(layer)?;
        self.down(layer, next)
    }

    /// `h -> qkv`
    fn norm_qkv(&self, layer: &Layer) -> CandleResult<()> {
        let parts: Vec<MatrixPart<'_>> = layer.qkv.iter().map(Projection::part).collect();
        let run = |out: &mut [f32], x: &[f32]| {
            self.cpu.borrow_mut().with_normed(x, self.norm(&layer.attn_norm), |isa, pool, input, _| {
                pool.set_ahead([layer.attn_output.weights.addresses(), nothing()]);
                linear(isa, pool, &parts, input, false, out);
            });
        };
        self.states.qkv.inplace_op2(&self.states.h, &Stage { name: "norm-qkv", run })
    }

    /// `qkv -> KV memory, attended`
    fn attention(&self, layer: &Layer, kv: &mut KvLayer) -> CandleResult<()> {
        let (cos, sin) = &self.angles[layer.rope_index];
        let batch = Ragged {
            positions: &self.batch.positions,
            slots: self.slots,
            cu_seqlens: &self.batch.cu_seqlens,
            block_tables: self.tables,
            cu_blocks: &self.batch.cu_blocks,
            cos,
            sin,
        };
        let kv = RefCell::new(kv);
        let run = |qkv: &mut [f32]| {
            let Cpu { isa, pool, attended, quantized, .. } = &mut **self.cpu.borrow_mut();
            let x = resized(attended, batch.positions.len() * self.config.num_heads * self.config.head_dim);
            let out = StageOutput { x, quantized: quantized.as_mut().map(|quantized| &mut quantized.branch) };
            attention(*isa, pool, &layer.attention, &batch, *kv.borrow_mut(), qkv, out);
        };
        self.states.qkv.inplace_op1(&Stage { name: "rope-attention", run })
    }

    /// `h += norm(projection(attended))`, the norm where there is one.
    fn attn_output(&self, layer: &Layer) -> CandleResult<()> {
        let run = |h: &mut [f32]| {
            let norm = layer.post_attn_norm.as_deref().map(|weight| self.norm(weight));
            let next = [layer.gate.addresses(), layer.up.addresses()];
            let mut cpu = self.cpu.borrow_mut();
            let attended = std::mem::take(&mut cpu.attended);
            let x = &attended[..self.batch.num_tokens() * layer.attn_output.weights.k()];
            cpu.project(&layer.attn_output, x, norm, next, h);
            cpu.attended = attended;
        };
        self.states.h.inplace_op1(&Stage { name: "out-residual", run })
    }

    /// `h -> branch`
    fn norm_gate_up(&self, layer: &Layer) -> CandleResult<()> {
        let run = |out: &mut [f32], x: &[f32]| {
            self.cpu.borrow_mut().with_normed(x, self.norm(&layer.ffn_norm), |isa, pool, input, quantized| {
                pool.set_ahead([layer.down.weights.addresses(), nothing()]);
                let out = StageOutput { x: out, quantized };
                gated(isa, pool, &layer.gate, &layer.up, self.config.activation, input, out);
            });
        };
        self.states.branch.inplace_op2(&self.states.h, &Stage { name: "norm-gate-up", run })
    }

    /// `h += norm(projection(branch))`, the norm where there is one; `next` are the weights of the next layer, or the head.
    fn down(&self, layer: &Layer, next: Range<*const u8>) -> CandleResult<()> {
        let run = |h: &mut [f32], x: &[f32]| {
            let norm = layer.post_ffn_norm.as_deref().map(|weight| self.norm(weight));
            self.cpu.borrow_mut().project(&layer.down, x, norm, [next.clone(), nothing()], h);
        };
        self.states.h.inplace_op2(&self.states.branch, &Stage { name: "down-residual", run })
    }
}

impl Weights {
    /// Fills `h: [num_tokens, hidden_size]`, read row by row from the file's pages.
    fn embed(&self, batch: &Batch, h: &Tensor) -> Result<()> {
        let (hidden, scale) = (self.config.hidden_size, self.config.embedding_scale);
        let matrix = Tensors::new(&self.gguf, &self.config).embeddings()?;
        let row_bytes = matrix.format.row_bytes(hidden);
        let run = |h: &mut [f32]| {
            for (row, id) in h.chunks_exact_mut(hidden).zip(&batch.token_ids) {
                dequantize_row(matrix.format, &matrix.bytes[*id as usize * row_bytes..][..row_bytes], row);
                if scale != 1.0 {
                    row.iter_mut().for_each(|x| *x *= scale);
                }
            }
        };
        h.inplace_op1(&Stage { name: "embed", run }).or_device()
    }

    /// Only the wanted rows go through the last norm and the head.
    fn logits(&self, h: &Tensor, batch: &Batch, cpu: &mut Cpu, logits: &mut Vec<f32>) -> Result<()> {
        // Not cleared first: every value is overwritten, and zeroing them takes as long as writing them.
        logits.resize(batch.logits_indices.len() * self.config.vocab_size, 0.0);
        if batch.logits_indices.is_empty() {
            return Ok(());
        }
        let hidden = self.config.hidden_size;
        let (storage, layout) = h.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { unreachable!("fused stages run on the CPU") };
        let h = floats(storage, layout).or_device()?;
        let mut rows = Vec::with_capacity(batch.logits_indices.len() * hidden);
        for index in &batch.logits_indices {
            rows.extend_from_slice(&h[*index as usize * hidden..][..hidden]);
        }
        let part = MatrixPart { weights: &self.head, bias: None, column: 0 };
        let norm = Norm { weight: &self.final_norm, eps: self.config.norm_eps };
        cpu.with_normed(&rows, norm, |isa, pool, input, _| {
            pool.set_ahead([self.layers[0].qkv_addresses(), nothing()]);
            linear(isa, pool, &[part], input, false, logits);
        });
        Ok(())
    }
}

fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> CandleResult<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => candle_core::bail!("a stage got a tensor that is not contiguous"),
    }
}

fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> CandleResult<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("a stage got a tensor that is not contiguous, or not f32"),
    }
}

/// A function from one tensor's values to another's, or over one's own, as a custom op.
struct Stage<F> {
    name: &'static str,
    run: F,
}

impl<F: Fn(&mut [f32])> InplaceOp1 for Stage<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> CandleResult<()> {
        (self.run)(floats_mut(out, layout)?);
        Ok(())
    }
}

impl<F: Fn(&mut [f32], &[f32])> InplaceOp2 for Stage<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> CandleResult<()> {
        (self.run)(floats_mut(out, out_layout)?, floats(x, x_layout)?);
        Ok(())
    }
}
