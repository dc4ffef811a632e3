//! `source`: which address and port of ours the backends see.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU16, Ordering};

use flowgate::control::server::{Server, ServerOptions};
use flowgate::sys::clock::Clock;
use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, simple_config};
use flowgate_tests::process::{ConfigFile, Process, output};

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn balancer(backend: &Peer, source: &str) -> Balancer {
    let more = format!("source = {source:?}");
    let listen = if backend.address().is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
    Balancer::between(listen, &[backend], &more)
}

fn client_of(backend: &Peer) -> Peer {
    if backend.address().is_ipv6() { Peer::v6() } else { Peer::v4() }
}

/// The first of `count` ports in a row that nobody has, and no other test gets.
fn free_ports(address: &str, count: u16) -> u16 {
    const BLOCK: u16 = 16;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    assert!(count <= BLOCK);
    let is_free = |port: u16| UdpSocket::bind(format!("{address}:{port}")).is_ok();
    // Below what the kernel gives away by itself, so that none is taken meanwhile; each process
    // begins elsewhere.
    let start = (std::process::id() % 1_000) as u16;
    loop {
        let block = (start + TAKEN.fetch_add(1, Ordering::Relaxed)) % 1_300;
        let first = 10_000 + block * BLOCK;
        if (first..first + count).all(is_free) {
            return first;
        }
    }
}

#[test]
fn datagrams_leave_from_the_address_that_is_configured() {
    let backend = Peer::v4();
    let balancer = balancer(&backend, "127.0.0.7");
    for _ in 0..3 {
        let client = Peer::v4();
        client.send_to(b"question", balancer.address());
        let question = backend.answer(b"answer");
        assert_eq!(question.from.ip().to_string(), "127.0.0.7");
        assert_eq!(client.receive().bytes, b"answer");
    }
    balancer.assert_lossless(3, 3);
}

fn every_port_is_used_and_then_none_is_left(backend: &Peer, address: &str, source: &str) {
    const PORTS: u16 = 12;
    let first = free_ports(address, PORTS);
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
    let is_counted = |figures: &flowgate::datapath::report::ShardReport| {
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
    let first = free_ports("127.0.0.22", PORTS);
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
    let first = free_ports("127.0.0.10", 2);
    let _taken = UdpSocket::bind(("127.0.0.10", first)).unwrap();
    let balancer = balancer(&backend, &format!("127.0.0.10:{first}-{}", first + 1));
    Peer::v4().send_to(b"question", balancer.address());
    assert_eq!(backend.receive().from.port(), first + 1);
}

#[test]
fn a_port_is_free_again_when_its_flow_ends() {
    let backend = Peer::v4();
    let port = free_ports("127.0.0.11", 1);
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
fn an_address_that_is_not_this_hosts_is_an_error_at_start() {
    let toml = "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
                [cluster.web]\nsource = \"192.0.2.77\"\nbackends = [\"10.0.0.1:53\"]\n";
    let config = flowgate_config::parse(toml, "test.toml").expect("valid anywhere");
    let started = Server::start(&config, Clock::start(), ServerOptions::default(), |_| {});
    let error = started.err().expect("refused").to_string();
    assert_eq!(
        error,
        "cluster \"web\": cannot send from source \"192.0.2.77\": Cannot assign requested address \
         (os error 99); the address is not one of this host: see `ip address`, or change \
         cluster.NAME.source"
    );
}

#[test]
fn datagrams_without_flows_leave_from_the_source_too() {
    let ports = free_ports("127.0.0.12", 4);
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
fn every_leg_and_every_copy_leaves_from_the_source() {
    for reply_from in ["first", "BACKEND"] {
        let (backends, client) = ([Peer::v4(), Peer::v4()], Peer::v4());
        let reply_from = reply_from.replace("BACKEND", &backends[0].address().to_string());
        let more =
            format!("mode = \"fan-out\"\nreply_from = {reply_from:?}\nsource = \"127.0.0.13\"\n");
        let peers: Vec<_> = backends.iter().collect();
        let balancer = Balancer::between("127.0.0.1:0", &peers, &more);
        client.send_to(b"question", balancer.address());
        for backend in &backends {
            assert_eq!(backend.receive().from.ip().to_string(), "127.0.0.13", "{reply_from}");
        }
    }
}

#[test]
fn a_mirror_has_a_source_of_its_own() {
    let (backend, mirror, client) = (Peer::v4(), Peer::v4(), Peer::v4());
    let balancer = Balancer::start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"main\"\n\
         [cluster.main]\nbackends = [\"{}\"]\nsource = \"127.0.0.14\"\n\
         mirror = {{ cluster = \"shadow\" }}\n\
         [cluster.shadow]\nbackends = [\"{}\"]\nsource = \"127.0.0.15\"\n",
        backend.address(),
        mirror.address()
    ));
    client.send_to(b"question", balancer.address());
    assert_eq!(backend.receive().from.ip().to_string(), "127.0.0.14");
    assert_eq!(mirror.receive().from.ip().to_string(), "127.0.0.15");
}

#[test]
fn a_reload_that_changes_the_source_has_effect_on_whatever_opens_from_then_on() {
    for mode in ["mode = \"session\"\nresponses = 1\nupstream = \"shared\"", "mode = \"one-way\""] {
        let (backend, known) = (Peer::v4(), Peer::v4());
        let toml = |address: &str, source: &str| {
            simple_config(address, &[&backend], &format!("{mode}\nsource = {source:?}"))
        };
        let mut running = Process::run(FLOWGATE, &toml("127.0.0.1:0", "127.0.0.16"));
        let address = running.address();
        let source_of_next = || {
            let client = Peer::v4();
            client.send_to(b"question", address);
            backend.answer(b"answer").from.ip().to_string()
        };
        assert_eq!(source_of_next(), "127.0.0.16");
        let is_session = mode.contains("session");
        if is_session {
            // Two answers are due, so that it lives on.
            known.send_to(b"one", address);
            known.send_to(b"two", address);
            assert_eq!(backend.answer(b"answer").from.ip().to_string(), "127.0.0.16");
            let _ = backend.receive();
        }
        running.reload(&toml("127.0.0.1:0", "127.0.0.17"));
        assert_eq!(source_of_next(), "127.0.0.17", "{mode}");
        if is_session {
            known.send_to(b"three", address);
            assert_eq!(backend.receive().from.ip().to_string(), "127.0.0.16");
        }
    }
}

#[test]
fn a_reload_to_a_source_that_cannot_be_had_changes_nothing() {
    let backend = Peer::v4();
    let toml =
        |source: &str| simple_config("127.0.0.1:0", &[&backend], &format!("source = {source:?}"));
    let mut running = Process::run(FLOWGATE, &toml("127.0.0.18"));
    let address = running.address();
    running.rewrite_config(&toml("192.0.2.77"));
    let refused = running.ask(&["reload"]);
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && complaint.contains("192.0.2.77"), "{complaint}");
    Peer::v4().send_to(b"question", address);
    assert_eq!(backend.receive().from.ip().to_string(), "127.0.0.18");
}

