//! Whether there is room for what comes, for all and for its owner.

use std::time::Duration;

use super::{OWNER_SHARE, QueueLimits, QueuePhase, QueueState};
use crate::fair::Load;
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::Tenant;

impl QueueState {
    /// Whether the last of `coming` would be let in behind the others, which is the strictest question.
    pub(super) fn admit(&self, limits: &QueueLimits, tenant: Tenant, coming: Load, now: Duration) -> Result<()> {
        if let QueuePhase::Closed(message) | QueuePhase::Stopped(message) = &self.phase {
            return Err(Error::new(ErrorKind::Unavailable, message.clone()));
        }
        let excess = self.excess(limits, coming).or_else(|| self.excess_of(tenant, limits, coming));
        match excess {
            Some((message, tokens)) => Err(Error::overloaded(message, self.rate.retry_after_ms(tokens, now))),
            None => Ok(()),
        }
    }

    /// Which bound `coming` would break, and how many tokens must leave before it would not.
    fn excess(&self, limits: &QueueLimits, coming: Load) -> Option<(String, usize)> {
        let Load { requests, tokens } = self.waiting.load();
        let message = if requests + coming.requests > limits.requests_max {
            format!("the queue is full: {requests} requests wait, {} more came", coming.requests)
        } else if requests + coming.requests > 1 && tokens + coming.tokens > limits.tokens_max {
            format!("the queue is full: {tokens} tokens wait, {} more came", coming.tokens)
        } else {
            return None;
        };
        let num_leave = (requests + coming.requests).saturating_sub(limits.requests_max);
        let leaving = self.waiting.order(num_leave);
        let by_requests: usize =
            leaving.iter().filter_map(|t| self.waiting.get(*t)).map(|e| e.request.num_tokens_max()).sum();
        let by_tokens = (tokens + coming.tokens).saturating_sub(limits.tokens_max).min(tokens);
        Some((message, by_requests.max(by_tokens)))
    }

    /// The same for an owner's part of the queue.
    fn excess_of(&self, tenant: Tenant, limits: &QueueLimits, coming: Load) -> Option<(String, usize)> {
        let (all, own) = (self.waiting.load(), self.waiting.load_of(tenant));
        let before_last = coming.requests.saturating_sub(1);
        let num_free = limits.requests_max.saturating_sub(all.requests + before_last);
        let num_tokens_free = limits.tokens_max.saturating_sub(all.tokens + coming.tokens);
        let is_too_much = own.requests + before_last >= OWNER_SHARE * num_free
            || own.tokens + coming.tokens > num_tokens_free.saturating_mul(OWNER_SHARE);
        if tenant == Tenant(0) || own.requests + before_last == 0 || !is_too_much {
            return None;
        }
        let Load { requests, tokens } = own;
        let message = format!(
            "{requests} requests with {tokens} tokens of this key wait; what is left of the queue is kept for others"
        );
        Some((message, coming.tokens))
    }
}
