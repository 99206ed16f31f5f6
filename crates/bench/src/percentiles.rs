//! A distribution of times as a report tells it.

use serde::Serialize;

use super::tally::Times;

/// Points of a distribution in the report.
const CDF_POINTS: usize = 100;

/// A distribution of times in milliseconds; zeros where there are none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many times.
    pub count: u64,
    /// Smallest.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// Nine of ten are no longer.
    pub p90: f64,
    /// 99 of 100 are no longer.
    pub p99: f64,
    /// Largest.
    pub max: f64,
    /// Points (milliseconds, fraction of the times that are no longer), fractions rising.
    pub cdf: Vec<(f64, f64)>,
}

impl Percentiles {
    /// The three that tables and charts have.
    pub fn shown(&self) -> [f64; 3] {
        [self.p50, self.p90, self.p99]
    }

    /// Of these times.
    pub fn new(times: &Times) -> Self {
        if times.count() == 0 {
            return Self { count: 0, min: 0.0, mean: 0.0, p50: 0.0, p90: 0.0, p99: 0.0, max: 0.0, cdf: Vec::new() };
        }
        let [min, mean, max] = times.extremes_ms();
        let num_points = CDF_POINTS.min(times.count() as usize);
        let cdf = (1..=num_points).map(|i| i as f64 / num_points as f64).map(|q| (times.at_ms(q), q));
        Self {
            count: times.count(),
            min,
            mean,
            p50: times.at_ms(0.5),
            p90: times.at_ms(0.9),
            p99: times.at_ms(0.99),
            max,
            cdf: cdf.collect(),
        }
    }
}
