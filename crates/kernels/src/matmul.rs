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

use std::ops::Range;

use super::activations::{Activations, StageOutput};
use super::pool::{Pool, SharedMut};
use super::simd::{Isa, LANES, Simd, simd_kernel};
use super::weights::{BLOCK_K, Packed};
use super::{math, tile, tile_f32};

/// Tokens that go through some tiles together: their inputs and outputs fit the second-level cache, and the weights are
/// expanded once for all of them.
const TOKENS_PER_PASS: usize = 64;

/// Room for a pass's sums of one tile, or of as many tiles as fit where there are fewer tokens.
const ACC_LEN: usize = TOKENS_PER_PASS * LANES;

/// A matrix and where its outputs go.
#[derive(Debug, Clone, Copy)]
pub struct MatrixPart<'a> {
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
pub struct MatrixInput<'a> {
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
pub fn linear(
    isa: Isa,
    pool: &mut Pool,
    parts: &[MatrixPart<'_>],
    input: &MatrixInput<'_>,
    accumulate: bool,
    out: &mut [f32],
) {
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
        let mut acc = [0f32; ACC_LEN];
        let mut first_tile = 0;
        for part in parts {
            let end = first_tile + part.weights.num_tiles();
            let tiles = tiles.start.max(first_tile)..tiles.end.min(end);
            for (tokens, tiles) in passes(num_tokens, tiles) {
                let tiles = tiles.start - first_tile..tiles.end - first_tile;
                let acc = &mut acc[..tiles.len() * tokens.len() * LANES];
                multiply(isa, part, &tiles, input, &tokens, acc);
                let first = tokens.start * width + part.column;
                // Tiles of all parts have columns of their own.
                write_columns(isa, &Columns { out, first, width, n: part.weights.n }, &tiles, acc, accumulate);
            }
            first_tile = end;
        }
    });
}

/// For some tokens at a time every tile, so that their inputs and outputs stay in the nearer caches: as many neighbouring
/// tiles together as [`ACC_LEN`] has room for.
fn passes(num_tokens: usize, tiles: Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let per_call = (TOKENS_PER_PASS / num_tokens.max(1)).max(1);
    (0..num_tokens).step_by(TOKENS_PER_PASS).flat_map(move |first| {
        let tokens = first..num_tokens.min(first + TOKENS_PER_PASS);
        let end = tiles.end;
        tiles.clone().step_by(per_call).map(move |tile| (tokens.clone(), tile..end.min(tile + per_call)))
    })
}

/// Columns of a matrix of outputs: those of `n` rows of weights, the first at `first` and every `width` after it.
struct Columns<'a> {
    out: SharedMut<'a, f32>,
    first: usize,
    width: usize,
    n: usize,
}

simd_kernel! {
    /// Writes or adds `acc: [tiles.len(), any, 16]`. Nobody else may use the columns of these tiles meanwhile.
    fn write_columns(to: &Columns<'_>, tiles: &Range<usize>, acc: &[f32], accumulate: bool) = write_columns_body
}

#[inline(always)]
fn write_columns_body<S: Simd>(s: S, to: &Columns<'_>, tiles: &Range<usize>, acc: &[f32], accumulate: bool) {
    let num_tokens = acc.len() / (tiles.len() * LANES);
    for t in 0..num_tokens {
        for tile in tiles.start..tiles.end {
            let num_columns = LANES.min(to.n - tile * LANES);
            let acc = &acc[((tile - tiles.start) * num_tokens + t) * LANES..][..LANES];
            // SAFETY: the columns are the caller's alone; both sides have the values that are read and written.
            unsafe {
                let out = to.out.slice(to.first + t * to.width + tile * LANES, num_columns);
                if num_columns == LANES {
                    let mut sum = s.load(acc.as_ptr());
                    if accumulate {
                        sum = s.add(s.load(out.as_ptr()), sum);
                    }
                    s.store(out.as_mut_ptr(), sum);
                    continue;
                }
                for i in 0..num_columns {
                    out[i] = if accumulate { out[i] + acc[i] } else { acc[i] };
                }
            }
        }
    }
}

/// Tiles whose outputs are a block of the next matrix's inputs.
const TILES_PER_BLOCK: usize = BLOCK_K / LANES;

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
    input: &MatrixInput<'_>,
    out: StageOutput<'_>,
) {
    let (n, num_tokens) = (gate.n, input.num_tokens);
    assert_eq!((up.n, up.k), (n, gate.k), "gate {gate:?} and up {up:?}");
    assert_eq!(input.x.len(), num_tokens * gate.k, "input of {num_tokens} rows for {gate:?}");
    assert_eq!(out.x.len(), num_tokens * n, "output of {num_tokens} rows for {gate:?}");
    let part = |weights| MatrixPart { weights, bias: None, column: 0 };
    let quantized = out.quantized.map(|quantized| quantized.replace(num_tokens, n));
    let out = SharedMut::new(out.x);
    let num_tiles = gate.num_tiles();
    pool.run_ranges(num_tiles.div_ceil(TILES_PER_BLOCK), |blocks| {
        let (mut gate_acc, mut up_acc) = ([0f32; ACC_LEN], [0f32; ACC_LEN]);
        let tiles = blocks.start * TILES_PER_BLOCK..num_tiles.min(blocks.end * TILES_PER_BLOCK);
        for (tokens, tiles) in passes(num_tokens, tiles) {
            let len = tiles.len() * tokens.len() * LANES;
            let (gate_acc, up_acc) = (&mut gate_acc[..len], &mut up_acc[..len]);
            multiply(isa, &part(gate), &tiles, input, &tokens, gate_acc);
            multiply(isa, &part(up), &tiles, input, &tokens, up_acc);
            activate(isa, activation, gate_acc, up_acc);
            // Every tile has columns of its own.
            write_columns(isa, &Columns { out, first: tokens.start * n, width: n, n }, &tiles, gate_acc, false);
        }
        let Some(quantized) = &quantized else { return };
        let columns = blocks.start * BLOCK_K..n.min(blocks.end * BLOCK_K);
        for token in 0..num_tokens {
            // SAFETY: these columns and blocks are of these tiles alone, and the columns are written.
            unsafe {
                let x = out.read(token * n + columns.start, columns.len());
                quantized.quantize(isa, token, columns.start, x);
            }
        }
    });
}

/// Some neighbouring tiles for some tokens into `acc: [tiles.len(), tokens.len(), 16]`.
fn multiply(
    isa: Isa,
    part: &MatrixPart<'_>,
    tiles: &Range<usize>,
    input: &MatrixInput<'_>,
    tokens: &Range<usize>,
    acc: &mut [f32],
) {
    for (tile, acc) in tiles.clone().zip(acc.chunks_exact_mut(tokens.len() * LANES)) {
        let mut start = [0f32; LANES];
        if let Some(bias) = part.bias {
            let num_rows = LANES.min(part.weights.n - tile * LANES);
            start[..num_rows].copy_from_slice(&bias[tile * LANES..][..num_rows]);
        }
        // Not `fill`, which is a call and copies value by value.
        for acc in acc.as_chunks_mut::<LANES>().0 {
            *acc = start;
        }
    }
    let k = part.weights.k;
    match input.quantized {
        Some(x) if !part.weights.layout.is_float() => tile::multiply(isa, part.weights, tiles, x.rows(tokens), acc),
        _ => tile_f32::multiply(isa, part.weights, tiles, &input.x[tokens.start * k..tokens.end * k], acc),
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
