//! Steps of a decoder on hand-made batches.
#![allow(dead_code)] // Each test binary uses a part.

use std::path::Path;
use std::sync::Arc;

use tallow::cache::{BLOCK_SIZE, BlockId};
use tallow::model::decoder::{Compute, Decoder, DecoderOptions, DecoderWeights};
use tallow::model::gguf::Gguf;
use tallow::model::{Batch, Model};

/// A decoder with 64 blocks.
pub(crate) fn load(path: &Path, compute: Compute) -> Decoder {
    let options = DecoderOptions { compute, max_model_len: Some(512), kv_bytes_max: 1 << 30, max_num_seqs: 4 };
    let gguf = Arc::new(Gguf::open(path).unwrap());
    DecoderWeights::load(&gguf, &options).unwrap().decoder().unwrap()
}

/// Some tokens of one sequence: all of it, where they begin, and its blocks.
pub(crate) struct Piece<'a> {
    pub tokens: &'a [u32],
    pub from: usize,
    pub blocks: &'a [u32],
}

/// Adds a piece to the batch and asks for the logits of its last token.
fn add(batch: &mut Batch, piece: &Piece<'_>) {
    let end = piece.tokens.len();
    for position in piece.from..end {
        batch.token_ids.push(piece.tokens[position]);
        batch.positions.push(position as u32);
        batch
            .slot_mapping
            .push(piece.blocks[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
    }
    batch.cu_seqlens.push(batch.token_ids.len() as u32);
    batch.block_tables.extend(piece.blocks[..end.div_ceil(BLOCK_SIZE)].iter().map(|b| BlockId(*b)));
    batch.cu_blocks.push(batch.block_tables.len() as u32);
    batch.logits_indices.push(batch.token_ids.len() as u32 - 1);
}

/// Runs one step; a row of logits per piece.
pub(crate) fn step(model: &mut impl Model, pieces: &[Piece<'_>]) -> Vec<Vec<f32>> {
    let mut batch = Batch::default();
    batch.clear();
    pieces.iter().for_each(|piece| add(&mut batch, piece));
    let mut logits = Vec::new();
    model.forward(&batch, &mut logits).unwrap();
    logits.chunks(model.spec().vocab_size).map(<[f32]>::to_vec).collect()
}

pub(crate) fn whole<'a>(tokens: &'a [u32], blocks: &'a [u32]) -> Piece<'a> {
    Piece { tokens, from: 0, blocks }
}

pub(crate) fn prompt(len: usize, vocab: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729 + 17) % vocab) as u32).collect()
}

/// The greatest difference, relative to the spread of the logits.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let spread = b.iter().fold(0f32, |m, x| m.max(x.abs())).max(1e-3);
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / spread
}

pub(crate) fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}
