//! A layer's inputs as the kernels want them: in f32 for float weights, and in blocks of 32 signed bytes with one f32
//! scale each for quantised ones.

use std::ops::Range;

use super::norm::{Norm, rms_norm_row};
use super::pool::{Pool, SharedMut, for_rows};
use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::weights::BLOCK_K;

/// Most rows that a thread takes at a time.
const ROWS_PER_TILE_MAX: usize = 8;

/// What a kernel needs of a block besides its bytes. Sums are of the signed bytes; a weight code `c` stands for
/// `c - zero`, so a dot product starts from `-zero * sum`, ready for every zero there is.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct BlockFacts {
    /// Value of one step.
    pub(crate) scale: f32,
    /// scale * sum
    pub(crate) scaled_sum: f32,
    /// The same for each half.
    pub(crate) scaled_sums: [f32; 2],
    /// -8 sum, -16 sum, -128 sum: Q4_0, Q5_0, Q8_0.
    pub(crate) start: [i32; 3],
    /// -4 sum of each half: Q3_K.
    pub(crate) start_4: [i32; 2],
    /// -32 sum of each half: Q6_K.
    pub(crate) start_32: [i32; 2],
    pad: i32,
}

/// `num_rows` rows of `k` inputs, quantised.
#[derive(Debug, Default)]
pub struct Activations {
    num_blocks: usize,
    bytes: Vec<i8>,
    facts: Vec<BlockFacts>,
}

impl Activations {
    /// Quantises `x: [num_rows, k]`, replacing what was there: per block, scale = max |x| / 127 and each value is
    /// rounded to the nearest step, ties to even. Rows whose `k` is not a multiple of 32 have no blocks at their end;
    /// only float weights have such rows. A row with a value that is not finite has NaN for its scales, so that the
    /// value is not rounded away.
    pub fn quantize(&mut self, isa: Isa, pool: &mut Pool, x: &[f32], k: usize) {
        let num_rows = self.resize(x.len(), k);
        self.fill(pool, num_rows, |row, bytes, facts| quantize_row(isa, &x[row * k..][..k], bytes, facts));
    }

    /// The same after a norm, whose result in f32 goes to `normed`, which is like `x`.
    pub fn quantize_normed(&mut self, isa: Isa, pool: &mut Pool, x: &[f32], norm: Norm<'_>, normed: &mut [f32]) {
        let k = norm.weight.len();
        let num_rows = self.resize(x.len(), k);
        assert_eq!(normed.len(), x.len());
        let normed = SharedMut::new(normed);
        self.fill(pool, num_rows, |row, bytes, facts| {
            // SAFETY: every row belongs to one tile.
            let normed = unsafe { normed.slice(row * k, k) };
            rms_norm_row(isa, &x[row * k..][..k], norm, normed);
            quantize_row(isa, normed, bytes, facts);
        });
    }

    fn resize(&mut self, len: usize, k: usize) -> usize {
        let (num_rows, num_blocks) = (len / k, k / BLOCK_K);
        self.num_blocks = num_blocks;
        self.bytes.resize(num_rows * num_blocks * BLOCK_K, 0);
        self.facts.resize(num_rows * num_blocks, BlockFacts::default());
        num_rows
    }

    fn fill(&mut self, pool: &mut Pool, num_rows: usize, f: impl Fn(usize, &mut [i8], &mut [BlockFacts]) + Sync) {
        let num_blocks = self.num_blocks;
        let (bytes, facts) = (SharedMut::new(&mut self.bytes), SharedMut::new(&mut self.facts));
        for_rows(pool, num_rows, ROWS_PER_TILE_MAX, |row| {
            let width = num_blocks * BLOCK_K;
            // SAFETY: every row belongs to one tile.
            let (bytes, facts) =
                unsafe { (bytes.slice(row * width, width), facts.slice(row * num_blocks, num_blocks)) };
            f(row, bytes, facts);
        });
    }

    /// Signed bytes and facts of some rows' blocks, one row after another.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> (&[i8], &[BlockFacts]) {
        let blocks = rows.start * self.num_blocks..rows.end * self.num_blocks;
        (&self.bytes[blocks.start * BLOCK_K..blocks.end * BLOCK_K], &self.facts[blocks])
    }
}

