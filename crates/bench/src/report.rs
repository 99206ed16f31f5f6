//! What a run came to, as data: the JSON of `--json`, from which table and page are drawn too. Units are in the names.

use std::collections::BTreeMap;

use serde::Serialize;

use super::level::LevelResult;
use super::lookup::LeftReport;
use super::newcomer::NewcomerReport;
use super::percentiles::Percentiles;
use super::plan::{Level, Slo};
use super::probe::ProbeReport;
use super::record::ResumedReport;
use super::slow::SlowReport;
use super::tally::ErrorCount;

/// Changes when fields change their meaning.
pub(crate) const FORMAT: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this shape.
    pub format: u32,
    /// Version of the generator.
    pub version: &'static str,
    /// Seconds since the Unix epoch.
    pub(crate) began_unix_s: u64,
    /// What was asked of the servers.
    pub load: LoadReport,
    /// One, or the two that are compared.
    pub servers: Vec<ServerReport>,
    /// The first server's figures over the second's, per level.
    pub ratios: Vec<Ratios>,
}

/// What was asked of the servers.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// `chat`, `completions`, or `native` for streams that are resumed.
    pub api: String,
    /// What clients did with the answers.
    pub mode: String,
    /// Distribution of the prompts' lengths, or the data set.
    pub prompts: String,
    /// Distribution of `max_tokens`.
    pub output_tokens: String,
    /// Whether `ignore_eos` was asked for.
    pub ignore_eos: bool,
    /// Of everything that was drawn.
    pub seed: u64,
    /// Requests before the first level.
    pub num_warmup: usize,
    /// Limits of what counts as good.
    pub slo: Slo,
}

/// One server.
#[derive(Debug, Clone, Serialize)]
pub struct ServerReport {
    /// Its address.
    pub url: String,
    /// Its model.
    pub model: String,
    /// In the order of the levels.
    pub levels: Vec<LevelReport>,
}

/// One server at one level.
#[derive(Debug, Clone, Serialize)]
pub struct LevelReport {
    /// `concurrency` or `rate_per_s`.
    pub level: Level,
    /// Sent.
    pub requests: u64,
    /// Answered to the end.
    pub completed: u64,
    /// Left by the client, as the mode wants it.
    pub cancelled: u64,
    /// Neither.
    pub failed: u64,
    /// By kind.
    pub errors: BTreeMap<String, ErrorCount>,
    /// From the first sending to the last end.
    pub(crate) wall_s: f64,
    /// Completed requests.
    pub(crate) requests_per_s: f64,
    /// Tokens of completed answers.
    pub tokens_per_s: f64,
    /// Tokens of completed requests.
    pub tokens: TokenCounts,
    /// Completed requests that kept the limits, where there are limits.
    pub goodput: Option<Goodput>,
    /// Time to the first piece of text.
    pub ttft_ms: Percentiles,
    /// Time between one piece and the next.
    pub itl_ms: Percentiles,
    /// (E2E - TTFT) / (tokens - 1), per request.
    pub tpot_ms: Percentiles,
    /// Time to the end of the answer.
    pub(crate) e2e_ms: Percentiles,
    /// Time in the server's queue; absent if the server does not tell.
    pub queue_wait_ms: Option<Percentiles>,
    /// Arrivals of an open loop that waited in the generator.
    pub(crate) held_arrivals: u64,
    /// In mode reconnect.
    pub resumed: Option<ResumedReport>,
    /// In mode cancel.
    pub left: Option<LeftReport>,
    /// In mode slow-reader.
    pub slow_readers: Option<SlowReport>,
    /// In mode newcomer.
    pub newcomers: Option<NewcomerReport>,
    /// Of the route that was asked beside the load, if there was one.
    pub probe: Option<ProbeReport>,
}

/// Tokens as the server counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TokenCounts {
    /// Of prompts.
    pub prompt: u64,
    /// Of these, found in a cache.
    pub cached: u64,
    /// Of answers.
    pub completion: u64,
    /// Requests whose answer had no usage; their pieces of text were counted instead.
    pub requests_without_usage: u64,
}

