//! The KV cache: which blocks are whose (`block_pool`, no tensors), and the memory behind them (`kv_store`).

mod block_hash;
mod block_pool;
mod kv_store;

pub use block_hash::{BlockHash, HashChain};
pub use block_pool::{BlockPool, PrefixHit};
pub use kv_store::KvStore;

/// Names one block of KV memory: `block_size` token slots in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Token slots per block. Attention walks KV in blocks of this size, so it is part of the arithmetic, not a setting:
/// another value gives other bits. A multiple of 32 suits the paged GPU kernels too.
pub const BLOCK_SIZE: usize = crate::kernels::KV_BLOCK;
