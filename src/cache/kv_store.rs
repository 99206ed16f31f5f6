//! The memory behind the block pool: keys and values of every layer, as the CPU kernels lay them out.

use crate::error::Result;
use crate::kernels::{KvLayer, Memory};

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
