//! What owners owe each other, told from outside of the scheduler and with the schedule's own weights: where an owner
//! has so much less than another one that a place is owed to it, and nothing but that stands in its way, it gets one.

use std::collections::HashMap;
use std::sync::Arc;

use tallow::cache::BLOCK_SIZE;
use tallow::engine::scheduler::Scheduler;
use tallow::engine::sequence::Sequence;
use tallow::protocol::Tenant;
use tallow::stream::{StreamLog, StreamStatus};

use super::schedule::Schedule;

/// A worker's steps in a row in which an owner may be owed a place and get none: others may go before it in a step in
/// which somebody else was cancelled.
const STEPS_OWED_MAX: usize = 2;

#[derive(Default)]
pub(crate) struct Fairness {
    /// By worker and owner.
    num_steps_owed: HashMap<(usize, Tenant), usize>,
    pub seen: Vec<&'static str>,
}

impl Fairness {
    /// To be called before a worker's step. Gives the requests of which one must begin in it.
    pub(crate) fn owed(
        &mut self,
        worker: usize,
        schedule: &Schedule,
        scheduler: &Scheduler,
        logs: &[Option<Arc<StreamLog>>],
    ) -> Vec<Vec<usize>> {
        let waiting = waiting(logs);
        if scheduler.waiting().any(|s| s.num_passed() == schedule.limits.passed_max) {
            self.seen.push("passed as often as may be");
        }
        let mut owed = Vec::new();
        for tenant in (0..schedule.weights.len()).map(|tenant| Tenant(tenant as u64)) {
            let of = |index: &&usize| schedule.requests[**index].request.tenant == tenant;
            let own: Vec<usize> = waiting.iter().filter(of).copied().collect();
            if own.is_empty() || !is_owed(tenant, &own, &waiting, schedule, scheduler) {
                self.num_steps_owed.remove(&(worker, tenant));
            } else {
                self.seen.push("owed a place");
                owed.push(own);
            }
        }
        owed
    }

    /// To be called after it.
    pub(crate) fn check(
        &mut self,
        worker: usize,
        owed: &[Vec<usize>],
        schedule: &Schedule,
        logs: &[Option<Arc<StreamLog>>],
    ) {
        let waiting = waiting(logs);
        for own in owed {
            let tenant = schedule.requests[own[0]].request.tenant;
            if own.iter().all(|index| waiting.contains(index)) {
                let num_steps = self.num_steps_owed.entry((worker, tenant)).or_default();
                *num_steps += 1;
                assert!(*num_steps <= STEPS_OWED_MAX, "{tenant:?} is owed a place and gets none");
            } else {
                self.num_steps_owed.remove(&(worker, tenant));
            }
        }
    }
}

/// The requests that are in the queue. A log's status tells it; a reader's leaving would mean something.
fn waiting(logs: &[Option<Arc<StreamLog>>]) -> Vec<usize> {
    let waits = |log: &Arc<StreamLog>| log.status() == StreamStatus::Queued;
    (0..logs.len()).filter(|&index| logs[index].as_ref().is_some_and(waits)).collect()
}

/// Whether all that keeps an owner's requests `own` from beginning is that others have more places than they should.
fn is_owed(tenant: Tenant, own: &[usize], waiting: &[usize], schedule: &Schedule, scheduler: &Scheduler) -> bool {
    let request = |index: usize| &schedule.requests[index].request;
    let running = scheduler.running();
    let weight = |tenant: Tenant| schedule.weights[tenant.0 as usize] as usize;
    let places = |tenant: Tenant| running.iter().filter(|s| s.share().tenant == tenant).count();
    let has_less = |other: Tenant| places(tenant) * weight(other) < places(other) * weight(tenant);
    let is_next = |other: Tenant| other == tenant || has_less(other);
    let owes =
        |other: Tenant| other != tenant && (places(other) - 1) * weight(tenant) >= (places(tenant) + 1) * weight(other);
    let passes = |s: &Sequence| {
        let other = s.share().tenant;
        has_less(other) && (s.num_passed() < schedule.limits.passed_max || owes(other))
    };
    // Others go first, or it has one that was preempted.
    if !waiting.iter().all(|&index| is_next(request(index).tenant))
        || !scheduler.waiting().all(passes)
        || running.len() + scheduler.num_waiting() >= scheduler.num_in_flight_max()
    {
        return false;
    }
    // There are blocks for each, beside what those that run take in this step and are to find in the next ...
    let num_taken: usize = running.iter().map(|s| 2 + s.num_remaining() / BLOCK_SIZE).sum();
    let num_blocks_left = scheduler.pool().num_available().saturating_sub(num_taken);
    // ... and these leave something of the step.
    let limits = schedule.limits;
    let num_tokens_min = limits.prefill_tokens_per_step_max.min(limits.max_num_batched_tokens - running.len()).min(32);
    let num_remaining: usize = running.iter().map(Sequence::num_remaining).filter(|n| *n > 1).sum();
    let fits = |&index: &usize| {
        request(index).queue.timeout_ms.is_none() && request(index).prompt.len().div_ceil(BLOCK_SIZE) <= num_blocks_left
    };
    running.len() == limits.max_num_seqs
        && num_remaining < num_tokens_min
        && own.iter().all(fits)
        && running.iter().any(|s| owes(s.share().tenant) && s.has_advanced())
}
