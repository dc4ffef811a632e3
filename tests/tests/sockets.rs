//! What listeners and upstream sockets do at the edges of UDP: broadcasts, last hops, a backend that
//! calls, a port that others want, and a host without a free port.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually};
use flowgate_tests::netns::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_broadcast_is_answered_from_the_address_of_the_link() {
    for wildcard in ["0.0.0.0:0", "[::]:0"] {
        let backend = Peer::v4();
        let balancer = Balancer::between(wildcard, &[&backend], "");
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(flowgate_tests::e2e::PATIENCE)).unwrap();
        client.set_broadcast(true).unwrap();
        // The loopback interface has a broadcast address, too.
        client.send_to(b"who is there?", balancer.at("127.255.255.255")).unwrap();
        backend.answer(b"I am");
        let mut reply = [0; 16];
        let (len, from) = client.recv_from(&mut reply).unwrap();
        assert_eq!((&reply[..len], from), (&b"I am"[..], balancer.at("127.0.0.1")), "{wildcard}");
    }
}

#[test]
fn a_client_whose_datagrams_arrive_with_their_last_hop_is_served() {
    for (listener, mine) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0")] {
        let backend = Peer::bind(mine);
        let balancer = Balancer::between(listener, &[&backend], "");
        let client = UdpSocket::bind(mine).unwrap();
        client.set_read_timeout(Some(flowgate_tests::e2e::PATIENCE)).unwrap();
        client.set_ttl(1).unwrap();
        setsockopt(&client, sockopt::Ipv6Ttl, &1).ok();
        client.send_to(b"on my link", balancer.address()).unwrap();
        backend.answer(b"and back");
        assert_eq!(client.recv(&mut [0; 16]).unwrap(), 8);
        balancer.assert_lossless(1, 1);
    }
}

#[test]
fn a_backend_that_calls_from_the_port_that_it_serves_at_is_a_client_like_others() {
    let backends = [Peer::v4(), Peer::v4()];
    let balancer = Balancer::between("127.0.0.1:0", &[&backends[0], &backends[1]], "");
    for caller in &backends {
        caller.send_to(b"INVITE", balancer.address());
        let called = eventually("one of them is called", || {
            backends.iter().find_map(|backend| Some((backend, backend.receive_soon()?)))
        });
        let (called, request) = called;
        called.send_to(b"OK", request.from);
        assert_eq!(caller.receive().from, balancer.address());
    }
    assert_eq!(balancer.dropped(Direction::ToBackend, DropReason::OwnAddress), 0);
}

#[test]
fn nobody_joins_the_port_of_a_listener_with_one_worker() {
    let backend = Peer::v4();
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], "");
    let stranger =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&stranger, sockopt::ReusePort, &true).unwrap();
    let refused = bind(stranger.as_raw_fd(), &SockaddrStorage::from(balancer.address()));
    assert_eq!(refused, Err(Errno::EADDRINUSE));
}

#[test]
fn a_second_instance_finds_its_port_taken_also_beside_a_wildcard_of_the_other_family() {
    let backend = Peer::v4();
    let port = free_port();
    let listener = |address: &str, more: &str| {
        format!("[[listener]]\naddress = \"{address}:{port}\"\ncluster = \"c\"\n{more}\n")
    };
    let cluster = format!("[cluster.c]\nbackends = [\"{}\"]\n", backend.address());
    let first = format!("workers = 2\n{}{cluster}", listener("0.0.0.0", ""));
    let both = listener("[::]", "v6_only = true") + &listener("0.0.0.0", "");
    let second = flowgate_config::parse(&format!("workers = 2\n{both}{cluster}"), "f").unwrap();
    let _first = Balancer::start(&first);
    let started = flowgate::control::server::Server::start(
        &second,
        flowgate::sys::clock::Clock::start(),
        flowgate::control::server::ServerOptions::default(),
        |_| {},
    );
    assert!(started.is_err_and(|error| error.to_string().contains("another process has the port")));
}

#[test]
fn listeners_may_lie_beside_each_other_with_one_worker_too() {
    let backends = [Peer::v4(), Peer::v4()];
    let port = free_port();
    let toml = format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\ncluster = \"one\"\n[[listener]]\naddress = \
         \"0.0.0.0:{port}\"\ncluster = \"other\"\n[cluster.one]\nbackends = \
         [\"{}\"]\n[cluster.other]\nbackends = [\"{}\"]\n",
        backends[0].address(),
        backends[1].address()
    );
    let _balancer = Balancer::start(&toml);
    for (ip, backend) in [([127, 0, 0, 1], &backends[0]), ([127, 0, 0, 2], &backends[1])] {
        let client = Peer::v4();
        client.send_to(b"hello", SocketAddr::from((Ipv4Addr::from(ip), port)));
        assert_eq!(backend.receive().bytes, b"hello");
    }
}

#[test]
fn what_found_no_port_once_sends_when_there_is_one_again() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        std::fs::write(range, "40000 40007").expect("a range of the namespace's own");
        let backend = Peer::bind("127.0.0.1:21000");
        let taken: Vec<_> =
            (40_000..=40_007).map(|port| Peer::bind(&format!("0.0.0.0:{port}"))).collect();
        let balancer = Balancer::between("127.0.0.1:21001", &[&backend], "mode = \"one-way\"");
        let client = Peer::bind("127.0.0.1:22000");
        client.send_to(b"lost", balancer.address());
        balancer.eventually("it is dropped", |figures| {
            figures.counters.to_backend.dropped_for(DropReason::NoPorts).datagrams == 1
        });
        drop(taken);
        client.send_to(b"sent", balancer.address());
        assert_eq!(backend.receive().bytes, b"sent");
    });
}
