//! Tiny models with random weights, written as GGUF files: one of each architecture, and the same weights under the
//! names that candle-transformers' models ask for.
#![allow(dead_code)] // Each test binary uses a part.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

/// A tiny model's sizes.
#[derive(Debug, Clone)]
pub(crate) struct Tiny {
    pub architecture: &'static str,
    pub hidden: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub window: Option<usize>,
    pub tied: bool,
    /// Of the matrices; norms and biases are f32.
    pub dtype: GgmlDType,
    pub seed: u64,
}

impl Tiny {
    pub(crate) fn new(architecture: &'static str) -> Self {
        Self {
            architecture,
            hidden: 64,
            num_layers: if architecture == "gemma3" { 7 } else { 3 },
            num_heads: 4,
            // candle's Gemma 3 cannot store more than one head of a longer prompt: its cache wants contiguous tensors.
            num_kv_heads: if architecture == "gemma3" { 1 } else { 2 },
            head_dim: if matches!(architecture, "gemma3" | "qwen3") { 32 } else { 16 },
            intermediate: 96,
            vocab: 97,
            window: None,
            tied: architecture == "gemma3",
            dtype: GgmlDType::F32,
            seed: 1,
        }
    }

    fn is_interleaved(&self) -> bool {
        matches!(self.architecture, "llama" | "mistral")
    }

    /// Writes the file and returns its path.
    pub(crate) fn write(&self, dir: &Path) -> PathBuf {
        self.write_with(dir, &[])
    }

    /// The same with some keys replaced or added.
    pub(crate) fn write_with(&self, dir: &Path, more: &[(&str, Value)]) -> PathBuf {
        let path = dir.join(format!("{}-{:?}-{}.gguf", self.architecture, self.dtype, self.seed));
        let tensors = self.tensors();
        let mut metadata = self.metadata();
        metadata.retain(|(key, _)| more.iter().all(|(k, _)| k != key));
        metadata.extend(more.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, t)| (k.as_str(), t)).collect();
        let mut file = std::fs::File::create(&path).unwrap();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
        path
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let arch = self.architecture;
        let mut out = vec![("general.architecture".to_owned(), Value::String(arch.to_owned()))];
        let sizes = [
            ("context_length", 512),
            ("embedding_length", self.hidden),
            ("block_count", self.num_layers),
            ("feed_forward_length", self.intermediate),
            ("attention.head_count", self.num_heads),
            ("attention.head_count_kv", self.num_kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ];
        out.extend(sizes.map(|(key, n)| (format!("{arch}.{key}"), Value::U32(n as u32))));
        out.push((format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5)));
        out.push((format!("{arch}.rope.freq_base"), Value::F32(5000.0)));
        if let Some(window) = self.window {
            out.push((format!("{arch}.attention.sliding_window"), Value::U32(window as u32)));
        }
        out
    }

    /// Name and shape of every tensor, in GGUF's words; a shape of one dimension is a norm or a bias.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let (h, f) = (self.hidden, self.intermediate);
        let mut out =
            vec![("token_embd.weight".to_owned(), vec![self.vocab, h]), ("output_norm.weight".to_owned(), vec![h])];
        if !self.tied {
            out.push(("output.weight".to_owned(), vec![self.vocab, h]));
        }
        for i in 0..self.num_layers {
            let mut add = |name: &str, shape: &[usize]| out.push((format!("blk.{i}.{name}"), shape.to_vec()));
            add("attn_norm.weight", &[h]);
            add("ffn_norm.weight", &[h]);
            add("attn_output.weight", &[h, q]);
            add("ffn_down.weight", &[h, f]);
            if self.architecture == "phi3" {
                add("attn_qkv.weight", &[q + 2 * kv, h]);
                add("ffn_up.weight", &[2 * f, h]);
            } else {
                add("attn_q.weight", &[q, h]);
                add("attn_k.weight", &[kv, h]);
                add("attn_v.weight", &[kv, h]);
                add("ffn_gate.weight", &[f, h]);
                add("ffn_up.weight", &[f, h]);
            }
            if self.architecture == "qwen2" {
                add("attn_q.bias", &[q]);
                add("attn_k.bias", &[kv]);
                add("attn_v.bias", &[kv]);
            }
            if matches!(self.architecture, "qwen3" | "gemma3") {
                add("attn_q_norm.weight", &[self.head_dim]);
                add("attn_k_norm.weight", &[self.head_dim]);
            }
            if self.architecture == "gemma3" {
                add("post_attention_norm.weight", &[h]);
                add("post_ffw_norm.weight", &[h]);
            }
        }
        out
    }

    fn tensors(&self) -> Vec<(String, QTensor)> {
        let mut state = self.seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let is_matrix = shape.len() == 2;
            let scale = if is_matrix { 2.0 / (shape[1] as f32).sqrt() } else { 0.3 };
            let offset = if name.contains("norm") { 1.0 } else { 0.0 };
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| offset + scale * next()).collect();
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let dtype = if is_matrix { self.dtype } else { GgmlDType::F32 };
            (name, QTensor::quantize(&tensor, dtype).unwrap())
        };
        self.shapes().into_iter().map(tensor).collect()
    }

    /// The weights of a GGUF file, dequantised by candle, under the names and in the row order of candle-transformers.
    pub(crate) fn var_builder(path: &Path) -> VarBuilder<'static> {
        let mut file = std::fs::File::open(path).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let Value::String(arch) = &content.metadata["general.architecture"] else { panic!("no architecture") };
        let size = |key: &str| content.metadata[&format!("{arch}.{key}")].to_u32().unwrap() as usize;
        let heads = (size("attention.head_count"), size("attention.head_count_kv"));
        let mut vars = HashMap::new();
        for name in content.tensor_infos.keys() {
            let quantized = content.tensor(&mut file, name, &Device::Cpu).unwrap();
            let mut tensor = quantized.dequantize(&Device::Cpu).unwrap();
            if matches!(arch.as_str(), "llama" | "mistral") && name.contains("attn_q.") {
                tensor = unpermute(&tensor, heads.0);
            }
            if matches!(arch.as_str(), "llama" | "mistral") && name.contains("attn_k.") {
                tensor = unpermute(&tensor, heads.1);
            }
            if arch == "gemma3" && name.contains("norm") {
                // candle-transformers adds one to Gemma's norm weights; GGUF files have it added already.
                tensor = (tensor - 1.0).unwrap();
            }
            vars.insert(hub_name(arch, name), tensor);
        }
        VarBuilder::from_tensors(vars, DType::F32, &Device::Cpu)
    }
}

/// From neighbours paired (GGUF's llama) to halves paired.
fn unpermute(w: &Tensor, heads: usize) -> Tensor {
    let (n, k) = w.dims2().unwrap();
    let pairs = w.reshape((heads, n / heads / 2, 2, k)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((n, k)).unwrap()
}

fn hub_name(arch: &str, name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        _ => {}
    }
    let mut parts = name.splitn(3, '.').skip(1);
    let (layer, part) = (parts.next().unwrap(), parts.next().unwrap());
    let (part, suffix) = part.rsplit_once('.').unwrap();
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" if arch == "gemma3" => "pre_feedforward_layernorm",
        "ffn_norm" | "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" if arch == "phi3" => "mlp.gate_up_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("no hub name for {other}"),
    };
    format!("model.layers.{layer}.{part}.{suffix}")
}
