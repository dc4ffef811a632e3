//! Questions that are asked again of another backend.

use super::*;
use crate::config::UpstreamMode;
use crate::counters::Traffic;
use crate::output::Repeat;
use crate::transaction::Transactions;

const NAMED: Transactions =
    Transactions::Pattern { request_offset: 0, answer_offset: 0, length: 2 };

/// Two backends, the first of which is asked first, and a question that it has got.
fn asked(change: impl FnOnce(&mut ManagerConfig)) -> (Harness, FlowId) {
    let mut harness = Harness::new(|config| {
        let cluster = &mut config.cluster;
        cluster.backends = vec![BackendConfig::new(backend(1)), BackendConfig::new(backend(2))];
        cluster.balance = Balance::RoundRobin;
        cluster.upstream = UpstreamMode::Shared;
        cluster.transactions = Some(NAMED);
        cluster.responses = 1;
        cluster.idle_timeout = Duration::from_secs(10);
        cluster.upstream_quarantine = Duration::from_secs(1);
        cluster.retry = Some(Retry { after: Duration::from_millis(300), times: 1 });
        change(config);
    });
    let outputs = harness.request(client(1), b"question", at(0));
    let flow = opened(&outputs).expect("a flow");
    assert_eq!(harness.upstreams[&flow].2, backend(1));
    harness.deliver(&outputs, at(0));
    (harness, flow)
}

/// What an order to ask again says.
fn repeated(outputs: &[Output<'_>]) -> Option<(FlowId, SocketAddr, SendId)> {
    outputs.iter().find_map(|output| match *output {
        Output::Repeat(Repeat { flow, to, send_id, .. }) => Some((flow, to?, send_id)),
        _ => None,
    })
}

/// The network says that a backend refuses what was asked.
fn refusal(upstream: UpstreamId, remote: SocketAddr, asked: &[u8]) -> ManagerInput<'static> {
    let (remote, question) = (Some(remote), NAMED.request_id(asked));
    ManagerInput::UpstreamError { upstream, remote, question, error: NetworkError::Refused }
}

/// An answer of a backend by a socket.
fn answered(
    harness: &mut Harness,
    (upstream, sender): (UpstreamId, SocketAddr),
    now: Instant,
) -> Vec<Output<'static>> {
    let burst = Burst::single(b"quite so").unwrap();
    harness.input(ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst }, now)
}

fn is_passed_on(outputs: &[Output<'_>]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::SendToClient { .. }))
}

#[test]
fn a_question_that_is_refused_goes_to_another_backend_and_is_counted_once() {
    let (mut harness, flow) = asked(|_| {});
    let (upstream, _, first) = harness.upstreams[&flow];
    // What was refused was another question.
    let outputs = harness.input(refusal(upstream, first, b"another"), at(5));
    assert_eq!(repeated(&outputs), None);
    let outputs = harness.input(refusal(upstream, first, b"question"), at(10));
    let second = BackendId::new(1);
    assert_eq!(repeated(&outputs), Some((flow, backend(2), SendId::Copy(second))));
    let kept = harness.manager.kept(flow).expect("its question");
    assert_eq!((kept.front, kept.datagram, kept.due), (&b""[..], &b"question"[..], None));
    let (send_id, direction) = (SendId::Copy(second), Direction::ToBackend);
    let (datagrams, bytes, backend) = (1, 8, Some(second));
    let delivered = ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes };
    harness.input(delivered, at(10));
    let ledger = &harness.manager.counters().to_backend;
    let once = Traffic { datagrams: 1, bytes: 8 };
    assert_eq!(
        (ledger.received, ledger.forwarded, ledger.queued),
        (once, once, Traffic::default())
    );
    assert_eq!(harness.manager.counters().retries, 1);
    // There is no third.
    let (upstream, _, second) = harness.upstreams[&flow];
    let outputs = harness.input(refusal(upstream, second, b"question"), at(20));
    assert_eq!(repeated(&outputs), None);
    assert!(is_passed_on(&answered(&mut harness, (upstream, second), at(30))));
    assert_eq!(harness.manager.kept(flow), None);
    assert_eq!(harness.manager.flow_count(), 0);
}

