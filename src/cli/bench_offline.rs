//! `tallow bench --offline`: flags to a workload, settings to decoder and engine, the report to people or scripts.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::decoder::decoder;
use super::progress::FetchProgress;
use super::pull;
use crate::bench::offline::{self, Layers, OfflineWorkload, Subject};
use crate::config::{Typed, setting};
use crate::telemetry;
use crate::text::printable_json;

/// Where `--json` without a path goes.
pub(super) const STANDARD_OUTPUT: &str = "-";

/// The flags that the two kinds of measurement share.
pub(super) struct SharedFlags {
    /// As for `serve`.
    pub(super) model: Option<String>,
    /// Of the requests to the engine; the decoder's rows do not sample.
    pub(super) temperature: f32,
    /// Where the report goes as JSON.
    pub(super) json: Option<PathBuf>,
}

/// What is measured; other settings are those of `serve`, from the environment and the file.
#[derive(Debug, Args)]
#[command(next_help_heading = "Offline")]
pub(super) struct OfflineArgs {
    /// Compute threads [default: every core] [env: TALLOW_THREADS]
    #[arg(long, requires = "offline", value_name = "N")]
    threads: Option<String>,
    /// f32, int8 [env: TALLOW_ACTIVATIONS]
    #[arg(long, requires = "offline", value_name = "WORD")]
    activations: Option<String>,
    /// Settings as TOML, as for `serve`
    #[arg(long, requires = "offline", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tokens of the prompt that is timed
    #[arg(long, requires = "offline", value_name = "N", default_value_t = 512, value_parser = count(65_536))]
    prefill: u64,
    /// Tokens decoded per sequence
    #[arg(long, requires = "offline", value_name = "N", default_value_t = 64, value_parser = count(65_536))]
    decode: u64,
    /// Tokens of each sequence before decoding is timed
    #[arg(long, requires = "offline", value_name = "N", default_value_t = 64, value_parser = count(65_536))]
    context: u64,
    /// Sequences that decode at once, one measurement for each number
    #[arg(long, requires = "offline", value_name = "N,N", default_value = "1,8,32", value_delimiter = ',', value_parser = count(4096))]
    batch: Vec<u64>,
    /// Measure whole requests too, prompts of --context tokens and --decode tokens each: so many one after another in
    /// each of --batch slots
    #[arg(long, requires = "offline", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=65_536))]
    requests_per_seq: u64,
    /// Measurements of each kind, of which the medians are reported
    #[arg(long, requires = "offline", value_name = "N", default_value_t = 5, value_parser = count(1000))]
    repetitions: u64,
    /// What to drive: the decoder alone, the engine with the decoder in it, or one after the other
    #[arg(long, requires = "offline", value_enum, default_value_t = LayerFlag::Both)]
    layer: LayerFlag,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LayerFlag {
    Model,
    Engine,
    Both,
}

fn count(most: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=most)
}

pub(super) fn run(args: OfflineArgs, shared: SharedFlags) -> anyhow::Result<ExitCode> {
    let work = args.workload(shared.temperature);
    let typed =
        [("model.name", shared.model), ("engine.threads", args.threads), ("model.activations", args.activations)];
    let values = typed.into_iter().filter_map(|(key, text)| Some((setting(key), text?))).collect();
    let config = super::resolve(Typed { values, file: args.config })?;
    telemetry::start(&config.log).map_err(super::UsageError)?;

    let progress = FetchProgress::new();
    let file = pull::registry(&config.process)?.resolve(&config.model.name, &|event| progress.hear(event));
    progress.end();
    let file = file?;
    let subject =
        Subject { name: file.name, path: file.path, options: decoder(&config, &config.model)?, engine: config.engine };
    let report = offline::run(&subject, &work, &|line| eprintln!("{line}"))?;
    match &shared.json {
        None => super::print(&report.to_string())?,
        Some(path) => {
            let json = serde_json::to_string_pretty(&report)? + "\n";
            if path.as_os_str() == STANDARD_OUTPUT {
                super::print(&printable_json(&json))?;
            } else {
                std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
                super::print(&report.to_string())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl OfflineArgs {
    fn workload(&self, temperature: f32) -> OfflineWorkload {
        let size = |n: u64| usize::try_from(n).expect("bounded when it was read");
        OfflineWorkload {
            prefill: size(self.prefill),
            context: size(self.context),
            decode: size(self.decode),
            batches: self.batch.iter().copied().map(size).collect(),
            requests_per_seq: size(self.requests_per_seq),
            repetitions: size(self.repetitions),
            temperature,
            layers: match self.layer {
                LayerFlag::Model => Layers::Model,
                LayerFlag::Engine => Layers::Engine,
                LayerFlag::Both => Layers::Both,
            },
        }
    }
}
