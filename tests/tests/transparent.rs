//! `source = "client"`: the backend sees the client's own address, and what it answers comes back
//! by way of the balancer (`docs/operations.md` has the routing that this needs).

use flowgate_core::proxy_protocol::ProxyHeader;
use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer};
use flowgate_tests::netns::Namespace;

/// A client at 10.8.0.2 and fd08::2, a balancer between at 10.8.0.1 and 10.9.0.1, and a backend at
/// 10.9.0.2 that reaches clients by way of the balancer.
struct Network {
    client: Namespace,
    balancer: Namespace,
    backend: Namespace,
}

impl Network {
    fn new() -> Option<Self> {
        let [client, balancer, backend] = Namespace::between()?;
        backend.ip("route add 10.8.0.0/24 via 10.9.0.1");
        backend.ip("route add fd08::/64 via fd09::1");
        // What backends send to clients is for a socket here, though the address is not ours.
        for family in ["-4", "-6"] {
            balancer.ip(&format!("{family} rule add iif one ipproto udp sport 9000 lookup 100"));
        }
        balancer.ip("route add local 0.0.0.0/0 dev lo table 100");
        balancer.ip("-6 route add local ::/0 dev lo table 100");
        Some(Self { client, balancer, backend })
    }
}

fn serves(network: &Network, client: &str, listen: &str, backend: &str) {
    let backend = network.backend.inside(|| Peer::bind(backend));
    let config = format!(
        "[[listener]]\naddress = {listen:?}\ncluster = \"web\"\n\
         [cluster.web]\nsource = \"client\"\nbackends = [\"{}\"]\n",
        backend.address()
    );
    let balancer = network.balancer.inside(|| Balancer::start(&config));
    let clients: Vec<Peer> = network.client.inside(|| (0..5).map(|_| Peer::bind(client)).collect());
    for round in 0..3_u8 {
        for client in &clients {
            client.send_to(&[round], balancer.address());
            let request = backend.answer(&[round, round]);
            assert_eq!((request.bytes, request.from), (vec![round], client.address()));
            let answer = client.receive();
            assert_eq!((answer.bytes, answer.from), (vec![round, round], balancer.address()));
        }
    }
    balancer.assert_lossless(15, 15);
}

#[test]
fn a_backend_sees_the_clients_own_address_and_its_answers_come_back() {
    let Some(network) = Network::new() else { return };
    serves(&network, "10.8.0.2:0", "10.8.0.1:0", "10.9.0.2:9000");
    serves(&network, "[fd08::2]:0", "[fd08::1]:0", "[fd09::2]:9000");
}

#[test]
fn a_client_of_two_listeners_has_one_flow_and_the_other_is_a_counted_drop() {
    let Some(network) = Network::new() else { return };
    let backend = network.backend.inside(|| Peer::bind("10.9.0.2:9000"));
    let config = "[[listener]]\naddress = \"10.8.0.1:7001\"\ncluster = \"web\"\n\
                  [[listener]]\naddress = \"10.8.0.1:7002\"\ncluster = \"web\"\n\
                  [cluster.web]\nsource = \"client\"\nbackends = [\"10.9.0.2:9000\"]\n";
    let balancer = network.balancer.inside(|| Balancer::start(config));
    let client = network.client.inside(|| Peer::bind("10.8.0.2:0"));
    client.send_to(b"second", "10.8.0.1:7002".parse().unwrap());
    assert_eq!(backend.receive().bytes, b"second");
    client.send_to(b"first", "10.8.0.1:7001".parse().unwrap());
    balancer.eventually("a counted drop", |figures| {
        let ledger = figures.counters.ledger(Direction::ToBackend);
        ledger.dropped_for(DropReason::NoPorts).datagrams == 1
    });
    // The flow that has the address goes on.
    client.send_to(b"again", "10.8.0.1:7002".parse().unwrap());
    assert_eq!(backend.answer(b"answer").bytes, b"again");
    assert_eq!(client.receive().bytes, b"answer");
}

#[test]
fn a_backend_of_another_family_than_the_client_is_a_counted_drop() {
    let Some(network) = Network::new() else { return };
    let config = "[[listener]]\naddress = \"[::]:0\"\ncluster = \"web\"\n\
                  [cluster.web]\nsource = \"client\"\nbackends = [\"[fd09::2]:9000\"]\n";
    let balancer = network.balancer.inside(|| Balancer::start(config));
    let client = network.client.inside(|| Peer::bind("10.8.0.2:0"));
    client.send_to(b"question", balancer.at("10.8.0.1"));
    balancer.eventually("a counted drop", |figures| {
        let ledger = figures.counters.ledger(Direction::ToBackend);
        ledger.dropped_for(DropReason::NoSource).datagrams == 1
    });
}

#[test]
fn a_client_that_a_proxy_names_is_whom_the_backend_sees() {
    let Some(network) = Network::new() else { return };
    let backend = network.backend.inside(|| Peer::bind("10.9.0.2:9000"));
    let config = "[[listener]]\naddress = \"10.8.0.1:0\"\ncluster = \"web\"\n\
                  accept_proxy_protocol = [\"10.8.0.2\"]\n\
                  [cluster.web]\nsource = \"client\"\nbackends = [\"10.9.0.2:9000\"]\n";
    let balancer = network.balancer.inside(|| Balancer::start(config));
    let proxy = network.client.inside(|| Peer::bind("10.8.0.2:0"));
    let told = |client: &str, payload: &[u8]| {
        let header = ProxyHeader::new(client.parse().unwrap(), "203.0.113.1:443".parse().unwrap());
        [header.as_bytes(), payload].concat()
    };
    proxy.send_to(&told("10.8.0.77:4000", b"question"), balancer.address());
    let question = backend.answer(b"answer");
    assert_eq!(question.bytes, b"question");
    assert_eq!(question.from.to_string(), "10.8.0.77:4000");
    assert_eq!(proxy.receive().bytes, b"answer");
    // What no socket can have is not replaced by an address of ours.
    for nobody in ["0.0.0.0:4001", "255.255.255.255:4001", "10.8.0.78:0", "[2001:db8::7]:4001"] {
        let before = balancer.dropped(Direction::ToBackend, DropReason::NoSource);
        proxy.send_to(&told(nobody, b"question"), balancer.address());
        balancer.eventually(nobody, |figures| {
            let ledger = figures.counters.ledger(Direction::ToBackend);
            ledger.dropped_for(DropReason::NoSource).datagrams == before + 1
        });
    }
    assert_eq!(backend.receive_soon(), None);
}
