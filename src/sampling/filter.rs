//! The tokens that can still be drawn, with integer weights, in order of id, and the filters that drop some.

use super::math::exp_f32;
use super::top;
use crate::protocol::TokenId;

/// The weight of the most probable token, 2^40: small enough that a vocabulary's sum fits 64 bits.
pub(super) const WEIGHT_ONE: f64 = 1_099_511_627_776.0;

/// Above this distance the weight is 0: 40 ln 2 is 27.73.
const DISTANCE_MAX: f32 = 27.75;

/// Logits that are weighed together: enough for the exponentials to be computed as vectors.
const CHUNK: usize = 32;

/// Weight of a token whose scaled logit is `distance >= 0` below the largest.
#[inline]
pub(super) fn weight(distance: f32) -> u64 {
    if distance < DISTANCE_MAX { (exp_f32(-distance) * WEIGHT_ONE as f32) as u64 } else { 0 }
}

/// The sum of all weights of a row, before any filter.
pub(super) fn total_weight(row: &[f32], max: f32) -> u64 {
    row.chunks(CHUNK).map(|logits| weigh(logits, max, 1.0).1.iter().sum::<u64>()).sum()
}

/// Distances and weights of up to [`CHUNK`] logits; those that are not there weigh nothing.
#[inline]
fn weigh(logits: &[f32], max: f32, temperature: f32) -> ([f32; CHUNK], [u64; CHUNK]) {
    let mut distances = [f32::INFINITY; CHUNK];
    for (distance, logit) in distances.iter_mut().zip(logits) {
        *distance = (max - logit) / temperature;
    }
    (distances, distances.map(weight))
}

/// Never empty once filled; rising ids.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
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
    /// Takes every token that weighs something and does not stand behind `last`.
    pub(super) fn fill(&mut self, row: &[f32], max: f32, temperature: f32, last: Option<(f32, TokenId)>) {
        self.list.clear();
        for (index, logits) in row.chunks(CHUNK).enumerate() {
            let (distances, weights) = weigh(logits, max, temperature);
            for (lane, &logit) in logits.iter().enumerate() {
                let id = (index * CHUNK + lane) as TokenId;
                let stays = weights[lane] > 0 && last.is_none_or(|last| top::order(&(logit, id), &last).is_le());
                if stays {
                    self.list.push(Candidate { id, distance: distances[lane], weight: weights[lane] });
                }
            }
        }
    }

    /// Keeps the fewest most probable tokens that together reach `top_p`.
    pub(super) fn keep_top_p(&mut self, top_p: f32) {
        let target = part_of(self.total(), top_p);
        // Most often a few tokens near the top are enough; only these are then ranked.
        for distance_max in [3.0, 8.0, f32::INFINITY] {
            let near = self.list.iter().filter(|c| c.distance <= distance_max);
            self.scratch.clear();
            self.scratch.extend(near.map(|c| Ranked { rank: c.rank(), weight: c.weight }));
            if self.scratch.iter().map(|r| r.weight).sum::<u64>() >= target {
                break;
            }
        }
        let last = last_needed(&mut self.scratch, target);
        self.list.retain(|c| c.rank() <= last);
    }

    /// Keeps the fewest tokens that together reach `typical_p`, beginning with those whose information is nearest to
    /// the distribution's entropy (Meister et al., arXiv:2202.00666). Information is distance plus a constant, and
    /// entropy is the mean distance plus the same constant, so the constant is never computed.
    pub(super) fn keep_typical(&mut self, typical_p: f32) {
        let total = self.total();
        let sum: u128 = self.list.iter().map(|c| u128::from(c.weight) * u128::from(c.distance_fixed())).sum();
        let mean = (sum / u128::from(total)) as u64;
        let rank = |c: &Candidate| (c.distance_fixed().abs_diff(mean) << 32) | u64::from(c.id);
        self.scratch.clear();
        self.scratch.extend(self.list.iter().map(|c| Ranked { rank: rank(c), weight: c.weight }));
        let last = last_needed(&mut self.scratch, part_of(total, typical_p));
        self.list.retain(|c| rank(c) <= last);
    }

    /// Keeps tokens at least `min_p` times as probable as the most probable one left.
    pub(super) fn keep_min_p(&mut self, min_p: f32) {
        let largest = self.list.iter().map(|c| c.weight).max().expect("never empty");
        let least = part_of(largest, min_p);
        self.list.retain(|c| c.weight >= least);
    }

    /// The token that 64 random bits choose.
    pub(super) fn draw(&self, random: u64) -> TokenId {
        // Scaled down, not taken modulo: the bias is below 2^-6 of the least weight there is.
        let mut at = ((u128::from(random) * u128::from(self.total())) >> 64) as u64;
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

    fn total(&self) -> u64 {
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
