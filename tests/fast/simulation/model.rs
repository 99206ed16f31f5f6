//! The stub under observation: it checks the shape of every batch, lets the driver destroy what means nothing, and
//! can be made to do what a defect in the engine would do.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use tallow::cache::{BLOCK_SIZE, BlockId};
use tallow::engine::scheduler::SchedulerLimits;
use tallow::error::Result;
use tallow::model::stub::StubModel;
use tallow::model::{Batch, Model, ModelSpec};

/// A defect, as the model would see it, or whoever waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A token's keys and values go to the slot beside its own.
    WrongSlot,
    /// A token is not written at all: it shows what the slot held before.
    LostWrite,
    /// A table names another block than the one that was written.
    WrongBlock,
    /// Two sequences get each other's logits.
    SwappedRows,
    /// A token beyond those planned is written, into whatever comes after.
    WriteBehind,
    /// The tenant is not part of the cache's key.
    SharedTenants,
    /// Another token is computed than the one that was sampled.
    WrongToken,
    /// One owner counts for more than it should.
    FalseWeight,
}

impl Mutation {
    pub(crate) const ALL: [Self; 8] = [
        Self::WrongSlot,
        Self::LostWrite,
        Self::WrongBlock,
        Self::SwappedRows,
        Self::WriteBehind,
        Self::SharedTenants,
        Self::WrongToken,
        Self::FalseWeight,
    ];
}

/// The engine's handle on the model.
pub(crate) struct Observed {
    pub stub: Arc<Mutex<StubModel>>,
    pub spec: ModelSpec,
    pub limits: SchedulerLimits,
    pub mutation: Option<Mutation>,
    pub num_steps: usize,
}

impl Model for Observed {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()> {
        assert!(batch.num_tokens() <= self.limits.max_num_batched_tokens, "a step over budget");
        assert!(batch.num_seqs() <= self.limits.max_num_seqs, "too many sequences");
        let distinct: std::collections::HashSet<_> = batch.slot_mapping.iter().collect();
        assert_eq!(distinct.len(), batch.num_tokens(), "two tokens share a slot");
        self.num_steps += 1;
        let batch = self.mutated(batch);
        lock(&self.stub).forward(&batch, logits)?;
        if self.mutation == Some(Mutation::SwappedRows) && batch.logits_indices.len() > 1 {
            let (first, rest) = logits.split_at_mut(self.spec.vocab_size);
            first.swap_with_slice(&mut rest[..self.spec.vocab_size]);
        }
        Ok(())
    }

    fn hidden_states(&mut self, batch: &Batch, rows: Range<usize>, states: &mut Vec<f32>) -> Result<()> {
        lock(&self.stub).hidden_states(batch, rows, states)
    }
}

impl Observed {
    fn mutated(&self, batch: &Batch) -> Batch {
        let mut batch = batch.clone();
        // Now and then, as real defects are.
        if !self.num_steps.is_multiple_of(5) {
            return batch;
        }
        match self.mutation {
            Some(Mutation::WrongSlot) => batch.slot_mapping[0] ^= 1,
            Some(Mutation::LostWrite) => {
                let last = batch.num_tokens() - 1;
                batch.slot_mapping[last] = batch.slot_mapping[0];
                batch.token_ids[last] = batch.token_ids[0];
            }
            Some(Mutation::WrongBlock) => {
                let num_blocks = self.spec.num_blocks as u32;
                batch.block_tables[0] = BlockId((batch.block_tables[0].0 + 1) % num_blocks);
            }
            Some(Mutation::WriteBehind) => {
                let behind = (batch.slot_mapping[0] as usize + BLOCK_SIZE) % (self.spec.num_blocks * BLOCK_SIZE);
                batch.slot_mapping[0] = behind as u32;
            }
            Some(Mutation::WrongToken) => batch.token_ids[0] = 97,
            Some(Mutation::SwappedRows | Mutation::SharedTenants | Mutation::FalseWeight) | None => {}
        }
        batch
    }
}

pub(crate) fn lock(stub: &Arc<Mutex<StubModel>>) -> MutexGuard<'_, StubModel> {
    // The stub panics where a schedule says so; its memory is thrown away then.
    stub.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
