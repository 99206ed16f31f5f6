//! One thread's part of attention: some queries of one KV head over one sequence's blocks. `attention` has the whole.

use std::ops::Range;

use super::attention_shape::KV_BLOCK;
use super::kv_write::Shares;
use super::math;
use super::simd::{LANES, Simd, simd_kernel};

/// Rows (a query of one head) that share a load of keys and values.
pub(super) const ROWS: usize = 4;

/// One query of one head.
pub(super) struct QueryRow<'a> {
    pub(super) q: &'a [f32],
    pub(super) position: usize,
    pub(super) out: &'a mut [f32],
}

impl QueryRow<'_> {
    /// First position that it sees.
    fn first(&self, window: Option<usize>) -> usize {
        window.map_or(0, |w| (self.position + 1).saturating_sub(w))
    }
}

/// One head's cache, seen through one sequence's block table.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) kv: &'a Shares<'a>,
    pub(super) head: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) table: &'a [u32],
    pub(super) window: Option<usize>,
    /// Whether blocks are read by these rows alone, so that each must come from memory.
    pub(super) reads_once: bool,
    /// Where the block begins that this thread will probably read after them.
    pub(super) then: Option<usize>,
}

impl View<'_> {
    /// Where a block's keys and values begin.
    #[inline(always)]
    pub(super) fn offset(&self, block: usize) -> usize {
        (self.table[block] as usize * self.num_kv_heads + self.head) * self.head_dim * KV_BLOCK
    }
}

simd_kernel! { pub(super) fn attend_1(view: &View<'_>, rows: [QueryRow<'_>; 1]) = attend }
simd_kernel! { pub(super) fn attend_2(view: &View<'_>, rows: [QueryRow<'_>; 2]) = attend }
simd_kernel! { pub(super) fn attend_3(view: &View<'_>, rows: [QueryRow<'_>; 3]) = attend }
simd_kernel! { pub(super) fn attend_4(view: &View<'_>, rows: [QueryRow<'_>; 4]) = attend }

#[inline(always)]
fn attend<S: Simd, const R: usize>(s: S, view: &View<'_>, rows: [QueryRow<'_>; R]) {
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
    rows: &[QueryRow<'_>; R],
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
    rows: &mut [QueryRow<'_>; R],
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
    rows: &mut [QueryRow<'_>; R],
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
