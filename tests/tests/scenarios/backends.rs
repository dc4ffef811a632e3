//! Rows 18 and 20 to 23: backends that come and go, drain, flap, and are all down.

use flowgate_core::PreparedConfig;
use flowgate_core::backend::BackendState;
use flowgate_core::config::{OnBackendDown, Passive, UpstreamMode};
use flowgate_tests::sim::{BackendPick, Change, Newcomer, News};

use super::*;

const POLICIES: [OnBackendDown; 3] =
    [OnBackendDown::Pin, OnBackendDown::Rehash, OnBackendDown::Close];

/// This many backends of weight 1.
fn backends(count: u8) -> Vec<BackendConfig> {
    (1..=count).map(|host| BackendConfig::new(([10, 0, 0, host], 53).into())).collect()
}

fn with_policy(on_backend_down: OnBackendDown) -> Scenario {
    Scenario::new(|config| {
        config.cluster.backends = backends(2);
        config.cluster.health.on_backend_down = on_backend_down;
    })
}

const fn event(backend: u8, event: News) -> Action {
    Action::News { backend: BackendPick::Known(backend), event }
}

const fn reconfigure(change: Change) -> Action {
    Action::Reconfigure { change, patient: true }
}

const fn millis(millis: u16) -> Action {
    Action::Wait(Pause::Millis(millis))
}

const DUE: Action = Action::Timeout(When::Due);

impl Scenario {
    /// How many flows each backend has.
    fn shares(&self) -> Vec<u32> {
        self.manager().backends().iter().map(|(_, backend)| backend.flows_active).collect()
    }

    fn state(&self, index: usize) -> BackendState {
        let state = |(_, backend): (_, &flowgate_core::backend::Backend)| backend.state();
        self.manager().backends().iter().nth(index).map(state).expect("there is one")
    }

    fn moved(&self) -> u64 {
        self.manager().counters().flows_moved
    }

    fn no_backend(&self) -> u64 {
        self.dropped(Direction::ToBackend, DropReason::NoBackend)
    }
}

const BALANCES: [Balance; 6] = [
    Balance::RoundRobin,
    Balance::Random,
    Balance::LeastFlows,
    Balance::PowerOfTwo,
    Balance::Rendezvous,
    Balance::Maglev,
];

const CLIENTS: u32 = 6_000;

/// The backend that each client's datagram goes to. Where it opens no flow, that of its flow.
fn served_by(manager: &mut UdpManager, clients: std::ops::Range<u32>) -> Vec<usize> {
    let served = clients.map(|number| {
        let outputs = request(manager, client(number), b"hello", 0, Instant::ORIGIN);
        let Some(Output::Send { flow, .. }) = outputs.last() else { panic!("{outputs:?}") };
        manager.flow(*flow).expect("it is alive").backend().index()
    });
    served.collect()
}

/// Row 18.
#[test]
fn removing_a_backend_moves_its_flows_and_no_others_whatever_balances() {
    for balance in BALANCES {
        for policy in POLICIES {
            let mut setting = setting(|config| {
                config.max_flows = 2 * CLIENTS;
                config.cluster.balance = balance;
                config.cluster.backends = backends(4);
                config.cluster.health.on_backend_down = policy;
            });
            let mut manager = UdpManager::from(&setting);
            let before = served_by(&mut manager, 0..CLIENTS);
            setting.config.cluster.backends[1].removed = true;
            let new = PreparedConfig::new(setting.config.clone());
            input(&mut manager, ManagerInput::Configured(&new), Instant::ORIGIN);

            let after = served_by(&mut manager, 0..CLIENTS);
            let mut gained = [0_u32; 4];
            for (&before, &after) in before.iter().zip(&after) {
                assert_ne!(after, 1, "{balance} {policy:?}: a removed backend is sent to");
                if before == 1 {
                    gained[after] += 1;
                } else {
                    assert_eq!(after, before, "{balance} {policy:?}: a flow moves needlessly");
                }
            }
            let all: u32 = gained.iter().sum();
            for index in [0, 2, 3] {
                let share = f64::from(gained[index]) / f64::from(all);
                assert!((share - 1.0 / 3.0).abs() < 0.05, "{balance} {policy:?}: {gained:?}");
            }
            let new = served_by(&mut manager, CLIENTS..2 * CLIENTS);
            assert!(!new.contains(&1), "{balance} {policy:?}");
            manager.assert_invariants();
        }
    }
}

