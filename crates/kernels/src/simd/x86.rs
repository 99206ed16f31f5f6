//! AVX-512 (one register of sixteen lanes) and AVX2 with FMA and F16C (two of eight), each with and without the byte
//! dot product of VNNI. Without it, `vpmaddubsw` adds pairs of products in 16 bits and saturates at 32767: codes below
//! 128 cannot reach that (2 * 127 * 127 = 32258), wider ones are cut in two nibbles.

use std::arch::x86_64::*;

use super::Simd;

/// Proof of AVX-512 F, BW, VL and DQ, and of AVX-512 VNNI if `VNNI` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512<const VNNI: bool>(());

/// Proof of AVX2, FMA and F16C, and of AVX-VNNI if `VNNI` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    pub(super) fn detect() -> Option<Self> {
        let here = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"));
        here.then_some(Self(()))
    }
}

impl<const VNNI: bool> Avx2<VNNI> {
    pub(super) fn detect() -> Option<Self> {
        let here = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        here.then_some(Self(()))
    }
}

// SAFETY of every block below: `self` is the proof that the CPU has the instruction; the caller vouches for the
// pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    const NUM_REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: __m512) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(x)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            reduce_add_8(eight)
        }
    }

    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, x: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), x) }
    }

    #[inline(always)]
    fn bits<const SHIFT: u32, const MASK: u8>(self, a: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(a), _mm512_set1_epi8(MASK as i8)) }
    }

    #[inline(always)]
    fn bits_up<const SHIFT: u32, const MASK: u8>(self, a: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_slli_epi16::<SHIFT>(a), _mm512_set1_epi8((MASK << SHIFT) as i8)) }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: __m512i, codes: __m512i, x: i32) -> __m512i {
        unsafe {
            let x = _mm512_set1_epi32(x);
            if VNNI {
                return _mm512_dpbusd_epi32(acc, codes, x);
            }
            let ones = _mm512_set1_epi16(1);
            let sum = |codes| _mm512_madd_epi16(_mm512_maddubs_epi16(codes, x), ones);
            if !WIDE {
                return _mm512_add_epi32(acc, sum(codes));
            }
            let high = _mm512_slli_epi32::<4>(sum(self.bits::<4, 15>(codes)));
            _mm512_add_epi32(acc, _mm512_add_epi32(high, sum(self.bits::<0, 15>(codes))))
        }
    }

    #[inline(always)]
    fn byte<const SHIFT: u32>(self, a: __m512i) -> __m512 {
        unsafe {
            let shifted = _mm512_srli_epi32::<SHIFT>(a);
            // The top byte needs no mask: the shift brought in zeros.
            let byte = if SHIFT == 24 { shifted } else { _mm512_and_si512(shifted, _mm512_set1_epi32(255)) };
            _mm512_cvtepi32_ps(byte)
        }
    }

    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_magic_i8(self, p: *mut i8, magic: __m512) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(magic))) }
    }

    #[inline(always)]
    fn scale_by_exponent(self, a: __m512, n_magic: __m512) -> __m512 {
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n_magic));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), n))
        }
    }
}

#[inline(always)]
fn reduce_add_8(eight: __m256) -> f32 {
    // SAFETY: callers hold an AVX token.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        let one = _mm_add_ss(two, _mm_shuffle_ps::<1>(two, two));
        _mm_cvtss_f32(one)
    }
}

// SAFETY of every block below: as above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    const NUM_REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))] }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: Self::F) {
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(x[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(x[1]));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        unsafe {
            let lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(lo)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(hi))]
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn reduce_add(self, a: Self::F) -> f32 {
        reduce_add_8(unsafe { _mm256_add_ps(a[0], a[1]) })
    }

    #[inline(always)]
    fn reduce_max(self, a: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, x: Self::B) {
        unsafe {
            _mm256_storeu_si256(p.cast(), x[0]);
            _mm256_storeu_si256(p.add(32).cast(), x[1]);
        }
    }

    #[inline(always)]
    fn bits<const SHIFT: u32, const MASK: u8>(self, a: Self::B) -> Self::B {
        unsafe {
            // The count is a variable operand because the immediate form wants an i32 constant.
            let (count, mask) = (_mm_cvtsi32_si128(SHIFT as i32), _mm256_set1_epi8(MASK as i8));
            let bits = |a| _mm256_and_si256(if SHIFT == 0 { a } else { _mm256_srl_epi16(a, count) }, mask);
            [bits(a[0]), bits(a[1])]
        }
    }

    #[inline(always)]
    fn bits_up<const SHIFT: u32, const MASK: u8>(self, a: Self::B) -> Self::B {
        unsafe {
            let (count, mask) = (_mm_cvtsi32_si128(SHIFT as i32), _mm256_set1_epi8((MASK << SHIFT) as i8));
            let bits = |a| _mm256_and_si256(if SHIFT == 0 { a } else { _mm256_sll_epi16(a, count) }, mask);
            [bits(a[0]), bits(a[1])]
        }
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> Self::F {
        unsafe {
            let half = |p: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
            [half(p), half(p.add(8))]
        }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: Self::I, codes: Self::B, x: i32) -> Self::I {
        unsafe {
            let x = _mm256_set1_epi32(x);
            if VNNI {
                return [_mm256_dpbusd_avx_epi32(acc[0], codes[0], x), _mm256_dpbusd_avx_epi32(acc[1], codes[1], x)];
            }
            let ones = _mm256_set1_epi16(1);
            let sum = |codes| _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones);
            if !WIDE {
                return [_mm256_add_epi32(acc[0], sum(codes[0])), _mm256_add_epi32(acc[1], sum(codes[1]))];
            }
            let (high, low) = (self.bits::<4, 15>(codes), self.bits::<0, 15>(codes));
            let add =
                |acc, high, low| _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_slli_epi32::<4>(sum(high)), sum(low)));
            [add(acc[0], high[0], low[0]), add(acc[1], high[1], low[1])]
        }
    }

    #[inline(always)]
    fn byte<const SHIFT: u32>(self, a: Self::B) -> Self::F {
        unsafe {
            let (count, mask) = (_mm_cvtsi32_si128(SHIFT as i32), _mm256_set1_epi32(255));
            let byte = |a| _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(a, count), mask));
            [byte(a[0]), byte(a[1])]
        }
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_magic_i8(self, p: *mut i8, magic: Self::F) {
        unsafe {
            // Two saturating packs would spoil the magic's high bits; the low byte of each lane is picked instead.
            let pick = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
            );
            let half = |x: __m256| {
                let picked = _mm256_shuffle_epi8(_mm256_castps_si256(x), pick);
                _mm_unpacklo_epi32(_mm256_castsi256_si128(picked), _mm256_extracti128_si256::<1>(picked))
            };
            _mm_storel_epi64(p.cast(), half(magic[0]));
            _mm_storel_epi64(p.add(8).cast(), half(magic[1]));
        }
    }

    #[inline(always)]
    fn scale_by_exponent(self, a: Self::F, n_magic: Self::F) -> Self::F {
        unsafe {
            let scale = |a: __m256, n: __m256| {
                let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n))
            };
            [scale(a[0], n_magic[0]), scale(a[1], n_magic[1])]
        }
    }
}
