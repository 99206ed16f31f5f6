//! Where work is done that grows with what a client sends: at once if it is small, else on the pool of low priority, in
//! its owner's turn. Every such piece of work goes through [`Service::sized`], so that there is one rule.

use super::Service;
use crate::error::{ErrorKind, Result};
use crate::metrics::RejectLabel;
use crate::protocol::Tenant;

impl Service {
    /// Does `work` on `num_bytes` of what `tenant` sent or is to get. Dropping the future drops work that has not begun.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] if too many jobs of this tenant wait.
    pub async fn sized<T: Send + 'static>(
        &self,
        tenant: Tenant,
        num_bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        if num_bytes <= self.config.inline_bytes_max {
            return Ok(work());
        }
        let done = self.background.run(tenant, work).await;
        self.count_full(done)
    }

    /// Counts a refusal by a full line.
    pub(super) fn count_full<T>(&self, done: Result<T>) -> Result<T> {
        done.inspect_err(|e| {
            if e.kind() == ErrorKind::Overloaded {
                self.metrics.reject(&RejectLabel::BACKGROUND_FULL);
            }
        })
    }
}
