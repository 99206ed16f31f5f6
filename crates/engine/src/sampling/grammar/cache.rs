//! Compiled grammars that are kept, within bounds of number and memory, shared out by owner.
//!
//! An entry counts against the owner whose request compiled it; every owner may use it. When a bound is passed, the
//! owner that holds the most loses its least recently used entry, so no owner can flush the entries of another. A
//! grammar that some text uses is not dropped: it takes its memory in any case, and the next request finds it.

use std::collections::HashMap;
use std::sync::Arc;

use super::Grammar;
use tallow_stream::protocol::{Constraint, Tenant};

#[derive(Debug, Default)]
pub(super) struct Cache {
    /// Least recently used first.
    entries: Vec<CachedGrammar>,
}

#[derive(Debug)]
struct CachedGrammar {
    owner: Tenant,
    constraint: Constraint,
    grammar: Arc<Grammar>,
}

/// What the cache may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheBounds {
    pub num_max: usize,
    pub bytes_max: usize,
}

impl Cache {
    pub(super) fn get(&mut self, constraint: &Constraint) -> Option<Arc<Grammar>> {
        let index = self.entries.iter().position(|entry| entry.constraint == *constraint)?;
        self.entries[index..].rotate_left(1);
        self.entries.last().map(|entry| entry.grammar.clone())
    }

    /// Adds `grammar` unless it is there already, and drops entries until the cache is within its bounds again.
    pub(super) fn insert(
        &mut self,
        owner: Tenant,
        constraint: Constraint,
        grammar: Arc<Grammar>,
        CacheBounds { num_max, bytes_max }: CacheBounds,
    ) {
        if self.get(&constraint).is_none() {
            self.entries.push(CachedGrammar { owner, constraint, grammar });
        }
        while self.entries.len() > num_max || self.num_bytes() > bytes_max {
            let Some(index) = self.next_to_drop() else { return };
            self.entries.remove(index);
        }
    }

    /// The least recently used entry of the owner that holds the most, among entries that no text uses. An owner's
    /// share is what it holds of both bounds together: bytes, and a fixed size per entry.
    fn next_to_drop(&self) -> Option<usize> {
        let mut held: HashMap<Tenant, usize> = HashMap::new();
        for entry in &self.entries {
            *held.entry(entry.owner).or_default() += ENTRY_BYTES + entry.grammar.num_bytes();
        }
        let is_unused = |entry: &CachedGrammar| Arc::strong_count(&entry.grammar) == 1;
        let droppable = self.entries.iter().enumerate().filter(|(_, entry)| is_unused(entry));
        // Of equal owners the one that comes first, which has the entry that was not used for longest.
        droppable.rev().max_by_key(|(_, entry)| held[&entry.owner]).map(|(index, _)| index)
    }

    fn num_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.grammar.num_bytes()).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// What an entry weighs at least, beside its bytes: with it an owner of many small entries is told from one of few.
const ENTRY_BYTES: usize = 64 << 10;
