//! The KV cache: which blocks are whose. No tensors; the memory behind the blocks is the kernels' (`KvStore`).

mod block_hash;
mod block_pool;

pub use block_hash::{BlockHash, HashChain};
pub use block_pool::{BlockPool, PrefixHit};
pub use tallow_kernels::{BLOCK_SIZE, BlockId};