simd_kernel! { fn quantize_row(x: &[f32], bytes: &mut [i8], facts: &mut [BlockFacts]) = quantize_row_body }

#[inline(always)]
fn quantize_row_body<S: Simd>(s: S, x: &[f32], bytes: &mut [i8], facts: &mut [BlockFacts]) {
    let num_blocks = facts.len();
    assert!(x.len() >= num_blocks * BLOCK_K && bytes.len() == num_blocks * BLOCK_K);
    // Zero times a finite value is zero: what this sums up is NaN where any value is not finite.
    let mut poison = s.splat(0.0);
    // SAFETY: every block has 32 values and 32 bytes by the assertion above.
    unsafe {
        for b in 0..num_blocks {
            let x = x.as_ptr().add(b * BLOCK_K);
            let (lo, hi) = (s.load(x), s.load(x.add(LANES)));
            poison = s.fma(lo, s.splat(0.0), s.fma(hi, s.splat(0.0), poison));
            let max = s.reduce_max(s.max(s.abs(lo), s.abs(hi)));
            // A block of zeros has no steps.
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits.
            let magic = s.splat(12_582_912.0);
            let lo = s.fma(lo, s.splat(inverse), magic);
            let hi = s.fma(hi, s.splat(inverse), magic);
            let bytes = bytes.as_mut_ptr().add(b * BLOCK_K);
            s.store_magic_i8(bytes, lo);
            s.store_magic_i8(bytes.add(LANES), hi);
            // Sums of small integers: exact in f32.
            let sums = [s.reduce_add(s.sub(lo, magic)), s.reduce_add(s.sub(hi, magic))];
            facts[b] = BlockFacts::of(max / 127.0, sums);
        }
        if s.reduce_add(poison).is_nan() {
            for facts in facts {
                facts.scale = f32::NAN;
            }
        }
    }
}

impl BlockFacts {
    #[inline(always)]
    fn of(scale: f32, sums: [f32; 2]) -> Self {
        let (sum, int) = (sums[0] + sums[1], (sums[0] + sums[1]) as i32);
        let (first, second) = (sums[0] as i32, sums[1] as i32);
        Self {
            scale,
            scaled_sum: scale * sum,
            scaled_sums: [scale * sums[0], scale * sums[1]],
            start: [-8 * int, -16 * int, -128 * int],
            start_4: [-4 * first, -4 * second],
            start_32: [-32 * first, -32 * second],
            pad: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_to_the_nearest_step_with_the_same_bits_everywhere() {
        let (k, num_rows) = (96, 21);
        let mut x: Vec<f32> = (0..k * num_rows).map(|i| ((i * 7919 + 3) % 2017) as f32 / 91.0 - 11.0).collect();
        x[64..96].fill(0.0);
        let run = |isa| {
            let mut a = Activations::default();
            a.quantize(isa, &mut Pool::new(2), &x, k);
            a
        };
        let expected = run(Isa::portable());
        for (block, x) in x.chunks(BLOCK_K).enumerate() {
            let facts = expected.facts[block];
            let bytes = &expected.bytes[block * BLOCK_K..][..BLOCK_K];
            assert_eq!(facts.scale, x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0);
            for (x, b) in x.iter().zip(bytes) {
                assert!((x - f32::from(*b) * facts.scale).abs() <= facts.scale * 0.501, "{x} {b}");
            }
            assert_eq!(facts.start[0], -8 * bytes.iter().map(|b| i32::from(*b)).sum::<i32>());
        }
        for isa in Isa::all_here() {
            let got = run(isa);
            assert_eq!(got.bytes, expected.bytes, "{isa}");
            for (a, b) in got.facts.iter().zip(&expected.facts) {
                assert_eq!(
                    (a.scale.to_bits(), a.scaled_sums.map(f32::to_bits)),
                    (b.scale.to_bits(), b.scaled_sums.map(f32::to_bits))
                );
                assert_eq!((a.start, a.start_4, a.start_32), (b.start, b.start_4, b.start_32));
            }
        }
    }
}
