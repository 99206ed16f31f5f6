//! What `tallow bench --offline` found, as a table for people and as JSON for scripts (`benches/peers/run` reads it).

use std::fmt;

use serde::Serialize;

/// The findings and what they were found on.
#[derive(Debug, Serialize)]
pub struct OfflineReport {
    /// tallow's own.
    pub version: &'static str,
    /// The model's name.
    pub model: String,
    /// Its architecture and sizes.
    pub description: String,
    /// The instruction set in use.
    pub isa: String,
    /// Compute threads; 0 where they are not ours.
    pub threads: usize,
    /// How inputs of quantised matrices are represented.
    pub activations: String,
    /// From the path to a decoder that is ready for its first token.
    pub load_seconds: f64,
    /// Size of the model's file.
    pub file_bytes: u64,
    /// Resident memory of the process when the model is loaded; `None` where the system does not say.
    pub loaded_resident_bytes: Option<u64>,
    /// Likewise after the measurement, with the sequences' KV memory.
    pub resident_bytes: Option<u64>,
    /// Bytes of the file's tensors that every step reads.
    pub weight_bytes: u64,
    /// How fast these go by in the model's decoding of one sequence, if that was measured.
    pub weight_gb_per_second: Option<f64>,
    /// Tokens of each sequence before decoding was timed.
    pub context: usize,
    /// Samples of each row.
    pub repetitions: usize,
    /// Of the engine's requests.
    pub temperature: f32,
    /// The figures.
    pub rows: Vec<FigureRow>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct FigureRow {
    /// What was measured.
    pub layer: MeasuredLayer,
    /// Doing what.
    pub phase: Phase,
    /// Sequences at once.
    pub batch: usize,
    /// Tokens per sample, of all sequences.
    pub num_tokens: usize,
    /// The median of the samples.
    pub tokens_per_second: f64,
    /// Tokens per second, in the order they were measured.
    pub samples: Vec<f64>,
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MeasuredLayer {
    /// The decoder's forward calls alone.
    Model,
    /// Requests through queue, scheduler, sampling and detokenising.
    Engine,
}

/// What it was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Computing one prompt.
    Prefill,
    /// One token of every sequence per step.
    Decode,
    /// Whole requests, prompts included, in a closed loop; their generated tokens count.
    Requests,
}

impl FigureRow {
    /// The row of these samples.
    pub(super) fn new(layer: MeasuredLayer, phase: Phase, batch: usize, num_tokens: usize, samples: Vec<f64>) -> Self {
        Self { layer, phase, batch, num_tokens, tokens_per_second: median(&samples), samples }
    }
}

/// The middle sample, or the mean of the two in the middle; 0 of none.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

impl fmt::Display for OfflineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1u64 << 20) as f64;
        let Self { model, isa, threads, activations, load_seconds, weight_bytes, .. } = self;
        writeln!(f, "{model}: {isa}, {threads} threads, {activations}; loaded in {load_seconds:.2} s")?;
        write!(f, "weights read per step {:.1} MiB", *weight_bytes as f64 / MIB)?;
        if let Some(rate) = self.weight_gb_per_second {
            write!(f, " ({rate:.1} GB/s at one sequence)")?;
        }
        let file = self.file_bytes as f64;
        write!(f, "\nfile {:.1} MiB", file / MIB)?;
        let resident = [("when loaded", self.loaded_resident_bytes), ("after the measurement", self.resident_bytes)];
        for (when, bytes) in resident.iter().filter_map(|(when, bytes)| Some((when, (*bytes)? as f64))) {
            write!(f, ", resident {:.1} MiB = {:.2} x {when}", bytes / MIB, bytes / file)?;
        }
        writeln!(f, "\n\ntokens/s, medians of {} (range)", self.repetitions)?;
        for row in &self.rows {
            let layer = match row.layer {
                MeasuredLayer::Model => "model",
                MeasuredLayer::Engine => "engine",
            };
            let what = match row.phase {
                Phase::Prefill => format!("prefill {}", row.num_tokens),
                Phase::Decode => format!("decode, {} at once", row.batch),
                Phase::Requests => format!("requests, {} at once", row.batch),
            };
            let least = row.samples.iter().copied().fold(f64::INFINITY, f64::min);
            let most = row.samples.iter().copied().fold(0.0, f64::max);
            writeln!(f, "  {layer:6}  {what:20} {:>9.1}  ({least:.1} - {most:.1})", row.tokens_per_second)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[]), 0.0);
    }
}
