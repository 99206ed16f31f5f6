//! A layer's inputs as the kernels want them: in f32 for float weights, and in blocks of 32 signed bytes with one f32
//! scale each for quantised ones.

use super::pool::{Pool, SharedMut};
use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::weights::BLOCK_K;

/// Rows that a thread takes at a time.
const ROWS_PER_TILE: usize = 8;

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
    k: usize,
    bytes: Vec<i8>,
    facts: Vec<BlockFacts>,
}

impl Activations {
    /// Quantises `x: [num_rows, k]`, replacing what was there: per block, scale = max |x| / 127 and each value is
    /// rounded to the nearest step, ties to even. Rows whose `k` is not a multiple of 32 have no blocks at their end;
    /// only float weights have such rows.
    pub fn quantize(&mut self, isa: Isa, pool: &mut Pool, x: &[f32], k: usize) {
        let num_rows = x.len() / k;
        let num_blocks = k / BLOCK_K;
        self.k = k;
        self.bytes.resize(num_rows * num_blocks * BLOCK_K, 0);
        self.facts.resize(num_rows * num_blocks, BlockFacts::default());
        if num_blocks == 0 {
            return;
        }
        let (bytes, facts) = (SharedMut::new(&mut self.bytes), SharedMut::new(&mut self.facts));
        pool.run(num_rows.div_ceil(ROWS_PER_TILE), |tile| {
            for row in tile * ROWS_PER_TILE..num_rows.min((tile + 1) * ROWS_PER_TILE) {
                let x = &x[row * k..][..num_blocks * BLOCK_K];
                // SAFETY: every row belongs to one tile.
                let (bytes, facts) =
                    unsafe { (bytes.slice(row * x.len(), x.len()), facts.slice(row * num_blocks, num_blocks)) };
                quantize_row(isa, x, bytes, facts);
            }
        });
    }

    /// Signed bytes of one row after another.
    pub(crate) fn bytes(&self) -> &[i8] {
        &self.bytes
    }

    /// Facts of one row's blocks after another's.
    pub(crate) fn facts(&self) -> &[BlockFacts] {
        &self.facts
    }
}

simd_kernel! { fn quantize_row(x: &[f32], bytes: &mut [i8], facts: &mut [BlockFacts]) = quantize_row_body }

#[inline(always)]
fn quantize_row_body<S: Simd>(s: S, x: &[f32], bytes: &mut [i8], facts: &mut [BlockFacts]) {
    let blocks = x.as_chunks::<BLOCK_K>().0.iter().zip(bytes.as_chunks_mut::<BLOCK_K>().0);
    for ((x, bytes), facts) in blocks.zip(facts) {
        // SAFETY: `x` and `bytes` hold two vectors of sixteen.
        unsafe {
            let (lo, hi) = (s.load(x.as_ptr()), s.load(x.as_ptr().add(LANES)));
            let max = s.reduce_max(s.max(s.abs(lo), s.abs(hi)));
            let scale = max / 127.0;
            // A block of zeros has no steps. NaN and infinity must not be rounded away: they make the scale NaN.
            let poison = s.reduce_add(s.mul(s.add(s.abs(lo), s.abs(hi)), s.splat(0.0)));
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits.
            let magic = s.splat(12_582_912.0);
            s.store_magic_i8(bytes.as_mut_ptr(), s.fma(lo, s.splat(inverse), magic));
            s.store_magic_i8(bytes.as_mut_ptr().add(LANES), s.fma(hi, s.splat(inverse), magic));
            *facts = BlockFacts::of(bytes, scale + poison);
        }
    }
}

impl BlockFacts {
    #[inline(always)]
    fn of(bytes: &[i8; BLOCK_K], scale: f32) -> Self {
        let sums = [0, LANES].map(|at| bytes[at..at + LANES].iter().map(|b| i32::from(*b)).sum::<i32>());
        let sum = sums[0] + sums[1];
        Self {
            scale,
            scaled_sum: scale * sum as f32,
            scaled_sums: sums.map(|sum| scale * sum as f32),
            start: [-8 * sum, -16 * sum, -128 * sum],
            start_4: sums.map(|sum| -4 * sum),
            start_32: sums.map(|sum| -32 * sum),
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
