//! The local pool behind the seam. Its model is loaded from the start, or on demand: then a thread loads and unloads it
//! (`on_demand`), and requests wait in the engine's queue meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::backend::{Embedding, vector_of};
use super::on_demand::{OnDemand, OnMove};
use super::{Backend, Readiness, Residence};
use crate::engine::{Engine, Load};
use crate::error::Result;
use crate::model::load::Loader;
use crate::protocol::{Tenant, ValidInput, ValidRequest};
use crate::sampling::grammar::GrammarCompiler;
use crate::stream::StreamLog;

/// The engine of this process for one model.
pub struct LocalBackend {
    engine: Arc<Engine>,
    /// An engine that is not ready may be on its way up or down; only here is it known which.
    is_draining: AtomicBool,
    /// `None` if it is loaded from the start and for good.
    on_demand: Option<(OnDemand, Loader)>,
}

impl LocalBackend {
    /// Serves with an engine that has its workers.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, is_draining: AtomicBool::new(false), on_demand: None }
    }

    /// Serves with an engine that has none yet: `loader` loads the model `name` when it is wanted, which takes about
    /// `memory_bytes`.
    pub fn on_demand(engine: Arc<Engine>, name: &str, loader: Loader, memory_bytes: u64) -> Self {
        let on_demand = Some((OnDemand::new(name, memory_bytes), loader));
        Self { engine, is_draining: AtomicBool::new(false), on_demand }
    }

    fn weights(&self) -> Option<&OnDemand> {
        self.on_demand.as_ref().map(|(weights, _)| weights)
    }
}

impl Backend for LocalBackend {
    fn submit(&self, request: ValidRequest, log: Arc<StreamLog>) -> Result<()> {
        self.engine.submit(request, log)
    }

    fn embed(&self, input: ValidInput) -> Result<Embedding> {
        self.engine.embed(input).map(vector_of)
    }

    fn check_room(&self, tenant: Tenant, coming: Load) -> Result<()> {
        self.engine.check_room(tenant, coming)
    }

    fn grammars(&self) -> Option<Arc<GrammarCompiler>> {
        Some(self.engine.grammars().clone())
    }

    fn sweep(&self) {
        self.engine.sweep();
    }

    fn readiness(&self) -> Readiness {
        if self.is_draining.load(Ordering::Acquire) {
            Readiness::Draining
        } else if self.engine.is_ready() || !matches!(self.residence(), Residence::Loaded | Residence::Failed(_)) {
            // What is not loaded will be, once somebody asks for it.
            Readiness::Ready
        } else if self.engine.has_failed() || matches!(self.residence(), Residence::Failed(_)) {
            Readiness::Failed
        } else {
            Readiness::Starting
        }
    }

    fn residence(&self) -> Residence {
        self.weights().map_or(Residence::Loaded, OnDemand::residence)
    }

    fn watch_residence(&self) -> Option<watch::Receiver<Residence>> {
        self.weights().map(OnDemand::watch)
    }

    fn tell_moves(&self, on_move: OnMove) {
        if let Some(weights) = self.weights() {
            weights.tell(on_move);
        }
    }

    fn memory_bytes(&self) -> u64 {
        self.weights().map_or(0, OnDemand::memory_bytes)
    }

    fn num_restarts(&self) -> u64 {
        self.engine.num_restarts()
    }

    fn num_waiting(&self) -> usize {
        self.engine.num_waiting()
    }

    fn begin_load(&self) {
        let Some((weights, loader)) = &self.on_demand else { return };
        let (engine, loader) = (self.engine.clone(), loader.clone());
        weights.begin_load(move || {
            let factory = loader().inspect_err(|e| engine.refuse_waiting(e))?;
            engine.load(factory)
        });
    }

    fn begin_unload(&self) -> bool {
        let Some(weights) = self.weights().filter(|_| self.is_idle()) else { return false };
        let engine = self.engine.clone();
        weights.begin_unload(move || engine.unload())
    }

    fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        self.engine.drain();
    }

    fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    fn shutdown(&self, message: &str) {
        self.is_draining.store(true, Ordering::Release);
        self.engine.shutdown(message);
    }
}

impl std::fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalBackend").field("engine", &self.engine).finish_non_exhaustive()
    }
}
