//! What attention works on: the shape of a layer, a ragged batch, and a layer's KV memory in blocks of [`KV_BLOCK`] positions.
//! How it is computed stands in `attention`, which these words know nothing of.

use super::memory::{Halves, Memory};
use super::simd::LANES;
use crate::Result;

/// Positions in one KV block.
pub const KV_BLOCK: usize = 32;

/// Which dimensions a rotation pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// (0, 1), (2, 3), ...: the order of llama GGUF files.
    Interleaved,
    /// (0, half), (1, half + 1), ...
    Halves,
}

/// The attention of one layer, apart from its memory.
#[derive(Debug, Clone)]
pub struct AttentionShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Size of a head; a multiple of 16.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// A query sees this many positions, its own included; `None` sees all.
    pub window: Option<usize>,
    /// How dimensions are paired.
    pub rope_pairs: RopePairs,
    /// Norm of each query and key head before the rotation.
    pub qk_norm: Option<QkNorm>,
}

impl AttentionShape {
    /// Width of a row of queries, keys and values, after a look at what the kernels take for granted.
    pub(super) fn check(&self, batch: &Ragged<'_>, kv: &KvLayer, qkv_len: usize) -> usize {
        let &Self { num_heads, num_kv_heads, head_dim, .. } = self;
        let num_tokens = batch.positions.len();
        let width = (num_heads + 2 * num_kv_heads) * head_dim;
        assert!(head_dim.is_multiple_of(LANES) && num_heads.is_multiple_of(num_kv_heads), "{self:?}");
        assert_eq!(qkv_len, num_tokens * width, "qkv of {num_tokens} tokens");
        assert_eq!(batch.slots.len(), num_tokens);
        let num_blocks = kv.keys.len() / (num_kv_heads * head_dim * KV_BLOCK);
        let num_slots = num_blocks * KV_BLOCK;
        assert!(batch.slots.iter().all(|s| (*s as usize) < num_slots), "a slot outside the {num_blocks} blocks");
        assert!(batch.block_tables.iter().all(|b| (*b as usize) < num_blocks), "a block outside the {num_blocks}");
        width
    }
}

/// Root-mean-square norms of query and key heads.
#[derive(Debug, Clone)]
pub struct QkNorm {
    /// `[head_dim]`
    pub q_weight: Vec<f32>,
    /// `[head_dim]`
    pub k_weight: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Where each token's keys and values go: places in the KV memory, no two of them the same. The kernels write them from
/// several threads, so this is looked at once per step, before any layer.
#[derive(Debug, Clone, Copy)]
pub struct DistinctSlots<'a>(&'a [u32]);

impl<'a> DistinctSlots<'a> {
    /// # Panics
    /// If two tokens would be written to one slot.
    pub fn new(slots: &'a [u32]) -> Self {
        let mut sorted = slots.to_vec();
        sorted.sort_unstable();
        let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]);
        assert!(twice.is_none(), "two tokens share the slot {twice:?}");
        Self(slots)
    }
}

impl std::ops::Deref for DistinctSlots<'_> {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        self.0
    }
}

/// The ragged batch, as plain numbers: see `model::Batch`.
#[derive(Debug, Clone, Copy)]
pub struct Ragged<'a> {
    /// `[num_tokens]`
    pub positions: &'a [u32],
    /// `[num_tokens]`
    pub slots: DistinctSlots<'a>,
    /// `[num_seqs + 1]`
    pub cu_seqlens: &'a [u32],
    /// All block tables back to back.
    pub block_tables: &'a [u32],
    /// `[num_seqs + 1]`
    pub cu_blocks: &'a [u32],
    /// `[num_tokens, rope_dim / 2]`; dimensions past `rope_dim` are not rotated.
    pub cos: &'a [f32],
    /// Like `cos`.
    pub sin: &'a [f32],
}

/// One layer's KV memory, f16 bits.
#[derive(Debug)]
pub struct KvLayer {
    /// `[num_blocks, num_kv_heads, head_dim, KV_BLOCK]`
    pub(super) keys: Halves,
    /// `[num_blocks, num_kv_heads, KV_BLOCK, head_dim]`
    pub(super) values: Halves,
    /// Numbers in a block of either.
    block_len: usize,
}

impl KvLayer {
    /// Zeroed memory; blocks that were never written cost nothing.
    ///
    /// # Errors
    /// If the system has no address space for it.
    pub fn new(num_blocks: usize, num_kv_heads: usize, head_dim: usize, memory: &mut Memory) -> Result<Self> {
        let block_len = num_kv_heads * head_dim * KV_BLOCK;
        let len = num_blocks * block_len;
        Ok(Self { keys: memory.halves(len)?, values: memory.halves(len)?, block_len })
    }

    /// Copies a block's keys and values.
    ///
    /// # Panics
    /// If a block lies outside the memory.
    pub fn copy_block(&mut self, from: usize, to: usize) {
        let from = from * self.block_len..(from + 1) * self.block_len;
        self.keys.copy_within(from.clone(), to * self.block_len);
        self.values.copy_within(from, to * self.block_len);
    }
}
