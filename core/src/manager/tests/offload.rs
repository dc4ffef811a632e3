//! Flows that the kernel may forward by itself.

use super::*;

mod differential;

fn offloading(change: impl FnOnce(&mut ManagerConfig)) -> Harness {
    Harness::new(|config| {
        config.offload = true;
        change(config);
    })
}

fn is_offered(outputs: &[Output<'_>]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Offload { .. }))
}

fn traffic(datagrams: u64) -> Traffic {
    Traffic { datagrams, bytes: datagrams * 100 }
}

impl Harness {
    /// Opens a flow that is offered to the kernel, at 2 ms.
    fn offered(&mut self) -> FlowId {
        let flow = self.open(client(1), at(0));
        self.reply(flow, b"answer", at(1));
        let goes_on = self.request(client(1), b"heard it", at(2));
        let [
            Output::Send { .. },
            Output::Offload { flow: offered, backend, client: who, local, .. },
        ] = goes_on[..]
        else {
            panic!("{goes_on:?}")
        };
        assert_eq!((offered, who, local), (flow, client(1), None));
        assert_eq!(self.manager.flow(flow).map(UdpFlow::backend), Some(backend));
        flow
    }

    fn activity(
        &mut self,
        flow: FlowId,
        (there, back): (u64, u64),
        last: Option<Instant>,
        now: Instant,
    ) -> Vec<Output<'static>> {
        let backend = self.manager.flow(flow).map_or(BackendId::new(0), |flow| flow.backend());
        let (to_backend, to_client) = (traffic(there), traffic(back));
        let input = ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last };
        self.input(input, now)
    }
}

#[test]
fn a_flow_is_offered_once_its_client_goes_on_after_an_answer() {
    let mut harness = offloading(|_| {});
    let flow = harness.open(client(1), at(0));
    assert!(!is_offered(&harness.request(client(1), b"no answer yet", at(1))));
    assert!(!is_offered(&harness.reply(flow, b"answer", at(2))));
    assert!(is_offered(&harness.request(client(1), b"heard it", at(3))));
    assert!(!is_offered(&harness.request(client(1), b"and again", at(4))), "not at once again");
}

#[test]
fn a_flow_without_answers_is_offered_with_its_sixteenth_datagram() {
    let mut harness = offloading(|_| {});
    harness.open(client(1), at(0));
    for number in 2..16 {
        assert!(!is_offered(&harness.request(client(1), b"x", at(number))), "{number}");
    }
    assert!(is_offered(&harness.request(client(1), b"x", at(16))));
}

#[test]
fn what_the_kernel_has_not_taken_is_offered_again_from_time_to_time() {
    let mut harness = offloading(|_| {});
    harness.offered();
    let offers = |harness: &mut Harness| {
        (0..32).filter(|n| is_offered(&harness.request(client(1), b"x", at(3 + n)))).count()
    };
    assert_eq!(offers(&mut harness), 2);
}

#[test]
fn a_flow_is_not_offered_where_each_of_its_datagrams_counts_or_is_changed() {
    let changes: [fn(&mut ManagerConfig); 9] = [
        |config| config.offload = false,
        |config| config.cluster.responses = 100,
        |config| config.cluster.requests = 100,
        |config| config.cluster.limits.amplification = 100,
        |config| config.cluster.send_proxy_protocol = SendProxyProtocol::Every,
        |config| config.cluster.affinity = Affinity::SipCallId,
        |config| config.cluster.mode = Mode::Session { mirrored_per_million: 1_000_000 },
        |config| config.cluster.mode = Mode::FanOut { reply_from: ReplyFrom::First },
        |config| config.accept_proxy_protocol = vec!["192.0.2.0/24".parse().unwrap()],
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut harness = offloading(change);
        let header = ProxyHeader::new(client(9), "192.0.2.53:53".parse().unwrap());
        let hello = [header.as_bytes(), b"hello"].concat();
        harness.request(client(1), &hello, at(0));
        let flow = harness.manager.flows().map(|(id, _)| id).next().expect("a flow");
        harness.reply(flow, b"answer", at(1));
        for n in 0..40 {
            let outputs = harness.request(client(1), b"x", at(2 + n));
            assert!(!is_offered(&outputs), "change {number}: {outputs:?}");
        }
    }
}

