//! Tiles of sixteen output rows for all tokens, inputs quantised to bytes: exact integer dot products per block of
//! 32. The format is a constant of the compiled code, so each of the formats has a loop of its own; which one is chosen
//! once for all tiles.

use std::cell::RefCell;
use std::ops::Range;

use super::activations::QuantizedRows;
use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::weights::{BLOCK_K, Layout, Packed, Planes, Tiles, WeightFormat, load_8, unpack_codes};

/// Tokens that share a block's codes in registers.
const TOKENS: usize = 8;

/// Adds the tiles' products with quantised inputs to `acc: [num_tiles, num_tokens, 16]`.
pub(super) fn multiply(isa: Isa, weights: &Packed, tiles: &Range<usize>, x: QuantizedRows<'_>, acc: &mut [f32]) {
    let k = weights.k;
    let operands = Operands { tiles: weights.tiles(tiles), k, x };
    let num_tokens = x.bytes.len() / k;
    if num_tokens <= TOKENS {
        return multiply_codes(isa, weights.layout.format, &operands, &mut [], acc);
    }
    // Borrowed here and not in the kernel: a closure given to `with_borrow_mut` is compiled without its caller's
    // instruction set.
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < k / BLOCK_K * EXPANDED + 64 {
            scratch.resize(k / BLOCK_K * EXPANDED + 64, 0);
        }
        multiply_codes(isa, weights.layout.format, &operands, scratch, acc);
    });
}

/// Packed tiles and the quantised rows that they are multiplied with.
struct Operands<'a> {
    tiles: Tiles<'a>,
    k: usize,
    /// `[num_tokens, k]`
    x: QuantizedRows<'a>,
}

simd_kernel! {
    fn multiply_codes(format: WeightFormat, operands: &Operands<'_>, scratch: &mut [u8], acc: &mut [f32]) = pick_format
}

#[inline(always)]
fn pick_format<S: Simd>(s: S, format: WeightFormat, operands: &Operands<'_>, scratch: &mut [u8], acc: &mut [f32]) {
    macro_rules! pick {
        ($($format:ident)*) => {
            match format {
                $(WeightFormat::$format => {
                    multiply_format::<S, { WeightFormat::$format as u8 }>(s, operands, scratch, acc);
                })*
                WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => unreachable!("floats have no codes"),
            }
        };
    }
    pick!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K);
}

/// The layout of the format with this number, for use in constants.
pub(super) const fn layout(format: u8) -> Layout {
    Layout::of(WeightFormat::ALL[format as usize])
}

/// A block ready to be multiplied: codes as bytes, scales and mins of its groups as floats.
pub(super) struct Block<S: Simd> {
    pub(super) codes: [S::B; 8],
    pub(super) scales: [S::F; 2],
    pub(super) mins: [S::F; 2],
}

/// Bytes of an expanded block in scratch memory: codes, two scales, two mins.
const EXPANDED: usize = 512 + 4 * 64;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[inline(always)]
fn multiply_format<S: Simd, const F: u8>(s: S, operands: &Operands<'_>, scratch: &mut [u8], acc: &mut [f32]) {
    let &Operands { tiles, k, x } = operands;
    let num_tokens = x.bytes.len() / k;
    let num_blocks = k / BLOCK_K;
    let num_facts = num_tokens * num_blocks;
    assert!(x.bytes.len() == num_tokens * k && x.scales.len() == num_facts && x.half_sums.len() == num_facts);
    assert!(x.starts.len() == num_facts && x.half_starts.len() == num_facts);
    assert_eq!(acc.len(), tiles.count() * num_tokens * LANES);
    let scales_at = const { layout(F) }.tile_code_bytes(k);
    let scale_bytes = num_blocks / const { layout(F).blocks_per_scale } * const { layout(F).scale_stride() };
    for i in 0..tiles.count() {
        let tile = tiles.get(i);
        assert_eq!(tile.len(), scales_at + scale_bytes);
        let rows = Rows {
            x: x.bytes.as_ptr(),
            scales: x.scales.as_ptr(),
            half_sums: x.half_sums.as_ptr(),
            starts: x.starts.as_ptr(),
            half_starts: x.half_starts.as_ptr(),
            acc: acc[i * num_tokens * LANES..].as_mut_ptr(),
            num_blocks,
        };
        let packed =
            TileSource { base: tile.as_ptr(), scales_at, ahead: tile.len(), ahead_step: tile.len() / num_blocks };
        if num_tokens <= TOKENS || matches!(const { layout(F).planes }, Planes::Byte) {
            // SAFETY: `rows` has `num_tokens` rows and the tile `num_blocks` blocks by the assertions above.
            unsafe { multiply_rows::<S, F, false>(s, num_tokens, &rows, packed) };
            continue;
        }
        // Whole vectors on cache lines: the caller lends one line more than needed, to begin on one.
        let skip = scratch.as_ptr().align_offset(64);
        let expanded = scratch[skip..skip + num_blocks * EXPANDED].as_mut_ptr();
        // SAFETY: the scratch memory has room for every block, and every block is stored before it is loaded.
        unsafe {
            for b in 0..num_blocks {
                store_expanded::<S, F>(s, &load::<S, F>(s, packed, b), expanded.add(b * EXPANDED));
            }
            multiply_rows::<S, F, true>(s, num_tokens, &rows, TileSource { base: expanded, ..packed });
        }
    }
}

