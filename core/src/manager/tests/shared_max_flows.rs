//! Managers that share `max_flows`: those of the ports of one listener.

use proptest::prelude::*;

use super::*;

/// Some managers, each of which is told what the others have before it takes anything in.
struct Ports(Vec<Harness>);

impl Ports {
    fn new(count: usize, change: impl Fn(&mut ManagerConfig)) -> Self {
        let port = || {
            Harness::new(|config| {
                config.shares_max_flows = true;
                change(config);
            })
        };
        Self((0..count).map(|_| port()).collect())
    }

    fn flows(&self) -> Vec<usize> {
        self.0.iter().map(|port| port.manager.flow_count()).collect()
    }

    fn tell_others(&mut self, port: usize, now: Instant) {
        let others = || self.0.iter().enumerate().filter(|(other, _)| *other != port);
        let flows: usize = others().map(|(_, other)| other.manager.flow_count()).sum();
        let slots: usize = others().map(|(_, other)| other.manager.taken_slots()).sum();
        let (flows, slots) = (flows as u32, slots as u32);
        self.0[port].input(ManagerInput::TakenElsewhere { flows, slots }, now);
    }

    /// Whether a client's datagram opens a flow.
    fn call(&mut self, port: usize, number: u16, now: Instant) -> bool {
        self.tell_others(port, now);
        opened(&self.0[port].request(client(number), b"x", now)).is_some()
    }
}

#[test]
fn one_of_them_may_have_all_the_flows_and_then_another_gets_none() {
    // More than tables are made for at start.
    let mut ports = Ports::new(3, |config| config.max_flows = 100);
    for number in 0..100 {
        let flow = {
            ports.tell_others(1, at(0));
            ports.0[1].open(client(number), at(0))
        };
        ports.0[1].reply(flow, b"answer", at(0));
    }
    assert_eq!(ports.flows(), [0, 100, 0]);
    assert!(!ports.call(0, 500, at(1_000)));
    assert_eq!(ports.0[0].drops(Direction::ToBackend, DropReason::MaxFlows), 1);
    // Its own flows make room there, as in a table that is full.
    assert!(ports.call(1, 501, at(6_000)));
    assert_eq!(ports.flows(), [0, 100, 0]);
}

#[test]
fn one_sends_a_flow_away_for_the_newcomer_of_another_that_has_none() {
    let mut ports = Ports::new(2, |config| config.max_flows = 2);
    for number in [1, 2] {
        let flow = ports.0[0].open(client(number), at(0));
        ports.0[0].reply(flow, b"answer", at(0));
    }
    assert!(!ports.call(1, 3, at(1_000)));
    // Those in use stay.
    assert!(ports.0[0].input(ManagerInput::RoomWanted, at(1_000)).is_empty());
    assert!(!ports.call(1, 3, at(6_000)));
    let outputs = ports.0[0].input(ManagerInput::RoomWanted, at(6_000));
    let reason = CloseReason::Evicted;
    assert!(matches!(outputs[..], [Output::CloseFlow { reason: r, .. }] if r == reason));
    assert!(ports.call(1, 3, at(6_000)));
    assert_eq!(ports.flows(), [1, 1]);
}

#[test]
fn what_others_have_in_quarantine_takes_slots_too() {
    let mut ports = Ports::new(2, |config| (config.max_flows, config.max_slots) = (10, 10));
    let flows = 4;
    ports.0[0].input(ManagerInput::TakenElsewhere { flows, slots: 10 }, at(0));
    assert!(matches!(
        ports.0[0].request(client(1), b"x", at(0))[..],
        [Output::Drop { reason: DropReason::MaxFlows, .. }]
    ));
    ports.0[0].input(ManagerInput::TakenElsewhere { flows, slots: 9 }, at(0));
    assert!(opened(&ports.0[0].request(client(1), b"x", at(0))).is_some());
}

#[test]
fn one_that_shares_with_nobody_does_not_care_what_others_have() {
    let mut harness = Harness::new(|config| config.max_flows = 2);
    harness.input(ManagerInput::TakenElsewhere { flows: 2, slots: 4 }, at(0));
    let flow = harness.open(client(1), at(0));
    harness.reply(flow, b"answer", at(0));
    assert!(harness.input(ManagerInput::RoomWanted, at(9_000)).is_empty());
    assert_eq!(harness.manager.flow_count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn together_they_never_have_more_than_there_may_be(
        max_flows in 1_u32..40,
        calls in proptest::collection::vec((0_usize..4, 0_u16..60, 0_u64..400, 0_u8..8), 1..120),
    ) {
        let mut ports = Ports::new(4, |config| config.max_flows = max_flows);
        let mut millis = 0;
        for (port, number, pause, what) in calls {
            millis += pause;
            let now = at(millis);
            match what {
                0 => {
                    ports.0[port].run_until(now);
                }
                1 => {
                    ports.0[port].input(ManagerInput::RoomWanted, now);
                }
                _ => {
                    let before: usize = ports.flows().iter().sum();
                    let is_open = ports.call(port, number, now);
                    let is_full = before >= max_flows as usize;
                    let after: usize = ports.flows().iter().sum();
                    prop_assert!(!is_open || !is_full || after == before, "one goes for one that comes");
                }
            }
            let sum: usize = ports.flows().iter().sum();
            prop_assert!(sum <= max_flows as usize, "{sum} flows, {max_flows} at most");
        }
    }
}
