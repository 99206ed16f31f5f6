//! Causal attention of a ragged batch over the paged KV cache.
//!
//! A KV block holds 32 positions of one head. Keys lie transposed, `[head_dim][32]`, so that scores have one position
//! per lane and no sum across lanes is needed; values lie `[32][head_dim]`, so that outputs have one dimension per lane.
//!
//! ```text
//! rotate and scale the queries; rotate the keys and write them, with the values, to their slots: all tokens first, or
//!   where every sequence has one token each thread its own
//! for each sequence, KV head and group of queries, claimed by a thread:
//!   for each KV block that a query of the group may see, in order of position:
//!     scores = q . K                                   each a chain over head_dim
//!     m' = max(m, max scores), p = exp(scores - m'), c = exp(m - m')
//!     l = l c + p, lane by lane                                  (online softmax, Milakov and Gimelshein, arXiv 1805.02867)
//!     out = out c + sum over positions of p V          each a chain in order of position
//!   out / l
//! ```
//! What a query computes depends on its own position and the cache alone: blocks are cut at multiples of 32 from
//! position 0 (or the first block of its window), whatever chunk or batch it came in.

use std::ops::Range;

use super::activations::StageOutput;
use super::attend::{QueryRow, ROWS, View, attend_1, attend_2, attend_3, attend_4};
use super::attention_shape::{AttentionShape, KV_BLOCK, KvLayer, Ragged};
use super::kv_write::Shares;
use super::pool::{Pool, SharedMut, for_rows};
use super::simd::Isa;
use super::weights::BLOCK_K;

/// Queries of one sequence in a tile.
const QUERIES_PER_TILE: usize = 16;
/// Most tokens whose keys a thread writes at a time.
const TOKENS_PER_TILE_MAX: usize = 16;

/// Attention of every token of the batch, whose keys and values are written to their slots of `kv` first.
///
/// `qkv: [num_tokens, (num_heads + 2 num_kv_heads) * head_dim]`: queries, keys, values of each token; the queries and keys
/// are rotated in place. `out: [num_tokens, num_heads * head_dim]`.
///
/// # Panics
/// If a length does not fit, or a slot or a block lies outside the memory.
pub fn attention(
    isa: Isa,
    pool: &mut Pool,
    shape: &AttentionShape,
    batch: &Ragged<'_>,
    kv: &mut KvLayer,
    qkv: &mut [f32],
    out: StageOutput<'_>,
) {
    let &AttentionShape { num_heads, num_kv_heads, head_dim, .. } = shape;
    let (num_tokens, group, out_width) = (batch.positions.len(), num_heads / num_kv_heads, num_heads * head_dim);
    let shares = Shares::new(shape, batch, kv, qkv);
    let plan = TilePlan::new(batch, num_kv_heads);
    let StageOutput { x: out, mut quantized } = out;
    assert_eq!(out.len(), num_tokens * out_width, "output of {num_tokens} tokens");
    // Then nobody reads what another thread's token writes: with a hundred jobs a step, one less is felt.
    let stores = num_tokens == plan.num_seqs();
    if !stores {
        for_rows(pool, num_tokens, TOKENS_PER_TILE_MAX, |token| {
            // SAFETY: every token belongs to one tile, and no two share a slot: `DistinctSlots` has looked.
            (0..num_kv_heads).for_each(|head| unsafe { shares.store(isa, shape, batch, token, head) });
        });
    }
    let is_whole_blocks = (group * head_dim).is_multiple_of(BLOCK_K);
    let rounding = quantized.as_mut().filter(|_| is_whole_blocks).map(|q| q.replace(num_tokens, out_width));
    let shared_out = SharedMut::new(&mut *out);
    pool.run(plan.num_tiles(), |tile| {
        let Tile { tokens, head, .. } = plan.place(tile);
        if stores {
            // SAFETY: this is the only tile of this token and this head.
            unsafe { shares.store(isa, shape, batch, tokens.start, head) };
        }
        // SAFETY: each query of each head is one row of one tile.
        unsafe { attend_tile(isa, shape, &plan, &shares, tile, shared_out) };
        let Some(rounding) = &rounding else { return };
        let column = head * group * head_dim;
        for token in tokens {
            // SAFETY: these columns and blocks are this tile's alone, and no row of it is in use any more.
            unsafe {
                let x = shared_out.read(token * out_width + column, group * head_dim);
                rounding.quantize(isa, token, column, x);
            }
        }
    });
    if let Some(quantized) = quantized.filter(|_| !is_whole_blocks) {
        quantized.quantize(isa, pool, out, out_width);
    }
}

