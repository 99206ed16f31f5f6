//! A model that waits at a gate before each step.

use std::ops::Range;
use std::sync::Arc;

use tallow::error::Result;
use tallow::model::stub::StubGate;
use tallow::model::{Batch, Model, ModelFactory, ModelSpec};

struct Gated {
    model: Box<dyn Model>,
    gate: Arc<StubGate>,
}

/// Makes what `factory` makes, behind `gate`.
pub(crate) fn gated(factory: ModelFactory, gate: Arc<StubGate>) -> ModelFactory {
    Arc::new(move || Ok(Box::new(Gated { model: factory()?, gate: gate.clone() }) as Box<dyn Model>))
}

impl Model for Gated {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()> {
        self.gate.pass(|| {});
        self.model.forward(batch, logits)
    }

    fn hidden_states(&mut self, batch: &Batch, rows: Range<usize>, states: &mut Vec<f32>) -> Result<()> {
        self.model.hidden_states(batch, rows, states)
    }
}
