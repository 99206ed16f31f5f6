//! A route that is asked again and again beside the load, over one connection: whether a server that is busy with
//! tokens still says that it lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::percentiles::Percentiles;
use super::tally::Times;
use super::target::Target;

/// From one question to the next.
const PAUSE: Duration = Duration::from_millis(20);
/// An answer that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks until told to finish.
pub(crate) struct Prober {
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
    /// What became of the last of those: a status, or why there was none.
    pub last_failure: Option<String>,
    /// From the question to the end of an answer of success.
    pub ms: Percentiles,
}

impl Prober {
    /// Begins to ask for `path`, which is not under `/v1`.
    pub(crate) fn start(target: &Arc<Target>, path: &str) -> Self {
        let stop = CancellationToken::new();
        let asked = ask(target.clone(), path.to_owned(), stop.clone());
        Self { stop, task: AbortOnDropHandle::new(tokio::spawn(asked)) }
    }

    /// Waits for the last answer.
    pub(crate) async fn finish(self) -> ProbeReport {
        self.stop.cancel();
        self.task.await.expect("it neither panics nor is aborted")
    }
}

/// Asks at least once.
async fn ask(target: Arc<Target>, path: String, stop: CancellationToken) -> ProbeReport {
    let (mut times, mut failed, mut last_failure) = (Times::default(), 0, None);
    loop {
        let began = Instant::now();
        let answered = tokio::time::timeout(TIMEOUT, answered(&target, &path)).await;
        match answered.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs()))) {
            Ok(()) => times.add(began.elapsed()),
            Err(failure) => {
                failed += 1;
                last_failure = Some(failure);
            }
        }
        if stop.is_cancelled() || tokio::time::timeout(PAUSE, stop.cancelled()).await.is_ok() {
            return ProbeReport { path, failed, last_failure, ms: Percentiles::new(&times) };
        }
    }
}

/// The whole answer, if it is one of success.
async fn answered(target: &Target, path: &str) -> Result<(), String> {
    let response = target.get_root(path).send().await.map_err(|e| e.to_string())?;
    let status = response.status();
    if !status.is_success() {
        return Err(status.to_string());
    }
    response.bytes().await.map(|_| ()).map_err(|e| e.to_string())
}
