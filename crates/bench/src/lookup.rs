//! After a level: what tallow's own logs say about the generations, read back by name. How long each waited in the
//! queue, and for those the clients left, how they ended. Other servers do not name their streams, and are not asked.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::exchange::{event_stream, parser};
use super::tally::Tally;
use super::target::Target;

/// Time for reading one log; a generation that still runs after it counts as not ended.
const LOG_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks at what still runs.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often to look.
const LOOKS_MAX: usize = 500;

/// How the generations ended that their clients left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LeftReport {
    /// Looked up; 0 where the server does not name its streams.
    pub looked_up: u64,
    /// The server had ended them early.
    pub freed: u64,
    /// They had come to their end before.
    pub finished: u64,
    /// They still ran, or the server did not say.
    pub unknown: u64,
    /// Tokens that were made for them.
    pub tokens: u64,
}

#[derive(Debug, Deserialize)]
struct Data {
    #[serde(rename = "type")]
    kind: String,
    ts: u64,
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    completion_tokens: u64,
}

/// What one log says.
#[derive(Debug, Default)]
struct Log {
    queue_wait: Option<Duration>,
    /// The terminal event's type, and the tokens it reports.
    end: Option<(String, u64)>,
}

/// Reads the logs of the level's streams, and adds their queue waits to it. With `to_end`, also how they ended.
pub(crate) async fn look_up(target: &Target, tally: &mut Tally, to_end: bool) -> LeftReport {
    let mut left = LeftReport::default();
    if to_end && !tally.stream_ids.is_empty() {
        until_ended(target, &tally.stream_ids).await;
    }
    for id in std::mem::take(&mut tally.stream_ids) {
        let mut log = Log::default();
        // A log that is gone by now says nothing.
        let is_read = tokio::time::timeout(LOG_TIMEOUT, read(target, &id, to_end, &mut log)).await;
        if let Some(wait) = log.queue_wait {
            tally.queue_wait.add(wait);
        }
        left.looked_up += 1;
        match (is_read, log.end) {
            (Ok(Some(())), Some((kind, tokens))) => {
                left.tokens += tokens;
                left.freed += u64::from(kind == "error");
                left.finished += u64::from(kind == "done");
            }
            _ => left.unknown += 1,
        }
    }
    left
}

/// Waits until none of these streams runs, by the list of streams: whoever follows one that its client has just left
/// is a reader, and might keep it from being freed.
async fn until_ended(target: &Target, ids: &[String]) {
    for _ in 0..LOOKS_MAX {
        let Ok(response) = target.get("/streams").send().await else { return };
        let Ok(list) = response.json::<Value>().await else { return };
        let runs = |stream: &Value| {
            let text = |field: &str| stream.get(field).and_then(Value::as_str);
            let is_live = matches!(text("status"), Some("queued" | "running"));
            is_live && text("id").is_some_and(|id| ids.iter().any(|ours| ours == id))
        };
        let Some(streams) = list.get("data").and_then(Value::as_array) else { return };
        if !streams.iter().any(runs) {
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn read(target: &Target, id: &str, to_end: bool, log: &mut Log) -> Option<()> {
    let response = target.get(&format!("/streams/{id}")).send().await.ok()?;
    let mut response = event_stream(response).await.ok()?;
    let (mut parser, mut queued) = (parser(), None);
    while let Some(bytes) = response.chunk().await.ok()? {
        parser.push(&bytes).ok()?;
        while let Some(event) = parser.next_event() {
            let data: Data = serde_json::from_str(&event.data).ok()?;
            match data.kind.as_str() {
                // Told again while it waits; the first says when it came.
                "queued" => queued = queued.or(Some(data.ts)),
                "started" => {
                    log.queue_wait = queued.map(|queued| Duration::from_millis(data.ts.saturating_sub(queued)));
                    if !to_end {
                        return Some(());
                    }
                }
                "done" | "error" => {
                    log.end = Some((data.kind, data.usage.map_or(0, |u| u.completion_tokens)));
                    return Some(());
                }
                _ => {}
            }
        }
    }
    None
}
