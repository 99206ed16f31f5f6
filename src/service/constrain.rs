//! Constraints are compiled before their requests are accepted, so that what is wrong with one has a status.

use std::sync::Arc;

use super::Service;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::RejectLabel;
use crate::protocol::GenerateRequest;
use crate::sampling::grammar::Grammar;

impl Service {
    /// The request's constraint, compiled: at once if it was before, else away from the async threads. How many are
    /// compiled at once, and for how long, the compiler bounds.
    ///
    /// # Errors
    /// The compiler's, with the field that the constraint came in.
    pub(super) async fn compile(&self, request: &GenerateRequest) -> Result<Option<Arc<Grammar>>> {
        let Some(constraint) = &request.constraint else { return Ok(None) };
        let param = request.constraint_param;
        if let Some(grammar) = self.grammars.cached(constraint) {
            self.metrics.grammar_cache_hits.inc();
            return Ok(Some(grammar));
        }
        let (compiler, constraint) = (self.grammars.clone(), constraint.clone());
        let task = tokio::task::spawn_blocking(move || compiler.compile(&constraint));
        let compiled = task.await.map_err(|e| Error::internal(format!("compiling a grammar failed: {e}")))?;
        if compiled.as_ref().is_err_and(|e| e.kind() == ErrorKind::Overloaded) {
            self.metrics.reject(&RejectLabel::GRAMMARS_FULL);
        }
        let grammar = compiled.map_err(|e| e.context(format!("`{param}` cannot be used")).with_param(param))?;
        Ok(Some(grammar))
    }
}
