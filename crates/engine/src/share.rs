//! Places in a worker, counted by owner and compared by weight. Owners in, an order out; it knows no sequences.
//!
//! An owner's *claim* is how many places it has per weight. The smaller goes first, and an owner *owes* another one a
//! place if it would still have no fewer per weight than the other after giving it. So nothing goes back and forth:
//! whoever was given a place owes none to the giver. An owner never gives up its last place.

use std::collections::BTreeMap;

use tallow_stream::protocol::{Claim, Tenant};

/// Whose a sequence is, and how much of the machine that owner should have beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The owner.
    pub tenant: Tenant,
    /// Its weight; at least 1.
    pub weight: u32,
}

/// How many places each owner has; who has none is not in it, so it is as long as there are places at most.
#[derive(Debug, Clone, Default)]
pub(super) struct PlaceCounts(BTreeMap<Tenant, Claim>);

impl PlaceCounts {
    /// Gives the owner a place. All its places count by the weight that it has now.
    pub(super) fn add(&mut self, share: Share) {
        let weight = u64::from(share.weight.max(1));
        let claim = self.0.entry(share.tenant).or_insert(Claim { amount: 0, weight });
        *claim = Claim { amount: claim.amount + 1, weight };
    }

    /// Takes a place from the owner.
    ///
    /// # Panics
    /// If it has none.
    pub(super) fn remove(&mut self, tenant: Tenant) {
        let claim = self.0.get_mut(&tenant).expect("an owner with a place");
        claim.amount -= 1;
        if claim.amount == 0 {
            self.0.remove(&tenant);
        }
    }

    /// What the owner has.
    pub(super) fn claim(&self, share: Share) -> Claim {
        let none = Claim { amount: 0, weight: u64::from(share.weight.max(1)) };
        self.0.get(&share.tenant).copied().unwrap_or(none)
    }

    /// Whether the owner of `from` has so many places more than that of `to` that it owes it one.
    pub(super) fn owes(&self, from: Share, to: Share) -> bool {
        from.tenant != to.tenant && owes(self.claim(from), self.claim(to))
    }

    /// Whether anybody owes the owner of `to` a place.
    pub(super) fn is_owed(&self, to: Share) -> bool {
        let claim = self.claim(to);
        self.0.iter().any(|(tenant, from)| *tenant != to.tenant && owes(*from, claim))
    }

    /// Places by owner.
    pub(super) fn counts(&self) -> impl Iterator<Item = (Tenant, usize)> {
        self.0.iter().map(|(tenant, claim)| (*tenant, claim.amount as usize))
    }
}

/// Whether `from` would still be no smaller than `to` after giving it a place.
fn owes(from: Claim, to: Claim) -> bool {
    from.amount > 0 && (from.amount - 1) * to.weight >= (to.amount + 1) * from.weight
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn share(tenant: u64, weight: u32) -> Share {
        Share { tenant: Tenant(tenant), weight }
    }

    fn places(held: &[(Share, usize)]) -> PlaceCounts {
        let mut places = PlaceCounts::default();
        for (share, num_places) in held {
            (0..*num_places).for_each(|_| places.add(*share));
        }
        places
    }

    /// How many places `to` gets from `from`, which has all of them, and that it keeps them.
    #[track_caller]
    fn check(from: Share, num_places: usize, to: Share, expect: usize) {
        let mut places = places(&[(from, num_places)]);
        let mut num_given = 0;
        while places.owes(from, to) {
            places.remove(from.tenant);
            places.add(to);
            num_given += 1;
            assert!(!places.owes(to, from), "it goes back and forth");
        }
        assert_eq!(num_given, expect);
        assert!(!places.is_owed(to));
    }

    #[test]
    fn an_owner_is_given_places_up_to_its_share() {
        check(share(1, 1), 8, share(2, 1), 4);
        check(share(1, 1), 7, share(2, 1), 3);
        check(share(1, 1), 2, share(2, 1), 1);
        check(share(1, 1), 1, share(2, 1), 0);
        check(share(1, 1), 8, share(2, 3), 6);
        check(share(1, 3), 8, share(2, 1), 2);
        check(share(1, 1), 8, share(2, 1000), 7);
        check(share(1, 1000), 1000, share(2, 1), 0);
    }

    #[test]
    fn nobody_owes_itself_whatever_its_requests_weigh() {
        let places = places(&[(share(1, 1), 8)]);
        assert!(!places.owes(share(1, 1), share(1, 5)) && !places.is_owed(share(1, 5)));
        assert!(places.is_owed(share(2, 1)));
    }

    #[test]
    fn claims_are_places_per_weight_exactly() {
        let places = places(&[(share(1, 3), 2), (share(2, 999), 666), (share(3, 2), 2)]);
        let claim = |tenant, weight| places.claim(share(tenant, weight));
        assert!(claim(1, 3) == claim(2, 999) && claim(1, 3) < claim(3, 2) && claim(4, 1) < claim(1, 3));
        assert_eq!(claim(4, 1), claim(5, 9), "nobody has less than nothing");
    }
}
