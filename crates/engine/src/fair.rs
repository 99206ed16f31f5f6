//! Who goes next: weighted fair queueing over owners, by start times (Goyal, Vin and Cheng, "Start-time Fair
//! Queueing", SIGCOMM 1996), with priorities. It reads no clock; its only time is virtual: tokens served per weight.
//!
//! ```text
//! push:  ready = now + priority * step       a priority is like having come earlier (-) or later (+) by so much work
//! order: an owner's requests by ready, then as they came;
//!        owners by the larger of their own next start and their first request's ready
//! take:  begin = max(start, min(ready, now)); now = max(now, begin); start = begin + cost / weight
//! ```
//!
//! While several owners want the machine, each gets tokens in proportion to its weight, however many requests it has
//! waiting: two of them never differ by more than one request of each (divided by their weights). Priorities age by
//! themselves, as virtual time goes on with every token that is served: a request of priority `p` is overtaken by
//! `p * step` tokens' worth of later and more urgent work and by no more. So nothing starves.
//!
//! An owner is charged for what a request may use; [`FairQueue::give_back`] corrects that once it is known.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use tallow_stream::protocol::{PRIORITY_MIN, QueueTerms, Tenant, WEIGHT_MAX};

/// Virtual time in parts of a token at weight 1, so that dividing by any weight leaves at least one.
type VirtualTime = u64;

/// Virtual time of one token at weight 1.
const TOKEN: VirtualTime = WEIGHT_MAX as VirtualTime;

/// Names a waiting item until it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    tenant: Tenant,
    place: ItemOrder,
}

/// Orders the items of one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ItemOrder {
    ready: VirtualTime,
    /// Rises with every item that came.
    seq: u64,
}

/// Items that wait, each with an owner and a cost.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    /// What one step of priority is worth.
    step: VirtualTime,
    now: VirtualTime,
    next_seq: u64,
    flows: BTreeMap<Tenant, Flow<T>>,
    total: Load,
}

/// How much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Items.
    pub requests: usize,
    /// The sum of their costs.
    pub tokens: usize,
}

impl Load {
    /// So many, each as short as can be.
    pub fn of_requests(requests: usize) -> Self {
        Self { requests, tokens: requests }
    }
}

#[derive(Debug)]
struct Flow<T> {
    weight: u32,
    start: VirtualTime,
    items: BTreeMap<ItemOrder, (usize, T)>,
    load: Load,
}

impl<T> FairQueue<T> {
    /// An empty queue. One step of priority is worth `priority_step_tokens` of others' work.
    pub(crate) fn new(priority_step_tokens: u64) -> Self {
        let step = priority_step_tokens.saturating_mul(TOKEN);
        // In the middle, so that the urgent have somewhere to go.
        let now = VirtualTime::MAX / 4;
        Self { step, now, next_seq: 0, flows: BTreeMap::new(), total: Load::default() }
    }

    /// Adds an item that will cost at most `cost` tokens.
    pub(crate) fn push(&mut self, tenant: Tenant, terms: QueueTerms, cost: usize, item: T) -> Ticket {
        let distance = self.step.saturating_mul(u64::from(terms.priority.unsigned_abs()));
        let ready = match terms.priority {
            ..0 => self.now.saturating_sub(distance),
            _ => self.now.saturating_add(distance),
        };
        self.insert(tenant, ready, terms.weight, cost, item)
    }

    /// Adds an item before all others of its owner; it had its turn before, and lost what came of it.
    pub(crate) fn push_first(&mut self, tenant: Tenant, weight: u32, cost: usize, item: T) -> Ticket {
        self.insert(tenant, 0, weight, cost, item)
    }

    fn insert(&mut self, tenant: Tenant, ready: VirtualTime, weight: u32, cost: usize, item: T) -> Ticket {
        let place = ItemOrder { ready, seq: self.next_seq };
        self.next_seq += 1;
        let flow = self.flows.entry(tenant).or_insert_with(|| Flow {
            weight: 1,
            start: 0,
            items: BTreeMap::new(),
            load: Load::default(),
        });
        flow.weight = weight.clamp(1, WEIGHT_MAX);
        flow.items.insert(place, (cost, item));
        flow.load.add(cost);
        self.total.add(cost);
        Ticket { tenant, place }
    }

    /// The item whose turn it is.
    pub(crate) fn peek(&self) -> Option<(Ticket, &T)> {
        let tenant = self.next_tenant()?;
        let (place, (_, item)) = self.flows.get(&tenant)?.items.first_key_value()?;
        Some((Ticket { tenant, place: *place }, item))
    }

    /// The first item of each owner, in the order of their turns, of `max` owners at most.
    pub(crate) fn heads(&self, max: usize) -> Vec<(Ticket, &T)> {
        let mut turns: Vec<_> = self.turns().collect();
        if turns.len() > max {
            turns.select_nth_unstable(max);
            turns.truncate(max);
        }
        turns.sort_unstable();
        let head = |&(_, _, tenant): &(VirtualTime, u64, Tenant)| {
            let (place, (_, item)) = self.flows.get(&tenant)?.items.first_key_value()?;
            Some((Ticket { tenant, place: *place }, item))
        };
        turns.iter().filter_map(head).collect()
    }