/// Where a tile's blocks are: packed, or expanded in scratch memory (then `scales_at` says nothing).
#[derive(Clone, Copy)]
pub(super) struct TileSource {
    pub(super) base: *const u8,
    /// Where the scales begin.
    pub(super) scales_at: usize,
    /// Each block fetches its part of the next tile: what lies this far ahead, plus a step for every block.
    pub(super) ahead: usize,
    pub(super) ahead_step: usize,
}

/// # Safety
/// A packed tile of the format at `source`, with a block `b`.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, const F: u8>(s: S, source: TileSource, b: usize) -> Block<S> {
    let TileSource { base: tile, scales_at, ahead, ahead_step } = source;
    // SAFETY: offsets follow the layout that `Packed` wrote.
    unsafe {
        let p = tile.add(b * const { layout(F).planes.num_bytes() });
        // A block's lines and, as the steps are not whole lines, sometimes one of them twice. The scales lie behind the
        // codes, so reading ahead within the tile would find neither its own scales nor the next tile in time.
        let next = tile.wrapping_add(ahead + b * ahead_step);
        for line in 0..const { layout(F).block_lines() } {
            s.prefetch(next.wrapping_add(line * 64));
        }
        let codes = unpack_codes(s, const { layout(F).planes }, p);
        let per_scale = const { layout(F).blocks_per_scale };
        let shared = tile.add(scales_at + b / per_scale * const { layout(F).scale_stride() });
        let mut scales = [s.load_f16(shared.cast()); 2];
        let mut mins = scales;
        if const { layout(F).has_min } {
            mins = [s.load_f16(shared.add(2 * LANES).cast()); 2];
        }
        if per_scale > 1 {
            let subs = shared.add(const { layout(F).scale_bytes() } + b % per_scale * const { layout(F).sub_bytes() });
            let groups = const { layout(F).num_groups };
            for g in 0..groups {
                scales[g] = s.mul(scales[g], s.load_i8(subs.add(g * LANES)));
                if const { layout(F).has_min } {
                    mins[g] = s.mul(mins[g], s.load_i8(subs.add((groups + g) * LANES)));
                }
            }
        }
        Block { codes, scales, mins }
    }
}

/// # Safety
/// `EXPANDED` writable bytes at `p`.
#[inline(always)]
unsafe fn store_expanded<S: Simd, const F: u8>(s: S, block: &Block<S>, p: *mut u8) {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        for i in 0..8 {
            s.store_bytes(p.add(i * 64), block.codes[i]);
        }
        for g in 0..const { layout(F).num_groups } {
            s.store(p.add(512 + g * 64).cast(), block.scales[g]);
            if const { layout(F).has_min } {
                s.store(p.add(640 + g * 64).cast(), block.mins[g]);
            }
        }
    }
}

/// # Safety
/// A block that `store_expanded` wrote at `p`.
#[inline(always)]
unsafe fn load_expanded<S: Simd, const F: u8>(s: S, p: *const u8) -> Block<S> {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        let codes = load_8(s, p);
        let scale = s.load(p.add(512).cast());
        let second = if const { layout(F).num_groups == 2 } { s.load(p.add(576).cast()) } else { scale };
        let min = if const { layout(F).has_min } { s.load(p.add(640).cast()) } else { scale };
        let second_min =
            if const { layout(F).has_min && layout(F).num_groups == 2 } { s.load(p.add(704).cast()) } else { min };
        Block { codes, scales: [scale, second], mins: [min, second_min] }
    }
}

