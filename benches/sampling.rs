//! What choosing a token costs beside the model: once for each stream in every step, on one thread.
//!
//! `cargo bench --bench sampling`

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tallow::protocol::SamplingParams;
use tallow::sampling::{Draw, Sampler, SeenTokens, random_u64};

/// SmolLM2's vocabulary and Qwen2.5's.
const VOCAB_SIZES: [usize; 2] = [49_152, 151_936];

/// Logits as a model has them: a bell of this width, and this many that stand out, each less than the one before.
const WIDTH: f32 = 2.5;
const NUM_LIKELY: usize = 64;

fn row(vocab_size: usize) -> Vec<f32> {
    let unit = |i: usize, k: u64| (random_u64(i as u64, k) >> 40) as f32 / (1 << 24) as f32 - 0.5;
    // The sum of twelve uniform ones has a variance of one.
    let bell = |i: usize| (0..12).map(|k| unit(i, k)).sum::<f32>() * WIDTH;
    let mut row: Vec<f32> = (0..vocab_size).map(bell).collect();
    (0..NUM_LIKELY).for_each(|i| row[(i * 7919 + 13) % vocab_size] = 20.0 - 2.0 * (i as f32).sqrt());
    row
}

fn sampling(c: &mut Criterion) {
    let plain = SamplingParams { seed: Some(1), temperature: 1.0, ..SamplingParams::default() };
    let cases = [
        ("greedy", SamplingParams { temperature: 0.0, ..plain.clone() }),
        ("temperature", plain.clone()),
        ("top_p", SamplingParams { top_p: 0.95, ..plain.clone() }),
        ("min_p", SamplingParams { min_p: 0.05, ..plain.clone() }),
        ("top_k and top_p", SamplingParams { top_k: 40, top_p: 0.95, ..plain.clone() }),
        ("typical_p", SamplingParams { typical_p: 0.9, ..plain.clone() }),
        ("logprobs", SamplingParams { temperature: 0.0, top_logprobs: Some(5), ..plain }),
    ];
    let mut group = c.benchmark_group("sampling");
    for vocab_size in VOCAB_SIZES {
        let (mut row, mut sampler, seen) = (row(vocab_size), Sampler::default(), SeenTokens::default());
        for (name, params) in &cases {
            let mut position = 0;
            group.bench_function(BenchmarkId::new(*name, vocab_size), |b| {
                b.iter(|| {
                    position += 1;
                    let draw = Draw { params, seen: &seen, banned: &[], allowed: None, seed: 1, position };
                    sampler.sample(&mut row, &draw).expect("a token")
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, sampling);
criterion_main!(benches);
