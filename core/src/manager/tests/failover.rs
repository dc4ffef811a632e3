//! Flows whose backend goes down, drains or is removed, and changes of the configuration.

use super::*;
use crate::LocalSource;
use crate::backend::EjectionCause;

const PASSIVE: Passive = Passive { silent_flows: 2, back_off: Duration::from_secs(5) };

fn first() -> BackendId {
    BackendId::new(0)
}

impl Harness {
    fn with_policy(on_backend_down: OnBackendDown) -> Self {
        Self::new(|c| c.cluster.health.on_backend_down = on_backend_down)
    }

    pub(super) fn event(&mut self, backend: BackendId, event: BackendEvent, now: Instant) {
        let outputs = self.input(ManagerInput::BackendChanged { backend, event }, now);
        assert_eq!(outputs, []);
    }

    fn refused(&mut self, flow: FlowId, now: Instant) {
        let failure = NetworkError::Refused;
        self.input(self.network_error(flow, failure), now);
    }

    pub(super) fn configure(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut ManagerConfig),
    ) -> Vec<Output<'static>> {
        let mut config = self.manager.config().clone();
        change(&mut config);
        let configuration = PreparedConfig::new(config);
        let outputs = self.input(ManagerInput::Configured(&configuration), now);
        outputs.into_iter().map(without_payload).collect()
    }

    pub(super) fn backend_of(&self, flow: FlowId) -> usize {
        self.manager.flow(flow).unwrap().backend().index()
    }

    fn state(&self, index: usize) -> crate::backend::BackendState {
        self.manager.backends().get(BackendId::new(index)).unwrap().state()
    }
}

