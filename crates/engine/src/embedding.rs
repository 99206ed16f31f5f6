//! A text that is embedded, on its way through the engine. It waits, takes part in steps and is cancelled as a generation
//! is, by a log of its own; that log ends like every other and holds no vector. The vector itself comes beside it.
//!
//! ```text
//! ValidInput -> Engine::embed -> a request that samples nothing, and a Vector to fill -> queue, steps
//!                             -> Embedding: the reader of its log, and the same Vector
//! ```

use std::sync::{Arc, OnceLock};

use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::{OnDisconnect, SamplingParams, StopParams, ValidInput, ValidRequest};
use tallow_stream::{StreamLog, StreamReader};

/// A place for one vector. A lost worker's successor computes the same bits, so the first to come stays.
#[derive(Debug, Clone, Default)]
pub struct Vector(Arc<OnceLock<Vec<f32>>>);

impl Vector {
    /// Puts the vector there, of length 1.
    pub(super) fn fill(&self, values: Vec<f32>) {
        self.0.get_or_init(|| values);
    }

    /// Whether it is there.
    pub(super) fn is_filled(&self) -> bool {
        self.0.get().is_some()
    }
}

/// A vector to come. Dropping it cancels the work.
#[derive(Debug)]
pub struct Embedding {
    /// Of the log that tells the end.
    pub reader: StreamReader,
    vector: Vector,
}

impl Embedding {
    /// The vector, once the log has ended without an error.
    ///
    /// # Errors
    /// If there is none, which is a bug.
    pub fn take(self) -> Result<Vec<f32>> {
        self.vector.0.get().cloned().ok_or_else(|| Error::internal("a text was embedded, and no vector came"))
    }
}

/// A text as the queue takes it.
pub(super) struct Begun {
    pub(super) request: ValidRequest,
    pub(super) log: Arc<StreamLog>,
    pub(super) vector: Vector,
    pub(super) embedding: Embedding,
}

/// Makes the request that nothing is sampled from, and what tells of it.
pub(super) fn begin(input: ValidInput) -> Begun {
    let ValidInput { id, tenant, tokens, queue } = input;
    let on_disconnect = OnDisconnect::Cancel;
    let request = ValidRequest {
        id,
        tenant,
        prompt: tokens,
        max_tokens: 0,
        sampling: SamplingParams { seed: Some(0), ..SamplingParams::default() },
        stop: StopParams::default(),
        on_disconnect,
        queue,
        constraint: None,
        leader: None,
        resumed: None,
    };
    let (log, vector) = (StreamLog::new(id, tenant, on_disconnect), Vector::default());
    // From the beginning on: dropped with the embedding, it cancels.
    let embedding = Embedding { reader: log.reader(0), vector: vector.clone() };
    Begun { request, log, vector, embedding }
}
