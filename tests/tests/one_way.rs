//! `mode = "one-way"` over real sockets: nobody answers, and nothing stops it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually, passing_tos, pattern, simple_config};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn one_way(backends: &[&Peer], more: &str) -> Balancer {
    let address = if backends[0].address().is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
    Balancer::between(address, backends, &format!("mode = \"one-way\"\n{more}"))
}

/// What a backend receives next: who it is from, by its first byte, and its number.
fn numbered(backend: &Peer) -> (u8, u32) {
    let bytes = backend.receive().bytes;
    let number = bytes[1..5].try_into().expect("five bytes");
    (bytes[0], u32::from_be_bytes(number))
}

fn send_numbered(client: &Peer, who: u8, number: u32, to: SocketAddr) {
    client.send_to(&[&[who][..], &number.to_be_bytes()].concat(), to);
}

#[test]
fn each_datagram_arrives_once_in_the_order_of_its_client_and_makes_no_flow() {
    let (first, second) = (Peer::v4(), Peer::v4());
    let balancer =
        one_way(&[&first, &second], "balance = \"rendezvous\"\naffinity = \"source-ip-port\"");
    let clients: Vec<_> = (0..16).map(|_| Peer::v4()).collect();
    for number in 0..50 {
        for (who, client) in clients.iter().enumerate() {
            send_numbered(client, who as u8, number, balancer.address());
        }
    }
    let figures = balancer.eventually("all is forwarded", |figures| {
        figures.counters.to_backend.forwarded.datagrams == 16 * 50
    });
    balancer.assert_lossless(16 * 50, 0);
    assert_eq!((figures.flows_active, figures.counters.flows_opened), (0, 0));
    let mut home = BTreeMap::new();
    for (index, backend) in [&first, &second].into_iter().enumerate() {
        let mut next = BTreeMap::new();
        for _ in 0..figures.backends[index].to.datagrams {
            let (who, number) = numbered(backend);
            assert_eq!(number, *next.entry(who).or_insert(0), "of client {who}");
            next.insert(who, number + 1);
            assert_eq!(*home.entry(who).or_insert(index), index, "client {who} has two homes");
        }
    }
    assert_eq!(home.len(), 16);
}

#[test]
fn datagrams_are_shared_out_by_weight() {
    let peers = [Peer::v4(), Peer::v4()];
    let [light, heavy] = [&peers[0], &peers[1]].map(Peer::address);
    let balancer = Balancer::start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"logs\"\n[cluster.logs]\n\
         mode = \"one-way\"\nbalance = \"round-robin\"\n\
         backends = [\"{light}\", {{ address = \"{heavy}\", weight = 3 }}]\n"
    ));
    let client = Peer::v4();
    for _ in 0..400 {
        client.send_to(b"line", balancer.address());
    }
    let figures =
        balancer.eventually("all is sent", |f| f.counters.to_backend.forwarded.datagrams == 400);
    let shares: Vec<_> = figures.backends.iter().map(|backend| backend.to.datagrams).collect();
    assert_eq!(shares, [100, 300]);
    (0..300).for_each(|_| drop(peers[1].receive()));
}

#[test]
fn bytes_sizes_marks_and_bursts_survive() {
    for (backend, client) in [(Peer::v4(), Peer::v4()), (Peer::v6(), Peer::v6())] {
        let balancer = one_way(&[&backend], "");
        client.set_tos(0xB8);
        for len in [0, 1, 1_472, 1_473, 9_000, 65_507] {
            client.send_to(&pattern(len, 3), balancer.address());
            let datagram = backend.receive();
            let expected = (pattern(len, 3), passing_tos(0xB8));
            assert_eq!((datagram.bytes, datagram.tos), expected);
        }
        let burst = pattern(10 * 700 - 3, 9);
        client.send_train(&burst, 700, balancer.address());
        for datagram in burst.chunks(700) {
            assert_eq!(backend.receive().bytes, datagram);
        }
        // It is another who sends: what comes back reaches nobody.
        balancer.assert_lossless(16, 0);
    }
}

