//! `tallow config`: what `serve` with the same flags, variables and file would run with. Keys are not shown.

use std::process::ExitCode;

use clap::Args;

use super::flags::ServeFlags;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    flags: ServeFlags,
}

pub(super) fn run(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    super::print(&super::resolve(args.flags.0)?.to_string())?;
    Ok(ExitCode::SUCCESS)
}
