//! How far responses have been read that somebody asked for: who asks again pays for what is new, not for all of it. Bounded
//! in number and in bytes over all owners; the one that nobody has asked for the longest goes, and is read from the beginning
//! the next time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::assembly::Assembly;
use super::described::Described;
use crate::protocol::StreamId;
use crate::text::Tokenizer;

/// Most responses.
const NUM_MAX: usize = 256;

/// Most memory: a long response with log-probabilities takes some megabytes.
const BYTES_MAX: usize = 64 << 20;

/// A response, read so far.
pub(super) struct Kept {
    pub(super) assembly: Assembly,
    /// The entry of the log that comes next.
    pub(super) next_seq: u64,
}

/// One of them, for one reader at a time. Waited for, as it may be in use on another thread.
pub(super) type KeptCell = Arc<tokio::sync::Mutex<Kept>>;

/// All of them; the last was asked for last.
#[derive(Default)]
pub(super) struct KeptResponses(Mutex<VecDeque<KeptPlace>>);

struct KeptPlace {
    id: StreamId,
    cell: KeptCell,
    num_bytes: usize,
}

impl KeptResponses {
    /// The response as far as it was read; from now on the last to leave.
    pub(super) fn cell(&self, described: &Arc<Described>, tokenizer: &Arc<Tokenizer>) -> KeptCell {
        let mut places = self.lock();
        let place = match places.iter().position(|place| place.id == described.id).and_then(|at| places.remove(at)) {
            Some(place) => place,
            None => {
                let assembly = Assembly::new(described.clone(), tokenizer.clone(), u64::MAX);
                let cell = Arc::new(tokio::sync::Mutex::new(Kept { assembly, next_seq: 0 }));
                KeptPlace { id: described.id, cell, num_bytes: 0 }
            }
        };
        let cell = place.cell.clone();
        places.push_back(place);
        cell
    }

    /// Notes the memory of one, and lets the oldest go until the rest fit.
    pub(super) fn note(&self, id: StreamId, num_bytes: usize) {
        let mut places = self.lock();
        if let Some(place) = places.iter_mut().find(|place| place.id == id) {
            place.num_bytes = num_bytes;
        }
        let mut all: usize = places.iter().map(|place| place.num_bytes).sum();
        while places.len() > NUM_MAX || all > BYTES_MAX {
            let Some(oldest) = places.pop_front() else { return };
            all -= oldest.num_bytes;
        }
    }

    /// Forgets one.
    pub(super) fn remove(&self, id: StreamId) {
        self.lock().retain(|place| place.id != id);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<KeptPlace>> {
        // Every change is a whole one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for KeptResponses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptResponses").finish_non_exhaustive()
    }
}
