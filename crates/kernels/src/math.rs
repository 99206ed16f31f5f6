//! Transcendental functions as our own polynomials, so that no system library decides a bit.

use super::simd::Simd;

/// Adding and subtracting this rounds a small f32 to the nearest integer and leaves that integer in the low mantissa
/// bits: 1.5 * 2^23.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// Inputs beyond this (about ln of the smallest and greatest normal f32) are clamped to it.
const EXP_LIMIT: f32 = 87.0;

/// e^x for |x| <= 87 (clamped beyond), relative error below 2e-7; NaN gives NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, whose remainder there is
/// r^8 / 8! < 6e-9; then n goes into the exponent. ln 2 is split in two (Cody and Waite) so that r is exact.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // With the operands in this order, NaN passes through.
    let x = s.max(s.splat(-EXP_LIMIT), s.min(s.splat(EXP_LIMIT), x));
    let n_magic = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND_MAGIC));
    let n = s.sub(n_magic, s.splat(ROUND_MAGIC));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.scale_by_exponent(p, n_magic)
}

/// x * sigmoid(x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// The tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415, section 2):
/// x/2 (1 + tanh(u)) = x * sigmoid(2u), with u = sqrt(2/pi) (x + 0.044715 x^3).
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let x2 = s.mul(x, x);
    let inner = s.fma(s.mul(x2, x), s.splat(0.044_715), x);
    let e = exp(s, s.mul(inner, s.splat(-1.595_769)));
    s.div(x, s.add(s.splat(1.0), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, simd_kernel};

    #[inline(always)]
    fn all_body<S: Simd>(s: S, x: &[f32; 16], out: &mut [[f32; 16]; 3]) {
        // SAFETY: arrays of sixteen.
        unsafe {
            let v = s.load(x.as_ptr());
            s.store(out[0].as_mut_ptr(), exp(s, v));
            s.store(out[1].as_mut_ptr(), silu(s, v));
            s.store(out[2].as_mut_ptr(), gelu_tanh(s, v));
        }
    }
    simd_kernel! { fn all(x: &[f32; 16], out: &mut [[f32; 16]; 3]) = all_body }

    #[test]
    fn they_are_close_to_f64_and_the_same_bits_everywhere() {
        let mut worst = [0f64; 3];
        for i in -1376..=1376 {
            let x: [f32; 16] = std::array::from_fn(|j| (i * 16 + j as i32) as f32 / 256.0);
            let mut expected = [[0.0; 16]; 3];
            all(Isa::portable(), &x, &mut expected);
            for isa in Isa::all_here() {
                let mut got = [[0.0; 16]; 3];
                all(isa, &x, &mut got);
                assert_eq!(got.map(|r| r.map(f32::to_bits)), expected.map(|r| r.map(f32::to_bits)), "{isa}");
            }
            for j in 0..16 {
                let x = f64::from(x[j]);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                let truth = [x.exp(), x / (1.0 + (-x).exp()), 0.5 * x * (1.0 + u.tanh())];
                for (f, truth) in truth.into_iter().enumerate() {
                    // The error is relative for values above 1e-3, absolute below.
                    let error = (f64::from(expected[f][j]) - truth).abs() / truth.abs().max(1e-3);
                    worst[f] = worst[f].max(error);
                }
            }
        }
        for isa in Isa::all_here() {
            let mut got = [[0.0; 16]; 3];
            all(isa, &[f32::NAN; 16], &mut got);
            assert!(got.iter().flatten().all(|x| x.is_nan()), "{isa}");
        }
        assert!(worst[0] < 2e-7, "exp {worst:?}");
        assert!(worst[1] < 4e-7, "silu {worst:?}");
        assert!(worst[2] < 4e-6, "gelu {worst:?}");
    }
}
