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

use super::activations::Output;
use super::kv_write::Shares;
use super::math;
use super::memory::{Halves, Memory};
use super::pool::{Pool, SharedMut, for_rows};
use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::weights::BLOCK_K;
use crate::error::Result;

/// Positions in one KV block.
pub const KV_BLOCK: usize = 32;

/// Rows (a query of one head) that share a load of keys and values.
const ROWS: usize = 4;
/// Queries of one sequence in a tile.
const QUERIES_PER_TILE: usize = 16;
/// Most tokens whose keys a thread writes at a time.
const TOKENS_PER_TILE_MAX: usize = 16;

/// Which dimensions a rotation pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// (0, 1), (2, 3), ...: the order of llama GGUF files.
    Interleaved,
    /// (0, half), (1, half + 1), ...
    Halves,
}

/// The attention of one layer, apart from its memory.
#[derive(Debug, Clone)]
pub struct AttentionShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Size of a head; a multiple of 16.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// A query sees this many positions, its own included; `None` sees all.
    pub window: Option<usize>,
    /// How dimensions are paired.
    pub rope_pairs: RopePairs,
    /// Norm of each query and key head before the rotation.
    pub qk_norm: Option<QkNorm>,
}

impl AttentionShape {
    /// Width of a row of queries, keys and values, after a look at what the kernels take for granted.
    pub(super) fn check(&self, batch: &Ragged<'_>, kv: &KvLayer, qkv_len: usize) -> usize {
        let &Self { num_heads, num_kv_heads, head_dim, .. } = self;
        let num_tokens = batch.positions.len();
        let width = (num_heads + 2 * num_kv_heads) * head_dim;
        assert!(head_dim.is_multiple_of(LANES) && num_heads.is_multiple_of(num_kv_heads), "{self:?}");
        assert_eq!(qkv_len, num_tokens * width, "qkv of {num_tokens} tokens");
        assert_eq!(batch.slots.len(), num_tokens);
        let num_blocks = kv.keys.len() / (num_kv_heads * head_dim * KV_BLOCK);
        let num_slots = num_blocks * KV_BLOCK;
        assert!(batch.slots.iter().all(|s| (*s as usize) < num_slots), "a slot outside the {num_blocks} blocks");
        assert!(batch.block_tables.iter().all(|b| (*b as usize) < num_blocks), "a block outside the {num_blocks}");
        width
    }
}

/// Root-mean-square norms of query and key heads.
#[derive(Debug, Clone)]
pub struct QkNorm {
    /// `[head_dim]`
    pub q_weight: Vec<f32>,
    /// `[head_dim]`
    pub k_weight: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

/// The ragged batch, as plain numbers: see `model::Batch`.
#[derive(Debug, Clone, Copy)]
pub struct Ragged<'a> {
    /// `[num_tokens]`
    pub positions: &'a [u32],
    /// `[num_tokens]`
    pub slots: &'a [u32],
    /// `[num_seqs + 1]`
    pub cu_seqlens: &'a [u32],
    /// All block tables back to back.
    pub block_tables: &'a [u32],
    /// `[num_seqs + 1]`
    pub cu_blocks: &'a [u32],
    /// `[num_tokens, rope_dim / 2]`; dimensions past `rope_dim` are not rotated.
    pub cos: &'a [f32],
    /// Like `cos`.
    pub sin: &'a [f32],
}

/// One layer's KV memory, f16 bits.
#[derive(Debug)]
pub struct KvLayer {
    /// `[num_blocks, num_kv_heads, head_dim, KV_BLOCK]`
    pub(super) keys: Halves,
    /// `[num_blocks, num_kv_heads, KV_BLOCK, head_dim]`
    pub(super) values: Halves,
}