/// Row 18. What hashes keep for a client they keep in every process.
#[test]
fn hashes_place_new_clients_as_before_but_for_those_of_a_removed_backend() {
    for (balance, may_move) in [(Balance::Rendezvous, 0), (Balance::Maglev, CLIENTS / 100)] {
        let placed = |removed: bool| {
            let mut manager = UdpManager::from(&setting(|config| {
                config.max_flows = CLIENTS;
                config.cluster.balance = balance;
                config.cluster.backends = backends(5);
                config.cluster.backends[2].removed = removed;
            }));
            served_by(&mut manager, 0..CLIENTS)
        };
        let (before, after) = (placed(false), placed(true));
        let moved = before.iter().zip(&after).filter(|(a, b)| **a != 2 && a != b).count();
        assert!(moved <= may_move as usize, "{balance}: {moved} move needlessly");
    }
}

/// Row 20.
#[test]
fn the_last_backend_is_removed_and_comes_back_and_the_same_senders_go_on() {
    for policy in POLICIES {
        let mut scenario = Scenario::new(|config| config.cluster.health.on_backend_down = policy);
        scenario.play(&[send(1), ANSWER, reconfigure(Change::Remove(0)), send(1), send(3)]);
        assert_eq!(scenario.no_backend(), 2, "{policy:?}");
        scenario.play(&[reconfigure(Change::Return(0)), send(1), send(3), ANSWER, ANSWER]);
        assert_eq!((scenario.no_backend(), scenario.answered()), (2, 3), "{policy:?}");
        scenario.0.settle().unwrap();
    }
}

/// Row 21.
#[test]
fn a_draining_backend_has_no_new_flows_and_its_old_ones_go_on() {
    let mut scenario = with_policy(OnBackendDown::Rehash);
    scenario.play(&[send(1), send(3)]);
    assert_eq!(scenario.shares(), [1, 1]);
    scenario.play(&[event(0, News::Drain(None)), send(4), send(6), send(1), send(3)]);
    assert_eq!((scenario.shares(), scenario.moved()), (vec![1, 3], 0));
    scenario.play(&[Action::Wait(Pause::Idle), Action::Timeout(When::Now)]);
    assert_eq!(scenario.closed(CloseReason::Idle), 4, "it drains for ever");
    scenario.play(&[event(0, News::Undrain), send(1), send(3)]);
    assert_eq!(scenario.shares(), [1, 1]);
    scenario.0.settle().unwrap();
}

/// Row 21.
#[test]
fn what_is_left_at_the_end_of_a_backends_drain_ends_and_opens_elsewhere() {
    let mut scenario = with_policy(OnBackendDown::Pin);
    let patience = Some(Duration::from_secs(1));
    scenario.play(&[send(1), send(3), event(0, News::Drain(patience)), millis(999), send(1)]);
    scenario.play(&[Action::Timeout(When::Now)]);
    assert_eq!(scenario.shares(), [1, 1]);
    scenario.play(&[DUE]);
    assert_eq!((scenario.closed(CloseReason::Drained), scenario.shares()), (1, vec![0, 1]));
    scenario.play(&[send(1)]);
    assert_eq!(scenario.shares(), [0, 2]);
    scenario.0.settle().unwrap();
}

/// Row 22. A client sends every 10 ms for 5 s; its backend goes down and comes back ten times a
/// second.
#[test]
fn while_a_backend_flaps_each_policy_does_what_it_says_once() {
    for policy in POLICIES {
        let mut scenario = with_policy(policy);
        scenario.play(&[send(1)]);
        assert_eq!(scenario.shares(), [1, 0]);
        for step in 0..500 {
            let flap = match step % 10 {
                0 => &[event(0, News::Down), DUE][..],
                5 => &[event(0, News::Up)],
                _ => &[],
            };
            scenario.play(flap);
            scenario.play(&[send(1), ANSWER, millis(10)]);
        }
        let counters = scenario.manager().counters();
        let (moved, down) = (scenario.moved(), counters.closed(CloseReason::BackendDown));
        let expected = match policy {
            OnBackendDown::Pin => (0, 0, vec![1, 0]),
            OnBackendDown::Rehash => (1, 0, vec![0, 1]),
            OnBackendDown::Close => (0, 1, vec![0, 1]),
        };
        assert_eq!((moved, down, scenario.shares()), expected, "{policy:?}");
        assert!(counters.to_backend.dropped_total().datagrams == 0, "{policy:?}");
        // The answer to the datagram just before a flow left its socket is lost with that.
        assert!(scenario.answered() >= 499, "{policy:?}: {}", scenario.answered());
        scenario.0.settle().unwrap();
    }
}

