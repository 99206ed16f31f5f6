//! Root-mean-square normalisation: x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467).

use super::pool::{Pool, SharedMut, for_rows};
use super::simd::{Isa, LANES, Simd, simd_kernel};

/// A thread takes at most this many rows at a time.
const ROWS_PER_TILE_MAX: usize = 16;

/// A norm's parameters.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Multiplies the normalised values.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// Normalises every row of `x: [num_rows, weight.len()]` into `out`.
///
/// # Panics
/// If a length does not fit.
pub fn rms_norm(isa: Isa, pool: &mut Pool, x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    each_row(pool, x, norm, out, |x, out| rms_norm_row(isa, x, norm, out));
}

/// Adds every normalised row of `x: [num_rows, weight.len()]` to `out`.
///
/// # Panics
/// If a length does not fit.
pub fn add_rms_norm(isa: Isa, pool: &mut Pool, x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    each_row(pool, x, norm, out, |x, out| add_rms_norm_row(isa, x, norm, out));
}

fn each_row(pool: &mut Pool, x: &[f32], norm: Norm<'_>, out: &mut [f32], f: impl Fn(&[f32], &mut [f32]) + Sync) {
    let width = norm.weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    let out = SharedMut::new(out);
    for_rows(pool, x.len() / width, ROWS_PER_TILE_MAX, |row| {
        // SAFETY: every row belongs to one tile.
        f(&x[row * width..][..width], unsafe { out.slice(row * width, width) });
    });
}

simd_kernel! {
    /// Normalises one row.
    pub(crate) fn rms_norm_row(x: &[f32], norm: Norm<'_>, out: &mut [f32]) = rms_norm_row_body
}
simd_kernel! { fn add_rms_norm_row(x: &[f32], norm: Norm<'_>, out: &mut [f32]) = add_rms_norm_row_body }

/// 1 / sqrt(mean(x^2) + eps)
#[inline(always)]
pub(super) fn scale_of<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let (whole, tail) = x.as_chunks::<LANES>();
    let mut squares = s.splat(0.0);
    for x in whole {
        // SAFETY: sixteen values.
        let x = unsafe { s.load(x.as_ptr()) };
        squares = s.fma(x, x, squares);
    }
    let mut sum = s.reduce_add(squares);
    for x in tail {
        sum = x.mul_add(*x, sum);
    }
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn rms_norm_row_body<S: Simd>(s: S, x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    assert!(x.len() == norm.weight.len() && out.len() == x.len());
    let scale = scale_of(s, x, norm.eps);
    for i in 0..x.len() {
        out[i] = x[i] * scale * norm.weight[i];
    }
}

#[inline(always)]
fn add_rms_norm_row_body<S: Simd>(s: S, x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    assert!(x.len() == norm.weight.len() && out.len() == x.len());
    let scale = scale_of(s, x, norm.eps);
    for i in 0..x.len() {
        out[i] += x[i] * scale * norm.weight[i];
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
                rms_norm(isa, &mut Pool::new(2), &x, Norm { weight: &weight, eps: 1e-5 }, &mut out);
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
