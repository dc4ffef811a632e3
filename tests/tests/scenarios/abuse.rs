//! Rows 35 to 39: clients that take more than their share, and datagrams that go in circles.

use super::*;

/// One datagram of a client that calls the first of two local addresses.
const fn send_to_local(client: u8) -> Action {
    let party = 3 * client + 1;
    Action::Send { party, tos: 0, ttl: 64, train: Train::single(20), fate: Fate::Now }
}

/// A backend sends this many bytes to the client that the last flow is of.
const fn push(len: u16, count: u8) -> Action {
    let train = Train { len, count, short_by: 0 };
    Action::Push { flow: FlowPick::Live(0), tos: 0, train }
}

/// The ports of one host.
const HOST: [u8; 4] = [0, 8, 16, 24];
/// The ports of another in the same subnet.
const NEIGHBOUR: [u8; 4] = [1, 9, 17, 25];
/// A client from elsewhere.
const STRANGER: u8 = 3;

/// Row 35.
#[test]
fn whoever_has_been_answered_stays_however_many_come_that_are_not() {
    let mut scenario = Scenario::new(|config| config.max_flows = 6);
    for client in HOST {
        scenario.play(&[send(client), ANSWER]);
    }
    let answered: Vec<FlowId> = scenario.manager().flows().map(|(id, _)| id).collect();
    for _ in 0..10 {
        scenario.play(&NEIGHBOUR.map(send_to_local));
        scenario.play(&[Action::Wait(Pause::Millis(150))]);
    }
    assert!(scenario.closed(CloseReason::Evicted) >= 10);
    assert!(answered.iter().all(|&id| scenario.manager().flow(id).is_some()));
    scenario.0.settle().unwrap();
}

/// Row 35, of those who come while it lasts: with 4,000 sockets for flows alive and in quarantine, of
/// which a quarter serves newcomers within each second, 1,000 in 20,000 get in. So who repeats itself
/// each millisecond waits for 20 ms in the mean.
#[test]
fn beside_a_flood_of_forged_sources_whoever_tries_again_is_served_soon_and_goes_on() {
    const SOCKETS: usize = 4_000;
    const FORGED_PER_MILLI: u64 = 20;
    let mut manager = UdpManager::from(&setting(|config| {
        (config.max_flows, config.max_slots) = (SOCKETS as u32, SOCKETS as u32);
        config.cluster.upstream_quarantine = Duration::from_secs(1);
    }));
    let mut sockets = BTreeSet::new();
    let mut send = |manager: &mut UdpManager, source: SocketAddr, now, answer: bool| {
        let burst = Burst::single(b"?").expect("a burst");
        let question = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
        let mut served = false;
        for output in input(manager, question, now) {
            match output {
                Output::OpenUpstream { upstream, .. } => drop(sockets.insert(upstream)),
                Output::CloseUpstream { upstream } => drop(sockets.remove(&upstream)),
                Output::Send { upstream, .. } if answer => {
                    let sender = ([10, 0, 0, 1], 53).into();
                    let reply = ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst };
                    let answers = input(manager, reply, now);
                    served |= matches!(answers[..], [Output::SendToClient { .. }]);
                }
                _ => {}
            }
        }
        for output in input(manager, ManagerInput::Timeout, now) {
            if let Output::CloseUpstream { upstream } = output {
                sockets.remove(&upstream);
            }
        }
        assert!(sockets.len() <= SOCKETS, "more sockets than there are");
        served
    };
    let known = SocketAddr::from(([192, 0, 2, 1], 1));
    let mut newcomer = (SocketAddr::from(([192, 0, 2, 2], 1)), 0);
    let (mut waits, mut forged) = (vec![], 0u32);
    for milli in 0..6_000 {
        let now = Instant::from_millis(milli);
        assert!(send(&mut manager, known, now, true), "an answered client, at {milli} ms");
        // At another place among the forged ones each time.
        let index = milli.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        for number in 0..FORGED_PER_MILLI {
            let now = now + Duration::from_millis(number) / FORGED_PER_MILLI as u32;
            if number == index % FORGED_PER_MILLI
                && milli >= 50
                && send(&mut manager, newcomer.0, now, true)
            {
                waits.push(milli - newcomer.1);
                let next = SocketAddr::from(([192, 0, 2, 2], 2 + waits.len() as u16));
                newcomer = (next, milli + 1);
            }
            forged += 1;
            let [_, high, middle, low] = forged.to_be_bytes();
            send(&mut manager, ([172, 16 + high, middle, low], 9).into(), now, false);
        }
    }
    let mean = waits.iter().sum::<u64>() / waits.len() as u64;
    let longest = waits.iter().max();
    assert!(waits.len() > 100 && mean <= 30, "{} served after {mean} ms", waits.len());
    assert!(longest < Some(&250), "{longest:?}");
}

