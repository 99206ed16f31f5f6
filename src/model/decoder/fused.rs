//! The five stages of a layer on the CPU, each one custom op of candle over packed weights:
//! norm + qkv, rope + KV write + attention, output projection + residual, norm + gate and up + activation,
//! down projection + residual. Tensors travel between the stages; inside one, everything is `kernels/`.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result as CandleResult, Shape, Storage, Tensor};

use super::ActivationType;
use super::weights::{LayerTensors, Matrix, Tensors};
use crate::cache::KvStore;
use crate::error::Result;
use crate::kernels::{
    Activations, AttentionShape, Input, Isa, KvLayer, Packed, Part, Pool, QkNorm, Ragged, attention, dequantize_row,
    gated, linear, rms_norm,
};
use crate::model::Batch;
use crate::model::config::ModelConfig;
use crate::model::gguf::Gguf;

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
    fn part(&self) -> Part<'_> {
        Part { weights: &self.weights, bias: self.bias.as_deref(), column: self.column }
    }
}

impl Weights {
    /// Packs every matrix of the file, on all threads of `pool`.
    pub(super) fn load(gguf: Arc<Gguf>, config: Arc<ModelConfig>, pool: &mut Pool) -> Result<Self> {
        let tensors = Tensors::new(&gguf, &config);
        tensors.embeddings()?;
        let layers = (0..config.layers.len()).map(|i| Layer::load(&config, i, tensors.layer(i)?, pool));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let final_norm = tensors.final_norm()?;
        let head = pack(tensors.head()?, pool)?;
        tensors.finish()?;
        Ok(Self { layers, final_norm, head, gguf, config })
    }
}

fn pack(m: Matrix<'_>, pool: &mut Pool) -> Result<Packed> {
    Packed::pack(m.format, m.n, m.k, m.bytes, pool)
}

impl Layer {
    fn load(config: &ModelConfig, index: usize, t: LayerTensors<'_>, pool: &mut Pool) -> Result<Self> {
        let layer = config.layers[index];
        let mut qkv = Vec::new();
        let mut column = 0;
        for (matrix, bias) in t.qkv {
            qkv.push(Projection { weights: pack(matrix, pool)?, bias, column });
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
            attn_output: Projection { weights: pack(t.attn_output.0, pool)?, bias: t.attn_output.1, column: 0 },
            post_attn_norm: t.post_attn_norm,
            ffn_norm: t.ffn_norm,
            gate: pack(t.gate, pool)?,
            up: pack(t.up, pool)?,
            down: Projection { weights: pack(t.down, pool)?, bias: None, column: 0 },
            post_ffn_norm: t.post_ffn_norm,
        })
    }
}

/// What one worker owns besides its weights.
pub(super) struct Fused {
    weights: Arc<Weights>,
    kv: KvStore,
    cpu: Cpu,
}

struct Cpu {
    isa: Isa,
    pool: Pool,
    scratch: Vec<f32>,
    /// Inputs in bytes, where the compute is in bytes.
    quantized: Option<Activations>,
}

impl Cpu {
    /// Hands `x: [num_tokens, k]` to `f` as the kernels want it, normalised first where there is a weight.
    fn with_input(
        &mut self,
        x: &[f32],
        k: usize,
        norm: Option<(&[f32], f32)>,
        f: impl FnOnce(Isa, &mut Pool, &Input<'_>),
    ) {
        let Self { isa, pool, scratch, quantized } = self;
        let x = match norm {
            None => x,
            Some((weight, eps)) => {
                scratch.resize(scratch.len().max(x.len()), 0.0);
                let normed = &mut scratch[..x.len()];
                rms_norm(*isa, pool, x, weight, eps, normed);
                normed
            }
        };
        if let Some(quantized) = quantized {
            quantized.quantize(*isa, pool, x, k);
        }
        f(*isa, pool, &Input { x, quantized: quantized.as_ref(), num_tokens: x.len() / k });
    }

    /// `out = residual + norm(projection(x))`, the norm where there is one.
    fn project(&mut self, p: &Projection, x: &[f32], residual: &[f32], norm: Option<(&[f32], f32)>, out: &mut [f32]) {
        let Some((weight, eps)) = norm else {
            return self.with_input(x, p.weights.k(), None, |isa, pool, input| {
                linear(isa, pool, &[p.part()], input, Some(residual), out);
            });
        };
        let mut projected = vec![0.0; out.len()];
        self.with_input(x, p.weights.k(), None, |isa, pool, input| {
            linear(isa, pool, &[p.part()], input, None, &mut projected);
        });
        rms_norm(self.isa, &mut self.pool, &projected, weight, eps, out);
        out.iter_mut().zip(residual).for_each(|(out, r)| *out += r);
    }
}

impl Fused {
    pub(super) fn new(
        weights: Arc<Weights>,
        num_blocks: usize,
        isa: Isa,
        pool: Pool,
        activations: ActivationType,
    ) -> Self {
        let quantized = (activations == ActivationType::Int8).then(Activations::default);
        let c = &weights.config;
        let kv = KvStore::new(c.layers.len(), num_blocks, c.num_kv_heads, c.head_dim);
        Self { weights, kv, cpu: Cpu { isa, pool, scratch: Vec::new(), quantized } }
    }

