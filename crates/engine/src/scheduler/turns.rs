//! Who begins next, and who makes way for it. One owner alone is served in order of age: its preempted sequences before
//! its newcomers. Between owners places are shared (`share`):
//!
//! ```text
//! next:      of the preempted, those of the owner with the smallest claim, oldest first; but an older one that was passed
//!            `passed_max` times goes before it, unless its owner owes a place
//! newcomer:  goes before the next preempted one if its owner's claim is smaller, with the same exception
//! way:       while there is no place, or there are too few blocks: of all that make way, the youngest of the owner with
//!            the largest claim is preempted, if there are enough of them
//! makes way: a sequence whose owner owes one to whoever begins, that got a token since it last began or waits for the
//!            mask of its first
//! ```
//! To be passed by an owner that is owed a place does not count: else one that sends short requests, each of them in
//! its right, would soon have no right any more.
//!
//! Why every request ends: for each fair preemption somebody got a token, so there are no more of them than tokens. For
//! blocks the oldest that runs is never preempted, so it advances until it ends or an older one begins.

use super::{Scheduler, num_blocks_needed};
use crate::cache::{BLOCK_SIZE, HashChain};
use crate::sequence::Sequence;
use crate::share::Share;
use tallow_stream::protocol::TokenId;

/// Sequences that run or are preempted, for each place: a newcomer may preempt only while there are fewer.
const IN_FLIGHT_PER_PLACE: usize = 2;

/// Most sequences that are preempted for one that begins.
const YIELDING_MAX: usize = 16;

/// A request that waits in the queue.
#[derive(Debug, Clone, Copy)]
pub struct Newcomer<'a> {
    /// Whose it is.
    pub share: Share,
    /// Its tokens.
    pub prompt: &'a [TokenId],
    /// Names of the prompt's full blocks, where the prefix cache is on.
    pub chain: Option<&'a HashChain>,
}

impl Scheduler {
    /// Most sequences that are here at once, running and preempted.
    pub fn num_in_flight_max(&self) -> usize {
        IN_FLIGHT_PER_PLACE * self.limits.max_num_seqs
    }

    /// Whether a newcomer can take part in the step being planned, at the cost of others where these must make way.
    pub(crate) fn admits(&self, newcomer: Newcomer<'_>) -> bool {
        let Newcomer { share, prompt, chain } = newcomer;
        if self.prefill_budget == 0
            || self.running.len() + self.waiting.len() >= self.num_in_flight_max()
            || !self.goes_before_waiting(share)
        {
            return false;
        }
        // First without asking the cache, which is rarely needed.
        self.has_room(self.running.len(), self.pool.num_available(), prompt.len().div_ceil(BLOCK_SIZE))
            || self.way(share, num_blocks_needed(share.tenant, prompt, chain, &self.pool)).is_some()
    }

    /// Whether a newcomer may pass the next of the queue, which cannot begin now: if its owner has less. The other one
    /// has a place then, so nobody is passed who has nothing.
    pub(crate) fn may_pass(&self, newcomer: Share, next: Share) -> bool {
        self.places.claim(newcomer) < self.places.claim(next)
    }

    /// Takes a newcomer (see `Scheduler::admits`) into the step being planned; returns how many of its tokens the
    /// prefix cache had.
    pub fn admit(&mut self, mut sequence: Sequence) -> usize {
        let num_blocks = sequence.num_blocks_needed(&self.pool);
        let way = self.way(sequence.share(), num_blocks).expect("admission without room");
        sequence.age = self.num_admitted;
        self.num_admitted += 1;
        self.start(way, sequence)
    }

    /// Takes the next preempted sequence into the step being planned; false if there is none, or no room for it.
    pub(crate) fn readmit(&mut self) -> bool {
        let Some(index) = self.next_waiting().filter(|_| self.prefill_budget > 0) else { return false };
        let next = &self.waiting[index];
        let Some(way) = self.way(next.share(), next.num_blocks_needed(&self.pool)) else { return false };
        let next = self.waiting.remove(index).expect("looked at just now");
        self.start(way, next);
        true
    }

