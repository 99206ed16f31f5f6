//! The scheduler alone, driven step by step; the simulation tests whole schedules.

use super::*;
use crate::cache::HashChain;
use crate::share::Share;
use tallow_stream::protocol::Tenant;

const LIMITS: SchedulerLimits = SchedulerLimits {
    max_num_seqs: 4,
    max_num_batched_tokens: 64,
    prefill_tokens_per_step_max: 16,
    attention_span: usize::MAX,
    passed_max: 3,
};

struct Driver {
    scheduler: Scheduler,
    batch: Batch,
    next_token: TokenId,
}

impl Driver {
    fn new(limits: SchedulerLimits, num_blocks: usize) -> Self {
        Self { scheduler: Scheduler::new(limits, num_blocks), batch: Batch::default(), next_token: 0 }
    }

    /// Admits a sequence within the step being planned, if there is room for it; returns the number of cached tokens.
    fn admit(&mut self, slot: usize, prompt: &[TokenId]) -> Option<usize> {
        self.admit_of(FIRST, slot, prompt)
    }

    fn admit_of(&mut self, share: Share, slot: usize, prompt: &[TokenId]) -> Option<usize> {
        let chain = HashChain::new(share.tenant, prompt);
        let ok = self.scheduler.admits(Newcomer { share, prompt, chain: Some(&chain) });
        ok.then(|| self.scheduler.admit(Sequence::new(slot, share, prompt.to_vec(), 500, Some(chain))))
    }

    /// Runs the planned step; returns (slot, tokens computed) in the batch's order.
    fn run(&mut self) -> Vec<(usize, usize)> {
        self.scheduler.build(&mut self.batch);
        self.scheduler.commit();
        let plan = self.scheduler.plan().to_vec();
        for planned in plan.iter().filter(|p| p.is_sampled) {
            self.next_token += 1;
            self.scheduler.push_token(*planned, self.next_token);
        }
        self.scheduler.check();
        plan.iter().map(|p| (p.slot, p.num_tokens)).collect()
    }

    /// A step without newcomers.
    fn step(&mut self) -> Vec<(usize, usize)> {
        self.scheduler.schedule();
        while self.scheduler.readmit() {}
        self.run()
    }

    /// A step with one newcomer, if it is admitted.
    fn step_with(&mut self, share: Share, slot: usize) -> Vec<(usize, usize)> {
        self.scheduler.schedule();
        self.admit_of(share, slot, &prompt(4, slot as u32));
        while self.scheduler.readmit() {}
        self.run()
    }

    fn running(&self) -> Vec<usize> {
        self.scheduler.running().iter().map(Sequence::slot).collect()
    }

    fn waiting(&self) -> Vec<usize> {
        self.scheduler.waiting().map(Sequence::slot).collect()
    }
}

const FIRST: Share = Share { tenant: Tenant(0), weight: 1 };
const SECOND: Share = Share { tenant: Tenant(1), weight: 1 };
const HEAVY: Share = Share { tenant: Tenant(2), weight: 3 };

fn prompt(n: usize, salt: u32) -> Vec<TokenId> {
    (0..n as u32).map(|i| i + 1000 * salt).collect()
}

#[test]
fn a_prompt_is_computed_in_chunks_of_the_whole_budget_when_nobody_decodes() {
    let mut d = Driver::new(LIMITS, 16);
    d.scheduler.schedule();
    assert_eq!(d.admit(0, &prompt(150, 1)), Some(0));
    assert_eq!(d.run(), [(0, 64)]);
    assert!(d.batch.logits_indices.is_empty(), "nothing to sample yet");
    assert_eq!([d.step(), d.step(), d.step()], [[(0, 64)], [(0, 22)], [(0, 1)]]);
}

#[test]
fn decoding_comes_first_and_bounds_the_prefill_beside_it() {
    let mut d = Driver::new(LIMITS, 16);
    d.scheduler.schedule();
    d.admit(0, &prompt(5, 1));
    assert_eq!(d.run(), [(0, 5)]);
    d.scheduler.schedule();
    d.admit(1, &prompt(40, 2));
    assert_eq!(d.admit(2, &prompt(5, 3)), None, "the prefill share of this step is used up");
    assert_eq!(d.run(), [(0, 1), (1, 16)]);
    assert_eq!(d.step(), [(0, 1), (1, 16)]);
    d.scheduler.schedule();
    assert_eq!(d.admit(2, &prompt(5, 3)), Some(0));
    assert_eq!(d.run(), [(0, 1), (1, 8), (2, 5)]);
    assert_eq!(d.step(), [(0, 1), (1, 1), (2, 1)]);
}