#[test]
fn a_listener_of_one_family_sends_to_backends_of_both() {
    let (four, six) = (Peer::v4(), Peer::v6());
    let balancer = one_way(&[&four, &six], "balance = \"round-robin\"");
    let client = Peer::v4();
    for _ in 0..10 {
        client.send_to(b"x", balancer.address());
    }
    for _ in 0..5 {
        assert_eq!((four.receive().bytes, six.receive().bytes), (b"x".to_vec(), b"x".to_vec()));
    }
}

#[test]
fn a_backend_that_nobody_listens_at_stops_nothing() {
    let (alive, dead) = (Peer::v4(), Peer::v4());
    let balancer = one_way(&[&alive, &dead], "balance = \"round-robin\"");
    drop(dead);
    let client = Peer::v4();
    for number in 0..2_000 {
        send_numbered(&client, 0, number, balancer.address());
        if number % 2 == 0 {
            // Each refusal has come back by now.
            assert_eq!(numbered(&alive), (0, number));
        }
    }
    balancer.eventually("all is sent", |f| f.counters.to_backend.forwarded.datagrams == 2_000);
    balancer.assert_lossless(2_000, 0);
    let figures = balancer.figures();
    assert!(figures.backends.iter().all(|backend| backend.is_up), "nothing tells that it is dead");
    assert_eq!(figures.counters.upstream_errors, 0);
}

#[test]
fn what_backends_say_is_heard_by_nobody() {
    let backend = Peer::v4();
    let balancer = one_way(&[&backend], "");
    let client = Peer::v4();
    for _ in 0..200 {
        client.send_to(b"?", balancer.address());
        backend.answer(b"!");
    }
    balancer.assert_lossless(200, 0);
}

#[test]
fn it_goes_on_through_a_network_that_comes_and_goes() {
    let Some([one, two]) = Namespace::pair() else { return };
    let far = two.inside(|| Peer::bind("10.9.0.2:0"));
    let near = one.inside(Peer::v4);
    let client = one.inside(Peer::v4);
    let balancer = one.inside(|| one_way(&[&far, &near], "balance = \"round-robin\""));
    let send_two = |number: u32| {
        send_numbered(&client, 0, number, balancer.address());
        send_numbered(&client, 0, number, balancer.address());
    };
    for round in 0..3 {
        send_two(round);
        assert_eq!((numbered(&far).1, numbered(&near).1), (round, round));
        one.ip("link set one down");
        let before = balancer.dropped(Direction::ToBackend, DropReason::Unreachable);
        for _ in 0..20 {
            send_two(99);
            assert_eq!(numbered(&near).1, 99, "it stops nobody else");
        }
        let dropped = || balancer.dropped(Direction::ToBackend, DropReason::Unreachable);
        eventually("the drops are counted", || (dropped() == before + 20).then_some(()));
        one.ip("link set one up");
        eventually("the network is back", || {
            // Until the cable carries again there may be no route.
            send_two(1_000 + round);
            numbered(&near);
            let unreachable = balancer.dropped(Direction::ToBackend, DropReason::Unreachable);
            let sent = balancer.figures().backends[0].to.datagrams;
            (sent > 0 && unreachable >= before + 20 && far_has(&far, 1_000 + round)).then_some(())
        });
    }
    let figures = balancer.figures();
    assert!(figures.backends[0].dropped.datagrams >= 60);
    assert_eq!(figures.backends[1].dropped.datagrams, 0);
}

/// Whether a datagram of this number comes soon; all before are thrown away.
fn far_has(far: &Peer, number: u32) -> bool {
    while let Some(datagram) = far.receive_soon() {
        if datagram.bytes[1..5] == number.to_be_bytes() {
            while far.receive_soon().is_some() {}
            return true;
        }
    }
    false
}