/// The tokens' inputs and sums.
#[derive(Clone, Copy)]
struct Rows {
    /// `[num_tokens, num_blocks * 32]`
    x: *const i8,
    /// `[num_tokens, num_blocks]`, as the rest of what is known of the blocks.
    scales: *const [f32; 2],
    half_sums: *const [f32; 2],
    starts: *const [i32; 4],
    half_starts: *const [i32; 4],
    /// `[num_tokens, 16]`
    acc: *mut f32,
    num_blocks: usize,
}

/// All tokens, as many at a time as registers allow.
///
/// # Safety
/// `num_tokens` rows behind every pointer of `rows`.
#[inline(always)]
unsafe fn multiply_rows<S: Simd, const F: u8, const E: bool>(s: S, num_tokens: usize, rows: &Rows, source: TileSource) {
    let mut t = 0;
    // SAFETY: `t + T <= num_tokens` at every call.
    unsafe {
        while t + TOKENS <= num_tokens {
            multiply_group::<S, F, E, TOKENS>(s, t, rows, source);
            t += TOKENS;
        }
        if t + 4 <= num_tokens {
            multiply_group::<S, F, E, 4>(s, t, rows, source);
            t += 4;
        }
        if t + 2 <= num_tokens {
            multiply_group::<S, F, E, 2>(s, t, rows, source);
            t += 2;
        }
        if t < num_tokens {
            multiply_group::<S, F, E, 1>(s, t, rows, source);
        }
    }
}

/// # Safety
/// Rows `t..t + T` behind every pointer of `rows`.
#[inline(always)]
unsafe fn multiply_group<S: Simd, const F: u8, const E: bool, const T: usize>(
    s: S,
    t: usize,
    rows: &Rows,
    source: TileSource,
) {
    // SAFETY: the caller vouches for the rows; `b` counts their blocks.
    unsafe {
        let mut acc = [s.splat(0.0); T];
        for i in 0..T {
            acc[i] = s.load(rows.acc.add((t + i) * LANES));
        }
        for b in 0..rows.num_blocks {
            let block =
                if E { load_expanded::<S, F>(s, source.base.add(b * EXPANDED)) } else { load::<S, F>(s, source, b) };
            for i in 0..T {
                acc[i] = add_block::<S, F>(s, &block, rows, (t + i) * rows.num_blocks + b, acc[i]);
            }
        }
        for i in 0..T {
            s.store(rows.acc.add((t + i) * LANES), acc[i]);
        }
    }
}

/// One block of weights with block number `b` of the rows.
///
/// # Safety
/// There is such a block.
#[inline(always)]
unsafe fn add_block<S: Simd, const F: u8>(s: S, block: &Block<S>, rows: &Rows, b: usize, mut acc: S::F) -> S::F {
    // SAFETY: the caller vouches for the block.
    unsafe {
        let x = rows.x.add(b * BLOCK_K).cast::<i32>();
        let scale = s.splat((*rows.scales.add(b))[0]);
        let groups = const { layout(F).num_groups };
        for g in 0..groups {
            let mut dot = s.splat_i32(match const { layout(F).format.zero() } {
                0 => 0,
                4 => (*rows.half_starts.add(b))[g],
                8 => (*rows.starts.add(b))[0],
                16 => (*rows.starts.add(b))[1],
                32 => (*rows.half_starts.add(b))[2 + g],
                _ => (*rows.starts.add(b))[2],
            });
            let per_group = 8 / groups;
            for i in g * per_group..(g + 1) * per_group {
                let x = x.add(i).read_unaligned();
                dot = if matches!(const { layout(F).planes }, Planes::Byte) {
                    s.dot::<true>(dot, block.codes[i], x)
                } else {
                    s.dot::<false>(dot, block.codes[i], x)
                };
            }
            acc = s.fma(s.to_f32(dot), s.mul(block.scales[g], scale), acc);
            if const { layout(F).has_min } {
                let sum = if groups == 1 { (*rows.scales.add(b))[1] } else { (*rows.half_sums.add(b))[g] };
                acc = s.fma(block.mins[g], s.splat(sum), acc);
            }
        }
    }
    acc
}
