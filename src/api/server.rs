//! Connections: accepted within a bound, served as HTTP/1.1, drained at the end.
//!
//! A client that closes its connection ends the handler or the body that served it: the connection is dropped, and
//! they with it. A client that closes only its sending half looks the same and is treated the same, since no ordinary
//! client does that and a killed one always does.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use super::peer::{self, SharedStream};
use super::places::{self, Place, Places};
use super::problem::{ErrorBody, ErrorEnvelope};
use super::{ApiConfig, loading_router, router};
use crate::error::{Error, ErrorKind, Result};
use crate::service::Service;

/// What is left at the deadline is told this.
const SHUTDOWN_MESSAGE: &str = "the server is shutting down";

/// Most header lines of a request: clients send about ten and proxies add as many. hyper keeps a place for each.
const HEADERS_MAX: usize = 100;

/// hyper's least buffer.
const BUFFER_BYTES_MIN: usize = 8 << 10;

/// Pause after a failed accept: mostly there are no file descriptors left, and only closing connections helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves, then drains: new requests are told to go elsewhere (503 with `Retry-After`),
/// running generations go on and can be rejoined until `drain_timeout`, what is left ends with an error event, and
/// connections get `close_timeout` to hear of it.
///
/// # Errors
/// If the configuration is wrong. A failed connection is no error.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    config: ApiConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let router = router(service.clone(), config.clone(), address_of(&listener)?)?;
    let closing = CancellationToken::new();
    let _sweeper = AbortOnDropHandle::new(tokio::spawn(sweep(service.clone(), config.sweep_interval)));
    // Aborts what is left when this future is dropped.
    let mut connections = JoinSet::new();
    let ending = async {
        shutdown.await;
        service.drain();
        drained(&service, &config).await;
    };
    tokio::select! {
        never = accept(&listener, router, &config, closing.clone(), &mut connections) => match never {},
        () = ending => {}
    }
    drop(listener);
    end(&service, &closing).await?;
    let closed = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(config.close_timeout, closed).await.is_err() {
        tracing::warn!("connections still open after the close time-out are cut");
    }
    Ok(())
}

/// Answers while `loading` runs: alive, and 503 with `Retry-After` to everything else. Returns what `loading` does; the
/// listener is then free for [`serve`].
///
/// # Errors
/// If the configuration is wrong.
pub(crate) async fn serve_while<T>(
    listener: &TcpListener,
    config: &ApiConfig,
    loading: impl Future<Output = T>,
) -> Result<T> {
    let router = loading_router(config, address_of(listener)?)?;
    let closing = CancellationToken::new();
    let mut connections = JoinSet::new();
    let loaded = tokio::select! {
        never = accept(listener, router, config, closing.clone(), &mut connections) => match never {},
        loaded = loading => loaded,
    };
    closing.cancel();
    let closed = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(config.close_timeout, closed).await.is_err() {
        tracing::warn!("connections from before the model was loaded are cut");
    }
    Ok(loaded)
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr> {
    listener.local_addr().map_err(|e| Error::io("the listener has no address", e))
}

/// Never returns; ends by being dropped.
async fn accept(
    listener: &TcpListener,
    router: Router,
    config: &ApiConfig,
    closing: CancellationToken,
    connections: &mut JoinSet<()>,
) -> std::convert::Infallible {
    let permits = Arc::new(Semaphore::new(config.connections_max.max(1)));
    let addresses = Places::new(config.connections_per_address_max);
    let http = http(config);
    loop {
        // Before accepting, so that one too many waits in the kernel's backlog and costs us nothing.
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = next_connection(listener, config.send_buffer_bytes).await;
        while connections.try_join_next().is_some() {}
        let Some(place) = addresses.enter(places::peer_of(peer)) else {
            refuse(&stream, peer, addresses.num_max());
            continue;
        };
        let stream = SharedStream::new(stream, config.write_stall_timeout);
        connections.spawn(connection(stream, router.clone(), http.clone(), closing.clone(), (permit, place)));
    }
}

/// What every connection is served by.
fn http(config: &ApiConfig) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_headers(HEADERS_MAX)
        .max_header_size(config.header_bytes_max)
        // For reading and for writing: beyond it, a response body is not asked for more. At least what hyper insists on.
        .max_buf_size(config.header_bytes_max.max(BUFFER_BYTES_MIN))
        // A close of the sending half ends the connection: see the top of this file.
        .half_close(false);
    http
}

async fn next_connection(listener: &TcpListener, send_buffer_bytes: usize) -> (TcpStream, IpAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Tokens are small and each should leave at once.
                if let Err(e) = stream.set_nodelay(true) {
                    tracing::debug!(error = %e, "no TCP_NODELAY");
                }
                // Without a bound the kernel would take megabytes for a client that does not read.
                if let Err(e) = SockRef::from(&stream).set_send_buffer_size(send_buffer_bytes) {
                    tracing::debug!(error = %e, "no SO_SNDBUF");
                }
                return (stream, peer.ip());
            }
            Err(e) => {
                tracing::warn!(error = %e, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells one connection too many of an address, as far as its socket takes that at once, and lets go of it.
fn refuse(stream: &TcpStream, peer: IpAddr, num_max: usize) {
    tracing::debug!(%peer, num_max, "an address has as many connections as may be");
    let message = format!("at most {num_max} connections of one address may be open (--connections-per-address-max)");
    let error = ErrorBody::of(ErrorKind::Overloaded, message);
    let body = serde_json::to_string(&ErrorEnvelope { error: &error }).unwrap_or_default();
    let head =
        "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json";
    // Nobody waits for it: the connection is over either way.
    let _ = SockRef::from(stream).send(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
}

async fn connection(
    stream: SharedStream,
    router: Router,
    http: http1::Builder,
    closing: CancellationToken,
    _places: (OwnedSemaphorePermit, Place<IpAddr>),
) {
    let gone = peer::gone(stream.clone());
    let pace = stream.pace();
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(pace.clone());
        request
    });
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(serving);
    let served = async {
        tokio::select! {
            biased;
            result = serving.as_mut() => return result,
            () = closing.cancelled() => {}
        }
        // Ends at once when idle, else after the response under way.
        serving.as_mut().graceful_shutdown();
        serving.await
    };
    tokio::select! {
        biased;
        result = served => {
            if let Err(e) = result {
                tracing::debug!(error = %e, "connection ended");
            }
        }
        () = gone => {}
    }
}

async fn drained(service: &Service, config: &ApiConfig) {
    if tokio::time::timeout(config.drain_timeout, service.drained()).await.is_err() {
        tracing::warn!("generations still running after the drain time-out are ended");
    }
}

/// Ends what is left, then lets idle connections go and others after the response under way.
async fn end(service: &Arc<Service>, closing: &CancellationToken) -> Result<()> {
    let service = service.clone();
    // Joins the worker threads.
    let stopping = tokio::task::spawn_blocking(move || service.shutdown(SHUTDOWN_MESSAGE));
    let stopped = stopping.await.map_err(|e| Error::internal(format!("the backend failed to stop: {e}")));
    closing.cancel();
    stopped
}

async fn sweep(service: Arc<Service>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        service.sweep();
    }
}