#[test]
fn prompts_of_one_owner_leave_a_part_of_each_step_to_another() {
    let mut d = Driver::new(LIMITS, 64);
    d.scheduler.schedule();
    assert_eq!(d.admit(0, &prompt(500, 1)), Some(0));
    assert_eq!(d.run(), [(0, 64)], "alone it has all");
    d.scheduler.schedule();
    assert_eq!(d.admit_of(SECOND, 1, &prompt(70, 2)), None, "its next chunk takes the whole step");
    assert_eq!(d.run(), [(0, 64)]);
    d.scheduler.expect(Some(SECOND));
    d.scheduler.schedule();
    assert_eq!(d.admit_of(SECOND, 1, &prompt(70, 2)), Some(0));
    assert_eq!(d.run(), [(0, 32), (1, 32)]);
    assert_eq!(d.step(), [(0, 32), (1, 32)], "while both have prompts, each has its part");
    d.scheduler.expect(Some(HEAVY));
    d.scheduler.schedule();
    assert_eq!(d.admit_of(HEAVY, 2, &prompt(100, 3)), Some(0));
    assert_eq!(d.run(), [(0, 12), (1, 6), (2, 46)], "by weight, and what is left goes to who begins");
}

#[test]
fn who_waits_with_a_prompt_is_told_from_who_only_decodes() {
    let mut d = Driver::new(LIMITS, 64);
    d.scheduler.schedule();
    assert_eq!(d.admit_of(SECOND, 0, &prompt(4, 1)), Some(0));
    d.run();
    d.scheduler.schedule();
    assert_eq!(d.admit(1, &prompt(500, 2)), Some(0));
    d.run();
    assert!(d.scheduler.has_prompt(FIRST.tenant) && !d.scheduler.has_prompt(SECOND.tenant));
    // The owner is expected with its second request too, while its first one decodes.
    d.scheduler.expect(Some(SECOND));
    d.scheduler.schedule();
    assert_eq!(d.admit_of(SECOND, 2, &prompt(4, 3)), Some(0));
}

#[test]
fn slots_and_blocks_bound_admission() {
    let mut d = Driver::new(LIMITS, 16);
    d.scheduler.schedule();
    for slot in 0..4 {
        assert_eq!(d.admit(slot, &prompt(4, slot as u32)), Some(0));
    }
    assert_eq!(d.admit(4, &prompt(4, 4)), None, "no place");
    let mut d = Driver::new(LIMITS, 3);
    d.scheduler.schedule();
    assert_eq!(d.admit(0, &prompt(40, 0)), Some(0));
    assert_eq!(d.admit(1, &prompt(4, 1)), None, "the last block is the running one's next");
}

#[test]
fn the_youngest_is_preempted_keeps_its_tokens_and_comes_back_first() {
    let limits = SchedulerLimits { max_num_batched_tokens: 256, ..LIMITS };
    let mut d = Driver::new(limits, 4);
    d.scheduler.schedule();
    d.admit(0, &prompt(31, 0));
    d.admit(1, &prompt(31, 1));
    d.run();
    for _ in 0..33 {
        assert_eq!(d.step(), [(0, 1), (1, 1)]);
    }
    assert_eq!(d.scheduler.pool().num_available(), 0);
    assert_eq!(d.step(), [(0, 1)], "65 tokens need a third block");
    assert_eq!((d.scheduler.num_running(), d.scheduler.num_waiting(), d.scheduler.num_preemptions()), (1, 1, 1));
    d.scheduler.schedule();
    assert_eq!(d.admit(2, &prompt(1, 2)), None, "newcomers stand behind the preempted");
    assert_eq!(d.run(), [(0, 1)]);
    assert_eq!(d.scheduler.num_waiting(), 1, "no blocks yet");
    d.scheduler.remove(0);
    // Its 65 tokens filled two blocks; the survivor took one of them.
    assert_eq!(d.step(), [(1, 33)]);
    assert_eq!(d.batch.positions[0], 32, "the rest came from the cache");
    assert_eq!(d.step(), [(1, 1)]);
}

#[test]
fn one_sequence_may_use_the_whole_pool() {
    let mut d = Driver::new(LIMITS, 2);
    d.scheduler.schedule();
    assert_eq!(d.admit(0, &prompt(40, 0)), Some(0));
    d.run();
    for _ in 40..64 {
        assert_eq!(d.step(), [(0, 1)]);
    }
    assert!(Scheduler::can_ever_fit(65, 2) && !Scheduler::can_ever_fit(66, 2));
}

#[test]
fn a_cached_beginning_is_not_computed_again_and_is_shared() {
    let mut d = Driver::new(LIMITS, 16);
    d.scheduler.schedule();
    d.admit(0, &prompt(64, 0));
    d.run();
    d.scheduler.schedule();
    assert_eq!(d.admit(1, &prompt(64, 0)), Some(32), "the block with the last token is computed");
    assert_eq!(d.run(), [(0, 1), (1, 16)]);
    assert_eq!(d.batch.block_table(0)[0], d.batch.block_table(1)[0]);
    assert_ne!(d.batch.block_table(0)[1], d.batch.block_table(1)[1]);
}

