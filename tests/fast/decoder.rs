//! The decoder against candle-transformers' models on tiny random files of every architecture, and against itself:
//! batched, chunked and moved to other blocks it must give the same bits.

use crate::oracle;
use crate::steps;
use crate::tiny;

use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use steps::{Piece, bits, distance, load, prompt, step, whole};
use tallow::model::decoder::{ActivationType, Compute, DecoderOptions, DecoderWeights};
use tallow::model::gguf::Gguf;
use tiny::Tiny;

const EPS: f64 = 1e-5;
const ROPE_BASE: f64 = 5000.0;

fn cpu() -> Compute {
    Compute::Cpu { num_threads: 2, activations: ActivationType::F32 }
}

fn int8() -> Compute {
    Compute::Cpu { num_threads: 2, activations: ActivationType::Int8 }
}

/// The composed form differs from the oracle by rounding order alone: weights, keys and values are the same f32 values
/// on both sides. 1e-4 is a hundred times what three to seven layers of f32 sums of a hundred terms lose.
const COMPOSED_TOLERANCE: f32 = 1e-4;

/// The fused form keeps keys and values in f16 (relative error 2^-12 = 2.4e-4 each), which random weights with large
/// attention scores amplify some ten times.
const FUSED_TOLERANCE: f32 = 5e-3;

/// Inputs of quantised matrices are rounded to 1/254 of the greatest of 32, which random weights do not average out
/// over the one layer of this test.
const INT8_TOLERANCE: f32 = 5e-2;

#[track_caller]
fn check_against_oracle(t: &Tiny) {
    let dir = tempfile::tempdir().unwrap();
    let path = t.write(dir.path());
    let mut forms = [
        (load(&path, Compute::Composed(Device::Cpu)), COMPOSED_TOLERANCE),
        (load(&path, cpu()), FUSED_TOLERANCE),
        (load(&path, int8()), INT8_TOLERANCE),
    ];
    for len in [1, 2, 17, 32, 33, 70] {
        let tokens = prompt(len, t.vocab, len);
        let expected = oracle::last_logits(t, EPS, ROPE_BASE, Tiny::var_builder(&path), &tokens);
        for (i, (decoder, tolerance)) in forms.iter_mut().enumerate() {
            let distance = distance(&step(decoder, &[whole(&tokens, &[5, 2, 9])])[0], &expected);
            assert!(distance < *tolerance, "{} {:?} form {i} at {len} tokens: {distance}", t.architecture, t.dtype);
        }
    }
}

#[test]
fn llama_agrees_with_candle() {
    check_against_oracle(&Tiny::new("llama"));
    check_against_oracle(&Tiny { tied: true, ..Tiny::new("llama") });
}

#[test]
fn mistral_agrees_with_candle() {
    check_against_oracle(&Tiny::new("mistral"));
    check_against_oracle(&Tiny { window: Some(20), ..Tiny::new("mistral") });
}

#[test]
fn qwen2_agrees_with_candle() {
    check_against_oracle(&Tiny::new("qwen2"));
}

#[test]
fn qwen3_agrees_with_candle() {
    check_against_oracle(&Tiny::new("qwen3"));
}

#[test]
fn gemma3_agrees_with_candle() {
    check_against_oracle(&Tiny::new("gemma3"));
    check_against_oracle(&Tiny { window: Some(20), ..Tiny::new("gemma3") });
}

#[test]
fn phi3_agrees_with_candle() {
    check_against_oracle(&Tiny::new("phi3"));
}

#[test]
fn every_weight_format_agrees_with_candle() {
    use GgmlDType::{BF16, F16, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    for dtype in [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
        let t = Tiny { dtype, hidden: 256, intermediate: 256, head_dim: 64, num_layers: 1, ..Tiny::new("llama") };
        check_against_oracle(&t);
    }
}

#[test]
fn the_composed_form_agrees_with_the_fused_one() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"] {
        let window = matches!(architecture, "mistral" | "gemma3").then_some(20);
        let t = Tiny { window, ..Tiny::new(architecture) };
        let path = t.write(dir.path());
        let (mut fused, mut composed) = (load(&path, cpu()), load(&path, Compute::Composed(Device::Cpu)));
        let (a, b) = (prompt(70, t.vocab, 1), prompt(40, t.vocab, 2));
        for (from_a, end_a, from_b, end_b) in [(0, 33, 0, 5), (33, 69, 5, 39), (69, 70, 39, 40)] {
            let pieces = [
                Piece { tokens: &a[..end_a], from: from_a, blocks: &[5, 2, 9] },
                Piece { tokens: &b[..end_b], from: from_b, blocks: &[1, 7] },
            ];
            for (got, expected) in step(&mut fused, &pieces).iter().zip(step(&mut composed, &pieces)) {
                let distance = distance(got, &expected);
                assert!(distance < FUSED_TOLERANCE, "{architecture}: {distance}");
            }
        }
    }
}

