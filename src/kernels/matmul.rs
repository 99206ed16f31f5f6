//! y = x W^T on packed weights, for any number of tokens.
//!
//! ```text
//! for each tile of 16 output rows, claimed by a thread:
//!   acc[token] = bias or 0                                     sixteen lanes each
//!   for each block of 32 k, in order:
//!     bytes (`tile`):    dot = sum over the block of (code - zero) * byte          exact, in i32
//!                        acc = fma(dot, weight scale * input scale, acc)           for each group of the block
//!                        acc = fma(weight min, input scale * sum of bytes, acc)    where the format has mins
//!     f32 (`tile_f32`):  acc = fma(w[i], x[i], acc) for i in order
//!   finish (add to the residual, or activate the gate and multiply), write the tile's columns
//! ```
//! An output is one chain of operations in order of k, whatever the number of tokens, threads or lanes of the machine:
//! batch-invariant by construction.

use std::cell::RefCell;
use std::ops::Range;

use super::activations::Activations;
use super::pool::{Pool, SharedMut};
use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::weights::Packed;
use super::{math, tile, tile_f32};

/// Tokens that go through some tiles together: their inputs and outputs fit the second-level cache, and the weights are
/// expanded once for all of them.
const TOKENS_PER_PASS: usize = 64;

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

/// The inputs of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// `[num_tokens, k]`
    pub x: &'a [f32],
    /// The same in bytes, for quantised weights to be multiplied with; without, everything is multiplied in f32.
    pub quantized: Option<&'a Activations>,
    /// Rows of both.
    pub num_tokens: usize,
}

/// Several matrices on one input: `out[t, column + i] = bias[i] + sum_k x[t, k] W[i, k]`, added to what is there if
/// `accumulate` says so (a residual connection).
///
/// `x: [num_tokens, k]`, `out: [num_tokens, width]`.
///
/// # Panics
/// If a length does not fit.
pub fn linear(isa: Isa, pool: &mut Pool, parts: &[Part<'_>], input: &Input<'_>, accumulate: bool, out: &mut [f32]) {
    let num_tokens = input.num_tokens;
    let width = out.len() / num_tokens.max(1);
    assert_eq!(out.len(), width * num_tokens, "output of {num_tokens} rows");
    for part in parts {
        assert_eq!(input.x.len(), num_tokens * part.weights.k, "input of {num_tokens} rows for {:?}", part.weights);
        assert!(part.column + part.weights.n <= width, "{:?} at column {} of {width}", part.weights, part.column);
        assert!(part.bias.is_none_or(|b| b.len() == part.weights.n), "bias of {:?}", part.weights);
    }
    let total: usize = parts.iter().map(|p| p.weights.num_tiles()).sum();
    let out = SharedMut::new(out);
    pool.run_ranges(total, |tiles| {
        with_scratch(num_tokens.min(TOKENS_PER_PASS) * LANES, |acc| {
            let mut first_tile = 0;
            for part in parts {
                let end = first_tile + part.weights.num_tiles();
                let tiles = tiles.start.max(first_tile)..tiles.end.min(end);
                for (tokens, tile) in passes(num_tokens, tiles) {
                    let tile = tile - first_tile;
                    let acc = &mut acc[..tokens.len() * LANES];
                    multiply(isa, part, tile, input, &tokens, acc);
                    let num_rows = LANES.min(part.weights.n - tile * LANES);
                    let at = tokens.start * width + part.column + tile * LANES;
                    // SAFETY: tiles of all parts write disjoint columns.
                    unsafe { write_columns(&out, acc, width, at, num_rows, accumulate) };
                }
                first_tile = end;
            }
        });
    });
}

/// For some tokens at a time every tile, so that their inputs and outputs stay in the nearer caches.
fn passes(num_tokens: usize, tiles: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
    (0..num_tokens).step_by(TOKENS_PER_PASS).flat_map(move |first| {
        let tokens = first..num_tokens.min(first + TOKENS_PER_PASS);
        tiles.clone().map(move |tile| (tokens.clone(), tile))
    })
}

/// Writes or adds `acc: [any, 16]` to `out` at `at` and every `width` after it.
///
/// # Safety
/// Nobody else uses these columns meanwhile.
#[inline(always)]
unsafe fn write_columns(
    out: &SharedMut<'_, f32>,
    acc: &[f32],
    width: usize,
    at: usize,
    num_columns: usize,
    accumulate: bool,
) {
    for (t, acc) in acc.as_chunks::<LANES>().0.iter().enumerate() {
        // SAFETY: the caller vouches for the columns.
        let out = unsafe { out.slice(at + t * width, num_columns) };
        // Sixteen at once where they are all there: a copy of unknown length is a call.
        if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
            for i in 0..LANES {
                out[i] = if accumulate { out[i] + acc[i] } else { acc[i] };
            }
            continue;
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = if accumulate { *out + acc } else { *acc };
        }
    }
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
    input: &Input<'_>,
    out: &mut [f32],
) {
    let (n, num_tokens) = (gate.n, input.num_tokens);
    assert_eq!((up.n, up.k), (n, gate.k), "gate {gate:?} and up {up:?}");
    assert_eq!(input.x.len(), num_tokens * gate.k, "input of {num_tokens} rows for {gate:?}");
    assert_eq!(out.len(), num_tokens * n, "output of {num_tokens} rows for {gate:?}");
    let part = |weights| Part { weights, bias: None, column: 0 };
    let out = SharedMut::new(out);
    pool.run_ranges(gate.num_tiles(), |tiles| {
        with_scratch(2 * num_tokens.min(TOKENS_PER_PASS) * LANES, |acc| {
            for (tokens, tile) in passes(num_tokens, tiles) {
                let (gate_acc, up_acc) = acc[..2 * tokens.len() * LANES].split_at_mut(tokens.len() * LANES);
                multiply(isa, &part(gate), tile, input, &tokens, gate_acc);
                multiply(isa, &part(up), tile, input, &tokens, up_acc);
                activate(isa, activation, gate_acc, up_acc);
                let num_rows = LANES.min(n - tile * LANES);
                // SAFETY: every tile writes its own columns.
                unsafe { write_columns(&out, gate_acc, n, tokens.start * n + tile * LANES, num_rows, false) };
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

/// One tile for some tokens into `acc: [tokens.len(), 16]`.
fn multiply(isa: Isa, part: &Part<'_>, tile: usize, input: &Input<'_>, tokens: &Range<usize>, acc: &mut [f32]) {
    let mut start = [0f32; LANES];
    if let Some(bias) = part.bias {
        let num_rows = LANES.min(part.weights.n - tile * LANES);
        start[..num_rows].copy_from_slice(&bias[tile * LANES..][..num_rows]);
    }
    acc.as_chunks_mut::<LANES>().0.fill(start);
    let k = part.weights.k;
    match input.quantized {
        Some(x) if !part.weights.layout.is_float() => tile::multiply(isa, part.weights, tile, x.rows(tokens), acc),
        _ => tile_f32::multiply(isa, part.weights, tile, &input.x[tokens.start * k..tokens.end * k], acc),
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
mod tests;
