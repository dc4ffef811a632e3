//! `source` with a range of ports: which of them sockets get, and when one is free again.
//!
//! Apart from the other tests of `source`, since this program starts no processes: a child has the
//! sockets of its parent until it executes its own program, and keeps their ports that long.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use flowgate::datapath::report::ShardReport;
use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually, own_ports};

fn client_of(backend: &Peer) -> Peer {
    if backend.address().is_ipv6() { Peer::v6() } else { Peer::v4() }
}

fn every_port_is_used_and_then_none_is_left(backend: &Peer, address: &str, source: &str) {
    const PORTS: u16 = 12;
    let first = own_ports(address, PORTS);
    let last = first + PORTS - 1;
    let listen = if backend.address().is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
    // More flows than ports.
    let balancer = Balancer::start(&format!(
        "[[listener]]\naddress = {listen:?}\ncluster = \"web\"\nmax_flows = 100\n\
         [cluster.web]\nsource = \"{source}:{first}-{last}\"\nbackends = [\"{}\"]\n",
        backend.address()
    ));
    let clients: Vec<_> = (0..PORTS).map(|_| client_of(backend)).collect();
    let mut ports = Vec::new();
    for client in &clients {
        client.send_to(b"question", balancer.address());
        ports.push(backend.answer(b"answer").from.port());
        assert_eq!(client.receive().bytes, b"answer");
    }
    let distinct: BTreeSet<_> = ports.iter().copied().collect();
    assert!(distinct.iter().copied().eq(first..=last), "{ports:?}");
    assert!(!ports.is_sorted(), "one of 479 million orders");
    client_of(backend).send_to(b"no port is left", balancer.address());
    let is_counted = |figures: &ShardReport| {
        figures.counters.ledger(Direction::ToBackend).dropped_for(DropReason::NoPorts).datagrams
            == 1
    };
    balancer.eventually("a counted drop", is_counted);
    clients[0].send_to(b"old ones go on", balancer.address());
    assert_eq!(backend.receive().bytes, b"old ones go on");
}

#[test]
fn ports_are_taken_from_the_range_at_random_and_run_out() {
    every_port_is_used_and_then_none_is_left(&Peer::v4(), "127.0.0.8", "127.0.0.8");
}

#[test]
fn a_port_serves_one_flow_for_each_backend_and_every_answer_comes_home() {
    const PORTS: u16 = 4;
    let backends = [Peer::v4(), Peer::v4(), Peer::v4()];
    let first = own_ports("127.0.0.22", PORTS);
    let last = first + PORTS - 1;
    let more = format!("balance = \"round-robin\"\nsource = \"127.0.0.22:{first}-{last}\"");
    let balancer = Balancer::between("127.0.0.1:0", &backends.each_ref(), &more);
    let clients: Vec<_> = (0..3 * PORTS).map(|_| Peer::v4()).collect();
    let mut asked = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], balancer.address());
    }
    for (at, backend) in backends.iter().enumerate() {
        for _ in 0..PORTS {
            let question = backend.receive();
            asked.push((at, question.from.port()));
            backend.send_to(&question.bytes, question.from);
        }
    }
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(client.receive().bytes, [number as u8], "it gets its own answer");
    }
    let pairs: BTreeSet<_> = asked.iter().copied().collect();
    assert_eq!(pairs.len(), clients.len(), "a port twice for one backend: {asked:?}");
    let ports: BTreeSet<_> = asked.iter().map(|&(_, port)| port).collect();
    assert_eq!(ports.len(), usize::from(PORTS));
    balancer.assert_lossless(12, 12);
}

#[test]
fn a_hundred_ports_serve_250_clients_of_three_backends() {
    let backends = [Peer::v4(), Peer::v4(), Peer::v4()];
    // In blocks, as they are found free.
    let ranges: Vec<_> = [16, 16, 16, 16, 16, 16, 4]
        .map(|count| {
            let first = own_ports("127.0.0.30", count);
            format!("127.0.0.30:{first}-{}", first + count - 1)
        })
        .into();
    let more = format!("balance = \"round-robin\"\nsource = {ranges:?}");
    let balancer = Balancer::between("127.0.0.1:0", &backends.each_ref(), &more);
    let clients: Vec<_> = (0..250).map(|_| Peer::v4()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], balancer.address());
        let backend = &backends[number % 3];
        let question = backend.receive();
        backend.send_to(&question.bytes, question.from);
        assert_eq!(client.receive().bytes, [number as u8]);
    }
    balancer.assert_lossless(250, 250);
}

#[test]
fn a_range_without_an_address_leaves_that_to_the_kernel() {
    every_port_is_used_and_then_none_is_left(&Peer::v4(), "0.0.0.0", "0.0.0.0");
}