impl KvLayer {
    /// Zeroed memory; blocks that were never written cost nothing.
    ///
    /// # Errors
    /// If the system has no address space for it.
    pub fn new(num_blocks: usize, num_kv_heads: usize, head_dim: usize, memory: &mut Memory) -> Result<Self> {
        let len = num_blocks * num_kv_heads * head_dim * KV_BLOCK;
        Ok(Self { keys: memory.halves(len)?, values: memory.halves(len)? })
    }
}

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
    out: Output<'_>,
) {
    let &AttentionShape { num_heads, num_kv_heads, head_dim, .. } = shape;
    let (num_tokens, group, out_width) = (batch.positions.len(), num_heads / num_kv_heads, num_heads * head_dim);
    let shares = Shares::new(shape, batch, kv, qkv);
    let plan = Plan::new(batch, num_kv_heads);
    let Output { x: out, mut quantized } = out;
    assert_eq!(out.len(), num_tokens * out_width, "output of {num_tokens} tokens");
    // Then nobody reads what another thread's token writes: with a hundred jobs a step, one less is felt.
    let stores = num_tokens == plan.num_seqs();
    if !stores {
        for_rows(pool, num_tokens, TOKENS_PER_TILE_MAX, |token| {
            // SAFETY: every token belongs to one tile, and no two share a slot.
            (0..num_kv_heads).for_each(|head| unsafe { shares.store(isa, shape, batch, token, head) });
        });
    }
    let is_whole_blocks = (group * head_dim).is_multiple_of(BLOCK_K);
    let rounding = quantized.as_mut().filter(|_| is_whole_blocks).map(|q| q.replace(num_tokens, out_width));
    let shared_out = SharedMut::new(&mut *out);
    pool.run(plan.num_tiles(), |tile| {
        let Place { tokens, head, table } = plan.place(tile);
        if stores {
            // SAFETY: this is the only tile of this token and this head.
            unsafe { shares.store(isa, shape, batch, tokens.start, head) };
        }
        let row = |i: usize| {
            let (token, query_head) = (tokens.start + i / group, head * group + i % group);
            // SAFETY: each query of each head is one row of one tile.
            unsafe {
                let q = shares.qkv.read(shares.query(shape, token, query_head), head_dim);
                let out = shared_out.slice(token * out_width + query_head * head_dim, head_dim);
                Row { q, position: batch.positions[token] as usize, out }
            }
        };
        let num_rows = tokens.len() * group;
        let reads_once = num_rows <= ROWS;
        let (kv, window) = (&shares, shape.window);
        let mut view = View { kv, head, num_kv_heads, head_dim, table, window, reads_once, then: None };
        if reads_once && tile + 1 < plan.num_tiles() {
            let Place { tokens, head, table } = plan.place(tile + 1);
            let position =
                (batch.positions[tokens.start] as usize + 1).saturating_sub(shape.window.unwrap_or(usize::MAX));
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

/// A batch cut into tiles: some tokens of a sequence for one KV head.
struct Plan<'a> {
    batch: &'a Ragged<'a>,
    num_kv_heads: usize,
    /// By sequence, and the number of all.
    first_tile: Vec<usize>,
}

struct Place<'a> {
    tokens: Range<usize>,
    head: usize,
    /// The sequence's blocks.
    table: &'a [u32],
}

impl<'a> Plan<'a> {
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

    fn place(&self, tile: usize) -> Place<'a> {
        let Self { batch, num_kv_heads, first_tile } = self;
        let seq = first_tile.partition_point(|first| *first <= tile) - 1;
        let (head, chunk) = ((tile - first_tile[seq]) % num_kv_heads, (tile - first_tile[seq]) / num_kv_heads);
        let first = batch.cu_seqlens[seq] as usize + chunk * QUERIES_PER_TILE;
        let last = (first + QUERIES_PER_TILE).min(batch.cu_seqlens[seq + 1] as usize);
        let table = &batch.block_tables[batch.cu_blocks[seq] as usize..batch.cu_blocks[seq + 1] as usize];
        Place { tokens: first..last, head, table }
    }
}

/// One query of one head.
struct Row<'a> {
    q: &'a [f32],
    position: usize,
    out: &'a mut [f32],
}

impl Row<'_> {
    /// First position that it sees.
    fn first(&self, window: Option<usize>) -> usize {
        window.map_or(0, |w| (self.position + 1).saturating_sub(w))
    }
}

/// One head's cache, seen through one sequence's block table.
#[derive(Clone, Copy)]
struct View<'a> {
    kv: &'a Shares<'a>,
    head: usize,
    num_kv_heads: usize,
    head_dim: usize,
    table: &'a [u32],
    window: Option<usize>,
    /// Whether blocks are read by these rows alone, so that each must come from memory.
    reads_once: bool,
    /// Where the block begins that this thread will probably read after them.
    then: Option<usize>,
}

impl View<'_> {
    /// Where a block's keys and values begin.
    #[inline(always)]
    fn offset(&self, block: usize) -> usize {
        (self.table[block] as usize * self.num_kv_heads + self.head) * self.head_dim * KV_BLOCK
    }
}

simd_kernel! { fn attend_1(view: &View<'_>, rows: [Row<'_>; 1]) = attend }
simd_kernel! { fn attend_2(view: &View<'_>, rows: [Row<'_>; 2]) = attend }
simd_kernel! { fn attend_3(view: &View<'_>, rows: [Row<'_>; 3]) = attend }
simd_kernel! { fn attend_4(view: &View<'_>, rows: [Row<'_>; 4]) = attend }

