//! The KV cache: which sequences hold which blocks. There are no tensors here: the kernels own the memory of the blocks
//! (`KvStore`).

mod block_hash;
mod block_pool;

pub use block_hash::{BlockHash, HashChain};
pub use block_pool::{BlockPool, PrefixHit};
pub use tallow_kernels::{BLOCK_SIZE, BlockId};
