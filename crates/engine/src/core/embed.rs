//! The part of a step that embeds: takes the hidden states of the sequences that want them, and tells the vectors of
//! those that are complete.

use super::{EngineCore, SequenceEnd};
use tallow_stream::protocol::FinishReason;

impl EngineCore {
    /// Adds the states of the step just computed.
    pub(super) fn embed(&mut self) {
        for (index, planned) in self.scheduler.plan().iter().enumerate() {
            let generation = self.generations[planned.slot].as_mut().expect("a planned sequence is alive");
            let Some((pooling, vector)) = &mut generation.embedded else { continue };
            self.lease.work_for(Some(planned.slot));
            let rows = self.batch.rows(index);
            let first = self.batch.positions[rows.start] as usize;
            // After a preemption, what was added before is computed once more.
            let num_known = pooling.num_tokens().saturating_sub(first).min(rows.len());
            let new = rows.start + num_known..rows.end;
            if !new.is_empty() {
                // What fails for one input is that one's failure.
                if let Err(e) = self.model.hidden_states(&self.batch, new.clone(), &mut self.states) {
                    self.ended.push((planned.slot, SequenceEnd::Failed(e.kind(), e.message().to_owned())));
                    continue;
                }
                pooling.add(&self.states, new.len());
            }
            if !planned.is_sampled {
                continue;
            }
            let end = match pooling.finish() {
                Ok(values) => {
                    self.parts.metrics.embeddings.inc();
                    self.parts.metrics.embedding_tokens.inc_by(pooling.num_tokens() as u64);
                    vector.fill(values);
                    SequenceEnd::Done(FinishReason::Stop)
                }
                Err(e) => SequenceEnd::Failed(e.kind(), e.message().to_owned()),
            };
            self.ended.push((planned.slot, end));
        }
        self.lease.work_for(None);
    }
}
