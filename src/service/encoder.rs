//! An encoder behind the seam: it embeds, and goes on from no text. Its weights come and go as a decoder's do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::backend::{Embedding, vector_of};
use super::on_demand::{OnDemand, OnMove};
use super::{Backend, Readiness, Residence};
use crate::engine::Load;
use crate::engine::encoder::{EncoderPool, StatesOf};
use crate::error::{Error, Result};
use crate::protocol::{Tenant, ValidInput, ValidRequest};
use crate::stream::StreamLog;

/// Loads the weights of an encoder.
pub type StatesLoader = Arc<dyn Fn() -> Result<StatesOf> + Send + Sync>;

/// The pool of this process for one encoder.
pub struct EncoderBackend {
    pool: Arc<EncoderPool>,
    loader: StatesLoader,
    name: String,
    is_draining: AtomicBool,
    weights: OnDemand,
}

impl EncoderBackend {
    /// Serves with a pool that has no model yet: `loader` loads the model `name` when it is wanted, which takes about
    /// `memory_bytes`.
    pub fn new(pool: EncoderPool, name: &str, loader: StatesLoader, memory_bytes: u64) -> Self {
        let weights = OnDemand::new(name, memory_bytes);
        Self { pool: Arc::new(pool), loader, name: name.to_owned(), is_draining: AtomicBool::new(false), weights }
    }
}

/// That a model cannot go on from a text.
pub(super) fn only_embeds(name: &str) -> Error {
    Error::invalid("model", format!("`model` must go on from texts; {name:?} only embeds them, at /v1/embeddings"))
}

impl Backend for EncoderBackend {
    fn submit(&self, _request: ValidRequest, _log: Arc<StreamLog>) -> Result<()> {
        Err(only_embeds(&self.name))
    }

    fn embed(&self, input: ValidInput) -> Result<Embedding> {
        self.pool.embed(input).map(vector_of)
    }

    fn check_room(&self, tenant: Tenant, coming: Load) -> Result<()> {
        self.pool.check_room(tenant, coming)
    }

    fn sweep(&self) {
        self.pool.sweep();
    }

    fn readiness(&self) -> Readiness {
        if self.is_draining.load(Ordering::Acquire) {
            return Readiness::Draining;
        }
        match self.residence() {
            Residence::Failed(_) => Readiness::Failed,
            Residence::Loaded if !self.pool.is_ready() => Readiness::Starting,
            // What is not loaded will be, once somebody asks for it.
            _ => Readiness::Ready,
        }
    }

    fn residence(&self) -> Residence {
        self.weights.residence()
    }

    fn watch_residence(&self) -> Option<watch::Receiver<Residence>> {
        Some(self.weights.watch())
    }

    fn tell_moves(&self, on_move: OnMove) {
        self.weights.tell(on_move);
    }

    fn memory_bytes(&self) -> u64 {
        self.weights.memory_bytes()
    }

    fn num_waiting(&self) -> usize {
        self.pool.num_waiting()
    }

    fn begin_load(&self) {
        let (pool, loader) = (self.pool.clone(), self.loader.clone());
        self.weights.begin_load(move || {
            let states_of = loader().inspect_err(|e| pool.refuse_waiting(e))?;
            pool.load(states_of)
        });
    }

    fn begin_unload(&self) -> bool {
        let pool = self.pool.clone();
        self.is_idle() && self.weights.begin_unload(move || pool.unload())
    }

    fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        self.pool.drain();
    }

    fn is_idle(&self) -> bool {
        self.pool.is_idle()
    }

    fn shutdown(&self, message: &str) {
        self.is_draining.store(true, Ordering::Release);
        self.pool.shutdown(message);
    }
}

impl std::fmt::Debug for EncoderBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderBackend").field("pool", &self.pool).finish_non_exhaustive()
    }
}
