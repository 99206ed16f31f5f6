//! A core's right to write. A worker that hangs in a step cannot be ended, so its right is taken from it: its sequences
//! go on elsewhere (`takeover`), and what it still does when it wakes reaches nobody.
//!
//! Lock order: lease, then log.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::held::Held;
use super::scheduler::Scheduler;
use crate::metrics::Metrics;
use tallow_stream::StreamLog;
use tallow_stream::protocol::{Event, StreamId};

/// One core's right to write to logs and gauges.
#[derive(Debug)]
pub(crate) struct Lease {
    metrics: Arc<Metrics>,
    num_blocks: i64,
    /// The slot of the sequence that the core works for alone, plus one; 0 if that is nobody or everybody.
    at_work: AtomicUsize,
    state: Mutex<LeaseState>,
}

#[derive(Debug, Default)]
struct LeaseState {
    is_revoked: bool,
    /// Sequences that the core holds.
    live: HashMap<StreamId, Held>,
    shown: GaugeValues,
}

/// A core's part of the gauges that all workers add up in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct GaugeValues {
    running: i64,
    waiting: i64,
    blocks_used: i64,
    blocks_cached: i64,
}

impl Lease {
    /// The lease of a core with so many KV blocks.
    pub(super) fn new(metrics: Arc<Metrics>, num_blocks: usize) -> Arc<Self> {
        let num_blocks = num_blocks as i64;
        metrics.kv_blocks_total.inc_by(num_blocks);
        Arc::new(Self { metrics, num_blocks, at_work: AtomicUsize::new(0), state: Mutex::default() })
    }

    /// Whether the right is gone.
    pub(crate) fn is_revoked(&self) -> bool {
        self.lock().is_revoked
    }

    /// The core has taken a sequence; given back if the right is gone.
    pub(super) fn hold(&self, held: Held) -> Result<(), Box<Held>> {
        let mut state = self.lock();
        if state.is_revoked {
            return Err(Box::new(held));
        }
        state.live.insert(held.log.id(), held);
        Ok(())
    }

    /// Notes the sequence that the core works for alone from here on. If the work panics or hangs, that sequence is the
    /// culprit.
    pub(super) fn work_for(&self, slot: Option<usize>) {
        self.at_work.store(slot.map_or(0, |slot| slot + 1), Ordering::Relaxed);
    }

    /// The log of a sequence that the core holds and that is kept on disk. Any will do, as there is one store.
    pub(super) fn kept_log(&self) -> Option<Arc<StreamLog>> {
        self.lock().live.values().map(|held| &held.log).find(|log| log.is_kept()).cloned()
    }

    /// Appends an event, after `before`, which nobody can take the right away during; `false` if the right is gone.
    pub(super) fn append(&self, log: &StreamLog, event: Event, before: impl FnOnce(&Event)) -> bool {
        let mut state = self.lock();
        if state.is_revoked {
            return false;
        }
        before(&event);
        if event.is_terminal() {
            state.live.remove(&log.id());
        } else if let Some(held) = state.live.get_mut(&log.id()) {
            held.note(&event);
        }
        log.append(event);
        true
    }

    /// Sets the core's part of the gauges.
    fn show(&self, values: GaugeValues) {
        let mut state = self.lock();
        if !state.is_revoked {
            self.change(&mut state, values);
        }
    }

    /// Takes the right away; returns the sequences that the core held, which no further call finds, and the slot of the
    /// one that it was working for alone.
    pub(super) fn revoke(&self) -> (Vec<Held>, Option<usize>) {
        let mut state = self.lock();
        if state.is_revoked {
            return (Vec::new(), None);
        }
        state.is_revoked = true;
        self.change(&mut state, GaugeValues::default());
        self.metrics.kv_blocks_total.dec_by(self.num_blocks);
        let mut held: Vec<Held> = std::mem::take(&mut state.live).into_values().collect();
        // As they came, so that they go on in that order.
        held.sort_by_key(|held| (held.origin.accepted_at, held.log.id()));
        (held, self.at_work.load(Ordering::Relaxed).checked_sub(1))
    }

    fn change(&self, state: &mut LeaseState, values: GaugeValues) {
        let (m, old) = (&self.metrics, state.shown);
        m.num_running.inc_by(values.running - old.running);
        m.num_waiting.inc_by(values.waiting - old.waiting);
        m.kv_blocks_used.inc_by(values.blocks_used - old.blocks_used);
        m.kv_blocks_cached.inc_by(values.blocks_cached - old.blocks_cached);
        state.shown = values;
    }

    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        // What it guards are whole map operations, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_revoked() {
            self.show(GaugeValues::default());
            self.metrics.kv_blocks_total.dec_by(self.num_blocks);
        }
    }
}

/// A core's part of the gauges; its lease takes it out again when the core goes away.
#[derive(Debug)]
pub(super) struct Gauges {
    lease: Arc<Lease>,
    metrics: Arc<Metrics>,
    num_preemptions: u64,
    num_fair_preemptions: u64,
}

impl Gauges {
    /// Of a core that has nothing yet.
    pub(super) fn new(lease: Arc<Lease>, metrics: Arc<Metrics>) -> Self {
        Self { lease, metrics, num_preemptions: 0, num_fair_preemptions: 0 }
    }

    /// Shows what the core's scheduler has.
    pub(super) fn set(&mut self, scheduler: &Scheduler) {
        let pool = scheduler.pool();
        self.lease.show(GaugeValues {
            running: scheduler.num_running() as i64,
            waiting: scheduler.num_waiting() as i64,
            blocks_used: pool.num_referenced() as i64,
            blocks_cached: pool.num_cached() as i64,
        });
        self.metrics.preemptions.inc_by(scheduler.num_preemptions() - self.num_preemptions);
        self.num_preemptions = scheduler.num_preemptions();
        self.metrics.fair_preemptions.inc_by(scheduler.num_fair_preemptions() - self.num_fair_preemptions);
        self.num_fair_preemptions = scheduler.num_fair_preemptions();
    }

    /// Shows that it has nothing any more.
    pub(super) fn clear(&mut self) {
        self.lease.show(GaugeValues::default());
    }
}
