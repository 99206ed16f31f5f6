//! The accuracy of inputs in f32 and int8 on a real model: a short text here, so that a loss is seen before it is
//! merged; a long one, and llama.cpp beside it, in `benches/accuracy/`.

use crate::real;
#[path = "../../benches/accuracy/score.rs"]
mod score;

use std::sync::Arc;

use candle_core::Device;
use score::RowScore;
use tallow::model::decoder::{ActivationType, Compute, DecoderWeights};
use tallow::model::gguf::Gguf;
use tallow::model::load::open;

const WINDOW: usize = 256;
/// In nats. Measured here: 7.7e-7, from keys and values in f16 and the order of sums.
const F32_DIVERGENCE_MAX: f64 = 3e-6;
/// Measured here: 3.9e-3. llama.cpp's own 8-bit inputs give 2.9e-3 on the long text of `benches/accuracy/`, ours too.
const INT8_DIVERGENCE_MAX: f64 = 6e-3;
/// Four windows' worth.
const NUM_TOKENS: usize = 4 * WINDOW;

#[test]
fn a_row_is_scored_as_on_paper() {
    // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4); logits may be shifted.
    let ln = |probabilities: [f32; 3], shift: f32| probabilities.map(|p| p.ln() + shift);
    let (p, q) = (ln([0.5, 0.25, 0.25], 3.0), ln([0.25, 0.5, 0.25], -100.0));
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "{a} {b}");
    let row = RowScore::of(&p, &q, 1);
    close(row.surprise, 2f64.ln());
    close(row.excess, -(2f64.ln()));
    close(row.divergence, 0.25 * 2f64.ln());
    assert!(!row.is_agreeing);
    let same = RowScore::of(&p, &p, 2);
    assert_eq!((same.excess, same.divergence, same.is_agreeing), (0.0, 0.0, true));
    close(same.surprise, 4f64.ln());
}

#[test]
fn real_smollm2_loses_little_to_int8_and_nothing_to_f32() {
    let path = real::path(real::SMOLLM2);
    let cpu = |activations| Compute::Cpu { num_threads: 2, activations };
    let computes = [Compute::Composed(Device::Cpu), cpu(ActivationType::F32), cpu(ActivationType::Int8)];
    let gguf = Arc::new(Gguf::open(&path).unwrap());
    let tokenizer = open(&path, &score::options(cpu(ActivationType::F32), WINDOW)).unwrap().tokenizer;
    // A text that nobody edits.
    let windows = score::windows(&tokenizer, include_str!("../../LICENSE"), NUM_TOKENS, WINDOW).unwrap();
    let mut decoders: Vec<_> = computes
        .map(|compute| DecoderWeights::load(&gguf, &score::options(compute, WINDOW)).unwrap().decoder().unwrap())
        .into();
    let scores = score::score(&mut decoders, &windows, |_| {}).unwrap();
    let [reference, f32, int8] = &scores[..] else { panic!("three decoders") };
    for (name, score) in [("reference", reference), ("f32", f32), ("int8", int8)] {
        println!(
            "{name}: {} tokens, perplexity {:.4}, {:+.3?} %, KL {:.2e} (99 %: {:.2e}), same top {:.2} %",
            score.num_tokens(),
            score.perplexity(),
            score.excess().0 * 100.0,
            score.divergence().0,
            score.divergence_99(),
            score.agreement() * 100.0
        );
    }
    assert_eq!(reference.num_tokens(), 4 * (WINDOW / 2 - 1));
    assert_eq!((reference.divergence().0, reference.excess().0, reference.agreement()), (0.0, 0.0, 1.0));
    assert!(f32.divergence().0 < F32_DIVERGENCE_MAX, "{:?}", f32.divergence());
    assert!(f32.excess().0.abs() < 1e-3, "{:?}", f32.excess());
    assert!(int8.divergence().0 < INT8_DIVERGENCE_MAX, "{:?}", int8.divergence());
    // Perplexity of so few tokens cannot tell half a percent from nothing: only the divergence can be bounded tightly.
    let (excess, error) = int8.excess();
    assert!(excess.abs() < 0.005 + 3.0 * error, "{excess} ± {error}");
}
