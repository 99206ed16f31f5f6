//! The sums of one level: every record goes in once, and only histograms and counters are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::plan::Slo;
use super::record::{Record, RequestEnd, ResumedReport};

/// Longest time that is told from longer ones: two hours.
const US_MAX: u64 = 7_200_000_000;
/// Three digits: errors below 0.1 %.
const DIGITS: u8 = 3;
/// Stream names that are kept for looking them up after the level.
pub(crate) const STREAMS_MAX: usize = 512;

/// Times as a histogram of microseconds.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, US_MAX, DIGITS).expect("constant bounds are in order"))
    }
}

impl Times {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        self.add_us(u64::try_from(time.as_micros()).unwrap_or(US_MAX));
    }

    /// Adds one.
    pub(crate) fn add_us(&mut self, us: u64) {
        self.0.saturating_record(us.clamp(1, US_MAX));
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time in milliseconds that `quantile` of the values do not exceed.
    pub(crate) fn at_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// Smallest, mean and largest, in milliseconds.
    pub(crate) fn extremes_ms(&self) -> [f64; 3] {
        [self.0.min() as f64 / 1000.0, self.0.mean() / 1000.0, self.0.max() as f64 / 1000.0]
    }
}

/// Failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ErrorCount {
    /// How many.
    pub count: u64,
    /// What was said about the first.
    pub example: String,
}

/// The sums of one level.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub requests: u64,
    pub completed: u64,
    pub cancelled: u64,
    /// Completed within the limits.
    pub good: u64,
    /// Completed without the server's count of tokens; pieces stand in for them.
    pub(crate) without_usage: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub errors: BTreeMap<String, ErrorCount>,
    pub ttft: Times,
    pub(crate) itl: Times,
    pub tpot: Times,
    pub e2e: Times,
    pub queue_wait: Times,
    pub resumed: ResumedReport,
    /// Of requests that were completed or cancelled.
    pub(crate) stream_ids: Vec<String>,
}

impl Tally {
    /// Adds one request.
    pub(crate) fn add(&mut self, record: Record, slo: &Slo) {
        self.requests += 1;
        if let Some(resumed) = &record.resumed {
            self.resumed.add(resumed);
        }
        match &record.end {
            RequestEnd::Complete => self.complete(&record, slo),
            RequestEnd::Cancelled => self.cancelled += 1,
            RequestEnd::Failed(failure) => {
                let example = || ErrorCount { count: 0, example: failure.message().to_owned() };
                self.errors.entry(failure.kind()).or_insert_with(example).count += 1;
                return;
            }
        }
        if let Some(ttft) = record.timeline.ttft() {
            self.ttft.add(ttft);
        }
        record.timeline.gaps_us.iter().for_each(|&us| self.itl.add_us(u64::from(us)));
        if let Some(wait) = record.queue_wait {
            self.queue_wait.add(wait);
        } else if let Some(id) = record.stream_id.filter(|_| self.stream_ids.len() < STREAMS_MAX) {
            self.stream_ids.push(id);
        }
    }

    fn complete(&mut self, record: &Record, slo: &Slo) {
        self.completed += 1;
        self.e2e.add(record.e2e);
        let tokens = match record.usage {
            Some(usage) => {
                self.prompt_tokens += usage.prompt_tokens;
                self.cached_tokens += usage.cached();
                usage.completion_tokens
            }
            None => {
                self.without_usage += 1;
                record.timeline.num_pieces() as u64
            }
        };
        self.completion_tokens += tokens;
        let ttft = record.timeline.ttft();
        let tpot = ttft.filter(|_| tokens > 1).map(|ttft| record.e2e.saturating_sub(ttft).div_f64((tokens - 1) as f64));
        if let Some(tpot) = tpot {
            self.tpot.add(tpot);
        }
        let keeps = |time: Option<Duration>, limit: Option<f64>| {
            time.zip(limit).is_none_or(|(time, limit_ms)| time.as_secs_f64() * 1000.0 <= limit_ms)
        };
        self.good += u64::from(keeps(ttft.or(Some(record.e2e)), slo.ttft_ms) && keeps(tpot, slo.tpot_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Failure, TokenUsage};
    use super::*;
    use std::time::Instant;

    fn record(ttft_ms: u64, gaps_ms: &[u64], tokens: u64) -> Record {
        let begin = Instant::now();
        let mut record = Record::begin(begin);
        let mut at = begin + Duration::from_millis(ttft_ms);
        record.timeline.piece(at);
        for gap in gaps_ms {
            at += Duration::from_millis(*gap);
            record.timeline.piece(at);
        }
        record.e2e = at - begin;
        record.usage = Some(TokenUsage { prompt_tokens: 7, completion_tokens: tokens, ..TokenUsage::default() });
        record
    }

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut times = Times::default();
        (1..=1000).for_each(|ms| times.add(Duration::from_millis(ms)));
        for (quantile, expect) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = times.at_ms(quantile);
            assert!((got / expect - 1.0).abs() < 0.001, "{quantile}: {got}");
        }
        assert_eq!(times.count(), 1000);
        times.add(Duration::from_secs(1_000_000));
        assert_eq!(times.count(), 1001, "too long is still counted");
    }

    #[test]
    fn times_are_those_of_their_definitions() {
        let slo = Slo { ttft_ms: Some(100.0), tpot_ms: Some(15.0) };
        let mut tally = Tally::default();
        // Two tokens came in one piece: TPOT goes by tokens, ITL by pieces.
        tally.add(record(100, &[10, 20, 30], 5), &slo);
        tally.add(record(101, &[10], 2), &slo);
        tally.add(record(50, &[20], 2), &slo);
        tally.add(Record { end: RequestEnd::Cancelled, ..record(10, &[], 0) }, &slo);
        tally.add(Record { end: RequestEnd::Failed(Failure::TimedOut), ..record(10, &[], 0) }, &slo);
        assert_eq!((tally.requests, tally.completed, tally.cancelled), (5, 3, 1));
        assert_eq!((tally.good, tally.prompt_tokens, tally.completion_tokens), (1, 21, 9));
        assert_eq!((tally.ttft.count(), tally.itl.count(), tally.tpot.count(), tally.e2e.count()), (4, 5, 3, 3));
        assert!((tally.tpot.at_ms(0.5) - 15.0).abs() < 0.02, "{}", tally.tpot.at_ms(0.5));
        assert_eq!(tally.errors["timed_out"].count, 1);
    }

    #[test]
    fn pieces_stand_in_for_tokens_that_nobody_counted() {
        let mut tally = Tally::default();
        tally.add(Record { usage: None, ..record(1, &[1, 1], 0) }, &Slo::default());
        assert_eq!((tally.without_usage, tally.completion_tokens, tally.good), (1, 3, 1));
    }
}
