//! What a step costs beside the model: scheduling, building the batch, noting the tokens.
//!
//! `cargo bench --bench scheduler`

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tallow::cache::HashChain;
use tallow::engine::scheduler::{Scheduler, SchedulerLimits};
use tallow::engine::sequence::Sequence;
use tallow::engine::share::Share;
use tallow::model::Batch;
use tallow::protocol::{Tenant, TokenId};

/// Tokens of each prompt.
const PROMPT: usize = 100;
/// Steps per measurement, so that blocks fill up and get their names as they do in life.
const STEPS: usize = 64;

/// `num_seqs` sequences that have their prompts computed and decode.
fn decoding(num_seqs: usize) -> Scheduler {
    let limits = SchedulerLimits {
        max_num_seqs: num_seqs,
        max_num_batched_tokens: num_seqs * PROMPT,
        prefill_tokens_per_step_max: num_seqs * PROMPT,
        attention_span: usize::MAX,
        passed_max: 64,
    };
    let mut scheduler = Scheduler::new(limits, num_seqs * 8);
    let mut batch = Batch::default();
    scheduler.schedule();
    for slot in 0..num_seqs {
        let prompt: Vec<TokenId> = (0..PROMPT).map(|i| (i * 7919 + slot * 31) as TokenId % 40_000).collect();
        let chain = HashChain::new(Tenant(0), &prompt);
        let share = Share { tenant: Tenant(0), weight: 1 };
        scheduler.admit(Sequence::new(slot, share, prompt, PROMPT + STEPS + 2, Some(chain)));
    }
    finish(&mut scheduler, &mut batch);
    scheduler
}

fn step(scheduler: &mut Scheduler, batch: &mut Batch) {
    scheduler.schedule();
    finish(scheduler, batch);
}

fn finish(scheduler: &mut Scheduler, batch: &mut Batch) {
    scheduler.build(batch);
    scheduler.commit();
    for i in 0..scheduler.plan().len() {
        let planned = scheduler.plan()[i];
        scheduler.push_token(planned, (planned.slot * 17 + 3) as TokenId);
    }
}

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler");
    for num_seqs in [32, 256] {
        group.throughput(Throughput::Elements((num_seqs * STEPS) as u64));
        let id = BenchmarkId::new(format!("{STEPS} steps"), num_seqs);
        group.bench_function(id, |b| {
            let mut batch = Batch::default();
            let run = |mut scheduler: Scheduler| {
                (0..STEPS).for_each(|_| step(&mut scheduler, &mut batch));
                assert_eq!(batch.num_tokens(), num_seqs, "every sequence decodes in every step");
                scheduler
            };
            b.iter_batched(|| decoding(num_seqs), run, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
