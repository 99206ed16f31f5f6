//! A weight matrix in tiles of sixteen rows, lane `r` of every vector being row `r` of the tile.
//!
//! ```text
//! tile           16 rows x k, zero rows at the end of the last one
//!   codes        a block for every 32 k: the planes of `planes`, whole cache lines
//!   scales       32-weight formats: for every 32 k, 16 f16 scales, then 16 f16 mins where the format has them
//!                K formats: for every 256 k, 16 f16 scales (and mins), then for each of its 8 blocks one signed byte
//!                per row and group (and as many for the mins)
//! floats         k vectors of 16 values, in the file's own precision
//! ```
//! Mins are stored negated, so that kernels add them.

use half::f16;

use super::WeightFormat;
use super::planes::{Planes, pack_codes};
use super::unpack::{UnpackedBlock, unpack};
use crate::memory::{Memory, Region};
use crate::pool::{Pool, SharedMut};
use crate::simd::LANES;
use crate::{Error, Result};

/// Weights per row in one packed block.
pub(crate) const BLOCK_K: usize = 32;

/// Bytes of a cache line; tiles begin on one.
const LINE: usize = 64;

/// A matrix `[n, k]` of weights, packed.
pub struct Packed {
    pub(crate) layout: Layout,
    pub(crate) n: usize,
    pub(crate) k: usize,
    region: Region,
}

/// How a format's tiles are laid out. Everything about it is known at compile time of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) format: WeightFormat,
    pub(crate) planes: Planes,
    pub(crate) has_min: bool,
    /// Scales per row in one block: 1 or 2.
    pub(crate) num_groups: usize,
    /// Blocks that share a scale: 1, or 8 in the K formats.
    pub(crate) blocks_per_scale: usize,
}

impl Layout {
    pub(crate) const fn of(format: WeightFormat) -> Self {
        Self {
            format,
            planes: Planes::of(format),
            has_min: format.has_min(),
            num_groups: BLOCK_K / format.group_len(),
            blocks_per_scale: if format.block_len() == 256 { 8 } else { 1 },
        }
    }

    pub(crate) const fn is_float(self) -> bool {
        self.format.block_len() == 1
    }

    /// 1, or 2 with mins.
    const fn num_fields(self) -> usize {
        if self.has_min { 2 } else { 1 }
    }

    /// Bytes of the scales that `blocks_per_scale` blocks share.
    pub(crate) const fn scale_bytes(self) -> usize {
        LANES * 2 * self.num_fields()
    }

    /// Bytes of one block's sub-scales.
    pub(crate) const fn sub_bytes(self) -> usize {
        if self.blocks_per_scale == 1 { 0 } else { LANES * self.num_groups * self.num_fields() }
    }

    /// Bytes from one shared scale to the next.
    pub(crate) const fn scale_stride(self) -> usize {
        self.scale_bytes() + self.blocks_per_scale * self.sub_bytes()
    }

    /// Bytes of a tile's codes.
    pub(crate) const fn tile_code_bytes(self, k: usize) -> usize {
        k / BLOCK_K * self.planes.num_bytes()
    }

    /// Cache lines of a block with its part of the scales, rounded up.
    pub(crate) const fn block_lines(self) -> usize {
        (self.planes.num_bytes() + self.scale_stride() / self.blocks_per_scale).div_ceil(LINE)
    }

    fn tile_bytes(self, k: usize) -> usize {
        if self.is_float() {
            return k * LANES * self.format.block_bytes();
        }
        self.tile_code_bytes(k) + k / BLOCK_K / self.blocks_per_scale * self.scale_stride()
    }
}