/// What a change of the configuration emits carries no datagrams.
fn without_payload(output: Output<'_>) -> Output<'static> {
    match output {
        Output::CloseFlow { flow, upstream, reason } => {
            Output::CloseFlow { flow, upstream, reason }
        }
        Output::CloseUpstream { upstream } => Output::CloseUpstream { upstream },
        other => panic!("unexpected: {other:?}"),
    }
}

#[test]
fn a_pinned_flow_stays_with_a_backend_that_is_down_and_new_ones_go_elsewhere() {
    let mut harness = Harness::with_policy(OnBackendDown::Pin);
    let flow = harness.open(client(1), at(0));
    harness.event(first(), BackendEvent::Down, at(1));
    let again = harness.request(client(1), b"again", at(2));
    assert!(matches!(again[..], [Output::Send { flow: f, .. }] if f == flow));
    for number in 2..6 {
        let flow = harness.open(client(number), at(3));
        assert_eq!(harness.backend_of(flow), 1);
    }
}

#[test]
fn a_flow_moves_at_its_clients_next_datagram_and_keeps_its_id() {
    let mut harness = Harness::with_policy(OnBackendDown::Rehash);
    let flow = harness.open(client(1), at(0));
    assert_eq!(harness.backend_of(flow), 0);
    harness.event(first(), BackendEvent::Down, at(1));
    let former = harness.manager.flow(flow).unwrap().upstream();
    harness.sockets();
    let burst = Burst::single(b"again").unwrap();
    let outputs = harness.request(client(1), b"again", at(2));
    let (upstream, moved_to, address) = harness.upstreams[&flow];
    assert_eq!((moved_to, address), (BackendId::new(1), backend(2)));
    assert_eq!(
        outputs,
        [
            Output::OpenFlow { flow, upstream, backend: moved_to, address, has_moved: true },
            Output::Send {
                flow,
                upstream,
                backend: moved_to,
                to: None,
                prefix: None,
                tlvs: Tlvs::NONE,
                tos: 0,
                ttl: 63,
                burst
            },
        ]
    );
    let (connect, source, ttl) = (Some(address), LocalSource::Any, 63);
    let opened = Socket::Open { upstream, connect, source, ttl };
    assert_eq!(harness.sockets(), [Socket::Close(former), opened]);
    assert_eq!(harness.manager.counters().flows_moved, 1);
    assert_eq!(harness.manager.counters().flows_opened, 1);
    // Once it has moved it stays, also when the first one is back.
    harness.event(first(), BackendEvent::Up, at(3));
    let third = harness.request(client(1), b"third", at(4));
    assert!(matches!(third[..], [Output::Send { .. }]), "{third:?}");
}

#[test]
fn the_backend_a_flow_moves_to_is_told_who_the_client_is() {
    let mut harness = Harness::new(|c| {
        c.cluster.health.on_backend_down = OnBackendDown::Rehash;
        c.cluster.send_proxy_protocol = SendProxyProtocol::First;
    });
    harness.open(client(1), at(0));
    harness.event(first(), BackendEvent::Down, at(1));
    let moved = harness.request(client(1), b"again", at(2));
    assert!(matches!(moved[1], Output::Send { prefix: Some(_), .. }), "{moved:?}");
    let next = harness.request(client(1), b"again", at(2));
    assert!(matches!(next[0], Output::Send { prefix: None, .. }), "{next:?}");
}

#[test]
fn a_flow_that_cannot_move_is_kept_and_its_datagrams_are_dropped_until_it_can() {
    let mut harness = Harness::with_policy(OnBackendDown::Rehash);
    let flow = harness.open(client(1), at(0));
    harness.event(first(), BackendEvent::Down, at(1));
    harness.event(BackendId::new(1), BackendEvent::Down, at(1));
    let lost = harness.request(client(1), b"lost", at(2));
    assert!(matches!(lost[..], [Output::Drop { reason: DropReason::NoBackend, .. }]), "{lost:?}");
    harness.event(first(), BackendEvent::Up, at(3));
    let again = harness.request(client(1), b"again", at(4));
    assert!(matches!(again[..], [Output::Send { flow: f, .. }] if f == flow));
}

#[test]
fn with_close_the_flows_of_a_backend_that_goes_down_end_by_themselves() {
    let mut harness = Harness::with_policy(OnBackendDown::Close);
    let flow = harness.open(client(1), at(0));
    let other = harness.open(client(2), at(0));
    harness.event(first(), BackendEvent::Down, at(10));
    let deadline = harness.manager.poll_timeout().unwrap();
    assert_eq!(deadline.reason, DeadlineReason::Sweep);
    let closed = harness.run_until(at(20));
    let reason = CloseReason::BackendDown;
    assert_eq!(closed, [harness.ended(flow, reason)]);
    assert!(harness.manager.flow(other).is_some());
}

#[test]
fn with_close_a_datagram_that_comes_before_the_timeout_opens_a_new_flow() {
    let mut harness = Harness::with_policy(OnBackendDown::Close);
    let flow = harness.open(client(1), at(0));
    harness.event(first(), BackendEvent::Down, at(10));
    let outputs = harness.request(client(1), b"again", at(10));
    let [Output::CloseFlow { flow: closed, .. }, Output::OpenFlow { address, .. }, ..] =
        outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!((closed, address), (flow, backend(2)));
}

#[test]
fn a_sweep_gets_to_every_flow_and_does_a_bounded_part_at_a_time() {
    let mut harness = Harness::new(|c| {
        c.max_flows = 3_000;
        c.cluster.health.on_backend_down = OnBackendDown::Close;
        c.cluster.backends.truncate(1);
    });
    for number in 0..3_000 {
        harness.manager.handle_input(
            ManagerInput::ClientBurst {
                source: client(number),
                local: None,
                tos: 0,
                ttl: 64,
                burst: Burst::single(b"hello").unwrap(),
            },
            at(0),
            &mut vec![],
        );
    }
    harness.event(first(), BackendEvent::Down, at(10));
    let first_part = harness.input(ManagerInput::Timeout, at(10));
    assert_eq!(first_part.len(), 1_024);
    let rest = harness.run_until(at(20));
    assert_eq!((rest.len(), harness.manager.flow_count()), (3_000 - 1_024, 0));
    assert_eq!(harness.manager.poll_timeout(), None, "it is over");
}

#[test]
fn while_all_are_down_they_are_used_as_if_all_were_up_if_so_configured() {
    for fail_open in [false, true] {
        let mut harness = Harness::new(|c| c.cluster.health.fail_open = fail_open);
        harness.event(first(), BackendEvent::Down, at(0));
        harness.event(BackendId::new(1), BackendEvent::Down, at(0));
        let outputs = harness.request(client(1), b"hello", at(1));
        match outputs[..] {
            [Output::OpenFlow { .. }, Output::Send { .. }] => assert!(fail_open),
            [Output::Drop { reason: DropReason::NoBackend, .. }] => assert!(!fail_open),
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn two_errors_of_the_network_put_a_backend_out_of_service_for_a_while() {
    let mut harness = Harness::new(|c| {
        c.cluster.health.passive = Some(PASSIVE);
        c.cluster.health.on_backend_down = OnBackendDown::Rehash;
    });
    // So long ago that nothing of what it began with is sent to another.
    let flow = harness.open(client(1), at(0));
    harness.refused(flow, at(6_001));
    assert_eq!(harness.state(0).as_str(), "unchecked", "one error can be forged");
    harness.request(client(1), b"second", at(6_010));
    harness.refused(flow, at(6_011));
    assert_eq!(harness.state(0).as_str(), "ejected");
    let out = harness.manager.backends().get(first()).unwrap();
    assert_eq!((out.state_since(), out.state_until()), (at(6_011), Some(at(13_511))));
    assert_eq!(out.ejections(EjectionCause::NetworkErrors), 1);
    assert!(out.state_reason().is_some() && harness.manager.backends().state_changes() > 0);
    let third = harness.request(client(1), b"third", at(6_020));
    assert!(matches!(third[0], Output::OpenFlow { address, .. } if address == backend(2)));

    let back = harness.manager.poll_timeout().unwrap();
    assert_eq!((back.at, back.reason), (at(13_511), DeadlineReason::BackendEvent));
    harness.run_until(at(13_511));
    assert_eq!(harness.state(0).as_str(), "unchecked");
}

#[test]
fn an_answer_puts_a_backend_back_into_service() {
    let mut harness = Harness::new(|c| c.cluster.health.passive = Some(PASSIVE));
    // So long ago that nothing of what it began with is sent to another.
    let flow = harness.open(client(1), at(0));
    harness.refused(flow, at(6_001));
    harness.refused(flow, at(6_001));
    assert_eq!(harness.state(0).as_str(), "ejected");
    harness.reply(flow, b"here", at(6_002));
    assert_eq!(harness.state(0).as_str(), "up");
}

/// Anyone who floods all ports with forged errors reaches flows at any moment. As long as a backend
/// answers someone, none of that counts.
#[test]
fn forged_errors_do_not_put_a_backend_out_that_answers() {
    let mut harness = Harness::new(|c| {
        c.cluster.health.passive = Some(PASSIVE);
        c.cluster.backends.truncate(1);
    });
    let flows: Vec<FlowId> = (0..20).map(|number| harness.open(client(number), at(0))).collect();
    harness.reply(flows[0], b"y", at(1));
    for millis in 1..500 {
        let (asks, answered) = (millis as usize % 20, (millis as usize + 10) % 20);
        harness.request(client(asks as u16), b"x", at(millis));
        flows.iter().for_each(|&flow| harness.refused(flow, at(millis)));
        harness.run_until(at(millis));
        if millis % 5 == 0 {
            harness.reply(flows[answered], b"y", at(millis));
        }
        assert_eq!(harness.state(0).as_str(), "up", "at {millis} ms");
    }
}

/// Two backends that have answered, and a client that was answered before.
fn with_a_client_that_was_answered(responses: u32) -> Harness {
    let mut harness = Harness::new(|c| {
        c.cluster.health.passive = Some(PASSIVE);
        c.cluster.responses = responses;
    });
    for number in [1, 2] {
        let flow = harness.open(client(number), at(0));
        harness.reply(flow, b"y", at(1));
    }
    harness
}

/// Opens flows, as many on the first backend as on the second, and answers those on the second.
fn ask(harness: &mut Harness, source: fn(u16) -> SocketAddr, count: u16, answer: bool) {
    for number in 100..100 + 2 * count {
        let flow = opened(&harness.request(source(number), b"x", at(10))).expect("a flow");
        if harness.backend_of(flow) == 1 && answer {
            harness.reply(flow, b"y", at(11));
        }
    }
}

fn stranger(number: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number as u8], 9))
}

#[test]
fn a_backend_that_leaves_clients_without_an_answer_is_left_if_answers_are_expected() {
    for responses in [0, 1] {
        let mut harness = with_a_client_that_was_answered(responses);
        ask(&mut harness, client, 2, true);
        harness.run_until(at(60_020));
        let expected = if responses == 1 { "ejected" } else { "up" };
        assert_eq!(harness.state(0).as_str(), expected, "with responses = {responses}");
    }
}

#[test]
fn what_strangers_ask_and_nobody_answers_is_no_sign_against_a_backend() {
    let mut harness = with_a_client_that_was_answered(1);
    ask(&mut harness, stranger, 9, true);
    harness.run_until(at(60_020));
    assert_eq!(harness.state(0).as_str(), "up");
}

#[test]
fn where_nobody_is_answered_silence_is_no_sign() {
    let mut harness = with_a_client_that_was_answered(1);
    ask(&mut harness, client, 9, false);
    harness.run_until(at(60_020));
    assert_eq!([0, 1].map(|index| harness.state(index).as_str()), ["up", "up"]);
}

#[test]
fn a_backend_that_never_answered_anybody_is_left_for_a_backup_and_one_without_an_other_never() {
    for backups in [0, 1] {
        let mut harness = Harness::new(|c| {
            c.cluster.health.passive = Some(PASSIVE);
            c.cluster.responses = 1;
            c.cluster.backends[1].backup = true;
            c.cluster.backends.truncate(1 + backups);
        });
        for number in 0..5 {
            harness.open(client(number), at(0));
        }
        harness.run_until(at(60_001));
        let expected = if backups > 0 { "ejected" } else { "unchecked" };
        assert_eq!(harness.state(0).as_str(), expected, "with {backups} backups");
    }
}

#[test]
fn without_passive_checks_errors_are_counted_and_nothing_more() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    for _ in 0..10 {
        harness.refused(flow, at(1));
    }
    assert_eq!(harness.state(0).as_str(), "unchecked");
    assert_eq!(harness.manager.counters().upstream_errors, 10);
}

