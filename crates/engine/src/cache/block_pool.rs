//! Who holds which KV block: reference counts, the free list, and the names of blocks that can be used again.
//!
//! A block is in one of three states:
//!
//! - *referenced*: one or more sequences have it in their table;
//! - *cached*: nobody has it, but it is full and named, so a sequence with the same beginning may take it again;
//! - *free*: nobody has it and its content means nothing.
//!
//! Cached and free blocks stand in one list, linked by index through the blocks themselves. Blocks are taken from its
//! front; unnamed ones are returned to the front and named ones to the back, so the list is the LRU order of the
//! cache, and a block loses its name only when it is taken. Every operation is O(1).
//!
//! Only full blocks are named, after their content is computed, and a named block is never written: a sequence's
//! writes begin behind its last full block, and the last token of a prompt is always computed.
//!
//! This file sees no tensor, no clock and no sequence. Bugs in its callers (a double release) are panics.

use std::collections::HashMap;

use super::{BLOCK_SIZE, BlockHash, BlockId, HashChain};
use tallow_stream::protocol::{Tenant, TokenId};

/// All KV blocks of one worker.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<PoolBlock>,
    /// `[num_blocks, BLOCK_SIZE]`, what named blocks hold.
    tokens: Vec<TokenId>,
    by_hash: HashMap<BlockHash, BlockId>,
    /// Next to be taken.
    head: BlockLink,
    /// Last to be taken.
    tail: BlockLink,
    /// Length of the list: free and cached blocks.
    num_listed: usize,
    /// Of those, named ones.
    num_cached: usize,
}

/// Part of a sequence's beginning that the pool still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefixHit {
    /// Blocks found, from the first on.
    pub num_blocks: usize,
    /// Of those, how many nobody references: taking them makes [`BlockPool::num_available`] smaller.
    pub(crate) num_unreferenced: usize,
}

type BlockLink = Option<BlockId>;

#[derive(Debug, Clone, Default)]
struct PoolBlock {
    ref_count: u32,
    prev: BlockLink,
    next: BlockLink,
    name: Option<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    hash: BlockHash,
    parent: BlockHash,
    tenant: Tenant,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks; the first to be taken is block 0.
    pub fn new(num_blocks: usize) -> Self {
        let mut pool = Self {
            blocks: vec![PoolBlock::default(); num_blocks],
            tokens: vec![0; num_blocks * BLOCK_SIZE],
            by_hash: HashMap::with_capacity(num_blocks),
            head: None,
            tail: None,
            num_listed: 0,
            num_cached: 0,
        };
        for index in 0..num_blocks {
            pool.push_back(BlockId(index as u32));
        }
        pool
    }

    /// All blocks there are.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be taken: free and cached.
    pub fn num_available(&self) -> usize {
        self.num_listed
    }

    /// Blocks that nobody references and that can be found again.
    pub(crate) fn num_cached(&self) -> usize {
        self.num_cached
    }

    /// Blocks that sequences hold.
    pub fn num_referenced(&self) -> usize {
        self.blocks.len() - self.num_listed
    }

