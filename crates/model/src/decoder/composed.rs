//! The same five stages from candle's own primitives, on any device: the way to a GPU, and on the CPU the reference
//! that the fused stages are compared with. Matrices stay quantised on a GPU (`QMatMul`); on the CPU they are
//! dequantised to f32, so that nothing but rounding order separates the two. KV memory is f32.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::{rope, rope_i};

use super::weights::{LayerTensors, Matrix, Tensors};
use crate::Batch;
use crate::config::ModelConfig;
use crate::device::OrDevice;
use crate::gguf::Gguf;
use tallow_kernels::BLOCK_SIZE;
use tallow_kernels::{Activation, RopePairs, WeightFormat};

/// A model's weights as candle tensors; shared by all workers.
pub(super) struct Weights {
    embeddings: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    head: QMatMul,
    config: Arc<ModelConfig>,
    device: Device,
}

struct Layer {
    attn_norm: Tensor,
    qkv: Vec<Linear>,
    qk_norm: Option<(Tensor, Tensor)>,
    window: Option<usize>,
    rope_index: usize,
    attn_output: Linear,
    post_attn_norm: Option<Tensor>,
    ffn_norm: Tensor,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
    post_ffn_norm: Option<Tensor>,
}

struct Linear {
    weights: QMatMul,
    bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weights.forward(x)?;
        Ok(match &self.bias {
            None => y,
            Some(bias) => y.broadcast_add(bias)?,
        })
    }
}

fn candle_dtype(format: WeightFormat) -> GgmlDType {
    match format {
        WeightFormat::F32 => GgmlDType::F32,
        WeightFormat::F16 => GgmlDType::F16,
        WeightFormat::BF16 => GgmlDType::BF16,
        WeightFormat::Q4_0 => GgmlDType::Q4_0,
        WeightFormat::Q4_1 => GgmlDType::Q4_1,
        WeightFormat::Q5_0 => GgmlDType::Q5_0,
        WeightFormat::Q5_1 => GgmlDType::Q5_1,
        WeightFormat::Q8_0 => GgmlDType::Q8_0,
        WeightFormat::Q2K => GgmlDType::Q2K,
        WeightFormat::Q3K => GgmlDType::Q3K,
        WeightFormat::Q4K => GgmlDType::Q4K,
        WeightFormat::Q5K => GgmlDType::Q5K,
        WeightFormat::Q6K => GgmlDType::Q6K,
    }
}

fn qtensor(m: Matrix<'_>, device: &Device) -> Result<QTensor> {
    let storage = QStorage::from_data(m.bytes.into(), device, candle_dtype(m.format))?;
    QTensor::new(storage, (m.n, m.k))
}

fn matmul(m: Matrix<'_>, device: &Device) -> Result<QMatMul> {
    let tensor = qtensor(m, device)?;
    Ok(if device.is_cpu() { QMatMul::Tensor(tensor.dequantize(device)?) } else { QMatMul::from_qtensor(tensor)? })
}

fn vector(values: &[f32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), device)
}

impl Weights {
    pub(super) fn load(
        gguf: &Arc<Gguf>,
        config: &Arc<ModelConfig>,
        device: &Device,
    ) -> tallow_stream::error::Result<Self> {
        let tensors = Tensors::new(gguf, config);
        let embeddings = tensors.embeddings()?;
        let embeddings = qtensor(embeddings, device).and_then(|tensor| tensor.dequantize(device)).or_device()?;
        let layers = (0..config.layers.len()).map(|i| Layer::load(config, i, &tensors.layer(i)?, device).or_device());
        let layers = layers.collect::<tallow_stream::error::Result<Vec<_>>>()?;
        let final_norm = vector(&tensors.final_norm()?, device).or_device()?;
        let head = matmul(tensors.head()?, device).or_device()?;
        tensors.finish()?;
        Ok(Self { embeddings, layers, final_norm, head, config: config.clone(), device: device.clone() })
    }
}

impl Layer {
    fn load(config: &ModelConfig, index: usize, t: &LayerTensors<'_>, device: &Device) -> Result<Self> {
        let layer = config.layers[index];
        let opt = |values: &Option<Vec<f32>>| values.as_deref().map(|v| vector(v, device)).transpose();
        let linear = |(matrix, bias): &(Matrix<'_>, Option<Vec<f32>>)| -> Result<Linear> {
            Ok(Linear { weights: matmul(*matrix, device)?, bias: opt(bias)? })
        };
        Ok(Self {
            attn_norm: vector(&t.attn_norm, device)?,
            qkv: t.qkv.iter().map(linear).collect::<Result<_>>()?,
            qk_norm: opt(&t.q_norm)?.zip(opt(&t.k_norm)?),
            window: layer.window,
            rope_index: layer.rope_index,
            attn_output: linear(&t.attn_output)?,
            post_attn_norm: opt(&t.post_attn_norm)?,
            ffn_norm: vector(&t.ffn_norm, device)?,
            gate: matmul(t.gate, device)?,
            up: matmul(t.up, device)?,
            down: matmul(t.down, device)?,
            post_ffn_norm: opt(&t.post_ffn_norm)?,
        })
    }
}

