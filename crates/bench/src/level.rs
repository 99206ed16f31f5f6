//! One level of load on one server. Closed loop: a new request follows each that ends, so that so many are under way
//! at all times. Open loop: requests are sent when they are due, whatever the server does; should [`IN_FLIGHT_MAX`] be
//! under way, later ones wait here, and their waiting counts as the server's.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::draws::{Draws, Purpose, poisson_arrivals};
use super::exchange::exchange;
use super::plan::{IN_FLIGHT_MAX, Level, Mode, Plan};
use super::reconnect::{Cuts, follow_over_cuts};
use super::record::{Failure, Record, RequestEnd, Timeline};
use super::tally::Tally;
use super::target::{Prepared, Target};

/// What a level came to.
#[derive(Debug)]
pub(crate) struct LevelResult {
    /// The sums.
    pub tally: Tally,
    /// From the first request's sending to the last one's end.
    pub(crate) wall: Duration,
    /// Requests of an open loop that had to wait for others to end.
    pub num_held: u64,
    /// When the text of each request came; only in mode newcomer, which looks at it.
    pub(crate) timelines: Vec<Timeline>,
}

/// Sends requests `items` at `level`, and calls `hear` after each.
pub(crate) async fn run_level(
    target: &Arc<Target>,
    plan: &Plan,
    level: Level,
    items: Range<u64>,
    hear: &mut dyn FnMut(),
) -> LevelResult {
    let num_requests = (items.end - items.start) as usize;
    let jobs: Vec<HeldRequest> = items.clone().map(|index| HeldRequest::new(target, plan, index)).collect();
    let (slots, due) = match level {
        Level::Concurrency(slots) => (slots, None),
        Level::RatePerS(rate) => {
            let arrivals = poisson_arrivals(plan.workload.seed, items.start, rate, num_requests);
            (IN_FLIGHT_MAX, Some(arrivals))
        }
    };
    let mut jobs = jobs.into_iter();
    let mut running = JoinSet::new();
    let (mut tally, mut num_held, mut num_sent) = (Tally::default(), 0, 0);
    let (keeps_timelines, mut timelines) = (matches!(plan.mode, Mode::Newcomer { .. }), Vec::new());
    // The last time that no slot was free; what was due by then has waited.
    let mut full_at = None;
    let begin = Instant::now();
    loop {
        let due_at = due.as_ref().and_then(|due| due.get(num_sent)).map(|s| begin + Duration::from_secs_f64(*s));
        let now = Instant::now();
        let is_due = num_sent < num_requests && due_at.is_none_or(|at| at <= now);
        if is_due && running.len() < slots {
            if let Some(job) = jobs.next() {
                let held_since = due_at.filter(|at| full_at.is_some_and(|full| *at <= full));
                running.spawn(job.run(held_since.unwrap_or(now)));
                num_held += u64::from(held_since.is_some());
                num_sent += 1;
            }
            continue;
        }
        if is_due && due_at.is_some() {
            full_at = Some(now);
        }
        if running.is_empty() && num_sent == num_requests {
            break;
        }
        let wake_at = due_at.filter(|_| !is_due).map(tokio::time::Instant::from_std);
        tokio::select! {
            Some(ended) = running.join_next(), if !running.is_empty() => {
                // A panic of a request's task is a bug of ours.
                let record = ended.expect("a request's task neither panics nor is aborted");
                if keeps_timelines {
                    timelines.push(record.timeline.clone());
                }
                tally.add(record, &plan.slo);
                hear();
            }
            () = tokio::time::sleep_until(wake_at.unwrap_or_else(tokio::time::Instant::now)), if wake_at.is_some() => {}
        }
    }
    LevelResult { tally, wall: begin.elapsed(), num_held, timelines }
}

/// Warms a server up with `items`, one after another; what comes of it is not counted.
pub(crate) async fn warm_up(target: &Arc<Target>, plan: &Plan, items: Range<u64>) {
    let plan = Plan { mode: Mode::Normal, ..plan.clone() };
    run_level(target, &plan, Level::Concurrency(1), items, &mut || {}).await;
}

/// A request that waits for its turn.
#[derive(Debug)]
struct HeldRequest {
    target: Arc<Target>,
    request: Prepared,
    client: Client,
    timeout: Duration,
}

/// What the client does with the answer.
#[derive(Debug)]
enum Client {
    Reads { cancel_after: Option<usize> },
    Resumes(Cuts),
}

impl HeldRequest {
    fn new(target: &Arc<Target>, plan: &Plan, index: u64) -> Self {
        let item = plan.workload.item(index);
        let mut draws = Draws::new(plan.workload.seed, Purpose::Cuts, index);
        let client = match plan.mode {
            Mode::Normal | Mode::SlowReader { .. } | Mode::Newcomer { .. } => Client::Reads { cancel_after: None },
            Mode::Cancel { after } => Client::Reads { cancel_after: Some(after.draw(&mut draws)) },
            Mode::Reconnect { cut_bytes, num_cuts_max } => {
                Client::Resumes(Cuts { bytes: cut_bytes, num_left: num_cuts_max, draws })
            }
        };
        let request = target.prepare(&item, &plan.ask, &plan.mode);
        Self { target: target.clone(), request, client, timeout: plan.timeout }
    }

    async fn run(self, begin: Instant) -> Record {
        let mut record = Record::begin(begin);
        let Self { target, request, client, timeout } = self;
        let asked = async {
            match client {
                Client::Reads { cancel_after } => exchange(&target, &request, cancel_after, &mut record).await,
                Client::Resumes(cuts) => follow_over_cuts(&target, &request, cuts, &mut record).await,
            }
        };
        let ended = tokio::time::timeout(timeout, asked).await;
        if record.e2e.is_zero() {
            record.e2e = begin.elapsed();
        }
        record.end = match ended {
            Ok(Ok(end)) => end,
            Ok(Err(failure)) => RequestEnd::Failed(failure),
            Err(_) => RequestEnd::Failed(Failure::TimedOut),
        };
        record
    }
}
