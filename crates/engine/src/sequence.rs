//! A request as the scheduler sees it: how many tokens there are, how many of them are computed, and in which blocks.
//! There is no prefill and no decode, only tokens that are not computed yet.

use std::ops::Range;

use super::share::Share;
use crate::cache::{BLOCK_SIZE, BlockId, BlockPool, HashChain};
use tallow_model::Batch;
use tallow_stream::protocol::{Tenant, TokenId};

/// One request in flight.
#[derive(Debug)]
pub struct Sequence {
    slot: usize,
    share: Share,
    /// The slot of a sequence with the same prompt, until it was asked for what it has computed.
    pub(super) leader: Option<usize>,
    /// How many were admitted before it; the scheduler counts.
    pub(super) age: u64,
    /// How many younger ones began while it was preempted, beside those of owners that its own owes a place.
    pub(super) num_passed: usize,
    /// Whether it got a token since it last began.
    has_advanced: bool,
    /// Prompt, then output.
    tokens: Vec<TokenId>,
    num_computed_tokens: usize,
    block_table: Vec<BlockId>,
    /// Names of the full blocks; absent where the prefix cache is off.
    chain: Option<HashChain>,
    /// Positions whose logits are wanted besides the last token's; they shrink from the front as they are computed.
    wanted: Range<usize>,
    /// Whether even the last token's logits are of no use: its prompt is only to be computed.
    is_silent: bool,
    /// Blocks at the beginning of the table that have been named, or were found named.
    num_named_blocks: usize,
}

impl Sequence {
    /// A sequence that can grow to `num_tokens_max` without allocating. `slot` is its owner's name for it; `chain`
    /// names the prompt's full blocks.
    pub fn new(
        slot: usize,
        share: Share,
        mut prompt: Vec<TokenId>,
        num_tokens_max: usize,
        mut chain: Option<HashChain>,
    ) -> Self {
        prompt.reserve_exact(num_tokens_max.saturating_sub(prompt.len()));
        if let Some(chain) = &mut chain {
            chain.reserve(num_tokens_max);
        }
        let block_table = Vec::with_capacity(num_tokens_max.div_ceil(BLOCK_SIZE));
        Self {
            slot,
            share,
            leader: None,
            age: 0,
            num_passed: 0,
            has_advanced: false,
            tokens: prompt,
            num_computed_tokens: 0,
            block_table,
            chain,
            wanted: 0..0,
            is_silent: false,
            num_named_blocks: 0,
        }
    }

    /// Shares the prompt of the sequence in this slot.
    pub fn follow(&mut self, leader: usize) {
        self.leader = Some(leader);
    }

    /// Wants the logits that tell how likely each of its tokens so far was, all but the first.
    pub(crate) fn want_prompt_logits(&mut self) {
        debug_assert!(self.chain.is_none(), "what is found in the cache is not computed");
        self.wanted = 0..self.tokens.len() - 1;
    }

    /// Wants no logits at all.
    pub(crate) fn want_no_logits(&mut self) {
        debug_assert!(self.chain.is_none(), "what is found in the cache is not computed");
        self.is_silent = true;
    }

    /// Whether any are still to come.
    pub(super) fn wants_logits(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Those of the next `num_tokens` whose logits are wanted though another follows.
    pub(super) fn wanted_among(&self, num_tokens: usize) -> Range<usize> {
        let begin = self.num_computed_tokens;
        let first = self.wanted.start.max(begin) - begin;
        first..self.wanted.end.saturating_sub(begin).min(num_tokens).max(first)
    }

    /// Token `index` of the `num_tokens` that were computed last, or one after them.
    pub(super) fn computed_token(&self, num_tokens: usize, index: usize) -> TokenId {
        self.tokens[self.num_computed_tokens - num_tokens + index]
    }

    /// Its owner's name for it.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Whose it is.
    pub fn share(&self) -> Share {
        self.share
    }

    /// How many younger ones began while it was preempted, in all its life, beside those of owners that its own owes a
    /// place.
    pub fn num_passed(&self) -> usize {
        self.num_passed
    }

    /// Whether it got a token since it last began, so that beginning was not for nothing.
    pub fn has_advanced(&self) -> bool {
        self.has_advanced
    }

    /// Tokens there are.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens whose keys and values are in the cache.
    pub(crate) fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens
    }

