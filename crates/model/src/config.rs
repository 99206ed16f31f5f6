//! What distinguishes one architecture from another, as data. The decoder reads this and nothing else: a new
//! architecture is a new arm in `ModelConfig::from_gguf`, not a new file of arithmetic.

use super::gguf::{Gguf, Metadata};
use tallow_kernels::{Activation, RopePairs};
use tallow_stream::error::{Error, Result};

/// The architectures that load, as GGUF names them. Mistral files call themselves `llama`.
pub(crate) const ARCHITECTURES: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"];

/// Layers of the deepest file; the key is read before anything shows that there are so many.
const LAYERS_MAX: usize = 1024;

/// A decoder, described.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// GGUF's name of the architecture.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Width of the feed-forward branch.
    pub intermediate_size: usize,
    /// Number of logits.
    pub vocab_size: usize,
    /// Longest sequence it was made for.
    pub context_length: usize,
    /// Added to the mean square in every norm.
    pub(crate) norm_eps: f32,
    /// Of the feed-forward gate.
    pub activation: Activation,
    /// How a head's dimensions are paired for rotation.
    pub rope_pairs: RopePairs,
    /// Leading dimensions of a head that are rotated.
    pub rope_dim: usize,
    /// Rotations; layers refer to them by index.
    pub(crate) ropes: Vec<RopeConfig>,
    /// One per layer.
    pub(crate) layers: Vec<LayerConfig>,
    /// Multiplies attention scores.
    pub(crate) attention_scale: f32,
    /// Multiplies embeddings.
    pub(crate) embedding_scale: f32,
    /// Query and key heads are normalised before the rotation.
    pub qk_norm: bool,
    /// Attention and feed-forward outputs are normalised before they are added (Gemma).
    pub(crate) post_norms: bool,
    /// One tensor holds query, key and value projections, one gate and up (Phi-3).
    pub(crate) fused_projections: bool,
}

/// One layer's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerConfig {
    /// Positions a query sees, its own included; `None` sees all.
    pub window: Option<usize>,
    /// Index into [`ModelConfig::ropes`].
    pub(crate) rope_index: usize,
}

/// A rotation: dimension pair `i` turns by `position * scale / (base^(2i / rope_dim) * factors[i])`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeConfig {
    /// The base frequency.
    pub base: f32,
    /// 1, or 1 over the factor of linear scaling.
    pub(crate) position_scale: f32,
    /// One divisor per pair, or none.
    pub factors: Vec<f32>,
    /// Multiplies sine and cosine (LongRoPE's attention factor).
    pub(crate) magnitude: f32,
}

/// Keys of one architecture: `llama.` in front of each.
struct Keys<'a> {
    meta: &'a Metadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.opt_size(key)?.ok_or_else(|| Error::bad_model(format!("key `{}` is missing", self.name(key))))
    }

    fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        match self.meta.opt_u32(&name)? {
            Some(0) => Err(Error::bad_model(format!("key `{name}` must be at least 1, got 0"))),
            value => Ok(value.map(|v| v as usize)),
        }
    }

    fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        let name = self.name(key);
        match self.meta.opt_f32(&name)? {
            Some(v) if !v.is_finite() => Err(Error::bad_model(format!("key `{name}` must be finite, got {v}"))),
            value => Ok(value),
        }
    }
}

