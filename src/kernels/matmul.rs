//! y = x W^T on packed weights, for any number of tokens, in f32.
//!
//! ```text
//! for each tile of 16 output rows, claimed by a thread:
//!   acc[token] = bias or 0                          sixteen lanes each
//!   for each block of 32 k, in order:
//!     decode it to w[32], sixteen lanes each
//!     for each group of tokens: acc[token] = fma(w[i], x[token][i], acc[token]) for i in order
//!   finish (add the residual, or activate the gate and multiply), write the tile's columns
//! ```
//! An output is one chain of fused multiply-adds in order of k, whatever the number of tokens, threads or lanes of the
//! machine: batch-invariant by construction.

use std::cell::RefCell;

use super::math;
use super::pool::{Pool, SharedMut};
use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::weights::{BLOCK_K, Layout, Packed, WeightFormat};

/// A matrix and where its outputs go.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// `[n, k]`
    pub weights: &'a Packed,
    /// `[n]`, added to the outputs.
    pub bias: Option<&'a [f32]>,
    /// First column of its `n` outputs.
    pub column: usize,
}

/// What the gate goes through before it multiplies the other branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x)
    Silu,
    /// The tanh form of GELU.
    GeluTanh,
}

/// Tokens that share one decoded block in registers.
const TOKENS: usize = 8;

/// Several matrices on one input: `out[t, column + i] = bias[i] + sum_k x[t, k] W[i, k] (+ residual[t, column + i])`.
///
/// `x: [num_tokens, k]`, `out: [num_tokens, width]`, `residual` like `out`.
///
/// # Panics
/// If a length does not fit.
pub fn linear(
    isa: Isa,
    pool: &mut Pool,
    parts: &[Part<'_>],
    x: &[f32],
    num_tokens: usize,
    residual: Option<&[f32]>,
    out: &mut [f32],
) {
    let width = out.len() / num_tokens.max(1);
    assert_eq!(out.len(), width * num_tokens, "output of {num_tokens} rows");
    for part in parts {
        assert_eq!(x.len(), num_tokens * part.weights.k, "input of {num_tokens} rows for {:?}", part.weights);
        assert!(part.column + part.weights.n <= width, "{:?} at column {} of {width}", part.weights, part.column);
        assert!(part.bias.is_none_or(|b| b.len() == part.weights.n), "bias of {:?}", part.weights);
    }
    assert!(residual.is_none_or(|r| r.len() == out.len()), "residual of {} values", out.len());
    let total: usize = parts.iter().map(|p| p.weights.num_tiles()).sum();
    let out = SharedMut::new(out);
    pool.run(total, |mut index| {
        let part = parts.iter().find(|part| {
            let here = index < part.weights.num_tiles();
            if !here {
                index -= part.weights.num_tiles();
            }
            here
        });
        let part = part.expect("tile indices end with the last part");
        let first = index * LANES;
        let num_rows = LANES.min(part.weights.n - first);
        with_scratch(num_tokens * LANES, |acc| {
            multiply(isa, part, index, x, num_tokens, acc);
            for (t, acc) in acc.chunks_exact(LANES).enumerate() {
                let at = t * width + part.column + first;
                // SAFETY: tiles of all parts write disjoint columns.
                let out = unsafe { out.slice(at, num_rows) };
                match residual {
                    None => out.copy_from_slice(&acc[..num_rows]),
                    Some(r) => (0..num_rows).for_each(|i| out[i] = acc[i] + r[at + i]),
                }
            }
        });
    });
}

/// `out[t, i] = activation(x[t] . gate[i]) * (x[t] . up[i])`, `out: [num_tokens, n]`.
///
/// # Panics
/// If a length does not fit.
pub fn gated(
    isa: Isa,
    pool: &mut Pool,
    gate: &Packed,
    up: &Packed,
    activation: Activation,
    x: &[f32],
    num_tokens: usize,
    out: &mut [f32],
) {
    let n = gate.n;
    assert_eq!((up.n, up.k), (n, gate.k), "gate {gate:?} and up {up:?}");
    assert_eq!(x.len(), num_tokens * gate.k, "input of {num_tokens} rows for {gate:?}");
    assert_eq!(out.len(), num_tokens * n, "output of {num_tokens} rows for {gate:?}");
    let part = |weights| Part { weights, bias: None, column: 0 };
    let out = SharedMut::new(out);
    pool.run(gate.num_tiles(), |tile| {
        let first = tile * LANES;
        let num_rows = LANES.min(n - first);
        with_scratch(2 * num_tokens * LANES, |acc| {
            let (gate_acc, up_acc) = acc.split_at_mut(num_tokens * LANES);
            multiply(isa, &part(gate), tile, x, num_tokens, gate_acc);
            multiply(isa, &part(up), tile, x, num_tokens, up_acc);
            activate(isa, activation, gate_acc, up_acc);
            for (t, acc) in gate_acc.chunks_exact(LANES).enumerate() {
                // SAFETY: every tile writes its own columns.
                unsafe { out.slice(t * n + first, num_rows) }.copy_from_slice(&acc[..num_rows]);
            }
        });
    });
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends this thread's scratch memory, which grows to the largest size asked for and stays.
fn with_scratch(len: usize, f: impl FnOnce(&mut [f32])) {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        f(&mut scratch[..len]);
    });
}

