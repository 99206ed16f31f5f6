//! The ids of streams that are no longer kept, so that a late reader learns `expired` and not `unknown`. Their number
//! is bounded. Owners share the bound by weight, so that one owner's streams do not make another's unknown.

use std::collections::HashMap;

use super::holdings::Holdings;
use crate::protocol::{StreamId, Tenant};

/// Expired ids, with their owners.
#[derive(Debug, Default)]
pub(super) struct Expired {
    tenants: HashMap<StreamId, Tenant>,
    holdings: Holdings,
}

impl Expired {
    /// Remembers one more, and forgets others until at most `num_max` are left.
    pub(super) fn add(&mut self, id: StreamId, tenant: Tenant, weight: u32, num_max: usize) {
        self.tenants.insert(id, tenant);
        self.holdings.begin(tenant, weight);
        self.holdings.end(tenant, 0, id);
        while self.tenants.len() > num_max
            && let Some((tenant, id)) = self.holdings.first_to_go()
        {
            self.tenants.remove(&id);
            self.holdings.remove(tenant, id, 0);
        }
    }

    /// Whether this was the id of a stream of `tenant`'s.
    pub(super) fn has(&self, id: StreamId, tenant: Tenant) -> bool {
        self.tenants.get(&id) == Some(&tenant)
    }
}
