//! `tallow serve`: configuration, listener, model, server, in that order.
//!
//! The listener is bound before the model is fetched and loaded, so that a taken port fails at once. Until the model
//! is there, connections wait in the listener's backlog; then they are answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;

use super::Usage;
use super::flags::ServeFlags;
use super::signals::Signals;
use crate::config::{Config, ServerConfig, setting};
use crate::telemetry;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The same as --model
    #[arg(conflicts_with = "model.name")]
    model: Option<String>,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

pub(super) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let mut typed = args.flags.0;
    typed.values.extend(args.model.map(|model| (setting("model.name"), model)));
    let config = super::resolve(typed)?;
    telemetry::start(&config.log).map_err(Usage)?;
    super::print(&config.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no async runtime")?;
    let result = runtime.block_on(serve(&config));
    // A fetch or a load that a signal cut short may still run on its thread; it must not hold the process.
    runtime.shutdown_background();
    result
}

async fn serve(config: &Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen().context("signals cannot be heard")?;
    let listener = bind(&config.server).await?;
    let address = listener.local_addr().context("the listener has no address")?;
    super::print(&banner(address, &config.model.name))?;
    let code = signals.next().await;
    Ok(ExitCode::from(code))
}

async fn bind(server: &ServerConfig) -> anyhow::Result<TcpListener> {
    let ServerConfig { host, port, .. } = server;
    let listener = TcpListener::bind((host.as_str(), *port)).await;
    listener.with_context(|| format!("cannot listen on {host}:{port} (--host, --port)"))
}

/// Where the server is, and a line to try it with.
fn banner(address: SocketAddr, model: &str) -> String {
    // A wildcard address cannot be called; the loopback one stands for it.
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let callable = SocketAddr::new(ip, address.port());
    let body = serde_json::json!({
        "model": model,
        "stream": true,
        "max_tokens": 40,
        "messages": [{ "role": "user", "content": "What is the capital of France?" }],
    });
    let body = body.to_string().replace('\'', r"'\''");
    format!(
        "listening on http://{address}\n\n  \
         curl -N http://{callable}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n\n\
         chat in the terminal with `tallow chat`, in a browser at http://{callable}/; Ctrl-C stops\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_can_be_pasted() {
        let text = banner("0.0.0.0:81".parse().expect("an address"), "it's");
        assert!(text.starts_with("listening on http://0.0.0.0:81\n"), "{text}");
        assert!(text.contains("curl -N http://127.0.0.1:81/v1/chat/completions"), "{text}");
        assert!(text.contains(r#"-d '{"model":"it'\''s","stream":true"#), "{text}");
        let text = banner("[::]:81".parse().expect("an address"), "m");
        assert!(text.contains("http://[::1]:81/v1"), "{text}");
    }
}