#[test]
fn a_draining_backend_keeps_its_flows_until_the_deadline() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    harness.event(first(), BackendEvent::Drain { deadline: Some(at(1_000)) }, at(10));
    assert_eq!(harness.state(0).as_str(), "draining");
    let new = harness.open(client(2), at(20));
    let other = harness.open(client(3), at(20));
    assert_eq!((harness.backend_of(new), harness.backend_of(other)), (1, 1));
    let again = harness.request(client(1), b"again", at(999));
    assert!(matches!(again[..], [Output::Send { .. }]));
    let closed = harness.run_until(at(1_010));
    let reason = CloseReason::Drained;
    assert_eq!(closed, [harness.ended(flow, reason)]);
    harness.event(first(), BackendEvent::Undrain, at(2_000));
    let back = [4, 5].map(|number| harness.open(client(number), at(2_001)));
    assert!(back.iter().any(|&flow| harness.backend_of(flow) == 0));
}

#[test]
fn a_removed_backend_gets_nothing_any_more_whatever_the_policy() {
    for policy in [OnBackendDown::Pin, OnBackendDown::Rehash, OnBackendDown::Close] {
        let mut harness = Harness::with_policy(policy);
        harness.open(client(1), at(0));
        harness.configure(at(1), |c| c.cluster.backends[0].removed = true);
        let outputs = harness.request(client(1), b"again", at(2));
        let to_second = |output: &Output<'_>| matches!(output, Output::OpenFlow { address, .. } if *address == backend(2));
        assert!(outputs.iter().any(to_second), "{policy:?}: {outputs:?}");
    }
}

