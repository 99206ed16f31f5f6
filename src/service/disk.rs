//! What a disk that does not keep up means for requests: a new one is refused before any work goes into it, until the disk is
//! back. What was accepted waits for it, and can be cancelled meanwhile.

use std::sync::atomic::Ordering;

use super::Service;
use crate::error::Result;
use crate::metrics::RejectLabel;
use crate::stream::StorePlace;

impl Service {
    /// Whether the disk that keeps the streams, if there is one, keeps up.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Unavailable`] if it does not: new streams are refused.
    pub fn check_disk(&self) -> Result<()> {
        self.table.store().map_or(Ok(()), |store| store.check_room())
    }

    /// The same for a request, which is counted if it is refused.
    pub(super) fn check_kept(&self) -> Result<()> {
        self.check_disk().inspect_err(|_| self.metrics.reject(&RejectLabel::STORE_BEHIND))
    }

    /// Places in the store for so many streams, or for none; none are needed where streams are not kept.
    pub(super) fn reserve(&self, num_streams: usize) -> Result<Vec<StorePlace>> {
        let Some(store) = self.table.store() else { return Ok(Vec::new()) };
        store.reserve(num_streams).inspect_err(|_| self.metrics.reject(&RejectLabel::STORE_BEHIND))
    }

    /// Tells the log when the disk ceases to keep up, and when it is back. Called a few times a second.
    pub(super) fn watch_disk(&self) {
        let checked = self.check_disk();
        if self.is_disk_behind.swap(checked.is_err(), Ordering::Relaxed) != checked.is_err() {
            match checked {
                Err(e) => tracing::warn!("{e}; new requests are refused until it does"),
                Ok(()) => tracing::info!("the disk that keeps the streams keeps up again"),
            }
        }
    }
}