/// Row 35.
#[test]
fn a_table_of_answered_flows_refuses_and_evicts_nobody() {
    let mut scenario = Scenario::new(|config| config.max_flows = 4);
    for client in HOST {
        scenario.play(&[send(client), ANSWER]);
    }
    scenario.play(&NEIGHBOUR.map(send));
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::MaxFlows), 4);
    assert_eq!(scenario.closed(CloseReason::Evicted), 0);
}

/// Row 37.
#[test]
fn a_client_gets_its_budget_whether_it_goes_on_or_not() {
    let mut scenario = Scenario::new(|config| config.cluster.limits.amplification = 3);
    scenario.play(&[send(1), push(25, 10)]);
    assert_eq!(scenario.manager().counters().to_client.forwarded.bytes, 2 * 25, "of 3 x 20");
    scenario.play(&[push(25, 10)]);
    assert_eq!(scenario.dropped(Direction::ToClient, DropReason::Amplification), 8 + 10);
    scenario.play(&[send(1), push(25, 10)]);
    assert_eq!(scenario.answered(), 2 + 2, "70 of 2 x 3 x 20 bytes are left, less what it had");
}

/// Row 38.
#[test]
fn the_balancer_is_no_client_and_port_zero_is_nobody() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.backends = vec![BackendConfig::new(([10, 0, 0, 0], 53).into())];
    });
    let [port_zero, backend, listener, local] = [7, 15, 23, 31];
    scenario.play(&[send(port_zero), send(backend), send(listener), send_to_local(local)]);
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::PortZero), 1);
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::OwnAddress), 2);
    assert_eq!(scenario.manager().flow_count(), 1, "a backend may call from the port it serves at");
    scenario.play(&[send(local)]);
    assert_eq!(scenario.manager().flow_count(), 2, "it is only a client with an odd port");
}

/// Row 38. A balancer pointed at itself, two in a ring, and three.
#[test]
fn a_datagram_in_a_ring_of_balancers_dies_and_is_counted() {
    const TTL: u8 = 64;
    // Each hop takes one, and a few more rounds show that it is no client's last hop that came.
    const ROUNDS: usize = TTL as usize + 8;
    for balancers in 1..=3 {
        let mut ring = Ring::new(balancers);
        assert_eq!(ring.send(TTL), ROUNDS);
        assert_eq!(ring.flows(), ROUNDS);
        assert_eq!(ring.expired(), 1);
        assert_eq!(ring.send(TTL), ROUNDS, "the flows are there, and end nowhere");
        assert_eq!(ring.flows(), ROUNDS);
        assert_eq!(ring.expired(), 2);
    }
}

/// Balancers that are each other's only backends.
struct Ring {
    managers: Vec<UdpManager>,
    /// The time to live that each flow's socket sends with, and the port it sends from.
    sockets: BTreeMap<(usize, UpstreamId), (u8, u16)>,
}

impl Ring {
    fn new(balancers: u8) -> Self {
        let address = |number: u8| SocketAddr::from(([10, 0, 0, number % balancers], 53));
        let manager = |number| {
            UdpManager::from(&setting(|config| {
                config.max_flows = 100;
                config.address = address(number);
                config.cluster.backends = vec![BackendConfig::new(address(number + 1))];
            }))
        };
        Self { managers: (0..balancers).map(manager).collect(), sockets: BTreeMap::new() }
    }

    /// A client sends one datagram. Returns how often it was sent on.
    fn send(&mut self, ttl: u8) -> usize {
        let (mut source, mut ttl, mut at) = (client(1), ttl, 0);
        for hops in 0.. {
            let burst = Burst::single(b"round and round").expect("a burst");
            let arrival = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl, burst };
            let outputs = input(&mut self.managers[at], arrival, Instant::ORIGIN);
            let port = 10_000 + self.sockets.len() as u16;
            for output in &outputs {
                if let Output::OpenUpstream { upstream, ttl, .. } = *output {
                    self.sockets.insert((at, upstream), (ttl, port));
                }
            }
            let Some(Output::Send { upstream, .. }) = outputs.last() else { return hops };
            let (left, port) = self.sockets[&(at, *upstream)];
            (source, ttl) = (([10, 0, 0, at as u8], port).into(), left);
            at = (at + 1) % self.managers.len();
        }
        unreachable!("it never ends")
    }

    fn flows(&self) -> usize {
        self.managers.iter().map(UdpManager::flow_count).sum()
    }

    fn expired(&self) -> u64 {
        let ledgers = self.managers.iter().map(|manager| &manager.counters().to_backend);
        ledgers.map(|ledger| ledger.dropped_for(DropReason::TtlExpired).datagrams).sum()
    }
}

