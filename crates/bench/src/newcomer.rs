//! Long prompts that arrive while the measured requests decode, and what these feel of it. A newcomer asks for one
//! token; while its prompt is being computed, every gap between two pieces of the others' text counts as beside it.
//! Gaps during which one of the measured requests waited for its own first token are left out on both sides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::exchange::exchange;
use super::lengths::Lengths;
use super::percentiles::Percentiles;
use super::plan::{Ask, Mode, Plan};
use super::record::{Record, RequestEnd, Timeline};
use super::tally::Times;
use super::target::Target;
use super::workload::{Prompts, Workload};

/// Newcomers arriving one after another, until they are told to finish.
pub(crate) struct Newcomers {
    stop: CancellationToken,
    task: AbortOnDropHandle<Arrivals>,
}

/// What came of the newcomers themselves.
#[derive(Debug, Default)]
struct Arrivals {
    waits: Vec<(Instant, Instant)>,
    ttft: Times,
    prompt_tokens: u64,
    error: Option<String>,
}

/// What newcomers cost those who were there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewcomerReport {
    /// Newcomers that got their token.
    pub answered: u64,
    /// Tokens of all their prompts.
    pub prompt_tokens: u64,
    /// Their own time to the first token.
    pub ttft_ms: Percentiles,
    /// Gaps of the measured requests while a newcomer's prompt was computed.
    pub itl_beside_ms: Percentiles,
    /// The other gaps.
    pub itl_quiet_ms: Percentiles,
    /// The one's p99 over the other's; `None` where one of them has no gaps.
    pub(crate) itl_p99_ratio: Option<f64>,
    /// Why no more of them came.
    pub error: Option<String>,
}

impl Newcomers {
    /// Sends one after each `pause`, numbered from `first_item`.
    pub(crate) fn start(target: &Arc<Target>, plan: &Plan, prompt: Lengths, pause: Duration, first_item: u64) -> Self {
        let workload = Workload {
            prompts: Prompts::Synthetic(prompt),
            output_tokens: Lengths::Fixed(1),
            seed: plan.workload.seed,
        };
        let stop = CancellationToken::new();
        let arrivals = arrive(target.clone(), workload, plan.ask, pause, first_item, stop.clone());
        Self { stop, task: AbortOnDropHandle::new(tokio::spawn(arrivals)) }
    }

    /// Lets the last of them get its token, and looks at what `timelines`, the measured requests, felt.
    pub(crate) async fn finish(self, timelines: &[Timeline]) -> NewcomerReport {
        self.stop.cancel();
        let arrivals = self.task.await.expect("it neither panics nor is aborted");
        let beside = Spans::new(arrivals.waits.clone());
        let own = Spans::new(timelines.iter().filter_map(|t| Some((t.begin, t.begin + t.ttft()?))).collect());
        let (mut itl_beside, mut itl_quiet) = (Times::default(), Times::default());
        for (begin, end) in timelines.iter().flat_map(Timeline::gaps).filter(|(begin, end)| !own.touch(*begin, *end)) {
            let times = if beside.touch(begin, end) { &mut itl_beside } else { &mut itl_quiet };
            times.add(end - begin);
        }
        let has_both = itl_beside.count() > 0 && itl_quiet.count() > 0;
        NewcomerReport {
            answered: arrivals.ttft.count(),
            prompt_tokens: arrivals.prompt_tokens,
            ttft_ms: Percentiles::new(&arrivals.ttft),
            itl_p99_ratio: has_both.then(|| itl_beside.at_ms(0.99) / itl_quiet.at_ms(0.99)),
            itl_beside_ms: Percentiles::new(&itl_beside),
            itl_quiet_ms: Percentiles::new(&itl_quiet),
            error: arrivals.error,
        }
    }
}

/// At least one comes, however soon it is told to stop.
async fn arrive(
    target: Arc<Target>,
    workload: Workload,
    ask: Ask,
    pause: Duration,
    first_item: u64,
    stop: CancellationToken,
) -> Arrivals {
    let mut arrivals = Arrivals::default();
    for index in first_item.. {
        let request = target.prepare(&workload.item(index), &ask, &Mode::Normal);
        // The end of the pause or of the level, whichever comes first.
        let _ = tokio::time::timeout(pause, stop.cancelled()).await;
        let mut record = Record::begin(Instant::now());
        let ended = exchange(&target, &request, None, &mut record).await;
        let begin = record.timeline.begin;
        let ttft = record.timeline.ttft();
        arrivals.waits.push((begin, ttft.map_or_else(Instant::now, |ttft| begin + ttft)));
        match (ended, ttft) {
            (Ok(RequestEnd::Complete), Some(ttft)) => arrivals.ttft.add(ttft),
            (Ok(_), _) => arrivals.error = Some("an answer without text".to_owned()),
            (Err(failure), _) => arrivals.error = Some(failure.message().to_owned()),
        }
        arrivals.prompt_tokens += record.usage.map_or(0, |usage| usage.prompt_tokens);
        if stop.is_cancelled() || arrivals.error.is_some() {
            break;
        }
    }
    arrivals
}

/// Spans of time, those that overlap made one.
struct Spans(Vec<(Instant, Instant)>);

impl Spans {
    fn new(mut spans: Vec<(Instant, Instant)>) -> Self {
        spans.sort_unstable();
        let mut apart: Vec<(Instant, Instant)> = Vec::with_capacity(spans.len());
        for (begin, end) in spans {
            match apart.last_mut() {
                Some(last) if begin <= last.1 => last.1 = last.1.max(end),
                _ => apart.push((begin, end)),
            }
        }
        Self(apart)
    }

    /// Whether one of them shares more than a moment with this one.
    fn touch(&self, begin: Instant, end: Instant) -> bool {
        let next = self.0.partition_point(|span| span.1 <= begin);
        self.0.get(next).is_some_and(|span| span.0 < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_know_what_touches_them() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let spans = Spans::new([(30, 40), (10, 20), (15, 25), (25, 28)].map(|(a, b)| (at(a), at(b))).into());
        assert_eq!(spans.0, [(at(10), at(28)), (at(30), at(40))]);
        for (begin, end, expect) in [
            (0, 10, false),
            (0, 11, true),
            (12, 13, true),
            (27, 29, true),
            (28, 30, false),
            (5, 50, true),
            (39, 60, true),
            (40, 60, false),
        ] {
            assert_eq!(spans.touch(at(begin), at(end)), expect, "{begin}..{end}");
        }
        assert!(!Spans::new(Vec::new()).touch(at(0), at(1)));
    }
}
