//! Seeds, played and judged; `docs/testing.md` is the guide.
//!
//! - `SEEDS=4096 STEPS=5000 cargo test --release -p flowgate-tests --test simulation`: the big sweep;
//! - `SEEDS=forever FIRST=4096 …`: batches like that, one after the other, until told to stop;
//! - `SEED=7 STEPS=100 cargo test -p flowgate-tests --test simulation`: one seed, to be read.

use std::env;
use std::io::{self, Write as _};

use flowgate_core::{CloseReason, Direction, DropReason, UdpManager};
use flowgate_tests::sim::{
    Action, CHANGES, Choices, KERNEL, SNAPSHOT, SeededChoices, Setting, TURNS, Tally, replay,
    report, run_bytes, sweep,
};

/// Few enough for a debug build to take seconds.
const SEEDS: u64 = 1_024;
const STEPS: u64 = 1_000;

fn manager(setting: &Setting) -> UdpManager {
    UdpManager::from(setting)
}

fn variable(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {value:?}")))
}

#[test]
fn the_manager_does_what_the_model_says_whatever_happens() {
    let steps = variable("STEPS").unwrap_or(STEPS) as usize;
    if let Some(seed) = variable("SEED") {
        // Not by `print!`, which the harness shows only where a test fails.
        let _ = io::stderr().write_all(replay(seed, steps, manager).as_bytes());
        return;
    }
    let first = variable("FIRST").unwrap_or(0);
    if env::var("SEEDS").is_ok_and(|seeds| seeds == "forever") {
        search_for_ever(first, steps);
    }
    let seeds = variable("SEEDS").unwrap_or(SEEDS);
    match sweep(first..first + seeds, steps, manager) {
        Ok(tally) => {
            println!(
                "{seeds} seeds x {steps} actions, each with snapshots and without: {} inputs",
                2 * tally.inputs
            );
            println!("{} flows moved; {:?}", tally.moved, tally.met);
            assert_meets_every_limit(&tally);
        }
        Err(seed) => panic!("{}", report(seed, steps, manager)),
    }
}

/// Ends when a seed fails, or someone ends it.
fn search_for_ever(first: u64, steps: usize) -> ! {
    const BATCH: usize = 4_096;
    for first in (first..).step_by(BATCH) {
        let seeds = first..first + BATCH as u64;
        if let Err(seed) = sweep(seeds.clone(), steps, manager) {
            panic!("{}", report(seed, steps, manager));
        }
        let _ = writeln!(io::stderr(), "seeds {seeds:?} x {steps} actions: nothing found");
    }
    unreachable!("there are always more seeds")
}

/// A simulator proves nothing about what never happens in it.
fn assert_meets_every_limit(tally: &Tally) {
    // Of sessions, whose mode never changes.
    for &reason in CloseReason::ALL.iter().filter(|&&reason| reason != CloseReason::ModeChanged) {
        assert!(tally.closed[reason as usize] > 0, "no flow ends as {reason}");
    }
    // Races are held against a model of their own, beside the core's unit tests.
    let is_of_sessions = |reason: &&DropReason| **reason != DropReason::NotFirst;
    for &reason in DropReason::ALL.iter().filter(is_of_sessions) {
        let dropped = Direction::ALL.map(|direction| tally.dropped_for(direction, reason));
        assert!(dropped.iter().sum::<u64>() > 0, "nothing is dropped as {reason}");
    }
    for name in CHANGES.iter().chain(&TURNS).chain(&[SNAPSHOT, KERNEL]) {
        assert!(tally.met.contains_key(name), "this never happens: {name}");
    }
    assert!(tally.moved > 0, "no flow moves");
    assert!(tally.forwarded.iter().all(|&datagrams| datagrams > tally.inputs / 12), "{tally:?}");
}

#[test]
fn bytes_of_any_kind_are_actions_too() {
    for seed in 0..64 {
        let mut choices = SeededChoices::new(seed);
        let bytes: Vec<u8> = (0..choices.below(2_000)).map(|_| choices.byte()).collect();
        run_bytes(&bytes);
    }
}

#[test]
fn a_seed_means_the_same_for_ever() {
    let mut choices = SeededChoices::new(42);
    assert_eq!([choices.byte(), choices.byte(), choices.byte()], [189, 40, 71]);
    let first = Action::stream(SeededChoices::new(42)).next();
    assert_eq!(first, Action::stream(SeededChoices::new(42)).next());
}
