//! Constraints are compiled before their requests are accepted, so that what is wrong with one has a status.
//!
//! ```text
//! in the cache?                   -> at once
//! the owner's line, bounded       -> full: 429
//! a thread of low priority        -> the compiler bounds its work: it ends by itself, also when nobody waits any more
//! the longest wait is over        -> 503: the machine is too busy, the constraint may be fine
//! ```
//!
//! Owners take turns, and while there are two threads or more, no owner has them all.

use std::sync::Arc;

use super::background::{Background, BackgroundLimits};
use super::{Served, Service};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::RejectLabel;
use crate::protocol::{Constraint, Field, GenerateRequest};
use crate::sampling::grammar::{Grammar, STACK_BYTES};

/// Constraints that are compiled at once: two, of which one is left to other owners. More would take the cores of the steps.
const COMPILING_MAX: usize = 2;
/// Requests of one owner that wait for a thread. Most are of one constraint: the first compiles it for the others.
const WAITING_PER_OWNER_MAX: usize = 64;

impl Service {
    /// The request's constraint, compiled: at once if it was before, else on threads of low priority, in turn.
    ///
    /// # Errors
    /// The compiler's, with the field that the constraint came in; [`ErrorKind::Overloaded`] if too many of this owner
    /// wait; [`ErrorKind::Unavailable`] if it takes too long.
    pub(super) async fn compile(&self, served: &Served, request: &GenerateRequest) -> Result<Option<Arc<Grammar>>> {
        let Some(constraint) = &request.constraint else { return Ok(None) };
        let (owner, param) = (request.owner.tenant, request.constraint_param);
        if let Some(grammar) = served.grammars.cached(constraint) {
            served.metrics.grammar_cache_hits.inc();
            return Ok(Some(grammar));
        }
        let (compiler, constraint) = (served.grammars.clone(), constraint.clone());
        let compiled = self.grammar_threads()?.run(owner, move || compiler.compile_here(owner, &constraint));
        let patience = served.grammars.limits().compile_time_max;
        let outcome = tokio::time::timeout(patience, compiled).await.unwrap_or_else(|_| {
            let seconds = patience.as_secs_f64();
            let message = format!("`{param}` could not be compiled within {seconds} seconds: the server is busy");
            Err(Error::new(ErrorKind::Unavailable, message))
        });
        if outcome.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable)) {
            self.metrics.reject(&RejectLabel::GRAMMARS_FULL);
        }
        match outcome? {
            Ok(grammar) => Ok(Some(grammar)),
            Err(e) if e.kind() == ErrorKind::InvalidRequest && !request.constraint_tools.is_empty() => {
                Err(self.tool_to_blame(served, request).await?)
            }
            Err(e) => Err(e.context(format!("`{param}` cannot be used")).with_param(param)),
        }
    }

    /// Which tool's rule is none, where that of all together is none.
    async fn tool_to_blame(&self, served: &Served, request: &GenerateRequest) -> Result<Error> {
        let (compiler, owner) = (served.grammars.clone(), request.owner.tenant);
        let rules = request.constraint_tools.clone();
        let find = move || {
            let broken = |(field, rule): (Field, Constraint)| {
                let e = compiler.compile_here(owner, &rule).err()?;
                Some(Error::rule(field, format!("cannot be used: {}", e.message())))
            };
            rules.into_iter().find_map(broken)
        };
        let found = self.grammar_threads()?.run(owner, find).await?;
        Ok(found.unwrap_or_else(|| Error::rule(Field::Tools, "cannot all be offered where a call must come")))
    }

    /// The threads that compile, started with the first constraint.
    fn grammar_threads(&self) -> Result<&Background> {
        let start = || {
            let limits =
                BackgroundLimits { num_threads: Some(COMPILING_MAX), waiting_per_owner_max: WAITING_PER_OWNER_MAX };
            Background::start_named("grammar", STACK_BYTES, limits)
        };
        self.grammar_threads.get_or_init(start).as_ref().map_err(Clone::clone)
    }
}
