//! The decoder on the two real files: logits against candle-transformers' models, and against itself to the bit.

use crate::oracle;
use crate::real;
use crate::steps;
use crate::tiny;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama;
use steps::{Piece, bits, distance, load, step, whole};
use tallow::model::decoder::{ActivationType, Compute};
use tiny::Tiny;

const TEXT: [u32; 24] = [
    504, 3575, 282, 4649, 314, 7042, 28, 253, 2398, 338, 314, 7454, 327, 624, 1880, 28, 624, 4302, 284, 624, 2464, 30,
    198, 788,
];

fn cpu(activations: ActivationType) -> Compute {
    Compute::Cpu { num_threads: 2, activations }
}

/// The oracle computes in f32 from dequantised weights, as ours does; what is left is the f16 of our keys and values
/// (2^-12 relative) and rounding order over 30 layers.
const TOLERANCE: f32 = 5e-3;

/// With inputs in 8 bits, the oracle for accuracy is candle's quantised model, which rounds them likewise: ours must
/// not be further from f32 than that, and this bounds both.
const INT8_TOLERANCE: f32 = 0.1;

#[test]
fn real_smollm2_agrees_with_candle() {
    let path = real::path(real::SMOLLM2);
    let t = Tiny {
        hidden: 576,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        vocab: 49152,
        tied: true,
        dtype: GgmlDType::Q4_1,
        ..Tiny::new("llama")
    };
    let expected = oracle::last_logits(&t, 1e-5, 100_000.0, Tiny::var_builder(&path), &TEXT);
    let [got, int8] = [ActivationType::F32, ActivationType::Int8]
        .map(|activations| step(&mut load(&path, cpu(activations)), &[whole(&TEXT, &[3])]).remove(0));
    assert!(distance(&got, &expected) < TOLERANCE, "distance {}", distance(&got, &expected));

    let mut file = std::fs::File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let input = Tensor::new(&TEXT[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let quantized: Vec<f32> = model.forward(&input, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let (ours, theirs) = (distance(&int8, &expected), distance(&quantized, &expected));
    assert!(ours <= theirs && theirs < INT8_TOLERANCE, "ours {ours}, candle's {theirs}");
}

#[test]
fn real_gemma3_agrees_with_candle() {
    let path = real::path(real::GEMMA3);
    let t = Tiny {
        hidden: 640,
        num_layers: 18,
        num_heads: 4,
        num_kv_heads: 1,
        head_dim: 256,
        intermediate: 2048,
        vocab: 262_144,
        tied: true,
        window: Some(512),
        ..Tiny::new("gemma3")
    };
    let expected = oracle::last_logits(&t, 1e-6, 1e6, Tiny::var_builder(&path), &TEXT);
    let [got, int8] = [ActivationType::F32, ActivationType::Int8]
        .map(|activations| step(&mut load(&path, cpu(activations)), &[whole(&TEXT, &[3])]).remove(0));
    assert!(distance(&got, &expected) < TOLERANCE, "distance {}", distance(&got, &expected));
    assert!(distance(&int8, &expected) < INT8_TOLERANCE, "distance {}", distance(&int8, &expected));
}

#[test]
fn real_models_give_the_same_bits_batched_chunked_and_alone() {
    let cases = [
        (real::SMOLLM2, 49_152, ActivationType::F32),
        (real::SMOLLM2, 49_152, ActivationType::Int8),
        (real::GEMMA3, 262_144, ActivationType::Int8),
    ];
    for (name, vocab, activations) in cases {
        let path = real::path(name);
        let prompts: Vec<Vec<u32>> = (0..4).map(|i| steps::prompt(5 + i * 19, vocab, i)).collect();
        let mut single = load(&path, Compute::Cpu { num_threads: 1, activations });
        let alone: Vec<Vec<f32>> =
            prompts.iter().map(|tokens| step(&mut single, &[whole(tokens, &[0, 1, 2])]).remove(0)).collect();
        drop(single);
        let mut decoder = load(&path, cpu(activations));
        let blocks: Vec<Vec<u32>> = (0..4).map(|i| vec![20 - i, i, 40 + i]).collect();
        let pieces: Vec<Piece<'_>> =
            prompts.iter().zip(&blocks).map(|(tokens, blocks)| whole(tokens, blocks)).collect();
        assert_eq!(bits(&step(&mut decoder, &pieces)), bits(&alone), "{name} batched");
        for (i, tokens) in prompts.iter().enumerate() {
            let mut last = Vec::new();
            for from in (0..tokens.len()).step_by(13) {
                let piece =
                    Piece { tokens: &tokens[..tokens.len().min(from + 13)], from, blocks: &blocks[(i + 1) % 4] };
                last = step(&mut decoder, &[whole(&prompts[1], &[30, 31, 32]), piece]).remove(1);
            }
            assert_eq!(bits(&[last]), bits(&alone[i..=i]), "{name} prompt {i} in chunks");
        }
    }
}