#[inline(always)]
fn attend<S: Simd, const R: usize>(s: S, view: &View<'_>, rows: [Row<'_>; R]) {
    let head_dim = view.head_dim;
    let (mut first, mut last) = (usize::MAX, 0);
    let mut rows = rows;
    for r in 0..R {
        first = first.min(rows[r].first(view.window));
        last = last.max(rows[r].position);
        scale_row(s, rows[r].out, None);
    }
    let mut state = Softmax { max: [f32::NEG_INFINITY; R], sums: [s.splat(0.0); R] };
    for block in first / KV_BLOCK..=last / KV_BLOCK {
        let at = view.offset(block);
        // SAFETY: what is written meanwhile are slots of other heads, and of blocks that only their sequence sees.
        let (keys, values) =
            unsafe { (view.kv.keys.read(at, head_dim * KV_BLOCK), view.kv.values.read(at, head_dim * KV_BLOCK)) };
        let next = if view.reads_once && block < last / KV_BLOCK { Some(view.offset(block + 1)) } else { view.then };
        let mut p = scores(s, keys, &rows, next.map(|at| (view.kv.keys.address(at), view.kv.values.address(at))));
        let mut rescale = [1f32; R];
        let mut union = (KV_BLOCK, 0);
        for r in 0..R {
            let start = rows[r].first(view.window).saturating_sub(block * KV_BLOCK);
            let end = KV_BLOCK.min((rows[r].position + 1).saturating_sub(block * KV_BLOCK));
            if start >= end {
                p[r] = [0.0; KV_BLOCK]; // Nothing of this block is this row's; its state stays as it is.
                continue;
            }
            union = (start.min(union.0), end.max(union.1));
            rescale[r] = state.update(s, r, &mut p[r], start, end);
        }
        weigh(s, values, head_dim, &p, &rescale, union.0..union.1, &mut rows);
    }
    for r in 0..R {
        scale_row(s, rows[r].out, Some(s.reduce_add(state.sums[r])));
    }
}

/// Divides a row, or clears it. A loop of its own: `fill` and `for_each` are compiled without the instruction set.
#[inline(always)]
fn scale_row<S: Simd>(s: S, row: &mut [f32], divisor: Option<f32>) {
    let (vectors, _) = row.as_chunks_mut::<LANES>();
    for vector in vectors {
        // SAFETY: sixteen values.
        unsafe {
            let scaled = match divisor {
                None => s.splat(0.0),
                Some(divisor) => s.div(s.load(vector.as_ptr()), s.splat(divisor)),
            };
            s.store(vector.as_mut_ptr(), scaled);
        }
    }
}

