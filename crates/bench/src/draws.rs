//! Random numbers of the load: functions of a seed and of what they are for, so that request 17 is the same whether or
//! not the sixteen before it were made, and on whichever server it is tried.

use tallow_engine::sampling::random_u64;

/// What a run of draws decides; each has numbers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The words and lengths of a request.
    Request = 1,
    /// When requests arrive.
    Arrivals = 2,
    /// Where connections are cut.
    Cuts = 3,
}

/// A run of draws.
#[derive(Debug, Clone)]
pub struct Draws {
    key: u64,
    position: u64,
}

impl Draws {
    /// The run for number `index` of `purpose`.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        Self { key: random_u64(seed ^ ((purpose as u64) << 56), index), position: 0 }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.position += 1;
        random_u64(self.key, self.position)
    }

    /// Uniform over `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform over `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        let width = (high - low) as f64 + 1.0;
        (low + (self.unit() * width) as usize).min(high)
    }

    /// Exponential with mean 1: the gaps of a Poisson process of rate 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// When `num` requests of a Poisson process of `rate_per_s` arrive, in seconds from its begin.
pub(crate) fn poisson_arrivals(seed: u64, level: u64, rate_per_s: f64, num: usize) -> Vec<f64> {
    let mut draws = Draws::new(seed, Purpose::Arrivals, level);
    let mut at = 0.0;
    let mut next = || {
        at += draws.exponential() / rate_per_s;
        at
    };
    (0..num).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_depend_on_seed_and_level_alone_and_have_their_rate() {
        let arrivals = poisson_arrivals(7, 0, 5.0, 20_000);
        assert_eq!(arrivals, poisson_arrivals(7, 0, 5.0, 20_000));
        assert_eq!(arrivals[..100], poisson_arrivals(7, 0, 5.0, 100));
        assert_ne!(arrivals, poisson_arrivals(8, 0, 5.0, 20_000));
        assert_ne!(arrivals, poisson_arrivals(7, 1, 5.0, 20_000));
        assert!(arrivals.is_sorted() && arrivals[0] >= 0.0);
        let rate = 20_000.0 / arrivals[19_999];
        assert!((rate - 5.0).abs() < 0.15, "{rate}");
        // The gaps of a Poisson process are exponential: as wide as they are long.
        let gaps: Vec<f64> = arrivals.windows(2).map(|w| w[1] - w[0]).collect();
        let variance = gaps.iter().map(|g| (g - 0.2) * (g - 0.2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() - 0.2).abs() < 0.01, "{variance}");
    }

    #[test]
    fn draws_stay_in_range_and_reach_both_ends() {
        let mut draws = Draws::new(1, Purpose::Request, 3);
        let drawn: Vec<usize> = (0..1000).map(|_| draws.between(3, 6)).collect();
        for value in 3..=6 {
            assert!(drawn.contains(&value), "{value}");
        }
        assert!(drawn.iter().all(|n| (3..=6).contains(n)));
        assert_eq!(draws.between(9, 9), 9);
        let mean = (0..10_000).map(|_| draws.normal()).sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.05, "{mean}");
    }
}
