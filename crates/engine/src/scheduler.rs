//! Which tokens of which sequences make up the next step. No tensors, no clock, no randomness, no log: sequences in,
//! a batch out.
//!
//! ```text
//! schedule:  budget = max_num_batched_tokens
//!            sequences with one token to compute (decoding), oldest first: one token each;
//!                no block left -> preempt another one, maybe itself
//!            prefill budget = what is left, and if somebody decodes at most 4 for each who does
//!                (at least 32, at most prefill_tokens_per_step_max)
//!            running sequences with more to compute (prompts, forced tokens), oldest first: a chunk each; where they are
//!                of several owners, or an owner waits that has none here, each owner has its part of the budget
//! admit:     while admits() the next of the queue: a chunk, and who must make way is preempted
//! readmit:   preempted sequences that have room again: a chunk each
//! batch:     what was planned, as arrays
//! commit:    what was planned is computed; blocks that are full get their names
//! ```
//!
//! Whose turn it is to begin, and at whose cost, is in `turns`.
//!
//! The prefill bound holds only while somebody decodes: it is there to bound the time between two tokens, and with
//! nobody waiting for a token a whole budget of prefill is simply faster. It grows with the number who decode because
//! their step does: each waits a few times longer while a prompt is computed, however many they are. A token far into
//! a long prompt has more to attend to, so it counts for more than one (`attention_span`).
//!
//! Several choices of one request have the same prompt: the first computes it while the others wait in the queue, and
//! when these are admitted they take its full blocks from the cache and a copy of the one that is not full (or of all,
//! where there is no cache), so that each computes one token of the prompt, its last.
//!
//! A sequence is admitted only if there are blocks for all its tokens, and takes them at once, so only decoding can
//! run out of blocks. Tokens that a grammar forces are decoding several at once: they get their blocks as a sampled
//! one does, and are computed like a prompt's. Admission leaves a block free per running sequence, for the next one
//! each will need: without that, a newcomer would be preempted a few steps after it came. `running` is in order of age
//! when a step begins, and the oldest is never preempted for want of blocks, so it always advances; as any one request
//! fits the pool alone, every request ends.

mod turns;

use std::collections::{BTreeMap, VecDeque};

pub use turns::Newcomer;

use super::sequence::{Sequence, num_blocks_needed};
use super::share::{PlaceCounts, Share};
use crate::cache::{BLOCK_SIZE, BlockId, BlockPool};
use tallow_model::Batch;
use tallow_stream::protocol::{Tenant, TokenId};

/// The scheduler's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Most sequences at once; at least 1.
    pub max_num_seqs: usize,
    /// Most tokens in a step; at least `max_num_seqs`, so that every sequence can decode in every step.
    pub max_num_batched_tokens: usize,
    /// Most tokens of a step that are not decoding, while others decode; at least 1.
    pub prefill_tokens_per_step_max: usize,
    /// A token that attends to this many others takes twice the time of one that attends to none.
    pub attention_span: usize,
    /// A preempted sequence is passed by this many younger ones in its life, and by no more, beside those of owners that its
    /// own owes a place.
    pub passed_max: usize,
}

/// Tokens of prompts in a step for each sequence that decodes in it ...
const PREFILL_TOKENS_PER_DECODE: usize = 4;
/// ... and at least so many: fewer would read all weights for little.
const PREFILL_TOKENS_MIN: usize = 32;

/// Most rows of logits that a prompt gets in one step: a row is as long as the vocabulary.
const WANTED_PER_STEP_MAX: usize = 64;

/// A worker's sequences and blocks.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    pool: BlockPool,
    /// Oldest first when a step begins; behind those, whoever began in it.
    running: Vec<Sequence>,
    /// Preempted, oldest first.
    waiting: VecDeque<Sequence>,
    /// Of those that run.
    places: PlaceCounts,
    plan: Vec<Planned>,
    /// Blocks to be copied before the step being planned.
    copies: Vec<(BlockId, BlockId)>,
    /// Tokens of the step being planned that are still to be handed out.
    prefill_budget: usize,
    /// Whether somebody decodes in it.
    is_shared: bool,
    /// An owner without a prompt here that waits with one.
    expected: Option<Share>,
    num_preemptions: u64,
    num_fair_preemptions: u64,
    num_admitted: u64,
}

/// A sequence's part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Place in the list of running sequences.
    index: usize,
    /// The sequence.
    pub slot: usize,
    /// How many of its tokens are computed.
    pub num_tokens: usize,
    /// Whether its last token is among them, so that the next is sampled.
    pub(crate) is_sampled: bool,
    /// The first of its tokens here whose logits are wanted though another follows it ...
    first_wanted: usize,
    /// ... and how many there are of these, one after another.
    pub num_wanted: usize,
}