    /// Takes an item to be served, and charges its owner. Virtual time goes on with the turns; an item that goes
    /// before its turn does not carry it along, or those who were passed would lose what is due to them.
    pub(crate) fn take(&mut self, ticket: Ticket) -> Option<T> {
        let is_turn = self.next_tenant() == Some(ticket.tenant);
        let flow = self.flows.get_mut(&ticket.tenant)?;
        let (cost, item) = flow.items.remove(&ticket.place)?;
        let (now, start) = flow.charged(ticket.place, cost, self.now, flow.start);
        flow.start = start;
        if is_turn {
            self.now = now;
        }
        flow.load.remove(cost);
        self.total.remove(cost);
        self.forget_settled();
        Some(item)
    }

    /// Takes an item out of its turn; nobody is charged.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let flow = self.flows.get_mut(&ticket.tenant)?;
        let (cost, item) = flow.items.remove(&ticket.place)?;
        flow.load.remove(cost);
        self.total.remove(cost);
        self.forget_settled();
        Some(item)
    }

    /// Notes that an item that was popped has cost `num_tokens` less than was charged.
    pub(crate) fn give_back(&mut self, tenant: Tenant, num_tokens: usize) {
        // An owner that is forgotten has nothing to pay, so there is nothing to correct.
        if let Some(flow) = self.flows.get_mut(&tenant) {
            flow.start = flow.start.saturating_sub(flow.share_of(num_tokens));
            self.forget_settled();
        }
    }

    /// The first `max` items in the order in which they would leave if nothing else came. Costs `max` times the
    /// logarithm of the number of owners.
    pub(crate) fn order(&self, max: usize) -> Vec<Ticket> {
        let begin = |flow: &Flow<T>| flow.items.first_key_value().map(|(place, _)| flow.start.max(place.ready));
        let mut turns: BinaryHeap<_> = self
            .flows
            .iter()
            .filter_map(|(tenant, flow)| {
                let mut items = flow.items.iter();
                let first = items.next()?.0;
                Some(Reverse((begin(flow)?, first.seq, *tenant)))
            })
            .collect();
        let mut states: BTreeMap<Tenant, _> =
            self.flows.iter().map(|(tenant, flow)| (*tenant, (flow.start, flow.items.iter().peekable()))).collect();
        let (mut now, mut order) = (self.now, Vec::with_capacity(max.min(self.total.requests)));
        while order.len() < max
            && let Some(Reverse((_, _, tenant))) = turns.pop()
        {
            let (Some(flow), Some((start, items))) = (self.flows.get(&tenant), states.get_mut(&tenant)) else { break };
            let Some((place, (cost, _))) = items.next() else { break };
            (now, *start) = flow.charged(*place, *cost, now, *start);
            order.push(Ticket { tenant, place: *place });
            if let Some((next, _)) = items.peek() {
                turns.push(Reverse(((*start).max(next.ready), next.seq, tenant)));
            }
        }
        order
    }

    /// The item of `ticket`, if it still waits.
    pub(crate) fn get(&self, ticket: Ticket) -> Option<&T> {
        self.flows.get(&ticket.tenant)?.items.get(&ticket.place).map(|(_, item)| item)
    }

    /// The item of `ticket`, if it still waits.
    pub(crate) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        self.flows.get_mut(&ticket.tenant)?.items.get_mut(&ticket.place).map(|(_, item)| item)
    }

    /// All items, in no order of service.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ticket, &T)> {
        self.flows.iter().flat_map(|(&tenant, flow)| {
            flow.items.iter().map(move |(&place, (_, item))| (Ticket { tenant, place }, item))
        })
    }

    /// How much waits.
    pub(crate) fn load(&self) -> Load {
        self.total
    }

    /// How much of one owner's waits.
    pub(crate) fn load_of(&self, tenant: Tenant) -> Load {
        self.flows.get(&tenant).map_or_else(Load::default, |flow| flow.load)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.total.requests == 0
    }

    fn next_tenant(&self) -> Option<Tenant> {
        self.turns().min().map(|(_, _, tenant)| tenant)
    }

    /// When each owner's first item begins; the smallest goes first.
    fn turns(&self) -> impl Iterator<Item = (VirtualTime, u64, Tenant)> {
        self.flows.iter().filter_map(|(tenant, flow)| {
            let (place, _) = flow.items.first_key_value()?;
            Some((flow.start.max(place.ready), place.seq, *tenant))
        })
    }

    /// Forgets owners that would begin no later than the most urgent stranger: only then is nothing owed, or urgent
    /// requests that come one by one would each be served as if the ones before had cost nothing.
    fn forget_settled(&mut self) {
        let credit = self.step.saturating_mul(u64::from(PRIORITY_MIN.unsigned_abs()));
        let settled = self.now.saturating_sub(credit);
        self.flows.retain(|_, flow| !flow.items.is_empty() || flow.start > settled);
    }
}

impl<T> Flow<T> {
    /// The virtual time after serving an item, and the owner's next start.
    fn charged(
        &self,
        place: ItemOrder,
        cost: usize,
        now: VirtualTime,
        start: VirtualTime,
    ) -> (VirtualTime, VirtualTime) {
        let begin = start.max(place.ready.min(now));
        (now.max(begin), begin.saturating_add(self.share_of(cost)))
    }

    fn share_of(&self, num_tokens: usize) -> VirtualTime {
        (num_tokens as u64).saturating_mul(TOKEN) / u64::from(self.weight)
    }
}

impl Load {
    fn add(&mut self, cost: usize) {
        self.requests += 1;
        self.tokens += cost;
    }

    fn remove(&mut self, cost: usize) {
        self.requests -= 1;
        self.tokens -= cost;
    }
}

#[cfg(test)]
mod tests;
