//! Whose requests wait.

use std::sync::Arc;

use super::{OWNERS_SEEN_MAX, Queue};
use crate::share::Share;
use tallow_stream::StreamLog;
use tallow_stream::protocol::Tenant;

impl Queue {
    /// The owner whose turn comes first among those that wait and are `wanted`.
    pub(crate) fn next_owner(&self, wanted: impl Fn(Tenant) -> bool) -> Option<Share> {
        let state = self.lock();
        if state.waiting.is_empty() {
            return None;
        }
        let heads = state.waiting.heads(OWNERS_SEEN_MAX);
        heads.into_iter().map(|(_, entry)| entry.share()).find(|share| wanted(share.tenant))
    }

    /// The log of a request that may be next and that is kept on disk.
    pub(crate) fn kept_log(&self) -> Option<Arc<StreamLog>> {
        let state = self.lock();
        if state.waiting.is_empty() {
            return None;
        }
        let heads = state.waiting.heads(OWNERS_SEEN_MAX);
        heads.into_iter().map(|(_, entry)| entry.writer.log()).find(|log| log.is_kept()).cloned()
    }
}
