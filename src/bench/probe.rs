//! A route that is asked again and again beside the load, over one connection: whether a server that is busy with
//! tokens still says that it lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::report::Percentiles;
use super::tally::Times;
use super::target::Target;

/// From one question to the next.
const PAUSE: Duration = Duration::from_millis(20);
/// An answer that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks until told to finish.
pub struct Prober {
    stop: CancellationToken,
    task: AbortOnDropHandle<ProbeReport>,
}

/// How the route answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeReport {
    /// The route.
    pub path: String,
    /// Questions without an answer of success.
    pub failed: u64,
    /// From the question to the end of an answer of success.
    pub ms: Percentiles,
}

impl Prober {
    /// Begins to ask for `path`, which is not under `/v1`.
    pub fn start(target: &Arc<Target>, path: &str) -> Self {
        let stop = CancellationToken::new();
        let asked = ask(target.clone(), path.to_owned(), stop.clone());
        Self { stop, task: AbortOnDropHandle::new(tokio::spawn(asked)) }
    }

    /// Waits for the last answer.
    pub async fn finish(self) -> ProbeReport {
        self.stop.cancel();
        self.task.await.expect("it neither panics nor is aborted")
    }
}

/// Asks at least once.
async fn ask(target: Arc<Target>, path: String, stop: CancellationToken) -> ProbeReport {
    let (mut times, mut failed) = (Times::default(), 0);
    loop {
        let began = Instant::now();
        if tokio::time::timeout(TIMEOUT, is_success(&target, &path)).await == Ok(true) {
            times.add(began.elapsed());
        } else {
            failed += 1;
        }
        if stop.is_cancelled() || tokio::time::timeout(PAUSE, stop.cancelled()).await.is_ok() {
            return ProbeReport { path, failed, ms: Percentiles::new(&times) };
        }
    }
}

async fn is_success(target: &Target, path: &str) -> bool {
    match target.get_root(path).send().await {
        Ok(response) => response.status().is_success() && response.bytes().await.is_ok(),
        Err(_) => false,
    }
}