/// What one worker owns besides its weights.
pub(super) struct Composed {
    weights: Arc<Weights>,
    /// Per layer, keys and values `[num_blocks * BLOCK_SIZE, num_kv_heads, head_dim]`.
    kv: Vec<(Tensor, Tensor)>,
    /// `[num_tokens, hidden_size]`, of the last step.
    h: Option<Tensor>,
}

impl Composed {
    pub(super) fn new(weights: Arc<Weights>, num_blocks: usize) -> Result<Self> {
        let c = &weights.config;
        let shape = (num_blocks * BLOCK_SIZE, c.num_kv_heads, c.head_dim);
        let memory = || Tensor::zeros(shape, DType::F32, &weights.device);
        let kv = c.layers.iter().map(|_| Ok((memory()?, memory()?))).collect::<Result<_>>()?;
        Ok(Self { weights, kv, h: None })
    }

    /// Runs the batch; see `Fused::forward`.
    pub(super) fn forward(
        &mut self,
        batch: &Batch,
        angles: &[(Vec<f32>, Vec<f32>)],
        tables: &[u32],
        beat: &AtomicU64,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        for (from, to) in &batch.copies {
            for memory in self.kv.iter().flat_map(|(keys, values)| [keys, values]) {
                let block = memory.narrow(0, from.0 as usize * BLOCK_SIZE, BLOCK_SIZE)?.copy()?;
                memory.slice_set(&block, 0, to.0 as usize * BLOCK_SIZE)?;
            }
        }
        let (weights, device) = (&*self.weights, &self.weights.device);
        let (c, eps) = (&*weights.config, weights.config.norm_eps);
        let ids = Tensor::from_slice(&batch.token_ids, batch.num_tokens(), device)?;
        let mut h = (weights.embeddings.index_select(&ids, 0)? * f64::from(c.embedding_scale))?;
        let angle = |values: &[f32]| Tensor::from_slice(values, (batch.num_tokens(), c.rope_dim / 2), device);
        let angles: Vec<(Tensor, Tensor)> =
            angles.iter().map(|(cos, sin)| Ok((angle(cos)?, angle(sin)?))).collect::<Result<_>>()?;
        let contexts = contexts(batch, tables, device)?;
        for (layer, kv) in weights.layers.iter().zip(&self.kv) {
            let x = rms_norm(&h, &layer.attn_norm, eps)?;
            let parts = layer.qkv.iter().map(|linear| linear.forward(&x)).collect::<Result<Vec<_>>>()?;
            let qkv = Tensor::cat(&parts, 1)?;
            let attended = layer.attention(c, batch, &contexts, &angles[layer.rope_index], kv, &qkv)?;
            let y = layer.attn_output.forward(&attended)?;
            h = (h + post_norm(y, layer.post_attn_norm.as_ref(), eps)?)?;
            let x = rms_norm(&h, &layer.ffn_norm, eps)?;
            let gate = layer.gate.forward(&x)?;
            let gate = match c.activation {
                Activation::Silu => silu(&gate)?,
                Activation::GeluTanh => gate.gelu()?,
            };
            let y = layer.down.forward(&(gate * layer.up.forward(&x)?)?)?;
            h = (h + post_norm(y, layer.post_ffn_norm.as_ref(), eps)?)?;
            beat.fetch_add(1, Ordering::Relaxed);
        }
        self.h = Some(h.clone());
        if batch.logits_indices.is_empty() {
            logits.clear();
            return Ok(());
        }
        let wanted = Tensor::from_slice(&batch.logits_indices, batch.logits_indices.len(), device)?;
        let rows = rms_norm(&h.index_select(&wanted, 0)?, &weights.final_norm, eps)?;
        *logits = weights.head.forward(&rows)?.flatten_all()?.to_vec1()?;
        Ok(())
    }

    /// See `Fused::hidden_states`.
    pub(super) fn hidden_states(&mut self, rows: Range<usize>, states: &mut Vec<f32>) -> Result<()> {
        let h = self.h.as_ref().expect("states are asked for after a step");
        let h = h.narrow(0, rows.start, rows.len())?.contiguous()?;
        *states = rms_norm(&h, &self.weights.final_norm, self.weights.config.norm_eps)?.flatten_all()?.to_vec1()?;
        Ok(())
    }
}

fn post_norm(y: Tensor, weight: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    Ok(match weight {
        None => y,
        Some(weight) => rms_norm(&y.contiguous()?, weight, eps)?,
    })
}

