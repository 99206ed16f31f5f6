//! Texts that keep to a grammar: a JSON schema, a regular expression, a grammar in Lark's notation, a choice.
//! llguidance defines their meaning. This module fits them to a model's vocabulary, compiles them within bounds, and
//! keeps them.
//!
//! ```text
//! compile: in the cache?        -> it
//!          refused by its shape -> an error that names the keyword or terminal, the bound and the value
//!          build the rules      -> bounded by the shape, and by a count of steps
//!          try out the lexer    -> bounded by a count of steps and of states
//!          the lexer, the first mask, which finds what nothing can satisfy -> into the cache
//! ```
//!
//! Work is bounded, not time: every compilation ends by itself, with the same outcome on a busy machine as on an idle
//! one. `service/` decides where it runs, and how long a request waits for it.
//!
//! Every text gets a copy of the compiled grammar, lexer included. Sharing the lexer's states between texts would save
//! some work. But one text could then use up the states of all others, and a failure would hit all of them.

mod cache;
mod compile;
mod explain;
mod matcher;
mod parser;
mod shape;
mod source;
mod vocabulary;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use llguidance::ParserFactory;

use self::cache::{Cache, CacheBounds};
pub use self::matcher::{Matcher, Next};
use self::parser::Parser;
pub use self::source::neutral;
use self::source::wrong;
use crate::metrics::Metrics;
use crate::threads::spawn_background;
use tallow_model::text::Tokenizer;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::{Constraint, Tenant};
use tallow_stream::settings;
use tallow_stream::settings::{GIB, bytes, setting};

/// Memory of compiled grammars that are kept and not in use.
const CACHED_BYTES_MAX: usize = 64 << 20;

/// Stack of a thread that compiles or matches: both recurse as deep as a grammar nests.
pub const STACK_BYTES: usize = 32 << 20;

settings! {
    /// How much grammars may take.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct GrammarLimits {
        /// Compiled grammars that are kept. At least 1. A program has a handful of schemas, and `CACHED_BYTES_MAX` bounds what
        /// many programs have.
        pub cached_max: usize = 128;
        /// Longest schema or grammar.
        pub source_bytes_max: usize = 64 << 10 => setting("engine.grammar_bytes_max", "grammar-bytes-max", bytes(64, GIB));
        /// Longest time that a request waits for its grammar. The compilation is bounded by itself, and takes a part of this
        /// on a slow machine.
        pub compile_time_max: Duration = Duration::from_secs(30);
    }
}

/// A grammar, ready for texts.
pub struct Grammar {
    /// The parser at the beginning of a text.
    pristine: Mutex<Parser>,
    num_bytes: usize,
    is_slow: AtomicBool,
}

impl Grammar {
    /// Its memory, roughly.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// Whether one of its masks was slow.
    pub fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed)
    }

    /// Notes that one of its masks was slow.
    pub(crate) fn mark_slow(&self) {
        self.is_slow.store(true, Ordering::Relaxed);
    }

    /// A text's own copy.
    fn parser(&self) -> Parser {
        self.pristine.lock().unwrap_or_else(PoisonError::into_inner).copy()
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("num_bytes", &self.num_bytes).finish_non_exhaustive()
    }
}

/// Compiles grammars for one vocabulary, and keeps them.
pub struct GrammarCompiler {
    limits: GrammarLimits,
    metrics: Arc<Metrics>,
    tokenizer: Arc<Tokenizer>,
    /// Made when the first grammar comes: most servers never get one.
    factory: OnceLock<Result<ParserFactory>>,
    cache: Mutex<Cache>,
}

impl GrammarCompiler {
    /// A compiler with an empty cache.
    pub fn new(tokenizer: Arc<Tokenizer>, limits: GrammarLimits, metrics: Arc<Metrics>) -> Arc<Self> {
        let (factory, cache) = (OnceLock::new(), Mutex::default());
        Arc::new(Self { limits, metrics, tokenizer, factory, cache })
    }

    /// The bounds of grammars.
    pub fn limits(&self) -> &GrammarLimits {
        &self.limits
    }

    /// The grammar of `constraint` if it is in the cache.
    pub fn cached(&self, constraint: &Constraint) -> Option<Arc<Grammar>> {
        self.cache().get(constraint)
    }

    /// The grammar of `constraint`. If it must be compiled, this happens on a thread of its own, and the call waits for
    /// it. Meant for requests that were accepted before; new requests wait for their turn (`Service`).
    ///
    /// # Errors
    /// As [`Self::compile_here`]; an I/O error if there is no thread.
    pub fn compile(self: &Arc<Self>, constraint: &Constraint) -> Result<Arc<Grammar>> {
        if let Some(grammar) = self.cached(constraint) {
            self.metrics.grammar_cache_hits.inc();
            return Ok(grammar);
        }
        self.check_size(constraint)?;
        let (compiler, constraint) = (self.clone(), constraint.clone());
        let work = move || compiler.compile_here(Tenant::default(), &constraint);
        let thread = spawn_background("grammar", STACK_BYTES, work)
            .map_err(|e| Error::io("cannot start a thread to compile a grammar", e))?;
        thread.join().unwrap_or_else(|_| Err(Error::internal("the grammar compiler hit a bug on this grammar")))
    }

    /// The grammar of `constraint`, compiled on this thread if need be. The thread must have a stack of
    /// [`STACK_BYTES`]. The cache counts the grammar against `owner`.
    ///
    /// # Errors
    /// [`tallow_stream::error::ErrorKind::InvalidRequest`] if it is malformed, unsupported, unsatisfiable, too large or
    /// too complex.
    pub fn compile_here(&self, owner: Tenant, constraint: &Constraint) -> Result<Arc<Grammar>> {
        if let Some(grammar) = self.cached(constraint) {
            self.metrics.grammar_cache_hits.inc();
            return Ok(grammar);
        }
        self.check_size(constraint)?;
        let began = Instant::now();
        let factory = self.factory.get_or_init(|| compile::factory(&self.tokenizer)).as_ref().map_err(Clone::clone)?;
        let grammar = compile::grammar(constraint, factory);
        self.metrics.grammar_compile_seconds.observe(began.elapsed().as_secs_f64());
        let grammar = Arc::new(grammar?);
        let (num_max, bytes_max) = (self.limits.cached_max, CACHED_BYTES_MAX);
        self.cache().insert(owner, constraint.clone(), grammar.clone(), CacheBounds { num_max, bytes_max });
        Ok(grammar)
    }

    fn check_size(&self, constraint: &Constraint) -> Result<()> {
        let num_bytes = source::num_bytes(constraint);
        let most = self.limits.source_bytes_max;
        if num_bytes > most {
            return Err(wrong(format!("it must have at most {most} bytes, got {num_bytes}")));
        }
        Ok(())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
