//! What a run is to do, checked. The command line fills it in; nothing here knows flags or HTTP.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::lengths::Lengths;
use super::workload::Workload;

/// Requests of one level, at most.
pub const REQUESTS_MAX: usize = 100_000;
/// Requests under way at once, at most. In an open loop later arrivals wait, and their waiting counts.
pub(crate) const IN_FLIGHT_MAX: usize = 1024;
/// Fewest requests of a level that does not say.
const REQUESTS_DEFAULT_MIN: usize = 16;
/// Requests per slot of a closed loop that does not say.
const REQUESTS_PER_SLOT: usize = 4;
/// Length of an open loop that does not say.
const OPEN_LOOP_S: f64 = 15.0;

/// A run: levels of load on one server, or on two in turn.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One, or the one and the other to compare.
    pub servers: Vec<ServerAddress>,
    /// The levels, in order.
    pub levels: Vec<Level>,
    /// Requests per level; by the level if absent.
    pub num_requests: Option<usize>,
    /// Requests per server before the first level, not counted.
    pub num_warmup: usize,
    /// What is asked.
    pub workload: Workload,
    /// How it is asked.
    pub ask: Ask,
    /// What clients do with the answers.
    pub mode: Mode,
    /// A route that is asked again and again beside the load.
    pub probe: Option<String>,
    /// What counts as good.
    pub slo: Slo,
    /// Time for one request.
    pub timeout: Duration,
}

/// A server to be reached.
#[derive(Debug, Clone)]
pub struct ServerAddress {
    /// With or without `/v1` at its end.
    pub url: String,
    /// The flag that named it, for errors.
    pub flag: &'static str,
    /// The model; the first one listed if absent.
    pub model: Option<String>,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
}

/// The dialect and what goes into every request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    /// Which route.
    pub api: Api,
    /// Sampling temperature.
    pub temperature: f32,
    /// Ask servers that know `ignore_eos` to go on to `max_tokens`.
    pub ignore_eos: bool,
}

/// Which route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// One level of load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Closed loop: so many requests are under way at all times.
    Concurrency(usize),
    /// Open loop: so many requests arrive per second, whatever the server does.
    RatePerS(f64),
}

impl Level {
    /// Requests where nobody says how many.
    pub(crate) fn num_requests_default(&self) -> usize {
        let wanted = match self {
            Self::Concurrency(n) => n.saturating_mul(REQUESTS_PER_SLOT),
            Self::RatePerS(rate) => (rate * OPEN_LOOP_S).ceil() as usize,
        };
        wanted.clamp(REQUESTS_DEFAULT_MIN, REQUESTS_MAX)
    }

    /// In words: `concurrency 4`, `2 arrivals/s`.
    pub fn label(&self) -> String {
        match self {
            Self::Concurrency(n) => format!("concurrency {n}"),
            Self::RatePerS(rate) => format!("{rate} arrivals/s"),
        }
    }

    /// What the number of a level counts.
    pub(crate) fn axis(&self) -> &'static str {
        match self {
            Self::Concurrency(_) => "concurrency",
            Self::RatePerS(_) => "arrivals/s",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Concurrency(n) => write!(f, "{n}"),
            Self::RatePerS(rate) => write!(f, "{rate}"),
        }
    }
}

/// What clients do with the answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Read them to the end.
    Normal,
    /// Close the connection after so many pieces of text.
    Cancel {
        /// Drawn for each request.
        after: Lengths,
    },
    /// Follow native streams over connections that are cut, and compare with an uninterrupted read.
    Reconnect {
        /// Bytes of the answer until the next cut.
        cut_bytes: Lengths,
        /// Cuts of one stream, at most; then it is read to its end.
        num_cuts_max: usize,
    },
    /// Read to the end, beside readers that take a few bytes per second.
    SlowReader {
        /// How many of them.
        num_readers: usize,
        /// What one of them takes.
        bytes_per_s: usize,
    },
    /// Read to the end, while long prompts arrive one after another.
    Newcomer {
        /// Tokens of these prompts.
        prompt: Lengths,
        /// From one's answer to the next.
        pause: Duration,
    },
}

impl Mode {
    /// The word on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Cancel { .. } => "cancel",
            Self::Reconnect { .. } => "reconnect",
            Self::SlowReader { .. } => "slow-reader",
            Self::Newcomer { .. } => "newcomer",
        }
    }
}

/// Limits that a request must keep to count as good; an absent one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Slo {
    /// Time to the first token.
    pub ttft_ms: Option<f64>,
    /// Time per further token.
    pub tpot_ms: Option<f64>,
}

impl Slo {
    /// Whether there is any limit.
    pub fn is_given(&self) -> bool {
        self.ttft_ms.is_some() || self.tpot_ms.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_without_a_number_of_requests_have_a_few_per_slot() {
        assert_eq!(Level::Concurrency(1).num_requests_default(), 16);
        assert_eq!(Level::Concurrency(32).num_requests_default(), 128);
        assert_eq!(Level::RatePerS(0.5).num_requests_default(), 16);
        assert_eq!(Level::RatePerS(4.0).num_requests_default(), 60);
        assert_eq!(Level::RatePerS(1e9).num_requests_default(), REQUESTS_MAX);
    }
}
