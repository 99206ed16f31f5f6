//! Shares, order and the bounds on both, without an engine. Everything is counted in tokens; nothing is timed.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const STEP_TOKENS: u64 = 1000;

fn terms(weight: u32, priority: i32) -> QueueTerms {
    QueueTerms { weight, priority, timeout_ms: None }
}

fn queue<T>() -> FairQueue<T> {
    FairQueue::new(STEP_TOKENS)
}

impl<T> FairQueue<T> {
    /// Takes the item whose turn it is.
    fn pop(&mut self) -> Option<T> {
        let (ticket, _) = self.peek()?;
        self.take(ticket)
    }
}

/// Adds `n` items of `cost` that carry their owner's number.
fn fill(queue: &mut FairQueue<u64>, tenant: u64, terms: QueueTerms, cost: usize, n: usize) {
    for _ in 0..n {
        queue.push(Tenant(tenant), terms, cost, tenant);
    }
}

fn pops(queue: &mut FairQueue<u64>, n: usize) -> Vec<u64> {
    (0..n).map(|_| queue.pop().expect("waits")).collect()
}

#[test]
fn one_owner_is_first_come_first_served() {
    let mut q = queue();
    for i in 0..100 {
        q.push(Tenant(7), terms(3, 0), 1 + i % 13, i);
    }
    let order: Vec<_> = std::iter::from_fn(|| q.pop()).collect();
    assert_eq!(order, (0..100).collect::<Vec<_>>());
    assert_eq!((q.load(), q.is_empty()), (Load::default(), true));
}

/// P11: each request of an owner with a few waits for at most one request of an owner with a thousand.
#[test]
fn a_few_requests_pass_a_thousand_of_another_owner() {
    let mut q = queue();
    fill(&mut q, 1, terms(1, 0), 100, 1000);
    pops(&mut q, 200);
    fill(&mut q, 2, terms(1, 0), 100, 10);
    let order = pops(&mut q, 20);
    for (i, pair) in order.chunks(2).enumerate() {
        assert!(pair.contains(&2), "its request {i} waits for more than one other: {order:?}");
    }
}

#[test]
fn weights_are_shares() {
    let mut q = queue();
    fill(&mut q, 1, terms(1, 0), 50, 400);
    fill(&mut q, 2, terms(3, 0), 50, 400);
    let order = pops(&mut q, 400);
    let num_heavy = order.iter().filter(|t| **t == 2).count();
    assert!((298..=302).contains(&num_heavy), "{num_heavy} of 400 instead of 300");
}

#[test]
fn large_requests_buy_no_larger_share() {
    let mut q = queue();
    fill(&mut q, 1, terms(1, 0), 1000, 100);
    fill(&mut q, 2, terms(1, 0), 10, 1000);
    let order = pops(&mut q, 505);
    let num_large = order.iter().filter(|t| **t == 1).count();
    assert!((4..=6).contains(&num_large), "5000 tokens are 5 large requests, got {num_large}");
}

#[test]
fn idleness_is_no_credit() {
    let mut q = queue();
    fill(&mut q, 1, terms(1, 0), 10, 2000);
    fill(&mut q, 2, terms(1, 0), 10, 1);
    pops(&mut q, 1001);
    // Owner 2 was away for a thousand requests; it gets every second now, and not the next thousand.
    fill(&mut q, 2, terms(1, 0), 10, 100);
    let order = pops(&mut q, 100);
    let num_late = order.iter().filter(|t| **t == 2).count();
    assert!((49..=51).contains(&num_late), "{num_late}");
}

#[test]
fn what_was_not_used_is_given_back() {
    let mut q = queue();
    fill(&mut q, 1, terms(1, 0), 1000, 50);
    fill(&mut q, 2, terms(1, 0), 100, 200);
    let mut num_1 = 0;
    for _ in 0..100 {
        let tenant = q.pop().expect("waits");
        if tenant == 1 {
            num_1 += 1;
            q.give_back(Tenant(1), 900);
        }
    }
    assert!((49..=51).contains(&num_1), "both use 100 tokens a request: {num_1} of 100");
}

