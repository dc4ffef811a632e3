//! Clients that come by a proxy.

use std::collections::BTreeMap;

use super::*;

pub(super) const CALLED: &str = "203.0.113.1:443";

/// One of the sockets of a proxy.
pub(super) fn proxy(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, 1], 2_000 + number))
}

/// A datagram of `client` as a proxy sends it.
pub(super) fn with_header(client: SocketAddr, tlvs: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header = ProxyHeader::new(client, CALLED.parse().unwrap()).as_bytes().to_vec();
    let block_len = u16::from_be_bytes([header[14], header[15]]) + tlvs.len() as u16;
    header[14..16].copy_from_slice(&block_len.to_be_bytes());
    [&header, tlvs, payload].concat()
}

pub(super) fn trusting(change: impl FnOnce(&mut ManagerConfig)) -> Harness {
    Harness::new(|config| {
        config.accept_proxy_protocol = vec!["10.9.0.0/16".parse().unwrap()];
        change(config);
    })
}

fn drops(harness: &Harness, reason: DropReason) -> u64 {
    harness.drops(Direction::ToBackend, reason)
}

/// The payloads that go to backends, each with its flow.
fn sent<'p>(outputs: &[Output<'p>]) -> Vec<(FlowId, &'p [u8])> {
    let burst = |output: &Output<'p>| match output {
        Output::Send { flow, burst, .. } => Some((*flow, *burst)),
        _ => None,
    };
    let bursts = outputs.iter().filter_map(burst);
    bursts.flat_map(|(flow, burst)| burst.datagrams().map(move |bytes| (flow, bytes))).collect()
}

#[test]
fn the_client_that_a_proxy_names_has_the_flow_and_the_proxy_gets_the_answers() {
    let mut harness = trusting(|_| {});
    let datagram = with_header(client(1), b"", b"question");
    let outputs = harness.request(proxy(1), &datagram, at(0));
    let [Output::OpenFlow { flow, .. }, Output::Send { prefix: None, .. }] = outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(sent(&outputs), [(flow, &b"question"[..])]);
    assert_eq!(harness.manager.flow(flow).unwrap().client(), client(1));
    let burst = Burst::single(b"answer").unwrap();
    let answer = harness.to_client(flow, proxy(1), None, 0, burst);
    assert_eq!(harness.reply(flow, b"answer", at(1)), [answer]);
    assert_eq!(harness.manager.counters().to_backend.received, Traffic { datagrams: 1, bytes: 8 });
}

#[test]
fn answers_leave_from_the_address_that_the_proxy_called() {
    let mut harness = trusting(|_| {});
    let local = Some(LocalAddr { ip: [127, 0, 0, 7].into(), interface: 3 });
    let datagram = with_header(client(1), b"", b"question");
    let burst = Burst::single(&datagram).unwrap();
    let input = ManagerInput::ClientBurst { source: proxy(1), local, tos: 0, ttl: 64, burst };
    let Output::OpenFlow { flow, .. } = harness.input(input, at(0))[0] else { panic!() };
    let burst = Burst::single(b"answer").unwrap();
    let answer = harness.to_client(flow, proxy(1), local, 0, burst);
    assert_eq!(harness.reply(flow, b"answer", at(1)), [answer]);
}

