//! A layer's inputs as the kernels want them: in f32 for float weights, and in blocks of 32 signed bytes with one f32
//! scale each for quantised ones.

use std::ops::Range;

use super::norm::{Norm, rms_norm_row};
use super::pool::{Pool, SharedMut, for_rows};
use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::weights::BLOCK_K;

/// Most rows that a thread takes at a time.
const ROWS_PER_TILE_MAX: usize = 8;

/// What kernels need of each block besides its bytes. Sums are of the signed bytes; a weight code `c` stands for
/// `c - zero`, so a dot product starts from `-zero * sum`, ready for every zero there is. In arrays of their own, because
/// no format wants more than two of them and they compete with the bytes for the nearest cache.
#[derive(Debug, Default)]
struct Facts {
    scales: Vec<[f32; 2]>,
    half_sums: Vec<[f32; 2]>,
    starts: Vec<[i32; 4]>,
    half_starts: Vec<[i32; 4]>,
}

/// Some rows, quantised: one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuantizedRows<'a> {
    pub(crate) bytes: &'a [i8],
    /// Per block the value of one step, and that times the sum.
    pub(crate) scales: &'a [[f32; 2]],
    /// Per block the value of one step times the sum of each half.
    pub(crate) half_sums: &'a [[f32; 2]],
    /// Per block -8 sum, -16 sum, -128 sum: Q4_0, Q5_0, Q8_0.
    pub(crate) starts: &'a [[i32; 4]],
    /// Per block -4 sum of each half, -32 sum of each half: Q3_K, Q6_K.
    pub(crate) half_starts: &'a [[i32; 4]],
}

/// `num_rows` rows of `k` inputs, quantised.
#[derive(Debug, Default)]
pub struct Activations {
    num_blocks: usize,
    bytes: Vec<i8>,
    facts: Facts,
}

/// Where a stage's outputs go: `[num_tokens, n]` in f32, and the same in bytes where the next stage multiplies bytes.
#[derive(Debug)]
pub struct StageOutput<'a> {
    /// In f32.
    pub x: &'a mut [f32],
    /// In bytes; replaced.
    pub quantized: Option<&'a mut Activations>,
}

impl Activations {
    /// Quantises `x: [num_rows, k]`, replacing what was there: per block, scale = max |x| / 127 and each value is
    /// rounded to the nearest step, ties to even. Rows whose `k` is not a multiple of 32 have no blocks at their end;
    /// only float weights have such rows. Where a value is not finite scales are NaN, so that it is not rounded away.
    pub fn quantize(&mut self, isa: Isa, pool: &mut Pool, x: &[f32], k: usize) {
        let num_rows = x.len() / k;
        let to = self.replace(num_rows, k);
        // SAFETY: every row belongs to one tile.
        for_rows(pool, num_rows, ROWS_PER_TILE_MAX, |row| unsafe { to.quantize(isa, row, 0, &x[row * k..][..k]) });
    }

    /// The same after a norm, whose result in f32 goes to `normed`, which is like `x`.
    pub fn quantize_normed(&mut self, isa: Isa, pool: &mut Pool, x: &[f32], norm: Norm<'_>, normed: &mut [f32]) {
        let k = norm.weight.len();
        let num_rows = x.len() / k;
        assert_eq!(normed.len(), x.len());
        let to = self.replace(num_rows, k);
        let normed = SharedMut::new(normed);
        for_rows(pool, num_rows, ROWS_PER_TILE_MAX, |row| {
            // SAFETY: every row belongs to one tile.
            unsafe {
                let normed = normed.slice(row * k, k);
                rms_norm_row(isa, &x[row * k..][..k], norm, normed);
                to.quantize(isa, row, 0, normed);
            }
        });
    }

    /// Room for `num_rows` rows of `k` inputs, for threads to fill.
    pub(super) fn replace(&mut self, num_rows: usize, k: usize) -> ActivationsMut<'_> {
        let Self { num_blocks, bytes, facts: Facts { scales, half_sums, starts, half_starts } } = self;
        *num_blocks = k / BLOCK_K;
        let len = num_rows * *num_blocks;
        bytes.resize(len * BLOCK_K, 0);
        scales.resize(len, [0.0; 2]);
        half_sums.resize(len, [0.0; 2]);
        starts.resize(len, [0; 4]);
        half_starts.resize(len, [0; 4]);
        ActivationsMut {
            num_blocks: *num_blocks,
            bytes: SharedMut::new(bytes),
            scales: SharedMut::new(scales),
            half_sums: SharedMut::new(half_sums),
            starts: SharedMut::new(starts),
            half_starts: SharedMut::new(half_starts),
        }
    }

    /// Some rows, one after another.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> QuantizedRows<'_> {
        let blocks = rows.start * self.num_blocks..rows.end * self.num_blocks;
        QuantizedRows {
            bytes: &self.bytes[blocks.start * BLOCK_K..blocks.end * BLOCK_K],
            scales: &self.facts.scales[blocks.clone()],
            half_sums: &self.facts.half_sums[blocks.clone()],
            starts: &self.facts.starts[blocks.clone()],
            half_starts: &self.facts.half_starts[blocks],
        }
    }
}

