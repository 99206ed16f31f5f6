//! Plain loops over arrays of sixteen: the twin that every other instruction set is checked against, and the path of
//! CPUs without one of their own.

use half::{bf16, f16};

use super::{LANES, Simd};

/// No instruction set at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Portable;

type F = [f32; LANES];
type Bytes = [u8; 4 * LANES];

#[inline(always)]
fn zip(a: F, b: F, op: impl Fn(f32, f32) -> f32) -> F {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = op(a[i], b[i]);
    }
    out
}

impl Simd for Portable {
    type F = F;
    type I = [i32; LANES];
    type B = Bytes;

    const NUM_REGISTERS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller vouches for sixteen values.
        unsafe { p.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: F) {
        // SAFETY: the caller vouches for sixteen values.
        unsafe { p.cast::<F>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F {
        // SAFETY: the caller vouches for sixteen values.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32())
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: F) {
        // SAFETY: the caller vouches for sixteen.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(x.map(|x| f16::from_f32(x).to_bits())) };
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> F {
        // SAFETY: the caller vouches for sixteen values.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| bf16::from_bits(b).to_f32())
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn reduce_add(self, mut a: F) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                a[i] += a[i + half];
            }
            half /= 2;
        }
        a[0]
    }

    #[inline(always)]
    fn reduce_max(self, a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }

    #[inline(always)]
    fn abs(self, a: F) -> F {
        a.map(f32::abs)
    }

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Bytes {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { p.cast::<Bytes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, x: Bytes) {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { p.cast::<Bytes>().write_unaligned(x) }
    }

    #[inline(always)]
    fn bits<const SHIFT: u32, const MASK: u8>(self, a: Bytes) -> Bytes {
        a.map(|x| x >> SHIFT & MASK)
    }

    #[inline(always)]
    fn bits_up<const SHIFT: u32, const MASK: u8>(self, a: Bytes) -> Bytes {
        a.map(|x| (x & MASK) << SHIFT)
    }

    #[inline(always)]
    fn or(self, a: Bytes, b: Bytes) -> Bytes {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> F {
        // SAFETY: the caller vouches for sixteen bytes.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: Self::I, codes: Bytes, x: i32) -> Self::I {
        let x = x.to_le_bytes().map(|b| i32::from(b as i8));
        let mut out = acc;
        for i in 0..LANES {
            for j in 0..4 {
                out[i] += i32::from(codes[4 * i + j]) * x[j];
            }
        }
        out
    }

    #[inline(always)]
    fn byte<const SHIFT: u32>(self, a: Bytes) -> F {
        std::array::from_fn(|i| f32::from(a[4 * i + SHIFT as usize / 8]))
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> F {
        a.map(|x| x as f32)
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    unsafe fn store_magic_i8(self, p: *mut i8, magic: F) {
        // SAFETY: the caller vouches for sixteen bytes.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(magic.map(|x| x.to_bits() as i8)) }
    }

    #[inline(always)]
    fn scale_by_exponent(self, a: F, n_magic: F) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f32::from_bits(a[i].to_bits().wrapping_add(n_magic[i].to_bits() << 23));
        }
        out
    }
}