#[test]
fn a_backend_can_be_added_at_the_end_and_is_used() {
    let mut harness = Harness::new(|_| {});
    harness.configure(at(0), |c| c.cluster.backends.push(BackendConfig::new(backend(3))));
    let used = [1, 2, 3].map(|number| {
        let flow = harness.open(client(number), at(1));
        harness.backend_of(flow)
    });
    assert!(used.contains(&2), "{used:?}");
}

#[test]
fn the_last_backend_can_be_removed_and_added_again() {
    let mut harness = Harness::new(|c| c.cluster.backends.truncate(1));
    let flow = harness.open(client(1), at(0));
    harness.configure(at(1), |c| c.cluster.backends[0].removed = true);
    harness.request(client(1), b"lost", at(2));
    harness.request(client(2), b"lost", at(2));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::NoBackend), 2);
    harness.configure(at(3), |c| c.cluster.backends[0].removed = false);
    let again = harness.request(client(1), b"again", at(4));
    assert!(matches!(again[..], [Output::Send { flow: f, .. }] if f == flow));
    harness.open(client(2), at(4));
}

#[test]
fn the_flows_of_a_backend_whose_place_another_takes_end() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    let outputs = harness.configure(at(1), |c| {
        c.cluster.backends[0] = BackendConfig::new(backend(9));
    });
    let reason = CloseReason::BackendRemoved;
    assert_eq!(outputs, [harness.ended(flow, reason)]);
}

