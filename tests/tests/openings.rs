//! What a session begins with when the backend that it is for cannot have it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flowgate::datapath::report::ShardReport;
use flowgate_core::counters::Traffic;
use flowgate_tests::e2e::{Balancer, Peer, own_address, wait_until_closed};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::netns::Namespace;

/// Nobody goes out of service for what is refused, and each has its turn.
const IN_TURN: &str = "balance = \"round-robin\"\nhealth = { passive = false }";

fn echo() -> EchoServer {
    EchoServer::start("127.0.0.1:0", |_| true)
}

/// The five lines that everybody begins with, and `more` for the cluster.
fn between(backends: &[SocketAddr], more: &str) -> Balancer {
    let list: Vec<String> = backends.iter().map(ToString::to_string).collect();
    Balancer::start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n\
         [cluster.test]\nbackends = {list:?}\n{more}\n"
    ))
}

/// Looks until `is_so`. At every look whatever was received is forwarded, dropped or queued.
#[track_caller]
fn once(balancer: &Balancer, what: &str, is_so: impl Fn(&ShardReport) -> bool) -> ShardReport {
    balancer.eventually(what, |figures| {
        let ledger = &figures.counters.to_backend;
        let sum = ledger.forwarded.plus(ledger.dropped_total()).plus(ledger.queued);
        assert_eq!(ledger.received, sum, "{ledger:?}");
        is_so(figures)
    })
}

/// All clients send one datagram before any of them looks for its answer. Each gets its own, and once.
#[track_caller]
fn all_are_answered(balancer: &Balancer, clients: &[Peer]) -> ShardReport {
    for (number, client) in (0_u64..).zip(clients) {
        client.send_to(&number.to_be_bytes(), balancer.address());
    }
    for (number, client) in (0_u64..).zip(clients) {
        assert_eq!(client.receive().bytes, number.to_be_bytes());
    }
    let sent = clients.len() as u64;
    let all = Traffic { datagrams: sent, bytes: 8 * sent };
    let figures = once(balancer, "each counts once", |figures| {
        let ledger = &figures.counters.to_backend;
        (ledger.received, ledger.forwarded) == (all, all)
    });
    for client in clients {
        assert_eq!(client.receive_now(), None, "{} is answered twice", client.address());
    }
    figures
}

#[test]
fn with_five_lines_and_one_dead_backend_every_client_s_first_datagram_is_answered() {
    const CLIENTS: usize = 40;
    for more in ["", "upstream = \"shared\""] {
        let (dead, alive) = (own_address(), echo());
        let balancer = between(&[dead, alive.address()], more);
        // Of addresses of their own, so that some choose either backend.
        let client = |number| Peer::bind(&format!("127.0.9.{number}:0"));
        let clients: Vec<_> = (1..=CLIENTS).map(client).collect();
        let figures = all_are_answered(&balancer, &clients);
        assert_eq!(alive.received(), CLIENTS as u64, "{more}");
        assert_eq!(figures.counters.flows_opened, CLIENTS as u64, "to a client it is one flow");
        assert!(figures.counters.retries > 0, "{more}: nobody has chosen the dead one");
    }
}

#[test]
fn where_nobody_is_left_to_ask_each_was_asked_once() {
    for backends in 1..=3_u64 {
        let list: Vec<_> = (0..backends).map(|_| own_address()).collect();
        let balancer = between(&list, IN_TURN);
        let client = Peer::v4();
        client.send_to(b"is anybody there?", balancer.address());
        let figures = once(&balancer, "all have refused", |figures| {
            figures.counters.upstream_errors == backends
        });
        assert_eq!(figures.counters.retries, backends - 1);
        let ledger = &figures.counters.to_backend;
        assert_eq!(ledger.received.datagrams, 1);
        assert_eq!(
            ledger.forwarded, ledger.received,
            "the kernel has taken it, and it counts once"
        );
        assert_eq!(client.receive_now(), None);
    }
}

#[test]
fn what_a_client_sends_meanwhile_is_never_overtaken_by_it_and_reaches_nobody_twice() {
    const CLIENTS: u8 = 20;
    const EACH: u8 = 4;
    for is_train in [false, true] {
        let (dead, alive) = (own_address(), Peer::v4());
        let balancer = between(&[dead, alive.address()], IN_TURN);
        let clients: Vec<_> = (0..CLIENTS).map(|_| Peer::v4()).collect();
        for (client, peer) in (0..CLIENTS).zip(&clients) {
            let all: Vec<u8> = (0..EACH).flat_map(|number| [client, number]).collect();
            if is_train {
                peer.send_train(&all, 2, balancer.address());
            } else {
                all.chunks(2).for_each(|one| peer.send_to(one, balancer.address()));
            }
        }
        let sent = u64::from(CLIENTS) * u64::from(EACH);
        once(&balancer, "all are sent", |figures| {
            let ledger = &figures.counters.to_backend;
            (ledger.received.datagrams, ledger.queued.datagrams) == (sent, 0)
        });
        let mut by_client = BTreeMap::<u8, Vec<u8>>::new();
        while let Some(datagram) = alive.receive_soon() {
            let [client, number] = datagram.bytes[..] else { panic!("{datagram:?}") };
            by_client.entry(client).or_default().push(number);
        }
        assert!(by_client.len() >= usize::from(CLIENTS) / 2, "{by_client:?}");
        for (client, numbers) in by_client {
            assert!(numbers.is_sorted_by(|one, next| one < next), "{client}: {numbers:?}");
        }
    }
}

