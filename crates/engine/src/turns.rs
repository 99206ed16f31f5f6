//! Models that share the same cores: their steps take turns, in the order in which they ask, so that each step has all
//! threads and models with work get the same number of steps. Worker `i` of one engine has the same threads as worker `i` of
//! another, so each index has a turn of its own.
//!
//! A step that hangs would hold the others up for ever, so a turn can be taken away from it (`revoke`).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The turns of all engines of a process.
#[derive(Debug)]
pub struct Turns {
    by_worker: Vec<WorkerTurn>,
}

#[derive(Debug, Default)]
struct WorkerTurn {
    order: Mutex<Order>,
    passed_on: Condvar,
}

#[derive(Debug, Default)]
struct Order {
    holder: Option<u64>,
    /// In the order in which they asked.
    waiting: VecDeque<u64>,
    num_asked: u64,
}

/// The right to compute, until it is dropped or revoked.
#[derive(Debug)]
pub(crate) struct HeldTurn<'a> {
    turn: &'a WorkerTurn,
    /// Tells it from every other of its worker; never 0.
    pub(crate) id: u64,
}

impl Turns {
    /// For engines of so many workers each.
    pub fn new(num_workers: usize) -> Arc<Self> {
        Arc::new(Self { by_worker: (0..num_workers).map(|_| WorkerTurn::default()).collect() })
    }

    /// Waits until no other engine's worker of this index computes.
    pub(crate) fn take(&self, worker: usize) -> HeldTurn<'_> {
        let turn = &self.by_worker[worker];
        let mut order = turn.lock();
        order.num_asked += 1;
        let id = order.num_asked;
        if order.holder.is_none() {
            order.holder = Some(id);
        } else {
            order.waiting.push_back(id);
            let is_other = |order: &mut Order| order.holder != Some(id);
            drop(turn.passed_on.wait_while(order, is_other).unwrap_or_else(PoisonError::into_inner));
        }
        HeldTurn { turn, id }
    }

    /// Takes the turn away from a step that hangs, if it still has it.
    pub(crate) fn revoke(&self, worker: usize, id: u64) {
        self.by_worker[worker].pass_on(id);
    }
}

impl WorkerTurn {
    fn pass_on(&self, id: u64) {
        let mut order = self.lock();
        if order.holder == Some(id) {
            order.holder = order.waiting.pop_front();
            if order.holder.is_some() {
                self.passed_on.notify_all();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldTurn<'_> {
    fn drop(&mut self) {
        self.turn.pass_on(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn turns_go_round_in_the_order_of_asking() {
        let turns = Turns::new(1);
        let first = turns.take(0);
        let (sender, order) = sync_channel(3);
        std::thread::scope(|scope| {
            for name in ["second", "third"] {
                let (same, sender) = (turns.clone(), sender.clone());
                scope.spawn(move || {
                    let held = same.take(0);
                    sender.send(name).expect("somebody listens");
                    drop(held);
                });
                // Until it stands in the line.
                let place = if name == "second" { 1 } else { 2 };
                while turns.by_worker[0].lock().waiting.len() < place {
                    std::thread::yield_now();
                }
            }
            sender.send("first").expect("somebody listens");
            drop(first);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["first", "second", "third"]);
        assert!(turns.by_worker[0].lock().holder.is_none());
    }

    #[test]
    fn a_hung_step_loses_its_turn_and_cannot_pass_on_anothers() {
        let turns = Turns::new(2);
        let hung = turns.take(0);
        turns.revoke(0, hung.id);
        let next = turns.take(0);
        drop(hung);
        assert_eq!(turns.by_worker[0].lock().holder, Some(next.id));
        // Another worker has other threads.
        drop(turns.take(1));
    }
}
