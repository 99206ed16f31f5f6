//! A file's tensors, checked against the description: each by name, with the shape it must have.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use crate::config::ModelConfig;
use crate::gguf::{Gguf, TensorView};
use tallow_kernels::WeightFormat;
use tallow_stream::error::{Error, Result};

/// A matrix `[n, k]` as it lies in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) format: WeightFormat,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// The rows `start..start + n`.
    fn rows(self, start: usize, n: usize) -> Self {
        let row_bytes = self.format.row_bytes(self.k);
        Self { n, bytes: &self.bytes[start * row_bytes..(start + n) * row_bytes], ..self }
    }
}

/// One layer's tensors.
pub(super) struct LayerTensors<'a> {
    pub(super) attn_norm: Vec<f32>,
    /// Query, key and value projections, whose outputs stand side by side.
    pub(super) qkv: Vec<(Matrix<'a>, Option<Vec<f32>>)>,
    pub(super) q_norm: Option<Vec<f32>>,
    pub(super) k_norm: Option<Vec<f32>>,
    pub(super) attn_output: (Matrix<'a>, Option<Vec<f32>>),
    pub(super) post_attn_norm: Option<Vec<f32>>,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate: Matrix<'a>,
    pub(super) up: Matrix<'a>,
    pub(super) down: Matrix<'a>,
    pub(super) post_ffn_norm: Option<Vec<f32>>,
}

/// Hands out tensors and remembers which, so that those nobody asked for can be refused: a file with tensors the
/// decoder does not use is a model the decoder does not implement.
pub(super) struct Tensors<'a> {
    gguf: &'a Gguf,
    config: &'a ModelConfig,
    used: RefCell<HashSet<String>>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(gguf: &'a Arc<Gguf>, config: &'a ModelConfig) -> Self {
        // Read with the description already, or derived from it.
        let read_before = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
        let used = read_before.map(str::to_owned).into_iter().collect();
        Self { gguf, config, used: RefCell::new(used) }
    }

    /// The embedding matrix `[vocab_size, hidden_size]`.
    pub(super) fn embeddings(&self) -> Result<Matrix<'a>> {
        self.matrix("token_embd.weight", self.config.vocab_size, self.config.hidden_size)
    }

    /// The output matrix, which is the embedding matrix where the file has no other.
    pub(super) fn head(&self) -> Result<Matrix<'a>> {
        match self.gguf.opt_tensor("output.weight") {
            Some(_) => self.matrix("output.weight", self.config.vocab_size, self.config.hidden_size),
            None => self.embeddings(),
        }
    }

    pub(super) fn final_norm(&self) -> Result<Vec<f32>> {
        self.vector("output_norm.weight", self.config.hidden_size)
    }

    pub(super) fn layer(&self, index: usize) -> Result<LayerTensors<'a>> {
        let c = self.config;
        let name = |part: &str| format!("blk.{index}.{part}");
        let vector_if = |wanted: bool, part: &str, len: usize| {
            if wanted { self.vector(&name(part), len).map(Some) } else { Ok(None) }
        };
        let (q_size, kv_size) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        let linear = |part: &str, n: usize, k: usize| -> Result<(Matrix<'a>, Option<Vec<f32>>)> {
            let matrix = self.matrix(&name(&format!("{part}.weight")), n, k)?;
            Ok((matrix, self.opt_vector(&name(&format!("{part}.bias")), n)?))
        };
        let qkv = if c.fused_projections {
            vec![linear("attn_qkv", c.qkv_size(), c.hidden_size)?]
        } else {
            vec![
                linear("attn_q", q_size, c.hidden_size)?,
                linear("attn_k", kv_size, c.hidden_size)?,
                linear("attn_v", kv_size, c.hidden_size)?,
            ]
        };
        let matrix = |part: &str, n: usize, k: usize| self.matrix(&name(part), n, k);
        let (gate, up) = if c.fused_projections {
            let both = matrix("ffn_up.weight", 2 * c.intermediate_size, c.hidden_size)?;
            (both.rows(0, c.intermediate_size), both.rows(c.intermediate_size, c.intermediate_size))
        } else {
            (
                matrix("ffn_gate.weight", c.intermediate_size, c.hidden_size)?,
                matrix("ffn_up.weight", c.intermediate_size, c.hidden_size)?,
            )
        };
        Ok(LayerTensors {
            attn_norm: self.vector(&name("attn_norm.weight"), c.hidden_size)?,
            qkv,
            q_norm: vector_if(c.qk_norm, "attn_q_norm.weight", c.head_dim)?,
            k_norm: vector_if(c.qk_norm, "attn_k_norm.weight", c.head_dim)?,
            attn_output: linear("attn_output", c.hidden_size, q_size)?,
            post_attn_norm: vector_if(c.post_norms, "post_attention_norm.weight", c.hidden_size)?,
            ffn_norm: self.vector(&name("ffn_norm.weight"), c.hidden_size)?,
            gate,
            up,
            down: matrix("ffn_down.weight", c.hidden_size, c.intermediate_size)?,
            post_ffn_norm: vector_if(c.post_norms, "post_ffw_norm.weight", c.hidden_size)?,
        })
    }

    /// # Errors
    /// If the file holds a tensor that was never asked for.
    pub(super) fn finish(self) -> Result<()> {
        let used = self.used.into_inner();
        match self.gguf.tensors().iter().find(|t| !used.contains(&t.name)) {
            None => Ok(()),
            Some(t) => {
                let architecture = &self.config.architecture;
                let name = &t.name;
                Err(Error::bad_model(format!(
                    "tensor `{name}` has no place in the {architecture} decoder; this variant is not supported"
                )))
            }
        }
    }

    fn get(&self, name: &str, dims: &[usize]) -> Result<TensorView<'a>> {
        let tensor = self.gguf.tensor(name)?;
        self.used.borrow_mut().insert(name.to_owned());
        if tensor.info.dims != dims {
            return Err(Error::bad_model(format!("tensor `{name}` must be {dims:?}, got {:?}", tensor.info.dims)));
        }
        Ok(tensor)
    }

    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<Matrix<'a>> {
        let tensor = self.get(name, &[n, k])?;
        Ok(Matrix { format: tensor.info.dtype, n, k, bytes: tensor.data })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.get(name, &[len])?.floats()
    }

    fn opt_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        if self.gguf.opt_tensor(name).is_none() { Ok(None) } else { self.vector(name, len).map(Some) }
    }
}
