//! The scheduler alone, driven step by step; whole schedules are the simulation's.

use super::*;

const LIMITS: SchedulerLimits = SchedulerLimits {
    max_num_seqs: 4,
    max_num_batched_tokens: 64,
    prefill_tokens_per_step_max: 16,
    attention_span: usize::MAX,
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

    /// Admits within the step being planned, if there is room and it fits; gives the cached tokens.
    fn admit(&mut self, slot: usize, prompt: &[TokenId]) -> Option<usize> {
        let chain = HashChain::new(Tenant(0), prompt);
        let ok = self.scheduler.has_room() && self.scheduler.fits(Tenant(0), prompt, Some(&chain));
        ok.then(|| self.scheduler.admit(Sequence::new(slot, Tenant(0), prompt.to_vec(), 500, Some(chain))))
    }

    /// Runs the planned step; gives (slot, tokens computed) in the batch's order.
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
        self.run()
    }
}

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
fn slots_and_blocks_bound_admission() {
    let mut d = Driver::new(LIMITS, 16);
    d.scheduler.schedule();
    for slot in 0..4 {
        assert_eq!(d.admit(slot, &prompt(4, slot as u32)), Some(0));
    }
    assert!(!d.scheduler.has_room(), "no slot");
    let mut d = Driver::new(LIMITS, 3);
    d.scheduler.schedule();
    assert_eq!(d.admit(0, &prompt(40, 0)), Some(0));
    assert!(d.scheduler.has_room());
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
    assert!(!d.scheduler.has_room(), "newcomers stand behind the preempted");
    d.step();
    assert_eq!(d.scheduler.num_waiting(), 1, "no blocks yet");
    d.scheduler.remove(0);
    // Of its 65 tokens two blocks were full; one of them was taken by the survivor.
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