    /// Takes the block that has been unused for longest; its content, and its name if it had one, are gone. `None`
    /// when all are referenced.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let id = self.head?;
        self.unlink(id);
        if let Some(name) = self.block_mut(id).name.take() {
            self.num_cached -= 1;
            let removed = self.by_hash.remove(&name.hash);
            debug_assert_eq!(removed, Some(id), "a named block is in the index");
        }
        self.block_mut(id).ref_count = 1;
        Some(id)
    }

    /// Gives up one reference.
    ///
    /// # Panics
    /// If there is none.
    pub fn release(&mut self, id: BlockId) {
        let block = self.block_mut(id);
        assert!(block.ref_count > 0, "{id:?} released more often than taken");
        block.ref_count -= 1;
        if block.ref_count > 0 {
            return;
        }
        if block.name.is_some() {
            self.num_cached += 1;
            self.push_back(id);
        } else {
            self.push_front(id);
        }
    }

    /// Gives up a sequence's table and empties it. The end goes first, so that of a cached prefix the beginning,
    /// without which the rest cannot be found, lives longest.
    pub(crate) fn release_all(&mut self, table: &mut Vec<BlockId>) {
        while let Some(id) = table.pop() {
            self.release(id);
        }
    }

    /// How much of the beginning of `tokens` is here. The last token is never covered: its logits are wanted, so it
    /// must be computed. `chain` names the full blocks of `tokens`.
    pub(crate) fn find_prefix(&self, tenant: Tenant, tokens: &[TokenId], chain: &HashChain) -> PrefixHit {
        let mut hit = PrefixHit::default();
        for id in self.prefix(tenant, tokens, chain) {
            hit.num_blocks += 1;
            hit.num_unreferenced += usize::from(self.block(id).ref_count == 0);
        }
        hit
    }

    /// Takes a reference to every block of [`BlockPool::find_prefix`] and appends them to `table`; returns how many.
    pub(crate) fn take_prefix(
        &mut self,
        tenant: Tenant,
        tokens: &[TokenId],
        chain: &HashChain,
        table: &mut Vec<BlockId>,
    ) -> usize {
        let first = table.len();
        table.extend(self.prefix(tenant, tokens, chain));
        for &id in &table[first..] {
            if self.block(id).ref_count == 0 {
                self.unlink(id);
                self.num_cached -= 1;
            }
            self.block_mut(id).ref_count += 1;
        }
        table.len() - first
    }

    /// Names a block whose content is computed: it is block number `index` of the sequence `tokens`. Where equal
    /// content has a name already, this copy stays without one and is forgotten on release.
    ///
    /// # Panics
    /// If nobody references the block, or it has a name.
    pub fn register(&mut self, id: BlockId, tenant: Tenant, tokens: &[TokenId], chain: &HashChain, index: usize) {
        let block = self.block(id);
        assert!(block.ref_count > 0 && block.name.is_none(), "{id:?} cannot be named: {block:?}");
        let name = Name { hash: chain.hashes()[index], parent: chain.parent(index), tenant };
        if self.by_hash.contains_key(&name.hash) {
            return;
        }
        self.by_hash.insert(name.hash, id);
        self.block_mut(id).name = Some(name);
        let at = id.0 as usize * BLOCK_SIZE;
        self.tokens[at..at + BLOCK_SIZE].copy_from_slice(&tokens[index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE]);
    }

    /// How many of a sequence's blocks nobody else holds, so that they would be available without it.
    pub(crate) fn num_held_alone(&self, table: &[BlockId]) -> usize {
        table.iter().filter(|id| self.block(**id).ref_count == 1).count()
    }

    /// Whether a sequence that holds it may write into the block: it has it alone, and it has no name.
    pub(crate) fn is_writable(&self, id: BlockId) -> bool {
        let block = self.block(id);
        block.ref_count == 1 && block.name.is_none()
    }

    /// Whether the content of the block means nothing: nobody has it, and nobody can find it.
    pub fn is_meaningless(&self, id: BlockId) -> bool {
        let block = self.block(id);
        block.ref_count == 0 && block.name.is_none()
    }

    /// Checks everything that must always hold; `tables` are the tables of all sequences.
    ///
    /// # Panics
    /// If free, cached and referenced blocks do not add up, the list is broken, a reference count is not the number
    /// of tables the block is in, or a name does not match the tokens it stands for.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) {
        let mut num_refs = vec![0; self.blocks.len()];
        for id in tables.flatten() {
            num_refs[id.0 as usize] += 1;
        }
        let (mut num_listed, mut num_cached, mut prev, mut at) = (0, 0, None, self.head);
        while let Some(id) = at {
            let block = self.block(id);
            assert_eq!((block.ref_count, block.prev), (0, prev), "{id:?} in the list");
            num_listed += 1;
            num_cached += usize::from(block.name.is_some());
            assert!(num_listed <= self.blocks.len(), "the list bites its tail");
            (prev, at) = (at, block.next);
        }
        assert_eq!((prev, num_listed, num_cached), (self.tail, self.num_listed, self.num_cached), "the list's counts");
        let mut num_named = 0;
        for (index, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.ref_count, num_refs[index], "references to block {index}");
            num_listed += usize::from(block.ref_count > 0);
            let Some(name) = block.name else { continue };
            num_named += 1;
            assert_eq!(self.by_hash.get(&name.hash), Some(&BlockId(index as u32)), "index entry of block {index}");
            let tokens = &self.tokens[index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE];
            assert_eq!(name.parent.next(tokens), name.hash, "name of block {index}");
        }
        assert_eq!(num_listed, self.blocks.len(), "free + cached + referenced");
        assert_eq!(num_named, self.by_hash.len(), "every name is of a block");
    }

    fn prefix<'a>(
        &'a self,
        tenant: Tenant,
        tokens: &'a [TokenId],
        chain: &'a HashChain,
    ) -> impl Iterator<Item = BlockId> + 'a {
        let num_blocks_max = (tokens.len().saturating_sub(1) / BLOCK_SIZE).min(chain.hashes().len());
        (0..num_blocks_max).map_while(move |index| {
            let name = Name { hash: chain.hashes()[index], parent: chain.parent(index), tenant };
            let id = *self.by_hash.get(&name.hash)?;
            let at = id.0 as usize * BLOCK_SIZE;
            let same = self.block(id).name == Some(name)
                && self.tokens[at..at + BLOCK_SIZE] == tokens[index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE];
            same.then_some(id)
        })
    }

    fn block(&self, id: BlockId) -> &PoolBlock {
        &self.blocks[id.0 as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut PoolBlock {
        &mut self.blocks[id.0 as usize]
    }

    fn push_back(&mut self, id: BlockId) {
        let before = self.tail.replace(id);
        self.link(before, id, None);
    }

    fn push_front(&mut self, id: BlockId) {
        let after = self.head.replace(id);
        self.link(None, id, after);
    }

    fn link(&mut self, prev: BlockLink, id: BlockId, next: BlockLink) {
        let block = self.block_mut(id);
        (block.prev, block.next) = (prev, next);
        match prev {
            Some(prev) => self.block_mut(prev).next = Some(id),
            None => self.head = Some(id),
        }
        match next {
            Some(next) => self.block_mut(next).prev = Some(id),
            None => self.tail = Some(id),
        }
        self.num_listed += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let PoolBlock { prev, next, .. } = *self.block(id);
        match prev {
            Some(prev) => self.block_mut(prev).next = next,
            None => self.head = next,
        }
        match next {
            Some(next) => self.block_mut(next).prev = prev,
            None => self.tail = prev,
        }
        let block = self.block_mut(id);
        (block.prev, block.next) = (None, None);
        self.num_listed -= 1;
    }
}

#[cfg(test)]
mod tests;
