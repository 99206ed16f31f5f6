//! From a constraint to a parser at its beginning, within bounds of work.
//!
//! The library bounds its work by counts of steps and states, but not everywhere. When it makes the lexer, it takes one
//! step with each of the 256 bytes, and walks through the vocabulary with the larger terminals. Neither has a bound on
//! states, and the first has no bound on steps. So this module first tries both out, on a lexer of our own with both
//! bounds set. A grammar that passes the trial costs the library the same work again, and no more: the lexer is
//! deterministic.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use llguidance::api::{GrammarInit, ParserLimits};
use llguidance::derivre::StateID;
use llguidance::earley::SlicedBiasComputer;
use llguidance::earley::lexerspec::{LexemeIdx, LexerSpec};
use llguidance::earley::regexvec::RegexVec;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{InferenceCapabilities, Recognizer};
use llguidance::{Logger, ParserFactory};

use super::parser::Parser;
use super::source::wrong;
use super::{Grammar, explain, source, vocabulary};
use tallow_model::text::Tokenizer;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::Constraint;

/// Most steps of each part of compiling: making the terminals, finding out whether they can be satisfied, the first
/// states.
const COMPILE_FUEL: u64 = 1_000_000;
/// Most steps of the lexer for one mask.
const MASK_FUEL: u64 = 200_000;
/// Most states of one text's lexer, one to two KB each.
const LEXER_STATES_MAX: usize = 16_384;
/// Most items in one row of the parser, which are the ways to continue at one place. A schema has four for each
/// optional property that may come.
const ITEMS_IN_ROW_MAX: usize = 2000;
/// The same for rules that a client wrote itself: they may be ambiguous, and then a row costs the square of its items.
const ITEMS_IN_LARK_ROW_MAX: usize = 500;
/// Most items in all rows that one mask, or one run of forced text, makes.
const MASK_ITEMS_MAX: usize = 20_000;
/// Most symbols of a grammar. The library itself takes at most 65,525.
const GRAMMAR_SIZE_MAX: usize = 60_000;
/// The library walks through the vocabulary with each terminal of more than this weight before the first text.
const LARGE_TERMINAL: u32 = 1000;

/// Forced tokens need not be sampled.
const CAPABILITIES: InferenceCapabilities =
    InferenceCapabilities { ff_tokens: true, conditional_ff_tokens: false, backtrack: false, fork: false };

/// A factory that compiles grammars for the vocabulary of `tokenizer`.
pub(super) fn factory(tokenizer: &Arc<Tokenizer>) -> Result<ParserFactory> {
    let environment = vocabulary::environment(tokenizer);
    let slices = SlicedBiasComputer::general_slices();
    let factory = ParserFactory::new(&environment, CAPABILITIES, &slices);
    let mut factory = factory.map_err(|e| Error::internal(format!("grammars cannot be used: {e}")))?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        initial_lexer_fuel: COMPILE_FUEL,
        step_lexer_fuel: MASK_FUEL,
        max_items_in_row: ITEMS_IN_ROW_MAX,
        step_max_items: MASK_ITEMS_MAX,
        max_lexer_states: LEXER_STATES_MAX,
        max_grammar_size: GRAMMAR_SIZE_MAX,
        precompute_large_lexemes: true,
        verbose_errors: false,
    };
    Ok(factory)
}

/// The grammar of `constraint`.
///
/// # Errors
/// [`tallow_stream::error::ErrorKind::InvalidRequest`] if it is not a valid grammar, or passes a bound.
pub(super) fn grammar(constraint: &Constraint, factory: &ParserFactory) -> Result<Grammar> {
    let source = source::grammar(constraint)?;
    let mut limits = factory.limits().clone();
    if matches!(constraint, Constraint::Lark(_)) {
        limits.max_items_in_row = ITEMS_IN_LARK_ROW_MAX;
    }
    let environment = factory.tok_env().clone();
    let init = GrammarInit::Serialized(source);
    let built = catch_unwind(AssertUnwindSafe(|| init.to_internal(Some(environment), limits.clone())));
    let (rules, lexer) = built.map_err(|e| wrong(explain::sentence(&format!("{e:#}"))))?;
    try_out(lexer.clone(), factory)?;
    let (init, logger) = (GrammarInit::Internal(rules, lexer), Logger::new(0, 0));
    let parser = factory.create_parser_from_init_ext(init, logger, CAPABILITIES, limits);
    let mut parser = Parser::new(parser.map_err(|e| wrong(explain::sentence(&format!("{e:#}"))))?);
    let lexer_bytes = parser.lexer_bytes();
    // The first mask finds grammars that no text can begin, and makes the first mask of every text quicker.
    if !parser.is_complete() {
        parser.mask().map_err(wrong)?;
    }
    // The parser's own tables take about as much memory as the lexer. The source is counted too, since the cache keeps
    // it.
    let num_bytes = 2 * lexer_bytes + source::num_bytes(constraint) + (16 << 10);
    Ok(Grammar { pristine: Mutex::new(parser), num_bytes, is_slow: AtomicBool::new(false) })
}

/// Does the same work as the library when it makes the lexer, but with bounds.
///
/// # Errors
/// [`tallow_stream::error::ErrorKind::InvalidRequest`] if a bound is passed.
fn try_out(mut lexer: LexerSpec, factory: &ParserFactory) -> Result<()> {
    let mut limits = factory.limits().clone();
    let made = catch_unwind(AssertUnwindSafe(|| {
        lexer.add_extra_lexemes(&factory.extra_lexemes());
        lexer.to_regex_vec(&mut limits)
    }));
    // This fails only if the steps did not suffice.
    let mut states =
        made.map_err(|_| wrong(explain::too_complex("telling whether its terminals can be satisfied", COMPILE_FUEL)))?;
    let tried = catch_unwind(AssertUnwindSafe(|| {
        states.set_max_states(LEXER_STATES_MAX);
        states.set_fuel(COMPILE_FUEL);
        let start = states.initial_state(&lexer.all_lexemes());
        for byte in 0..=u8::MAX {
            if !states.has_error() {
                states.transition(start, byte);
            }
        }
        // The library continues with the steps that are left of the first bound.
        states.set_fuel(limits.initial_lexer_fuel);
        for index in (0..lexer.lexemes.len()).map(LexemeIdx::new) {
            if !states.has_error() && states.lexeme_weight(index) > LARGE_TERMINAL {
                let mut only = lexer.alloc_lexeme_set();
                only.add(index);
                let path = vec![states.initial_state(&only)];
                let trie = factory.tok_env().tok_trie();
                trie.add_bias(&mut Walk { states: &mut states, path }, &mut trie.alloc_token_set(), &[]);
            }
        }
        Ok(states.get_error())
    }));
    match tried.map_err(|e| wrong(explain::sentence(&e)))? {
        None => Ok(()),
        Some(e) => {
            let what = format!("the beginning of its terminals ({e})");
            Err(wrong(explain::too_complex(&what, COMPILE_FUEL)))
        }
    }
}

/// A walk through the vocabulary with one terminal.
struct Walk<'a> {
    states: &'a mut RegexVec,
    path: Vec<StateID>,
}

impl Recognizer for Walk<'_> {
    fn pop_bytes(&mut self, num: usize) {
        self.path.truncate(self.path.len() - num);
    }

    fn collapse(&mut self) {}

    fn trie_finished(&mut self) {}

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let Some(state) = self.path.last().filter(|_| !self.states.has_error()) else { return false };
        let next = self.states.transition(*state, byte);
        let goes_on = !next.is_dead() && !next.has_lowest_match();
        if goes_on {
            self.path.push(next);
        }
        goes_on
    }
}