fn toml(backends: &[&Peer], more: &str) -> String {
    format!("{}balance = \"round-robin\"\n{more}\n", simple_config("127.0.0.1:0", backends, ""))
}

#[test]
fn a_drained_backend_gets_nothing_until_it_is_wanted_again() {
    let peers = [Peer::v4(), Peer::v4()];
    let mut flowgate = Process::run(FLOWGATE, &toml(&[&peers[0], &peers[1]], "mode = \"one-way\""));
    let address = flowgate.address();
    let client = Peer::v4();
    let drained = format!("test/{}", peers[0].address());
    assert!(flowgate.ask(&["drain", &drained]).status.success());
    for number in 0..10 {
        send_numbered(&client, 0, number, address);
        assert_eq!(numbered(&peers[1]).1, number);
    }
    assert!(flowgate.ask(&["undrain", &drained]).status.success());
    send_numbered(&client, 0, 10, address);
    send_numbered(&client, 0, 11, address);
    assert!(numbered(&peers[0]).1 >= 10);
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["clusters"][0]["mode"], "one-way");
    assert_eq!(status["listeners"][0]["flows_active"], 0);
}

#[test]
fn a_reload_goes_from_one_mode_to_any_other_and_loses_nothing() {
    let peers = [Peer::v4(), Peer::v4()];
    let both = [&peers[0], &peers[1]];
    let modes = [
        "mode = \"session\"",
        "mode = \"one-way\"",
        "mode = \"fan-out\"",
        "mode = \"fan-out\"\nreply_from = \"first\"",
    ];
    let config = |mode: &str| simple_config("127.0.0.1:0", &both, mode);
    let mut flowgate = Process::run(FLOWGATE, &config(modes[0]));
    let address = flowgate.address();
    let client = Peer::v4();
    let mut expected = 0;
    for number in 0..24_u32 {
        let mode = modes[(number as usize * 7 / 2) % modes.len()];
        flowgate.reload(&config(mode));
        send_numbered(&client, 0, number, address);
        let copies = if mode.contains("fan-out") { 2 } else { 1 };
        expected += copies;
        eventually("every copy is sent", || {
            let status = flowgate.ask_json(&["status"]);
            let backends = status["clusters"][0]["backends"].as_array().cloned()?;
            let sent = |b: &serde_json::Value| b["datagrams_to"].as_u64();
            (backends.iter().filter_map(sent).sum::<u64>() == expected).then_some(())
        });
    }
    let mut received = 0;
    for peer in both {
        while peer.receive_soon().is_some() {
            received += 1;
        }
    }
    assert_eq!(received, expected);
    let counters = &flowgate.ask_json(&["status"])["counters"];
    assert_eq!(counters["datagrams_received"]["to_backend"], 24);
    assert_eq!(counters["datagrams_forwarded"]["to_backend"], 24);
}

#[test]
fn a_removed_backend_gets_nothing_after_the_reload() {
    let peers = [Peer::v4(), Peer::v4()];
    let mode = "mode = \"one-way\"";
    let mut flowgate = Process::run(FLOWGATE, &toml(&[&peers[0], &peers[1]], mode));
    let address = flowgate.address();
    let client = Peer::v4();
    flowgate.reload(&toml(&[&peers[1]], mode));
    for number in 0..20 {
        send_numbered(&client, 0, number, address);
        assert_eq!(numbered(&peers[1]).1, number);
    }
    assert!(peers[0].receive_soon().is_none());
}

#[test]
fn every_datagram_tells_its_client_where_that_is_wanted() {
    let backend = Peer::v4();
    let balancer = one_way(&[&backend], "send_proxy_protocol = \"every\"");
    let client = Peer::v4();
    for _ in 0..3 {
        client.send_to(b"line", balancer.address());
        let bytes = backend.receive().bytes;
        let SocketAddr::V4(from) = client.address() else { panic!() };
        assert_eq!((&bytes[16..20], &bytes[28..]), (&from.ip().octets()[..], &b"line"[..]));
    }
}
