//! `tallow pull`: fetch a model's weights into the cache, or check those that are there.

use std::process::ExitCode;

use clap::Args;

use super::flags::ToolFlags;
use super::progress::FetchProgress;
use crate::config::ProcessConfig;
use crate::hub::{CacheDir, Registry};

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// A name of `tallow models`, or hub:OWNER/REPO[:FILE]
    name: String,
    #[command(flatten)]
    flags: ToolFlags,
}

pub(super) fn run(args: PullArgs) -> anyhow::Result<ExitCode> {
    let config = super::resolve(args.flags.0)?;
    let registry = registry(&config.process)?;
    let progress = FetchProgress::new();
    let pulled = registry.pull(&args.name, &|event| progress.hear(event));
    progress.end();
    super::print(&format!("{}\n", pulled?.path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The registry as configured; the hub's address and token come from its own variables (`HF_ENDPOINT`, `HF_TOKEN`).
pub(super) fn registry(config: &ProcessConfig) -> crate::error::Result<Registry> {
    Registry::from_env(CacheDir::new(&config.cache_dir), config.models_dir.as_deref())
}
