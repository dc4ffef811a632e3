//! What the core alone can show of the scenarios, by their numbers.

mod abuse;
mod backends;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::config::{BackendConfig, Balance, ClusterConfig, ManagerConfig, UpstreamMode};
use flowgate_core::{
    Burst, CloseReason, Direction, DropReason, FlowId, Instant, ManagerInput, NetworkError, Output,
    UdpManager, UpstreamId,
};
use flowgate_tests::sim::{
    Action, Fate, FlowPick, Pause, Setting, Simulation, SocketFailure, Subject, Temper, Trace,
    Train, When,
};

/// What a dead server's host says.
const REFUSED: SocketFailure = SocketFailure::Network(NetworkError::Refused);

const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// One echoing backend, sessions of a minute.
fn setting(change: impl FnOnce(&mut ManagerConfig)) -> Setting {
    let backend = SocketAddr::from(([10, 0, 0, 1], 53));
    let mut config = ManagerConfig {
        max_flows: 16,
        cluster: ClusterConfig {
            balance: Balance::RoundRobin,
            idle_timeout: IDLE_TIMEOUT,
            upstream_quarantine: Duration::ZERO,
            ..ClusterConfig::new([backend])
        },
        ..ManagerConfig::new(([192, 0, 2, 53], 53).into(), [backend])
    };
    change(&mut config);
    let tempers = vec![Temper::Echo; config.cluster.backends.len()];
    Setting { config, manager_seed: 1, start: Instant::ORIGIN, tempers }
}

/// A manager in a simulated world, judged by the model at every step.
struct Scenario(Simulation<UdpManager>);

impl Scenario {
    fn new(change: impl FnOnce(&mut ManagerConfig)) -> Self {
        let setting = setting(change);
        let manager = UdpManager::from(&setting);
        Self(Simulation::new(&setting, manager, Trace::readable()))
    }

    fn play(&mut self, actions: &[Action]) {
        for &action in actions {
            if let Err(violation) = self.0.step(action) {
                panic!("{}\n{violation}", self.0.trace().lines());
            }
        }
    }

    fn manager(&self) -> &UdpManager {
        self.0.subject().manager()
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.manager().counters().closed(reason)
    }

    fn answered(&self) -> u64 {
        self.manager().counters().to_client.forwarded.datagrams
    }

    fn dropped(&self, direction: Direction, reason: DropReason) -> u64 {
        self.manager().counters().ledger(direction).dropped_for(reason).datagrams
    }
}

const ANSWER: Action = Action::Answer { pick: 0, coalesced: false, fate: Fate::Now };

/// One datagram of a client. Numbers that differ by 3 name different clients.
const fn send(client: u8) -> Action {
    Action::Send { party: 3 * client, tos: 0, ttl: 64, train: Train::single(20), fate: Fate::Now }
}

/// Row 7.
#[test]
fn the_order_in_a_flow_is_that_of_arrival_however_bursts_are_cut() {
    const DATAGRAMS: usize = 60;
    let bytes: Vec<u8> = (0..DATAGRAMS as u16).flat_map(u16::to_be_bytes).collect();
    for cut in 1..=DATAGRAMS {
        let mut manager = UdpManager::from(&setting(|config| config.cluster.requests = 7));
        let mut arrived: BTreeMap<FlowId, Vec<u8>> = BTreeMap::new();
        for bytes in bytes.chunks(2 * cut) {
            for output in request(&mut manager, client(1), bytes, 2, Instant::ORIGIN) {
                if let Output::Send { flow, burst, .. } = output {
                    arrived.entry(flow).or_default().extend(burst.bytes());
                }
            }
        }
        let mut flows: Vec<_> = arrived.into_iter().collect();
        flows.sort_by_key(|(flow, _)| flow.generation());
        assert!(flows.iter().rev().skip(1).all(|(_, bytes)| bytes.len() == 2 * 7));
        assert_eq!(flows.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>(), bytes);
    }
}

/// Row 11.
#[test]
fn a_datagram_and_the_deadline_at_one_instant_leave_the_flow_alive() {
    let mut scenario = Scenario::new(|_| {});
    scenario.play(&[send(1), Action::Wait(Pause::Idle), send(1), Action::Timeout(When::Now)]);
    assert_eq!(scenario.manager().flow_count(), 1);
    scenario.play(&[Action::Wait(Pause::Idle), Action::Timeout(When::Now), send(1)]);
    assert_eq!(scenario.closed(CloseReason::Idle), 1, "the timeout came first");
}

