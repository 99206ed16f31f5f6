//! Tokens per second of the decoder alone, without HTTP or scheduler: a 512-token prefill, then steps of one token for
//! 1, 8 and 32 sequences that each hold 64 tokens.
//!
//! `cargo bench --bench decode -- PATH.gguf [STEPS [int8]]`; the number of threads is what the process may use.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tallow::cache::{BLOCK_SIZE, BlockId};
use tallow::model::decoder::{ActivationType, Compute, Decoder, DecoderOptions, DecoderWeights};
use tallow::model::gguf::Gguf;
use tallow::model::{Batch, Model};

/// Tokens of each sequence before the measured steps.
const CONTEXT: usize = 64;
/// Blocks of each sequence.
const BLOCKS: usize = 16;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let Some(path) = args.next() else {
        eprintln!("usage: cargo bench --bench decode -- PATH.gguf [STEPS [int8]]");
        return;
    };
    let num_steps: usize = args.next().map_or(64, |n| n.parse().expect("STEPS is a number"));
    let activations = match args.next().as_deref() {
        Some("int8") => ActivationType::Int8,
        _ => ActivationType::F32,
    };
    let batches: Vec<usize> =
        args.next().map_or(vec![1, 8, 32], |list| list.split(',').map(|n| n.parse().expect("BATCHES")).collect());
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = DecoderOptions {
        compute: Compute::Cpu { num_threads, activations },
        max_model_len: Some(BLOCKS * BLOCK_SIZE),
        kv_bytes_max: 4 << 30,
        max_num_seqs: 32,
    };
    let start = Instant::now();
    let gguf = Arc::new(Gguf::open(Path::new(&path)).expect("a GGUF file"));
    let weights = DecoderWeights::load(&gguf, &options).expect("a supported model");
    println!(
        "{path}: loaded in {:.2} s, {num_threads} threads, {}, {activations:?}",
        start.elapsed().as_secs_f64(),
        weights.isa()
    );
    let mut decoder = weights.decoder().expect("KV memory");
    let mut logits = Vec::new();
    let prompt = 512;
    let mut batch = Batch::default();
    fill(&mut batch, 1, 0..prompt);
    decoder.forward(&batch, &mut logits).expect("a step");
    let repetitions = if batches == [0] { num_steps } else { 4 };
    let start = Instant::now();
    for _ in 0..repetitions {
        decoder.forward(&batch, &mut logits).expect("a step");
    }
    println!("prefill {prompt}: {:.0} tokens/s", (repetitions * prompt) as f64 / start.elapsed().as_secs_f64());
    let batches: Vec<usize> = batches.into_iter().filter(|n| *n > 0).collect();
    for num_seqs in batches {
        let tokens_per_second = decode(&mut decoder, num_seqs, num_steps);
        println!("decode {num_seqs:2}: {tokens_per_second:.0} tokens/s");
    }
}

fn decode(decoder: &mut Decoder, num_seqs: usize, num_steps: usize) -> f64 {
    let mut logits = Vec::new();
    let mut batch = Batch::default();
    fill(&mut batch, num_seqs, 0..CONTEXT);
    decoder.forward(&batch, &mut logits).expect("a step");
    let start = Instant::now();
    for step in 0..num_steps {
        fill(&mut batch, num_seqs, CONTEXT + step..CONTEXT + step + 1);
        decoder.forward(&batch, &mut logits).expect("a step");
    }
    (num_seqs * num_steps) as f64 / start.elapsed().as_secs_f64()
}

/// The given positions of `num_seqs` sequences.
fn fill(batch: &mut Batch, num_seqs: usize, positions: std::ops::Range<usize>) {
    batch.clear();
    for seq in 0..num_seqs {
        for position in positions.clone() {
            let block = seq * BLOCKS + position / BLOCK_SIZE;
            batch.token_ids.push((position * 7919 + seq * 31 + 5) as u32 % 40_000);
            batch.positions.push(position as u32);
            batch.slot_mapping.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as u32);
        }
        batch.cu_seqlens.push(batch.token_ids.len() as u32);
        let num_blocks = positions.end.div_ceil(BLOCK_SIZE);
        batch.block_tables.extend((0..num_blocks).map(|b| BlockId((seq * BLOCKS + b) as u32)));
        batch.cu_blocks.push(batch.block_tables.len() as u32);
        batch.logits_indices.push(batch.token_ids.len() as u32 - 1);
    }
}
