//! Reading a response as it stands, for those who do not follow it: polling, cancelling, going on from it. The log is read
//! here, entry by entry, on the async threads: its lock is a worker's too, and must not be held by a thread of low priority.
//! What is read is put together on the pool where it is much.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::OwnedMutexGuard;

use super::assembly::Assembly;
use super::described::Described;
use super::kept::Kept;
use crate::api::App;
use crate::api::problem::Problem;
use crate::protocol::{Event, Tenant};
use crate::stream::{Entry, StreamLog, StreamReader};

/// Entries that are taken from the log in a row.
const PIECE_ENTRIES: usize = 128;

/// What an entry costs to put together, in bytes of work that others are measured in; and each of its log-probabilities.
const ENTRY_BYTES: usize = 16;
const LOGPROB_BYTES: usize = 80;

/// Reads what is new of a response, and then what `look` makes of it as far as its log goes by now.
///
/// # Errors
/// 410 if entries that were not read yet are no longer kept; 429 if too much waits for the pool.
pub(super) async fn look<T: Send + 'static>(
    app: &App,
    tenant: Tenant,
    described: &Arc<Described>,
    log: &Arc<StreamLog>,
    look: impl FnOnce(&Assembly) -> T + Send + 'static,
) -> Result<T, Problem> {
    let cell = app.responses.kept().cell(described, app.service.served_of(log).tokenizer());
    let mut kept = cell.lock_owned().await;
    let mut reader = log.reader(kept.next_seq);
    loop {
        if log.first_seq() > kept.next_seq {
            let message =
                "the beginning of this response's log is no longer kept; its stream was longer than one may be";
            return Err(Problem::http(StatusCode::GONE, Some("history_trimmed"), message));
        }
        let entries = next_entries(&mut reader);
        app.service.metrics().response_events_read.inc_by(entries.len() as u64);
        if entries.len() < PIECE_ENTRIES {
            let num_bytes = entries.iter().map(work_bytes).sum::<usize>() + kept.assembly.num_bytes();
            let last = move || {
                kept.take(&entries);
                (look(&kept.assembly), kept.assembly.num_bytes())
            };
            let (seen, num_bytes) = app.service.sized(tenant, num_bytes, last).await?;
            app.responses.kept().note(described.id, num_bytes);
            return Ok(seen);
        }
        kept = advance(app, tenant, kept, entries).await?;
    }
}

async fn advance(
    app: &App,
    tenant: Tenant,
    mut kept: OwnedMutexGuard<Kept>,
    entries: Vec<Entry>,
) -> Result<OwnedMutexGuard<Kept>, Problem> {
    let num_bytes = entries.iter().map(work_bytes).sum();
    let work = move || {
        kept.take(&entries);
        kept
    };
    let kept = app.service.sized(tenant, num_bytes, work).await?;
    tokio::task::yield_now().await;
    Ok(kept)
}

impl Kept {
    fn take(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.assembly.take(entry);
            self.next_seq = entry.seq + 1;
        }
    }
}

fn next_entries(reader: &mut StreamReader) -> Vec<Entry> {
    std::iter::from_fn(|| reader.try_next_entry()).take(PIECE_ENTRIES).collect()
}

fn work_bytes(entry: &Entry) -> usize {
    match &entry.event {
        Event::Token(token) => {
            let rivals: usize = token.logprobs.iter().map(|l| 1 + l.top.len()).sum();
            ENTRY_BYTES + token.text.len() + rivals * LOGPROB_BYTES
        }
        _ => ENTRY_BYTES,
    }
}