#[test]
fn a_drain_offers_no_flow() {
    let mut harness = offloading(|_| {});
    let flow = harness.open(client(1), at(0));
    harness.reply(flow, b"answer", at(1));
    harness.input(ManagerInput::Drain { deadline: at(10_000) }, at(2));
    assert!(!is_offered(&harness.request(client(1), b"heard it", at(3))));
}

#[test]
fn what_the_kernel_forwards_is_received_and_forwarded_and_of_its_backend() {
    let mut harness = offloading(|_| {});
    let flow = harness.offered();
    let before = harness.manager.counters().clone();
    let figures = |manager: &UdpManager| {
        let flow = manager.flow(flow).expect("alive");
        let backend = manager.backends().get(flow.backend()).expect("its backend");
        [flow.to_backend(), flow.to_client(), backend.to, backend.from].map(|all| all.datagrams)
    };
    let [to_backend, to_client, to, from] = figures(&harness.manager);
    assert_eq!(harness.activity(flow, (3, 5), Some(at(50)), at(60)), []);
    let after = harness.manager.counters();
    for (direction, count) in [(Direction::ToBackend, 3), (Direction::ToClient, 5)] {
        let (is, was) = (after.ledger(direction), before.ledger(direction));
        assert_eq!(is.received, was.received.plus(traffic(count)));
        assert_eq!(is.forwarded, was.forwarded.plus(traffic(count)));
        assert_eq!(is.by_kernel, traffic(count));
    }
    let carried = harness.manager.flow(flow).expect("alive");
    assert_eq!(carried.deadline(), at(50) + MINUTE);
    let grown = [to_backend + 3, to_client + 5, to + 3, from + 5];
    assert_eq!(figures(&harness.manager), grown);
}

#[test]
fn a_flow_that_seems_idle_closes_only_when_the_kernel_has_nothing_of_it() {
    let mut harness = offloading(|_| {});
    let flow = harness.offered();
    let due = at(2) + MINUTE;
    assert_eq!(harness.input(ManagerInput::Timeout, due), [Output::AskActivity { flow }]);
    assert_eq!(harness.activity(flow, (1, 0), Some(at(30_000)), due), []);
    let due = at(30_000) + MINUTE;
    assert_eq!(harness.manager.poll_timeout().map(|deadline| deadline.at <= due), Some(true));
    assert_eq!(harness.input(ManagerInput::Timeout, due), [Output::AskActivity { flow }]);
    let closed = harness.activity(flow, (0, 0), Some(at(30_000)), due);
    let [Output::Recall { flow: recalled }, Output::CloseFlow { flow: closed, reason, .. }] =
        closed[..]
    else {
        panic!("{closed:?}")
    };
    assert_eq!((recalled, closed, reason), (flow, flow, CloseReason::Idle));
}

#[test]
fn it_asks_again_where_it_is_not_told() {
    let mut harness = offloading(|_| {});
    let flow = harness.offered();
    let due = at(2) + MINUTE;
    assert_eq!(harness.input(ManagerInput::Timeout, due), [Output::AskActivity { flow }]);
    assert_eq!(harness.input(ManagerInput::Timeout, due), []);
    let again = due + Duration::from_secs(1);
    assert_eq!(harness.input(ManagerInput::Timeout, again), [Output::AskActivity { flow }]);
}

#[test]
fn a_datagram_by_the_sockets_after_the_question_keeps_the_flow() {
    let mut harness = offloading(|_| {});
    let flow = harness.offered();
    let due = at(2) + MINUTE;
    harness.input(ManagerInput::Timeout, due);
    harness.reply(flow, b"there", due);
    assert_eq!(harness.activity(flow, (0, 0), None, due), []);
    assert!(harness.manager.flow(flow).is_some());
}

