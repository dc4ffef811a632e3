//! Every mode, and reloads from one to another: `SEEDS=100000 cargo test --release -p flowgate-tests
//! --test modes` sweeps more of them.

use flowgate_core::{Instant, UdpManager};
use flowgate_tests::modes::{Bug, Planted, World};

/// How much happens in each world.
const STEPS: usize = 300;

/// How many worlds are looked at, unless `SEEDS` says so.
const SEEDS: u64 = 400;

/// Within how many worlds each planted bug has to be found.
const SEEDS_TO_FIND: u64 = 200;

fn seeds() -> u64 {
    std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS)
}

#[test]
fn in_every_mode_and_from_one_to_another_each_datagram_goes_where_it_should() {
    for seed in 0..seeds() {
        let make = |config, seed| UdpManager::new(config, seed, Instant::ORIGIN);
        if let Err(violation) = World::new(seed, make).play(STEPS) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn every_planted_bug_of_a_mode_is_found() {
    let is_found = |bug: Bug| {
        (0..SEEDS_TO_FIND).any(|seed| {
            let make =
                |config, seed| Planted::new(UdpManager::new(config, seed, Instant::ORIGIN), bug);
            World::new(seed, make).play(STEPS).is_err()
        })
    };
    let missed: Vec<Bug> = Bug::ALL.into_iter().filter(|bug| !is_found(*bug)).collect();
    assert!(missed.is_empty(), "not found within {SEEDS_TO_FIND} worlds: {missed:?}");
}
