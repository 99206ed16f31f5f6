//! Models: from a file to logits. The one [`Model`] trait has two implementations, the decoder and the stub.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tallow_kernels::BlockId;
use tallow_stream::error::Result;
use tallow_stream::protocol::TokenId;

pub mod config;
pub mod decoder;
mod device;
pub mod encoder;
mod fingerprint;
pub mod gguf;
pub mod load;
pub mod stub;
pub mod text;
pub mod vocab;

/// What the engine must know of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Number of logits per row.
    pub vocab_size: usize,
    /// Longest sequence, prompt and output together.
    pub max_model_len: usize,
    /// KV blocks it has memory for.
    pub num_blocks: usize,
    /// A token that attends to this many others takes about twice the time of one that attends to none. At least 1.
    pub attention_span: usize,
}

/// A loaded model with its KV memory. One worker owns it outright.
pub trait Model: Send {
    /// What the engine must know of it.
    fn spec(&self) -> &ModelSpec;

    /// Computes every token of the batch, writes their keys and values to their slots, and puts the logits of the
    /// wanted rows into `logits` (`[num_logits, vocab_size]`, replacing what was there).
    ///
    /// Each row depends on its own sequence only: same tokens, same bits, whatever else is in the batch and however
    /// the sequence was cut into steps.
    ///
    /// # Errors
    /// If the device fails. A malformed batch is a bug and panics.
    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()>;

    /// The hidden states, behind the last norm, of `rows` of the batch that [`Self::forward`] computed last
    /// (`[rows.len(), hidden_size]`, replacing what was in `states`). They depend on what logits do and on no more.
    ///
    /// # Errors
    /// If the device fails. Another batch than the last is a bug.
    fn hidden_states(&mut self, batch: &Batch, rows: Range<usize>, states: &mut Vec<f32>) -> Result<()>;

    /// A count that rises many times within `forward`, with every part of a matrix for instance: a long step is told from
    /// one that hangs by it. Without one, a step that takes long counts as hung.
    fn beat(&self) -> Option<Arc<AtomicU64>> {
        None
    }
}

/// Makes a model with KV memory of its own. Called once per worker, and again when a worker is restarted.
pub type ModelFactory = Arc<dyn Fn() -> Result<Box<dyn Model>> + Send + Sync>;

/// The ragged input of one step: some tokens of some sequences, back to back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[num_tokens]`
    pub token_ids: Vec<TokenId>,
    /// `[num_tokens]`, place of each token in its sequence, from 0.
    pub positions: Vec<u32>,
    /// `[num_tokens]`, KV slot of each token: `block * BLOCK_SIZE + offset`.
    pub slot_mapping: Vec<u32>,
    /// `[num_seqs + 1]`, where each sequence's tokens begin in the three arrays above; the last is `num_tokens`.
    pub cu_seqlens: Vec<u32>,
    /// Every sequence's blocks back to back, each table covering positions `0..=` its last token of this step.
    pub block_tables: Vec<BlockId>,
    /// `[num_seqs + 1]`, where each sequence's table begins in `block_tables`.
    pub cu_blocks: Vec<u32>,
    /// Blocks whose content is copied, from the first to the second of each pair, before anything is computed: what a
    /// sequence shares with another and both go on from.
    pub copies: Vec<(BlockId, BlockId)>,
    /// `[num_logits]`, rows of `token_ids` whose logits are wanted, rising.
    pub logits_indices: Vec<u32>,
}

impl Batch {
    /// Forgets the step before, keeps the memory.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
        self.block_tables.clear();
        self.cu_blocks.clear();
        self.cu_blocks.push(0);
        self.copies.clear();
        self.logits_indices.clear();
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Number of sequences.
    pub fn num_seqs(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Rows of sequence `i`.
    pub fn rows(&self, i: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[i] as usize..self.cu_seqlens[i + 1] as usize
    }

    /// Blocks of sequence `i`, in order of position.
    pub fn block_table(&self, i: usize) -> &[BlockId] {
        &self.block_tables[self.cu_blocks[i] as usize..self.cu_blocks[i + 1] as usize]
    }
}
