//! NEON: four registers of four lanes, with three ways to multiply bytes. FEAT_I8MM has the wanted product of unsigned
//! and signed bytes; FEAT_DotProd has the product of signed bytes; every AArch64 CPU has widening multiplies.
//!
//! Codes below 128 are signed bytes already. Wider codes become signed when 128 is subtracted from each. That lowers
//! the dot product by 128 times the sum of the other factors, so this amount is added again.
//!
//! The dot products and the prefetch are inline assembly, because their intrinsics are not stable.

use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;

use super::Simd;

const WIDENING: u8 = 0;
const DOTPROD: u8 = 1;
const I8MM: u8 = 2;

/// NEON alone.
pub(crate) type NeonWidening = Neon<WIDENING>;
/// NEON and FEAT_DotProd.
pub(crate) type NeonDotprod = Neon<DOTPROD>;
/// NEON, FEAT_DotProd and FEAT_I8MM.
pub(crate) type NeonI8mm = Neon<I8MM>;

/// Proof of NEON, and of the byte multiplication that `BYTES` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neon<const BYTES: u8>(());

impl<const BYTES: u8> Neon<BYTES> {
    pub(super) fn detect() -> Option<Self> {
        let here = is_aarch64_feature_detected!("neon")
            && (BYTES < DOTPROD || is_aarch64_feature_detected!("dotprod"))
            && (BYTES < I8MM || is_aarch64_feature_detected!("i8mm"));
        here.then_some(Self(()))
    }
}

/// An array of the expression's values for the four registers. A closure given to `array::from_fn` would be compiled
/// without the caller's instruction set.
macro_rules! each {
    ($i:ident => $value:expr) => {
        [
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
        ]
    };
}

