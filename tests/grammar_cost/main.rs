//! What constraints cost: whatever a client sends, compiling it ends by itself, within bounds of memory and time, and so
//! does each step of a text that keeps to it. A corpus of hostile constraints, each of which was a fault or may become
//! one, and random ones (a fiftieth of `TALLOW_FUZZ_CASES`, or 1,000).
//!
//! Memory is that of the process, looked at every two milliseconds, so this file is a binary of its own and its tests
//! take turns. The bounds on time are far above what it takes, for machines that do other things.

mod corpus;
mod random;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tallow::error::{ErrorKind, Result};
use tallow::protocol::{Constraint, TokenId};
use tallow::sampling::grammar::{Grammar, GrammarCompiler, GrammarLimits, Matcher, Next};
use tallow::sampling::random_u64;
use tallow::text::Tokenizer;

/// Memory of one compilation, whatever it is.
const BYTES_MAX: usize = 320 << 20;
/// Time of one compilation on a machine that does nothing else is below a twentieth of it.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Time of one step of a text; below a hundredth.
const STEP_TIME_MAX: Duration = Duration::from_secs(10);
const STEPS: u64 = 40;

static TURN: Mutex<()> = Mutex::new(());

/// What something took.
#[derive(Debug)]
struct Cost {
    bytes: usize,
    time: Duration,
}

fn measure<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (is_done, peak) = (AtomicBool::new(false), AtomicUsize::new(0));
    let before = resident();
    let began = Instant::now();
    let value = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                peak.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let value = work();
        is_done.store(true, Ordering::Relaxed);
        value
    });
    let bytes = peak.load(Ordering::Relaxed).max(resident()).saturating_sub(before);
    (value, Cost { bytes, time: began.elapsed() })
}

/// Bytes of memory that the process has now.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

/// Elsewhere only time is looked at.
#[cfg(not(target_os = "linux"))]
fn resident() -> usize {
    0
}

fn compiler() -> Arc<GrammarCompiler> {
    let tokenizer = Arc::new(Tokenizer::byte_level());
    let limits = GrammarLimits { cached_max: 1, ..GrammarLimits::default() };
    let compiler = GrammarCompiler::new(tokenizer, limits, Arc::default());
    compiler.compile(&Constraint::JsonObject).expect("what all have in common is made");
    compiler
}

/// Compiles it and writes a text that keeps to it, and checks what each took. Returns whether both succeeded.
fn check(name: &str, compiler: &Arc<GrammarCompiler>, constraint: &Constraint) -> bool {
    let (outcome, cost) = measure(|| compiler.compile(constraint));
    println!(
        "{name}: {:.0} ms, {} KiB, {}",
        cost.time.as_secs_f64() * 1e3,
        cost.bytes >> 10,
        match &outcome {
            Ok(grammar) => format!("kept with {} KiB", grammar.num_bytes() >> 10),
            Err(e) => e.message().chars().take(160).collect(),
        }
    );
    assert!(cost.bytes < BYTES_MAX && cost.time < TIME_MAX, "{name}: {cost:?}");
    let grammar = match outcome {
        Ok(grammar) => grammar,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::InvalidRequest, "{name}: {e}");
            for theirs in ["NoExtension", "panic", "fuel", "backtrace", "lexeme"] {
                assert!(!e.message().contains(theirs), "{name}: {e}");
            }
            return false;
        }
    };
    let (written, cost) = measure(|| write(name, &grammar));
    assert!(cost.bytes < BYTES_MAX, "{name}: a text took {cost:?}");
    if let Err(e) = &written {
        println!("{name}: its text ends: {}", e.message());
    }
    written.is_ok()
}

/// Writes the beginning of a text.
///
/// # Errors
/// If the grammar fails on it.
fn write(name: &str, grammar: &Grammar) -> Result<()> {
    let (mut matcher, _) = Matcher::start(grammar, &[], true)?;
    for position in 0..STEPS {
        let began = Instant::now();
        let Next::Sample(mask) = matcher.allowed()? else { return Ok(()) };
        let ids: Vec<TokenId> = (0..257).filter(|id| mask.contains(*id)).collect();
        let token = ids[random_u64(7, position) as usize % ids.len()];
        matcher.accept(token)?;
        matcher.forced()?;
        assert!(began.elapsed() < STEP_TIME_MAX, "{name}: step {position} took {:?}", began.elapsed());
    }
    Ok(())
}

#[test]
fn every_hostile_constraint_ends_within_its_bounds() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let compiler = compiler();
    let corpus = corpus::hostile();
    assert!(corpus.len() >= 40, "{}", corpus.len());
    for (name, constraint) in corpus {
        check(name, &compiler, &constraint);
    }
}

#[test]
fn what_people_use_is_not_refused() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let compiler = compiler();
    for (name, constraint) in corpus::ordinary() {
        assert!(check(name, &compiler, &constraint), "{name} is refused, or its text fails");
    }
}

#[test]
fn random_constraints_end_within_their_bounds() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let compiler = compiler();
    let asked = std::env::var("TALLOW_FUZZ_CASES").ok().and_then(|n| n.parse::<u64>().ok());
    let num_cases = asked.map_or(1000, |n| n.div_ceil(50));
    let mut num_kept = 0;
    for seed in 0..num_cases {
        let constraint = random::constraint(seed);
        num_kept += u64::from(check(&format!("seed {seed}"), &compiler, &constraint));
    }
    // That it does something: some are refused, and many are not.
    assert!(num_kept > num_cases / 10, "{num_kept} of {num_cases}");
}