#[test]
fn of_two_backends_that_were_asked_the_first_to_answer_is_heard_and_no_other() {
    for first_wins in [false, true] {
        let (mut harness, flow) = asked(|_| {});
        let first = (harness.upstreams[&flow].0, backend(1));
        assert_eq!(harness.run_until(at(299)), []);
        let outputs = harness.run_until(at(310));
        assert_eq!(repeated(&outputs).map(|it| it.1), Some(backend(2)));
        let second = (harness.upstreams[&flow].0, backend(2));
        let (winner, loser) = if first_wins { (first, second) } else { (second, first) };
        let outputs = answered(&mut harness, winner, at(400));
        assert!(is_passed_on(&outputs), "{outputs:?}");
        assert_eq!(harness.manager.flow_count(), 0, "it is complete");
        let late = answered(&mut harness, loser, at(410));
        assert!(matches!(late[..], [Output::Drop { reason: DropReason::UnknownFlow, .. }]));
        let twice = answered(&mut harness, winner, at(420));
        assert!(!is_passed_on(&twice));
        harness.run_until(at(30_000));
        assert_eq!(harness.manager.quarantined(), 0);
    }
}

#[test]
fn the_first_backend_may_answer_as_long_as_the_flow_waits() {
    let (mut harness, flow) = asked(|_| {});
    let first = (harness.upstreams[&flow].0, backend(1));
    harness.run_until(at(310));
    // Longer than the quarantine.
    harness.run_until(at(9_000));
    assert!(is_passed_on(&answered(&mut harness, first, at(9_001))));
}

#[test]
fn a_question_that_could_not_be_sent_stays_queued_until_another_backend_has_it() {
    let mut harness = asked(|_| {}).0;
    let outputs = harness.request(client(2), b"question", at(0));
    let flow = opened(&outputs).expect("a flow");
    let (upstream, first, _) = harness.upstreams[&flow];
    let (send_id, backend) = (SendId::Flow { flow, upstream }, Some(first));
    let (direction, reason) = (Direction::ToBackend, DropReason::Unreachable);
    let (datagrams, bytes) = (1, 8);
    let undelivered =
        ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes };
    let outputs = harness.input(undelivered, at(1));
    let (of, _, send_id) = repeated(&outputs).expect("another backend is asked");
    assert_eq!((of, send_id), (flow, harness.send_id(flow)));
    let queued = harness.manager.counters().to_backend.queued;
    assert_eq!(queued, Traffic { datagrams: 1, bytes: 8 });
    // That one cannot be reached either, and there is no third.
    let undelivered =
        ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes };
    assert_eq!(repeated(&harness.input(undelivered, at(2))), None);
    assert_eq!(harness.drops(direction, reason), 1);
    assert_eq!(harness.manager.kept(flow), None);
}

#[test]
fn another_question_of_the_same_name_is_not_taken_for_the_one_that_is_kept() {
    let mut harness = asked(|_| {}).0;
    let flow = opened(&harness.request(client(2), b"question", at(0))).expect("a flow");
    let outputs = harness.request(client(2), b"question again", at(1));
    assert_eq!(opened(&outputs), None, "it is asked of the same flow");
    let (send_id, backend) = (harness.send_id(flow), Some(harness.upstreams[&flow].1));
    let (direction, reason) = (Direction::ToBackend, DropReason::Unreachable);
    let mut give_up = |datagrams, bytes| {
        let undelivered =
            ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes };
        repeated(&harness.input(undelivered, at(2)))
    };
    // What was kept cannot be sent, and then what was not.
    assert_eq!((give_up(1, 8), give_up(1, 14)), (None, None));
    assert_eq!(harness.manager.kept(flow), None);
}

#[test]
fn where_there_is_no_other_backend_nothing_is_asked_again() {
    let (mut harness, flow) = asked(|config| config.cluster.backends.truncate(1));
    let (upstream, _, first) = harness.upstreams[&flow];
    assert_eq!(harness.input(refusal(upstream, first, b"question"), at(10)), []);
    assert_eq!(harness.run_until(at(5_000)), []);
    assert!(is_passed_on(&answered(&mut harness, (upstream, first), at(5_001))));
    assert_eq!(harness.manager.counters().retries, 0);
}

