//! Many seeds on all cores; one seed again; and what to print of a seed that fails.

use std::fmt::Write as _;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::action::Action;
use super::run::{Simulation, actions_of, play, play_out, run_seed, script};
use super::setting::Setting;
use super::shrink::shrink;
use super::subject::Subject;
use super::tally::Tally;
use super::trace::Trace;
use super::{Failure, Violation};

/// Plays every seed twice, on all cores, and sums up what was met: once a balancer that is restored
/// from snapshots takes its own place now and then, and once none does.
///
/// Returns the lowest seed that fails, if one does. A seed whose second run differs from its first
/// fails.
pub fn sweep<S: Subject>(
    seeds: Range<u64>,
    steps: usize,
    make: impl Fn(&Setting) -> S + Sync,
) -> Result<Tally, u64> {
    let next = AtomicU64::new(seeds.start);
    let lowest_failing = AtomicU64::new(u64::MAX);
    let sum = Mutex::new(Tally::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end.min(lowest_failing.load(Ordering::Relaxed)) {
                return;
            }
            match run_twice(seed, steps, &make) {
                Ok(tally) => sum.lock().expect("nobody panics with it").add(&tally),
                Err(_) => {
                    lowest_failing.fetch_min(seed, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    match lowest_failing.into_inner() {
        u64::MAX => Ok(sum.into_inner().expect("nobody panics with it")),
        seed => Err(seed),
    }
}

/// The first of `seeds` that fails, if one does.
pub fn first_failing_seed<S: Subject>(
    mut seeds: Range<u64>,
    steps: usize,
    make: impl Fn(&Setting) -> S,
) -> Option<u64> {
    seeds.find(|&seed| run_twice(seed, steps, &make).is_err())
}

/// Plays a seed and returns all that can be read of it.
pub fn replay<S: Subject>(seed: u64, steps: usize, make: impl Fn(&Setting) -> S) -> String {
    let (setting, actions) = script(seed);
    let actions = actions_of(seed, steps, actions);
    let (result, trace) = play(&setting, make(&setting), actions, Trace::readable());
    let mut text = format!("{setting:#?}\n{}", trace.lines());
    let _ = match result {
        Ok(tally) => writeln!(text, "{} inputs, trace {:016x}", tally.inputs, trace.hash()),
        Err(failure) => writeln!(text, "VIOLATION: {}", failure.violation),
    };
    text
}

/// What to print of a seed that fails: the shortest list of its actions that still does, how to
/// see all of it, and what is wrong.
pub fn report<S: Subject>(seed: u64, steps: usize, make: impl Fn(&Setting) -> S) -> String {
    let (setting, actions) = script(seed);
    let again = format!("SEED={seed} STEPS={steps} cargo test -p flowgate-tests --test simulation");
    let actions = actions_of(seed, steps, actions);
    let Err(failure) = run_seed(seed, steps, true, &make) else {
        return report_difference(&setting, actions.collect(), make, &again);
    };
    let actions = actions.take(failure.actions_played).collect();
    format!("seed {seed}, {}{again}", shortest(&setting, actions, failure, make))
}

/// What to print where actions, which come from elsewhere than a seed, find something: the shortest list
/// of them that still does. Nothing, if they find nothing.
pub fn report_of<S: Subject>(
    setting: &Setting,
    actions: &[Action],
    make: impl Fn(&Setting) -> S,
) -> Option<String> {
    let (result, _) = play(setting, make(setting), actions.iter().copied(), Trace::hashed());
    let failure = result.err()?;
    let actions = actions[..failure.actions_played.min(actions.len())].to_vec();
    Some(shortest(setting, actions, failure, make))
}

fn shortest<S: Subject>(
    setting: &Setting,
    actions: Vec<Action>,
    failure: Failure,
    make: impl Fn(&Setting) -> S,
) -> String {
    let run = |actions: &[Action]| {
        let trace = Trace::readable();
        play(setting, make(setting), actions.iter().copied(), trace)
    };
    let shortest = shrink(actions, |actions| failure.is_like(&run(actions).0));
    let (result, trace) = run(&shortest);
    let violation = result.err().map_or(failure.violation, |shrunk| shrunk.violation);
    format!(
        "after {} of {} actions:\n{setting:#?}\n{}VIOLATION: {violation}\n",
        shortest.len(),
        failure.actions_played,
        trace.lines(),
    )
}

/// What to print of a seed that does not do the same with snapshots and without: the shortest list
/// of its actions that still makes a difference, and where that begins.
fn report_difference<S: Subject>(
    setting: &Setting,
    actions: Vec<Action>,
    make: impl Fn(&Setting) -> S,
    again: &str,
) -> String {
    let run = |actions: &[Action], makes_snapshots| {
        let simulation = Simulation::new(setting, make(setting), Trace::readable());
        let simulation = if makes_snapshots { simulation } else { simulation.without_snapshots() };
        let (result, trace) = play_out(simulation, actions.iter().copied());
        let violation = result.err().map(|failure| format!("VIOLATION: {}\n", failure.violation));
        format!("{}{}", trace.lines(), violation.unwrap_or_default())
    };
    let differs = |actions: &[Action]| run(actions, true) != run(actions, false);
    if !differs(&actions) {
        return format!("it does not do the same twice, which snapshots do not explain: {again}");
    }
    let shortest = shrink(actions, differs);
    let (with, without) = (run(&shortest, true), run(&shortest, false));
    let same = with.lines().zip(without.lines()).take_while(|(with, without)| with == without);
    let same = same.count();
    let rest: String =
        without.lines().skip(same).fold(String::new(), |rest, line| rest + line + "\n");
    format!("{setting:#?}\n{with}VIOLATION: without snapshots, from line {same} on:\n{rest}{again}")
}

fn run_twice<S: Subject>(
    seed: u64,
    steps: usize,
    make: impl Fn(&Setting) -> S,
) -> Result<Tally, Failure> {
    let (tally, hash) = run_seed(seed, steps, true, &make)?;
    let (_, hash_again) = run_seed(seed, steps, false, &make)?;
    if hash != hash_again {
        return Err(Failure {
            actions_played: steps,
            while_settling: true,
            violation: Violation(format!("trace {hash:x}, and without snapshots {hash_again:x}")),
        });
    }
    Ok(tally)
}
