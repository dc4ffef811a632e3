//! What the fuzzers have found, played again: a crash found once stays found.
//!
//! `fuzz/corpus/TARGET` holds inputs chosen for how much of the target they reach, and every input
//! that has ever failed.

use std::fs;
use std::path::Path;

use flowgate_tests::fuzz::TARGETS;

/// Few enough to be committed, and to be played with every build.
const MOST_FILES: usize = 100;

#[test]
fn every_target_survives_its_corpus() {
    for (target, body) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!((1..=MOST_FILES).contains(&files.len()), "{target} has {} inputs", files.len());
        for file in files {
            println!("{}", file.display());
            body(&fs::read(&file).unwrap());
        }
    }
}
