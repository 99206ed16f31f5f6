//! Names for full blocks: a hash that covers a block's tokens and, through its predecessor's hash, everything before.
//!
//! ```text
//! root(tenant)        = first 16 bytes of SHA-256("tallow.kv" | tenant)
//! next(parent, block) = first 16 bytes of SHA-256(parent | token ids, little endian)
//! ```
//!
//! The hash is SHA-256 because prompts come from strangers. With a fast hash, a client could construct two prefixes of
//! equal name, and token ids are compared block by block, not back to the root. SHA-256 costs about a microsecond per
//! block of 32 tokens, in the thread that submits the request, not in the step loop.

use sha2::{Digest, Sha256};

use super::BLOCK_SIZE;
use tallow_stream::protocol::{Tenant, TokenId};

/// Names the content of a full block and all that precedes it, for one tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(u128);

impl BlockHash {
    /// The parent of the first block of every sequence of `tenant`.
    pub fn root(tenant: Tenant) -> Self {
        Self::digest(Sha256::new().chain_update(b"tallow.kv").chain_update(tenant.0.to_le_bytes()))
    }

    /// The name of the block that holds `tokens` and follows `self`.
    ///
    /// # Panics
    /// If `tokens` is not a full block: only full blocks have names.
    pub fn next(self, tokens: &[TokenId]) -> Self {
        assert_eq!(tokens.len(), BLOCK_SIZE, "only full blocks are hashed");
        let mut bytes = [0; 4 * BLOCK_SIZE];
        for (place, token) in bytes.chunks_exact_mut(4).zip(tokens) {
            place.copy_from_slice(&token.to_le_bytes());
        }
        Self::digest(Sha256::new().chain_update(self.0.to_le_bytes()).chain_update(bytes))
    }

    fn digest(hasher: Sha256) -> Self {
        let digest = hasher.finalize();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Self(u128::from_le_bytes(first))
    }
}

impl std::fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockHash({:08x})", self.0 >> 96)
    }
}

/// The names of all full blocks of a sequence so far. Grows with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashChain {
    root: BlockHash,
    hashes: Vec<BlockHash>,
}

impl HashChain {
    /// The chain of `tenant`'s sequence that begins with `tokens`.
    pub fn new(tenant: Tenant, tokens: &[TokenId]) -> Self {
        let mut chain = Self { root: BlockHash::root(tenant), hashes: Vec::new() };
        chain.extend(tokens);
        chain
    }

    /// Names the blocks that have become full; `tokens` is the whole sequence.
    pub fn extend(&mut self, tokens: &[TokenId]) {
        for block in self.hashes.len()..tokens.len() / BLOCK_SIZE {
            let hash = self.parent(block).next(&tokens[block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE]);
            self.hashes.push(hash);
        }
    }

    /// The name of the block before block `block`, or the root.
    pub fn parent(&self, block: usize) -> BlockHash {
        block.checked_sub(1).map_or(self.root, |before| self.hashes[before])
    }

    /// Makes room for a sequence of `num_tokens`, so that growing to it allocates nothing.
    pub fn reserve(&mut self, num_tokens: usize) {
        self.hashes.reserve((num_tokens / BLOCK_SIZE).saturating_sub(self.hashes.len()));
    }

    /// Names of the full blocks, in order.
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_tenant_tokens_and_everything_before() {
        let a: Vec<TokenId> = (0..64).collect();
        let mut b = a.clone();
        b[3] = 99;
        let chain = HashChain::new(Tenant(1), &a);
        assert_eq!(chain, HashChain::new(Tenant(1), &a));
        let others = [HashChain::new(Tenant(2), &a), HashChain::new(Tenant(1), &b)];
        for other in &others {
            assert_ne!(chain.hashes()[0], other.hashes()[0]);
            assert_ne!(chain.hashes()[1], other.hashes()[1], "the second block's tokens are equal, its past is not");
        }
    }

    #[test]
    fn growing_token_by_token_names_the_same_blocks() {
        let tokens: Vec<TokenId> = (0..100).map(|i| i * 7).collect();
        let mut grown = HashChain::new(Tenant(0), &[]);
        for n in 1..=tokens.len() {
            grown.extend(&tokens[..n]);
        }
        assert_eq!(grown, HashChain::new(Tenant(0), &tokens));
        assert_eq!(grown.hashes().len(), 3);
    }
}
