//! Tiles of sixteen output rows for all tokens, inputs in f32: each block of 32 weights per row is turned into f32
//! once and multiplied with every token. Nothing is rounded but the sums.

use std::ops::Range;

use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::tile::{TileSource, layout, load};
use super::weights::{BLOCK_K, Packed, Tiles, WeightFormat};

/// Tokens that share a loaded weight in registers.
const TOKENS: usize = 8;

/// A block of weights as f32, `[32][16]`.
type Decoded = [[f32; LANES]; BLOCK_K];

/// Adds the tiles' products with `x: [num_tokens, k]` to `acc: [num_tiles, num_tokens, 16]`.
pub(super) fn multiply(isa: Isa, weights: &Packed, tiles: &Range<usize>, x: &[f32], acc: &mut [f32]) {
    multiply_f32(isa, weights.layout.format, weights.tiles(tiles), weights.k, x, acc);
}

simd_kernel! {
    fn multiply_f32(format: WeightFormat, tiles: Tiles<'_>, k: usize, x: &[f32], acc: &mut [f32]) = pick_format
}

#[inline(always)]
fn pick_format<S: Simd>(s: S, format: WeightFormat, tiles: Tiles<'_>, k: usize, x: &[f32], acc: &mut [f32]) {
    let len = x.len() / k * LANES;
    macro_rules! pick {
        ($($format:ident)*) => {
            match format {
                $(WeightFormat::$format => {
                    for i in 0..tiles.count() {
                        let acc = &mut acc[i * len..(i + 1) * len];
                        multiply_format::<S, { WeightFormat::$format as u8 }>(s, tiles.get(i), k, x, acc);
                    }
                })*
            }
        };
    }
    pick!(F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K);
}

#[inline(always)]
fn multiply_format<S: Simd, const F: u8>(s: S, tile: &[u8], k: usize, x: &[f32], acc: &mut [f32]) {
    let num_tokens = acc.len() / LANES;
    assert_eq!(x.len(), num_tokens * k);
    let is_float = const { layout(F).is_float() };
    let size = const { layout(F).format.block_bytes() };
    let scales_at = if is_float { 0 } else { const { layout(F) }.tile_code_bytes(k) };
    let mut w: Decoded = [[0.0; LANES]; BLOCK_K];
    if is_float {
        assert_eq!(tile.len(), k * LANES * size);
    } else {
        let num_scales = k / BLOCK_K / const { layout(F).blocks_per_scale };
        assert_eq!(tile.len(), scales_at + num_scales * const { layout(F).scale_stride() });
    }
    for at in (0..k).step_by(BLOCK_K) {
        let len = BLOCK_K.min(k - at);
        // SAFETY: weights `at..at + len` of the rows are in the tile by the assertions above.
        unsafe {
            if is_float {
                decode_floats::<S, F>(s, tile.as_ptr().add(at * LANES * size), &mut w[..len]);
            } else {
                decode::<S, F>(
                    s,
                    TileSource {
                        base: tile.as_ptr(),
                        scales_at,
                        ahead: tile.len(),
                        ahead_step: tile.len() / (k / BLOCK_K),
                    },
                    at / BLOCK_K,
                    &mut w,
                );
            }
        }
        multiply_tokens(s, &w[..len], x, k, at, acc);
    }
}

/// # Safety
/// `w.len()` vectors of sixteen values of the format at `p`.
#[inline(always)]
unsafe fn decode_floats<S: Simd, const F: u8>(s: S, p: *const u8, w: &mut [[f32; LANES]]) {
    let size = const { layout(F).format.block_bytes() };
    for i in 0..w.len() {
        // SAFETY: the caller vouches for the vectors.
        unsafe {
            let p = p.add(i * LANES * size);
            let value = match const { layout(F).format } {
                WeightFormat::F16 => s.load_f16(p.cast()),
                WeightFormat::BF16 => s.load_bf16(p.cast()),
                _ => s.load(p.cast()),
            };
            s.store(w[i].as_mut_ptr(), value);
        }
    }
}

/// # Safety
/// A packed tile of the format at `source`, with a block `b`.
#[inline(always)]
unsafe fn decode<S: Simd, const F: u8>(s: S, source: TileSource, b: usize, w: &mut Decoded) {
    // SAFETY: the caller vouches for the block.
    let block = unsafe { load::<S, F>(s, source, b) };
    let zero = s.splat(const { layout(F).format.zero() as f32 });
    for j in 0..8 {
        let group = j * const { layout(F).num_groups } / 8;
        let codes = block.codes[j];
        let bytes = [s.byte::<0>(codes), s.byte::<8>(codes), s.byte::<16>(codes), s.byte::<24>(codes)];
        for i in 0..4 {
            let value = if const { layout(F).has_min } {
                s.fma(block.scales[group], bytes[i], block.mins[group])
            } else {
                s.mul(block.scales[group], s.sub(bytes[i], zero))
            };
            // SAFETY: a row of sixteen.
            unsafe { s.store(w[4 * j + i].as_mut_ptr(), value) };
        }
    }
}

/// All tokens on one decoded block whose first weight is number `at` of the row.
#[inline(always)]
fn multiply_tokens<S: Simd>(s: S, w: &[[f32; LANES]], x: &[f32], k: usize, at: usize, acc: &mut [f32]) {
    let num_tokens = acc.len() / LANES;
    assert!(num_tokens * k == x.len() && at + w.len() <= k);
    let (x, acc) = (x.as_ptr().wrapping_add(at), acc.as_mut_ptr());
    let mut t = 0;
    // SAFETY: rows `t..t + T` exist in `x` and `acc` by the loop conditions and the assertion above.
    unsafe {
        while t + TOKENS <= num_tokens {
            multiply_group::<S, TOKENS>(s, w, x.add(t * k), k, acc.add(t * LANES));
            t += TOKENS;
        }
        if t + 4 <= num_tokens {
            multiply_group::<S, 4>(s, w, x.add(t * k), k, acc.add(t * LANES));
            t += 4;
        }
        if t + 2 <= num_tokens {
            multiply_group::<S, 2>(s, w, x.add(t * k), k, acc.add(t * LANES));
            t += 2;
        }
        if t < num_tokens {
            multiply_group::<S, 1>(s, w, x.add(t * k), k, acc.add(t * LANES));
        }
    }
}

/// # Safety
/// `T` rows of stride `k` with `w.len()` values each at `x`; `T` rows of sixteen at `acc`.
#[inline(always)]
unsafe fn multiply_group<S: Simd, const T: usize>(s: S, w: &[[f32; LANES]], x: *const f32, k: usize, acc: *mut f32) {
    // SAFETY: the caller vouches for the rows.
    unsafe {
        let mut sums = [s.splat(0.0); T];
        for t in 0..T {
            sums[t] = s.load(acc.add(t * LANES));
        }
        for i in 0..w.len() {
            let w = s.load(w[i].as_ptr());
            for t in 0..T {
                sums[t] = s.fma(w, s.splat(*x.add(t * k + i)), sums[t]);
            }
        }
        for t in 0..T {
            s.store(acc.add(t * LANES), sums[t]);
        }
    }
}
