//! The tokens that can still be drawn, with integer weights, in order of id, and the filters that drop some.

use super::math::ln_f32;
use super::weights::{LogitRow, draw_at, weight};
use tallow_stream::protocol::TokenId;

/// What the filters so far have left.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Never empty once taken; rising ids. Right after one of the `take_for_` it lacks tokens that the filter would drop.
    list: Vec<Candidate>,
    /// What all weigh, those that the list lacks too.
    total: u64,
    scratch: Vec<Ranked>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: TokenId,
    /// How far its logit is below the largest, divided by the temperature; not negative.
    distance: f32,
    weight: u64,
}

/// A candidate as a filter ranks it: smaller stays rather than larger.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    rank: u64,
    weight: u64,
}

impl Candidate {
    /// By probability, then by id. Bits of floats that are not negative are ordered like the floats.
    fn rank(&self) -> u64 {
        (u64::from(self.distance.to_bits()) << 32) | u64::from(self.id)
    }

    /// Distance in units of 2^-20.
    fn distance_fixed(&self) -> u64 {
        (self.distance * 1_048_576.0) as u64
    }
}

impl Candidates {
    /// Takes every token that weighs something.
    pub(super) fn take_all(&mut self, row: &LogitRow<'_>) {
        self.take_near(row, f32::INFINITY);
        self.total = self.sum();
    }

    /// Takes those of `top` that weigh something.
    pub(super) fn take_top(&mut self, row: &LogitRow<'_>, top: &mut [(f32, TokenId)]) {
        top.sort_unstable_by_key(|&(_, id)| id);
        let candidates = top.iter().map(|&(logit, id)| {
            let distance = row.distance(logit);
            Candidate { id, distance, weight: weight(distance) }
        });
        self.list.clear();
        self.list.extend(candidates.filter(|c| c.weight > 0));
        self.total = self.sum();
    }

    /// Takes all that [`Self::keep_top_p`] may keep: most often a few near the top are enough.
    pub(super) fn take_for_top_p(&mut self, row: &LogitRow<'_>, top_p: f32) {
        self.total = row.total();
        let target = part_of(self.total, top_p);
        for distance_max in [3.0, 8.0, f32::INFINITY] {
            self.take_near(row, distance_max);
            if self.sum() >= target {
                break;
            }
        }
    }

    /// Takes all that [`Self::keep_min_p`] may keep.
    pub(super) fn take_for_min_p(&mut self, row: &LogitRow<'_>, min_p: f32) {
        // Weights of `min_p` are at this distance but for rounding, which one more is far beyond.
        self.take_near(row, 1.0 - ln_f32(min_p));
    }

    /// Takes every token that weighs something and is within `distance_max`.
    fn take_near(&mut self, row: &LogitRow<'_>, distance_max: f32) {
        self.list.clear();
        row.for_each_near(distance_max, |id, distance, weight| {
            if weight > 0 {
                self.list.push(Candidate { id, distance, weight });
            }
        });
    }

    /// Keeps the fewest most probable tokens that together reach `top_p`.
    pub(super) fn keep_top_p(&mut self, top_p: f32) {
        self.scratch.clear();
        self.scratch.extend(self.list.iter().map(|c| Ranked { rank: c.rank(), weight: c.weight }));
        let last = last_needed(&mut self.scratch, part_of(self.total, top_p));
        self.keep(|c| c.rank() <= last);
    }

    /// Keeps the fewest tokens that together reach `typical_p`, beginning with those whose information is nearest to
    /// the distribution's entropy (Meister et al., arXiv:2202.00666). Information is distance plus a constant, and
    /// entropy is the mean distance plus the same constant, so the constant is never computed.
    pub(super) fn keep_typical(&mut self, typical_p: f32) {
        let total = self.total;
        let sum: u128 = self.list.iter().map(|c| u128::from(c.weight) * u128::from(c.distance_fixed())).sum();
        let mean = (sum / u128::from(total)) as u64;
        let rank = |c: &Candidate| (c.distance_fixed().abs_diff(mean) << 32) | u64::from(c.id);
        self.scratch.clear();
        self.scratch.extend(self.list.iter().map(|c| Ranked { rank: rank(c), weight: c.weight }));
        let last = last_needed(&mut self.scratch, part_of(total, typical_p));
        self.keep(|c| rank(c) <= last);
    }

    /// Keeps tokens at least `min_p` times as probable as the most probable one left.
    pub(super) fn keep_min_p(&mut self, min_p: f32) {
        let largest = self.list.iter().map(|c| c.weight).max().expect("never empty");
        let least = part_of(largest, min_p);
        self.keep(|c| c.weight >= least);
    }

    /// The token that 64 random bits choose.
    pub(super) fn draw(&self, random: u64) -> TokenId {
        let mut at = draw_at(random, self.total);
        for c in &self.list {
            if at < c.weight {
                return c.id;
            }
            at -= c.weight;
        }
        unreachable!("a number below the sum of the weights falls into one of them")
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> (usize, usize) {
        (self.list.capacity(), self.scratch.capacity())
    }

    fn keep(&mut self, stays: impl Fn(&Candidate) -> bool) {
        self.list.retain(stays);
        self.total = self.sum();
    }

    fn sum(&self) -> u64 {
        self.list.iter().map(|c| c.weight).sum()
    }
}

/// `share` of `whole`, rounded up, at least 1.
fn part_of(whole: u64, share: f32) -> u64 {
    ((whole as f64 * f64::from(share)).ceil() as u64).clamp(1, whole)
}

/// The largest rank needed so that all up to it weigh `target`: halves the list, and goes on in the half that holds
/// the answer.
fn last_needed(ranked: &mut [Ranked], mut target: u64) -> u64 {
    let mut part = ranked;
    while part.len() > 16 {
        let (low, high) = {
            let middle = part.len() / 2;
            part.select_nth_unstable_by_key(middle, |r| r.rank);
            part.split_at_mut(middle)
        };
        let low_weight: u64 = low.iter().map(|r| r.weight).sum();
        if low_weight >= target {
            part = low;
        } else {
            target -= low_weight;
            part = high;
        }
    }
    part.sort_unstable_by_key(|r| r.rank);
    let mut sum = 0;
    let reached = part.iter().find(|r| {
        sum += r.weight;
        sum >= target
    });
    reached.expect("the target is at most the sum of all").rank
}