/// One tile for all tokens into `acc: [num_tokens, 16]`.
fn multiply(isa: Isa, part: &Part<'_>, tile: usize, x: &[f32], num_tokens: usize, acc: &mut [f32]) {
    let mut start = [0f32; LANES];
    if let Some(bias) = part.bias {
        let num_rows = LANES.min(part.weights.n - tile * LANES);
        start[..num_rows].copy_from_slice(&bias[tile * LANES..][..num_rows]);
    }
    acc.chunks_exact_mut(LANES).for_each(|acc| acc.copy_from_slice(&start));
    let Packed { layout, k, .. } = *part.weights;
    assert!(x.len() == num_tokens * k && acc.len() == num_tokens * LANES);
    multiply_tile(isa, layout, part.weights.tile(tile), k, x, acc);
}

simd_kernel! {
    fn multiply_tile(layout: Layout, tile: &[u8], k: usize, x: &[f32], acc: &mut [f32]) = multiply_tile_body
}

/// Picks the decoder once per tile.
#[inline(always)]
fn multiply_tile_body<S: Simd>(s: S, layout: Layout, tile: &[u8], k: usize, x: &[f32], acc: &mut [f32]) {
    use WeightFormat::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    macro_rules! blocks {
        ($nibbles:literal, $min:literal, $groups:literal, $half:literal) => {
            multiply_blocks(s, tile, k, x, acc, layout.block_bytes(), |block, w| {
                // SAFETY: `multiply_blocks` cuts the tile into whole blocks of this layout.
                unsafe { decode::<S, $nibbles, $min, $groups, $half>(s, block, f32::from(layout.zero), w) }
            })
        };
    }
    match layout.format {
        // SAFETY of the float arms: `multiply_floats` hands over pointers to sixteen values.
        F32 => multiply_floats(s, tile, 4, k, x, acc, |p| unsafe { s.load(p.cast()) }),
        F16 => multiply_floats(s, tile, 2, k, x, acc, |p| unsafe { s.load_f16(p.cast()) }),
        BF16 => multiply_floats(s, tile, 2, k, x, acc, |p| unsafe { s.load_bf16(p.cast()) }),
        Q4_0 => blocks!(true, false, 1, true),
        Q4_1 => blocks!(true, true, 1, true),
        Q5_0 | Q8_0 => blocks!(false, false, 1, true),
        Q5_1 => blocks!(false, true, 1, true),
        Q2K => blocks!(true, true, 2, false),
        Q3K => blocks!(true, false, 2, false),
        Q4K => blocks!(true, true, 1, false),
        Q5K => blocks!(false, true, 1, false),
        Q6K => blocks!(false, false, 2, false),
    }
}

/// Decodes a packed block to 32 x 16 f32.
///
/// # Safety
/// `block` points to a whole block of the layout that the constants describe.
#[inline(always)]
unsafe fn decode<S: Simd, const NIBBLES: bool, const MIN: bool, const GROUPS: usize, const HALF: bool>(
    s: S,
    block: *const u8,
    zero: f32,
    w: &mut [[f32; LANES]; BLOCK_K],
) {
    let code_bytes = if NIBBLES { BLOCK_K / 2 * LANES } else { BLOCK_K * LANES };
    let scale_bytes = LANES * if HALF { 2 } else { 4 };
    let zero = s.splat(zero);
    // SAFETY: every offset is inside the block; `w` has a row for each weight.
    unsafe {
        let scale_at = |index: usize| {
            let p = block.add(code_bytes + index * scale_bytes);
            if HALF { s.load_f16(p.cast()) } else { s.load(p.cast()) }
        };
        for group in 0..GROUPS {
            let scale = scale_at(group);
            let min = if MIN { scale_at(GROUPS + group) } else { scale };
            let put = |w: &mut [f32; LANES], code: S::F| {
                let value = if MIN { s.fma(scale, code, min) } else { s.mul(scale, s.sub(code, zero)) };
                s.store(w.as_mut_ptr(), value);
            };
            let vectors_per_group = BLOCK_K / 4 / GROUPS;
            for j in group * vectors_per_group..(group + 1) * vectors_per_group {
                let rows = &mut w[4 * j..4 * j + 4];
                if NIBBLES {
                    let v = s.load_i32(block.add(j % 4 * 64));
                    if j < 4 {
                        put(&mut rows[0], s.field::<0>(v, 15));
                        put(&mut rows[1], s.field::<8>(v, 15));
                        put(&mut rows[2], s.field::<16>(v, 15));
                        put(&mut rows[3], s.field::<24>(v, 15));
                    } else {
                        put(&mut rows[0], s.field::<4>(v, 15));
                        put(&mut rows[1], s.field::<12>(v, 15));
                        put(&mut rows[2], s.field::<20>(v, 15));
                        put(&mut rows[3], s.field::<28>(v, 15));
                    }
                } else {
                    let v = s.load_i32(block.add(j * 64));
                    put(&mut rows[0], s.field::<0>(v, 255));
                    put(&mut rows[1], s.field::<8>(v, 255));
                    put(&mut rows[2], s.field::<16>(v, 255));
                    put(&mut rows[3], s.field::<24>(v, 255));
                }
            }
        }
    }
}