#[test]
fn a_backend_that_has_it_and_is_silent_is_the_only_one_to_have_it() {
    let silent = EchoServer::start("127.0.0.1:0", |_| false);
    let answers = echo();
    let balancer = between(&[silent.address(), answers.address()], IN_TURN);
    let clients = [Peer::v4(), Peer::v4()];
    clients.iter().for_each(|client| client.send_to(b"hello", balancer.address()));
    once(&balancer, "one is answered", |figures| {
        figures.counters.to_client.forwarded.datagrams == 1
    });
    // A third client's is behind whatever might have gone elsewhere.
    let third = Peer::v4();
    third.send_to(b"hello", balancer.address());
    let figures = once(&balancer, "all are sent", |figures| {
        figures.counters.to_backend.forwarded.datagrams == 3
            && silent.received() + answers.received() == 3
    });
    assert_eq!((figures.counters.retries, figures.counters.flows_moved), (0, 0));
}

#[test]
fn only_what_a_flow_begins_with_goes_elsewhere() {
    let (first, second) = (EchoServer::start(&own_address().to_string(), |_| true), echo());
    let backends = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n[cluster.test]\n\
         backends = [\"{}\", {{ address = \"{}\", backup = true }}]\n{IN_TURN}\n",
        first.address(),
        second.address()
    );
    let balancer = Balancer::start(&backends);
    let client = Peer::v4();
    client.send_to(b"first", balancer.address());
    assert_eq!(client.receive().bytes, b"first");
    let address = first.address();
    drop(first);
    wait_until_closed(address);
    client.send_to(b"second", balancer.address());
    let figures = once(&balancer, "it is refused", |figures| figures.counters.upstream_errors == 1);
    assert_eq!((figures.counters.retries, second.received()), (0, 0));
}

#[test]
fn it_goes_elsewhere_with_the_header_that_says_whose_it_is() {
    let (dead, alive) = (own_address(), Peer::v4());
    let more = format!("send_proxy_protocol = \"first\"\n{IN_TURN}");
    let balancer = between(&[dead, alive.address()], &more);
    // One of them is the dead one's.
    let clients = [Peer::v4(), Peer::v4()];
    clients.iter().for_each(|client| client.send_to(b"hello", balancer.address()));
    let mut ports = clients.map(|client| client.address().port());
    let mut named = [(); 2].map(|()| {
        let bytes = alive.receive().bytes;
        // Version 2: twelve bytes of signature, four of kind and length, two addresses, two ports.
        assert_eq!((&bytes[..12], bytes.len()), (&b"\r\n\r\n\0\r\nQUIT\n"[..], 28 + 5));
        assert_eq!(&bytes[28..], b"hello");
        u16::from_be_bytes([bytes[24], bytes[25]])
    });
    ports.sort_unstable();
    named.sort_unstable();
    assert_eq!(named, ports);
}

#[test]
fn no_route_to_a_backend_takes_its_clients_to_the_other() {
    let Some(namespace) = Namespace::new() else { return };
    // Without any route, and one that is refused here.
    namespace.ip("route add prohibit 10.9.9.2/32");
    for upstream in ["per-flow", "shared"] {
        for nowhere in ["10.9.9.1:53", "10.9.9.2:53", "[fd99::1]:53"] {
            namespace.inside(|| {
                let alive = echo();
                let nowhere = nowhere.parse().expect("an address");
                let more = format!("upstream = {upstream:?}\n{IN_TURN}");
                let balancer = between(&[nowhere, alive.address()], &more);
                let clients: Vec<_> = (0..10).map(|_| Peer::v4()).collect();
                all_are_answered(&balancer, &clients);
                assert_eq!(alive.received(), 10, "{upstream} {nowhere}");
            });
        }
    }
}

#[test]
fn a_host_that_is_not_there_takes_its_clients_to_the_other_as_soon_as_that_is_known() {
    let Some([here, _there]) = Namespace::pair() else { return };
    here.inside(|| {
        let alive = echo();
        let nobody = "10.9.0.77:53".parse().expect("an address");
        let balancer = between(&[nobody, alive.address()], IN_TURN);
        let clients: Vec<_> = (0..4).map(|_| Peer::v4()).collect();
        all_are_answered(&balancer, &clients);
        assert_eq!(alive.received(), 4);
    });
}
