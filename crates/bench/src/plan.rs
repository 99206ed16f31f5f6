//! The checked plan of a run. The command line fills it in; nothing here knows flags or HTTP.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::lengths::Lengths;
use super::workload::Workload;

/// Most requests of one level.
pub const REQUESTS_MAX: usize = 100_000;
/// Most requests under way at once. In an open loop later arrivals wait, and their wait counts.
pub(crate) const IN_FLIGHT_MAX: usize = 1024;
/// Fewest requests of a level without a given number.
const REQUESTS_DEFAULT_MIN: usize = 16;
/// Requests per slot of a closed loop without a given number.
const REQUESTS_PER_SLOT: usize = 4;
/// Length of an open loop without a given number of requests.
const OPEN_LOOP_S: f64 = 15.0;

/// A run: levels of load on one server, or on two in turn.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One server, or two to compare.
    pub servers: Vec<ServerAddress>,
    /// The levels, in order.
    pub levels: Vec<Level>,
    /// Requests per level; if absent, the level decides.
    pub num_requests: Option<usize>,
    /// Requests per server before the first level, not counted.
    pub num_warmup: usize,
    /// The contents of the requests.
    pub workload: Workload,
    /// The form of the requests.
    pub ask: Ask,
    /// What clients do with the answers.
    pub mode: Mode,
    /// A route that is asked again and again beside the load.
    pub probe: Option<String>,
    /// The limits that a good request keeps.
    pub slo: Slo,
    /// Time for one request.
    pub timeout: Duration,
}

/// The address of a server.
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

/// The dialect and the parameters of every request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    /// Which route.
    pub api: Api,
    /// Sampling temperature.
    pub temperature: f32,
    /// Asks servers that know `ignore_eos` to generate until `max_tokens`.
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
    /// Closed loop: this many requests are under way at all times.
    Concurrency(usize),
    /// Open loop: this many requests arrive per second, whatever the server does.
    RatePerS(f64),
}

impl Level {
    /// Number of requests if none was given.
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
    /// Close the connection after a number of pieces of text.
    Cancel {
        /// The number, drawn for each request.
        after: Lengths,
    },
    /// Follow native streams over connections that are cut, and compare with an uninterrupted read.
    Reconnect {
        /// Bytes of the answer until the next cut.
        cut_bytes: Lengths,
        /// Most cuts of one stream, which is then read to its end.
        num_cuts_max: usize,
    },
    /// Read to the end, while other readers take a few bytes per second.
    SlowReader {
        /// Number of slow readers.
        num_readers: usize,
        /// Bytes per second of one slow reader.
        bytes_per_s: usize,
    },
    /// Read to the end, while long prompts arrive one after another.
    Newcomer {
        /// Tokens of these prompts.
        prompt: Lengths,
        /// Pause between the answer to one prompt and the next prompt.
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

/// Limits that a request must keep to count as good. Every request keeps an absent limit.
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
