//! Sixteen virtual lanes on every CPU. Each algorithm is written once over [`Simd`]; thin shells made by
//! `simd_kernel!` compile it for one instruction set each and pick the shell at run time.
//!
//! The bits do not depend on the instruction set: every operation is lane-wise IEEE arithmetic (the multiply-add is
//! always fused), and [`Simd::reduce_add`] adds the lanes in one fixed tree.

mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use isa::Isa;
pub(crate) use isa::IsaLevel;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{NeonDotprod, NeonI8mm, NeonWidening};
pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Virtual lanes: f32 values in one [`Simd::F`], i32 values in one [`Simd::I`].
pub(crate) const LANES: usize = 16;

/// An instruction set, seen as sixteen lanes. A value of an implementing type exists only on a CPU that has the set.
///
/// # Safety of the pointer methods
/// `load*` read and `store*` write sixteen elements at any alignment; the caller vouches for the memory.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// 64 bytes: four consecutive ones belong to a lane.
    type B: Copy;

    /// Values of type `F` that fit the registers, roughly.
    const NUM_REGISTERS: usize;

    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// Sixteen readable f32 at `p`.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// # Safety
    /// Sixteen writable f32 at `p`.
    unsafe fn store(self, p: *mut f32, x: Self::F);
    /// Widens sixteen IEEE half floats, exactly.
    ///
    /// # Safety
    /// Sixteen readable u16 at `p`.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// The nearest half floats, ties to even.
    ///
    /// # Safety
    /// Sixteen writable u16 at `p`.
    unsafe fn store_f16(self, p: *mut u16, x: Self::F);
    /// Widens sixteen bfloat16, exactly.
    ///
    /// # Safety
    /// Sixteen readable u16 at `p`.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b, correctly rounded
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c with one rounding
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater of each pair; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each pair; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// |a|
    fn abs(self, a: Self::F) -> Self::F;
    /// The sum of all lanes: halves are added lane by lane until one is left (16, 8, 4, 2, 1).
    fn reduce_add(self, a: Self::F) -> f32;
    /// The greatest lane.
    fn reduce_max(self, a: Self::F) -> f32;

    /// # Safety
    /// 64 readable bytes at `p`.
    unsafe fn load_bytes(self, p: *const u8) -> Self::B;
    /// # Safety
    /// 64 writable bytes at `p`.
    unsafe fn store_bytes(self, p: *mut u8, x: Self::B);
    /// `(byte >> SHIFT) & MASK` of each byte; `MASK` must not keep bits that come from the neighbouring byte.
    fn bits<const SHIFT: u32, const MASK: u8>(self, a: Self::B) -> Self::B;
    /// `(byte & MASK) << SHIFT` of each byte; the result must fit a byte.
    fn bits_up<const SHIFT: u32, const MASK: u8>(self, a: Self::B) -> Self::B;
    /// a | b
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Sixteen signed bytes as floats.
    ///
    /// # Safety
    /// Sixteen readable bytes at `p`.
    unsafe fn load_i8(self, p: *const u8) -> Self::F;
    /// The same integer in every lane.
    fn splat_i32(self, x: i32) -> Self::I;
    /// Adds to each lane the dot product of its four unsigned bytes and the four signed bytes of `x`, exactly.
    /// Without `WIDE` the unsigned bytes are below 128.
    fn dot<const WIDE: bool>(self, acc: Self::I, codes: Self::B, x: i32) -> Self::I;
    /// Byte `SHIFT / 8` of each lane, unsigned, as a float.
    fn byte<const SHIFT: u32>(self, a: Self::B) -> Self::F;
    /// Each lane as a float.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// Hints that the line at `p` will be read soon. Any address is allowed.
    fn prefetch(self, p: *const u8);
    /// The low mantissa byte of each lane: after magic rounding (see `math::exp`) the integer in it. Writes sixteen.
    ///
    /// # Safety
    /// Sixteen writable bytes at `p`.
    unsafe fn store_magic_i8(self, p: *mut i8, magic: Self::F);
    /// 2^n * a, where `n` is the low bits of the magic-rounded `n_magic` (see `math::exp`).
    fn scale_by_exponent(self, a: Self::F, n_magic: Self::F) -> Self::F;
}