impl Scheduler {
    /// Nothing running, `num_blocks` free blocks.
    pub fn new(limits: SchedulerLimits, num_blocks: usize) -> Self {
        debug_assert!(limits.max_num_seqs >= 1 && limits.prefill_tokens_per_step_max >= 1);
        debug_assert!(limits.max_num_batched_tokens >= limits.max_num_seqs);
        Self {
            limits,
            pool: BlockPool::new(num_blocks),
            running: Vec::with_capacity(limits.max_num_seqs),
            waiting: VecDeque::with_capacity(limits.max_num_seqs),
            places: PlaceCounts::default(),
            plan: Vec::with_capacity(limits.max_num_seqs),
            copies: Vec::new(),
            prefill_budget: 0,
            is_shared: false,
            expected: None,
            num_preemptions: 0,
            num_fair_preemptions: 0,
            num_admitted: 0,
        }
    }

    /// Whether a request of at most `num_tokens_max` tokens can run in a pool of `num_blocks` at all. The last token
    /// sampled is never computed, so it needs no place.
    pub fn can_ever_fit(num_tokens_max: usize, num_blocks: usize) -> bool {
        num_tokens_max.saturating_sub(1) <= num_blocks * BLOCK_SIZE
    }

    /// Begins a step: plans the sequences that are here.
    pub fn schedule(&mut self) {
        self.plan.clear();
        self.running.sort_by_key(|sequence| sequence.age);
        self.plan_decoding();
        let left = self.limits.max_num_batched_tokens - self.plan.len();
        let share = (PREFILL_TOKENS_PER_DECODE * self.plan.len()).max(PREFILL_TOKENS_MIN);
        self.is_shared = !self.plan.is_empty();
        self.prefill_budget =
            if self.is_shared { left.min(share).min(self.limits.prefill_tokens_per_step_max) } else { left };
        let mut parts = self.parts_of_owners();
        for index in 0..self.running.len() {
            if self.running[index].num_remaining() > 1 {
                let part = parts.get_mut(&self.running[index].share().tenant);
                let spent = self.plan_chunk(index, part.as_deref().copied().unwrap_or(usize::MAX));
                part.into_iter().for_each(|part| *part = part.saturating_sub(spent));
            }
        }
    }

    /// Says before a step that an owner waits which has no prompt here: prompts of others leave it a part of the step. Without
    /// that, an owner whose prompts fill the step would keep it out until they are computed.
    pub fn expect(&mut self, newcomer: Option<Share>) {
        self.expected = newcomer;
    }

    /// Whether a prompt of this owner is being computed here.
    pub(crate) fn has_prompt(&self, tenant: Tenant) -> bool {
        self.running.iter().any(|sequence| sequence.share().tenant == tenant && sequence.num_remaining() > 1)
    }

    /// What of the prefill budget each owner may use, by weight; empty if there is only one to use it.
    fn parts_of_owners(&mut self) -> BTreeMap<Tenant, usize> {
        let prompts = self.running.iter().filter(|sequence| sequence.num_remaining() > 1).map(Sequence::share);
        let weights: BTreeMap<Tenant, u64> =
            prompts.chain(self.expected.take()).map(|share| (share.tenant, u64::from(share.weight.max(1)))).collect();
        if weights.len() < 2 {
            return BTreeMap::new();
        }
        let total: u64 = weights.values().sum();
        let part = |weight: u64| (self.prefill_budget as u64 * weight / total).max(1) as usize;
        weights.into_iter().map(|(tenant, weight)| (tenant, part(weight))).collect()
    }

    /// Whether the sequence in `slot` runs and has its first `num_tokens` tokens not computed yet: who shares them
    /// waits for it.
    pub(crate) fn is_computing(&self, slot: usize, num_tokens: usize) -> bool {
        self.find(slot).is_some_and(|leader| leader.num_computed_tokens() < num_tokens)
    }

    fn find(&self, slot: usize) -> Option<&Sequence> {
        self.running.iter().find(|sequence| sequence.slot() == slot)
    }

    /// The step as the model wants it.
    pub fn build(&mut self, batch: &mut Batch) {
        batch.clear();
        for planned in &self.plan {
            self.running[planned.index].append_to(batch, planned.num_tokens, &self.pool);
        }
        batch.copies.append(&mut self.copies);
        assert!(batch.num_tokens() <= self.limits.max_num_batched_tokens, "a step over budget");
        assert!(self.running.len() <= self.limits.max_num_seqs, "too many sequences");
    }

    /// What the step being planned, or the one just computed, consists of, in the batch's order.
    pub fn plan(&self) -> &[Planned] {
        &self.plan
    }

    /// The part in the step of a sequence that runs, has all its tokens computed, and has not sampled the next one yet.
    pub(crate) fn standing(&self, slot: usize) -> Option<Planned> {
        let index = self.running.iter().position(|sequence| sequence.slot() == slot)?;
        let is_standing = self.running[index].num_remaining() == 0;
        let planned = Planned { index, slot, num_tokens: 0, is_sampled: true, first_wanted: 0, num_wanted: 0 };
        is_standing.then_some(planned)
    }

    /// Notes that the step was computed.
    pub fn commit(&mut self) {
        for planned in &self.plan {
            self.running[planned.index].advance(planned.num_tokens, &mut self.pool);
        }
    }