    /// Tokens still to be computed. None if the next is still to be chosen from the logits of the last.
    pub fn num_remaining(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Its blocks, in order of position.
    pub fn block_table(&self) -> &[BlockId] {
        &self.block_table
    }

    /// Whether some of its tokens have no block yet: the next one, or those that a grammar forced.
    pub(super) fn needs_block(&self) -> bool {
        self.tokens.len() > self.block_table.len() * BLOCK_SIZE
    }

    pub(super) fn push_block(&mut self, id: BlockId) {
        self.block_table.push(id);
    }

    /// Blocks that would have to be taken from the free list for all its tokens, cached ones included.
    pub(super) fn num_blocks_needed(&self, pool: &BlockPool) -> usize {
        num_blocks_needed(self.share.tenant, &self.tokens, self.chain.as_ref(), pool)
    }

    /// Takes blocks for all its tokens: what the prefix cache has, and new ones for the rest.
    ///
    /// # Panics
    /// If there are not enough.
    pub(super) fn take_blocks(&mut self, pool: &mut BlockPool) {
        debug_assert!(self.block_table.is_empty() && self.num_computed_tokens == 0);
        self.has_advanced = false;
        if let Some(chain) = &self.chain {
            self.num_named_blocks = pool.take_prefix(self.share.tenant, &self.tokens, chain, &mut self.block_table);
        }
        self.num_computed_tokens = self.num_named_blocks * BLOCK_SIZE;
        while self.block_table.len() * BLOCK_SIZE < self.tokens.len() {
            self.block_table.push(pool.allocate().expect("admission made sure of enough blocks"));
        }
    }

    /// Takes over what `leader` has computed of the same prompt, all but the last token, whose logits are wanted: its
    /// own blocks get copies, which are added to `copies`. What was found in the cache stays shared.
    pub(super) fn share_prompt(&mut self, leader: &Self, copies: &mut Vec<(BlockId, BlockId)>) {
        let num_shared = self.tokens.len() - 1;
        debug_assert!(leader.tokens.starts_with(&self.tokens) && leader.num_computed_tokens >= num_shared);
        if num_shared <= self.num_computed_tokens {
            return;
        }
        let own = self.num_named_blocks..num_shared.div_ceil(BLOCK_SIZE);
        copies.extend(own.map(|index| (leader.block_table[index], self.block_table[index])));
        self.num_computed_tokens = num_shared;
    }

    /// Gives all blocks back and forgets that anything was computed; the tokens stay.
    pub(super) fn release_blocks(&mut self, pool: &mut BlockPool) {
        pool.release_all(&mut self.block_table);
        self.num_computed_tokens = 0;
        self.num_named_blocks = 0;
    }

    /// Puts the next `num_tokens` into the batch, with logits of the last where that is the sequence's last.
    pub(super) fn append_to(&self, batch: &mut Batch, num_tokens: usize, pool: &BlockPool) {
        let range = self.num_computed_tokens..self.num_computed_tokens + num_tokens;
        batch.token_ids.extend_from_slice(&self.tokens[range.clone()]);
        batch.positions.extend(range.clone().map(|position| position as u32));
        batch.slot_mapping.extend(range.clone().map(|position| {
            let block = self.block_table[position / BLOCK_SIZE];
            debug_assert!(pool.is_writable(block), "{block:?} is shared or named and must not be written");
            block.0 * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
        }));
        batch.cu_seqlens.push(batch.token_ids.len() as u32);
        batch.block_tables.extend_from_slice(&self.block_table[..range.end.div_ceil(BLOCK_SIZE)]);
        batch.cu_blocks.push(batch.block_tables.len() as u32);
        let first_row = batch.token_ids.len() - num_tokens;
        batch.logits_indices.extend(self.wanted_among(num_tokens).map(|row| (first_row + row) as u32));
        if range.end == self.tokens.len() && !self.is_silent {
            batch.logits_indices.push(batch.token_ids.len() as u32 - 1);
        }
    }

    /// Notes that the next `num_tokens` are computed, and names the blocks that are full now.
    pub(super) fn advance(&mut self, num_tokens: usize, pool: &mut BlockPool) {
        self.num_computed_tokens += num_tokens;
        self.wanted.start = self.wanted.start.max(self.num_computed_tokens).min(self.wanted.end);
        let Some(chain) = &mut self.chain else { return };
        chain.extend(&self.tokens);
        while (self.num_named_blocks + 1) * BLOCK_SIZE <= self.num_computed_tokens {
            let index = self.num_named_blocks;
            pool.register(self.block_table[index], self.share.tenant, &self.tokens, chain, index);
            self.num_named_blocks += 1;
        }
    }

    /// Adds a sampled token.
    pub(super) fn push_token(&mut self, token: TokenId) {
        debug_assert_eq!(self.num_remaining(), 0, "a token is sampled once all before it are computed");
        self.has_advanced = true;
        self.tokens.push(token);
    }

    /// Adds a token that must come, whatever the logits behind those before it.
    pub(super) fn push_forced(&mut self, token: TokenId) {
        self.has_advanced = true;
        self.tokens.push(token);
    }
}

/// Blocks that would have to be taken from the free list to hold `tokens`, cached ones included.
pub(super) fn num_blocks_needed(
    tenant: Tenant,
    tokens: &[TokenId],
    chain: Option<&HashChain>,
    pool: &BlockPool,
) -> usize {
    let hit = chain.map(|chain| pool.find_prefix(tenant, tokens, chain)).unwrap_or_default();
    tokens.len().div_ceil(BLOCK_SIZE) - hit.num_blocks + hit.num_unreferenced
}
