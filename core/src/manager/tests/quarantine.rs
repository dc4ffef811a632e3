//! Ports that may still be answered: they go to nobody else for a while.

use super::*;

fn with_quarantine(config: &mut ManagerConfig) {
    config.cluster.upstream_quarantine = Duration::from_secs(1);
    config.cluster.idle_timeout = Duration::from_secs(2);
    config.cluster.backends.truncate(1);
}

fn keeps_socket(outputs: &[Output<'_>]) -> Option<bool> {
    outputs.iter().find_map(|output| match *output {
        Output::CloseFlow { keep_socket, .. } => Some(keep_socket),
        _ => None,
    })
}

#[test]
fn a_flow_that_ends_unanswered_keeps_its_port_until_no_answer_has_come_for_as_long() {
    let mut harness = Harness::new(with_quarantine);
    let flow = harness.open(client(1), at(0));
    assert_eq!(keeps_socket(&harness.run_until(at(2_000))), Some(true));
    assert_eq!((harness.manager.flow_count(), harness.manager.quarantined()), (0, 1));
    let late = harness.reply(flow, b"late", at(2_900));
    assert!(matches!(late[..], [Output::Drop { reason: DropReason::UnknownFlow, .. }]), "{late:?}");
    assert_eq!(harness.run_until(at(3_899)), []);
    assert_eq!(harness.run_until(at(3_901)), [Output::CloseUpstream { flow }]);
    assert_eq!(harness.manager.poll_timeout(), None);
}

#[test]
fn a_flow_that_was_answered_and_idle_for_longer_gives_its_port_up_at_once() {
    let mut harness = Harness::new(with_quarantine);
    let flow = harness.open(client(1), at(0));
    harness.reply(flow, b"answer", at(1));
    assert_eq!(keeps_socket(&harness.run_until(at(2_100))), Some(false));
    assert_eq!(harness.manager.quarantined(), 0);
}

#[test]
fn a_flow_that_has_all_its_answers_gives_its_port_up_at_once() {
    let mut harness = Harness::new(|config| {
        with_quarantine(config);
        config.cluster.responses = 1;
    });
    let flow = harness.open(client(1), at(0));
    assert_eq!(keeps_socket(&harness.reply(flow, b"answer", at(1))), Some(false));
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
    assert_eq!(keeps_socket(&second), Some(true), "the first has waited for too long");
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
            source: Source::Local { ip: Some([127, 0, 0, 9].into()), ports: None },
            backends: vec![BackendConfig::new(backend(9))],
            ..harness.manager.config().cluster.clone()
        },
        ..harness.manager.config().clone()
    };
    let prepared = PreparedConfig::new(other);
    assert_eq!(harness.input(ManagerInput::Configured(&prepared), at(2_100)), []);
    assert_eq!(harness.manager.quarantined(), 1);
    assert_eq!(harness.run_until(at(3_100)), [Output::CloseUpstream { flow }]);
}

#[test]
fn a_clients_own_port_needs_no_quarantine() {
    let mut harness = Harness::new(|config| {
        with_quarantine(config);
        config.cluster.source = Source::Client;
    });
    harness.open(client(1), at(0));
    assert_eq!(keeps_socket(&harness.run_until(at(2_000))), Some(false));
}