    /// Runs the batch; `angles` has the cosines and sines of each rope, `tables` the batch's block tables as numbers.
    pub(super) fn forward(
        &mut self,
        batch: &Batch,
        angles: &[(Vec<f32>, Vec<f32>)],
        tables: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let Self { weights, kv, cpu } = self;
        let step = Step { config: &weights.config, batch, angles, tables, cpu: RefCell::new(cpu) };
        let mut h = weights.embed(batch)?;
        for (layer, kv) in weights.layers.iter().zip(&mut kv.layers) {
            let qkv = step.norm_qkv(layer, &h)?;
            let attended = step.attention(layer, kv, &qkv)?;
            h = step.project("out-residual", &layer.attn_output, layer.post_attn_norm.as_deref(), &attended, &h)?;
            let branch = step.norm_gate_up(layer, &h)?;
            h = step.project("down-residual", &layer.down, layer.post_ffn_norm.as_deref(), &branch, &h)?;
        }
        weights.logits(&h, batch, step.cpu.into_inner(), logits)
    }
}

/// One step's inputs, and a layer's stages over them.
struct Step<'a> {
    config: &'a ModelConfig,
    batch: &'a Batch,
    angles: &'a [(Vec<f32>, Vec<f32>)],
    tables: &'a [u32],
    cpu: RefCell<&'a mut Cpu>,
}

impl Step<'_> {
    /// `h: [num_tokens, hidden_size] -> [num_tokens, qkv_size]`
    fn norm_qkv(&self, layer: &Layer, h: &Tensor) -> CandleResult<Tensor> {
        let parts: Vec<Part<'_>> = layer.qkv.iter().map(Projection::part).collect();
        let run = |x: &[f32], out: &mut [f32]| {
            let norm = Some((&layer.attn_norm[..], self.config.norm_eps));
            self.cpu.borrow_mut().with_input(x, self.config.hidden_size, norm, |isa, pool, input| {
                linear(isa, pool, &parts, input, None, out);
            });
        };
        h.apply_op1_no_bwd(&Stage1 { name: "norm-qkv", width: self.config.qkv_size(), run })
    }

    /// `qkv: [num_tokens, qkv_size] -> [num_tokens, num_heads * head_dim]`
    fn attention(&self, layer: &Layer, kv: &mut KvLayer, qkv: &Tensor) -> CandleResult<Tensor> {
        let (cos, sin) = &self.angles[layer.rope_index];
        let batch = Ragged {
            positions: &self.batch.positions,
            slots: &self.batch.slot_mapping,
            cu_seqlens: &self.batch.cu_seqlens,
            block_tables: self.tables,
            cu_blocks: &self.batch.cu_blocks,
            cos,
            sin,
        };
        let kv = RefCell::new(kv);
        let run = |qkv: &[f32], out: &mut [f32]| {
            let Cpu { isa, pool, scratch, .. } = &mut **self.cpu.borrow_mut();
            scratch.clear();
            scratch.extend_from_slice(qkv);
            attention(*isa, pool, &layer.attention, &batch, *kv.borrow_mut(), scratch, out);
        };
        let width = self.config.num_heads * self.config.head_dim;
        qkv.apply_op1_no_bwd(&Stage1 { name: "rope-kv-attention", width, run })
    }

    /// `x: [num_tokens, k], h: [num_tokens, hidden_size] -> h + norm(projection(x))`, the norm where there is one.
    fn project(
        &self,
        name: &'static str,
        projection: &Projection,
        norm: Option<&[f32]>,
        x: &Tensor,
        h: &Tensor,
    ) -> CandleResult<Tensor> {
        let run = |x: &[f32], h: &[f32], out: &mut [f32]| {
            let norm = norm.map(|weight| (weight, self.config.norm_eps));
            self.cpu.borrow_mut().project(projection, x, h, norm, out);
        };
        x.apply_op2_no_bwd(h, &Stage2 { name, run })
    }

    /// `h: [num_tokens, hidden_size] -> [num_tokens, intermediate_size]`
    fn norm_gate_up(&self, layer: &Layer, h: &Tensor) -> CandleResult<Tensor> {
        let run = |x: &[f32], out: &mut [f32]| {
            let norm = Some((&layer.ffn_norm[..], self.config.norm_eps));
            self.cpu.borrow_mut().with_input(x, self.config.hidden_size, norm, |isa, pool, input| {
                gated(isa, pool, &layer.gate, &layer.up, self.config.activation, input, out);
            });
        };
        h.apply_op1_no_bwd(&Stage1 { name: "norm-gate-up", width: self.config.intermediate_size, run })
    }
}

