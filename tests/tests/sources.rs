//! Who may answer, and from where.

use std::io::ErrorKind;
use std::net::{SocketAddr, SocketAddrV6};

use flowgate_core::Direction;
use flowgate_tests::e2e::{Balancer, Peer, eventually, own_ports};
use flowgate_tests::netns::Namespace;
use nix::net::if_::if_nametoindex;

/// Calls a balancer at each address in turn from connected sockets, which hear nobody but whom
/// they called.
#[track_caller]
fn answers_from(balancer: &Balancer, backend: &Peer, addresses: &[SocketAddr]) {
    for &address in addresses {
        let client = Peer::connected(address);
        client.send(b"question");
        backend.answer(b"answer");
        let answer = client.receive();
        assert_eq!((answer.from, &answer.bytes[..]), (address, &b"answer"[..]));
    }
    let calls = addresses.len() as u64;
    balancer.assert_lossless(calls, calls);
}

#[test]
fn a_wildcard_listener_answers_from_the_address_that_was_hit() {
    let backend = Peer::v4();
    let balancer = Balancer::between("0.0.0.0:0", &[&backend], "");
    let hit = ["127.0.0.1", "127.0.0.2", "127.7.7.7"].map(|ip| balancer.at(ip));
    answers_from(&balancer, &backend, &hit);
}

#[test]
fn a_dual_stack_wildcard_listener_answers_both_families_from_the_address_that_was_hit() {
    let backend = Peer::v6();
    let balancer = Balancer::between("[::]:0", &[&backend], "");
    let hit = ["::1", "127.0.0.1", "127.0.0.2"].map(|ip| balancer.at(ip));
    answers_from(&balancer, &backend, &hit);
    // One more way to call the same address: mapped, from a socket of IPv6.
    let mapped = balancer.at("::ffff:127.0.0.3");
    let client = Peer::connected(mapped);
    client.send(b"question");
    backend.answer(b"answer");
    assert_eq!(client.receive().from, mapped);
}

#[test]
fn a_single_address_beside_a_wildcard_gets_its_own_datagrams() {
    let (wide, single) = (Peer::v4(), Peer::v4());
    let port = own_ports("0.0.0.0", 1);
    let _balancer = Balancer::start(&format!(
        "[[listener]]\naddress = \"0.0.0.0:{port}\"\ncluster = \"wide\"\n\
         [[listener]]\naddress = \"127.0.0.1:{port}\"\ncluster = \"single\"\n\
         [cluster.wide]\nbackends = [\"{}\"]\n[cluster.single]\nbackends = [\"{}\"]\n",
        wide.address(),
        single.address(),
    ));
    for (address, backend) in [("127.0.0.1", &single), ("127.0.0.2", &wide)] {
        let client = Peer::connected(SocketAddr::new(address.parse().expect("an IP"), port));
        client.send(b"question");
        backend.answer(b"answer");
        assert_eq!(client.receive().bytes, b"answer");
    }
}

#[test]
fn a_listener_of_ipv6_only_leaves_ipv4_to_others() {
    let config = "[[listener]]\naddress = \"[::]:0\"\nv6_only = true\ncluster = \"test\"\n\
                  [cluster.test]\nbackends = [\"127.0.0.1:9\"]\n";
    // The port that the kernel chose may be taken where it was not asked.
    let (balancer, other) = eventually("a port that is free in both families", || {
        let balancer = Balancer::start(config);
        let other = Peer::try_bind(&balancer.at("0.0.0.0").to_string()).ok()?;
        Some((balancer, other))
    });
    let client = Peer::v4();
    client.send_to(b"not for the balancer", balancer.at("127.0.0.1"));
    assert_eq!(other.receive().from, client.address());
}

#[test]
fn a_link_local_address_answers_on_the_link_that_it_was_called_on() {
    let Some([client_side, server_side]) = Namespace::pair() else { return };
    let (backend, balancer) = server_side.inside(|| {
        let backend = Peer::v6();
        let balancer = Balancer::between("[::]:0", &[&backend], "");
        (backend, balancer)
    });
    client_side.inside(|| {
        let link = if_nametoindex("one").expect("the cable");
        let port = balancer.address().port();
        let scoped = |ip: &str| SocketAddrV6::new(ip.parse().unwrap(), port, 0, link).into();
        let hit = [scoped("fe80::2"), balancer.at("fd09::2"), balancer.at("10.9.0.2")];
        answers_from(&balancer, &backend, &hit);
    });
}

#[test]
fn one_client_port_that_calls_two_addresses_has_two_flows() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let balancer = Balancer::between("0.0.0.0:0", &[&backend], "");
    let [one, two] = ["127.0.0.1", "127.0.0.2"].map(|ip| balancer.at(ip));
    client.send_to(b"one", one);
    let first = backend.receive();
    client.send_to(b"two", two);
    let second = backend.receive();
    assert_ne!(first.from, second.from);
    backend.send_to(b"to two", second.from);
    backend.send_to(b"to one", first.from);
    assert_eq!(client.receive().from, two);
    assert_eq!(client.receive().from, one);
}

#[test]
fn a_strangers_answer_is_refused_by_the_kernel_and_not_forwarded() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], "");
    client.send_to(b"question", balancer.address());
    let upstream = backend.receive().from;

    // Another port of the backend's host, to the very port that waits for the backend's answer.
    let stranger = Peer::connected(upstream);
    stranger.send(b"forged");
    let refusal = stranger.try_receive().expect_err("nobody is to answer a stranger");
    assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused);

    backend.send_to(b"genuine", upstream);
    assert_eq!(client.receive().bytes, b"genuine");
    balancer.assert_lossless(1, 1);
}

#[test]
fn the_kernel_counts_what_strangers_send() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let (client, backend) = (Peer::v4(), Peer::v4());
        let balancer = Balancer::between("127.0.0.1:0", &[&backend], "");
        client.send_to(b"question", balancer.address());
        let upstream = backend.receive().from;
        let before = no_ports();
        let stranger = Peer::connected(upstream);
        for _ in 0..5 {
            stranger.send(b"forged");
            stranger.try_receive().expect_err("nobody is to answer a stranger");
        }
        assert_eq!(no_ports() - before, 5);
        let received = balancer.figures().counters.ledger(Direction::ToClient).received;
        assert_eq!(received.datagrams, 0);
    });
}

/// `UdpNoPorts` of this thread's network namespace (`netstat -su`: packets to unknown port).
fn no_ports() -> u64 {
    let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("procfs");
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().expect("names"), udp.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "NoPorts").expect("NoPorts");
    value.parse().expect("a number")
}
