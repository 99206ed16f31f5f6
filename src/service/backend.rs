//! The seam below which a local pool and a cluster look the same.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::on_demand::OnMove;
use crate::engine::Load;
use crate::error::{Error, Result};
use crate::protocol::{Event, Tenant, ValidInput, ValidRequest};
use crate::sampling::grammar::GrammarCompiler;
use crate::stream::StreamLog;

/// Whether a backend can serve, for `/health/ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Requests will be served.
    Ready,
    /// Loading, or a worker is being restarted.
    Starting,
    /// No worker is left, and none will come.
    Failed,
    /// No new requests; running ones finish.
    Draining,
}

/// Where a model's weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Residence {
    /// Not in memory. Requests wait until they are loaded.
    Unloaded,
    /// On their way into memory.
    Loading,
    /// In memory.
    Loaded,
    /// On their way out.
    Unloading,
    /// They could not be loaded, for this reason; the next request tries again.
    Failed(String),
}

impl Residence {
    /// One word for lists.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Unloading => "unloading",
            Self::Failed(_) => "failed",
        }
    }
}

/// What has become of a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// They are in memory.
    Loaded,
    /// Their memory is free.
    Unloaded,
}

/// A vector to come, of length 1. Dropping it cancels the work.
pub type Embedding = BoxFuture<'static, Result<Vec<f32>>>;

/// The engine's vector to come, as one that can be awaited.
pub(super) fn vector_of(mut embedding: crate::engine::Embedding) -> Embedding {
    Box::pin(async move {
        while let Some((_, event)) = embedding.reader.next().await {
            if let Event::Error(info) = event {
                return Err(Error::new(info.kind, info.message));
            }
        }
        embedding.take()
    })
}

/// Where validated requests are run: the local pool, later a cluster.
pub trait Backend: Send + Sync {
    /// Takes the request; its events go to `log`. Returns at once.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Overloaded`] when the queue is full, with the time to come back;
    /// [`crate::error::ErrorKind::Unavailable`] while loading or draining. Nothing was appended to `log` then.
    fn submit(&self, request: ValidRequest, log: Arc<StreamLog>) -> Result<()>;

    /// Takes a text to embed. Returns at once; the vector comes through what is returned, and whoever drops that takes the
    /// text back, wherever it is.
    ///
    /// # Errors
    /// Those of [`Self::submit`].
    fn embed(&self, input: ValidInput) -> Result<Embedding>;

    /// Whether one of so many requests of `tenant` would be refused now: asked before they are templated and tokenised, and
    /// once more before the first is submitted, so that none is taken in to be thrown out again.
    ///
    /// # Errors
    /// Those of [`Self::submit`].
    fn check_room(&self, tenant: Tenant, coming: Load) -> Result<()>;

    /// Where it compiles constraints, if that is in this process: the service then checks them there, and they are
    /// compiled once.
    fn grammars(&self) -> Option<Arc<GrammarCompiler>> {
        None
    }

    /// Where its weights are. A backend that does not load them on demand has them.
    fn residence(&self) -> Residence {
        Residence::Loaded
    }

    /// Hears where its weights are; `None` where they do not move.
    fn watch_residence(&self) -> Option<watch::Receiver<Residence>> {
        None
    }

    /// Has each later move of the weights told, once, to the one that asks first. It is called on a thread of its own.
    fn tell_moves(&self, on_move: OnMove) {
        drop(on_move);
    }

    /// About how much memory its weights, keys and values take; 0 where they do not move.
    fn memory_bytes(&self) -> u64 {
        0
    }

    /// How many times a worker was replaced.
    fn num_restarts(&self) -> u64 {
        0
    }

    /// Requests that wait for a worker.
    fn num_waiting(&self) -> usize {
        0
    }

    /// Begins to load the weights, if they are not there or on their way. Returns at once.
    fn begin_load(&self) {}

    /// Begins to unload the weights; false if they are in use or on their way. Returns at once.
    fn begin_unload(&self) -> bool {
        false
    }

    /// Looks after requests that wait: ends those that have waited for too long, tells others where they stand.
    /// Called a few times a second; returns at once.
    fn sweep(&self);

    /// Whether requests will be served.
    fn readiness(&self) -> Readiness;

    /// Takes no new requests from now on; what was accepted goes on to its end. Returns at once.
    fn drain(&self);

    /// Whether nothing is waiting or running.
    fn is_idle(&self) -> bool;

    /// Ends what is left with an error event that says `message`, and returns when every accepted log has its
    /// terminal event. May block; safe to call twice.
    fn shutdown(&self, message: &str);
}