/// Defines a function that runs a generic body `fn body<S: Simd>(s: S, args...)` compiled for the given [`Isa`].
/// The body must be `#[inline(always)]`, or the instruction set is lost at its call.
macro_rules! simd_kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::simd::{Avx2, Avx512};
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
                fn avx512_vnni(s: Avx512<true>, $($arg: $ty),*) $(-> $ret)? {
                    $body(s, $($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
                fn avx512(s: Avx512<false>, $($arg: $ty),*) $(-> $ret)? {
                    $body(s, $($arg),*)
                }
                #[target_feature(enable = "avx2,avxvnni,fma,f16c")]
                fn avx_vnni(s: Avx2<true>, $($arg: $ty),*) $(-> $ret)? {
                    $body(s, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2(s: Avx2<false>, $($arg: $ty),*) $(-> $ret)? {
                    $body(s, $($arg),*)
                }
                match isa.level() {
                    // SAFETY: a token of this type exists only if the CPU has the shell's features.
                    $crate::simd::IsaLevel::Avx512Vnni(s) => return unsafe { avx512_vnni(s, $($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::IsaLevel::Avx512(s) => return unsafe { avx512(s, $($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::IsaLevel::AvxVnni(s) => return unsafe { avx_vnni(s, $($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::IsaLevel::Avx2(s) => return unsafe { avx2(s, $($arg),*) },
                    $crate::simd::IsaLevel::Portable => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                use $crate::simd::{NeonDotprod, NeonI8mm, NeonWidening};
                #[target_feature(enable = "neon,dotprod,i8mm")]
                fn neon_i8mm(s: NeonI8mm, $($arg: $ty),*) $(-> $ret)? {
                    $body(s, $($arg),*)
                }
                #[target_feature(enable = "neon,dotprod")]
                fn neon_dotprod(s: NeonDotprod, $($arg: $ty),*) $(-> $ret)? {
                    $body(s, $($arg),*)
                }
                #[target_feature(enable = "neon")]
                fn neon(s: NeonWidening, $($arg: $ty),*) $(-> $ret)? {
                    $body(s, $($arg),*)
                }
                match isa.level() {
                    // SAFETY: a token of this type exists only if the CPU has the shell's features.
                    $crate::simd::IsaLevel::NeonI8mm(s) => return unsafe { neon_i8mm(s, $($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::IsaLevel::NeonDotprod(s) => return unsafe { neon_dotprod(s, $($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::IsaLevel::Neon(s) => return unsafe { neon(s, $($arg),*) },
                    $crate::simd::IsaLevel::Portable => {}
                }
            }
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let $crate::simd::IsaLevel::Portable = isa.level();
            $body($crate::simd::Portable, $($arg),*)
        }
    };
}
pub(crate) use simd_kernel;

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    fn every_op<S: Simd>(s: S, x: &[f32; 16], bytes: &[u8; 64], out: &mut Vec<f32>) {
        let mut row = [0f32; 16];
        let mut wide = [0u8; 64];
        // SAFETY: all pointers come from arrays of the needed size.
        unsafe {
            let a = s.load(x.as_ptr());
            let b = s.load_f16(bytes.as_ptr().cast());
            let c = s.load_bf16(bytes.as_ptr().cast());
            let codes = s.load_bytes(bytes.as_ptr());
            let magic = s.splat(12_582_912.0 - 3.0);
            let low = s.bits::<0, 0x7f>(codes);
            for v in [
                s.add(a, b),
                s.sub(a, c),
                s.mul(a, b),
                s.div(a, s.splat(3.7)),
                s.fma(a, b, s.splat(0.1)),
                s.max(a, b),
                s.min(a, b),
                s.abs(a),
                s.load_i8(bytes.as_ptr()),
                s.byte::<0>(codes),
                s.byte::<16>(codes),
                s.byte::<24>(codes),
                s.to_f32(s.dot::<false>(s.splat_i32(-7), low, i32::from_le_bytes([0x81, 0x7f, 0x81, 0x7f]))),
                s.to_f32(s.dot::<false>(s.splat_i32(0), low, i32::from_le_bytes([0x7f; 4]))),
                s.to_f32(s.dot::<true>(s.splat_i32(5), codes, i32::from_le_bytes([0x81; 4]))),
                s.to_f32(s.dot::<true>(s.splat_i32(5), codes, i32::from_le_bytes([0x7f, 0x80, 3, 0xfd]))),
                s.scale_by_exponent(a, magic),
            ] {
                s.store(row.as_mut_ptr(), v);
                out.extend_from_slice(&row);
            }
            for v in [
                s.bits::<4, 0x0f>(codes),
                s.bits::<7, 0x01>(codes),
                s.bits_up::<4, 0x03>(codes),
                s.bits_up::<7, 0x01>(codes),
                s.or(low, s.bits_up::<1, 0x55>(codes)),
            ] {
                s.store_bytes(wide.as_mut_ptr(), v);
                out.extend(wide.map(f32::from));
            }
            let mut halves = [0u16; 16];
            s.store_f16(halves.as_mut_ptr(), s.mul(a, s.splat(0.001_234)));
            out.extend(halves.map(f32::from));
            s.store_magic_i8(wide.as_mut_ptr().cast(), s.add(a, s.splat(12_582_912.0)));
            out.extend(wide.map(f32::from));
            out.push(s.reduce_add(a));
            out.push(s.reduce_max(a));
        }
    }

    simd_kernel! {
        fn run_every_op(x: &[f32; 16], bytes: &[u8; 64], out: &mut Vec<f32>) = every_op
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut x = [0f32; 16];
        let mut bytes = [0u8; 64];
        for i in 0..16 {
            x[i] = ((i * 7919 + 13) % 1000) as f32 / 37.0 - 11.0;
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (i * 37 + i / 8 * 11) as u8;
        }
        // As halves: positive and negative, normal and subnormal, none infinite or NaN.
        bytes.iter_mut().skip(1).step_by(2).for_each(|b| *b &= 0xbb);
        bytes[40] = 255;
        bytes[42] = 255;
        let mut expected = Vec::new();
        run_every_op(Isa::portable(), &x, &bytes, &mut expected);
        for isa in Isa::all_here() {
            let mut got = Vec::new();
            run_every_op(isa, &x, &bytes, &mut got);
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&expected), "{isa}");
        }
    }
}