#[test]
fn a_change_of_something_else_does_not_disturb_whose_turn_it_is() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    assert_eq!(harness.backend_of(flow), 0);
    harness.configure(at(1), |c| c.cluster.idle_timeout = Duration::from_secs(1));
    let flow = harness.open(client(2), at(1));
    assert_eq!(harness.backend_of(flow), 1);
    assert_eq!(harness.manager.flow(flow).unwrap().deadline(), at(1_001));
}

#[test]
fn flow_limits_that_are_set_later_count_the_flows_that_are_there() {
    let mut harness = Harness::new(|_| {});
    harness.open(client(1), at(0));
    harness.configure(at(1), |c| c.cluster.limits.flows_per_source = 2);
    harness.open(client(2), at(2));
    harness.request(client(3), b"one too many", at(3));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::SourceFlows), 1);
}

#[test]
fn the_flow_table_can_be_made_smaller_and_larger() {
    let mut harness = Harness::new(|c| c.max_flows = 2);
    let flows = [1, 2].map(|number| harness.open(client(number), at(0)));
    for flow in flows {
        harness.reply(flow, b"answered, so never given up for another", at(0));
    }
    harness.configure(at(1), |c| c.max_flows = 3);
    let third = harness.open(client(3), at(1));
    harness.reply(third, b"here", at(1));
    harness.configure(at(2), |c| c.max_flows = 1);
    assert_eq!(harness.manager.flow_count(), 3, "those that live may stay");
    harness.request(client(4), b"full", at(3));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::MaxFlows), 1);
}

#[test]
fn a_flow_that_ends_is_recorded_where_that_is_wanted() {
    let mut harness = Harness::new(|c| {
        c.record_flows = true;
        c.cluster.responses = 1;
    });
    let flow = harness.open(client(1), at(5));
    let outputs = harness.reply(flow, b"answer", at(8));
    let [_, Output::RecordFlow { flow: recorded, record }, Output::CloseFlow { .. }] = outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(recorded, flow);
    assert_eq!((record.client, record.backend), (client(1), first()));
    assert_eq!((record.to_backend.bytes, record.to_client.bytes), (5, 6));
    assert_eq!((record.lasted_ns, record.first_answer_ns), (3_000_000, Some(3_000_000)));
    assert_eq!(record.reason, CloseReason::Complete);
}