#[test]
fn batched_equals_alone_and_chunked_equals_whole_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "qwen2", "gemma3", "phi3"] {
        let t = Tiny { dtype: GgmlDType::Q8_0, window: Some(24), ..Tiny::new(architecture) };
        let path = t.write(dir.path());
        for activations in [ActivationType::F32, ActivationType::Int8] {
            check_bits(&path, activations, t.vocab);
        }
    }
}

#[track_caller]
fn check_bits(path: &std::path::Path, activations: ActivationType, vocab: usize) {
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| prompt(1 + i * 17, vocab, i)).collect();
    let blocks: Vec<Vec<u32>> = (0..6).map(|i| (0..3).map(|j| i * 3 + j).collect()).collect();
    let name = path.display();
    let single = || load(path, Compute::Cpu { num_threads: 1, activations });
    let alone: Vec<Vec<f32>> =
        prompts.iter().map(|tokens| step(&mut single(), &[whole(tokens, &[0, 1, 2])]).remove(0)).collect();

    let mut decoder = load(path, Compute::Cpu { num_threads: 2, activations });
    let pieces: Vec<Piece<'_>> = prompts.iter().zip(&blocks).map(|(tokens, blocks)| whole(tokens, blocks)).collect();
    assert_eq!(bits(&step(&mut decoder, &pieces)), bits(&alone), "{name} {activations:?} batched");

    // Again over the same, now dirty, memory, in chunks of every size beside a neighbour.
    for chunk in [1, 7, 31, 32, 40] {
        for (i, tokens) in prompts.iter().enumerate() {
            let mut last = Vec::new();
            for from in (0..tokens.len()).step_by(chunk) {
                let tokens = &tokens[..tokens.len().min(from + chunk)];
                let piece = Piece { tokens, from, blocks: &blocks[(i + 1) % 6] };
                last = step(&mut decoder, &[whole(&prompts[3], &[30, 31, 32]), piece]).remove(1);
            }
            assert_eq!(bits(&[last]), bits(&alone[i..=i]), "{name} {activations:?} prompt {i} in chunks of {chunk}");
        }
    }
}

#[test]
fn files_that_make_no_sense_are_refused_by_key_or_tensor() {
    use candle_core::quantized::gguf_file::Value;
    let dir = tempfile::tempdir().unwrap();
    let options = DecoderOptions { compute: cpu(), max_model_len: None, kv_bytes_max: 1 << 30, max_num_seqs: 4 };
    let load = |more: &[(&str, Value)]| {
        let path = Tiny::new("llama").write_with(dir.path(), more);
        DecoderWeights::load(&Arc::new(Gguf::open(&path).unwrap()), &options).map(|_| ())
    };
    let check = |key: &str, value: Value, expect: &str| {
        let error = load(&[(key, value)]).expect_err(key);
        assert!(error.message().contains(expect), "{key}: {error}");
    };
    check("general.architecture", Value::String("mamba".to_owned()), "supported are llama, mistral, qwen2");
    check("llama.block_count", Value::U32(u32::MAX), "`llama.block_count` must be at most 1024");
    check("llama.block_count", Value::U32(4), "tensor `blk.3.");
    check("llama.block_count", Value::U32(2), "has no place in the llama decoder");
    check("llama.attention.head_count", Value::U32(0), "`llama.attention.head_count` must be at least 1");
    check("llama.attention.head_count_kv", Value::U32(3), "`llama.attention.head_count_kv` must be a divisor");
    check("llama.attention.key_length", Value::U32(24), "values of 16");
    check("llama.embedding_length", Value::U32(128), "must be [97, 128], got [97, 64]");
    check("llama.rope.freq_base", Value::F32(0.0), "`llama.rope.freq_base` must be positive");
    check("llama.rope.scaling.type", Value::String("yarn".to_owned()), "`yarn` is not supported");
    check("llama.expert_count", Value::U32(8), "mixtures of experts");
    assert!(load(&[("llama.attention.sliding_window", Value::U32(0))]).is_ok(), "0 is no window");
}