#[test]
fn the_urgent_go_first_and_the_rest_keep_their_order() {
    let mut q = queue();
    for (i, priority) in [0, 5, -5, 0, -5, 5].into_iter().enumerate() {
        q.push(Tenant(1), terms(1, priority), 10, i);
    }
    let order: Vec<_> = std::iter::from_fn(|| q.pop()).collect();
    assert_eq!(order, [2, 4, 0, 3, 1, 5]);
    let mut q = queue();
    fill(&mut q, 1, terms(1, 1), 10, 3);
    fill(&mut q, 2, terms(1, 0), 10, 3);
    assert_eq!(pops(&mut q, 6), [2, 2, 2, 1, 1, 1], "across owners too");
}

/// How many of an endless stream of requests, each of 10 tokens and priority 0, overtake one request of `priority`.
fn num_overtaking(priority: i32, same_owner: bool) -> usize {
    let mut q = queue();
    fill(&mut q, 1, terms(1, 0), 10, 5);
    q.push(Tenant(if same_owner { 1 } else { 2 }), terms(1, priority), 10, 99);
    for num_others in 0..100_000 {
        q.push(Tenant(1), terms(1, 0), 10, 1);
        if q.pop() == Some(99) {
            return num_others;
        }
    }
    panic!("priority {priority} starves");
}

#[test]
fn a_low_priority_gains_with_waiting() {
    for same_owner in [true, false] {
        let waits: Vec<_> = [0, 1, 2, 10].map(|p| num_overtaking(p, same_owner)).into();
        let step = STEP_TOKENS as usize / 10;
        for (wait, priority) in waits.iter().zip([0, 1, 2, 10]) {
            let expect = priority * step;
            assert!(wait.abs_diff(expect) <= 10, "priority {priority}: {wait} instead of {expect}: {waits:?}");
        }
    }
}

#[test]
fn an_urgent_owner_that_asks_one_by_one_pays_for_each() {
    let mut q = queue();
    fill(&mut q, 1, terms(1, 0), 100, 1000);
    // The urgent owner always has exactly one request waiting, so it has none whenever the queue decides which owners
    // to forget.
    let mut num_urgent = 0;
    for _ in 0..600 {
        if q.load_of(Tenant(2)).requests == 0 {
            q.push(Tenant(2), terms(1, -10), 100, 2);
        }
        num_urgent += usize::from(q.pop() == Some(2));
    }
    // Ten steps of a thousand tokens put it a hundred requests ahead; after that it gets every second turn.
    assert!((340..=360).contains(&num_urgent), "{num_urgent} of 600");
}

#[derive(Debug, Clone)]
enum Act {
    Push { tenant: u64, weight: u32, priority: i32, cost: usize },
    Pop,
    Remove(usize),
    GiveBack { tenant: u64, num_tokens: usize },
}

fn act() -> impl Strategy<Value = Act> {
    let push = (0..6u64, 1..50u32, -10..=10i32, 1..500usize).prop_map(|(tenant, weight, priority, cost)| Act::Push {
        tenant,
        weight,
        priority,
        cost,
    });
    let give_back = (0..6u64, 1..400usize).prop_map(|(tenant, num_tokens)| Act::GiveBack { tenant, num_tokens });
    prop_oneof![5 => push, 3 => Just(Act::Pop), 1 => any::<usize>().prop_map(Act::Remove), 1 => give_back]
}

