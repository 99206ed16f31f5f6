//! `tallow bench`: its flags, checked and turned into a [`Plan`]; progress; and where the report goes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::bench_offline::{self, OfflineArgs, SharedFlags};
use super::bench_progress::BenchProgress;
use super::{UsageError, print};
use crate::bench::{
    self, Api, Ask, Lengths, Level, Mode, Plan, Prompts, REQUESTS_MAX, ServerAddress, Slo, Workload, read_dataset,
};
use crate::error::Error;
use crate::text::printable_json;

/// Requests at once of one level, at most.
const CONCURRENCY_MAX: usize = 1024;
/// Arrivals per second, at most.
const RATE_MAX: f64 = 10_000.0;
/// Levels of one run, at most.
const LEVELS_MAX: usize = 64;
/// Most seconds that a request may be given.
const TIMEOUT_S_MAX: f64 = 86_400.0;
/// Slow readers, at most.
const SLOW_READERS_MAX: usize = 256;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Measure decoder and engine in this process, without HTTP; of the load's flags --model, --temperature and --json
    /// count
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    in_process: OfflineArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// The load on a server over HTTP.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load over HTTP")]
pub(super) struct LoadArgs {
    /// Address of the server; any that speaks OpenAI's dialects over plain HTTP
    #[arg(long, env = "TALLOW_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A second server; both get the same requests in turn, level by level
    #[arg(long, value_name = "URL")]
    compare: Option<String>,
    /// Model; the first one the server lists by default
    #[arg(long)]
    model: Option<String>,
    /// Model of the second server; the first one it lists by default
    #[arg(long, value_name = "MODEL", requires = "compare")]
    compare_model: Option<String>,
    /// Key sent as a bearer token to --url
    #[arg(long, env = "TALLOW_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Dialect of the requests
    #[arg(long, value_enum, default_value_t = ApiArg::Chat)]
    api: ApiArg,
    /// Closed loop: levels of requests under way at once
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,4,16,32", conflicts_with = "rate")]
    concurrency: Vec<usize>,
    /// Open loop: levels of requests per second, with Poisson arrivals
    #[arg(long, value_name = "R,R,...", value_delimiter = ',')]
    rate: Vec<f64>,
    /// Requests per level [default: 4 per slot of a closed loop, 15 s of an open one, at least 16]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Requests per server before the first level, not counted
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: usize,
    /// Length of the prompts in words, of about a token each: 64, 40..120 or normal:80,20
    #[arg(long, value_name = "LENGTHS", default_value = "40..120")]
    prompt_tokens: Lengths,
    /// `max_tokens` of the requests, likewise
    #[arg(long, value_name = "LENGTHS", default_value = "64")]
    output_tokens: Lengths,
    /// Prompts from a file instead: a line is {"prompt": "...", "max_tokens": N} or {"messages": [...]}
    #[arg(long, value_name = "FILE.jsonl")]
    dataset: Option<PathBuf>,
    /// Ask for answers that go on to `max_tokens` (tallow, llama-server and vLLM know how)
    #[arg(long)]
    ignore_eos: bool,
    /// Sampling temperature, 0 to 2
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Of prompts, lengths, arrivals and cuts; take another one, or a server may find the prompts in its cache
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What clients do with the answers
    #[arg(long, value_enum, default_value_t = ModeArg::Normal)]
    mode: ModeArg,
    /// Mode cancel: pieces of text after which a client leaves
    #[arg(long, value_name = "LENGTHS", default_value = "1..16")]
    cancel_after: Lengths,
    /// Mode reconnect: bytes after which a connection is cut
    #[arg(long, value_name = "LENGTHS", default_value = "1..1500")]
    cut_bytes: Lengths,
    /// Mode reconnect: most cuts of one stream
    #[arg(long, value_name = "N", default_value_t = 64)]
    cuts: usize,
    /// Mode slow-reader: slow readers beside the measured load
    #[arg(long, value_name = "N", default_value_t = 4)]
    slow_readers: usize,
    /// Mode slow-reader: bytes per second that each takes
    #[arg(long, value_name = "N", default_value_t = 8)]
    slow_bytes_per_s: usize,
    /// Mode newcomer: length of the prompts that arrive
    #[arg(long, value_name = "LENGTHS", default_value = "2000")]
    newcomer_tokens: Lengths,
    /// Mode newcomer: milliseconds from one's answer to the next one's arrival
    #[arg(long, value_name = "MS", default_value_t = 500)]
    newcomer_pause_ms: u64,
    /// Ask for this route, /health/live for instance, every 20 ms beside the load
    #[arg(long, value_name = "PATH")]
    probe: Option<String>,
    /// Goodput counts requests whose first token came within this time
    #[arg(long, value_name = "MS")]
    slo_ttft_ms: Option<f64>,
    /// Goodput counts requests with at most this time per further token
    #[arg(long, value_name = "MS")]
    slo_tpot_ms: Option<f64>,
    /// Seconds for one request
    #[arg(long, value_name = "S", default_value_t = 300.0)]
    timeout: f64,
    /// Write the report as JSON, to FILE or, instead of the table, to standard output
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = bench_offline::STANDARD_OUTPUT)]
    json: Option<PathBuf>,
    /// Write the report as one HTML page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ApiArg {
    /// Chat Completions
    Chat,
    /// Completions
    Completions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    /// Read them to the end
    Normal,
    /// Close the connection after some pieces of text
    Cancel,
    /// Cut and resume tallow's native streams, and compare with an uninterrupted read
    Reconnect,
    /// Read to the end, beside readers that take a few bytes per second
    SlowReader,
    /// Read to the end, while long prompts arrive one after another
    Newcomer,
}

