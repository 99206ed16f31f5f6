//! Compiled grammars that are kept, within bounds of number and memory. What is used by somebody is not thrown away:
//! it takes its memory in any case, and whoever comes next finds it.

use std::sync::Arc;

use super::Grammar;
use crate::protocol::Constraint;

#[derive(Debug, Default)]
pub(super) struct Cache {
    /// Least recently used first.
    entries: Vec<(Constraint, Arc<Grammar>)>,
}

impl Cache {
    pub(super) fn get(&mut self, constraint: &Constraint) -> Option<Arc<Grammar>> {
        let index = self.entries.iter().position(|(known, _)| known == constraint)?;
        self.entries[index..].rotate_left(1);
        self.entries.last().map(|(_, grammar)| grammar.clone())
    }

    /// Adds what is not in it, and drops what has not been used for longest.
    pub(super) fn insert(&mut self, constraint: Constraint, grammar: Arc<Grammar>, num_max: usize, bytes_max: usize) {
        if self.get(&constraint).is_none() {
            self.entries.push((constraint, grammar));
        }
        let mut num = self.entries.len();
        let mut bytes: usize = self.entries.iter().map(|(_, grammar)| grammar.num_bytes()).sum();
        self.entries.retain(|(_, grammar)| {
            let is_kept = (num <= num_max && bytes <= bytes_max) || Arc::strong_count(grammar) > 1;
            if !is_kept {
                num -= 1;
                bytes -= grammar.num_bytes();
            }
            is_kept
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
