//! What flows are placed by: ids and keys in payloads.

use super::*;
use crate::affinity::PlacedBy;
use flowgate_quic_lb::{FirstOctet, QuicLbConfig};

const SERVERS: [[u8; 2]; 3] = [[0, 1], [0, 2], [0, 3]];

fn quic_lb() -> QuicLbConfig {
    QuicLbConfig::new(1, 2, 6).unwrap().with_key(&[9; 16])
}

/// A client with an address of its own.
fn peer(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([198, 51, 100 + high, low], 4_433))
}

/// Three backends, whose server ids count.
fn quic(config: &mut ManagerConfig) {
    config.cluster.affinity = Affinity::Quic;
    config.cluster.balance = Balance::Rendezvous;
    config.cluster.backends = (1..=3).map(|number| BackendConfig::new(backend(number))).collect();
    for (backend, id) in config.cluster.backends.iter_mut().zip(SERVERS) {
        backend.server_id = Some(ServerId::new(&id).unwrap());
    }
    config.cluster.quic_lb.0.insert(quic_lb());
}

/// A short header with an id of a backend's, and some bytes of payload.
fn short_header(number: u8, nonce: u8) -> Vec<u8> {
    let server = SERVERS[usize::from(number) - 1];
    let id = quic_lb().encode(&server, &[nonce; 6], FirstOctet::Length).unwrap();
    [&[0x41][..], &id, &[nonce; 20]].concat()
}

fn long_header(kind: u8, destination: &[u8], source: &[u8]) -> Vec<u8> {
    let (d, s) = (destination.len() as u8, source.len() as u8);
    [&[0xC0 | kind << 4, 0, 0, 0, 1, d][..], destination, &[s], source, &[0; 40]].concat()
}

/// The backend that a client's datagram goes to, and the flow that takes it.
fn sent_to(
    harness: &mut Harness,
    source: SocketAddr,
    datagram: &[u8],
    now: Instant,
) -> (SocketAddr, FlowId) {
    let flow = match harness.request(source, datagram, now)[..] {
        [.., Output::Send { flow, .. }] => flow,
        ref other => panic!("it was not forwarded: {other:?}"),
    };
    let backend = harness.manager.flow(flow).expect("it is alive").backend();
    (harness.manager.backends().get(backend).unwrap().address(), flow)
}

/// A client whose address is placed at another backend than this one, so that nothing but the id
/// leads there.
fn stranger_to(number: u8) -> SocketAddr {
    let mut harness = Harness::new(quic);
    let is_elsewhere = |&n: &u16| sent_to(&mut harness, peer(n), b"", at(0)).0 != backend(number);
    peer((0..50).find(is_elsewhere).expect("a client of another backend"))
}

#[test]
fn a_connection_id_leads_to_its_server_from_every_address() {
    let mut harness = Harness::new(quic);
    for number in 1..=3 {
        for from in 0..30 {
            let datagram = short_header(number, from as u8);
            let source = peer(100 * u16::from(number) + from);
            let (to, flow) = sent_to(&mut harness, source, &datagram, at(0));
            assert_eq!(to, backend(number));
            let placed = harness.manager.placed(flow);
            assert_eq!((placed.by(), placed.id()), (PlacedBy::ServerId, &datagram[1..10]));
        }
    }
}

#[test]
fn an_id_of_no_server_or_of_another_rotation_is_placed_by_source() {
    let mut harness = Harness::new(quic);
    let nobody = quic_lb().encode(&[7, 7], &[1; 6], FirstOctet::Length).unwrap();
    let unroutable = [[0xFF; 9], [0x1F; 9]];
    for (n, id) in [&*nobody, &unroutable[0], &unroutable[1]].into_iter().enumerate() {
        let source = peer(n as u16);
        let by_source = sent_to(&mut Harness::new(quic), source, b"", at(0)).0;
        let datagram = [&[0x41][..], id, &[0; 20]].concat();
        let (to, flow) = sent_to(&mut harness, source, &datagram, at(0));
        assert_eq!(to, by_source);
        assert_eq!(harness.manager.placed(flow).by(), PlacedBy::Orphan);
    }
}

#[test]
fn a_connection_finds_its_server_where_that_takes_nothing_new() {
    let mut harness = Harness::new(|config| {
        quic(config);
        config.cluster.backends[1].max_flows = 1;
        config.cluster.backends[2].weight = 0;
    });
    for (n, number) in [2, 2, 3].into_iter().enumerate() {
        let datagram = short_header(number, n as u8);
        assert_eq!(sent_to(&mut harness, peer(n as u16), &datagram, at(0)).0, backend(number));
    }
    // A first flight that happens to name it is something new.
    let id = quic_lb().encode(&SERVERS[1], &[9; 6], FirstOctet::Length).unwrap();
    let first_flight = long_header(0, &id, &[5; 8]);
    assert_eq!(sent_to(&mut harness, peer(10), &first_flight, at(0)).0, backend(1));
}