pub(super) fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    if args.offline {
        let LoadArgs { model, temperature, json, .. } = args.load;
        check_temperature(temperature)?;
        return bench_offline::run(args.in_process, SharedFlags { model, temperature, json });
    }
    let plan = plan(&args.load)?;
    let outputs = [&args.load.json, &args.load.html];
    for path in outputs.into_iter().flatten().filter(|path| !is_standard_output(path)) {
        can_be_written(path)?;
    }
    // One thread: the server that is measured may need the others.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut progress = BenchProgress::new();
    let report = runtime.block_on(bench::run(&plan, &mut |step| progress.hear(&step)));
    progress.end();
    let report = report?;
    // Whoever wants JSON on standard output reads it with a program.
    if !args.load.json.as_deref().is_some_and(is_standard_output) {
        print(&bench::to_text(&report))?;
    }
    if let Some(path) = &args.load.json {
        let mut json = serde_json::to_string_pretty(&report)?;
        json.push('\n');
        if is_standard_output(path) {
            print(&printable_json(&json))?;
        } else {
            write(path, &json)?;
        }
    }
    if let Some(path) = &args.load.html {
        write(path, &bench::to_html(&report))?;
    }
    match report.verdict() {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(message) => bail!(message),
    }
}

/// Finds out before the measurement, not after it.
fn can_be_written(path: &Path) -> anyhow::Result<()> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).with_context(|| path.display().to_string())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

/// What was typed, if it keeps the rules.
fn plan(args: &LoadArgs) -> anyhow::Result<Plan> {
    check_counts(args)?;
    let levels = levels(args)?;
    let prompts = match &args.dataset {
        Some(path) => Prompts::Dataset(read_dataset(path).map_err(|e| wrong("dataset", format!("{e:#}")))?),
        None => Prompts::Synthetic(args.prompt_tokens),
    };
    let workload = Workload { prompts, output_tokens: args.output_tokens, seed: args.seed };
    if args.api == ApiArg::Completions && !workload.is_plain_text() {
        return Err(wrong("api", "--api completions must have a --dataset of `prompt` lines only").into());
    }
    let api_key = args.api_key.clone().filter(|key| !key.is_empty());
    let mut servers = vec![ServerAddress { url: args.url.clone(), flag: "--url", model: args.model.clone(), api_key }];
    if let Some(url) = &args.compare {
        let (url, model) = (url.clone(), args.compare_model.clone());
        // The key is the first server's: it is not for others to see.
        servers.push(ServerAddress { url, flag: "--compare", model, api_key: None });
    }
    for server in &servers {
        bench::base_url(server).map_err(|e| wrong("url", e.to_string()))?;
    }
    Ok(Plan {
        servers,
        levels,
        num_requests: args.requests,
        num_warmup: args.warmup,
        workload,
        ask: Ask {
            api: match args.api {
                ApiArg::Chat => Api::Chat,
                ApiArg::Completions => Api::Completions,
            },
            temperature: args.temperature,
            ignore_eos: args.ignore_eos,
        },
        mode: match args.mode {
            ModeArg::Normal => Mode::Normal,
            ModeArg::Cancel => Mode::Cancel { after: args.cancel_after },
            ModeArg::Reconnect => Mode::Reconnect { cut_bytes: args.cut_bytes, num_cuts_max: args.cuts },
            ModeArg::SlowReader => {
                Mode::SlowReader { num_readers: args.slow_readers, bytes_per_s: args.slow_bytes_per_s }
            }
            ModeArg::Newcomer => {
                Mode::Newcomer { prompt: args.newcomer_tokens, pause: Duration::from_millis(args.newcomer_pause_ms) }
            }
        },
        probe: args.probe.clone(),
        slo: Slo { ttft_ms: args.slo_ttft_ms, tpot_ms: args.slo_tpot_ms },
        timeout: Duration::from_secs_f64(args.timeout),
    })
}

