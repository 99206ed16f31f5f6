//! `tallow bench`: measure this machine.

use std::process::ExitCode;

use clap::Args;

use super::bench_offline::{self, OfflineArgs};

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Measure decoder and engine in this process, without HTTP
    #[arg(long, required = true)]
    offline: bool,
    #[command(flatten)]
    args: OfflineArgs,
}

pub(super) fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let BenchArgs { offline: _, args } = args;
    bench_offline::run(args)
}