    /// The tokens that the wanted rows of one of the step's sequences tell of, once it is committed.
    pub(crate) fn wanted_tokens(&self, planned: Planned) -> impl Iterator<Item = TokenId> {
        let Planned { index, num_tokens, first_wanted, num_wanted, .. } = planned;
        let followers = first_wanted + 1..first_wanted + 1 + num_wanted;
        followers.map(move |i| self.running[index].computed_token(num_tokens, i))
    }

    /// Adds the token sampled for one of the step's sequences.
    pub fn push_token(&mut self, planned: Planned, token: TokenId) {
        self.running[planned.index].push_token(token);
    }

    /// Adds a token that must come to one of the step's sequences; it is computed in the next step.
    pub(crate) fn push_forced(&mut self, planned: Planned, token: TokenId) {
        self.running[planned.index].push_forced(token);
    }

    /// Takes a sequence out and frees its blocks. The plan is void after that.
    pub fn remove(&mut self, slot: usize) {
        let running = self.running.iter().position(|s| s.slot() == slot);
        let removed = match running {
            Some(index) => {
                self.places.remove(self.running[index].share().tenant);
                Some(self.running.remove(index))
            }
            None => self.waiting.iter().position(|s| s.slot() == slot).and_then(|index| self.waiting.remove(index)),
        };
        removed.expect("the sequence is here").release_blocks(&mut self.pool);
        self.plan.clear();
    }

    /// Sequences that take part in steps.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Preempted sequences.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that take part in steps.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Preempted sequences, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = &Sequence> {
        self.waiting.iter()
    }

    /// Preemptions for want of blocks so far.
    pub fn num_preemptions(&self) -> u64 {
        self.num_preemptions
    }

    /// Preemptions for the sake of another owner so far.
    pub(crate) fn num_fair_preemptions(&self) -> u64 {
        self.num_fair_preemptions
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Checks the pool against the tables of all sequences, and what is noted of these.
    ///
    /// # Panics
    /// If something is wrong.
    pub fn check(&self) {
        self.pool.check(self.tables());
        assert!(self.waiting.iter().all(|s| s.block_table().is_empty()), "a waiting sequence holds blocks");
        assert!(self.waiting.iter().map(|s| s.age).is_sorted(), "an older sequence stands behind a younger one");
        assert!(self.running.len() + self.waiting.len() <= self.num_in_flight_max(), "too many sequences");
        let mut all = self.running.iter().chain(&self.waiting);
        assert!(all.all(|s| s.num_passed() <= self.limits.passed_max), "a sequence was passed too often");
        for (tenant, num_places) in self.places.counts() {
            let num_running = self.running.iter().filter(|s| s.share().tenant == tenant).count();
            assert_eq!(num_places, num_running, "places of {tenant:?}");
        }
        let num_places: usize = self.places.counts().map(|(_, num_places)| num_places).sum();
        assert_eq!(num_places, self.running.len(), "places of somebody who has none");
    }

    fn tables(&self) -> impl Iterator<Item = &[BlockId]> {
        self.running.iter().map(Sequence::block_table)
    }

    fn plan_decoding(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            index = self.plan_next(index);
        }
    }

    /// Gets sequence `index` blocks for all its tokens, at the cost of others or its own, and plans it if it decodes.
    /// Returns the index of the one behind it.
    fn plan_next(&mut self, mut index: usize) -> usize {
        // Whoever came with its prompt has its blocks; what a grammar forced since then needs some.
        while self.running[index].needs_block() {
            if let Some(id) = self.pool.allocate() {
                self.running[index].push_block(id);
                continue;
            }
            let payer = self.payer();
            self.preempt(payer);
            self.num_preemptions += 1;
            if payer == index {
                return index;
            }
            index -= usize::from(payer < index);
        }
        if self.running[index].num_remaining() == 1 {
            self.push_plan(index, 1);
        }
        index + 1
    }

    /// Plans a chunk that costs at most `part` of the budget; returns what it costs.
    fn plan_chunk(&mut self, index: usize, part: usize) -> usize {
        let budget = self.prefill_budget.min(part);
        if budget == 0 {
            return 0;
        }
        let sequence = &self.running[index];
        let attended = if self.is_shared { sequence.num_computed_tokens() } else { 0 };
        let cost = 1.0 + attended as f64 / self.limits.attention_span as f64;
        let affordable = ((budget as f64 / cost) as usize).max(1);
        let num_tokens = sequence.num_remaining().min(affordable);
        let num_tokens = if sequence.wants_logits() { num_tokens.min(WANTED_PER_STEP_MAX) } else { num_tokens };
        let spent = (num_tokens as f64 * cost).ceil() as usize;
        self.prefill_budget = self.prefill_budget.saturating_sub(spent);
        self.push_plan(index, num_tokens);
        spent
    }

    fn push_plan(&mut self, index: usize, num_tokens: usize) {
        let sequence = &self.running[index];
        let is_sampled = sequence.num_remaining() == num_tokens;
        let wanted = sequence.wanted_among(num_tokens);
        let (first_wanted, num_wanted) = (wanted.start, wanted.len());
        self.plan.push(Planned { index, slot: sequence.slot(), num_tokens, is_sampled, first_wanted, num_wanted });
    }
}

#[cfg(test)]
mod tests;
