//! The same server in a process of its own, so that its memory is its own and a signal meets nobody else.
//!
//! The child is this very test binary, told by its environment to serve and not to test. It ends on SIGTERM as the
//! real one does, and when the pipe to its parent closes, so that none is left behind.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use super::{Host, Options, http, memory};

/// Where the child finds its options.
const VARIABLE: &str = "TALLOW_PROMISES_CHILD";
/// Before its address, on a line of standard output.
const MARK: &str = "child listens on ";

pub(crate) struct ChildServer {
    child: Child,
    pub address: SocketAddr,
    /// Closed by dropping, which ends the child.
    _lifeline: ChildStdin,
}

impl ChildServer {
    pub(crate) fn start(options: &Options) -> Self {
        memory::raise_open_files();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "common::child::a_child_process_serves", "--nocapture"])
            .env(VARIABLE, serde_json::to_string(options).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split_once(MARK)?.1.parse().unwrap()));
        std::thread::spawn(move || lines.for_each(drop));
        let _lifeline = child.stdin.take().unwrap();
        Self { child, address: address.expect("the child says where it listens"), _lifeline }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn terminate(&self) {
        let status = Command::new("kill").arg("-TERM").arg(self.pid().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits for it to end by itself.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        tokio::task::spawn_blocking(move || self.child.wait().unwrap()).await.unwrap()
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn serve(options: &Options) {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let mut host = Host::start(options).await;
    println!("\n{MARK}{}", host.address);
    std::thread::spawn(|| {
        // Blocks until the parent is gone.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    terminate.recv().await;
    host.stop();
    host.stopped().await;
}

/// In a child: serves. Else: a child serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_process_serves() {
    if let Ok(options) = std::env::var(VARIABLE) {
        return serve(&serde_json::from_str(&options).unwrap()).await;
    }
    let child = ChildServer::start(&Options::default());
    assert_eq!(http(child.address, "GET", "/health/ready", &[], "").await.unwrap().status, 200);
    assert!(memory::resident(child.pid()) > 0);
    child.terminate();
    assert!(child.ended().await.success());
}
