//! Requests that are not taken: each is counted once by what refused it, and operators hear of it.

use super::Service;
use crate::error::{Error, ErrorKind};
use crate::metrics::RejectLabel;
use crate::stream::Happening;

impl Service {
    /// Tells the feed of a request that was refused for what the server has to do. It is counted where it is refused.
    pub(crate) fn tell_rejected(&self, e: &Error) {
        if matches!(e.kind(), ErrorKind::Overloaded | ErrorKind::RateLimited | ErrorKind::Unavailable) {
            let reason = e.message().to_owned();
            self.table.feed().publish(self.now_ms(), None, Happening::Rejected { reason });
        }
    }

    /// Counts a request over a limit of its owner. The server had room for it: it is no other kind of refusal.
    pub(crate) fn count_limited(&self, e: &Error) {
        if e.kind() == ErrorKind::RateLimited {
            self.metrics.requests_limited.inc();
            self.metrics.rejects.get_or_create(&RejectLabel::OWNER_LIMIT).inc();
        }
    }
}
