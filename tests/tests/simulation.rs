//! Seeds, played and judged; `docs/testing.md` is the guide.
//!
//! - `SEEDS=4096 STEPS=5000 cargo test --release -p flowgate-tests --test simulation`: the big sweep;
//! - `SEEDS=forever FIRST=4096 …`: batches like that, one after the other, until told to stop;
//! - `SEED=7 STEPS=100 cargo test -p flowgate-tests --test simulation`: one seed, to be read;
//! - `RECORDING=FILE cargo test -p flowgate-tests --test simulation a_recording`: what `flowgate record` wrote.

use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::net::SocketAddr;
use std::{env, time};

use flowgate::recording::codec::InputEncoder;
use flowgate::recording::file::{RecordingBlock, RecordingStart, StartState, preamble};
use flowgate_core::config::{ManagerConfig, Mode};
use flowgate_core::{
    BackendEvent, BackendId, Burst, CloseReason, Direction, DropReason, Instant, ManagerInput,
    Output, UdpManager,
};
use flowgate_tests::modes;
use flowgate_tests::sim::planted::{Bug, Planted};
use flowgate_tests::sim::{
    Action, CHANGES, Choices, FOLLOWED, KERNEL, SNAPSHOT, Scenario, SeededChoices, Setting, TURNS,
    Tally, replay, report, report_of, run_bytes, sweep,
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
            println!("{} flows moved, {} retries; {:?}", tally.moved, tally.retried, tally.met);
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
    for name in CHANGES.iter().chain(&TURNS).chain(&[SNAPSHOT, FOLLOWED, KERNEL]) {
        assert!(tally.met.contains_key(name), "this never happens: {name}");
    }
    assert!(tally.moved > 0, "no flow moves");
    assert!(tally.retried > 0, "no question is asked again");
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

#[test]
fn a_recording_is_a_scenario_and_is_shrunk_where_it_fails() {
    if let Ok(path) = env::var("RECORDING") {
        let file = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let scenarios = Scenario::read_all(BufReader::new(file));
        for scenario in scenarios.unwrap_or_else(|error| panic!("{path}: {error}")) {
            let Scenario { listener, setting, actions, left_out } = scenario;
            let report = match setting.config.cluster.mode {
                Mode::Session { .. } => report_of(&setting, &actions, manager),
                _ => modes::report_of(&setting, &actions, new_manager),
            };
            if let Some(report) = report {
                panic!("{path}, listener {listener:?}, {report}");
            }
            let played = actions.len();
            let line = format!("listener {listener:?}: {played} actions, {left_out} left out\n");
            let _ = io::stderr().write_all(line.as_bytes());
        }
        return;
    }
    let scenarios = Scenario::read_all(&recording("requests = 3", 3)[..]).expect("a recording");
    let [Scenario { setting, actions, left_out: 0, .. }] = &scenarios[..] else {
        panic!("{scenarios:?}");
    };
    let sent = actions.iter().filter(|action| matches!(action, Action::Send { .. })).count();
    assert_eq!((sent, setting.tempers.len()), (200, 3));
    assert_eq!(report_of(setting, actions, manager), None);
    let planted = |setting: &Setting| Planted::new(setting, Bug::OpensTwice);
    let report = report_of(setting, actions, planted).expect("it is found");
    assert!(report.starts_with("after 1 of ") && report.contains("VIOLATION: "), "{report}");
}

#[test]
fn recordings_one_way_and_fanned_out_are_scenarios_too() {
    for (more, bugs) in [
        ("mode = \"one-way\"", &[modes::Bug::SendsTwiceOneWay, modes::Bug::ForgetsDeliveries][..]),
        ("mode = \"fan-out\"", &[modes::Bug::SkipsACopy, modes::Bug::IgnoresProbes]),
        (
            "mode = \"fan-out\"\nreply_from = \"10.0.0.2:53\"",
            &[modes::Bug::CopiesTwice, modes::Bug::MixesClients],
        ),
        ("mode = \"fan-out\"\nreply_from = \"first\"", &[modes::Bug::PassesOnLosers]),
    ] {
        let scenarios = Scenario::read_all(&recording(more, 3)[..]).expect("a recording");
        let [Scenario { setting, actions, left_out: 0, .. }] = &scenarios[..] else {
            panic!("{more}: {scenarios:?}");
        };
        let sent = actions.iter().filter(|action| matches!(action, Action::Send { .. })).count();
        let told = actions.iter().filter(|action| matches!(action, Action::News { .. })).count();
        assert_eq!((sent, told, setting.config.cluster.backends.len()), (200, 2, 3), "{more}");
        assert_eq!(modes::report_of(setting, actions, new_manager), None, "{more}");
        for &bug in bugs {
            let planted = |config, seed| modes::Planted::new(new_manager(config, seed), bug);
            let report = modes::report_of(setting, actions, planted);
            let report = report.unwrap_or_else(|| panic!("{more}: {bug:?} is not found"));
            let shortest = report.split_whitespace().nth(1).and_then(|word| word.parse().ok());
            assert!(shortest.is_some_and(|shortest: usize| shortest < 10), "{report}");
        }
    }
}

#[test]
fn recordings_with_many_backends_are_scenarios_too() {
    const BACKENDS: u8 = 40;
    for more in ["", "mode = \"one-way\"", "mode = \"fan-out\"\nreply_from = \"first\""] {
        let scenarios = Scenario::read_all(&recording(more, BACKENDS)[..]).expect("a recording");
        let [Scenario { setting, actions, left_out: 0, .. }] = &scenarios[..] else {
            panic!("{more}: {scenarios:?}");
        };
        assert_eq!(setting.config.cluster.backends.len(), usize::from(BACKENDS), "{more}");
        assert!(actions.iter().any(|action| matches!(action, Action::News { .. })), "{more}");
        if more.is_empty() {
            assert_eq!(report_of(setting, actions, manager), None);
        } else {
            assert_eq!(modes::report_of(setting, actions, new_manager), None, "{more}");
        }
        if more.contains("fan-out") {
            let bug = modes::Bug::IgnoresProbes;
            let planted = |config, seed| modes::Planted::new(new_manager(config, seed), bug);
            let report = modes::report_of(setting, actions, planted);
            assert!(report.is_some(), "of the backend before the last");
        }
    }
}

fn new_manager(config: ManagerConfig, seed: u64) -> UdpManager {
    UdpManager::new(config, seed, Instant::ORIGIN)
}

/// Clients that ask and are answered, a backend that goes down and comes back, and flows that end.
fn recording(more: &str, backends: u8) -> Vec<u8> {
    let count = usize::from(backends);
    let backends: Vec<_> = (1..=backends).map(|place| format!("10.0.0.{place}:53")).collect();
    let keeps = if more.contains("one-way") { "" } else { "idle_timeout = \"2s\"" };
    let toml = format!(
        "[[listener]]\nname = \"dns\"\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n\
         [cluster.c]\n{keeps}\n{more}\n\
         backends = {backends:?}\n"
    );
    let config = flowgate_config::parse(&toml, "test.toml").expect("a configuration");
    let listener = &config.listeners[0];
    let backends = listener.cluster.backends(|_| Vec::new());
    let told = listener.manager_config(listener.address, 1_000, Vec::new(), false, backends);
    let mut recorded = UdpManager::new(told, 7, Instant::ORIGIN);
    let state = StartState::Whole(recorded.snapshot());
    let start = RecordingStart { listener: "dns".into(), cluster: "c".into(), state };
    let mut bytes = [preamble(), RecordingBlock::Start(0, Box::new(start)).to_bytes()].concat();
    let mut encoder = InputEncoder::new(0);
    let mut now = Instant::from_millis(10);
    for number in 0..200_u8 {
        let mut tell = |input, client: Option<SocketAddr>| {
            let mut outputs = Vec::new();
            encoder.input(&input, client.as_ref(), now);
            recorded.handle_input(input, now, &mut outputs);
            let sent = outputs.iter().find_map(|output| match output {
                Output::Send { flow, .. } => recorded.flow(*flow),
                _ => None,
            });
            let backend = |id| recorded.backends().get(id).map(|backend| backend.address());
            sent.and_then(|flow| Some((flow.upstream(), backend(flow.backend())?)))
        };
        let client = SocketAddr::from(([198, 51, 100, number % 30], 4_000));
        let burst = Burst::segmented(&[7; 100], if number % 3 == 0 { 40 } else { 100 });
        let burst = burst.expect("datagrams");
        let asked =
            ManagerInput::ClientBurst { source: client, local: None, tos: 0, ttl: 64, burst };
        let sent = tell(asked, Some(client));
        if let Some((upstream, sender)) = sent {
            let burst = Burst::single(b"answer").expect("a datagram");
            tell(ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst }, Some(client));
        }
        match number {
            60 | 120 => {
                let event = if number == 60 { BackendEvent::Down } else { BackendEvent::Up };
                let backend = BackendId::new(count - 2);
                tell(ManagerInput::BackendChanged { backend, event }, None);
            }
            90 | 150 => {
                tell(ManagerInput::Timeout, None);
            }
            _ => {}
        }
        now += time::Duration::from_millis(if number % 40 == 39 { 2_500 } else { 7 });
    }
    let inputs = RecordingBlock::Inputs { shard: 0, piece: encoder.take(), outputs: 0 };
    bytes.extend(inputs.to_bytes());
    bytes.extend(RecordingBlock::End.to_bytes());
    bytes
}
