//! Thousands of random schedules against the engine's invariants: queue, scheduler, block pool, sampling and output
//! are real, the model is the stub, and there is no thread and no clock. Everything follows from one seed.
//!
//! `TALLOW_SIM_SCHEDULES=n` runs that many; `TALLOW_SIM_SEED=s` begins at seed `s`, and runs only that one unless the
//! number is given too. A failure prints the seed that replays it.

mod audience;
mod fairness;
mod model;
use crate::record;
mod schedule;
mod world;

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use model::Mutation;
use record::Figure;
use schedule::Schedule;
use world::{Coverage, World};

const FIRST_SEED: u64 = 1;
const NUM_SCHEDULES: u64 = 10_000;

/// The stub's own panics are part of the schedules; their reports would bury a real one.
fn silence_expected_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or_default();
        let is_mutation_run = std::thread::current().name().is_some_and(|name| name.contains("mutation"));
        if !message.starts_with("the stub was told to") && !is_mutation_run {
            report(info);
        }
    }));
}

fn run(seed: u64, mutation: Option<Mutation>) -> Coverage {
    World::new(Schedule::random(seed), mutation).run()
}

/// Those of so many seeds, on all processors.
///
/// # Panics
/// With the seed of one that failed.
fn run_all(first: u64, num_schedules: u64) -> Coverage {
    let next = AtomicU64::new(first);
    let run_some = || {
        let mut coverage = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + num_schedules {
                return coverage;
            }
            match catch_unwind(AssertUnwindSafe(|| run(seed, None))) {
                Ok(seen) => coverage.add(&seen),
                Err(_) => {
                    panic!("schedule failed; replay with TALLOW_SIM_SEED={seed} cargo test --test fast simulation")
                }
            }
        }
    };
    let num_threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(run_some)).collect();
        let mut coverage = Coverage::default();
        threads.into_iter().for_each(|thread| coverage.add(&thread.join().expect("every schedule is as it should be")));
        coverage
    })
}

fn env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, got {value}")))
}

#[test]
fn random_schedules_keep_every_invariant() {
    silence_expected_panics();
    let seed = env("TALLOW_SIM_SEED");
    let num_schedules = env("TALLOW_SIM_SCHEDULES").unwrap_or(if seed.is_some() { 1 } else { NUM_SCHEDULES });
    let first = seed.unwrap_or(FIRST_SEED);
    let coverage = run_all(first, num_schedules);
    println!("{num_schedules} schedules from seed {first}: {coverage:?}");
    // Every output was compared with its solo run, or this would not be reached.
    let measured = format!("0 in {num_schedules} schedules with {} readers", coverage.count_of("readers"));
    let (what, asked) = ("outputs that differ from their solo runs", "0 in 10,000 schedules");
    Figure { promise: "P2", what, asked, measured, is_reached: num_schedules >= NUM_SCHEDULES }.record();
    if num_schedules >= 1000 {
        coverage.assert_everything_happened();
    }
}

/// What the simulation is worth: each deliberate defect must be caught.
#[test]
fn mutations_are_caught() {
    silence_expected_panics();
    for mutation in Mutation::ALL {
        let caught = (1..=300u64).find(|&seed| catch_unwind(AssertUnwindSafe(|| run(seed, Some(mutation)))).is_err());
        println!("{mutation:?}: caught at seed {caught:?}");
        assert!(caught.is_some(), "{mutation:?} went unnoticed");
    }
}
