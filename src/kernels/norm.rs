//! Root-mean-square normalisation: x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467).

use super::pool::{Pool, SharedMut};
use super::simd::{Isa, LANES, Simd, simd_kernel};

/// Rows that a thread takes at a time; fewer rows than this are done by the caller alone.
const ROWS_PER_TILE: usize = 16;

/// Normalises every row of `x: [num_rows, weight.len()]` into `out`.
///
/// # Panics
/// If a length does not fit.
pub fn rms_norm(isa: Isa, pool: &mut Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    let num_rows = x.len() / width;
    let out = SharedMut::new(out);
    pool.run(num_rows.div_ceil(ROWS_PER_TILE), |tile| {
        for row in tile * ROWS_PER_TILE..num_rows.min((tile + 1) * ROWS_PER_TILE) {
            // SAFETY: every row belongs to one tile.
            let out = unsafe { out.slice(row * width, width) };
            out.copy_from_slice(&x[row * width..(row + 1) * width]);
            rms_norm_row(isa, out, weight, eps);
        }
    });
}

simd_kernel! {
    /// Normalises one row in place.
    pub(crate) fn rms_norm_row(x: &mut [f32], weight: &[f32], eps: f32) = rms_norm_row_body
}

#[inline(always)]
fn rms_norm_row_body<S: Simd>(s: S, x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len());
    let (whole, tail) = x.as_chunks::<LANES>();
    let mut squares = s.splat(0.0);
    for x in whole {
        // SAFETY: sixteen values.
        let x = unsafe { s.load(x.as_ptr()) };
        squares = s.fma(x, x, squares);
    }
    let sum = tail.iter().fold(s.reduce_add(squares), |sum, x| x.mul_add(*x, sum));
    let scale = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised_with_the_same_bits_everywhere() {
        for width in [5, 16, 64, 576, 600] {
            let num_rows = 40;
            let x: Vec<f32> = (0..num_rows * width).map(|i| ((i * 7919) % 1013) as f32 / 300.0 - 1.6).collect();
            let weight: Vec<f32> = (0..width).map(|i| 0.5 + (i % 7) as f32 / 5.0).collect();
            let run = |isa| {
                let mut out = vec![0.0; x.len()];
                rms_norm(isa, &mut Pool::new(2), &x, &weight, 1e-5, &mut out);
                out
            };
            let expected = run(Isa::portable());
            for (row, out) in x.chunks(width).zip(expected.chunks(width)) {
                let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for i in 0..width {
                    let truth = f64::from(row[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                    assert!((f64::from(out[i]) - truth).abs() < 1e-5, "{} {truth}", out[i]);
                }
            }
            for isa in Isa::all_here() {
                assert!(run(isa).iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa} {width}");
            }
        }
    }
}
