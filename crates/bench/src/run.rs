//! A whole run: each level on each server. With two servers they take turns level by level, the one that goes first
//! changing, so that a machine that slows down with time slows both.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::level::{run_level, warm_up};
use super::lookup::look_up;
use super::newcomer::Newcomers;
use super::plan::{Api, Level, Mode, Plan};
use super::probe::Prober;
use super::report::{FORMAT, LevelReport, LoadReport, Ratios, Report, ServerReport};
use super::slow::SlowReaders;
use super::target::Target;
use super::workload::Prompts;

/// Where the numbers of requests beside the measured ones begin: far beyond these.
const BESIDE_ITEMS: u64 = 1 << 40;

/// How far a run has come.
#[derive(Debug, Clone, PartialEq)]
pub enum RunStep {
    /// A server is being warmed up.
    WarmingUp {
        /// Its address.
        url: String,
    },
    /// A level begins on a server.
    LevelBegins {
        /// Its address.
        url: String,
        /// The level.
        level: Level,
        /// Requests to come.
        num_requests: usize,
    },
    /// A request has ended.
    RequestEnded,
}

/// Runs the plan, and tells `hear` how far it has come.
///
/// # Errors
/// If a server's model cannot be found out, or slow readers cannot connect. Failed requests are no error of the run.
pub async fn run(plan: &Plan, hear: &mut dyn FnMut(RunStep)) -> anyhow::Result<Report> {
    let began_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let mut targets = Vec::new();
    let mut servers = Vec::new();
    for address in &plan.servers {
        let target = Arc::new(Target::reach(address).await?);
        let url = target.base().trim_end_matches("/v1").to_owned();
        servers.push(ServerReport { url, model: target.model.clone(), levels: Vec::new() });
        targets.push(target);
    }
    let mut next_item = plan.num_warmup as u64;
    if plan.num_warmup > 0 {
        for (target, server) in targets.iter().zip(&servers) {
            hear(RunStep::WarmingUp { url: server.url.clone() });
            warm_up(target, plan, 0..next_item).await;
        }
    }
    for (i, &level) in plan.levels.iter().enumerate() {
        let num_requests = plan.num_requests.unwrap_or_else(|| level.num_requests_default());
        let items = next_item..next_item + num_requests as u64;
        next_item = items.end;
        let mut order: Vec<usize> = (0..targets.len()).collect();
        order.rotate_left(i % targets.len());
        for at in order {
            hear(RunStep::LevelBegins { url: servers[at].url.clone(), level, num_requests });
            let measured = measure(&targets[at], plan, level, items.clone(), hear).await?;
            servers[at].levels.push(measured);
        }
    }
    let ratios = match servers.as_slice() {
        [first, second] => first.levels.iter().zip(&second.levels).map(|(a, b)| Ratios::new(a, b)).collect(),
        _ => Vec::new(),
    };
    let version = env!("CARGO_PKG_VERSION");
    Ok(Report { format: FORMAT, version, began_unix_s, load: describe(plan), servers, ratios })
}

/// One level on one server, with what goes on beside and after it.
async fn measure(
    target: &Arc<Target>,
    plan: &Plan,
    level: Level,
    items: std::ops::Range<u64>,
    hear: &mut dyn FnMut(RunStep),
) -> anyhow::Result<LevelReport> {
    let slow = match plan.mode {
        Mode::SlowReader { num_readers, bytes_per_s } => {
            let item = |i: usize| plan.workload.item(BESIDE_ITEMS + items.start + i as u64);
            let requests: Vec<_> = (0..num_readers).map(|i| target.prepare(&item(i), &plan.ask, &plan.mode)).collect();
            let opened = SlowReaders::open(target, &requests, bytes_per_s).await;
            Some(opened.with_context(|| format!("slow readers cannot connect to {}", target.base()))?)
        }
        Mode::Normal | Mode::Cancel { .. } | Mode::Reconnect { .. } | Mode::Newcomer { .. } => None,
    };
    let newcomers = match plan.mode {
        Mode::Newcomer { prompt, pause } => {
            Some(Newcomers::start(target, plan, prompt, pause, BESIDE_ITEMS + (items.start << 20)))
        }
        _ => None,
    };
    let prober = plan.probe.as_ref().map(|path| Prober::start(target, path));
    let mut result = run_level(target, plan, level, items, &mut || hear(RunStep::RequestEnded)).await;
    let slow_readers = slow.as_ref().map(SlowReaders::report);
    drop(slow);
    let probe = match prober {
        Some(prober) => Some(prober.finish().await),
        None => None,
    };
    let is_cancel = matches!(plan.mode, Mode::Cancel { .. });
    let left = look_up(target, &mut result.tally, is_cancel).await;
    let mut report = LevelReport::new(level, &result, &plan.slo);
    if let Some(newcomers) = newcomers {
        report.newcomers = Some(newcomers.finish(&result.timelines).await);
    }
    Ok(LevelReport { left: is_cancel.then_some(left), slow_readers, probe, ..report })
}

fn describe(plan: &Plan) -> LoadReport {
    let prompts = match &plan.workload.prompts {
        Prompts::Synthetic(lengths) => format!("{lengths} words"),
        Prompts::Dataset(lines) => format!("data set of {} lines", lines.len()),
    };
    let api = match (plan.mode, plan.ask.api) {
        (Mode::Reconnect { .. }, _) => "native",
        (_, Api::Chat) => "chat",
        (_, Api::Completions) => "completions",
    };
    LoadReport {
        api: api.to_owned(),
        mode: plan.mode.name().to_owned(),
        prompts,
        output_tokens: plan.workload.output_tokens.to_string(),
        ignore_eos: plan.ask.ignore_eos,
        seed: plan.workload.seed,
        num_warmup: plan.num_warmup,
        slo: plan.slo,
    }
}
