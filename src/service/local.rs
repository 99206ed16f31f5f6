//! The local pool behind the seam.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Backend, Readiness};
use crate::engine::{Engine, Load};
use crate::error::Result;
use crate::protocol::{Tenant, ValidRequest};
use crate::sampling::grammar::GrammarCompiler;
use crate::stream::StreamLog;

/// The engine of this process.
#[derive(Debug)]
pub struct LocalBackend {
    engine: Arc<Engine>,
    /// An engine that is not ready may be on its way up or down; only here is it known which.
    is_draining: AtomicBool,
}

impl LocalBackend {
    /// Serves with `engine`.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, is_draining: AtomicBool::new(false) }
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
        } else if self.engine.is_ready() {
            Readiness::Ready
        } else if self.engine.has_failed() {
            Readiness::Failed
        } else {
            Readiness::Starting
        }
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
