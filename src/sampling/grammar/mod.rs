//! Texts that keep to a grammar: a JSON schema, a regular expression, a grammar in Lark's notation, a choice. What such a
//! thing means is llguidance's; here it is fitted to a model's vocabulary, compiled within bounds, and kept.
//!
//! ```text
//! compile: in the cache?  -> it
//!          a thread of its own (a hostile grammar may need a deep stack, or for ever)
//!              parse -> build the lexer -> the first mask, which finds what nothing can satisfy
//!          done in time   -> into the cache
//!          not done       -> an error; the thread ends by itself, its memory and steps being bounded
//! ```
//!
//! Every text gets a copy of the compiled grammar, lexer and all. Sharing the lexer's states between texts would save
//! some work, but one text could then use up the states of all others, and a failure would be everybody's.

mod cache;
mod matcher;
mod source;
mod vocabulary;

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use llguidance::api::ParserLimits;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher as Inner, ParserFactory};

use self::cache::Cache;
pub use self::matcher::{Matcher, Next};
use self::source::wrong;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::protocol::Constraint;
use crate::text::Tokenizer;

/// Stack of a thread that compiles or matches: both recurse as deep as a grammar nests.
pub const STACK_BYTES: usize = 32 << 20;

/// Steps of the lexer while compiling; some 50,000 take a millisecond.
const COMPILE_FUEL: u64 = 1_000_000;
/// States of one text's lexer, one to two KB each.
const LEXER_STATES_MAX: usize = 16_384;
/// Ways to go on at one place. An ambiguous grammar has more with every token, and costs their square.
const ITEMS_IN_ROW_MAX: usize = 500;
/// Symbols of a grammar.
const GRAMMAR_SIZE_MAX: usize = 200_000;

/// How much grammars may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Compiled grammars that are kept. At least 1.
    pub cached_max: usize,
    /// Their memory.
    pub cached_bytes_max: usize,
    /// Longest grammar, schema or expression as it comes.
    pub source_bytes_max: usize,
    /// Longest time of a compilation.
    pub compile_time_max: Duration,
    /// Compilations at once, those that were given up and have not ended yet included. At least 1.
    pub compiling_max: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self {
            cached_max: 128,
            cached_bytes_max: 64 << 20,
            source_bytes_max: 64 << 10,
            compile_time_max: Duration::from_secs(2),
            compiling_max: 4,
        }
    }
}

/// A grammar, ready for texts.
pub struct Grammar {
    /// At the beginning.
    pristine: Mutex<Inner>,
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
    pub fn mark_slow(&self) {
        self.is_slow.store(true, Ordering::Relaxed);
    }

    /// A text's own copy.
    fn matcher(&self) -> Inner {
        self.pristine.lock().unwrap_or_else(PoisonError::into_inner).deep_clone()
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
    /// Made with the first grammar: most servers never see one.
    factory: OnceLock<Result<ParserFactory>>,
    cache: Mutex<Cache>,
    num_compiling: Mutex<usize>,
    compiled: Condvar,
}

impl GrammarCompiler {
    /// A compiler with an empty cache.
    pub fn new(tokenizer: Arc<Tokenizer>, limits: GrammarLimits, metrics: Arc<Metrics>) -> Arc<Self> {
        let (factory, cache) = (OnceLock::new(), Mutex::default());
        let (num_compiling, compiled) = (Mutex::default(), Condvar::new());
        Arc::new(Self { limits, metrics, tokenizer, factory, cache, num_compiling, compiled })
    }

    /// How much grammars may take.
    pub fn limits(&self) -> &GrammarLimits {
        &self.limits
    }

    /// The grammar of `constraint` if it is in the cache.
    pub fn cached(&self, constraint: &Constraint) -> Option<Arc<Grammar>> {
        self.cache().get(constraint)
    }

    /// The grammar of `constraint`, compiled if need be. Blocks, at most as long as the limits say.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::InvalidRequest`] if it is malformed, unsupported, unsatisfiable, too large, too
    /// complex, or takes too long; [`crate::error::ErrorKind::Overloaded`] while too many are being compiled.
    pub fn compile(self: &Arc<Self>, constraint: &Constraint) -> Result<Arc<Grammar>> {
        if let Some(grammar) = self.cached(constraint) {
            self.metrics.grammar_cache_hits.inc();
            return Ok(grammar);
        }
        self.check_size(constraint)?;
        let began = Instant::now();
        let grammar = self.compile_in_time(constraint);
        self.metrics.grammar_compile_seconds.observe(began.elapsed().as_secs_f64());
        let grammar = Arc::new(grammar?);
        let GrammarLimits { cached_max, cached_bytes_max, .. } = self.limits;
        self.cache().insert(constraint.clone(), grammar.clone(), cached_max, cached_bytes_max);
        Ok(grammar)
    }