// SAFETY of every block below: `self` is the proof that the CPU has the instruction; the caller vouches for the
// pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BYTES: u8> Simd for Neon<BYTES> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];

    const NUM_REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        unsafe { each!(i => vld1q_f32(p.add(4 * i))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::F) {
        unsafe {
            vst1q_f32(p, x[0]);
            vst1q_f32(p.add(4), x[1]);
            vst1q_f32(p.add(8), x[2]);
            vst1q_f32(p.add(12), x[3]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        unsafe { each!(i => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(4 * i))))) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: Self::F) {
        unsafe {
            let halves = each!(i => vreinterpret_u16_f16(vcvt_f16_f32(x[i])));
            vst1q_u16(p, vcombine_u16(halves[0], halves[1]));
            vst1q_u16(p.add(8), vcombine_u16(halves[2], halves[3]));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        unsafe { each!(i => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * i))))) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(i => vaddq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(i => vsubq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(i => vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(i => vdivq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { each!(i => vfmaq_f32(c[i], a[i], b[i])) }
    }

    // `vmaxq_f32` would return NaN where either is NaN, and the positive one of two zeros.
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(i => vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i])) }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(i => vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i])) }
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        unsafe { each!(i => vabsq_f32(a[i])) }
    }

    #[inline(always)]
    fn reduce_add(self, a: Self::F) -> f32 {
        unsafe {
            let four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vpadds_f32(two)
        }
    }

    // These skip NaN, as the portable fold does.
    #[inline(always)]
    fn reduce_max(self, a: Self::F) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a[0], a[1]), vmaxnmq_f32(a[2], a[3]))) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::B {
        unsafe { each!(i => vld1q_u8(p.add(16 * i))) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, x: Self::B) {
        unsafe {
            vst1q_u8(p, x[0]);
            vst1q_u8(p.add(16), x[1]);
            vst1q_u8(p.add(32), x[2]);
            vst1q_u8(p.add(48), x[3]);
        }
    }

    // Shifts by a variable, here and below, because the immediate form wants an i32 constant.
    #[inline(always)]
    fn bits<const SHIFT: u32, const MASK: u8>(self, a: Self::B) -> Self::B {
        unsafe {
            let (count, mask) = (vdupq_n_s8(-(SHIFT as i8)), vdupq_n_u8(MASK));
            each!(i => vandq_u8(vshlq_u8(a[i], count), mask))
        }
    }

    #[inline(always)]
    fn bits_up<const SHIFT: u32, const MASK: u8>(self, a: Self::B) -> Self::B {
        unsafe {
            let (count, mask) = (vdupq_n_s8(SHIFT as i8), vdupq_n_u8(MASK << SHIFT));
            each!(i => vandq_u8(vshlq_u8(a[i], count), mask))
        }
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { each!(i => vorrq_u8(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> Self::F {
        unsafe {
            let bytes = vld1q_s8(p.cast());
            let (lo, hi) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))),
                vcvtq_f32_s32(vmovl_high_s16(lo)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))),
                vcvtq_f32_s32(vmovl_high_s16(hi)),
            ]
        }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        unsafe { [vdupq_n_s32(x); 4] }
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: Self::I, codes: Self::B, x: i32) -> Self::I {
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            if BYTES == I8MM {
                return each!(i => usdot(acc[i], codes[i], x));
            }
            if !WIDE {
                let codes = each!(i => vreinterpretq_s8_u8(codes[i]));
                return match BYTES {
                    DOTPROD => each!(i => sdot(acc[i], codes[i], x)),
                    _ => each!(i => widening_dot_narrow(acc[i], codes[i], x)),
                };
            }
            let codes = each!(i => vreinterpretq_s8_u8(veorq_u8(codes[i], vdupq_n_u8(128))));
            if BYTES == DOTPROD {
                let minus_128_sum = sdot(vdupq_n_s32(0), vdupq_n_s8(-128), x);
                return each!(i => sdot(vsubq_s32(acc[i], minus_128_sum), codes[i], x));
            }
            let sum_128 = vshlq_n_s32::<7>(vpaddlq_s16(vpaddlq_s8(x)));
            each!(i => widening_dot(vaddq_s32(acc[i], sum_128), codes[i], x))
        }
    }

    #[inline(always)]
    fn byte<const SHIFT: u32>(self, a: Self::B) -> Self::F {
        unsafe {
            let (count, mask) = (vdupq_n_s32(-(SHIFT as i32)), vdupq_n_u32(255));
            each!(i => vcvtq_f32_u32(vandq_u32(vshlq_u32(vreinterpretq_u32_u8(a[i]), count), mask)))
        }
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        unsafe { each!(i => vcvtq_f32_s32(a[i])) }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p, options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn store_magic_i8(self, p: *mut i8, magic: Self::F) {
        unsafe {
            let words = each!(i => vmovn_u32(vreinterpretq_u32_f32(magic[i])));
            let lo = vmovn_u16(vcombine_u16(words[0], words[1]));
            let hi = vmovn_u16(vcombine_u16(words[2], words[3]));
            vst1q_u8(p.cast(), vcombine_u8(lo, hi));
        }
    }

    #[inline(always)]
    fn scale_by_exponent(self, a: Self::F, n_magic: Self::F) -> Self::F {
        unsafe {
            each!(i => {
                let n = vshlq_n_u32::<23>(vreinterpretq_u32_f32(n_magic[i]));
                vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a[i]), n))
            })
        }
    }
}

/// The dot products without an instruction for them. Two products of codes from 0 to 127 and signed bytes are added in
/// 16 bits: 2 * 127 * 128 = 32512 at most.
#[inline]
#[target_feature(enable = "neon")]
fn widening_dot_narrow(acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    let (lo, hi) = (vmull_s8(vget_low_s8(codes), vget_low_s8(x)), vmull_high_s8(codes, x));
    vpadalq_s16(acc, vpaddq_s16(lo, hi))
}

/// The same for any signed bytes, where 2 * -128 * -128 does not fit 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn widening_dot(acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    let (lo, hi) = (vmull_s8(vget_low_s8(codes), vget_low_s8(x)), vmull_high_s8(codes, x));
    vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(lo), vpaddlq_s16(hi)))
}

/// Adds the dot products of four signed and four signed bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: the enabled feature has the instruction; it touches these registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
            sum = inlateout(vreg) sum,
            codes = in(vreg) codes,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds the dot products of four unsigned and four signed bytes.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usdot(acc: int32x4_t, codes: uint8x16_t, x: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: as above.
    unsafe {
        asm!(
            "usdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
            sum = inlateout(vreg) sum,
            codes = in(vreg) codes,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
