//! A proxy that does to connections what networks do: cuts them at a byte, with an ordinary close or a reset, holds
//! them up, lets them trickle. It knows nothing of what it carries; what happens to which connection is the caller's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// What happens to one connection, to the bytes from the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// After this many bytes it is cut; `None` never.
    pub cut_at: Option<usize>,
    /// By a reset, else by an ordinary close.
    pub by_reset: bool,
    /// After this many bytes nothing comes for a while.
    pub stall_at: Option<(usize, Duration)>,
    /// Each byte comes alone.
    pub is_trickle: bool,
}

impl Fault {
    pub(crate) const NONE: Self = Self { cut_at: None, by_reset: false, stall_at: None, is_trickle: false };
}

/// One running proxy; ends when dropped.
pub(crate) struct Proxy {
    pub address: SocketAddr,
    num_cuts: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Proxy {
    /// In front of `server`; `plan` says what happens to the next connection.
    pub(crate) async fn start(server: SocketAddr, mut plan: impl FnMut() -> Fault + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let num_cuts = Arc::new(AtomicUsize::new(0));
        let counted = num_cuts.clone();
        let accepting = tokio::spawn(async move {
            // Ends its connections with it.
            let mut carried = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                while carried.try_join_next().is_some() {}
                let (fault, counted) = (plan(), counted.clone());
                carried.spawn(async move {
                    if carry(client, server, fault).await == End::Cut {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Self { address, num_cuts, accepting: accepting.abort_handle() }
    }

    /// Connections cut so far.
    pub(crate) fn num_cuts(&self) -> usize {
        self.num_cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// By this proxy.
    Cut,
    /// By one of those it stands between.
    Closed,
}

async fn carry(client: TcpStream, server: SocketAddr, fault: Fault) -> End {
    let Ok(server) = TcpStream::connect(server).await else { return End::Closed };
    // Fails only on a connection that is gone already.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut client, mut server) = (client, server);
    let end = {
        let (mut client_read, mut client_write) = client.split();
        let (mut server_read, mut server_write) = server.split();
        tokio::select! {
            // A client that closes is gone: what the server still has to say reaches nobody.
            _ = tokio::io::copy(&mut client_read, &mut server_write) => End::Closed,
            end = answers(&mut server_read, &mut client_write, fault) => end,
        }
    };
    if end == End::Cut && fault.by_reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
    end
}

/// Carries the server's bytes until the cut or the end.
async fn answers(from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin), fault: Fault) -> End {
    let mut buffer = vec![0; 4096];
    let (mut num_carried, mut stall) = (0, fault.stall_at);
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return End::Closed };
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let until = |at: Option<usize>| at.map_or(usize::MAX, |at| at.saturating_sub(num_carried));
            if until(fault.cut_at) == 0 {
                return End::Cut;
            }
            if let Some((_, time)) = stall.filter(|&(at, _)| at <= num_carried) {
                // Silence on the wire has no event to wait for.
                tokio::time::sleep(time).await;
                stall = None;
            }
            let most = if fault.is_trickle { 1 } else { rest.len() };
            let n = most.min(rest.len()).min(until(fault.cut_at)).min(until(stall.map(|s| s.0)));
            if to.write_all(&rest[..n]).await.is_err() {
                return End::Closed;
            }
            (num_carried, rest) = (num_carried + n, &rest[n..]);
            if fault.is_trickle {
                // Lets the other end see this byte before the next.
                tokio::task::yield_now().await;
            }
        }
    }
}
