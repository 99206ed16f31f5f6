//! What each owner holds of something that all owners share: streams and the bytes of their events, in memory and on
//! disk. It answers one question: when a stream must go, whose stream is it? It knows no logs and reads no clock.
//!
//! An owner's *claim* is the amount that it holds divided by its weight. When there is no room, the owner with the
//! largest claim loses the stream that ended first. So an owner cannot take another's share by asking for more. An
//! owner's *part* of a bound is the bound times its weight, divided by the sum of the weights of all owners that hold
//! something. An owner that holds no more than its part keeps it whatever the others do; a single owner may have all of
//! the bound.

use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};

use crate::protocol::{Claim, StreamId, Tenant};

/// What every owner holds.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    owners: HashMap<Tenant, Holding>,
    /// All owners, by their claim in streams.
    by_claim: BTreeSet<(Claim, Tenant)>,
    /// The bytes of all streams.
    num_bytes: u64,
}

#[derive(Debug, Default)]
struct Holding {
    /// The weight of the owner's newest stream; it counts for all its streams.
    weight: u64,
    num_streams: u64,
    num_bytes: u64,
    /// Streams that may be removed, with the time of their end, in the order in which they ended.
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

    /// The stream has ended: from now on it may be removed.
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
            // The first one matches most of the time.
            if let Some(at) = own.ended.iter().position(|(_, ended)| *ended == id) {
                own.ended.remove(at);
            }
        });
    }

    /// Whether the owner with the most streams per weight has one that may be removed.
    pub(super) fn largest_can_give(&self) -> bool {
        self.by_claim.last().is_some_and(|(_, tenant)| self.first_ended(*tenant).is_some())
    }

    /// The stream to remove next when there are too many.
    pub(super) fn first_to_go(&self) -> Option<(Tenant, StreamId)> {
        self.by_claim.iter().rev().find_map(|(_, tenant)| Some((*tenant, self.first_ended(*tenant)?)))
    }

    /// The stream to remove so that `tenant` gets one more. It belongs to the owner with the largest claim that has an
    /// ended stream, if that claim is larger than `tenant`'s will be; else it is `tenant`'s own. An owner without any
    /// stream gets its first one whatever the claims are.
    pub(super) fn makes_way(&self, tenant: Tenant, weight: u32) -> Option<StreamId> {
        let num_streams = self.owners.get(&tenant).map_or(0, |own| own.num_streams);
        let own = Claim { amount: num_streams + 1, weight: u64::from(weight.max(1)) };
        let others = self.by_claim.iter().rev().filter(|(_, other)| *other != tenant);
        let mut larger = others.take_while(|(claim, _)| num_streams == 0 || *claim > own);
        larger.find_map(|(_, other)| self.first_ended(*other)).or_else(|| self.first_ended(tenant))
    }

    /// Whether all owners together hold more than `num_bytes_max`, and this owner holds more than its part of it.
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

    /// The streams to remove, in order, until the rest have at most `num_bytes_max`. An owner that holds no more than
    /// its part gives nothing, and only ended streams are given. So the rest may still have more than the bound.
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

    /// The part of `bound` that every owner may always have, per weight.
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