#[test]
fn ipv6_has_ranges_too() {
    every_port_is_used_and_then_none_is_left(&Peer::v6(), "[::1]", "[::1]");
    every_port_is_used_and_then_none_is_left(&Peer::v6(), "[::]", "[::]");
}

#[test]
fn a_port_that_somebody_else_has_is_passed_over() {
    let backend = Peer::v4();
    let first = own_ports("127.0.0.10", 2);
    let _taken = UdpSocket::bind(("127.0.0.10", first)).unwrap();
    let source = format!("source = \"127.0.0.10:{first}-{}\"", first + 1);
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], &source);
    Peer::v4().send_to(b"question", balancer.address());
    assert_eq!(backend.receive().from.port(), first + 1);
}

#[test]
fn a_port_is_free_again_when_its_flow_ends() {
    let backend = Peer::v4();
    let port = own_ports("127.0.0.11", 1);
    let more = format!("source = \"127.0.0.11:{port}\"\nresponses = 1");
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], &more);
    for _ in 0..5 {
        let client = Peer::v4();
        client.send_to(b"question", balancer.address());
        assert_eq!(backend.answer(b"answer").from.port(), port);
        assert_eq!(client.receive().bytes, b"answer");
    }
    assert_eq!(balancer.dropped(Direction::ToBackend, DropReason::NoPorts), 0);
}

#[test]
fn datagrams_without_flows_leave_from_the_source_too() {
    let ports = own_ports("127.0.0.12", 4);
    let range = ports..ports + 4;
    for mode in ["one-way", "fan-out"] {
        let (backend, client) = (Peer::v4(), Peer::v4());
        let source = format!("127.0.0.12:{ports}-{}", ports + 3);
        let more = format!("mode = {mode:?}\nsource = {source:?}");
        let balancer = Balancer::between("127.0.0.1:0", &[&backend], &more);
        client.send_to(b"line", balancer.address());
        let from = backend.receive().from;
        assert_eq!(from.ip().to_string(), "127.0.0.12", "{mode}");
        assert!(range.contains(&from.port()), "{mode}: {from}");
    }
}

#[test]
fn a_flood_of_clients_that_nobody_answers_leaves_a_port_for_the_next_one() {
    let backend = Peer::v4();
    let first = own_ports("127.0.0.21", 4);
    // The table is as large as the range, unless `max_flows` says otherwise: the oldest of the
    // unanswered flows makes room.
    let last = first + 3;
    let more = format!("source = \"127.0.0.21:{first}-{last}\"\nupstream_quarantine = \"0s\"");
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], &more);
    for number in 0..40_u8 {
        Peer::v4().send_to(&[number], balancer.address());
    }
    // Those may have been dropped whose turn came before others had waited for long enough.
    let next = Peer::v4();
    eventually("a port for the next one", || {
        next.send_to(b"next", balancer.address());
        std::iter::from_fn(|| backend.receive_soon()).find(|datagram| datagram.bytes == b"next")
    });
    assert_eq!(balancer.dropped(Direction::ToBackend, DropReason::NoPorts), 0);
}

#[test]
fn the_ports_of_all_addresses_are_used_before_none_is_left() {
    let backends = [Peer::v4(), Peer::v4(), Peer::v4()];
    let addresses = ["127.0.0.23", "127.0.0.24", "127.0.0.25", "127.0.0.26"];
    // 32 local ports for 96 flows.
    let ranges = addresses.map(|address| {
        let first = own_ports(address, 8);
        format!("{address}:{first}-{}", first + 7)
    });
    let of = backends.each_ref().map(|backend| backend.address().to_string());
    // More flows than ports.
    let balancer = Balancer::start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\nmax_flows = 100\n\
         [cluster.web]\nsource = {ranges:?}\nbalance = \"round-robin\"\nbackends = {of:?}\n"
    ));
    let clients: Vec<_> = (0..96).map(|_| Peer::v4()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], balancer.address());
        let question = backends[number % 3].receive();
        assert!(addresses.contains(&question.from.ip().to_string().as_str()));
        backends[number % 3].send_to(&question.bytes, question.from);
        assert_eq!(client.receive().bytes, [number as u8]);
    }
    balancer.assert_lossless(96, 96);
    Peer::v4().send_to(b"no port is left", balancer.address());
    balancer.eventually("a counted drop", |figures: &ShardReport| {
        let ledger = figures.counters.ledger(Direction::ToBackend);
        ledger.dropped_for(DropReason::NoPorts).datagrams == 1
    });
}

#[test]
fn datagrams_without_flows_leave_from_one_of_several_addresses() {
    let (backend, client) = (Peer::v4(), Peer::v4());
    let sources = ["127.0.0.27", "127.0.0.28"];
    let more = format!("mode = \"one-way\"\nsource = {sources:?}");
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], &more);
    client.send_to(b"line", balancer.address());
    assert!(sources.contains(&backend.receive().from.ip().to_string().as_str()));
}