impl ModelConfig {
    /// Reads the description from a file's metadata. `max_model_len` is the longest sequence that will be served
    /// (LongRoPE files carry two sets of factors, and it decides which).
    ///
    /// # Errors
    /// If the architecture or a feature of it is not supported, or a key is missing or senseless; the message names
    /// it.
    pub(crate) fn from_gguf(gguf: &Gguf, max_model_len: Option<usize>) -> Result<Self> {
        let meta = gguf.metadata();
        let architecture = meta.get_str("general.architecture")?;
        if !ARCHITECTURES.contains(&architecture) {
            let known = ARCHITECTURES.join(", ");
            return Err(Error::bad_model(format!(
                "architecture `{architecture}` is not supported; supported are {known}"
            )));
        }
        let keys = Keys { meta, prefix: architecture };
        refuse_unsupported(&keys)?;
        let hidden_size = keys.size("embedding_length")?;
        let num_heads = keys.size("attention.head_count")?;
        let head_dim = keys.opt_size("attention.key_length")?.unwrap_or(hidden_size / num_heads);
        let num_layers = keys.size("block_count")?;
        if num_layers > LAYERS_MAX {
            let name = keys.name("block_count");
            return Err(Error::bad_model(format!("key `{name}` must be at most {LAYERS_MAX}, got {num_layers}")));
        }
        let context_length = keys.size("context_length")?;
        let is_gemma = architecture == "gemma3";
        let ropes = ropes(gguf, &keys, max_model_len.unwrap_or(context_length))?;
        let config = Self {
            architecture: architecture.to_owned(),
            hidden_size,
            num_heads,
            num_kv_heads: keys.opt_size("attention.head_count_kv")?.unwrap_or(num_heads),
            head_dim,
            intermediate_size: keys.size("feed_forward_length")?,
            vocab_size: gguf.tensor("token_embd.weight")?.info.dims[0],
            context_length,
            norm_eps: keys.opt_f32("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            activation: if is_gemma { Activation::GeluTanh } else { Activation::Silu },
            rope_pairs: match architecture {
                // Their converters permute query and key rows so that neighbours are paired.
                "llama" | "mistral" => RopePairs::Interleaved,
                _ => RopePairs::Halves,
            },
            rope_dim: keys.opt_size("rope.dimension_count")?.unwrap_or(head_dim),
            ropes,
            layers: layers(&keys, num_layers, is_gemma)?,
            // Gemma 3's reports give every size the head's but 27B, the one with 62 layers, which divides the width.
            attention_scale: match (is_gemma, num_layers) {
                (true, 62) => 1.0 / (hidden_size as f32 / num_heads as f32).sqrt(),
                _ => 1.0 / (head_dim as f32).sqrt(),
            },
            embedding_scale: if is_gemma { (hidden_size as f32).sqrt() } else { 1.0 },
            qk_norm: matches!(architecture, "qwen3" | "gemma3"),
            post_norms: is_gemma,
            fused_projections: architecture == "phi3",
        };
        config.check(&keys)?;
        Ok(config)
    }

    /// Columns of the fused query, key and value projection.
    pub(crate) fn qkv_size(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Bytes of one KV block over all layers, in f16.
    pub fn kv_block_bytes(&self) -> usize {
        self.layers.len() * 2 * self.num_kv_heads * self.head_dim * tallow_kernels::BLOCK_SIZE * 2
    }

    fn check(&self, keys: &Keys<'_>) -> Result<()> {
        let rule = |ok: bool, key: &str, rule: &str, value: usize| {
            if ok {
                Ok(())
            } else {
                Err(Error::bad_model(format!("key `{}` must be {rule}, got {value}", keys.name(key))))
            }
        };
        let heads = self.num_heads;
        rule(heads <= 1024, "attention.head_count", "at most 1024", heads)?;
        rule(self.hidden_size <= 1 << 17, "embedding_length", "at most 131072", self.hidden_size)?;
        rule(self.intermediate_size <= 1 << 19, "feed_forward_length", "at most 524288", self.intermediate_size)?;
        let rule_kv = format!("a divisor of the {heads} heads");
        rule(heads.is_multiple_of(self.num_kv_heads), "attention.head_count_kv", &rule_kv, self.num_kv_heads)?;
        let whole = self.head_dim.is_multiple_of(16) && (16..=1024).contains(&self.head_dim);
        rule(whole, "attention.key_length", "a multiple of 16 up to 1024", self.head_dim)?;
        let rope_ok = self.rope_dim.is_multiple_of(2) && self.rope_dim <= self.head_dim;
        rule(rope_ok, "rope.dimension_count", "even and at most the head size", self.rope_dim)?;
        if self.norm_eps < 0.0 {
            let name = keys.name("attention.layer_norm_rms_epsilon");
            return Err(Error::bad_model(format!("key `{name}` must not be negative, got {}", self.norm_eps)));
        }
        for rope in &self.ropes {
            for (key, value) in [
                ("rope.freq_base", rope.base),
                ("rope.scaling.factor", rope.position_scale),
                ("rope.scaling.attn_factor", rope.magnitude),
            ] {
                if !(value.is_finite() && value > 0.0) {
                    return Err(Error::bad_model(format!("key `{}` must be positive, got {value}", keys.name(key))));
                }
            }
            let num_factors = rope.factors.len();
            if num_factors != 0 && num_factors != self.rope_dim / 2 {
                let expected = self.rope_dim / 2;
                return Err(Error::bad_model(format!("rope factors must be {expected} values, got {num_factors}")));
            }
        }
        Ok(())
    }
}

/// Features that some files of a supported architecture have and the decoder does not.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<()> {
    if let Some(experts) = keys.meta.opt_u32(&keys.name("expert_count"))?.filter(|n| *n > 0) {
        return Err(Error::bad_model(format!(
            "mixtures of experts are not supported (`{}` is {experts})",
            keys.name("expert_count")
        )));
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = keys.opt_f32(key)?.filter(|cap| *cap != 0.0) {
            return Err(Error::bad_model(format!("soft caps are not supported (`{}` is {cap})", keys.name(key))));
        }
    }
    let (key, value) = (keys.opt_size("attention.key_length")?, keys.opt_size("attention.value_length")?);
    if let (Some(key), Some(value)) = (key, value)
        && key != value
    {
        return Err(Error::bad_model(format!("heads with keys of {key} and values of {value} are not supported")));
    }
    Ok(())
}

fn layers(keys: &Keys<'_>, num_layers: usize, is_gemma: bool) -> Result<Vec<LayerConfig>> {
    // Phi-4's files write 0 for "none".
    let window = keys.meta.opt_u32(&keys.name("attention.sliding_window"))?.filter(|w| *w > 0).map(|w| w as usize);
    if !is_gemma {
        return Ok(vec![LayerConfig { window, rope_index: 0 }; num_layers]);
    }
    // Gemma 3 report (arXiv 2503.19786, section 2): five local layers to one global; local ones have a window and the
    // second rotation.
    let window = window.or(Some(1024));
    let layer = |i: usize| {
        let is_local = !(i + 1).is_multiple_of(6);
        LayerConfig { window: window.filter(|_| is_local), rope_index: usize::from(is_local) }
    };
    Ok((0..num_layers).map(layer).collect())
}

fn ropes(gguf: &Gguf, keys: &Keys<'_>, max_model_len: usize) -> Result<Vec<RopeConfig>> {
    let base = keys.opt_f32("rope.freq_base")?.unwrap_or(10_000.0);
    let scaling = gguf.metadata().opt_str(&keys.name("rope.scaling.type"))?.unwrap_or("none");
    let factor = keys.opt_f32("rope.scaling.factor")?.filter(|f| *f != 0.0).unwrap_or(1.0);
    if !matches!(scaling, "none" | "linear" | "longrope") {
        return Err(Error::bad_model(format!(
            "rope scaling `{scaling}` is not supported; supported are none, linear, longrope"
        )));
    }
    let original = keys.opt_size("rope.scaling.original_context_length")?;
    let is_long = original.is_some_and(|original| max_model_len > original);
    let long_factors = if is_long { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
    let factors = match gguf.opt_tensor("rope_freqs.weight").or_else(|| gguf.opt_tensor(long_factors)) {
        None => Vec::new(),
        Some(tensor) => tensor.floats()?,
    };
    if let Some(bad) = factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
        return Err(Error::bad_model(format!("rope factors must be positive, got {bad}")));
    }
    let position_scale = if scaling == "linear" { 1.0 / factor } else { 1.0 };
    let magnitude = keys.opt_f32("rope.scaling.attn_factor")?.filter(|m| *m != 0.0).unwrap_or(1.0);
    let global = RopeConfig { base, position_scale, factors, magnitude };
    if keys.prefix != "gemma3" {
        return Ok(vec![global]);
    }
    let local_base = match keys.opt_f32("rope.freq_base_swa")? {
        Some(base) => base,
        None => keys.opt_f32("rope.local.freq_base")?.unwrap_or(10_000.0),
    };
    let local = RopeConfig { base: local_base, position_scale: 1.0, factors: Vec::new(), magnitude: 1.0 };
    Ok(vec![global, local])
}
