//! The life of a flow over real sockets: when it ends, how many there may be, what a backend is
//! told of the client.

use std::net::SocketAddr;

use flowgate_core::{CloseReason, Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually, pattern, simple_config};
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

#[test]
fn with_one_response_a_flow_closes_after_the_reply() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], "responses = 1");
    client.send_to(b"A?", balancer.address());
    let first = backend.answer(b"A");
    assert_eq!(client.receive().bytes, b"A");
    balancer.eventually("the flow closes", |figures| {
        figures.flows_active == 0 && figures.counters.closed(CloseReason::Complete) == 1
    });
    client.send_to(b"AAAA?", balancer.address());
    assert_ne!(backend.answer(b"AAAA").from, first.from, "a new flow has a new socket");
    assert_eq!(client.receive().bytes, b"AAAA");
}

#[test]
fn two_questions_from_one_port_both_get_their_answer_where_one_is_the_limit() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], "responses = 1");
    client.send_to(b"A?", balancer.address());
    client.send_to(b"AAAA?", balancer.address());
    let (first, second) = (backend.receive(), backend.receive());
    assert_eq!(first.from, second.from);
    backend.send_to(b"A", first.from);
    backend.send_to(b"AAAA", second.from);
    assert_eq!(client.receive().bytes, b"A");
    assert_eq!(client.receive().bytes, b"AAAA");
    balancer.eventually("the flow closes", |figures| figures.flows_active == 0);
}

#[test]
fn after_its_last_request_a_flow_still_gets_its_replies_and_the_next_one_is_another() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], "requests = 2");
    for request in [b"1", b"2", b"3"] {
        client.send_to(request, balancer.address());
    }
    let [first, second, third] = [(); 3].map(|()| backend.receive());
    assert_eq!(first.from, second.from);
    assert_ne!(second.from, third.from);
    for (reply, request) in [(b"c", &third), (b"a", &first), (b"b", &second)] {
        backend.send_to(reply, request.from);
        assert_eq!(client.receive().bytes, reply);
    }
    let figures = balancer.eventually("the first flow closes", |figures| figures.flows_active == 1);
    assert_eq!(figures.counters.closed(CloseReason::Complete), 1);
}

#[test]
fn beyond_max_flows_clients_are_refused_and_those_that_came_before_go_on() {
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let balancer = Balancer::start(&config.replace("[[listener]]", "[[listener]]\nmax_flows = 2"));
    let [one, two, three] = [(); 3].map(|()| Peer::v4());
    for client in [&one, &two] {
        client.send_to(b"hello", balancer.address());
        backend.answer(b"welcome");
        assert_eq!(client.receive().bytes, b"welcome");
    }
    three.send_to(b"hello", balancer.address());
    let figures = balancer.eventually("the third is counted", |figures| {
        let ledger = figures.counters.ledger(Direction::ToBackend);
        ledger.dropped_for(DropReason::MaxFlows).datagrams == 1
    });
    assert_eq!(figures.flows_active, 2);
    one.send_to(b"again", balancer.address());
    assert_eq!(backend.receive().bytes, b"again");
}

#[test]
fn without_a_backend_datagrams_are_counted_drops() {
    let client = Peer::v4();
    let balancer = Balancer::between("127.0.0.1:0", &[], "");
    client.send_to(b"anybody?", balancer.address());
    balancer.eventually("it is counted", |figures| {
        let ledger = figures.counters.ledger(Direction::ToBackend);
        ledger.dropped_for(DropReason::NoBackend).datagrams == 1
    });
}

#[test]
fn an_idle_flow_ends_and_its_socket_is_closed() {
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "idle_timeout = \"1s\"");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    let before = flowgate.sockets();
    let clients: Vec<_> = (0..10).map(|_| Peer::v4()).collect();
    for client in &clients {
        client.send_to(b"hello", address);
        backend.receive();
    }
    assert!(flowgate.sockets() > before);
    eventually("all upstream sockets are closed", || (flowgate.sockets() == before).then_some(()));
    clients[0].send_to(b"hello again", address);
    assert_eq!(backend.receive().bytes, b"hello again");
}

#[test]
fn the_first_datagram_of_a_flow_tells_the_backend_who_the_client_is() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], "send_proxy_protocol = \"first\"");
    let header = proxy_v4(client.address(), balancer.address());
    client.send_to(b"one", balancer.address());
    client.send_to(b"two", balancer.address());
    assert_eq!(backend.receive().bytes, [&header[..], b"one"].concat());
    assert_eq!(backend.answer(b"back").bytes, b"two");
    assert_eq!(client.receive().bytes, b"back", "replies carry no header");
}

#[test]
fn every_datagram_tells_the_backend_who_the_client_is_trains_and_empty_ones_too() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let balancer = Balancer::between("0.0.0.0:0", &[&backend], "send_proxy_protocol = \"every\"");
    let called = balancer.at("127.0.0.5");
    let header = proxy_v4(client.address(), called);
    let bytes = pattern(30 * 700 + 20, 9);
    client.send_to(b"", called);
    client.send_train(&bytes, 700, called);
    let expected = std::iter::once(&[][..]).chain(bytes.chunks(700));
    for datagram in expected {
        assert!(backend.receive().bytes == [&header[..], datagram].concat());
    }
}

/// A PROXY v2 header for UDP over IPv4, from the specification.
fn proxy_v4(client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(client), SocketAddr::V4(called)) = (client, destination) else {
        panic!("addresses of IPv4")
    };
    let mut header = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x12\x00\x0C".to_vec();
    header.extend(client.ip().octets());
    header.extend(called.ip().octets());
    header.extend(client.port().to_be_bytes());
    header.extend(called.port().to_be_bytes());
    header
}