fn levels(args: &LoadArgs) -> Result<Vec<Level>, UsageError> {
    let levels: Vec<Level> = if args.rate.is_empty() {
        args.concurrency.iter().map(|&n| Level::Concurrency(n)).collect()
    } else {
        args.rate.iter().map(|&rate| Level::RatePerS(rate)).collect()
    };
    for level in &levels {
        match level {
            Level::Concurrency(n) => count("concurrency", *n, 1, CONCURRENCY_MAX)?,
            Level::RatePerS(rate) if *rate > 0.0 && *rate <= RATE_MAX => {}
            Level::RatePerS(rate) => {
                return Err(wrong("rate", format!("--rate must be above 0 and at most {RATE_MAX}, got {rate}")));
            }
        }
    }
    count("concurrency", levels.len(), 1, LEVELS_MAX)?;
    Ok(levels)
}

fn check_counts(args: &LoadArgs) -> Result<(), UsageError> {
    count("requests", args.requests.unwrap_or(1), 1, REQUESTS_MAX)?;
    count("warmup", args.warmup, 0, REQUESTS_MAX)?;
    count("cuts", args.cuts, 0, REQUESTS_MAX)?;
    count("slow-readers", args.slow_readers, 1, SLOW_READERS_MAX)?;
    count("slow-bytes-per-s", args.slow_bytes_per_s, 1, 1 << 20)?;
    check_temperature(args.temperature)?;
    if let Some(path) = args.probe.as_ref().filter(|path| !path.starts_with('/')) {
        return Err(wrong("probe", format!("--probe must begin with /, got {path}")));
    }
    if !(args.timeout > 0.0 && args.timeout <= TIMEOUT_S_MAX) {
        let rule = format!("--timeout must be above 0 and at most {TIMEOUT_S_MAX}, got {}", args.timeout);
        return Err(wrong("timeout", rule));
    }
    for (flag, limit) in [("slo-ttft-ms", args.slo_ttft_ms), ("slo-tpot-ms", args.slo_tpot_ms)] {
        if let Some(ms) = limit.filter(|ms| !(*ms > 0.0 && ms.is_finite())) {
            return Err(wrong(flag, format!("--{flag} must be above 0, got {ms}")));
        }
    }
    Ok(())
}

fn count(flag: &str, n: usize, min: usize, max: usize) -> Result<(), UsageError> {
    if (min..=max).contains(&n) {
        return Ok(());
    }
    Err(wrong(flag, format!("--{flag} must be from {min} to {max}, got {n}")))
}

fn is_standard_output(path: &Path) -> bool {
    path.as_os_str() == bench_offline::STANDARD_OUTPUT
}

fn check_temperature(temperature: f32) -> Result<(), UsageError> {
    if (0.0..=2.0).contains(&temperature) {
        return Ok(());
    }
    Err(wrong("temperature", format!("--temperature must be from 0 to 2, got {temperature}")))
}

fn wrong(flag: &str, message: impl Into<String>) -> UsageError {
    UsageError(Error::invalid(flag.replace('-', "_"), message))
}