/// Row 39.
#[test]
fn one_source_has_its_share_and_gets_it_again_as_its_flows_end() {
    let mut scenario = Scenario::new(|config| config.cluster.limits.flows_per_source = 2);
    scenario.play(&HOST.map(send));
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::SourceFlows), 2);
    scenario.play(&NEIGHBOUR.map(send));
    assert_eq!(scenario.manager().flow_count(), 4, "another source has a share of its own");
    scenario.play(&[Action::Wait(Pause::Idle), Action::Timeout(When::Now), send(HOST[3])]);
    assert_eq!(scenario.manager().flow_count(), 1);
    scenario.0.settle().unwrap();
}

/// Row 39.
#[test]
fn one_subnet_has_its_share_and_others_have_theirs() {
    let mut scenario = Scenario::new(|config| config.cluster.limits.flows_per_subnet = 3);
    scenario.play(&HOST.map(send)[..2]);
    scenario.play(&NEIGHBOUR.map(send)[..2]);
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::SubnetFlows), 1);
    scenario.play(&[send(STRANGER)]);
    assert_eq!(scenario.manager().flow_count(), 4);
    scenario.play(&[Action::Wait(Pause::Idle), Action::Timeout(When::Now)]);
    scenario.play(&NEIGHBOUR.map(send)[..2]);
    assert_eq!(scenario.manager().flow_count(), 2);
}

/// Row 39.
#[test]
fn one_source_opens_flows_no_faster_than_its_rate() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.limits.new_flows_per_second_per_source = 2;
    });
    scenario.play(&HOST.map(send));
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::SourceRate), 2);
    scenario.play(&NEIGHBOUR.map(send)[..2]);
    scenario.play(&[Action::Wait(Pause::Millis(500)), send(HOST[2]), send(HOST[3])]);
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::SourceRate), 3);
    assert_eq!(scenario.manager().flow_count(), 5);
}

/// Row 39, of datagrams: of flows that are known and of new ones.
#[test]
fn one_source_sends_no_faster_than_its_rates() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.limits.datagrams_per_second_per_source = 3;
    });
    scenario.play(&HOST.map(send));
    let dropped = scenario.dropped(Direction::ToBackend, DropReason::SourceDatagrams);
    assert_eq!((dropped, scenario.manager().flow_count()), (1, 3));
    scenario.play(&[send(HOST[0]), send(NEIGHBOUR[0])]);
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::SourceDatagrams), 2);
    scenario.play(&[Action::Wait(Pause::Millis(334)), send(HOST[0]), send(HOST[0])]);
    assert_eq!(scenario.dropped(Direction::ToBackend, DropReason::SourceDatagrams), 3);
    assert_eq!(scenario.manager().flow_count(), 4);
}

/// A late answer to the former client does not reach the new one, which shares its socket: its
/// place there has not been given to another flow, and its quarantine begins again.
#[test]
fn a_place_where_something_comes_late_is_given_to_nobody_until_it_has_been_quiet() {
    let mut scenario = Scenario::new(|config| {
        config.cluster.upstream = UpstreamMode::Shared;
        config.cluster.upstream_quarantine = Duration::from_secs(2);
        config.cluster.idle_timeout = Duration::from_secs(1);
    });
    let late = Action::Push {
        flow: FlowPick::Stale(0),
        tos: 0,
        train: Train { len: 20, count: 2, short_by: 0 },
    };
    let second = Action::Wait(Pause::Millis(1_000));
    scenario.play(&[send(1), second, Action::Timeout(When::Now), second, late]);
    assert_eq!(scenario.dropped(Direction::ToClient, DropReason::UnknownFlow), 2);
    scenario.play(&[second, Action::Timeout(When::Now), send(3)]);
    assert_eq!(scenario.manager().upstream_counts(), (2, 2), "the first has been quiet for 1 s");
    scenario.0.settle().unwrap();
}
