//! Memory that requests hold while it is being read or written: a bound over all of it, and a share of it for each owner.
//! Used for bodies on their way in and for answers on their way out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::protocol::Tenant;

/// When a refused client is asked to come back.
const RETRY_AFTER_MS: u64 = 1000;

/// One owner may have one of so many parts, so that others find room.
const OWNER_PART: usize = 2;

/// Memory for one purpose.
#[derive(Debug)]
pub(crate) struct Budget {
    /// What is held, for messages: "request bodies".
    what: &'static str,
    bytes_max: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    num_bytes: usize,
    /// Owners that hold some.
    by_owner: HashMap<Tenant, usize>,
}

/// What one request holds of it, until it is dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    budget: Arc<Budget>,
    tenant: Tenant,
    num_bytes: usize,
}

impl Budget {
    /// `bytes_max` for all owners together, but never less than what two requests of `largest` bytes need.
    pub(crate) fn new(what: &'static str, bytes_max: usize, largest: usize) -> Arc<Self> {
        let bytes_max = bytes_max.max(largest.saturating_mul(OWNER_PART));
        Arc::new(Self { what, bytes_max, used: Mutex::default() })
    }

    /// Nothing yet, in the name of `tenant`.
    pub(crate) fn hold(self: &Arc<Self>, tenant: Tenant) -> HeldBytes {
        HeldBytes { budget: self.clone(), tenant, num_bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // Counters only.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldBytes {
    /// Takes `more`.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] if the owner holds its share; [`ErrorKind::Unavailable`] if all of it is held.
    pub(crate) fn grow(&mut self, more: usize) -> Result<()> {
        let Budget { what, bytes_max, .. } = *self.budget;
        let owner_bytes_max = bytes_max / OWNER_PART;
        let mut used = self.budget.lock();
        let own = used.by_owner.get(&self.tenant).copied().unwrap_or_default();
        if own + more > owner_bytes_max {
            let message =
                format!("memory limit reached: the {what} of one key may hold {owner_bytes_max} bytes at once");
            return Err(Error::overloaded(message, RETRY_AFTER_MS));
        }
        if used.num_bytes + more > bytes_max {
            let message = format!("memory limit reached: the {what} of all keys may hold {bytes_max} bytes at once");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        used.num_bytes += more;
        used.by_owner.insert(self.tenant, own + more);
        drop(used);
        self.num_bytes += more;
        Ok(())
    }

    /// What it holds.
    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// Gives `less` back.
    pub(crate) fn shrink(&mut self, less: usize) {
        let less = less.min(self.num_bytes);
        self.num_bytes -= less;
        let mut used = self.budget.lock();
        used.num_bytes -= less;
        if let Some(own) = used.by_owner.get_mut(&self.tenant) {
            *own -= less;
            if *own == 0 {
                used.by_owner.remove(&self.tenant);
            }
        }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        if self.num_bytes > 0 {
            self.shrink(self.num_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_has_half_and_all_have_the_whole() {
        let budget = Budget::new("bodies", 100, 1);
        let kind = |held: &mut HeldBytes, more| held.grow(more).map_err(|e| e.kind());
        let (mut one, mut other, mut third) = (budget.hold(Tenant(1)), budget.hold(Tenant(2)), budget.hold(Tenant(3)));
        assert_eq!(kind(&mut one, 50), Ok(()));
        assert_eq!(kind(&mut one, 1), Err(ErrorKind::Overloaded));
        assert_eq!(kind(&mut budget.hold(Tenant(1)), 1), Err(ErrorKind::Overloaded), "however many requests it has");
        assert_eq!(kind(&mut other, 50), Ok(()));
        assert_eq!(kind(&mut third, 1), Err(ErrorKind::Unavailable));
        other.shrink(10);
        assert_eq!(kind(&mut third, 10), Ok(()));
        drop((one, other, third));
        let used = budget.lock();
        assert_eq!((used.num_bytes, used.by_owner.len()), (0, 0), "all of it came back");
    }

    #[test]
    fn the_largest_request_always_fits() {
        assert_eq!(Budget::new("bodies", 10, 1000).hold(Tenant(1)).grow(1000), Ok(()));
    }
}
