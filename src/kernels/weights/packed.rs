//! A weight matrix in tiles of sixteen rows, lane `r` of every vector being row `r` of the tile.
//!
//! ```text
//! tile      16 rows x k, zero rows at the end of the last one
//!   block   16 rows x 32 k: codes, then scales (then mins)
//!     codes 8-bit: 8 vectors of 64 bytes; lane r of vector j holds weights 4j..4j+4 of row r
//!           4-bit: 4 vectors; low nibbles hold weights 4j..4j+4, high nibbles 16+4j..16+4j+4
//!     scale one f16 (32-weight formats of one f16) or f32 (K formats) per row and group
//! floats    k vectors of 16 values, in the file's own precision
//! ```
//! Four consecutive weights of one row share a 32-bit lane because that is what the integer dot products of every
//! instruction set want. Codes of 5 and 6 bits take a byte, codes of 2 and 3 bits a nibble.

use half::f16;

use super::WeightFormat;
use super::unpack::{Block, unpack};
use crate::error::{Error, Result};
use crate::kernels::pool::{Pool, SharedMut};
use crate::kernels::simd::LANES;

/// Weights per row in one packed block.
pub(crate) const BLOCK_K: usize = 32;

/// A matrix `[n, k]` of weights, packed.
pub struct Packed {
    pub(crate) layout: Layout,
    pub(crate) n: usize,
    pub(crate) k: usize,
    data: Vec<u8>,
}

/// What a packed block holds; each value is one way of decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) format: WeightFormat,
    pub(crate) nibbles: bool,
    pub(crate) has_min: bool,
    /// Scales per row in one block: 1 or 2.
    pub(crate) num_groups: usize,
    /// Scales are f16, else f32.
    pub(crate) half_scales: bool,
    pub(crate) zero: u8,
}

impl Layout {
    fn of(format: WeightFormat) -> Self {
        use WeightFormat::{Q2K, Q3K, Q4_0, Q4_1, Q4K};
        Self {
            format,
            nibbles: matches!(format, Q4_0 | Q4_1 | Q2K | Q3K | Q4K),
            has_min: format.has_min(),
            num_groups: BLOCK_K / format.group_len(),
            half_scales: format.block_len() == 32,
            zero: format.zero(),
        }
    }

    fn is_float(self) -> bool {
        self.format.block_len() == 1
    }

    pub(crate) fn code_bytes(self) -> usize {
        if self.nibbles { BLOCK_K / 2 * LANES } else { BLOCK_K * LANES }
    }

    pub(crate) fn scale_bytes(self) -> usize {
        LANES * if self.half_scales { 2 } else { 4 }
    }

    /// Bytes of one block.
    pub(crate) fn block_bytes(self) -> usize {
        self.code_bytes() + self.num_groups * self.scale_bytes() * if self.has_min { 2 } else { 1 }
    }

    fn tile_bytes(self, k: usize) -> usize {
        if self.is_float() { k * LANES * self.format.block_bytes() } else { k / BLOCK_K * self.block_bytes() }
    }
}

impl Packed {
    /// Packs the rows `bytes` of a matrix `[n, k]`, on all threads of `pool`.
    ///
    /// # Errors
    /// If `k` is not a multiple of the format's block, or `bytes` is not `n` rows long.
    pub fn pack(format: WeightFormat, n: usize, k: usize, bytes: &[u8], pool: &mut Pool) -> Result<Self> {
        if n == 0 || k == 0 || !k.is_multiple_of(format.block_len()) {
            let block = format.block_len();
            return Err(Error::bad_model(format!(
                "a {format} matrix must have rows of n x {block} weights, got [{n}, {k}]"
            )));
        }
        let row_bytes = format.row_bytes(k);
        if bytes.len() != n * row_bytes {
            return Err(Error::bad_model(format!(
                "a {format} matrix [{n}, {k}] must have {} bytes, got {}",
                n * row_bytes,
                bytes.len()
            )));
        }
        let layout = Layout::of(format);
        let num_tiles = n.div_ceil(LANES);
        let tile_bytes = layout.tile_bytes(k);
        let mut data = vec![0u8; num_tiles * tile_bytes];
        let out = SharedMut::new(&mut data);
        pool.run(num_tiles, |tile| {
            // SAFETY: every tile writes its own part.
            let out = unsafe { out.slice(tile * tile_bytes, tile_bytes) };
            for lane in 0..LANES.min(n - tile * LANES) {
                let row = tile * LANES + lane;
                let bytes = &bytes[row * row_bytes..(row + 1) * row_bytes];
                if layout.is_float() {
                    pack_float_row(format, bytes, lane, out)
                } else {
                    pack_row(layout, bytes, lane, out)
                }
            }
        });
        Ok(Self { layout, n, k, data })
    }

    /// Number of rows, which is the number of outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Length of a row, which is the number of inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// The bytes of one tile.
    pub(crate) fn tile(&self, tile: usize) -> &[u8] {
        let bytes = self.layout.tile_bytes(self.k);
        &self.data[tile * bytes..(tile + 1) * bytes]
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({} [{}, {}])", self.layout.format, self.n, self.k)
    }
}

fn pack_float_row(format: WeightFormat, bytes: &[u8], lane: usize, tile: &mut [u8]) {
    let size = format.block_bytes();
    for (i, value) in bytes.chunks_exact(size).enumerate() {
        let at = (i * LANES + lane) * size;
        tile[at..at + size].copy_from_slice(value);
    }
}

fn pack_row(layout: Layout, bytes: &[u8], lane: usize, tile: &mut [u8]) {
    let format = layout.format;
    let mut block = Block::new();
    let packed_per_block = format.block_len() / BLOCK_K;
    for (i, bytes) in bytes.chunks_exact(format.block_bytes()).enumerate() {
        unpack(format, bytes, &mut block);
        for j in 0..packed_per_block {
            let at = (i * packed_per_block + j) * layout.block_bytes();
            let out = &mut tile[at..at + layout.block_bytes()];
            pack_codes(layout, &block.codes[j * BLOCK_K..(j + 1) * BLOCK_K], lane, out);
            for group in 0..layout.num_groups {
                let from = j * layout.num_groups + group;
                put_scale(layout, group, lane, block.scales[from], out);
                if layout.has_min {
                    put_scale(layout, layout.num_groups + group, lane, block.mins[from], out);
                }
            }
        }
    }
}

fn pack_codes(layout: Layout, codes: &[u8], lane: usize, out: &mut [u8]) {
    for (i, &code) in codes.iter().enumerate() {
        if layout.nibbles {
            let (half, i) = (i / 16, i % 16);
            out[i / 4 * 64 + lane * 4 + i % 4] |= code << (4 * half);
        } else {
            out[i / 4 * 64 + lane * 4 + i % 4] = code;
        }
    }
}

/// Writes scale number `index` (mins follow the scales) of one row.
fn put_scale(layout: Layout, index: usize, lane: usize, value: f32, block: &mut [u8]) {
    let at = layout.code_bytes() + index * layout.scale_bytes();
    if layout.half_scales {
        // Exact: it was an f16 in the file.
        block[at + 2 * lane..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    } else {
        block[at + 4 * lane..][..4].copy_from_slice(&value.to_le_bytes());
    }
}