#[inline(always)]
fn multiply_blocks<S: Simd>(
    s: S,
    tile: &[u8],
    k: usize,
    x: &[f32],
    acc: &mut [f32],
    block_bytes: usize,
    decode: impl Fn(*const u8, &mut [[f32; LANES]; BLOCK_K]),
) {
    let mut w = [[0f32; LANES]; BLOCK_K];
    for (b, block) in tile.chunks_exact(block_bytes).enumerate() {
        decode(block.as_ptr(), &mut w);
        multiply_tokens(s, &w, x, k, b * BLOCK_K, acc);
    }
}

#[inline(always)]
fn multiply_floats<S: Simd>(
    s: S,
    tile: &[u8],
    value_bytes: usize,
    k: usize,
    x: &[f32],
    acc: &mut [f32],
    load: impl Fn(*const u8) -> S::F,
) {
    let mut w = [[0f32; LANES]; BLOCK_K];
    for (b, block) in tile.chunks(BLOCK_K * LANES * value_bytes).enumerate() {
        let len = block.len() / (LANES * value_bytes);
        for (i, w) in w[..len].iter_mut().enumerate() {
            // SAFETY: vector `i` lies inside the block, `w` has sixteen lanes.
            unsafe { s.store(w.as_mut_ptr(), load(block.as_ptr().add(i * LANES * value_bytes))) }
        }
        multiply_tokens(s, &w[..len], x, k, b * BLOCK_K, acc);
    }
}

/// All tokens on one decoded block whose first weight is number `at` of the row.
#[inline(always)]
fn multiply_tokens<S: Simd>(s: S, w: &[[f32; LANES]], x: &[f32], k: usize, at: usize, acc: &mut [f32]) {
    let num_tokens = acc.len() / LANES;
    assert!(num_tokens * k == x.len() && at + w.len() <= k);
    let mut t = 0;
    // SAFETY: rows `t..t + T` exist in `x` and `acc` by the loop conditions and the assertion above.
    unsafe {
        while t + TOKENS <= num_tokens {
            multiply_group::<S, TOKENS>(s, w, x.as_ptr().add(t * k + at), k, acc.as_mut_ptr().add(t * LANES));
            t += TOKENS;
        }
        if t + 4 <= num_tokens {
            multiply_group::<S, 4>(s, w, x.as_ptr().add(t * k + at), k, acc.as_mut_ptr().add(t * LANES));
            t += 4;
        }
        if t + 2 <= num_tokens {
            multiply_group::<S, 2>(s, w, x.as_ptr().add(t * k + at), k, acc.as_mut_ptr().add(t * LANES));
            t += 2;
        }
        if t < num_tokens {
            multiply_group::<S, 1>(s, w, x.as_ptr().add(t * k + at), k, acc.as_mut_ptr().add(t * LANES));
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
        for (t, sum) in sums.iter_mut().enumerate() {
            *sum = s.load(acc.add(t * LANES));
        }
        for (i, w) in w.iter().enumerate() {
            let w = s.load(w.as_ptr());
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = s.fma(w, s.splat(*x.add(t * k + i)), *sum);
            }
        }
        for (t, sum) in sums.into_iter().enumerate() {
            s.store(acc.add(t * LANES), sum);
        }
    }
}

simd_kernel! {
    /// gate = activation(gate) * up, lane by lane.
    fn activate(activation: Activation, gate: &mut [f32], up: &[f32]) = activate_body
}

