//! What responses were asked, by the id of their stream, for as long as that is kept: the log has the output, this has
//! the rest. Bounded per owner in number and in bytes; an owner's oldest response that has ended makes room for its
//! next. Lives in memory only: after a restart there are no responses, whatever became of their streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::described::{Described, ID_PREFIX};
use super::kept::KeptResponses;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{StreamId, Tenant};
use crate::settings;
use crate::settings::{COUNT_MAX, KIB, bytes, count, setting};
use crate::stream::{StreamLog, StreamTable};

/// How long a client is asked to wait whose responses are all live: about one short generation.
const RETRY_AFTER_MS: u64 = 1000;

/// Entries whose stream is gone are looked for when so many have come since the last time.
const SWEEP_EVERY: usize = 64;

settings! {
    /// How much one owner's responses may hold beside their logs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ResponseLimits {
        /// Most stored responses of one owner; its oldest that has ended makes room.
        pub num_responses_max: usize = 1024
            => setting("responses.num_responses_max", "responses-max", count(1, COUNT_MAX, "responses"));
        /// Memory limit for the stored responses of one key.
        ///
        /// Of their requests and input items, as JSON.
        pub num_bytes_max: usize = 64 << 20
            => setting("responses.num_bytes_max", "responses-bytes-max", bytes(64 * KIB, 1 << 50));
    }
}

/// The responses of all owners.
#[derive(Debug, Default)]
pub(crate) struct ResponseStore {
    limits: ResponseLimits,
    // A std mutex: held for map operations only.
    inner: Mutex<StoredResponses>,
    kept: KeptResponses,
}

#[derive(Debug, Default)]
struct StoredResponses {
    slots: HashMap<StreamId, Slot>,
    num_since_sweep: usize,
    next_order: u64,
}

#[derive(Debug)]
struct Slot {
    tenant: Tenant,
    described: Arc<Described>,
    num_bytes: usize,
    /// Later ones have higher ones.
    order: u64,
}

impl ResponseStore {
    /// An empty one.
    pub(crate) fn new(limits: ResponseLimits) -> Self {
        Self { limits, inner: Mutex::default(), kept: KeptResponses::default() }
    }

    /// How far they have been read.
    pub(super) fn kept(&self) -> &KeptResponses {
        &self.kept
    }

    /// Keeps `described`, in the place of the owner's oldest that have ended if need be.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] if the owner's live ones leave no room; [`ErrorKind::InvalidRequest`] for one that is
    /// larger than all of it.
    pub(super) fn insert(&self, tenant: Tenant, described: Arc<Described>, table: &StreamTable) -> Result<()> {
        let num_bytes = described.num_bytes;
        if num_bytes > self.limits.num_bytes_max {
            let max = self.limits.num_bytes_max;
            let message = format!("`input` of a stored response must have at most {max} bytes, got {num_bytes}");
            return Err(Error::invalid("input", message));
        }
        let mut inner = self.lock();
        inner.num_since_sweep += 1;
        if inner.num_since_sweep >= SWEEP_EVERY {
            inner.num_since_sweep = 0;
            inner.slots.retain(|id, slot| table.get(*id, slot.tenant).is_ok());
        }
        inner.make_room(tenant, num_bytes, self.limits, table)?;
        let order = inner.next_order;
        inner.next_order += 1;
        inner.slots.insert(described.id, Slot { tenant, described, num_bytes, order });
        Ok(())
    }

    /// The tenant's response that `text` names, with its log.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for unknown, foreign, deleted and expired ones alike.
    pub(super) fn get(
        &self,
        text: &str,
        tenant: Tenant,
        table: &StreamTable,
    ) -> Result<(Arc<Described>, Arc<StreamLog>)> {
        let missing = || {
            let message = format!(
                "no response {text:?} is kept; it may have expired, and responses do not outlive the server's process"
            );
            Error::new(ErrorKind::NotFound, message)
        };
        let id: StreamId = text.strip_prefix(ID_PREFIX).and_then(|id| id.parse().ok()).ok_or_else(missing)?;
        let described = {
            let inner = self.lock();
            let slot = inner.slots.get(&id).filter(|slot| slot.tenant == tenant).ok_or_else(missing)?;
            slot.described.clone()
        };
        match table.get(id, tenant) {
            Ok(log) => Ok((described, log)),
            Err(_) => {
                self.remove(id);
                Err(missing())
            }
        }
    }

    /// Forgets one.
    pub(super) fn remove(&self, id: StreamId) {
        self.kept.remove(id);
        // Not under the lock: a conversation is many values.
        let slot = self.lock().slots.remove(&id);
        drop(slot);
    }

    fn lock(&self) -> MutexGuard<'_, StoredResponses> {
        // Every change is a whole map operation, so a panic elsewhere leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoredResponses {
    fn make_room(&mut self, tenant: Tenant, more: usize, limits: ResponseLimits, table: &StreamTable) -> Result<()> {
        let own = self.slots.iter().filter(|(_, slot)| slot.tenant == tenant);
        let mut own: Vec<_> = own.map(|(id, slot)| (slot.order, *id, slot.num_bytes)).collect();
        let (mut num, mut num_bytes) = (own.len() + 1, own.iter().map(|o| o.2).sum::<usize>() + more);
        let is_full = |num, num_bytes| num > limits.num_responses_max || num_bytes > limits.num_bytes_max;
        if !is_full(num, num_bytes) {
            return Ok(());
        }
        own.sort_unstable();
        let mut leaving = Vec::new();
        for (_, id, bytes) in own {
            if is_full(num, num_bytes) && table.get(id, tenant).map_or(true, |log| log.is_finished()) {
                (num, num_bytes) = (num - 1, num_bytes - bytes);
                leaving.push(id);
            }
        }
        if is_full(num, num_bytes) {
            return Err(Error::overloaded("all responses that may be kept at once are still running", RETRY_AFTER_MS));
        }
        leaving.iter().for_each(|id| drop(self.slots.remove(id)));
        Ok(())
    }
}
