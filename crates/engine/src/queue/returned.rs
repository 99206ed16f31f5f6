//! Requests that come back: their worker was lost (`takeover`).

use super::{Queue, QueueEntry, QueuePhase};
use crate::cache::HashChain;
use crate::held::Origin;
use crate::writer::Writer;
use tallow_stream::error::ErrorKind;

/// A request whose worker was lost.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) origin: Origin,
    pub(crate) chain: Option<HashChain>,
    pub(crate) writer: Writer,
}

impl QueueEntry {
    /// What it takes to go on with it elsewhere.
    pub(crate) fn origin(&self) -> Origin {
        Origin {
            request: self.request.clone(),
            grammar: self.grammar.clone(),
            vector: self.vector.clone(),
            is_named: self.chain.is_some(),
            accepted_at: self.accepted_at,
            cancelled_at: self.cancelled_at.clone(),
            has_returned: self.has_returned,
        }
    }
}

impl Queue {
    /// Takes back what a lost worker had, before all that its owner has waiting: it has had its turn. No bound refuses it.
    pub(crate) fn give_back(&self, returned: Returned) {
        let Returned { origin, chain, writer } = returned;
        let Origin { request, grammar, vector, accepted_at, cancelled_at, has_returned, .. } = origin;
        let now = self.now();
        let mut state = self.lock();
        if let QueuePhase::Stopped(message) = &state.phase {
            let message = message.clone();
            drop(state);
            return writer.failed(ErrorKind::Unavailable, message);
        }
        // The hook that would have taken it out ran while it was nowhere. From here on it finds it.
        if writer.is_cancelled() {
            drop(state);
            return writer.cancelled();
        }
        self.shared.metrics.requests_taken_over.inc();
        let (stream, tenant, num_tokens) = (request.id, request.tenant, request.num_tokens_max());
        self.shared.metrics.num_waiting.inc();
        self.shared.metrics.queue_tokens.inc_by(num_tokens as i64);
        let next_note_at = now + self.limits.note_interval;
        let (position, weight) = (0, request.queue.weight);
        let entry = QueueEntry {
            request,
            chain,
            grammar,
            vector,
            writer,
            accepted_at,
            cancelled_at,
            has_returned,
            position,
            next_note_at,
        };
        state.rate.on_accepted(now);
        state.waiting.push_first(tenant, weight, num_tokens, entry);
        drop(state);
        tracing::warn!(%stream, "goes on with another worker");
        self.wake.notify_one();
    }
}
