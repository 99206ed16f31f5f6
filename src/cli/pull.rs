//! `tallow pull`: fetch a model's weights into the cache.

use std::process::ExitCode;

use clap::Args;

use super::flags::ToolFlags;
use super::progress::FetchProgress;

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// A name of `tallow models`, or hub:OWNER/REPO[:FILE]
    name: String,
    #[command(flatten)]
    flags: ToolFlags,
}

pub(super) fn run(args: PullArgs) -> anyhow::Result<ExitCode> {
    let config = super::resolve(args.flags.0)?;
    let progress = FetchProgress::new();
    progress.note(&format!("{} -> {}", args.name, config.registry.cache_dir.display()));
    progress.at(0, None);
    progress.end();
    anyhow::bail!("the registry is not merged yet")
}
