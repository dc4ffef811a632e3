//! Every promise is broken on purpose, and the simulator must see it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use flowgate_tests::sim::planted::{Bug, Planted};
use flowgate_tests::sim::{Setting, first_failing_seed, report};

/// A bug that takes more than this is as good as not found.
const SEEDS: u64 = 64;
const STEPS: usize = 400;

/// The first seed that finds a bug, counted from one.
fn seeds_needed(bug: Bug) -> Option<u64> {
    first_failing_seed(0..SEEDS, STEPS, |setting| Planted::new(setting, bug)).map(|seed| seed + 1)
}

#[test]
fn every_planted_bug_is_found() {
    let missed = |&&bug: &&Bug| seeds_needed(bug).is_none();
    let missed: Vec<&str> = Bug::ALL.iter().filter(missed).map(|bug| bug.as_str()).collect();
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:#?}");
}

#[test]
fn the_guide_lists_every_planted_bug() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/testing.md");
    let guide = fs::read_to_string(guide).expect("docs/testing.md is there");
    let promises: BTreeSet<_> = Bug::ALL.iter().map(|bug| bug.breaks().to_string()).collect();
    let is_bug = |line: &&str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        cells.len() == 5 && promises.contains(cells[1])
    };
    assert_eq!(guide.lines().filter(is_bug).count(), Bug::ALL.len(), "a row for each bug, once");
    let mut missing = String::new();
    for &bug in Bug::ALL {
        let row = format!("| {} | {} |", bug.breaks(), bug.as_str());
        if !guide.contains(&row) {
            let seeds = seeds_needed(bug).map_or_else(|| "?".into(), |seeds| seeds.to_string());
            let _ = writeln!(missing, "{row} {seeds} |");
        }
    }
    assert!(missing.is_empty(), "docs/testing.md lacks these rows:\n{missing}");
}

#[test]
fn what_only_makes_a_difference_is_reported_with_what_it_would_be() {
    let bug = Bug::LosesTheOrderOfTimers;
    let plant = |setting: &Setting| Planted::new(setting, bug);
    let seed = first_failing_seed(0..SEEDS, STEPS, plant).expect("a seed that finds it");
    let report = report(seed, STEPS, plant);
    let (with, without) = report.split_once("VIOLATION: without snapshots").expect(&report);
    let ends = |text: &str| text.matches("= close").count();
    assert!(with.contains(" Snapshot\n") && ends(with) > 1, "{report}");
    assert!(ends(without) > 0, "{report}");
}
