//! What an owner has of something that all owners share, per weight: the order in which owners are compared, wherever there is
//! not enough for all.

use std::cmp::Ordering;

/// An amount per weight. Claims are compared by multiplying crosswise, so that nothing is rounded.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// How much of what all share.
    pub amount: u64,
    /// The owner's weight.
    pub weight: u64,
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        let crosswise = |one: &Self, two: &Self| u128::from(one.amount) * u128::from(two.weight);
        crosswise(self, other).cmp(&crosswise(other, self))
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Claim {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_compared_exactly_however_large_they_are() {
        let claim = |amount, weight| Claim { amount, weight };
        assert!(claim(2, 3) == claim(666, 999) && claim(2, 3) < claim(2, 2));
        assert!(claim(u64::MAX - 1, u64::MAX) < claim(u64::MAX, u64::MAX));
        assert_eq!(claim(0, 1), claim(0, 9), "nobody has less than nothing");
    }
}
