//! `tallow chat`: its flags. The client does the rest.

use std::process::ExitCode;

use clap::Args;

use super::UsageError;
use super::signals::INTERRUPTED;
use crate::client::{self, ChatEnd, ChatOptions};
use crate::error::Error;

#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// Ask this and leave; without it, standard input is the question if it is piped
    prompt: Option<String>,
    /// Address of the server; any that speaks Chat Completions over plain HTTP
    #[arg(long, env = "TALLOW_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Key sent as a bearer token
    #[arg(long, env = "TALLOW_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Model; the first one the server lists by default
    #[arg(long)]
    model: Option<String>,
    /// System message
    #[arg(long)]
    system: Option<String>,
    /// Sampling temperature, 0 to 2
    #[arg(long, allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Most tokens of an answer
    #[arg(long)]
    max_tokens: Option<u32>,
    /// Seed of the draws
    #[arg(long)]
    seed: Option<u64>,
}

pub(super) fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    if let Some(t) = args.temperature
        && !(0.0..=2.0).contains(&t)
    {
        return Err(
            UsageError(Error::invalid("temperature", format!("--temperature must be from 0 to 2, got {t}"))).into()
        );
    }
    if args.max_tokens == Some(0) {
        return Err(UsageError(Error::invalid("max_tokens", "--max-tokens must be at least 1, got 0")).into());
    }
    let ended = client::run(ChatOptions {
        url: args.url,
        api_key: args.api_key.filter(|key| !key.is_empty()),
        model: args.model,
        system: args.system,
        temperature: args.temperature,
        max_tokens: args.max_tokens,
        seed: args.seed,
        prompt: args.prompt,
    });
    let ended = ended.map_err(|e| match e.param() {
        // Ours name a parameter; what a server refuses does not, and is no wrong call of this command.
        Some(_) => anyhow::Error::from(UsageError(e)),
        None => e.into(),
    })?;
    Ok(match ended {
        ChatEnd::Finished => ExitCode::SUCCESS,
        ChatEnd::Stopped => ExitCode::from(INTERRUPTED),
    })
}