/// Row 22. With two backends that flap in turn, a flow moves once for each time that its own goes
/// down.
#[test]
fn a_flow_moves_once_for_each_fall_of_its_backend() {
    let mut scenario = with_policy(OnBackendDown::Rehash);
    scenario.play(&[send(1)]);
    for round in 0..50 {
        let (falls, rises) = (round % 2, 1 - round % 2);
        scenario.play(&[event(rises, News::Up), event(falls, News::Down)]);
        scenario.play(&[send(1), ANSWER, millis(50), send(1), ANSWER, millis(50)]);
    }
    assert_eq!((scenario.moved(), scenario.answered()), (50, 100));
    assert_eq!(scenario.manager().counters().flows_opened, 1);
    scenario.0.settle().unwrap();
}

/// Row 23.
#[test]
fn while_all_are_down_they_serve_as_if_up_or_nobody_does_as_configured() {
    for fail_open in [false, true] {
        let mut scenario = Scenario::new(|config| {
            config.cluster.backends = backends(2);
            config.cluster.health.fail_open = fail_open;
            config.cluster.health.on_backend_down = OnBackendDown::Rehash;
        });
        scenario.play(&[send(1), send(3), event(0, News::Down), event(1, News::Down)]);
        scenario.play(&[send(1), send(3), send(4), send(6)]);
        let expected = if fail_open { (0, vec![2, 2]) } else { (4, vec![1, 1]) };
        assert_eq!((scenario.no_backend(), scenario.shares()), expected);
        scenario.play(&[event(1, News::Up), send(1), send(3), send(4), send(6)]);
        assert_eq!(scenario.shares(), [0, 4], "with one that is up there is no need any more");
        scenario.0.settle().unwrap();
    }
}

/// Row 24, as far as the core has a part in it.
#[test]
fn one_error_is_no_sign_two_are_and_an_answer_clears_them() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.health.passive =
            Some(Passive { silent_flows: 3, back_off: Duration::from_secs(4) });
    });
    let fail = Action::Fail { flow: FlowPick::Live(0), failure: REFUSED };
    scenario.play(&[send(1), fail, ANSWER, millis(20), send(1), fail]);
    assert_eq!(scenario.state(0), BackendState::Up, "an answer came between");
    scenario.play(&[fail]);
    assert_eq!(scenario.state(0), BackendState::Ejected);
    scenario.play(&[millis(6_000), Action::Timeout(When::Now)]);
    assert_eq!(scenario.state(0), BackendState::Up);
    scenario.play(&[fail]);
    assert_eq!(scenario.state(0), BackendState::Ejected, "it was on probation");
    scenario.play(&[millis(6_000), Action::Timeout(When::Now)]);
    assert_eq!(scenario.state(0), BackendState::Ejected, "and is out for twice as long");
    scenario.0.settle().unwrap();
}

/// Answers that may not go on to the client show nevertheless that the backend is there: else
/// anyone who forges addresses could put it out of service.
#[test]
fn a_backend_whose_answers_are_dropped_is_not_silent() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.responses = 1;
        config.cluster.limits.amplification = 1;
        config.cluster.health.passive =
            Some(Passive { silent_flows: 1, back_off: Duration::from_secs(5) });
    });
    let large = Action::Push { flow: FlowPick::Live(0), tos: 0, train: Train::single(100) };
    scenario.play(&[send(1), large, Action::Wait(Pause::Idle), Action::Timeout(When::Now)]);
    assert_eq!(scenario.dropped(Direction::ToClient, DropReason::Amplification), 1);
    assert_eq!(scenario.closed(CloseReason::Idle), 1);
    assert_eq!(scenario.state(0), BackendState::Up);
}