#[test]
fn a_datagram_from_another_of_our_listeners_opens_no_flow() {
    let other: SocketAddr = "192.0.2.53:5353".parse().unwrap();
    let mut harness = Harness::new(|c| c.own_addresses = vec![other.into()]);
    harness.request(other, b"loop", at(0));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::OwnAddress), 1);
}

fn own(first: &str, last_port: u16) -> OwnAddress {
    OwnAddress { address: first.parse().unwrap(), last_port }
}

#[test]
fn a_datagram_from_any_port_of_one_of_our_ranges_opens_no_flow() {
    let range = own("192.0.2.53:20000", 20_999);
    let mut harness = Harness::new(|c| c.own_addresses = vec![range]);
    let from = |port: u16| SocketAddr::new(range.address.ip(), port);
    for port in [20_000, 20_500, 20_999] {
        harness.request(from(port), b"loop", at(0));
    }
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::OwnAddress), 3);
    harness.open(from(19_999), at(0));
    harness.open(from(21_000), at(0));
}

#[test]
fn a_listener_on_a_wildcard_is_known_by_the_address_it_is_called_at_and_by_the_loopback() {
    let mut harness = Harness::new(|c| c.own_addresses = vec![own("0.0.0.0:5353", 5353)]);
    harness.request("192.0.2.53:5353".parse().unwrap(), b"loop", at(0));
    harness.request("127.0.0.1:5353".parse().unwrap(), b"loop", at(0));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::OwnAddress), 2);
    harness.open("192.0.2.99:5353".parse().unwrap(), at(0));
}

#[test]
fn a_sweep_gets_to_every_flow_however_often_news_come() {
    let mut harness = Harness::new(|c| {
        c.max_flows = 3_000;
        c.cluster.health.on_backend_down = OnBackendDown::Close;
        c.cluster.backends.truncate(1);
    });
    for number in 0..3_000 {
        let burst = Burst::single(b"hello").unwrap();
        let source = client(number);
        let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
        harness.manager.handle_input(input, at(0), &mut vec![]);
    }
    for millis in 10..13 {
        harness.event(first(), BackendEvent::Down, at(millis));
        harness.input(ManagerInput::Timeout, at(millis));
    }
    assert_eq!(harness.manager.flow_count(), 0);
}

/// A cluster of a primary and a backup, with a flow that the backup has since the primary was down.
fn with_a_flow_on_the_backup(failback: Failback) -> (Harness, FlowId) {
    let mut harness = Harness::new(|c| {
        c.cluster.health.on_backend_down = OnBackendDown::Rehash;
        c.cluster.health.failback = failback;
        let backup = BackendConfig { backup: true, ..BackendConfig::new(backend(2)) };
        c.cluster.backends = vec![BackendConfig::new(backend(1)), backup];
    });
    harness.event(first(), BackendEvent::Down, at(0));
    let flow = harness.open(client(1), at(1));
    assert_eq!(harness.backend_of(flow), 1);
    harness.event(first(), BackendEvent::Up, at(2));
    (harness, flow)
}

#[test]
fn flows_go_back_to_a_primary_only_where_that_is_asked_for() {
    let (mut harness, flow) = with_a_flow_on_the_backup(Failback::NewFlows);
    harness.request(client(1), b"again", at(3));
    assert_eq!(harness.backend_of(flow), 1);
    let new = harness.open(client(2), at(3));
    assert_eq!(harness.backend_of(new), 0);

    let (mut harness, flow) = with_a_flow_on_the_backup(Failback::All);
    let outputs = harness.request(client(1), b"again", at(3));
    let has_moved = |output: &Output<'_>| matches!(output, Output::OpenFlow { flow: moved, has_moved: true, .. } if *moved == flow);
    assert!(outputs.iter().any(has_moved), "{outputs:?}");
    assert_eq!(harness.backend_of(flow), 0);
    let outputs = harness.request(client(1), b"again", at(4));
    assert!(matches!(outputs[..], [Output::Send { .. }]), "it moves once");
}

