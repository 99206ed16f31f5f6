//! `exp` and `ln` for f32 that give the same bits on every CPU: additions, multiplications and divisions only, each
//! rounded as IEEE 754 says, in the order written. The compiler may not fuse or reorder them, so vectorising changes
//! nothing. `mul_add` is left out on purpose: it would give the same bits too, but on x86-64 without FMA enabled it
//! is a library call per term, ten times the cost.
//!
//! `exp(x) = 2^n * exp(r)` with `n = round(x / ln 2)` and `|r| <= ln(2)/2`, where the Taylor series to the seventh
//! power is within 0.05 ulp. `ln(m * 2^e) = e * ln 2 + 2 artanh((m-1)/(m+1))` with `m` in `[sqrt(1/2), sqrt(2))`.
//! `ln 2` is split into a short high part, whose products with small integers are exact, and the rest.
//!
//! Largest error measured over the tests' points: `exp` 1.02 ulp, `ln` 0.84 ulp.

// 15 significant bits of ln 2, and what they leave out.
const LN_2_HI: f32 = 0.693_145_75;
const LN_2_LO: f32 = 1.428_606_8e-6;

/// `e^x`. Zero below -87.33 (where results would be subnormal), infinity above 88.72; NaN stays NaN.
#[inline]
pub(crate) fn exp_f32(x: f32) -> f32 {
    // Adding 1.5 * 2^23 pushes the fraction out of the significand, rounding to nearest, and leaves the integer in
    // the low bits: unlike a cast, that is a vector operation everywhere.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.8 { 88.8 } else { x };
    let clamped = if clamped < -87.4 { -87.4 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HI) - n * LN_2_LO;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = (p * r) * r + r + 1.0;
    // In two factors, as 2^128 alone is no f32.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let result = p * pow2(half) * pow2(n.wrapping_sub(half));
    if x < -87.336_54 { 0.0 } else { result }
}

/// The natural logarithm. Minus infinity for zero, NaN below; infinity and NaN stay.
#[inline]
pub(crate) fn ln_f32(x: f32) -> f32 {
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x == f32::INFINITY {
        return x;
    }
    let subnormal = x < f32::MIN_POSITIVE;
    let bits = if subnormal { x * 33_554_432.0 } else { x }.to_bits();
    // Counting from the bits of sqrt(1/2) makes the exponent step there.
    let steps = (bits.wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits()) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((steps << 23) as u32));
    let e = (steps - if subnormal { 25 } else { 0 }) as f32;
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let p = 1.0 / 11.0;
    let p = p * z + 1.0 / 9.0;
    let p = p * z + 1.0 / 7.0;
    let p = p * z + 1.0 / 5.0;
    let p = p * z + 1.0 / 3.0;
    // m - 1 = s (2 + (m - 1)), so ln m = (m - 1) - s ((m - 1) - 2 z p): the large term is exact.
    let f = m - 1.0;
    let ln_m = f - s * (f - 2.0 * z * p);
    e * LN_2_HI + (e * LN_2_LO + ln_m)
}

fn pow2(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the exact result.
    fn ulps(got: f32, exact: f64) -> f64 {
        let exponent = (exact as f32).abs().max(f32::MIN_POSITIVE).to_bits() >> 23;
        let ulp = 2f64.powi(exponent as i32 - 127 - 23);
        (f64::from(got) - exact).abs() / ulp
    }

    #[test]
    fn exp_is_within_its_bound_everywhere() {
        let worst = (0..2_000_000)
            .map(|i| -87.336 + f64::from(i) * (88.72 + 87.336) / 2e6)
            .map(|x| (x as f32, ulps(exp_f32(x as f32), f64::from(x as f32).exp())))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("points");
        assert!(worst.1 <= 1.1, "{worst:?}");
    }

    #[test]
    fn exp_keeps_its_promises_at_the_edges() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-88.0), 0.0);
        assert_eq!(exp_f32(89.0), f32::INFINITY);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_within_its_bound_everywhere() {
        let step = 1013;
        let worst = (1..f32::INFINITY.to_bits())
            .step_by(step)
            .chain(0.5f32.to_bits()..0.5f32.to_bits() + 1000)
            .chain(1f32.to_bits() - 5000..1f32.to_bits() + 5000)
            .map(f32::from_bits)
            .filter(|&x| x != 1.0)
            .map(|x| (x, ulps(ln_f32(x), f64::from(x).ln())))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("points");
        assert!(worst.1 <= 1.1, "{worst:?}");
    }

    #[test]
    fn ln_keeps_its_promises_at_the_edges() {
        assert_eq!(ln_f32(1.0), 0.0);
        assert_eq!(ln_f32(0.0), f32::NEG_INFINITY);
        assert_eq!(ln_f32(f32::INFINITY), f32::INFINITY);
        assert!(ln_f32(-1.0).is_nan() && ln_f32(f32::NAN).is_nan());
    }

    /// Pins the bits: another value here is a change of every sampled text.
    #[test]
    fn bits_are_pinned() {
        let exp: u32 = (0..4000).fold(0, |h, i| hash(h, exp_f32(-30.0 + i as f32 * 0.01)));
        let ln: u32 = (1..4000).fold(0, |h, i| hash(h, ln_f32(i as f32 * 0.37)));
        assert_eq!((exp, ln), (3_404_479_012, 2_891_963_422));
    }

    fn hash(h: u32, x: f32) -> u32 {
        (h ^ x.to_bits()).wrapping_mul(0x9e37_79b1).rotate_left(13)
    }
}