/// The first flow to fall silent takes the others along, and the timeout leaves nothing behind.
#[test]
fn a_backend_that_turns_out_silent_loses_its_other_flows_in_the_same_timeout() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.responses = 1;
        config.cluster.backends = backends(2);
        config.cluster.backends[1].backup = true;
        config.cluster.health.fail_open = false;
        config.cluster.health.on_backend_down = OnBackendDown::Close;
        config.cluster.health.passive =
            Some(Passive { silent_flows: 1, back_off: Duration::from_secs(5) });
    });
    scenario.play(&[send(1), Action::Wait(Pause::Third), send(3), send(4)]);
    scenario.play(&[millis(40_000), Action::Timeout(When::Now)]);
    assert_eq!(scenario.closed(CloseReason::Idle), 1);
    assert_eq!(scenario.closed(CloseReason::BackendDown), 2);
    scenario.0.settle().unwrap();
}

/// What fails open is not needed any more once another backend answers.
#[test]
fn an_answer_that_ends_the_failing_open_ends_the_flows_of_the_others() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.backends = backends(2);
        config.cluster.health.fail_open = true;
        config.cluster.health.on_backend_down = OnBackendDown::Close;
        config.cluster.health.passive =
            Some(Passive { silent_flows: 9, back_off: Duration::from_secs(60) });
    });
    let fail = |flow| Action::Fail { flow: FlowPick::Live(flow), failure: REFUSED };
    // What they began with is not the only thing that an error may be about.
    scenario.play(&[send(1), send(1), send(3), send(3)]);
    scenario.play(&[event(1, News::Down), fail(0), fail(0), send(1), send(3)]);
    assert_eq!(scenario.shares(), [1, 1], "both are down, and both serve");
    scenario.play(&[ANSWER, DUE]);
    assert_eq!((scenario.state(0), scenario.shares()), (BackendState::Up, vec![1, 0]));
    scenario.0.settle().unwrap();
}

#[test]
fn a_shorter_idle_timeout_holds_for_the_flows_that_live() {
    let mut scenario = Scenario::new(|_| {});
    let shorter = Duration::from_secs(1);
    scenario.play(&[send(1), send(3), reconfigure(Change::IdleTimeout(shorter)), millis(500)]);
    scenario.play(&[send(3), millis(500), Action::Timeout(When::Now)]);
    assert_eq!(scenario.manager().flow_count(), 1);
    scenario.play(&[DUE, DUE]);
    assert_eq!((scenario.manager().flow_count(), scenario.closed(CloseReason::Idle)), (0, 2));
}

#[test]
fn where_fewer_flows_may_be_than_are_alive_no_more_come_to_be() {
    let mut scenario = Scenario::new(|_| {});
    scenario.play(&[send(6), ANSWER, send(8), ANSWER]);
    scenario.play(&[reconfigure(Change::MaxFlows(1)), send(9), send(11), send(12)]);
    assert_eq!(scenario.manager().flow_count(), 2);
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::MaxFlows), 3);
    scenario.0.settle().unwrap();
}

#[test]
fn shared_sockets_close_once_flows_are_to_have_their_own() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.responses = 1;
        config.cluster.upstream = UpstreamMode::Shared;
    });
    scenario.play(&[send(1), ANSWER]);
    assert_eq!(scenario.manager().upstream_counts(), (1, 1));
    scenario.play(&[reconfigure(Change::Upstream(UpstreamMode::PerFlow))]);
    assert_eq!(scenario.manager().upstream_counts(), (0, 0));
    assert_eq!(scenario.manager().poll_timeout(), None);
}

/// The one that takes a place has none of the flows that were there, and none of its sins.
#[test]
fn a_backend_that_takes_anothers_place_begins_anew() {
    let mut scenario = Scenario::new(|config| config.cluster.backends = backends(2));
    let newcomer = Newcomer { weight: 1, backup: false, max_flows: 0, temper: Temper::Echo };
    scenario.play(&[send(1), send(3), event(0, News::Down)]);
    scenario.play(&[reconfigure(Change::Replace(0, newcomer))]);
    assert_eq!(scenario.closed(CloseReason::BackendRemoved), 1);
    assert_eq!((scenario.state(0), scenario.shares()), (BackendState::Unchecked, vec![0, 1]));
    scenario.play(&[send(1), send(4), ANSWER, ANSWER]);
    assert_eq!(scenario.shares(), [1, 2]);
    scenario.0.settle().unwrap();
}
