//! KV memory: keys and values of every layer, as the CPU kernels lay them out.

use crate::attention_shape::KV_BLOCK;
use crate::{KvLayer, Memory, Result};

/// Names one block of KV memory: [`BLOCK_SIZE`] token slots in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Token slots per block. Attention walks KV in blocks of this size, so it is part of the arithmetic, not a setting:
/// another value gives other bits. A multiple of 32 suits the paged GPU kernels too.
pub const BLOCK_SIZE: usize = KV_BLOCK;

/// KV memory of one worker, f16.
#[derive(Debug)]
pub struct KvStore {
    /// One per layer.
    pub layers: Vec<KvLayer>,
}

impl KvStore {
    /// Memory for `num_blocks` blocks in each of `num_layers` layers.
    ///
    /// # Errors
    /// If the system has no address space for it.
    pub fn new(num_layers: usize, num_blocks: usize, num_kv_heads: usize, head_dim: usize) -> Result<Self> {
        let mut memory = Memory::in_small_pages();
        let layers = (0..num_layers).map(|_| KvLayer::new(num_blocks, num_kv_heads, head_dim, &mut memory));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }
}
