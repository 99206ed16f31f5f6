//! What each owner holds of something that all owners share: streams and the bytes of their events, in memory and on
//! disk. It answers one question: when something must go, whose is it? It knows no logs and reads no clock.
//!
//! An owner's *claim* is what it holds per weight. Where room is short, the stream goes that ended first of the owner
//! with the largest claim, so one owner cannot take what is another's by asking for more. An owner's *part* of a bound
//! is the bound times its weight, divided by the weights of all owners that hold something. Owners that hold no more
//! than their part keep it whatever the others do; an owner alone has all of it.

use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};

use crate::protocol::{Claim, StreamId, Tenant};

/// What every owner holds.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    owners: HashMap<Tenant, Holding>,
    /// All owners, by their claim in streams.
    by_claim: BTreeSet<(Claim, Tenant)>,
    /// Of all streams.
    num_bytes: u64,
}

#[derive(Debug, Default)]
struct Holding {
    /// Of the owner's newest stream: all its streams count by it.
    weight: u64,
    num_streams: u64,
    num_bytes: u64,
    /// Streams that may go, with the time of their end, in the order in which they ended.
    ended: VecDeque<(u64, StreamId)>,
}

impl Holdings {
    /// The owner has one more stream, which has no bytes yet.
    pub(super) fn begin(&mut self, tenant: Tenant, weight: u32) {
        self.change(tenant, |own| {
            own.weight = u64::from(weight.max(1));
            own.num_streams += 1;
        });
    }

    /// The owner's streams have `more` bytes more.
    pub(super) fn add_bytes(&mut self, tenant: Tenant, more: u64) {
        if let Some(own) = self.owners.get_mut(&tenant) {
            own.num_bytes += more;
            self.num_bytes += more;
        }
    }

    /// The owner's streams have `fewer` bytes fewer.
    pub(super) fn remove_bytes(&mut self, tenant: Tenant, fewer: u64) {
        if let Some(own) = self.owners.get_mut(&tenant) {
            own.num_bytes -= fewer;
            self.num_bytes -= fewer;
        }
    }

    /// From now on the stream may go.
    pub(super) fn end(&mut self, tenant: Tenant, ended_ms: u64, id: StreamId) {
        if let Some(own) = self.owners.get_mut(&tenant) {
            own.ended.push_back((ended_ms, id));
        }
    }

    /// The owner's stream is gone, and its bytes with it.
    pub(super) fn remove(&mut self, tenant: Tenant, id: StreamId, num_bytes: u64) {
        self.remove_bytes(tenant, num_bytes);
        self.change(tenant, |own| {
            own.num_streams -= 1;
            // Mostly the first.
            if let Some(at) = own.ended.iter().position(|(_, ended)| *ended == id) {
                own.ended.remove(at);
            }
        });
    }

    /// Whether the owner with the most streams per weight has one that may go.
    pub(super) fn largest_can_give(&self) -> bool {
        self.by_claim.last().is_some_and(|(_, tenant)| self.first_ended(*tenant).is_some())
    }

    /// The stream that goes where there are too many.
    pub(super) fn first_to_go(&self) -> Option<(Tenant, StreamId)> {
        self.by_claim.iter().rev().find_map(|(_, tenant)| Some((*tenant, self.first_ended(*tenant)?)))
    }

    /// The stream that goes so that `tenant` gets a further one: of the owner with the largest claim that has one to
    /// give, if that claim is larger than `tenant`'s will be, and else `tenant`'s own. An owner without any stream gets
    /// its first one in any case.
    pub(super) fn makes_way(&self, tenant: Tenant, weight: u32) -> Option<StreamId> {
        let num_streams = self.owners.get(&tenant).map_or(0, |own| own.num_streams);
        let own = Claim { amount: num_streams + 1, weight: u64::from(weight.max(1)) };
        let others = self.by_claim.iter().rev().filter(|(_, other)| *other != tenant);
        let mut larger = others.take_while(|(claim, _)| num_streams == 0 || *claim > own);
        larger.find_map(|(_, other)| self.first_ended(*other)).or_else(|| self.first_ended(tenant))
    }

    /// Whether all hold more than `num_bytes_max`, and the owner more than its part of it.
    pub(super) fn is_beyond_part(&self, tenant: Tenant, num_bytes_max: u64) -> bool {
        let own = self.owners.get(&tenant);
        self.num_bytes > num_bytes_max && own.is_some_and(|own| own.bytes_claim() > self.part(num_bytes_max))
    }

    /// The streams that ended at a time of which `is_over` is true, in the order of their ends.
    pub(super) fn ended_at(&self, is_over: impl Fn(u64) -> bool) -> Vec<StreamId> {
        let mut over = Vec::new();
        for own in self.owners.values() {
            over.extend(own.ended.iter().take_while(|(ended_ms, _)| is_over(*ended_ms)));
        }
        over.sort_unstable();
        over.into_iter().map(|(_, id)| id).collect()
    }

    /// The streams that go until the rest have `num_bytes_max`, in order. No owner gives of its part, so the rest have
    /// more if streams that have not ended do.
    pub(super) fn beyond(&self, num_bytes_max: u64, num_bytes_of: impl Fn(StreamId) -> u64) -> Vec<StreamId> {
        let (mut num_bytes, mut leaving) = (self.num_bytes, Vec::new());
        if num_bytes <= num_bytes_max {
            return leaving;
        }
        let part = self.part(num_bytes_max);
        let givers = self.owners.iter().filter(|(_, own)| !own.ended.is_empty());
        let mut heap: BinaryHeap<_> =
            givers.map(|(tenant, own)| (own.bytes_claim(), *tenant, 0)).filter(|own| own.0 > part).collect();
        while num_bytes > num_bytes_max
            && let Some((claim, tenant, num_given)) = heap.pop()
        {
            let Some((_, id)) = self.owners[&tenant].ended.get(num_given) else { continue };
            let given = num_bytes_of(*id);
            num_bytes -= given;
            leaving.push(*id);
            let claim = Claim { amount: claim.amount - given, ..claim };
            if claim > part {
                heap.push((claim, tenant, num_given + 1));
            }
        }
        leaving
    }

    /// What an owner may always have of `bound`, per weight.
    fn part(&self, bound: u64) -> Claim {
        Claim { amount: bound, weight: self.owners.values().map(|own| own.weight).sum() }
    }

    fn first_ended(&self, tenant: Tenant) -> Option<StreamId> {
        self.owners.get(&tenant)?.ended.front().map(|(_, id)| *id)
    }

    fn change(&mut self, tenant: Tenant, change: impl FnOnce(&mut Holding)) {
        let own = self.owners.entry(tenant).or_default();
        if own.num_streams > 0 {
            self.by_claim.remove(&(own.streams_claim(), tenant));
        }
        change(own);
        if own.num_streams > 0 {
            self.by_claim.insert((own.streams_claim(), tenant));
        } else {
            self.owners.remove(&tenant);
        }
    }
}

impl Holding {
    fn streams_claim(&self) -> Claim {
        Claim { amount: self.num_streams, weight: self.weight }
    }

    fn bytes_claim(&self) -> Claim {
        Claim { amount: self.num_bytes, weight: self.weight }
    }
}