    /// Preempts `way`, and begins. Returns how many of its tokens need not be computed.
    fn start(&mut self, mut way: Vec<usize>, mut sequence: Sequence) -> usize {
        // By what each had when it was decided who begins.
        let places = self.places.clone();
        way.sort_unstable();
        self.num_fair_preemptions += way.len() as u64;
        way.into_iter().rev().for_each(|index| self.preempt(index));
        let is_passed = |s: &&mut Sequence| s.age < sequence.age && !places.owes(s.share(), sequence.share());
        self.waiting.iter_mut().filter(is_passed).for_each(|passed| passed.num_passed += 1);
        sequence.take_blocks(&mut self.pool);
        let slot = sequence.leader.take();
        let leader = slot.and_then(|slot| self.running.iter().find(|running| running.slot() == slot));
        if let Some(leader) = leader.filter(|leader| leader.num_computed_tokens() + 1 >= sequence.num_tokens()) {
            sequence.share_prompt(leader, &mut self.copies);
        }
        let found = sequence.num_computed_tokens();
        self.places.add(sequence.share());
        self.running.push(sequence);
        self.plan_chunk(self.running.len() - 1, usize::MAX);
        found
    }

    /// Who pays with its blocks for an older one's next: the youngest of the owner with the largest claim, but not the
    /// oldest of all.
    pub(super) fn payer(&self) -> usize {
        let claim = |index: &usize| (self.places.claim(self.running[*index].share()), self.running[*index].age);
        (1..self.running.len()).max_by_key(claim).unwrap_or_default()
    }

    /// Takes a sequence out of the step and its blocks from it.
    pub(super) fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        sequence.release_blocks(&mut self.pool);
        self.places.remove(sequence.share().tenant);
        let at = self.waiting.partition_point(|waiting| waiting.age < sequence.age);
        self.waiting.insert(at, sequence);
        self.plan.retain(|planned| planned.index != index);
        self.plan.iter_mut().filter(|planned| planned.index > index).for_each(|planned| planned.index -= 1);
    }

    fn next_waiting(&self) -> Option<usize> {
        let turn = |index: &usize| (self.places.claim(self.waiting[*index].share()), self.waiting[*index].age);
        let mut next = (0..self.waiting.len()).min_by_key(turn)?;
        // Each is older than the one before, so this ends.
        while let Some(older) = self.waiting.iter().take(next).position(|s| self.is_due(s, self.waiting[next].share()))
        {
            next = older;
        }
        Some(next)
    }

    fn goes_before_waiting(&self, share: Share) -> bool {
        let claim = self.places.claim(share);
        !self.waiting.iter().any(|sequence| self.is_due(sequence, share))
            && self.next_waiting().is_none_or(|index| claim < self.places.claim(self.waiting[index].share()))
    }

    /// Whether it was passed so often that nobody younger of this owner may go before it any more. Who is owed a place by its
    /// owner may: that one has more than its part, however often it gives of it.
    fn is_due(&self, sequence: &Sequence, newcomer: Share) -> bool {
        sequence.num_passed >= self.limits.passed_max && !self.places.owes(sequence.share(), newcomer)
    }

    /// Who makes way for one of this owner that needs so many blocks: nobody if there is room, `None` if there is none
    /// to be made.
    fn way(&self, share: Share, num_blocks: usize) -> Option<Vec<usize>> {
        let (mut num_running, mut num_available) = (self.running.len(), self.pool.num_available());
        if self.has_room(num_running, num_available, num_blocks) {
            return Some(Vec::new());
        }
        if !self.places.is_owed(share) {
            return None;
        }
        let (mut way, mut places) = (Vec::new(), self.places.clone());
        while !self.has_room(num_running, num_available, num_blocks) {
            let makes_way = |index: &usize| {
                let sequence = &self.running[*index];
                (sequence.has_advanced() || sequence.num_remaining() == 0)
                    && !way.contains(index)
                    && places.owes(sequence.share(), share)
            };
            let claim = |index: &usize| (places.claim(self.running[*index].share()), self.running[*index].age);
            let index = (0..self.running.len()).filter(makes_way).max_by_key(claim)?;
            let sequence = &self.running[index];
            num_running -= 1;
            num_available += self.pool.num_held_alone(sequence.block_table());
            places.remove(sequence.share().tenant);
            way.push(index);
            if way.len() > YIELDING_MAX {
                return None;
            }
        }
        Some(way)
    }

    /// Whether another one has a place beside so many that run, and each of these still gets its next block.
    fn has_room(&self, num_running: usize, num_available: usize, num_blocks: usize) -> bool {
        num_running < self.limits.max_num_seqs && num_blocks + num_running <= num_available
    }
}
