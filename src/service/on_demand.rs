//! The weights of a model that come and go: a thread loads and unloads them, and the state between is told to all who watch.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::{Moved, Residence};
use crate::error::Result;

/// Hears that weights have come or gone.
pub type OnMove = Box<dyn Fn(Moved) + Send + Sync>;

/// Where one model's weights are, and the threads that move them.
pub(super) struct OnDemand {
    name: String,
    memory_bytes: u64,
    shared: Arc<Shared>,
}

struct Shared {
    residence: watch::Sender<Residence>,
    on_move: OnceLock<OnMove>,
}

impl OnDemand {
    /// Of a model that takes about `memory_bytes` once it is loaded, and is not.
    pub(super) fn new(name: &str, memory_bytes: u64) -> Self {
        let shared = Shared { residence: watch::channel(Residence::Unloaded).0, on_move: OnceLock::new() };
        Self { name: name.to_owned(), memory_bytes, shared: Arc::new(shared) }
    }

    pub(super) fn residence(&self) -> Residence {
        self.shared.residence.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Residence> {
        self.shared.residence.subscribe()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Has every later move told; the first to ask is told, and nobody else.
    pub(super) fn tell(&self, on_move: OnMove) {
        if self.shared.on_move.set(on_move).is_err() {
            tracing::error!("the moves of {} are told already", self.name);
        }
    }

    /// Does `load` on a thread of its own, unless the weights are there or on their way.
    pub(super) fn begin_load(&self, load: impl FnOnce() -> Result<()> + Send + 'static) {
        let is_away = |state: &Residence| matches!(state, Residence::Unloaded | Residence::Failed(_));
        if !self.change(is_away, Residence::Loading) {
            return;
        }
        let name = self.name.clone();
        self.begin("load", move || {
            let began = std::time::Instant::now();
            match load() {
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

    /// Does `unload` on a thread of its own; false unless the weights are there. If `unload` returns false, they stay.
    pub(super) fn begin_unload(&self, unload: impl FnOnce() -> bool + Send + 'static) -> bool {
        let may_begin = self.change(|state| *state == Residence::Loaded, Residence::Unloading);
        if may_begin {
            self.begin("unload", move || if unload() { Residence::Unloaded } else { Residence::Loaded });
        }
        may_begin
    }

    /// Changes the state to `to` if `from` holds of it; whether it did. What was to be done is then the caller's to do, and
    /// nobody else's.
    fn change(&self, from: impl Fn(&Residence) -> bool, to: Residence) -> bool {
        self.shared.residence.send_if_modified(|state| {
            let is_from = from(state);
            if is_from {
                *state = to;
            }
            is_from
        })
    }

    /// Does `work` on a thread of its own; what it returns is where the weights are then.
    fn begin(&self, what: &str, work: impl FnOnce() -> Residence + Send + 'static) {
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new().name(format!("{what}-model")).spawn(move || shared.settle(work()));
        if let Err(e) = spawned {
            tracing::error!("no thread to {what} {}: {e}", self.name);
            self.shared.settle(Residence::Failed(format!("no thread to {what} it: {e}")));
        }
    }
}

impl Shared {
    /// The end of a move. It is told first: a client that has seen the new state finds it told.
    fn settle(&self, after: Residence) {
        let before = self.residence.borrow().clone();
        let moved = match (before, &after) {
            (Residence::Loading, Residence::Loaded) => Some(Moved::Loaded),
            (Residence::Unloading, Residence::Unloaded) => Some(Moved::Unloaded),
            _ => None,
        };
        if let (Some(moved), Some(on_move)) = (moved, self.on_move.get()) {
            on_move(moved);
        }
        self.residence.send_replace(after);
    }
}