/// q . K for the 32 positions of a block. Meanwhile the next block's keys and values are fetched: blocks lie anywhere in
/// memory, so no hardware could guess them.
#[inline(always)]
fn scores<S: Simd, const R: usize>(
    s: S,
    keys: &[u16],
    rows: &[Row<'_>; R],
    next: Option<(*const u16, *const u16)>,
) -> [[f32; KV_BLOCK]; R] {
    let mut lo = [s.splat(0.0); R];
    let mut hi = [s.splat(0.0); R];
    let head_dim = keys.len() / KV_BLOCK;
    assert!(rows.iter().all(|row| row.q.len() == head_dim));
    let mut out = [[0f32; KV_BLOCK]; R];
    // SAFETY: `keys` holds `head_dim` rows of 32 halves, and every query `head_dim` values.
    unsafe {
        for d in 0..head_dim {
            if let Some((keys, values)) = next {
                s.prefetch(keys.wrapping_add(d * KV_BLOCK).cast());
                s.prefetch(values.wrapping_add(d * KV_BLOCK).cast());
            }
            let k_lo = s.load_f16(keys.as_ptr().add(d * KV_BLOCK));
            let k_hi = s.load_f16(keys.as_ptr().add(d * KV_BLOCK + LANES));
            for r in 0..R {
                let q = s.splat(*rows[r].q.get_unchecked(d));
                lo[r] = s.fma(k_lo, q, lo[r]);
                hi[r] = s.fma(k_hi, q, hi[r]);
            }
        }
        for r in 0..R {
            s.store(out[r].as_mut_ptr(), lo[r]);
            s.store(out[r].as_mut_ptr().add(LANES), hi[r]);
        }
    }
    out
}

/// Each row's greatest score so far, and the sum of its weights relative to it, one part per lane.
struct Softmax<S: Simd, const R: usize> {
    max: [f32; R],
    sums: [S::F; R],
}

impl<S: Simd, const R: usize> Softmax<S, R> {
    /// Turns row `r`'s scores into weights relative to the greatest score so far, zero outside `start..end`; returns
    /// the factor that brings what was summed before to the new maximum.
    #[inline(always)]
    fn update(&mut self, s: S, r: usize, p: &mut [f32; KV_BLOCK], start: usize, end: usize) -> f32 {
        let is_partial = start > 0 || end < KV_BLOCK;
        if is_partial {
            mask(p, start, end, f32::NEG_INFINITY);
        }
        // SAFETY: `p` holds 32 values.
        unsafe {
            let (lo, hi) = (s.load(p.as_ptr()), s.load(p.as_ptr().add(LANES)));
            let block_max = s.reduce_max(s.max(lo, hi));
            let mut factor = 1.0;
            // Without a new maximum the factor is e^0, exactly one.
            if block_max > self.max[r] {
                let mut lanes = [0f32; LANES];
                s.store(lanes.as_mut_ptr(), math::exp(s, s.splat(self.max[r] - block_max)));
                factor = lanes[0];
                self.max[r] = block_max;
            }
            let max = s.splat(self.max[r]);
            let (mut lo, mut hi) = (math::exp(s, s.sub(lo, max)), math::exp(s, s.sub(hi, max)));
            s.store(p.as_mut_ptr(), lo);
            s.store(p.as_mut_ptr().add(LANES), hi);
            if is_partial {
                // `exp` clamps, so a position that is not seen would weigh e^-87.
                mask(p, start, end, 0.0);
                (lo, hi) = (s.load(p.as_ptr()), s.load(p.as_ptr().add(LANES)));
            }
            self.sums[r] = s.fma(self.sums[r], s.splat(factor), s.add(lo, hi));
            factor
        }
    }
}

/// Overwrites what lies outside `start..end`.
#[inline(always)]
fn mask(p: &mut [f32; KV_BLOCK], start: usize, end: usize, value: f32) {
    for i in 0..KV_BLOCK {
        p[i] = if i < start || i >= end { value } else { p[i] };
    }
}

/// out = out * rescale + sum of p V over the positions that any row sees.
#[inline(always)]
fn weigh<S: Simd, const R: usize>(
    s: S,
    values: &[u16],
    head_dim: usize,
    p: &[[f32; KV_BLOCK]; R],
    rescale: &[f32; R],
    seen: Range<usize>,
    rows: &mut [Row<'_>; R],
) {
    assert!(values.len() == head_dim * KV_BLOCK && seen.end <= KV_BLOCK);
    assert!(rows.iter().all(|row| row.out.len() == head_dim));
    let mut d = 0;
    // SAFETY: `d + 16 C <= head_dim` in every row of values and outputs.
    unsafe {
        // Each output is a chain of dependent additions: four vectors at once keep the units busy, where they fit.
        while S::NUM_REGISTERS >= 32 && d + 4 * LANES <= head_dim {
            weigh_vectors::<S, R, 4>(s, values, head_dim, d, p, rescale, &seen, rows);
            d += 4 * LANES;
        }
        while d < head_dim {
            weigh_vectors::<S, R, 1>(s, values, head_dim, d, p, rescale, &seen, rows);
            d += LANES;
        }
    }
}

/// Dimensions `d..d + 16 C`.
///
/// # Safety
/// They are in every row of `values: [KV_BLOCK, head_dim]` and of the outputs; `seen` is within a block.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn weigh_vectors<S: Simd, const R: usize, const C: usize>(
    s: S,
    values: &[u16],
    head_dim: usize,
    d: usize,
    p: &[[f32; KV_BLOCK]; R],
    rescale: &[f32; R],
    seen: &Range<usize>,
    rows: &mut [Row<'_>; R],
) {
    // SAFETY: the caller vouches for the dimensions.
    unsafe {
        let mut acc = [[s.splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                acc[r][c] = s.mul(s.load(rows[r].out.as_ptr().add(d + c * LANES)), s.splat(rescale[r]));
            }
        }
        for position in seen.start..seen.end {
            let mut v = [s.splat(0.0); C];
            for c in 0..C {
                v[c] = s.load_f16(values.as_ptr().add(position * head_dim + d + c * LANES));
            }
            for r in 0..R {
                let p = s.splat(*p[r].get_unchecked(position));
                for c in 0..C {
                    acc[r][c] = s.fma(v[c], p, acc[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                s.store(rows[r].out.as_mut_ptr().add(d + c * LANES), acc[r][c]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