#[test]
fn what_the_kernel_says_last_is_counted_after_the_end() {
    let mut harness = offloading(|_| {});
    let flow = harness.offered();
    let upstream = harness.manager.flow(flow).expect("alive").upstream();
    let failed = ManagerInput::UpstreamOpenFailed { upstream };
    let ended = harness.input(failed, at(5));
    assert!(matches!(ended[..], [Output::Recall { .. }, Output::CloseFlow { .. }]), "{ended:?}");
    assert_eq!(harness.activity(flow, (2, 2), Some(at(4)), at(6)), []);
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 2);
    let backend = harness.manager.backends().get(BackendId::new(0)).expect("a backend");
    assert_eq!(backend.to.datagrams, 2);
}

#[test]
fn a_flow_that_moves_is_recalled_before_its_socket_closes_and_offered_again() {
    let mut harness =
        offloading(|config| config.cluster.health.on_backend_down = OnBackendDown::Rehash);
    let flow = harness.offered();
    let backend = harness.manager.flow(flow).expect("alive").backend();
    let event = BackendEvent::Down;
    let lost = harness.input(ManagerInput::BackendChanged { backend, event }, at(3));
    assert_eq!(lost, [Output::RecallBackend { backend }]);
    let moves = harness.request(client(1), b"next", at(4));
    let [
        Output::Recall { .. },
        ..,
        Output::OpenFlow { has_moved: true, .. },
        Output::Send { .. },
        Output::Offload { .. },
    ] = moves[..]
    else {
        panic!("{moves:?}")
    };
}

#[test]
fn a_pinned_flow_stays_with_the_kernel() {
    let mut harness =
        offloading(|config| config.cluster.health.on_backend_down = OnBackendDown::Pin);
    let flow = harness.offered();
    let backend = harness.manager.flow(flow).expect("alive").backend();
    let event = BackendEvent::Down;
    assert_eq!(harness.input(ManagerInput::BackendChanged { backend, event }, at(3)), []);
}

#[test]
fn a_new_configuration_recalls_all_flows_before_anything_else() {
    let mut harness = offloading(|_| {});
    let flow = harness.offered();
    let mut config = harness.manager.config().clone();
    let backend = harness.manager.flow(flow).expect("alive").backend();
    config.cluster.requests = 100;
    let prepared = PreparedConfig::new(config);
    let outputs = harness.input(ManagerInput::Configured(&prepared), at(3));
    assert_eq!(outputs, [Output::RecallBackend { backend }]);
    for n in 0..40 {
        assert!(!is_offered(&harness.request(client(1), b"x", at(4 + n))), "each one counts now");
    }
}

#[test]
fn a_flow_comes_back_to_the_kernel_after_a_new_configuration() {
    let mut harness = offloading(|_| {});
    harness.offered();
    let prepared = PreparedConfig::new(harness.manager.config().clone());
    harness.input(ManagerInput::Configured(&prepared), at(3));
    assert!((0..16).any(|n| is_offered(&harness.request(client(1), b"x", at(4 + n)))));
}

#[test]
fn what_is_told_after_a_recall_does_not_undo_the_next_offer() {
    let mut harness =
        offloading(|config| config.cluster.health.on_backend_down = OnBackendDown::Rehash);
    let flow = harness.offered();
    let former = harness.manager.flow(flow).expect("alive").backend();
    let event = BackendEvent::Down;
    harness.input(ManagerInput::BackendChanged { backend: former, event }, at(3));
    assert!(is_offered(&harness.request(client(1), b"next", at(4))), "it has moved");
    let (to_backend, to_client, last) = (traffic(1), traffic(1), Some(at(3)));
    let late = ManagerInput::FlowActivity { flow, backend: former, to_backend, to_client, last };
    assert_eq!(harness.input(late, at(5)), []);
    let upstream = harness.manager.flow(flow).expect("alive").upstream();
    let failed = ManagerInput::UpstreamOpenFailed { upstream };
    let ended = harness.input(failed, at(6));
    assert!(matches!(ended[..], [Output::Recall { .. }, Output::CloseFlow { .. }]), "{ended:?}");
}