#[test]
fn from_elsewhere_a_header_is_payload() {
    let mut harness = trusting(|_| {});
    let datagram = with_header(client(1), b"", b"question");
    let outputs = harness.request(client(2), &datagram, at(0));
    let [(flow, payload)] = sent(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!(payload, datagram);
    assert_eq!(harness.manager.flow(flow).unwrap().client(), client(2));
}

#[test]
fn what_follows_without_a_header_is_the_last_clients() {
    let mut harness = trusting(|_| {});
    let first = with_header(client(1), b"", b"1");
    let flow = sent(&harness.request(proxy(1), &first, at(0)))[0].0;
    let outputs = harness.requests(proxy(1), b"aabbc", 2);
    assert_eq!(sent(&outputs), [(flow, &b"aa"[..]), (flow, b"bb"), (flow, b"c")]);
    assert_eq!(outputs.len(), 1, "as one burst");
}

#[test]
fn one_socket_of_a_proxy_can_carry_several_clients() {
    let mut harness = trusting(|_| {});
    let [one, two] = [1, 2].map(|number| with_header(client(number), b"", b"x"));
    let first = sent(&harness.request(proxy(1), &one, at(0)))[0].0;
    let second = sent(&harness.request(proxy(1), &two, at(0)))[0].0;
    assert_ne!(first, second);
    assert_eq!(sent(&harness.request(proxy(1), &one, at(1)))[0].0, first);
    for flow in [first, second] {
        let answer = harness.reply(flow, b"y", at(2));
        assert!(matches!(answer[..], [Output::SendToClient { client, .. }] if client == proxy(1)));
    }
    assert_eq!(sent(&harness.request(proxy(1), b"whose", at(3)))[0].0, first, "the last named");
}

#[test]
fn a_client_that_comes_by_two_proxies_and_by_itself_has_three_flows() {
    let mut harness = trusting(|_| {});
    let datagram = with_header(client(1), b"", b"x");
    let mut flows = vec![harness.open(client(1), at(0))];
    for number in [1, 2] {
        flows.push(sent(&harness.request(proxy(number), &datagram, at(0)))[0].0);
    }
    for (flow, to) in flows.into_iter().zip([client(1), proxy(1), proxy(2)]) {
        let answer = harness.reply(flow, b"y", at(1));
        assert!(matches!(answer[..], [Output::SendToClient { client, .. }] if client == to));
    }
    assert_eq!(harness.manager.flow_count(), 3);
}

#[test]
fn a_proxy_that_speaks_for_itself_is_the_client() {
    let mut harness = trusting(|c| c.cluster.send_proxy_protocol = SendProxyProtocol::Every);
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0probe";
    let outputs = harness.request(proxy(1), local, at(0));
    let [_, Output::Send { flow, prefix, .. }] = outputs[..] else { panic!() };
    assert_eq!(harness.manager.flow(flow).unwrap().client(), proxy(1));
    assert_eq!(prefix, Some(ProxyHeader::new(proxy(1), config().address)));
    assert_eq!(sent(&outputs), [(flow, &b"probe"[..])]);
}

#[test]
fn without_a_valid_header_a_proxys_datagrams_are_dropped() {
    let mut harness = trusting(|_| {});
    harness.request(proxy(1), b"who sent this?", at(0));
    assert_eq!(drops(&harness, DropReason::ProxyHeaderMissing), 1);
    harness.requests(proxy(1), b"aabbc", 2);
    assert_eq!(drops(&harness, DropReason::ProxyHeaderMissing), 4);

    let mut datagram = with_header(client(1), b"", b"x");
    datagram[12] = 0x31;
    harness.request(proxy(1), &datagram, at(0));
    let whole = with_header(client(1), b"\x02\0\x09short", b"");
    harness.request(proxy(1), &whole, at(0));
    harness.request(proxy(1), &whole[..20], at(0));
    assert_eq!(drops(&harness, DropReason::ProxyHeader), 3);
    harness.request(proxy(1), b"still unknown", at(1));
    assert_eq!(drops(&harness, DropReason::ProxyHeaderMissing), 5);
    assert_eq!(harness.manager.flow_count(), 0);
}

#[test]
fn a_burst_in_which_every_datagram_has_a_header_is_taken_apart() {
    let mut harness = trusting(|_| {});
    let datagrams = [(1, "aa"), (2, "bb"), (1, "c")];
    let bytes =
        datagrams.map(|(port, text)| with_header(client(port), b"", text.as_bytes())).concat();
    let stride = 28 + 2;
    let outputs = harness.requests(proxy(1), &bytes, stride);
    let payloads: Vec<_> = sent(&outputs).into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(payloads, [&b"aa"[..], b"bb", b"c"]);
    assert_eq!(harness.manager.flow_count(), 2);
}

#[test]
fn a_burst_may_change_from_headers_to_none_and_back() {
    let mut harness = trusting(|_| {});
    let one = with_header(client(1), b"", b"aa");
    let two = with_header(client(2), b"", b"bb");
    let plain = [b'p'; 30];
    let bytes = [&one[..], &plain, &plain, &two, b"end"].concat();
    let outputs = harness.requests(proxy(1), &bytes, 30);
    let of: Vec<_> = sent(&outputs)
        .into_iter()
        .map(|(flow, payload)| (harness.manager.flow(flow).unwrap().client(), payload))
        .collect();
    let expected: [(_, &[u8]); 5] = [
        (client(1), b"aa"),
        (client(1), &plain),
        (client(1), &plain),
        (client(2), b"bb"),
        (client(2), b"end"),
    ];
    assert_eq!(of, expected);
}

#[test]
fn a_header_alone_is_an_empty_datagram() {
    let mut harness = trusting(|_| {});
    let datagram = with_header(client(1), b"", b"");
    let outputs = harness.request(proxy(1), &datagram, at(0));
    assert_eq!(sent(&outputs)[0].1, b"");
}

#[test]
fn the_client_the_called_address_and_the_tlvs_are_passed_on() {
    let mut harness = trusting(|c| c.cluster.send_proxy_protocol = SendProxyProtocol::First);
    let tlvs = b"\x02\0\x03abc\x05\0\x01i";
    let datagram = with_header(client(1), tlvs, b"question");
    let outputs = harness.request(proxy(1), &datagram, at(0));
    let Output::Send { prefix: Some(prefix), tlvs: onward, burst, .. } = outputs[1] else {
        panic!("{outputs:?}")
    };
    let wire = [prefix.as_bytes(), &onward.parts().concat(), burst.bytes()].concat();
    assert_eq!(wire, datagram, "what came goes on");
    let next = harness.request(proxy(1), &datagram, at(1));
    let Output::Send { prefix: None, tlvs, .. } = next[0] else { panic!("{next:?}") };
    assert!(tlvs.is_empty());
}

#[test]
fn a_header_is_made_for_what_came_without_one() {
    let mut harness = trusting(|c| c.cluster.send_proxy_protocol = SendProxyProtocol::Every);
    let datagram = with_header(client(1), b"\x02\0\x03abc", b"question");
    harness.request(proxy(1), &datagram, at(0));
    let outputs = harness.request(proxy(1), b"another", at(1));
    let [Output::Send { prefix, tlvs, .. }] = outputs[..] else { panic!("{outputs:?}") };
    assert!(tlvs.is_empty());
    assert_eq!(prefix, Some(ProxyHeader::new(client(1), CALLED.parse().unwrap())));
}

#[test]
fn limits_hold_for_the_client_and_not_for_the_proxy() {
    let mut harness = trusting(|c| c.cluster.limits.flows_per_source = 2);
    for number in 1..=2 {
        harness.request(proxy(1), &with_header(client(number), b"", b"x"), at(0));
    }
    harness.request(proxy(2), &with_header(client(3), b"", b"x"), at(0));
    assert_eq!(drops(&harness, DropReason::SourceFlows), 1);
    let another = "198.51.100.9:9".parse().unwrap();
    harness.request(proxy(1), &with_header(another, b"", b"x"), at(0));
    assert_eq!(harness.manager.flow_count(), 3);
}

#[test]
fn allow_and_deny_judge_the_client_and_not_the_proxy() {
    let mut harness = trusting(|c| {
        c.allow = vec!["192.0.2.0/24".parse().unwrap()];
        c.deny = vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.128/25".parse().unwrap()];
    });
    harness.request(proxy(1), &with_header(client(1), b"", b"x"), at(0));
    assert_eq!(harness.manager.flow_count(), 1);
    for denied in ["192.0.2.200:1", "198.51.100.1:1"] {
        harness.request(proxy(2), &with_header(denied.parse().unwrap(), b"", b"x"), at(0));
        harness.request(proxy(2), b"more", at(0));
    }
    assert_eq!(drops(&harness, DropReason::Denied), 4);
}

#[test]
fn a_client_has_the_same_backend_by_a_proxy_as_by_itself() {
    let mut harness = trusting(|c| c.cluster.balance = Balance::Rendezvous);
    for number in 0..30 {
        let direct = harness.open(client(number), at(0));
        let datagram = with_header(client(number), b"", b"x");
        let relayed = sent(&harness.request(proxy(number % 3), &datagram, at(0)))[0].0;
        let backend = |flow| harness.manager.flow(flow).unwrap().backend();
        assert_eq!(backend(direct), backend(relayed));
    }
}

#[test]
fn a_proxy_with_our_own_address_is_a_loop() {
    let mut harness = trusting(|c| c.own_addresses = vec![proxy(1).into()]);
    harness.request(proxy(1), &with_header(client(1), b"", b"x"), at(0));
    assert_eq!(drops(&harness, DropReason::OwnAddress), 1);
    let mut zero = proxy(1);
    zero.set_port(0);
    harness.request(zero, &with_header(client(1), b"", b"x"), at(0));
    assert_eq!(drops(&harness, DropReason::PortZero), 1);
}

#[test]
fn a_header_does_not_count_as_length() {
    let mut harness = trusting(|c| c.max_datagram_size = 4);
    let outputs =
        harness.request(proxy(1), &with_header(client(1), b"\x02\0\x03abc", b"four"), at(0)).len();
    assert_eq!(outputs, 2);
    harness.request(proxy(1), &with_header(client(1), b"", b"five!"), at(0));
    assert_eq!(drops(&harness, DropReason::TooLarge), 1);
}

#[test]
fn the_next_flow_of_a_client_needs_no_header() {
    let mut harness = trusting(|c| c.cluster.requests = 1);
    let bytes = [&with_header(client(1), b"", b"aa")[..], &[b'p'; 30], &[b'q'; 30]].concat();
    let outputs = harness.requests(proxy(1), &bytes, 30);
    assert_eq!(sent(&outputs).len(), 3);
    assert_eq!(harness.manager.flow_count(), 3);
    assert!(harness.manager.flows().all(|(_, flow)| flow.client() == client(1)));
}

#[test]
fn a_proxys_word_holds_an_idle_timeout_longer_than_its_last_flow() {
    let mut harness = trusting(|c| c.cluster.responses = 1);
    let flow = sent(&harness.request(proxy(1), &with_header(client(1), b"", b"x"), at(0)))[0].0;
    harness.reply(flow, b"y", at(1_000));
    assert_eq!(harness.manager.flow_count(), 0);
    let outputs = harness.request(proxy(1), b"x", at(60_999));
    let again = sent(&outputs)[0].0;
    assert_eq!(harness.manager.flow(again).unwrap().client(), client(1));
    harness.reply(again, b"y", at(61_000));
    harness.request(proxy(1), b"x", at(121_000));
    assert_eq!(drops(&harness, DropReason::ProxyHeaderMissing), 1);
}

#[test]
fn a_proxys_word_holds_for_a_client_that_had_to_wait_for_room() {
    let mut harness = trusting(|c| c.max_flows = 1);
    let flow = harness.open(client(9), at(0));
    harness.reply(flow, b"y", at(0));
    harness.request(client(9), b"thanks", at(0));
    harness.request(proxy(1), &with_header(client(1), b"", b"x"), at(1_000));
    assert_eq!(drops(&harness, DropReason::MaxFlows), 1);
    let outputs = harness.request(proxy(1), b"x", at(2_000));
    assert_eq!(harness.manager.flow(sent(&outputs)[0].0).unwrap().client(), client(1));
}

#[test]
fn flows_of_a_proxy_outlive_the_trust_in_it() {
    let mut harness = Harness::new(|_| {});
    let mut trusting = config();
    trusting.accept_proxy_protocol = vec!["10.9.0.0/16".parse().unwrap()];
    harness.input(ManagerInput::Configured(&PreparedConfig::new(trusting)), at(0));
    let datagram = with_header(client(1), b"", b"x");
    let flow = sent(&harness.request(proxy(1), &datagram, at(1)))[0].0;
    harness.input(ManagerInput::Configured(&PreparedConfig::new(config())), at(2));
    let answer = harness.reply(flow, b"y", at(3));
    assert!(matches!(answer[..], [Output::SendToClient { client, .. }] if client == proxy(1)));
    let outputs = harness.request(proxy(1), &datagram, at(4));
    assert_eq!(sent(&outputs)[0].1, datagram, "payload, as from anybody");
}

#[test]
fn a_flow_of_a_proxys_client_moves_to_another_backend() {
    let mut harness = trusting(|c| {
        c.cluster.health.on_backend_down = OnBackendDown::Rehash;
        c.cluster.send_proxy_protocol = SendProxyProtocol::First;
    });
    let flow = sent(&harness.request(proxy(1), &with_header(client(1), b"", b"x"), at(0)))[0].0;
    let backend = harness.manager.flow(flow).unwrap().backend();
    harness.input(ManagerInput::BackendChanged { backend, event: BackendEvent::Down }, at(1));
    let outputs = harness.request(proxy(1), b"x", at(2));
    let Some(Output::Send { prefix, .. }) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!(*prefix, Some(ProxyHeader::new(client(1), CALLED.parse().unwrap())));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    ProxyInfo { proxy: u16, client: u16 },
    Untold { proxy: u16 },
    Direct { client: u16 },
    Reply { flow: usize },
    Wait { millis: u64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u16..4, 0u16..4).prop_map(|(proxy, client)| Step::ProxyInfo { proxy, client }),
        4 => (0u16..4).prop_map(|proxy| Step::Untold { proxy }),
        1 => (0u16..4).prop_map(|client| Step::Direct { client }),
        3 => (0usize..100).prop_map(|flow| Step::Reply { flow }),
        1 => (1u64..40_000).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    /// Whatever comes in whatever order, each datagram reaches a flow of the client that its proxy
    /// named last, and each answer the socket that this flow's datagrams came from.
    #[test]
    fn datagrams_and_answers_are_never_mixed_up(
        steps in prop::collection::vec(any_step(), 1..120),
        requests in 0u32..3,
        responses in 0u32..3,
        max_flows in 2u32..8,
    ) {
        let mut harness = trusting(|c| {
            (c.cluster.requests, c.cluster.responses) = (requests, responses);
            c.max_flows = max_flows;
        });
        let mut now = at(0);
        let mut named = BTreeMap::new();
        // Of each flow: who sends its datagrams, and for whom.
        let mut flows: Vec<(FlowId, SocketAddr, SocketAddr)> = vec![];
        for step in steps {
            let (from, of, datagram) = match step {
                Step::ProxyInfo { proxy: from, client: of } => {
                    named.insert(from, of);
                    (proxy(from), Some(of), with_header(client(of), b"", b"x"))
                }
                Step::Untold { proxy: from } => {
                    (proxy(from), named.get(&from).copied(), b"x".to_vec())
                }
                Step::Direct { client: of } => (client(of), Some(of), b"x".to_vec()),
                Step::Reply { flow } => {
                    if flows.is_empty() { continue }
                    let (flow, sender, _) = flows[flow % flows.len()];
                    for output in harness.reply(flow, b"y", now) {
                        if let Output::SendToClient { client, .. } = output {
                            prop_assert_eq!(client, sender);
                        }
                    }
                    continue;
                }
                Step::Wait { millis } => {
                    now += Duration::from_millis(millis);
                    harness.run_until(now);
                    continue;
                }
            };
            for (flow, payload) in sent(&harness.request(from, &datagram, now)) {
                prop_assert_eq!(payload, b"x");
                let of = client(of.expect("nobody was ever named"));
                match flows.iter().find(|(id, ..)| *id == flow) {
                    Some(known) => prop_assert_eq!(*known, (flow, from, of)),
                    None => flows.push((flow, from, of)),
                }
                prop_assert_eq!(harness.manager.flow(flow).unwrap().client(), of);
            }
        }
    }

    /// No bytes from a proxy break anything, and each datagram is counted once.
    #[test]
    fn any_bytes_of_a_proxy_are_counted(
        cuts in prop::collection::vec((0usize..60, any::<bool>(), any::<u8>()), 1..20),
        stride in 1u16..80,
    ) {
        let mut harness = trusting(|c| c.cluster.send_proxy_protocol = SendProxyProtocol::Every);
        let mut bytes = vec![];
        for (at, turn, value) in cuts {
            let mut datagram = with_header(client(1), b"\x02\0\x03abc", b"payload");
            if turn {
                let at = at % datagram.len();
                datagram[at] = value;
            } else {
                datagram.truncate(at);
            }
            bytes.extend(datagram);
        }
        let burst = Burst::segmented(&bytes, stride).unwrap();
        harness.requests(proxy(1), &bytes, stride);
        let received = harness.manager.counters().to_backend.received.datagrams;
        prop_assert_eq!(received, u64::from(burst.count()));
    }
}
