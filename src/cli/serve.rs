//! `tallow serve`: configuration, listener, model, server, in that order.
//!
//! The listener is bound before the model is fetched and loaded, so that a taken port fails at once. Until the model
//! is there, `/health/live` answers and everything else is told to come back (503 with `Retry-After`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::flags::ServeFlags;
use super::progress::FetchProgress;
use super::signals::Signals;
use super::{UsageError, open_files, start};
use crate::api;
use crate::config::{Config, ProcessConfig, setting};
use crate::telemetry;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The models to serve, the first of which answers requests that name none; as --model and --more-models
    #[arg(value_name = "MODEL", conflicts_with_all = ["model.name", "model.more"])]
    models: Vec<String>,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

pub(super) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let mut typed = args.flags.0;
    if let Some((first, more)) = args.models.split_first() {
        typed.values.push((setting("model.name"), first.clone()));
        typed.values.push((setting("model.more"), more.join(",")));
    }
    let config = super::resolve(typed)?;
    telemetry::start(&config.log).map_err(UsageError)?;
    open_files::raise(config.api.connections_max);
    super::print(&config.changes().to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no async runtime")?;
    let result = runtime.block_on(serve(&config));
    // A fetch or a load that a signal cut short may still run on its thread; it must not hold the process.
    runtime.shutdown_background();
    result
}

async fn serve(config: &Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen().context("signals cannot be heard")?;
    let listener = bind(&config.process).await?;
    let address = listener.local_addr().context("the listener has no address")?;
    super::print(&format!("listening on http://{address}\n"))?;

    let api = config.api.clone();
    if api.keys.is_empty() && !address.ip().is_loopback() {
        tracing::warn!("without --api-keys or --api-keys-file everybody who reaches {address} may use the server");
    }
    let progress = Arc::new(FetchProgress::new());
    let loading = {
        let (config, progress) = (config.clone(), progress.clone());
        tokio::task::spawn_blocking(move || start::service(&config, &|event| progress.hear(event)))
    };
    let service = tokio::select! {
        service = api::serve_while(&listener, &api, loading) => service,
        code = signals.next() => return Ok(ExitCode::from(code)),
    };
    progress.end();
    let service = service?.context("loading stopped")??;
    let models = service.models();
    super::print(&ready(address, models.default_model().name(), models.default_model().has_template()))?;
    for more in &models.all()[1..] {
        let how = if more.only_embeds() { "for embeddings" } else { "and loaded when it is asked for" };
        super::print(&format!("also served, {how}: {}\n", more.name()))?;
    }

    let stop = CancellationToken::new();
    let served = api::serve(listener, service, api, stop.clone().cancelled_owned());
    tokio::pin!(served);
    tokio::select! {
        result = &mut served => return Ok(result.map(|()| ExitCode::SUCCESS)?),
        _ = signals.next() => {}
    }
    let timeout = config.api.drain_timeout;
    tracing::info!("draining: running streams have {timeout:?}; another signal ends at once");
    stop.cancel();
    tokio::select! {
        result = &mut served => Ok(result.map(|()| ExitCode::SUCCESS)?),
        code = signals.next() => Ok(ExitCode::from(code)),
    }
}

async fn bind(config: &ProcessConfig) -> anyhow::Result<TcpListener> {
    let ProcessConfig { host, port, .. } = config;
    let listener = TcpListener::bind((host.as_str(), *port)).await;
    listener.with_context(|| format!("cannot listen on {host}:{port} (--host, --port)"))
}

/// That the server is ready, and a line to try it with.
fn ready(address: SocketAddr, model: &str, has_template: bool) -> String {
    // A wildcard address cannot be called; the loopback one stands for it.
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let callable = SocketAddr::new(ip, address.port());
    let (path, body) = if has_template {
        let messages = serde_json::json!([{ "role": "user", "content": "Name three fruits." }]);
        let body = serde_json::json!({ "model": model, "stream": true, "temperature": 0, "max_tokens": 40, "messages": messages });
        ("/v1/chat/completions", body)
    } else {
        ("/v1/streams", serde_json::json!({ "model": model, "max_tokens": 40, "prompt": "The capital of France is" }))
    };
    let body = body.to_string().replace('\'', r"'\''");
    format!(
        "ready: {model}\n\n  \
         curl -N http://{callable}{path} -H 'content-type: application/json' -d '{body}'\n\n\
         chat in the terminal with `tallow chat`, in a browser at http://{callable}/; Ctrl-C stops\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_can_be_pasted() {
        let text = ready("0.0.0.0:81".parse().expect("an address"), "it's", true);
        assert!(text.starts_with("ready: it's\n"), "{text}");
        assert!(text.contains("curl -N http://127.0.0.1:81/v1/chat/completions"), "{text}");
        assert!(text.contains(r#"-d '{"model":"it'\''s","stream":true,"temperature":0"#), "{text}");
        let text = ready("[::]:81".parse().expect("an address"), "m", true);
        assert!(text.contains("http://[::1]:81/v1"), "{text}");
    }
}