/// The slots of each sequence's positions so far, as indices into the KV memory.
fn contexts(batch: &Batch, tables: &[u32], device: &Device) -> Result<Vec<Tensor>> {
    (0..batch.num_seqs())
        .map(|seq| {
            let table = &tables[batch.cu_blocks[seq] as usize..batch.cu_blocks[seq + 1] as usize];
            let len = batch.positions[batch.rows(seq).end - 1] + 1;
            let block_size = BLOCK_SIZE as u32;
            let slots: Vec<u32> =
                (0..len).map(|p| table[(p / block_size) as usize] * block_size + p % block_size).collect();
            Tensor::from_vec(slots, len as usize, device)
        })
        .collect()
}

impl Layer {
    /// `qkv: [num_tokens, qkv_size] -> [num_tokens, num_heads * head_dim]`
    fn attention(
        &self,
        c: &ModelConfig,
        batch: &Batch,
        contexts: &[Tensor],
        angles: &(Tensor, Tensor),
        (keys, values): &(Tensor, Tensor),
        qkv: &Tensor,
    ) -> Result<Tensor> {
        let num_tokens = batch.num_tokens();
        let heads = |start: usize, num: usize| -> Result<Tensor> {
            let part = qkv.narrow(1, start * c.head_dim, num * c.head_dim)?;
            part.contiguous()?.reshape((num_tokens, num, c.head_dim))
        };
        let mut q = heads(0, c.num_heads)?;
        let mut k = heads(c.num_heads, c.num_kv_heads)?;
        let v = heads(c.num_heads + c.num_kv_heads, c.num_kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = rms_norm(&q, q_norm, c.norm_eps)?;
            k = rms_norm(&k, k_norm, c.norm_eps)?;
        }
        let q = (rotate(c, &q, angles)? * f64::from(c.attention_scale))?;
        let k = rotate(c, &k, angles)?;
        write(keys, &k, &batch.slot_mapping)?;
        write(values, &v, &batch.slot_mapping)?;
        let mut out = Vec::with_capacity(batch.num_seqs());
        for (seq, context) in contexts.iter().enumerate() {
            let rows = batch.rows(seq);
            let gather = |memory: &Tensor| -> Result<Tensor> {
                let all = memory.index_select(context, 0)?.transpose(0, 1)?.contiguous()?;
                repeat_heads(&all, c.num_heads / c.num_kv_heads)
            };
            let q = q.narrow(0, rows.start, rows.len())?.transpose(0, 1)?.contiguous()?;
            let scores = q.matmul(&gather(keys)?.transpose(1, 2)?.contiguous()?)?;
            let mask = self.mask(&batch.positions[rows.clone()], context.dim(0)?, qkv.device())?;
            let p = softmax_last_dim(&scores.broadcast_add(&mask)?)?;
            let seen = p.matmul(&gather(values)?)?.transpose(0, 1)?.contiguous()?;
            out.push(seen.reshape((rows.len(), c.num_heads * c.head_dim))?);
        }
        Tensor::cat(&out, 0)
    }

    /// `[num_queries, context]`: 0 where the query sees the position, else minus infinity.
    fn mask(&self, positions: &[u32], context: usize, device: &Device) -> Result<Tensor> {
        let mut mask = Vec::with_capacity(positions.len() * context);
        for position in positions {
            let position = *position as usize;
            let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
            mask.extend((0..context).map(|p| if (first..=position).contains(&p) { 0.0 } else { f32::NEG_INFINITY }));
        }
        Tensor::from_vec(mask, (positions.len(), context), device)
    }
}

/// `[heads, len, dim] -> [heads * times, len, dim]`, each head followed by its copies.
fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    let (heads, len, dim) = x.dims3()?;
    x.unsqueeze(1)?.expand((heads, times, len, dim))?.reshape((heads * times, len, dim))
}

/// Rotates the leading dimensions of `x: [num_tokens, heads, head_dim]`.
fn rotate(c: &ModelConfig, x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
    let x = x.transpose(0, 1)?.unsqueeze(0)?;
    let turned = x.narrow(D::Minus1, 0, c.rope_dim)?.contiguous()?;
    let turned = match c.rope_pairs {
        RopePairs::Interleaved => rope_i(&turned, cos, sin)?,
        RopePairs::Halves => rope(&turned, cos, sin)?,
    };
    let x = if c.rope_dim == c.head_dim {
        turned
    } else {
        let rest = x.narrow(D::Minus1, c.rope_dim, c.head_dim - c.rope_dim)?.contiguous()?;
        Tensor::cat(&[&turned, &rest], D::Minus1)?
    };
    x.squeeze(0)?.transpose(0, 1)?.contiguous()
}

/// Copies each token's row to its slot, runs of neighbouring slots at once.
fn write(memory: &Tensor, rows: &Tensor, slots: &[u32]) -> Result<()> {
    let mut start = 0;
    while start < slots.len() {
        let run = slots[start..].iter().zip(slots[start]..).take_while(|(slot, next)| *slot == next).count();
        memory.slice_set(&rows.narrow(0, start, run)?.contiguous()?, 0, slots[start] as usize)?;
        start += run;
    }
    Ok(())
}