/// Activations that several threads fill, each its own blocks.
pub(super) struct ActivationsMut<'a> {
    num_blocks: usize,
    bytes: SharedMut<'a, i8>,
    scales: SharedMut<'a, [f32; 2]>,
    half_sums: SharedMut<'a, [f32; 2]>,
    starts: SharedMut<'a, [i32; 4]>,
    half_starts: SharedMut<'a, [i32; 4]>,
}

impl ActivationsMut<'_> {
    /// Quantises the whole blocks of `x`, which begins at `column` of `row`.
    ///
    /// # Safety
    /// Nobody else uses these blocks meanwhile.
    pub(super) unsafe fn quantize(&self, isa: Isa, row: usize, column: usize, x: &[f32]) {
        debug_assert!(column.is_multiple_of(BLOCK_K));
        let (first, num_blocks) = (row * self.num_blocks + column / BLOCK_K, x.len() / BLOCK_K);
        // SAFETY: the caller's word.
        let out = unsafe {
            RowOut {
                bytes: self.bytes.slice(first * BLOCK_K, num_blocks * BLOCK_K),
                scales: self.scales.slice(first, num_blocks),
                half_sums: self.half_sums.slice(first, num_blocks),
                starts: self.starts.slice(first, num_blocks),
                half_starts: self.half_starts.slice(first, num_blocks),
            }
        };
        quantize_row(isa, x, out);
    }
}

/// Where some blocks of a row go: the fields of [`QuantizedRows`].
struct RowOut<'a> {
    bytes: &'a mut [i8],
    scales: &'a mut [[f32; 2]],
    half_sums: &'a mut [[f32; 2]],
    starts: &'a mut [[i32; 4]],
    half_starts: &'a mut [[i32; 4]],
}

simd_kernel! { fn quantize_row(x: &[f32], out: RowOut<'_>) = quantize_row_body }

#[inline(always)]
fn quantize_row_body<S: Simd>(s: S, x: &[f32], out: RowOut<'_>) {
    let RowOut { bytes, scales, half_sums, starts, half_starts } = out;
    let num_blocks = scales.len();
    assert!(x.len() >= num_blocks * BLOCK_K && bytes.len() == num_blocks * BLOCK_K);
    assert!(half_sums.len() == num_blocks && starts.len() == num_blocks && half_starts.len() == num_blocks);
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
            let scale = max / 127.0;
            scales[b] = [scale, scale * (sums[0] + sums[1])];
            half_sums[b] = [scale * sums[0], scale * sums[1]];
            let sums = [sums[0] as i32, sums[1] as i32];
            let sum = sums[0] + sums[1];
            starts[b] = [-8 * sum, -16 * sum, -128 * sum, 0];
            half_starts[b] = [-4 * sums[0], -4 * sums[1], -32 * sums[0], -32 * sums[1]];
        }
        if s.reduce_add(poison).is_nan() {
            for b in 0..num_blocks {
                scales[b][0] = f32::NAN;
            }
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
            let ([scale, _], starts) = (expected.facts.scales[block], expected.facts.starts[block]);
            let bytes = &expected.bytes[block * BLOCK_K..][..BLOCK_K];
            assert_eq!(scale, x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0);
            for (x, b) in x.iter().zip(bytes) {
                assert!((x - f32::from(*b) * scale).abs() <= scale * 0.501, "{x} {b}");
            }
            assert_eq!(starts[0], -8 * bytes.iter().map(|b| i32::from(*b)).sum::<i32>());
        }
        for isa in Isa::all_here() {
            let got = run(isa);
            assert_eq!(got.bytes, expected.bytes, "{isa}");
            let bits = |rows: &[[f32; 2]]| rows.iter().map(|row| row.map(f32::to_bits)).collect::<Vec<_>>();
            let (a, b) = (&got.facts, &expected.facts);
            assert_eq!(bits(&a.scales), bits(&b.scales), "{isa}");
            assert_eq!(bits(&a.half_sums), bits(&b.half_sums), "{isa}");
            assert_eq!((&a.starts, &a.half_starts), (&b.starts, &b.half_starts), "{isa}");
        }
    }
}