#[inline(always)]
fn activate_body<S: Simd>(s: S, activation: Activation, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.chunks_exact_mut(LANES).zip(up.chunks_exact(LANES)) {
        // SAFETY: both chunks have sixteen values.
        unsafe {
            let x = s.load(gate.as_ptr());
            let activated = match activation {
                Activation::Silu => math::silu(s, x),
                Activation::GeluTanh => math::gelu_tanh(s, x),
            };
            s.store(gate.as_mut_ptr(), s.mul(activated, s.load(up.as_ptr())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::weights::dequantize_row;

    fn random_bytes(format: WeightFormat, n: usize, k: usize) -> Vec<u8> {
        let mut state = 7u64;
        let mut bytes: Vec<u8> = (0..n * format.row_bytes(k))
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            })
            .collect();
        // Two-byte fields may be scales: keep every odd byte's exponent small enough for finite sums.
        bytes.iter_mut().skip(1).step_by(2).for_each(|b| *b &= 0xbb);
        bytes
    }

    fn floats(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + 31) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    /// One chain of fused multiply-adds per output, written plainly.
    fn naive(format: WeightFormat, bytes: &[u8], n: usize, k: usize, x: &[f32], bias: &[f32]) -> Vec<u32> {
        let mut row = vec![0.0; k];
        let mut out = vec![0u32; x.len() / k * n];
        for i in 0..n {
            dequantize_row(format, &bytes[i * format.row_bytes(k)..][..format.row_bytes(k)], &mut row);
            for (t, x) in x.chunks_exact(k).enumerate() {
                let sum = row.iter().zip(x).fold(bias[i], |sum, (w, x)| w.mul_add(*x, sum));
                out[t * n + i] = sum.to_bits();
            }
        }
        out
    }

    #[test]
    fn every_format_set_and_batch_gives_the_bits_of_the_plain_loop() {
        for format in WeightFormat::ALL {
            let k = if format.block_len() == 1 { 75 } else { 2 * format.block_len() };
            for n in [1, 16, 37] {
                let bytes = random_bytes(format, n, k);
                let bias = floats(n);
                for num_tokens in [1, 2, 3, 7, 8, 21] {
                    let x = floats(num_tokens * k);
                    let expected = naive(format, &bytes, n, k, &x, &bias);
                    for (isa, num_threads) in Isa::all_here().into_iter().zip([1, 2, 2]) {
                        let mut pool = Pool::new(num_threads);
                        let weights = Packed::pack(format, n, k, &bytes, &mut pool).unwrap();
                        let mut out = vec![0.0; num_tokens * n];
                        let part = Part { weights: &weights, bias: Some(&bias), column: 0 };
                        linear(isa, &mut pool, &[part], &x, num_tokens, None, &mut out);
                        let got: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                        let same = got
                            .iter()
                            .zip(&expected)
                            .all(|(a, b)| a == b || (f32::from_bits(*a).is_nan() && f32::from_bits(*b).is_nan()));
                        assert!(same, "{format} {isa} n {n} tokens {num_tokens}");
                    }
                }
            }
        }
    }

    #[test]
    fn parts_residual_and_gate_land_in_their_columns() {
        let (k, tokens) = (64, 3);
        let mut pool = Pool::new(2);
        let format = WeightFormat::Q8_0;
        let bytes = random_bytes(format, 20, k);
        let weights = Packed::pack(format, 20, k, &bytes, &mut pool).unwrap();
        let x = floats(tokens * k);
        let isa = Isa::detect();
        let mut single = vec![0.0; tokens * 20];
        let part = Part { weights: &weights, bias: None, column: 0 };
        linear(isa, &mut pool, &[part], &x, tokens, None, &mut single);
        let residual = floats(tokens * 50);
        let mut out = residual.clone();
        let parts = [part, Part { column: 25, ..part }];
        linear(isa, &mut pool, &parts, &x, tokens, Some(&residual), &mut out);
        let mut gate = vec![0.0; tokens * 20];
        gated(isa, &mut pool, &weights, &weights, Activation::Silu, &x, tokens, &mut gate);
        for t in 0..tokens {
            for i in 0..50 {
                let r = residual[t * 50 + i];
                let expected = match i {
                    0..20 => single[t * 20 + i] + r,
                    25..45 => single[t * 20 + i - 25] + r,
                    _ => r,
                };
                assert_eq!(out[t * 50 + i].to_bits(), expected.to_bits(), "token {t} column {i}");
            }
            for i in 0..20 {
                let y = f64::from(single[t * 20 + i]);
                let expected = y / (1.0 + (-y).exp()) * y;
                let got = f64::from(gate[t * 20 + i]);
                assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1e-6), "{got} {expected}");
            }
        }
    }
}