#[test]
fn probes_leave_from_the_source() {
    let backend = Peer::v4();
    let udp = format!(
        "source = \"127.0.0.19\"\nhealth = {{ probe = \"udp\", send = \"text:PING\", port = {}, \
         interval = \"50ms\", timeout = \"40ms\" }}",
        backend.address().port()
    );
    let _balancer = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], &udp));
    let probe = backend.receive();
    assert_eq!(
        (probe.bytes.as_slice(), probe.from.ip().to_string().as_str()),
        (&b"PING"[..], "127.0.0.19")
    );

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp = format!(
        "source = \"127.0.0.20\"\nhealth = {{ probe = \"tcp\", port = {port}, interval = \"50ms\", \
         timeout = \"40ms\" }}"
    );
    let _balancer = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], &tcp));
    let (_connection, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.20");
}

#[test]
fn a_flood_of_clients_that_nobody_answers_leaves_a_port_for_the_next_one() {
    let backend = Peer::v4();
    let first = free_ports("127.0.0.21", 4);
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
    flowgate_tests::e2e::eventually("a port for the next one", || {
        next.send_to(b"next", balancer.address());
        std::iter::from_fn(|| backend.receive_soon()).find(|datagram| datagram.bytes == b"next")
    });
    assert_eq!(balancer.dropped(Direction::ToBackend, DropReason::NoPorts), 0);
}

#[test]
fn explain_says_where_datagrams_leave_from() {
    let explained = |source: &str, more: &str| {
        let backend = Peer::v4();
        let toml = simple_config("127.0.0.1:0", &[&backend], &format!("source = {source:?}"));
        let toml = toml.replace("cluster = \"test\"\n", &format!("cluster = \"test\"\n{more}\n"));
        let config = ConfigFile::new(&toml);
        let explained = output(FLOWGATE, &["explain", config.path(), "192.0.2.7:99"]);
        String::from_utf8(explained.stdout).unwrap()
    };
    for (source, line) in [
        ("127.0.0.5", "  sent from 127.0.0.5\n"),
        ("127.0.0.5:20000-29999", "  sent from 127.0.0.5:20000-29999\n"),
        ("[::]:20000-29999", "  sent from 0.0.0.0:20000-29999\n"),
        ("client", "  sent from its own address: 192.0.2.7:99\n"),
    ] {
        let printed = explained(source, "");
        assert!(printed.ends_with(line), "{printed}");
    }
    let printed = explained("client", "accept_proxy_protocol = [\"10.0.0.0/8\"]");
    assert!(printed.contains("or those that its proxy names"), "{printed}");
}
