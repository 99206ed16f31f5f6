//! What a worker shows of itself in the gauges.

use std::sync::Arc;

use super::super::lease::{GaugeValues, Lease};
use super::super::scheduler::Scheduler;
use crate::metrics::Metrics;

/// This worker's part of the gauges; its lease takes it out again when the core goes away.
#[derive(Debug)]
pub(super) struct Gauges {
    lease: Arc<Lease>,
    metrics: Arc<Metrics>,
    num_preemptions: u64,
}

impl Gauges {
    pub(super) fn new(lease: Arc<Lease>, metrics: Arc<Metrics>) -> Self {
        Self { lease, metrics, num_preemptions: 0 }
    }

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
    }

    pub(super) fn clear(&mut self) {
        self.lease.show(GaugeValues::default());
    }
}