#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let (mut harness, _) = asked(|config| config.max_flows = 256);
    let long = vec![b'q'; 65_000];
    for number in 0..70_u16 {
        let mut question = long.clone();
        question[..2].copy_from_slice(&number.to_be_bytes());
        let burst = Burst::single(&question).unwrap();
        let (source, local, tos, ttl) = (client(9), None, 0, 64);
        let input = ManagerInput::ClientBurst { source, local, tos, ttl, burst };
        harness.manager_only(input, at(1));
    }
    let kept = |(id, _): &(FlowId, &UdpFlow)| harness.manager.kept(*id).is_some();
    let kept: Vec<_> = harness.manager.flows().filter(kept).map(|(id, _)| id.index()).collect();
    // As many of the newest as two thousand bytes for each slot are room for.
    let room = 2 * 256 * 2_048 / 65_000;
    assert_eq!(kept, (71 - room..71).collect::<Vec<_>>());
    assert_eq!(harness.manager.flow_count(), 71);
}

/// A session of a client, whose backend refuses after a while what it has sent.
#[track_caller]
fn refused_session(
    datagrams: &[&[u8]],
    backends: usize,
    after: Instant,
) -> (Harness, FlowId, Vec<Output<'static>>) {
    let mut harness = Harness::new(|config| {
        let list = (1..=backends as u8).map(|number| BackendConfig::new(backend(number)));
        config.cluster.backends = list.collect();
        config.cluster.balance = Balance::RoundRobin;
    });
    let mut flow = None;
    for datagram in datagrams {
        let outputs = harness.request(client(1), datagram, at(0));
        flow = flow.or(opened(&outputs));
        harness.deliver(&outputs, at(0));
    }
    let flow = flow.expect("a flow");
    let outputs = harness.input(harness.network_error(flow, NetworkError::Refused), after);
    (harness, flow, outputs)
}

fn is_repeated(outputs: &[Output<'_>]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Repeat(_)))
}

#[test]
fn what_a_session_begins_with_goes_to_another_backend_when_one_refuses_it() {
    let (mut harness, flow, outputs) = refused_session(&[b"hello"], 2, at(1));
    assert!(is_repeated(&outputs), "{outputs:?}");
    assert_eq!(harness.upstreams[&flow].2, backend(2));
    let kept = harness.manager.kept(flow).expect("what it began with");
    assert_eq!((kept.datagram, kept.due), (&b"hello"[..], None));
    let (upstream, _, second) = harness.upstreams[&flow];
    assert!(is_passed_on(&answered(&mut harness, (upstream, second), at(2))));
    assert_eq!((harness.manager.kept(flow), harness.manager.counters().retries), (None, 1));
    // Later refusals are about what was sent since.
    harness.request(client(1), b"more", at(3));
    let outputs = harness.input(harness.network_error(flow, NetworkError::Refused), at(4));
    assert!(!is_repeated(&outputs));
}

#[test]
fn what_has_come_first_may_have_arrived_where_an_error_may_be_about_what_came_next() {
    let (harness, flow, outputs) = refused_session(&[b"hello", b"are you there?"], 2, at(1));
    assert!(!is_repeated(&outputs));
    assert_eq!((harness.manager.kept(flow), harness.upstreams[&flow].2), (None, backend(1)));
}

#[test]
fn an_error_that_comes_late_sends_nothing_elsewhere() {
    for (after, is_soon) in [(at(5_000), true), (at(5_001), false)] {
        let (harness, flow, outputs) = refused_session(&[b"hello"], 2, after);
        assert_eq!(is_repeated(&outputs), is_soon);
        assert_eq!(harness.upstreams[&flow].2 == backend(2), is_soon);
    }
}

#[test]
fn three_others_are_tried_and_no_more() {
    let (mut harness, flow, mut outputs) = refused_session(&[b"hello"], 6, at(1));
    let mut tried = 0;
    while is_repeated(&outputs) {
        tried += 1;
        outputs = harness.input(harness.network_error(flow, NetworkError::Refused), at(2));
    }
    assert_eq!((tried, harness.manager.counters().retries), (3, 3));
}

#[test]
fn nothing_is_kept_where_there_is_one_backend() {
    let (harness, flow, outputs) = refused_session(&[b"hello"], 1, at(1));
    assert!(!is_repeated(&outputs) && harness.manager.kept(flow).is_none());
}