/// Row 11.
#[test]
fn a_timer_may_fire_early_late_or_twice() {
    let mut scenario = Scenario::new(|_| {});
    scenario.play(&[send(1), Action::Timeout(When::Now), Action::Timeout(When::Early)]);
    assert_eq!(scenario.manager().flow_count(), 1);
    scenario.play(&[Action::Wait(Pause::Idle), Action::Timeout(When::Twice)]);
    assert_eq!(scenario.closed(CloseReason::Idle), 1);
    scenario.play(&[send(1), Action::Wait(Pause::Idle), Action::Timeout(When::Late(5_000))]);
    assert_eq!(scenario.closed(CloseReason::Idle), 2);
}

/// Row 11.
#[test]
fn a_stale_event_does_nothing_to_the_flow_that_took_the_slot() {
    let mut scenario = Scenario::new(|config| config.max_flows = 1);
    let end = [Action::Wait(Pause::Idle), Action::Timeout(When::Now)];
    scenario.play(&[send(1), end[0], end[1], send(2)]);
    let failure = SocketFailure::NotOpened;
    let flow = FlowPick::Stale(0);
    scenario.play(&[ANSWER, Action::Fail { flow, failure }]);
    assert_eq!(scenario.dropped(Direction::ToClient, DropReason::UnknownFlow), 1);
    assert_eq!(scenario.answered(), 0, "the answer was for the other client");
    scenario.play(&[ANSWER]);
    assert_eq!(scenario.answered(), 1, "the flow goes on");
}

/// Row 12.
#[test]
fn a_year_that_passes_at_once_ends_who_was_idle_and_nobody_else() {
    let mut scenario = Scenario::new(|_| {});
    scenario.play(&[send(1), send(3), Action::Wait(Pause::Year), send(3)]);
    scenario.play(&[Action::Timeout(When::Now)]);
    assert_eq!(scenario.closed(CloseReason::Idle), 1);
    assert_eq!(scenario.manager().flow_count(), 1);
    scenario.play(&[Action::Wait(Pause::AlmostIdle), Action::Timeout(When::Now)]);
    assert_eq!(scenario.manager().flow_count(), 1);
}

/// Row 12.
#[test]
fn a_clock_that_stands_still_ends_nothing_and_asks_for_nothing_now() {
    let mut scenario = Scenario::new(|_| {});
    for _ in 0..100 {
        scenario.play(&[send(1), ANSWER, Action::Timeout(When::Now)]);
        let asked = scenario.manager().poll_timeout().expect("there is a flow");
        assert!(asked.at > scenario.0.now());
    }
    assert_eq!((scenario.manager().flow_count(), scenario.answered()), (1, 100));
}

/// Row 13.
#[test]
fn one_response_ends_the_flow_and_so_does_the_last_answer_of_several_questions() {
    let mut scenario = Scenario::new(|config| config.cluster.responses = 1);
    scenario.play(&[send(1), ANSWER]);
    assert_eq!(scenario.closed(CloseReason::Complete), 1);
    scenario.play(&[send(1), send(1), ANSWER]);
    assert_eq!(scenario.closed(CloseReason::Complete), 1, "a question is still open");
    scenario.play(&[ANSWER]);
    assert_eq!((scenario.closed(CloseReason::Complete), scenario.answered()), (2, 3));
}

/// Row 13.
#[test]
fn the_last_request_still_gets_its_reply_while_the_next_flow_goes_on() {
    let mut scenario = Scenario::new(|config| config.cluster.requests = 3);
    scenario.play(&[send(1); 4]);
    assert_eq!(scenario.manager().flow_count(), 2, "the fourth opens another flow");
    scenario.play(&[ANSWER; 3]);
    assert_eq!((scenario.closed(CloseReason::Complete), scenario.answered()), (1, 3));
    scenario.play(&[ANSWER]);
    assert_eq!((scenario.manager().flow_count(), scenario.answered()), (1, 4));
}