impl Weights {
    /// `[num_tokens, hidden_size]`, read row by row from the file's pages.
    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let (hidden, scale) = (self.config.hidden_size, self.config.embedding_scale);
        let matrix = Tensors::new(&self.gguf, &self.config).embeddings()?;
        let row_bytes = matrix.format.row_bytes(hidden);
        let mut rows = vec![0f32; batch.num_tokens() * hidden];
        for (row, id) in rows.chunks_exact_mut(hidden).zip(&batch.token_ids) {
            dequantize_row(matrix.format, &matrix.bytes[*id as usize * row_bytes..][..row_bytes], row);
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
        Ok(Tensor::from_vec(rows, (batch.num_tokens(), hidden), &Device::Cpu)?)
    }

    /// Only the wanted rows go through the last norm and the head.
    fn logits(&self, h: &Tensor, batch: &Batch, cpu: &mut Cpu, logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        if batch.logits_indices.is_empty() {
            return Ok(());
        }
        let hidden = self.config.hidden_size;
        let (storage, layout) = h.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { unreachable!("fused stages run on the CPU") };
        let h = floats(storage, layout)?;
        let mut rows = Vec::with_capacity(batch.logits_indices.len() * hidden);
        for index in &batch.logits_indices {
            rows.extend_from_slice(&h[*index as usize * hidden..][..hidden]);
        }
        logits.resize(batch.logits_indices.len() * self.config.vocab_size, 0.0);
        let part = Part { weights: &self.head, bias: None, column: 0 };
        let norm = Some((&self.final_norm[..], self.config.norm_eps));
        cpu.with_input(&rows, hidden, norm, |isa, pool, input| linear(isa, pool, &[part], input, None, logits));
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

/// `[num_tokens, any] -> [num_tokens, width]`
struct Stage1<F> {
    name: &'static str,
    width: usize,
    run: F,
}

impl<F: Fn(&[f32], &mut [f32])> CustomOp1 for Stage1<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let num_tokens = layout.dims()[0];
        let mut out = vec![0f32; num_tokens * self.width];
        (self.run)(floats(storage, layout)?, &mut out);
        Ok((CpuStorage::F32(out), Shape::from((num_tokens, self.width))))
    }
}

/// `[num_tokens, any], [num_tokens, width] -> [num_tokens, width]`
struct Stage2<F> {
    name: &'static str,
    run: F,
}

impl<F: Fn(&[f32], &[f32], &mut [f32])> CustomOp2 for Stage2<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let residual = floats(s2, l2)?;
        let mut out = vec![0f32; residual.len()];
        (self.run)(floats(s1, l1)?, residual, &mut out);
        Ok((CpuStorage::F32(out), l2.shape().clone()))
    }
}
