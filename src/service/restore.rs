//! Streams of an earlier process: what had ended can be replayed, what had not goes on where it stood.

use std::sync::Arc;

use super::Service;
use crate::error::ErrorKind;
use crate::protocol::{ErrorInfo, Event, Resumed, Usage, ValidRequest};
use crate::stream::{StoredStream, StreamLog};

/// What became of the streams of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Can be replayed.
    pub num_finished: usize,
    /// Go on.
    pub(crate) num_resumed: usize,
    /// Could not go on, and have ended with an error event.
    pub(crate) num_failed: usize,
    /// For which the table has no room.
    pub num_dropped: usize,
}

impl Service {
    /// Takes the streams of the store that its table was made with.
    pub fn restore(&self, stored: Vec<StoredStream>) -> Restored {
        let mut restored = Restored::default();
        let mut followers = Vec::new();
        for stream in stored {
            let StoredStream { record, entries } = stream;
            let request = record.request;
            let (id, tenant, policy) = (request.id, request.tenant, request.on_disconnect);
            let (leader, weight) = (request.leader, request.queue.weight);
            let resumed = resumed(request, &entries.iter().map(|e| &e.event).collect::<Vec<_>>());
            let log = StreamLog::restored(id, tenant, policy, self.clock.clone(), record.created_ms, entries);
            if let Some(served) = self.models.with_fingerprint(record.fingerprint) {
                log.set_model(served.config.name.clone());
            }
            if let Err(e) = self.table.insert(log.clone(), weight) {
                tracing::warn!("stream {id} of the store is dropped: {e}");
                self.table.remove(id);
                restored.num_dropped += 1;
                continue;
            }
            if log.is_finished() {
                restored.num_finished += 1;
                continue;
            }
            if let Some(store) = self.table.store() {
                store.follow(&log);
            }
            self.quotas.occupy(&log);
            followers.extend(leader.map(|leader| (leader, log.clone())));
            match self.go_on(resumed, record.fingerprint, &log) {
                Ok(()) => restored.num_resumed += 1,
                Err(message) => {
                    restored.num_failed += 1;
                    let kind = ErrorKind::Unavailable;
                    log.append(Event::Error(ErrorInfo { kind, message, usage: Usage::default() }));
                }
            }
        }
        for (leader, follower) in followers {
            // Without its leader it can still be ended by its own name.
            if let Ok(leader) = self.table.get(leader, follower.tenant()) {
                leader.lead(std::iter::once(&follower));
            }
        }
        if let Some(store) = self.table.store() {
            store.make_whole();
        }
        restored
    }

    fn go_on(&self, request: ValidRequest, fingerprint: u64, log: &Arc<StreamLog>) -> Result<(), String> {
        if self.table.store().is_some_and(|store| !store.was_whole()) {
            return Err("the disk failed before it was over, so the text cannot go on".to_owned());
        }
        let Some(served) = self.models.with_fingerprint(fingerprint) else {
            return Err(
                "the server came back with another model or other arithmetic, so the text cannot go on".to_owned()
            );
        };
        served.backend.submit(request, log.clone()).map_err(|e| format!("the text cannot go on: {e}"))
    }
}

/// The request as it stands after `events`.
fn resumed(mut request: ValidRequest, events: &[&Event]) -> ValidRequest {
    let mut resumed = Resumed::default();
    for event in events {
        match event {
            Event::Started { cached_tokens, .. } => resumed.cached_tokens = Some(*cached_tokens),
            Event::Token(token) => {
                resumed.num_emitted += token.tokens.len();
                resumed.text_bytes += token.text.len();
                request.prompt.extend_from_slice(&token.tokens);
            }
            // Told once.
            Event::Prompt { .. } => request.sampling.prompt_logprobs = None,
            Event::Queued { .. } | Event::Done { .. } | Event::Error(_) => {}
        }
    }
    // It has waited, and that it waits again is not its doing.
    request.queue.timeout_ms = None;
    ValidRequest { resumed: Some(resumed), ..request }
}