proptest! {
    #[test]
    fn nothing_is_lost_and_the_order_told_is_the_order_served(acts in prop::collection::vec(act(), 1..200)) {
        let mut q = queue();
        let mut waiting: HashMap<usize, (Ticket, u64, usize)> = HashMap::new();
        for (id, act) in acts.into_iter().enumerate() {
            match act {
                Act::Push { tenant, weight, priority, cost } => {
                    let ticket = q.push(Tenant(tenant), terms(weight, priority), cost, id);
                    waiting.insert(id, (ticket, tenant, cost));
                }
                Act::Pop => {
                    let told = q.order(1).first().and_then(|t| q.get(*t)).copied();
                    prop_assert_eq!(q.peek().map(|(_, id)| *id), told);
                    let popped = q.pop();
                    prop_assert_eq!(popped, told);
                    prop_assert_eq!(popped.is_none(), waiting.is_empty());
                    popped.map(|id| waiting.remove(&id));
                }
                Act::Remove(which) => {
                    let mut ids: Vec<_> = waiting.keys().copied().collect();
                    ids.sort_unstable();
                    if !ids.is_empty() {
                        let id = ids[which % ids.len()];
                        let (ticket, _, _) = waiting[&id];
                        prop_assert_eq!(q.remove(ticket), Some(id));
                        prop_assert_eq!(q.remove(ticket), None);
                        waiting.remove(&id);
                    }
                }
                Act::GiveBack { tenant, num_tokens } => q.give_back(Tenant(tenant), num_tokens),
            }
            let load = |of: Option<u64>| {
                let own = waiting.values().filter(|(_, tenant, _)| of.is_none_or(|of| of == *tenant));
                own.fold(Load::default(), |l, (_, _, c)| Load { requests: l.requests + 1, tokens: l.tokens + c })
            };
            prop_assert_eq!(q.load(), load(None));
            for tenant in 0..6 {
                prop_assert_eq!(q.load_of(Tenant(tenant)), load(Some(tenant)));
            }
        }
        let told: Vec<_> = q.order(usize::MAX).into_iter().map(|t| *q.get(t).expect("waits")).collect();
        let served: Vec<_> = std::iter::from_fn(|| q.pop()).collect();
        prop_assert_eq!(told, served);
    }

    /// The theorem of start-time fair queueing: over any time in which two owners both wait, what they get, divided by
    /// their weights, differs by at most one request of each.
    #[test]
    fn no_two_owners_drift_apart(
        owners in prop::collection::vec((1..20u32, 1..300usize), 2..5),
        before in 0..100usize,
    ) {
        let mut q = queue();
        for (tenant, (weight, cost)) in owners.iter().enumerate() {
            fill(&mut q, tenant as u64, terms(*weight, 0), *cost, 3000);
        }
        pops(&mut q, before);
        let mut served = vec![0.0; owners.len()];
        for _ in 0..400 {
            let tenant = q.pop().expect("waits") as usize;
            served[tenant] += owners[tenant].1 as f64 / f64::from(owners[tenant].0);
            for (i, (weight_i, cost_i)) in owners.iter().enumerate() {
                for (j, (weight_j, cost_j)) in owners.iter().enumerate() {
                    let bound = *cost_i as f64 / f64::from(*weight_i) + *cost_j as f64 / f64::from(*weight_j);
                    // A part of a token is lost to rounding at each of at most 500 pops.
                    prop_assert!(served[i] - served[j] <= bound + 0.5, "{} and {}", served[i], served[j]);
                }
            }
        }
    }
}

#[test]
fn an_item_taken_before_its_turn_is_charged_and_takes_nothing_from_the_others() {
    let mut q = queue();
    fill(&mut q, 1, terms(1, 0), 100, 10);
    fill(&mut q, 2, terms(1, 0), 100, 10);
    pops(&mut q, 2);
    for _ in 0..4 {
        let ticket = q.heads(9).into_iter().map(|(ticket, _)| ticket).find(|t| t.tenant == Tenant(2));
        assert_eq!(q.take(ticket.expect("waits")), Some(2));
    }
    assert_eq!(pops(&mut q, 4), [1; 4], "those that were passed catch up");
    fill(&mut q, 3, terms(1, 0), 100, 1);
    let owners: Vec<u64> = q.heads(2).into_iter().map(|(_, owner)| *owner).collect();
    assert_eq!(owners.len(), 2, "no more than are asked for");
    assert_eq!(Some(owners[0]), q.pop(), "in the order of their turns");
}