#[test]
fn the_batch_names_the_slots_of_the_tables() {
    let mut d = Driver::new(LIMITS, 16);
    d.scheduler.schedule();
    d.admit(0, &prompt(40, 0));
    d.admit(1, &prompt(3, 1));
    d.run();
    let b = &d.batch;
    assert_eq!((b.num_seqs(), b.num_tokens()), (2, 43));
    assert_eq!(
        (&b.cu_seqlens[..], &b.cu_blocks[..], &b.logits_indices[..]),
        (&[0, 40, 43][..], &[0, 2, 3][..], &[39, 42][..])
    );
    for seq in 0..2 {
        for row in b.rows(seq) {
            let position = b.positions[row] as usize;
            let block = b.block_table(seq)[position / BLOCK_SIZE].0 as usize;
            assert_eq!(b.slot_mapping[row] as usize, block * BLOCK_SIZE + position % BLOCK_SIZE);
        }
    }
}

#[test]
fn a_prompt_gets_a_share_for_each_who_decodes_and_less_the_further_it_is() {
    let limits = SchedulerLimits {
        max_num_seqs: 32,
        max_num_batched_tokens: 512,
        prefill_tokens_per_step_max: 100,
        attention_span: 64,
        passed_max: 3,
    };
    for (num_decoding, first_chunk) in [(1, 32), (8, 32), (16, 64), (30, 100)] {
        let mut d = Driver::new(limits, 128);
        d.scheduler.schedule();
        for slot in 0..num_decoding {
            assert_eq!(d.admit(slot, &prompt(2, slot as u32)), Some(0));
        }
        d.run();
        d.scheduler.schedule();
        assert_eq!(d.admit(99, &prompt(400, 99)), Some(0));
        let chunk = |step: Vec<(usize, usize)>| step.iter().find(|(slot, _)| *slot == 99).expect("a chunk").1;
        let first = chunk(d.run());
        assert_eq!(first, first_chunk);
        // Each token of the second chunk attends to `first` others and counts for 1 + first / 64.
        assert_eq!(chunk(d.step()), first_chunk * 64 / (64 + first));
    }
}

/// The first owner has all four places, and each of its sequences a token.
fn full(limits: SchedulerLimits) -> Driver {
    let mut d = Driver::new(limits, 32);
    d.scheduler.schedule();
    (0..4).for_each(|slot| assert!(d.admit(slot, &prompt(4, slot as u32)).is_some()));
    d.run();
    d
}

#[test]
fn an_owner_is_given_its_share_of_the_places_and_no_more() {
    let mut d = full(SchedulerLimits { passed_max: 64, ..LIMITS });
    d.step_with(SECOND, 10);
    assert_eq!((d.running(), d.waiting()), (vec![0, 1, 2, 10], vec![3]));
    d.step_with(SECOND, 11);
    assert_eq!((d.running(), d.waiting()), (vec![0, 1, 10, 11], vec![2, 3]));
    d.step_with(SECOND, 12);
    assert_eq!((d.running(), d.waiting()), (vec![0, 1, 10, 11], vec![2, 3]), "two each");
    // The heavy owner should have 12 / 5 of 4 places beside two owners of weight 1.
    d.step_with(HEAVY, 20);
    d.step_with(HEAVY, 21);
    d.step_with(HEAVY, 22);
    assert_eq!((d.running(), d.waiting()), (vec![0, 10, 20, 21], vec![1, 2, 3, 11]));
    assert_eq!((d.scheduler.num_fair_preemptions(), d.scheduler.num_preemptions()), (4, 0));
    d.scheduler.remove(20);
    assert_eq!(d.step().len(), 4);
    assert_eq!(d.waiting(), [2, 3, 11], "among equals the oldest comes back first");
}

#[test]
fn a_lone_owner_preempts_none_of_its_own() {
    let mut d = full(LIMITS);
    let urgent = Share { weight: 100, ..FIRST };
    d.scheduler.schedule();
    assert_eq!(d.admit_of(urgent, 10, &prompt(4, 10)), None);
}

#[test]
fn nobody_is_preempted_before_it_has_a_token() {
    let mut d = Driver::new(LIMITS, 32);
    d.scheduler.schedule();
    (0..3).for_each(|slot| assert!(d.admit(slot, &prompt(4, slot as u32)).is_some()));
    d.admit(3, &prompt(60, 3));
    d.run();
    d.step_with(SECOND, 10);
    assert_eq!((d.running(), d.waiting()), (vec![0, 1, 3, 10], vec![2]), "the youngest computes its prompt still");
    d.scheduler.remove(10);
    // The preempted sequence comes back. It is not the next to be preempted, because its computation would be lost.
    d.scheduler.schedule();
    assert!(d.scheduler.readmit());
    assert!(d.admit_of(SECOND, 11, &prompt(4, 11)).is_some());
    assert_eq!(d.waiting(), [3], "it has its token by now");
    d.run();
}

