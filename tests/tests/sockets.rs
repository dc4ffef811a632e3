//! What listeners and upstream sockets do at the edges of UDP: broadcasts, last hops, a backend that
//! calls, a port that others want, and a host without a free port.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually, own_ports};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::Process;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

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
    let port = own_ports("0.0.0.0", 1);
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
    let port = own_ports("0.0.0.0", 1);
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

/// The balancer's own address changes, as by DHCP: a flow goes on from the new one, with the same
/// datagram, and nobody is blamed.
#[test]
fn a_flow_goes_on_when_the_address_is_gone_that_it_has_sent_from() {
    let Some([near, far]) = Namespace::pair() else { return };
    for (backend, gone, come) in [
        ("10.9.0.2:5000", "10.9.0.1/24", "10.9.0.7/24"),
        ("[fd09::2]:5000", "fd09::1/64", "fd09::7/64 nodad"),
    ] {
        let backend = far.inside(|| Peer::bind(backend));
        let (client, balancer) = near.inside(|| {
            let more = "health = { fail_open = false }";
            (Peer::v4(), Balancer::between("127.0.0.1:0", &[&backend], more))
        });
        client.send_to(b"before", balancer.address());
        let from = backend.answer(b"yes").from;
        client.receive();
        assert!(gone.starts_with(&from.ip().to_string()), "{from}");
        near.ip(&format!("address del {gone} dev one"));
        near.ip(&format!("address add {come} dev one"));
        // Of IPv6 the kernel says nothing at a send, only by an event.
        let from = eventually("it sends from the new address", || {
            client.send_to(b"after", balancer.address());
            let request = backend.receive_soon()?;
            come.starts_with(&request.from.ip().to_string()).then_some(request.from)
        });
        backend.send_to(b"still here", from);
        assert_eq!(client.receive().bytes, b"still here");
        let figures = balancer.figures();
        assert_eq!((figures.counters.flows_opened, figures.counters.upstream_errors), (1, 0));
        assert_eq!(figures.counters.to_backend.dropped_total().datagrams, 0, "{figures:?}");
        drop(balancer);
        near.ip(&format!("address del {} dev one", come.trim_end_matches(" nodad")));
        near.ip(&format!("address add {gone} dev one"));
    }
}

#[test]
fn one_of_several_source_addresses_that_is_gone_keeps_no_new_flow_out() {
    let Some([near, far]) = Namespace::pair() else { return };
    near.ip("address add 10.9.0.7/24 dev one");
    let backend = far.inside(|| Peer::bind("10.9.0.2:5000"));
    let (balancer, clients) = near.inside(|| {
        let more = "source = [\"10.9.0.1\", \"10.9.0.7\"]";
        (Balancer::between("127.0.0.1:0", &[&backend], more), [(); 40].map(|()| Peer::v4()))
    });
    let source_of = |client: &Peer| {
        client.send_to(b"question", balancer.address());
        let from = backend.answer(b"answer").from;
        client.receive();
        from.ip().to_string()
    };
    let mut both: Vec<_> = clients[..20].iter().map(source_of).collect();
    both.sort_unstable();
    both.dedup();
    assert_eq!(both, ["10.9.0.1", "10.9.0.7"], "one in 500,000 times there is one only");
    near.ip("address del 10.9.0.7/24 dev one");
    assert!(clients[20..].iter().all(|client| source_of(client) == "10.9.0.1"));
}

#[test]
fn a_backend_that_the_network_calls_unreachable_is_left() {
    let Some([near, far]) = Namespace::pair() else { return };
    let backend = far.inside(|| Peer::bind("10.9.0.2:5000"));
    near.inside(|| {
        // Nobody has that address, which is found out soon.
        std::fs::write("/proc/sys/net/ipv4/neigh/one/retrans_time_ms", "20").expect("a link");
        let toml = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"c\"\n[cluster.c]\nbalance = \
             \"round-robin\"\nbackends = [\"10.9.0.77:5000\", \"{}\"]\n",
            backend.address()
        );
        let (client, balancer) = (Peer::v4(), Balancer::start(&toml));
        eventually("its flow moves to the other backend", || {
            client.send_to(b"is anybody there?", balancer.address());
            backend.receive_soon()
        });
        assert!(balancer.figures().counters.upstream_errors >= 2);
    });
}

/// What the kernel drops at an upstream socket is counted, and there is as much room as for clients.
#[test]
fn replies_that_the_kernel_drops_are_counted() {
    const REPLIES: u64 = 9_000;
    let backend = Peer::v4();
    let toml = flowgate_tests::e2e::simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &toml);
    let (client, address) = (Peer::v4(), flowgate.address());
    client.send_to(b"question", address);
    let upstream = backend.receive().from;
    flowgate.signal(Signal::SIGSTOP);
    (0..REPLIES).for_each(|_| backend.send_to(&[7; 1_200], upstream));
    flowgate.signal(Signal::SIGCONT);
    eventually("all are received, or counted as dropped", || {
        // With each datagram that comes the kernel says how many it has dropped before.
        backend.send_to(b"one more", upstream);
        let status = flowgate.ask_json(&["status"]);
        let listener = &status["listeners"][0];
        let drops = listener["upstream_socket_drops"].as_u64().expect("a number");
        let received = listener["to_client"]["received"]["datagrams"].as_u64().expect("a number");
        (drops > 0 && received + drops > REPLIES).then_some(())
    });
}