/// One tile's rows, as many at a time as share a load of keys and values.
///
/// # Safety
/// Nobody else uses the outputs of this tile's queries, or writes what they read.
unsafe fn attend_tile(
    isa: Isa,
    shape: &AttentionShape,
    plan: &TilePlan<'_>,
    shares: &Shares<'_>,
    tile: usize,
    out: SharedMut<'_, f32>,
) {
    let &AttentionShape { num_heads, num_kv_heads, head_dim, window, .. } = shape;
    let (group, out_width) = (num_heads / num_kv_heads, num_heads * head_dim);
    let Tile { tokens, head, table } = plan.place(tile);
    let row = |i: usize| {
        let (token, query_head) = (tokens.start + i / group, head * group + i % group);
        // SAFETY: the caller's word.
        unsafe {
            let q = shares.qkv.read(shares.query(shape, token, query_head), head_dim);
            let out = out.slice(token * out_width + query_head * head_dim, head_dim);
            QueryRow { q, position: plan.batch.positions[token] as usize, out }
        }
    };
    let num_rows = tokens.len() * group;
    let reads_once = num_rows <= ROWS;
    let mut view = View { kv: shares, head, num_kv_heads, head_dim, table, window, reads_once, then: None };
    if reads_once && tile + 1 < plan.num_tiles() {
        let Tile { tokens, head, table } = plan.place(tile + 1);
        let position = (plan.batch.positions[tokens.start] as usize + 1).saturating_sub(window.unwrap_or(usize::MAX));
        view.then = Some(View { head, table, ..view }.offset(position / KV_BLOCK));
    }
    let mut i = 0;
    while i < num_rows {
        match num_rows - i {
            1 => attend_1(isa, &view, [row(i)]),
            2 => attend_2(isa, &view, [row(i), row(i + 1)]),
            3 => attend_3(isa, &view, [row(i), row(i + 1), row(i + 2)]),
            _ => attend_4(isa, &view, [row(i), row(i + 1), row(i + 2), row(i + 3)]),
        }
        i += ROWS;
    }
}

/// A batch cut into tiles: some tokens of a sequence for one KV head.
struct TilePlan<'a> {
    batch: &'a Ragged<'a>,
    num_kv_heads: usize,
    /// By sequence, and the number of all.
    first_tile: Vec<usize>,
}

struct Tile<'a> {
    tokens: Range<usize>,
    head: usize,
    /// The sequence's blocks.
    table: &'a [u32],
}

impl<'a> TilePlan<'a> {
    fn new(batch: &'a Ragged<'a>, num_kv_heads: usize) -> Self {
        let num_seqs = batch.cu_seqlens.len() - 1;
        let mut first_tile = Vec::with_capacity(num_seqs + 1);
        first_tile.push(0);
        for seq in 0..num_seqs {
            let table_len = (batch.cu_blocks[seq + 1] - batch.cu_blocks[seq]) as usize;
            let last = batch.cu_seqlens[seq + 1] as usize - 1;
            assert!(batch.positions[last] as usize / KV_BLOCK < table_len, "sequence {seq} has a short block table");
            let num_tokens = (batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq]) as usize;
            first_tile.push(first_tile[seq] + num_tokens.div_ceil(QUERIES_PER_TILE) * num_kv_heads);
        }
        Self { batch, num_kv_heads, first_tile }
    }

    fn num_seqs(&self) -> usize {
        self.first_tile.len() - 1
    }

    fn num_tiles(&self) -> usize {
        self.first_tile[self.num_seqs()]
    }

    fn place(&self, tile: usize) -> Tile<'a> {
        let Self { batch, num_kv_heads, first_tile } = self;
        let seq = first_tile.partition_point(|first| *first <= tile) - 1;
        let (head, chunk) = ((tile - first_tile[seq]) % num_kv_heads, (tile - first_tile[seq]) / num_kv_heads);
        let first = batch.cu_seqlens[seq] as usize + chunk * QUERIES_PER_TILE;
        let last = (first + QUERIES_PER_TILE).min(batch.cu_seqlens[seq + 1] as usize);
        let table = &batch.block_tables[batch.cu_blocks[seq] as usize..batch.cu_blocks[seq + 1] as usize];
        Tile { tokens: first..last, head, table }
    }
}

#[cfg(test)]
mod tests;