impl Packed {
    /// Packs the rows `bytes` of a matrix `[n, k]` into `memory`, on all threads of `pool`.
    ///
    /// # Errors
    /// If `k` is not a multiple of the format's block, `bytes` is not `n` rows long, or there is no memory.
    pub fn pack(
        format: WeightFormat,
        n: usize,
        k: usize,
        bytes: &[u8],
        memory: &mut Memory,
        pool: &mut Pool,
    ) -> Result<Self> {
        if n == 0 || k == 0 || !k.is_multiple_of(format.block_len()) {
            let block = format.block_len();
            let message = format!("a {format} matrix must have rows of n x {block} weights, got [{n}, {k}]");
            return Err(Error::BadWeights(message));
        }
        let row_bytes = format.row_bytes(k);
        if bytes.len() != n * row_bytes {
            let message =
                format!("a {format} matrix [{n}, {k}] must have {} bytes, got {}", n * row_bytes, bytes.len());
            return Err(Error::BadWeights(message));
        }
        let layout = Layout::of(format);
        let num_tiles = n.div_ceil(LANES);
        let tile_bytes = layout.tile_bytes(k).next_multiple_of(LINE);
        let mut region = memory.region(num_tiles * tile_bytes)?;
        let out = SharedMut::new(region.bytes_mut());
        pool.run(num_tiles, |tile| {
            // SAFETY: every tile writes its own part.
            let out = unsafe { out.slice(tile * tile_bytes, tile_bytes) };
            for lane in 0..LANES.min(n - tile * LANES) {
                let row = tile * LANES + lane;
                let bytes = &bytes[row * row_bytes..(row + 1) * row_bytes];
                if layout.is_float() {
                    pack_float_row(format, bytes, lane, out);
                } else {
                    pack_row(layout, k, bytes, lane, out);
                }
            }
        });
        Ok(Self { layout, n, k, region })
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
        self.region.len()
    }

    /// Where they are, for hints to the memory.
    pub fn addresses(&self) -> std::ops::Range<*const u8> {
        self.region.bytes().as_ptr_range()
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// The bytes of some tiles, each of which begins on a cache line.
    pub(crate) fn tiles(&self, tiles: &std::ops::Range<usize>) -> Tiles<'_> {
        let len = self.layout.tile_bytes(self.k);
        let stride = len.next_multiple_of(LINE);
        Tiles { bytes: &self.region.bytes()[tiles.start * stride..tiles.end * stride], stride, len }
    }
}

/// Neighbouring tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    bytes: &'a [u8],
    stride: usize,
    len: usize,
}

impl<'a> Tiles<'a> {
    /// Number of tiles.
    #[inline(always)]
    pub(crate) fn count(self) -> usize {
        self.bytes.len() / self.stride
    }

    /// One tile's bytes.
    #[inline(always)]
    pub(crate) fn get(self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.stride..][..self.len]
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

fn pack_row(layout: Layout, k: usize, bytes: &[u8], lane: usize, tile: &mut [u8]) {
    let format = layout.format;
    let (codes, scales) = tile.split_at_mut(layout.tile_code_bytes(k));
    let code_bytes = layout.planes.num_bytes();
    let mut block = UnpackedBlock::new();
    for (i, bytes) in bytes.chunks_exact(format.block_bytes()).enumerate() {
        unpack(format, bytes, &mut block);
        for j in 0..layout.blocks_per_scale {
            let at = (i * layout.blocks_per_scale + j) * code_bytes;
            let from = &block.codes[j * BLOCK_K..(j + 1) * BLOCK_K];
            pack_codes(layout.planes, from, lane, &mut codes[at..at + code_bytes]);
        }
        let scales = &mut scales[i * layout.scale_stride()..][..layout.scale_stride()];
        // Exact: both were f16 in the file.
        scales[2 * lane..][..2].copy_from_slice(&f16::from_f32(block.scale).to_le_bytes());
        if layout.has_min {
            scales[2 * (LANES + lane)..][..2].copy_from_slice(&f16::from_f32(-block.min).to_le_bytes());
        }
        let subs = &mut scales[layout.scale_bytes()..];
        for (j, subs) in subs.chunks_exact_mut(layout.sub_bytes().max(1)).enumerate() {
            for group in 0..layout.num_groups {
                let from = j * layout.num_groups + group;
                subs[group * LANES + lane] = block.sub_scales[from] as u8;
                if layout.has_min {
                    subs[(layout.num_groups + group) * LANES + lane] = block.sub_mins[from] as u8;
                }
            }
        }
    }
}
