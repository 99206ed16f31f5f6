//! The command line: `serve`, `pull`, `models`, `config`, `chat`, `bench`. It turns what was typed into a [`crate::config::Config`],
//! composes the rooms, prints for people, and turns results into exit codes: 0 done, 1 failed, 2 wrongly called,
//! 128 + n ended by signal n.

mod bench;
mod bench_offline;
mod bench_progress;
mod chat;
mod config;
mod decoder;
mod flags;
mod models;
mod open_files;
mod progress;
mod pull;
mod serve;
mod signals;
mod start;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, Sources, Typed};
use crate::text::printable;

/// Serves language models as token streams.
#[derive(Debug, Parser)]
#[command(name = "tallow", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over HTTP, fetching it first if need be
    Serve(serve::ServeArgs),
    /// Fetch a model's weights into the cache
    Pull(pull::PullArgs),
    /// List the models tallow knows by name, and which are cached
    Models(models::ModelsArgs),
    /// Show every setting with its value and where it came from
    Config(config::ConfigArgs),
    /// Talk to a server in the terminal
    Chat(chat::ChatArgs),
    /// Put a load on a server, or measure this machine, and report what came of it
    Bench(Box<bench::BenchArgs>),
}

/// A mistake in how tallow was called, as opposed to a failure of what it was asked to do.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct UsageError(#[from] crate::error::Error);

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Wrong flags end the process here, with clap's message and code 2.
    let cli = Cli::parse();
    let result = match cli.command {
        None => print_help(),
        Some(Command::Serve(args)) => serve::run(args),
        Some(Command::Pull(args)) => pull::run(args),
        Some(Command::Models(args)) => models::run(args),
        Some(Command::Config(args)) => config::run(args),
        Some(Command::Chat(args)) => chat::run(args),
        Some(Command::Bench(args)) => bench::run(*args),
    };
    result.unwrap_or_else(|error| report(&error))
}

/// Plain `tallow` asks what there is: help on standard output and success, not a usage error.
fn print_help() -> anyhow::Result<ExitCode> {
    print(&Cli::command().render_help().to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn report(error: &anyhow::Error) -> ExitCode {
    let io = error.root_cause().downcast_ref::<std::io::Error>();
    if io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        // Whoever read us has read enough (`tallow models | head -1`).
        return ExitCode::SUCCESS;
    }
    eprintln!("tallow: {}", printable(&format!("{error:#}")));
    ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
}

/// Standard output without `println!`'s panic on a closed pipe. A terminal gets nothing that it would obey; a program
/// that reads us gets the bytes, because a path or JSON must stay what it is.
fn print(text: &str) -> std::io::Result<()> {
    use std::io::{IsTerminal, Write};
    let mut out = std::io::stdout().lock();
    let text = if out.is_terminal() { printable(text) } else { text.into() };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Both stages of the configuration, from this process's environment and working directory.
fn resolve(typed: Typed) -> Result<Config, UsageError> {
    let sources = Sources::collect(typed, &|name| std::env::var_os(name), ".".as_ref())?;
    Ok(Config::resolve(&sources)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_are_flags_of_serve_and_keep_their_text() {
        let cli = Cli::parse_from(["tallow", "serve", "--max-num-seqs", "-1", "--reference", "--prefix-cache=no"]);
        let Some(Command::Serve(args)) = cli.command else { panic!("serve was typed") };
        let typed: Vec<_> = args.flags.0.values.iter().map(|(s, text)| (s.flag, text.as_str())).collect();
        assert_eq!(typed, [("max-num-seqs", "-1"), ("prefix-cache", "no"), ("reference", "true")]);
    }

    #[test]
    fn serve_takes_the_model_as_an_argument_or_a_flag_but_not_both() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["tallow", "serve"], args].concat());
        assert!(parse(&["x.gguf"]).is_ok());
        assert!(parse(&["--model", "x.gguf"]).is_ok());
        assert!(parse(&["x.gguf", "--model", "y.gguf"]).is_err());
    }
}
