//! Ports that may still be answered: they go to nobody else for a while.

use super::*;

fn with_quarantine(config: &mut ManagerConfig) {
    config.cluster.upstream_quarantine = Duration::from_secs(1);
    config.cluster.idle_timeout = Duration::from_secs(2);
    config.cluster.backends.truncate(1);
}

/// Whether a flow has ended, and its socket stays open.
fn keeps_socket(harness: &mut Harness, outputs: &[Output<'_>]) -> Option<bool> {
    let ended = outputs.iter().find_map(|output| match *output {
        Output::CloseFlow { upstream, .. } => Some(upstream),
        _ => None,
    })?;
    Some(!harness.sockets().contains(&Socket::Close(ended)))
}

#[test]
fn a_flow_that_ends_unanswered_keeps_its_port_until_no_answer_has_come_for_as_long() {
    let mut harness = Harness::new(with_quarantine);
    let flow = harness.open(client(1), at(0));
    let ended = harness.run_until(at(2_000));
    assert_eq!(keeps_socket(&mut harness, &ended), Some(true));
    assert_eq!((harness.manager.flow_count(), harness.manager.quarantined()), (0, 1));
    let late = harness.reply(flow, b"late", at(2_900));
    assert!(matches!(late[..], [Output::Drop { reason: DropReason::UnknownFlow, .. }]), "{late:?}");
    assert_eq!(harness.run_until(at(3_899)), []);
    assert_eq!(harness.run_until(at(3_901)), []);
    assert!(harness.closes_socket_of(flow));
    assert_eq!(harness.manager.poll_timeout(), None);
}

#[test]
fn a_flow_that_was_answered_and_idle_for_longer_gives_its_port_up_at_once() {
    let mut harness = Harness::new(with_quarantine);
    let flow = harness.open(client(1), at(0));
    harness.reply(flow, b"answer", at(1));
    let ended = harness.run_until(at(2_100));
    assert_eq!(keeps_socket(&mut harness, &ended), Some(false));
    assert_eq!(harness.manager.quarantined(), 0);
}

#[test]
fn a_flow_that_has_all_its_answers_gives_its_port_up_at_once() {
    let mut harness = Harness::new(|config| {
        with_quarantine(config);
        config.cluster.responses = 1;
    });
    let flow = harness.open(client(1), at(0));
    let ended = harness.reply(flow, b"answer", at(1));
    assert_eq!(keeps_socket(&mut harness, &ended), Some(false));
}

#[test]
fn ports_in_quarantine_take_no_room_of_flows_and_have_a_limit_of_their_own() {
    let mut harness = Harness::new(|config| {
        with_quarantine(config);
        config.max_flows = 2;
        config.cluster.idle_timeout = MINUTE;
    });
    for number in 0..4 {
        // The last two take the places of flows that have waited for too long.
        harness.request(client(number), b"?", at(u64::from(number / 2) * 1_500));
    }
    assert_eq!((harness.manager.flow_count(), harness.manager.quarantined()), (2, 2));
}

#[test]
fn a_port_in_quarantine_is_not_given_up_for_a_newcomer() {
    let mut harness = Harness::new(|config| {
        with_quarantine(config);
        config.max_flows = 1;
        config.cluster.upstream_quarantine = MINUTE;
        config.cluster.idle_timeout = MINUTE;
    });
    harness.open(client(1), at(0));
    let second = harness.request(client(2), b"?", at(2_000));
    assert_eq!(
        keeps_socket(&mut harness, &second),
        Some(true),
        "the first has waited for too long"
    );
    let third = harness.request(client(3), b"?", at(4_000));
    assert!(matches!(third[..], [Output::Drop { reason: DropReason::MaxFlows, .. }]), "{third:?}");
    assert_eq!((harness.manager.flow_count(), harness.manager.quarantined()), (1, 1));
}

#[test]
fn a_reload_leaves_ports_in_quarantine() {
    let mut harness = Harness::new(with_quarantine);
    let flow = harness.open(client(1), at(0));
    harness.run_until(at(2_000));
    let other = ManagerConfig {
        cluster: ClusterConfig {
            source: Source::Local(vec![SourceAddress {
                ip: Some([127, 0, 0, 9].into()),
                ports: None,
            }]),
            backends: vec![BackendConfig::new(backend(9))],
            ..harness.manager.config().cluster.clone()
        },
        ..harness.manager.config().clone()
    };
    let prepared = PreparedConfig::new(other);
    assert_eq!(harness.input(ManagerInput::Configured(&prepared), at(2_100)), []);
    assert_eq!(harness.manager.quarantined(), 1);
    assert_eq!(harness.run_until(at(3_100)), []);
    assert!(harness.closes_socket_of(flow));
}

#[test]
fn a_clients_own_port_needs_no_quarantine() {
    let mut harness = Harness::new(|config| {
        with_quarantine(config);
        config.cluster.source = Source::Client;
    });
    harness.open(client(1), at(0));
    let ended = harness.run_until(at(2_000));
    assert_eq!(keeps_socket(&mut harness, &ended), Some(false));
}

#[test]
fn a_socket_that_a_flow_leaves_for_another_backend_is_in_quarantine_too() {
    let mut harness = Harness::new(|config| {
        with_quarantine(config);
        config.cluster.backends.push(BackendConfig::new(backend(2)));
        config.cluster.health.on_backend_down = OnBackendDown::Rehash;
    });
    let flow = harness.open(client(1), at(0));
    let (former, first, address) = harness.upstreams[&flow];
    harness.event(first, BackendEvent::Down, at(1));
    harness.sockets();
    harness.request(client(1), b"again", at(2));
    assert!(matches!(harness.sockets()[..], [Socket::Open { .. }]), "the former stays open");
    assert_eq!((harness.manager.flow_count(), harness.manager.quarantined()), (1, 1));
    let burst = Burst::single(b"late").unwrap();
    let late = ManagerInput::UpstreamBurst { upstream: former, sender: address, tos: 0, burst };
    let late = harness.input(late, at(3));
    assert!(matches!(late[..], [Output::Drop { reason: DropReason::UnknownFlow, .. }]), "{late:?}");
    assert_eq!(harness.reply(flow, b"answer", at(4)).len(), 1, "the new one's answer goes through");
    assert_eq!(harness.run_until(at(1_004)), []);
    assert_eq!(harness.sockets(), [Socket::Close(former)]);
}
