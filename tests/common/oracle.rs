//! candle-transformers' own models as oracles: logits of the last token of a prompt, from f32 weights.
#![allow(dead_code)] // Each test binary uses a part.

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma3, llama, mistral, phi3, qwen2, qwen3};

use super::tiny::Tiny;

/// Logits after `tokens`, computed in one go from an empty cache.
///
/// candle's masks let a query see one position more than a window holds (`j + window < i` is masked where the model
/// papers mask `j + window <= i`), so the oracles are given a window smaller by one.
pub(crate) fn last_logits(t: &Tiny, eps: f64, rope_base: f64, vb: VarBuilder<'static>, tokens: &[u32]) -> Vec<f32> {
    let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = match t.architecture {
        "llama" => llama_logits(t, eps, rope_base, vb, &input),
        "mistral" => {
            let config = mistral::Config {
                vocab_size: t.vocab,
                hidden_size: t.hidden,
                intermediate_size: t.intermediate,
                num_hidden_layers: t.num_layers,
                num_attention_heads: t.num_heads,
                head_dim: Some(t.head_dim),
                num_key_value_heads: t.num_kv_heads,
                hidden_act: Activation::Silu,
                max_position_embeddings: 512,
                rms_norm_eps: eps,
                rope_theta: rope_base,
                sliding_window: t.window.map(|w| w - 1),
                use_flash_attn: false,
            };
            mistral::Model::new(&config, vb).unwrap().forward(&input, 0).unwrap()
        }
        "qwen2" => qwen2_logits(t, eps, rope_base, vb, &input),
        "qwen3" => {
            let config = qwen3::Config {
                vocab_size: t.vocab,
                hidden_size: t.hidden,
                intermediate_size: t.intermediate,
                num_hidden_layers: t.num_layers,
                num_attention_heads: t.num_heads,
                head_dim: t.head_dim,
                attention_bias: false,
                num_key_value_heads: t.num_kv_heads,
                max_position_embeddings: 512,
                sliding_window: None,
                max_window_layers: t.num_layers,
                tie_word_embeddings: t.tied,
                rope_theta: rope_base,
                rms_norm_eps: eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            qwen3::ModelForCausalLM::new(&config, vb).unwrap().forward(&input, 0).unwrap()
        }
        "gemma3" => gemma3_logits(t, eps, rope_base, vb, &input),
        "phi3" => {
            let config = phi3::Config {
                vocab_size: t.vocab,
                hidden_act: Activation::Silu,
                hidden_size: t.hidden,
                intermediate_size: t.intermediate,
                num_hidden_layers: t.num_layers,
                num_attention_heads: t.num_heads,
                num_key_value_heads: t.num_kv_heads,
                rms_norm_eps: eps,
                rope_theta: rope_base,
                bos_token_id: None,
                eos_token_id: None,
                rope_scaling: None,
                max_position_embeddings: 512,
                original_max_position_embeddings: None,
                partial_rotary_factor: None,
                tie_word_embeddings: t.tied,
            };
            phi3::Model::new(&config, vb).unwrap().forward(&input, 0).unwrap()
        }
        other => panic!("no oracle for {other}"),
    };
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn llama_logits(t: &Tiny, eps: f64, rope_base: f64, vb: VarBuilder<'static>, input: &Tensor) -> Tensor {
    let config = llama::Config {
        hidden_size: t.hidden,
        intermediate_size: t.intermediate,
        vocab_size: t.vocab,
        num_hidden_layers: t.num_layers,
        num_attention_heads: t.num_heads,
        num_key_value_heads: t.num_kv_heads,
        use_flash_attn: false,
        rms_norm_eps: eps,
        rope_theta: rope_base as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 512,
        tie_word_embeddings: t.tied,
    };
    let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    llama::Llama::load(vb, &config).unwrap().forward(input, 0, &mut cache).unwrap()
}

fn qwen2_logits(t: &Tiny, eps: f64, rope_base: f64, vb: VarBuilder<'static>, input: &Tensor) -> Tensor {
    let config = qwen2::Config {
        vocab_size: t.vocab,
        hidden_size: t.hidden,
        intermediate_size: t.intermediate,
        num_hidden_layers: t.num_layers,
        num_attention_heads: t.num_heads,
        num_key_value_heads: t.num_kv_heads,
        max_position_embeddings: 512,
        sliding_window: 512,
        max_window_layers: t.num_layers,
        tie_word_embeddings: t.tied,
        rope_theta: rope_base,
        rms_norm_eps: eps,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    qwen2::ModelForCausalLM::new(&config, vb).unwrap().forward(input, 0).unwrap()
}

fn gemma3_logits(t: &Tiny, eps: f64, rope_base: f64, vb: VarBuilder<'static>, input: &Tensor) -> Tensor {
    let config = gemma3::Config {
        attention_bias: false,
        head_dim: t.head_dim,
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: t.hidden,
        intermediate_size: t.intermediate,
        num_attention_heads: t.num_heads,
        num_hidden_layers: t.num_layers,
        num_key_value_heads: t.num_kv_heads,
        rms_norm_eps: eps,
        rope_theta: rope_base,
        rope_local_base_freq: 10_000.0,
        vocab_size: t.vocab,
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: t.head_dim,
        sliding_window: t.window.map_or(1024, |w| w - 1),
        sliding_window_pattern: 6,
        max_position_embeddings: 512,
    };
    let logits = gemma3::Model::new(false, &config, vb).unwrap().forward(input, 0).unwrap();
    logits.i((0, 0)).unwrap()
}