#[test]
fn who_is_owed_a_place_gets_it_however_often() {
    // The tokens that are computed again fit a step.
    let limits = SchedulerLimits { max_num_batched_tokens: 512, prefill_tokens_per_step_max: 512, ..LIMITS };
    let mut d = full(limits);
    for n in 0..10 * LIMITS.passed_max {
        d.step_with(SECOND, 10 + n);
        assert_eq!(d.waiting(), [3]);
        d.scheduler.remove(10 + n);
        d.step();
        assert!(d.waiting().is_empty(), "it comes back when there is a place");
    }
    // This also holds while one of its own sequences stays.
    d.step_with(SECOND, 100);
    for n in 0..10 * LIMITS.passed_max {
        d.step_with(SECOND, 200 + n);
        assert_eq!((d.running(), d.waiting()), (vec![0, 1, 100, 200 + n], vec![2, 3]));
        d.scheduler.remove(200 + n);
        d.step();
        assert_eq!(d.waiting(), [3]);
    }
}

#[test]
fn who_waits_long_enough_stands_before_newcomers_that_are_owed_nothing() {
    let mut d = full(LIMITS);
    let [third, fourth] = [3, 4].map(|tenant| Share { tenant: Tenant(tenant), weight: 1 });
    for (slot, share) in [(10, SECOND), (11, third), (12, fourth)] {
        d.step_with(share, slot);
    }
    assert_eq!((d.running(), d.waiting()), (vec![0, 10, 11, 12], vec![1, 2, 3]), "one each");
    // A place becomes free and a newcomer with a smaller claim takes it, but only `passed_max` times.
    for n in 0..LIMITS.passed_max {
        d.scheduler.remove(12 + n);
        d.step_with(fourth, 13 + n);
        assert_eq!((d.running(), d.waiting()), (vec![0, 10, 11, 13 + n], vec![1, 2, 3]));
    }
    d.scheduler.remove(12 + LIMITS.passed_max);
    d.step_with(fourth, 20);
    assert_eq!((d.running(), d.waiting()), (vec![0, 10, 11, 1], vec![2, 3]));
}

#[test]
fn blocks_are_taken_from_who_has_more_than_its_share() {
    let limits = SchedulerLimits { max_num_batched_tokens: 256, ..LIMITS };
    let mut d = Driver::new(limits, 6);
    d.scheduler.schedule();
    d.admit(0, &prompt(31, 0));
    d.admit(1, &prompt(31, 1));
    d.admit_of(SECOND, 10, &prompt(31, 10));
    d.run();
    (0..33).for_each(|_| drop(d.step()));
    assert_eq!(d.scheduler.pool().num_available(), 0);
    d.step();
    assert_eq!((d.running(), d.waiting()), (vec![0, 10], vec![1]), "the youngest has less");
}

#[test]
fn a_newcomer_is_given_blocks_if_that_makes_enough_of_them() {
    let limits = SchedulerLimits { max_num_batched_tokens: 512, prefill_tokens_per_step_max: 512, ..LIMITS };
    let mut d = Driver::new(limits, 12);
    d.scheduler.schedule();
    (0..4).for_each(|slot| assert!(d.admit(slot, &prompt(60, slot as u32)).is_some()));
    d.run();
    d.scheduler.schedule();
    assert_eq!(d.admit_of(SECOND, 10, &prompt(300, 10)), None, "the last of the four is its owner's to keep");
    assert_eq!(d.scheduler.num_fair_preemptions(), 0, "none makes way in vain");
    assert!(d.admit_of(SECOND, 11, &prompt(150, 11)).is_some());
    assert_eq!((d.running(), d.waiting()), (vec![0, 1, 11], vec![2, 3]));
    d.run();
}

#[test]
fn a_preempted_sequence_leaves_the_step_that_is_planned() {
    let mut d = full(LIMITS);
    d.scheduler.schedule();
    assert_eq!(d.scheduler.plan().len(), 4);
    d.admit_of(SECOND, 10, &prompt(4, 10));
    assert_eq!(d.run(), [(0, 1), (1, 1), (2, 1), (10, 4)]);
    d.scheduler.remove(0);
    assert_eq!(d.step(), [(1, 1), (2, 1), (10, 1), (3, 5)]);
    assert_eq!(d.step(), [(1, 1), (2, 1), (3, 1), (10, 1)], "in order of age again");
}
