//! Weights of a whole row, in chunks that the compiler makes vector loops of.
//!
//! A weight has up to 41 bits, and no common vector unit converts floats to such integers. So it is computed in two
//! parts of about 20 bits, and these without a conversion: each step is exact, so nothing is rounded beyond what
//! [`weight`] says.

use super::math::exp_f32;
use tallow_stream::protocol::TokenId;

/// The weight of the most probable token, 2^40: small enough that a vocabulary's sum fits 64 bits.
pub(super) const WEIGHT_ONE: f64 = 1_099_511_627_776.0;

/// Above this distance the weight is 0: 40 ln 2 is 27.73.
const DISTANCE_MAX: f32 = 27.75;

/// The lower part's range.
const LOW: f32 = 1_048_576.0;

/// Logits that are weighed together. So many lower or upper parts sum up to less than 2^32.
const CHUNK: usize = 64;

/// A row of logits, to be weighed.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitRow<'a> {
    pub(super) logits: &'a [f32],
    /// The largest of them; finite.
    pub(super) max: f32,
    /// Positive.
    pub(super) temperature: f32,
}

impl LogitRow<'_> {
    /// How far a logit is below the largest, divided by the temperature.
    pub(super) fn distance(&self, logit: f32) -> f32 {
        (self.max - logit) / self.temperature
    }

    /// The sum of all weights.
    pub(super) fn total(&self) -> u64 {
        self.logits.chunks(CHUNK).map(|chunk| self.sum(chunk)).sum()
    }

    /// The token that 64 random bits choose of the whole row. `sums` is scratch.
    pub(super) fn draw(&self, random: u64, sums: &mut Vec<u64>) -> TokenId {
        sums.clear();
        sums.extend(self.logits.chunks(CHUNK).map(|chunk| self.sum(chunk)));
        let mut at = draw_at(random, sums.iter().sum());
        let mut falls = |weight: u64| {
            let is_here = at < weight;
            at -= if is_here { 0 } else { weight };
            is_here
        };
        let index = sums.iter().position(|&sum| falls(sum)).expect("a number below the sum falls into a chunk");
        let chunk = &self.logits[index * CHUNK..];
        let lane = chunk.iter().position(|&logit| falls(weight(self.distance(logit))));
        (index * CHUNK + lane.expect("and into one of its tokens")) as TokenId
    }

    /// Calls `with` with id, distance and weight of each token within `distance_max`, in order of id.
    pub(super) fn for_each_near(&self, distance_max: f32, mut with: impl FnMut(TokenId, f32, u64)) {
        for (index, chunk) in self.logits.chunks(CHUNK).enumerate() {
            let (mut distances, mut num_near) = ([0.0; CHUNK], 0);
            for (distance, &logit) in distances.iter_mut().zip(chunk) {
                *distance = self.distance(logit);
                num_near += u32::from(*distance <= distance_max);
            }
            if num_near == 0 {
                continue;
            }
            let (mut highs, mut lows) = ([0; CHUNK], [0; CHUNK]);
            for ((high, low), &distance) in highs.iter_mut().zip(&mut lows).zip(&distances) {
                (*high, *low) = parts(distance);
            }
            for (lane, &distance) in distances[..chunk.len()].iter().enumerate() {
                if distance <= distance_max {
                    with((index * CHUNK + lane) as TokenId, distance, joined(highs[lane], lows[lane]));
                }
            }
        }
    }

    fn sum(&self, chunk: &[f32]) -> u64 {
        let (mut highs, mut lows) = (0, 0);
        for &logit in chunk {
            let (high, low) = parts(self.distance(logit));
            highs += high;
            lows += low;
        }
        joined(highs, lows)
    }
}

/// Weight of a token whose scaled logit is `distance >= 0` below the largest: `floor(exp(-distance) * 2^40)`.
pub(super) fn weight(distance: f32) -> u64 {
    let (high, low) = parts(distance);
    joined(high, low)
}

/// Where in a sum of weights 64 random bits fall. Scaled down, not taken modulo: the bias is below 2^-6 of the least
/// weight there is.
pub(super) fn draw_at(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// A weight's upper and lower part. Scaling by a power of two is exact, and so is taking away the upper part: what is
/// left is the lower bits of the significand.
#[inline]
fn parts(distance: f32) -> (u32, u32) {
    let exact = if distance < DISTANCE_MAX { exp_f32(-distance) * WEIGHT_ONE as f32 } else { 0.0 };
    let (high, whole) = floor(exact * (1.0 / LOW));
    let (low, _) = floor(exact - whole * LOW);
    (high, low)
}

/// The integer part of `0 <= x <= 2^21`, as both. A cast would saturate, which is no vector operation; adding
/// 1.5 * 2^23 leaves the nearest integer in the low bits, and one is taken away if that is above.
#[inline]
fn floor(x: f32) -> (u32, f32) {
    const ROUND: f32 = 12_582_912.0;
    let shifted = x + ROUND;
    let nearest = shifted - ROUND;
    let is_above = nearest > x;
    let integer = (shifted.to_bits() - ROUND.to_bits()) - u32::from(is_above);
    (integer, nearest - if is_above { 1.0 } else { 0.0 })
}

fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) * LOW as u64 + u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_the_whole_weight() {
        let bits = (0..DISTANCE_MAX.to_bits() + 100_000).step_by(997);
        for distance in bits.map(f32::from_bits).chain([0.0, 27.7, 30.0, 100.0, f32::INFINITY]) {
            let exact = if distance < DISTANCE_MAX { (exp_f32(-distance) * WEIGHT_ONE as f32) as u64 } else { 0 };
            assert_eq!(weight(distance), exact, "distance {distance}");
        }
    }

    #[test]
    fn a_chunk_of_the_largest_weights_does_not_overflow() {
        for len in [1, CHUNK - 1, CHUNK, 5 * CHUNK + 7] {
            let row = LogitRow { logits: &vec![3.0; len], max: 3.0, temperature: 1.0 };
            assert_eq!(row.total(), len as u64 * WEIGHT_ONE as u64);
        }
    }
}