#[test]
fn a_flow_stays_with_the_backup_while_no_primary_can_take_it() {
    let (mut harness, flow) = with_a_flow_on_the_backup(Failback::All);
    harness.configure(at(3), |c| c.cluster.backends[0].max_flows = 1);
    let other = harness.open(client(2), at(4));
    assert_eq!(harness.backend_of(other), 0, "and now it is full");
    for now in 5..8 {
        let outputs = harness.request(client(1), b"again", at(now));
        assert!(matches!(outputs[..], [Output::Send { .. }]), "{outputs:?}");
    }
    assert_eq!(harness.backend_of(flow), 1);
    harness.event(first(), BackendEvent::Down, at(8));
    harness.request(client(1), b"again", at(9));
    assert_eq!(harness.backend_of(flow), 1);
}

#[test]
fn an_error_of_the_network_is_a_reason_to_probe_and_decides_nothing_while_probes_pass() {
    let mut harness = Harness::new(|c| {
        c.cluster.health.passive = Some(PASSIVE);
        c.cluster.backends.push(BackendConfig::new(backend(2)));
    });
    let flow = harness.open(client(1), at(0));
    harness.request(client(1), b"more", at(6_000));
    let serves = BackendId::new(harness.backend_of(flow));
    harness.event(serves, BackendEvent::Up, at(6_001));
    let seen = |harness: &Harness| {
        let backends = harness.manager.backends();
        let backend = backends.get(serves).unwrap();
        (backend.doubts(), backend.is_up(), backends.state_changes())
    };
    let refused = |harness: &mut Harness, now| {
        let error = harness.network_error(flow, NetworkError::Refused);
        harness.manager_only(error, now);
    };
    let before = seen(&harness);
    for now in 6_002..6_010 {
        refused(&mut harness, at(now));
    }
    let after = seen(&harness);
    assert_eq!((after.0, after.1), (1, true), "many at once are one reason");
    assert_eq!(after.2, before.2 + 1, "and that is told");
    refused(&mut harness, at(7_000));
    assert_eq!(seen(&harness).0, 2);
    // One that has answered since needs no look.
    let burst = Burst::single(b"here").unwrap();
    let upstream = harness.manager.flow(flow).unwrap().upstream();
    let sender = harness.manager.backends().get(serves).unwrap().address();
    harness
        .manager_only(ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst }, at(8_000));
    refused(&mut harness, at(8_001));
    assert_eq!(seen(&harness).0, 2);
}

#[test]
fn what_the_network_has_said_is_forgotten_when_it_changes_on_our_side_and_silence_is_not() {
    let mut harness = Harness::new(|c| {
        c.cluster.health.passive = Some(PASSIVE);
        c.cluster.backends.push(BackendConfig::new(backend(2)));
    });
    // So long ago that nothing of what it began with is sent to another.
    let flow = harness.open(client(1), at(0));
    let serves = BackendId::new(harness.backend_of(flow));
    harness.refused(flow, at(6_001));
    harness.refused(flow, at(6_002));
    let is_up = |harness: &Harness| harness.manager.backends().get(serves).unwrap().is_up();
    assert!(!is_up(&harness));
    harness.input(ManagerInput::NetworkChanged, at(6_003));
    assert!(is_up(&harness));
    // It takes two errors again, and the first time out is as short as ever.
    harness.refused(flow, at(6_004));
    assert!(is_up(&harness));
    harness.refused(flow, at(6_005));
    let ejection = harness.manager.backends().get(serves).unwrap().ejection().unwrap();
    assert_eq!(ejection.until - ejection.since, PASSIVE.back_off * 3 / 2);
}