    fn check_size(&self, constraint: &Constraint) -> Result<()> {
        let num_bytes = match constraint {
            Constraint::JsonObject => 0,
            Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Lark(text) => text.len(),
            Constraint::Choice(choices) => choices.iter().map(String::len).sum(),
        };
        let most = self.limits.source_bytes_max;
        if num_bytes > most {
            return Err(wrong(format!("it must have at most {most} bytes, got {num_bytes}")));
        }
        Ok(())
    }

    /// On a thread of its own, which is left behind if it takes too long.
    fn compile_in_time(self: &Arc<Self>, constraint: &Constraint) -> Result<Grammar> {
        let slot = CompileSlot::take(self)?;
        let (sender, compiled) = sync_channel(1);
        let (compiler, constraint) = (self.clone(), constraint.clone());
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES);
        let work = move || {
            let outcome = compiler.compile_here(&constraint);
            // First, so that whoever hears of the end finds room.
            drop(slot);
            // Nobody listens any more if it took too long.
            let _ = sender.send(outcome);
        };
        thread.spawn(work).map_err(|e| Error::io("cannot start a thread to compile a grammar", e))?;
        compiled.recv_timeout(self.limits.compile_time_max).unwrap_or_else(|_| {
            let seconds = self.limits.compile_time_max.as_secs_f64();
            Err(wrong(format!("it takes longer to compile than {seconds} seconds")))
        })
    }

    fn compile_here(&self, constraint: &Constraint) -> Result<Grammar> {
        let grammar = source::grammar(constraint)?;
        let factory = self.factory.get_or_init(|| self.new_factory()).as_ref().map_err(Clone::clone)?;
        let parser = factory.create_parser(grammar).map_err(|e| wrong(explain(&format!("{e:#}"))))?;
        let lexer_bytes = parser.parser.lexer_stats().num_bytes;
        let mut matcher = Inner::new(Ok(parser));
        // Whatever has no beginning is found here, and the first mask of every text is quicker for it.
        matcher.compute_mask_or_eos().map_err(|e| wrong(explain(&e)))?;
        // The parser's own tables are of the order of the lexer's.
        let num_bytes = 2 * lexer_bytes + (16 << 10);
        Ok(Grammar { pristine: Mutex::new(matcher), num_bytes, is_slow: AtomicBool::new(false) })
    }

    fn new_factory(&self) -> Result<ParserFactory> {
        let environment = vocabulary::environment(&self.tokenizer);
        let capabilities = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, capabilities, &slices);
        let mut factory = factory.map_err(|e| Error::internal(format!("grammars cannot be used: {e}")))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: COMPILE_FUEL,
            max_items_in_row: ITEMS_IN_ROW_MAX,
            max_lexer_states: LEXER_STATES_MAX,
            max_grammar_size: GRAMMAR_SIZE_MAX,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(factory)
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

/// A compilation that runs; counted until its thread has ended.
struct CompileSlot(Arc<GrammarCompiler>);

impl CompileSlot {
    /// Waits for room, as long as a compilation may take.
    fn take(compiler: &Arc<GrammarCompiler>) -> Result<Self> {
        let GrammarLimits { compiling_max: most, compile_time_max: patience, .. } = compiler.limits;
        let num = compiler.num_compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = compiler.compiled.wait_timeout_while(num, patience, |num| *num >= most);
        let (mut num, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            let message = format!("at most {most} grammars are compiled at once");
            return Err(Error::overloaded(message, patience.as_millis() as u64));
        }
        *num += 1;
        Ok(Self(compiler.clone()))
    }
}

impl Drop for CompileSlot {
    fn drop(&mut self) {
        *self.0.num_compiling.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.compiled.notify_one();
    }
}

/// What llguidance says, in one sentence, without advice that only whoever calls it can follow.
fn explain(cause: &impl Display) -> String {
    let text = cause.to_string().replace("<non-verbose/>", "");
    let text = text.replace(". Enable 'coerce_one_of' option to approximate oneOf with anyOf", ", anyOf is");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