/// Rows 12 and 14. What a datagram costs in time is for `bench/` to say.
#[test]
fn a_hundred_thousand_flows_end_a_thousand_at_a_time_and_hold_up_no_datagram() {
    const FLOWS: u32 = 100_000;
    const MOST_PER_TIMEOUT: usize = 1_024;
    let mut manager = UdpManager::from(&setting(|config| config.max_flows = FLOWS));
    for n in 0..FLOWS {
        assert_eq!(request(&mut manager, client(n), b"first", 0, Instant::ORIGIN).len(), 3);
    }
    let mut now = Instant::ORIGIN + YEAR;
    assert_eq!(request(&mut manager, client(7), b"busy", 0, now).len(), 1);

    let mut timeouts = 0;
    while manager.flow_count() > 1 {
        let ended = input(&mut manager, ManagerInput::Timeout, now);
        let flows = ended.iter().filter(|output| matches!(output, Output::CloseFlow { .. }));
        assert!(flows.count() <= MOST_PER_TIMEOUT);
        let asked = manager.poll_timeout().expect("there are flows");
        assert!(asked.at > now);
        assert_eq!(request(&mut manager, client(7), b"busy", 0, now).len(), 1);
        now = asked.at;
        timeouts += 1;
    }
    assert!(timeouts <= 2 * FLOWS as usize / MOST_PER_TIMEOUT, "{timeouts} timeouts");
    manager.assert_invariants();
}

/// Row 12. The model knows what may be left: nothing else differs from a small table.
#[test]
fn what_one_timeout_leaves_the_next_one_ends() {
    let mut scenario = Scenario::new(|config| {
        config.max_flows = 3_000;
        config.cluster.requests = 1;
    });
    let train = Train { len: 20, count: 64, short_by: 0 };
    let a_flow_for_each_datagram =
        Action::Send { party: 3, tos: 0, ttl: 64, train, fate: Fate::Now };
    scenario.play(&[a_flow_for_each_datagram; 40]);
    scenario.play(&[Action::Wait(Pause::Idle), Action::Timeout(When::Twice)]);
    let left = scenario.manager().flow_count();
    assert!(0 < left && left < 40 * 64, "{left} are left");
    let patience = Duration::ZERO;
    scenario.play(&[Action::Drain { patience }, Action::Timeout(When::Due)]);
    assert!(scenario.manager().flow_count() < left);
    scenario.0.settle().unwrap();
}

/// Row 14.
#[test]
fn a_hundred_thousand_flows_that_stay_busy_are_not_looked_at_for_each_datagram() {
    const FLOWS: u32 = 100_000;
    let mut manager = UdpManager::from(&setting(|config| config.max_flows = FLOWS));
    for n in 0..FLOWS {
        request(&mut manager, client(n), b"first", 0, Instant::ORIGIN);
    }
    let first_asked = manager.poll_timeout();
    for n in 0..FLOWS {
        let now = Instant::from_nanos(u64::from(n));
        assert_eq!(request(&mut manager, client(n), b"again", 0, now).len(), 1);
        assert_eq!(manager.poll_timeout(), first_asked, "a datagram moves no timer");
    }
}

/// Row 15.
#[test]
fn what_is_refused_cut_given_up_or_late_is_in_the_ledger() {
    let mut scenario = Scenario::new(|config| config.max_datagram_size = 100);
    let too_large =
        Action::Send { party: 3, tos: 0, ttl: 64, train: Train::single(101), fate: Fate::Now };
    let given_up = Action::GiveUp { pick: 0, datagrams: 0, reason: DropReason::QueueFull };
    let cut = Action::Unusable {
        direction: Direction::ToClient,
        reason: DropReason::Truncated,
        datagrams: 2,
    };
    scenario.play(&[too_large, Action::Block, send(1), given_up, Action::Unblock, cut]);
    let ledger = &scenario.manager().counters().to_backend;
    assert_eq!((ledger.received.datagrams, ledger.forwarded.datagrams), (2, 0));
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::TooLarge), 1);
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::QueueFull), 1);
    assert_eq!(scenario.dropped(Direction::ToClient, DropReason::Truncated), 2);
}

fn client(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    ([10, a, b, c], 4_000).into()
}

fn request<'p>(
    manager: &mut UdpManager,
    source: SocketAddr,
    bytes: &'p [u8],
    stride: u16,
    now: Instant,
) -> Vec<Output<'p>> {
    let burst = Burst::segmented(bytes, stride).expect("a burst");
    let request = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
    input(manager, request, now)
}

fn input<'p>(manager: &mut UdpManager, input: ManagerInput<'p>, now: Instant) -> Vec<Output<'p>> {
    let mut outputs = vec![];
    manager.handle_input(input, now, &mut outputs);
    outputs
}
