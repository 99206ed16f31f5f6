//! Sines and cosines of a batch's positions, computed anew each step: a table for a long context would take much memory
//! and save little time. Angles are f64 and the functions come from `libm`, so no system library decides a bit.

use crate::config::RopeConfig;

/// One rotation's frequencies.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    /// Radians per position, of each pair.
    frequencies: Vec<f64>,
    magnitude: f64,
}

impl Rope {
    /// Su et al., arXiv 2104.09864, section 3.2.2: pair `i` turns by `base^(-2i / rope_dim)` per position.
    pub(super) fn new(config: &RopeConfig, rope_dim: usize) -> Self {
        let frequency = |i: usize| {
            let plain = libm::pow(f64::from(config.base), -2.0 * i as f64 / rope_dim as f64);
            plain * f64::from(config.position_scale) / config.factors.get(i).map_or(1.0, |f| f64::from(*f))
        };
        Self { frequencies: (0..rope_dim / 2).map(frequency).collect(), magnitude: f64::from(config.magnitude) }
    }

    /// Replaces `cos` and `sin` by `[positions.len(), rope_dim / 2]` values.
    pub(super) fn angles(&self, positions: &[u32], cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        cos.clear();
        sin.clear();
        for position in positions {
            for frequency in &self.frequencies {
                let (s, c) = libm::sincos(f64::from(*position) * frequency);
                cos.push((c * self.magnitude) as f32);
                sin.push((s * self.magnitude) as f32);
            }
        }
    }
}
