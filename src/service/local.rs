//! The local pool behind the seam. Its model is loaded from the start, or on demand: then a thread loads and unloads it, and
//! requests wait in the engine's queue meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::{Backend, Readiness, Residence};
use crate::engine::{Engine, Load};
use crate::error::Result;
use crate::model::load::Loader;
use crate::protocol::{Tenant, ValidRequest};
use crate::sampling::grammar::GrammarCompiler;
use crate::stream::StreamLog;

/// The engine of this process for one model.
pub struct LocalBackend {
    engine: Arc<Engine>,
    /// An engine that is not ready may be on its way up or down; only here is it known which.
    is_draining: AtomicBool,
    /// `None` if it is loaded from the start and for good.
    on_demand: Option<OnDemand>,
}

struct OnDemand {
    name: String,
    loader: Loader,
    memory_bytes: u64,
    residence: Arc<watch::Sender<Residence>>,
}

impl LocalBackend {
    /// Serves with an engine that has its workers.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, is_draining: AtomicBool::new(false), on_demand: None }
    }

    /// Serves with an engine that has none yet: `loader` loads the model `name` when it is wanted, which takes about
    /// `memory_bytes`.
    pub(crate) fn on_demand(engine: Arc<Engine>, name: &str, loader: Loader, memory_bytes: u64) -> Self {
        let residence = Arc::new(watch::channel(Residence::Unloaded).0);
        let on_demand = Some(OnDemand { name: name.to_owned(), loader, memory_bytes, residence });
        Self { engine, is_draining: AtomicBool::new(false), on_demand }
    }
}

/// Changes `from` to `to`; whether it was that. What was to be done is then the caller's to do, and nobody else's.
fn change(residence: &watch::Sender<Residence>, from: impl Fn(&Residence) -> bool, to: Residence) -> bool {
    residence.send_if_modified(|state| {
        let is_from = from(state);
        if is_from {
            *state = to;
        }
        is_from
    })
}

impl OnDemand {
    /// Does `work` on a thread of its own; what it returns is where the weights are then.
    fn begin(&self, what: &str, work: impl FnOnce() -> Residence + Send + 'static) {
        let residence = self.residence.clone();
        let spawned = std::thread::Builder::new().name(format!("{what}-model")).spawn(move || {
            let after = work();
            residence.send_replace(after);
        });
        if let Err(e) = spawned {
            tracing::error!("no thread to {what} {}: {e}", self.name);
            self.residence.send_replace(Residence::Failed(format!("no thread to {what} it: {e}")));
        }
    }
}

impl Backend for LocalBackend {
    fn submit(&self, request: ValidRequest, log: Arc<StreamLog>) -> Result<()> {
        self.engine.submit(request, log)
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
        self.on_demand.as_ref().map_or(Residence::Loaded, |on_demand| on_demand.residence.borrow().clone())
    }

    fn watch_residence(&self) -> Option<watch::Receiver<Residence>> {
        self.on_demand.as_ref().map(|on_demand| on_demand.residence.subscribe())
    }

    fn memory_bytes(&self) -> u64 {
        self.on_demand.as_ref().map_or(0, |on_demand| on_demand.memory_bytes)
    }

    fn num_restarts(&self) -> u64 {
        self.engine.num_restarts()
    }

    fn num_waiting(&self) -> usize {
        self.engine.num_waiting()
    }

    fn begin_load(&self) {
        let Some(on_demand) = &self.on_demand else { return };
        let is_away = |state: &Residence| matches!(state, Residence::Unloaded | Residence::Failed(_));
        if !change(&on_demand.residence, is_away, Residence::Loading) {
            return;
        }
        let (engine, loader, name) = (self.engine.clone(), on_demand.loader.clone(), on_demand.name.clone());
        on_demand.begin("load", move || {
            let began = std::time::Instant::now();
            let loaded = loader().inspect_err(|e| engine.refuse_waiting(e)).and_then(|factory| engine.load(factory));
            match loaded {
                Ok(()) => {
                    tracing::info!("loaded {name} in {:.2} s", began.elapsed().as_secs_f64());
                    Residence::Loaded
                }
                Err(e) => {
                    tracing::error!("cannot load {name}: {e}");
                    Residence::Failed(format!("{name:?} cannot be loaded: {}", e.message()))
                }
            }
        });
    }

    fn begin_unload(&self) -> bool {
        let Some(on_demand) = self.on_demand.as_ref().filter(|_| self.is_idle()) else { return false };
        if !change(&on_demand.residence, |state| *state == Residence::Loaded, Residence::Unloading) {
            return false;
        }
        let engine = self.engine.clone();
        on_demand.begin("unload", move || if engine.unload() { Residence::Unloaded } else { Residence::Loaded });
        true
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