#[test]
fn a_flow_goes_to_the_backend_of_another_id_and_stays_its_clients() {
    let mut harness = Harness::new(quic);
    let source = peer(1);
    let (_, flow) = sent_to(&mut harness, source, &short_header(1, 1), at(0));
    // New ids of the same connection change nothing.
    assert_eq!(sent_to(&mut harness, source, &short_header(1, 2), at(1)), (backend(1), flow));
    let outputs = harness.request(source, &[short_header(3, 1)].concat(), at(2)).len();
    assert_eq!(outputs, 2, "it goes on by another upstream, and so does the datagram");
    assert_eq!(sent_to(&mut harness, source, &short_header(3, 1), at(3)), (backend(3), flow));
    match harness.reply(flow, b"answer", at(4))[..] {
        [Output::SendToClient { client, .. }] => assert_eq!(client, source),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn an_id_that_a_third_party_has_seen_moves_nobody() {
    let mut harness = Harness::new(quic);
    let (victim, forger) = (peer(1), peer(2));
    let (to, flow) = sent_to(&mut harness, victim, &short_header(2, 7), at(0));
    let (forged_to, forged) = sent_to(&mut harness, forger, &short_header(2, 7), at(1));
    assert_eq!((to, forged_to), (backend(2), backend(2)));
    assert_ne!(flow, forged);
    match harness.reply(flow, b"for the victim", at(2))[..] {
        [Output::SendToClient { client, .. }] => assert_eq!(client, victim),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn an_announced_id_is_known_from_another_address_and_after_the_flow() {
    let mut harness = Harness::new(|config| {
        quic(config);
        config.cluster.quic_lb = QuicLb::default();
    });
    let id = *b"chosen by the server";
    let (to, flow) = sent_to(&mut harness, peer(1), &long_header(0, &[1; 8], &[2; 8]), at(0));
    harness.reply(flow, &long_header(2, &[2; 8], &id[..11]), at(1));
    let number = match to {
        SocketAddr::V4(to) => to.ip().octets()[3],
        SocketAddr::V6(_) => unreachable!(),
    };
    let data = [&[0x41][..], &id].concat();
    for n in 0..20 {
        let (moved_to, moved) = sent_to(&mut harness, peer(100 + n), &data, at(2));
        assert_eq!(moved_to, backend(number), "{n}");
        let placed = harness.manager.placed(moved);
        assert_eq!((placed.by(), placed.id()), (PlacedBy::LearnedId, &id[..11]));
    }
    // All flows have ended, and two minutes have not passed.
    while harness.manager.flow_count() > 0 {
        let at = harness.manager.poll_timeout().unwrap().at;
        harness.input(ManagerInput::Timeout, at);
    }
    let source = stranger_to(number);
    let (moved_to, _) = sent_to(&mut harness, source, &data, at(150_000));
    assert_eq!(moved_to, backend(number));
}

#[test]
fn what_is_underway_goes_on_while_draining_and_nothing_else() {
    let mut harness = Harness::new(quic);
    harness.input(ManagerInput::Drain { deadline: at(60_000) }, at(0));
    assert_eq!(sent_to(&mut harness, peer(1), &short_header(2, 1), at(1)).0, backend(2));
    let refused = harness.request(peer(2), b"something new", at(1)).len();
    assert_eq!((refused, harness.manager.flow_count()), (1, 1));
}

#[test]
fn an_orphan_is_placed_as_if_a_new_backend_were_not_there_for_two_minutes() {
    let mut config = config();
    quic(&mut config);
    config.cluster.quic_lb = QuicLb::default();
    let fourth = BackendConfig::new(backend(4));
    let before = config.clone();
    config.cluster.backends.push(fourth);
    let place = |manager: &mut UdpManager, datagram: &[u8], now| {
        let mut places = vec![];
        for n in 0..40 {
            let mut outputs = vec![];
            let burst = Burst::single(datagram).unwrap();
            let source = peer(n);
            let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
            manager.handle_input(input, now, &mut outputs);
            places.extend(outputs.iter().filter_map(|output| match output {
                Output::OpenFlow { address, .. } => Some(*address),
                _ => None,
            }));
        }
        assert_eq!(places.len(), 40);
        places
    };
    let fresh = |config: &ManagerConfig| UdpManager::new(config.clone(), 1, Instant::ORIGIN);
    let orphan = [0x41; 30];
    let (as_before, as_after) =
        (place(&mut fresh(&before), &orphan, at(0)), place(&mut fresh(&config), &orphan, at(0)));
    assert_ne!(as_before, as_after);

    let mut manager = fresh(&before);
    let prepared = PreparedConfig::new(config);
    manager.handle_input(ManagerInput::Configured(&prepared), at(1_000), &mut vec![]);
    assert_eq!(place(&mut manager.clone(), &orphan, at(120_999)), as_before);
    assert_eq!(place(&mut manager.clone(), &orphan, at(121_000)), as_after);
    let opening = long_header(0, &[1; 8], &[2; 8]);
    assert_eq!(place(&mut manager, &opening, at(2_000)), as_after, "new ones go to the new one");
}

#[test]
fn a_key_decides_where_there_is_one() {
    let by_call_id = |config: &mut ManagerConfig| {
        quic(config);
        config.cluster.affinity = Affinity::SipCallId;
    };
    let mut harness = Harness::new(by_call_id);
    let message =
        |call: u16| format!("INVITE sip:a SIP/2.0\r\nCall-ID: {call}@here\r\n\r\n").into_bytes();
    let mut seen = std::collections::BTreeSet::new();
    for call in 0..20 {
        let first = sent_to(&mut harness, peer(2 * call), &message(call), at(0));
        let second = sent_to(&mut harness, peer(2 * call + 1), &message(call), at(0));
        assert_eq!(first.0, second.0);
        assert_eq!(harness.manager.placed(second.1).by(), PlacedBy::Key);
        seen.insert(first.0);
    }
    assert_eq!(seen.len(), 3, "calls are spread");
}

#[test]
fn clusters_on_the_same_hosts_choose_alike_where_ports_are_left_out() {
    let on_port = |port: u16, affinity| {
        move |config: &mut ManagerConfig| {
            config.cluster.affinity = affinity;
            config.cluster.balance = Balance::Rendezvous;
            let hosts = 1..=5;
            config.cluster.backends = hosts
                .map(|number| BackendConfig::new((backend(number).ip(), port).into()))
                .collect();
        }
    };
    let hosts = |port, affinity| -> Vec<_> {
        let mut harness = Harness::new(on_port(port, affinity));
        let clients = (0..60).map(|n: u8| SocketAddr::from(([192, 0, 2, n], 4_500)));
        clients.map(|source| sent_to(&mut harness, source, b"", at(0)).0.ip()).collect()
    };
    assert_eq!(hosts(500, Affinity::Host), hosts(4_500, Affinity::Host));
    assert_ne!(hosts(500, Affinity::SourceIp), hosts(4_500, Affinity::SourceIp));
}

fn by_call_id(config: &mut ManagerConfig) {
    quic(config);
    config.cluster.affinity = Affinity::SipCallId;
}

fn message(call: u16) -> Vec<u8> {
    format!("INVITE sip:a SIP/2.0\r\nCall-ID: {call}@here\r\n\r\n").into_bytes()
}

/// Where two sockets get to with one call, and their flows.
fn both_sockets(harness: &mut Harness, call: u16, now: Instant) -> (SocketAddr, [FlowId; 2]) {
    let (one, two) = (peer(2 * call), peer(2 * call + 1));
    let (to, first) = sent_to(harness, one, &message(call), now);
    let (other, second) = sent_to(harness, two, &message(call), now);
    assert_eq!(to, other, "call {call} is at two backends");
    (to, [first, second])
}

const CALLS: Range<u16> = 0..20;

#[test]
fn another_key_moves_no_flow() {
    let mut harness = Harness::new(by_call_id);
    let places: Vec<_> = CALLS.map(|call| both_sockets(&mut harness, call, at(0))).collect();
    let elsewhere = places.iter().position(|place| place.0 != places[0].0).expect("all calls");
    // The answers of two calls at once would get lost on the way from one backend to the other.
    let other = message(elsewhere as u16);
    assert_eq!(sent_to(&mut harness, peer(0), &other, at(1)), (places[0].0, places[0].1[0]));
    assert_eq!(sent_to(&mut harness, peer(1_000), &other, at(1)).0, places[elsewhere].0);
}

#[test]
fn calls_of_a_backend_that_is_down_go_on_together() {
    let mut harness = Harness::new(|config| {
        by_call_id(config);
        config.cluster.health.on_backend_down = OnBackendDown::Rehash;
    });
    let before: Vec<_> = CALLS.map(|call| both_sockets(&mut harness, call, at(0)).0).collect();
    harness.event(BackendId::new(0), BackendEvent::Down, at(1));
    let mut moved_to = std::collections::BTreeSet::new();
    for (call, before) in CALLS.zip(before) {
        let (now_at, _) = both_sockets(&mut harness, call, at(2));
        match before == backend(1) {
            true => moved_to.insert(now_at),
            false => {
                assert_eq!(now_at, before);
                false
            }
        };
    }
    assert_eq!(moved_to, [backend(2), backend(3)].into());
}

#[test]
fn calls_that_a_backup_has_go_back_together() {
    let with_backup = |config: &mut ManagerConfig| {
        by_call_id(config);
        config.cluster.health.failback = Failback::All;
        let backup = BackendConfig { backup: true, ..BackendConfig::new(backend(4)) };
        config.cluster.backends.push(backup);
    };
    let mut harness = Harness::new(with_backup);
    let news = |harness: &mut Harness, event, now| {
        (0..3).for_each(|number| harness.event(BackendId::new(number), event, now));
    };
    news(&mut harness, BackendEvent::Down, at(0));
    for call in CALLS {
        assert_eq!(both_sockets(&mut harness, call, at(1)).0, backend(4));
    }
    news(&mut harness, BackendEvent::Up, at(2));
    // What has no key does not say where it belongs.
    assert_eq!(sent_to(&mut harness, peer(0), b"\r\n\r\n", at(3)).0, backend(4));
    let mut fresh = Harness::new(with_backup);
    for call in CALLS {
        let (to, _) = both_sockets(&mut harness, call, at(3));
        assert_eq!(to, both_sockets(&mut fresh, call, at(3)).0, "call {call}");
    }
}

#[test]
fn a_call_that_is_refused_goes_to_one_other_backend_whichever_socket_it_comes_from() {
    let mut harness = Harness::new(by_call_id);
    for call in CALLS {
        let mut places = std::collections::BTreeSet::new();
        for from in [2 * call, 2 * call + 1] {
            let message = message(call);
            let outputs = harness.request(peer(from), &message, at(0));
            let Some(Output::OpenFlow { flow, address: former, .. }) = outputs.first().copied()
            else {
                panic!("{outputs:?}");
            };
            harness.deliver(&outputs, at(0));
            harness.input(harness.network_error(flow, NetworkError::Refused), at(1));
            let now_at = harness.upstreams[&flow].2;
            assert_ne!(now_at, former);
            places.insert(now_at);
        }
        assert_eq!(places.len(), 1, "call {call}: {places:?}");
    }
}

#[test]
fn what_a_backend_has_announced_does_not_lead_to_its_successor() {
    let mut harness = Harness::new(|config| {
        quic(config);
        config.cluster.quic_lb = QuicLb::default();
    });
    let (to, flow) = sent_to(&mut harness, peer(1), &long_header(0, &[1; 8], &[2; 8]), at(0));
    harness.reply(flow, &long_header(2, &[2; 8], b"its own id"), at(1));
    let data = b"\x41its own id and more";
    let (_, moved) = sent_to(&mut harness, peer(2), data, at(2));
    assert_eq!(harness.manager.placed(moved).by(), PlacedBy::LearnedId);
    harness.configure(at(3), |config| {
        let backends = &mut config.cluster.backends;
        let place = backends.iter().position(|backend| backend.address == to).unwrap();
        backends[place] = BackendConfig::new(backend(9));
    });
    assert_eq!(harness.manager.flow_count(), 0);
    let (_, after) = sent_to(&mut harness, peer(3), data, at(4));
    assert_ne!(harness.manager.placed(after).by(), PlacedBy::LearnedId);
}

#[test]
fn each_call_of_a_trunk_is_a_flow_of_its_own() {
    let mut harness = Harness::new(|config| {
        by_call_id(config);
        config.cluster.transactions = Some(Transactions::Sip);
        config.cluster.upstream = UpstreamMode::Shared;
    });
    let trunk = peer(1);
    let mut flows = vec![];
    for call in CALLS {
        let (to, flow) = sent_to(&mut harness, trunk, &message(call), at(0));
        assert_eq!(to, both_sockets(&mut Harness::new(by_call_id), call, at(0)).0);
        flows.push(flow);
    }
    for (call, flow) in CALLS.zip(flows) {
        for line in ["SIP/2.0 180 Ringing", "SIP/2.0 200 OK", "BYE sip:a SIP/2.0"] {
            let answer = format!("{line}\r\ni: {call}@here\r\n\r\n").into_bytes();
            match harness.reply(flow, &answer, at(1))[..] {
                [Output::SendToClient { flow: of, client, .. }] => {
                    assert_eq!((of, client), (flow, trunk));
                }
                ref other => panic!("{other:?}"),
            }
        }
        assert_eq!(sent_to(&mut harness, trunk, &message(call), at(2)).1, flow);
    }
    let keep_alive = harness.request(trunk, b"\r\n\r\n", at(3));
    let is_malformed =
        |output: &Output<'_>| matches!(output, Output::Drop { reason: DropReason::Malformed, .. });
    assert!(keep_alive.iter().all(is_malformed), "{keep_alive:?}");
}