/// Requests that kept the limits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goodput {
    /// Per second.
    pub(crate) requests_per_s: f64,
    /// Of all that were sent.
    pub fraction: f64,
}

/// The first server's figures over the second's; `None` where one of them has none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratios {
    /// The level.
    pub level: Level,
    /// Above 1: the first is faster.
    pub tokens_per_s: Option<f64>,
    /// Below 1: the first is faster; so for all times.
    pub(crate) ttft_p50: Option<f64>,
    /// As above.
    pub(crate) ttft_p99: Option<f64>,
    /// As above.
    pub(crate) itl_p50: Option<f64>,
    /// As above.
    pub(crate) itl_p99: Option<f64>,
    /// As above.
    pub(crate) e2e_p50: Option<f64>,
}

impl LevelReport {
    /// The figures of a level.
    pub(crate) fn new(level: Level, result: &LevelResult, slo: &Slo) -> Self {
        let LevelResult { tally, wall, num_held, .. } = result;
        let wall_s = wall.as_secs_f64();
        let per_s = |n: u64| if wall_s > 0.0 { n as f64 / wall_s } else { 0.0 };
        let goodput = slo.is_given().then(|| Goodput {
            requests_per_s: per_s(tally.good),
            fraction: tally.good as f64 / tally.requests.max(1) as f64,
        });
        Self {
            level,
            requests: tally.requests,
            completed: tally.completed,
            cancelled: tally.cancelled,
            failed: tally.errors.values().map(|e| e.count).sum(),
            errors: tally.errors.clone(),
            wall_s,
            requests_per_s: per_s(tally.completed),
            tokens_per_s: per_s(tally.completion_tokens),
            tokens: TokenCounts {
                prompt: tally.prompt_tokens,
                cached: tally.cached_tokens,
                completion: tally.completion_tokens,
                requests_without_usage: tally.without_usage,
            },
            goodput,
            ttft_ms: Percentiles::new(&tally.ttft),
            itl_ms: Percentiles::new(&tally.itl),
            tpot_ms: Percentiles::new(&tally.tpot),
            e2e_ms: Percentiles::new(&tally.e2e),
            queue_wait_ms: (tally.queue_wait.count() > 0).then(|| Percentiles::new(&tally.queue_wait)),
            held_arrivals: *num_held,
            resumed: (tally.resumed.streams > 0).then_some(tally.resumed),
            left: None,
            slow_readers: None,
            newcomers: None,
            probe: None,
        }
    }
}

impl Ratios {
    /// `first` over `second`.
    pub fn new(first: &LevelReport, second: &LevelReport) -> Self {
        let ratio = |of: fn(&LevelReport) -> f64| {
            let (a, b) = (of(first), of(second));
            (a > 0.0 && b > 0.0).then(|| a / b)
        };
        Self {
            level: first.level,
            tokens_per_s: ratio(|l| l.tokens_per_s),
            ttft_p50: ratio(|l| l.ttft_ms.p50),
            ttft_p99: ratio(|l| l.ttft_ms.p99),
            itl_p50: ratio(|l| l.itl_ms.p50),
            itl_p99: ratio(|l| l.itl_ms.p99),
            e2e_p50: ratio(|l| l.e2e_ms.p50),
        }
    }
}

impl Report {
    /// What speaks against the run: no request got through, or a resumed stream was not whole.
    pub fn verdict(&self) -> Result<(), String> {
        for server in &self.servers {
            let sum = |of: fn(&LevelReport) -> u64| server.levels.iter().map(of).sum::<u64>();
            if sum(|l| l.completed + l.cancelled) == 0 {
                return Err(format!("no request to {} got an answer", server.url));
            }
            let mut resumed = server.levels.iter().filter_map(|level| level.resumed);
            if let Some(found) = resumed.find(|resumed| !resumed.is_whole()) {
                let ResumedReport { lost, doubled, different, gaps, .. } = found;
                return Err(format!(
                    "resumed streams of {} are not whole: {lost} events lost, {doubled} doubled, {different} different, \
                     {gaps} gaps",
                    server.url
                ));
            }
        }
        Ok(())
    }
}
