//! `mode = "fan-out"` over real sockets: everybody gets everything, whatever becomes of the others.

use std::net::SocketAddr;

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually, passing_tos};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn toml(backends: &[&Peer], more: &str) -> String {
    let backends: Vec<_> = backends.iter().map(|peer| peer.address().to_string()).collect();
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n[cluster.test]\n\
         mode = \"fan-out\"\nbackends = {backends:?}\n{more}\n"
    )
}

fn fan_out(backends: &[&Peer], more: &str) -> Balancer {
    Balancer::start(&toml(backends, more))
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn send(client: &Peer, number: u32, len: usize, to: SocketAddr) {
    let mut bytes = vec![7; len.max(4)];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    client.send_to(&bytes, to);
}

#[test]
fn every_backend_gets_every_datagram_once_and_in_order() {
    let peers = [Peer::v4(), Peer::v4(), Peer::v4()];
    let balancer = fan_out(&[&peers[0], &peers[1], &peers[2]], "");
    let client = Peer::v4();
    client.set_tos(0x28);
    for sent in 0..500 {
        send(&client, sent, 64, balancer.address());
    }
    for peer in &peers {
        for expected in 0..500 {
            let datagram = peer.receive();
            assert_eq!((number(&datagram.bytes), datagram.tos), (expected, passing_tos(0x28)));
        }
        assert_eq!(peer.receive_soon(), None);
    }
    // However many copies there are, a datagram is one datagram.
    balancer.assert_lossless(500, 0);
    let figures = balancer.figures();
    assert!(figures.backends.iter().all(|backend| backend.to.datagrams == 500));
    assert_eq!(figures.counters.flows_opened, 0);
}

#[test]
fn a_dead_backend_costs_the_others_nothing() {
    let (first, dead, last) = (Peer::v4(), Peer::v4(), Peer::v4());
    let balancer = fan_out(&[&first, &dead, &last], "");
    drop(dead);
    let client = Peer::v4();
    for sent in 0..2_000 {
        send(&client, sent, 64, balancer.address());
        assert_eq!(number(&first.receive().bytes), sent);
        assert_eq!(number(&last.receive().bytes), sent);
    }
    balancer.assert_lossless(2_000, 0);
}

#[test]
fn a_slow_backend_holds_up_nobody_and_what_it_misses_is_counted() {
    const DATAGRAMS: u32 = 12_000;
    let Some([one, two]) = Namespace::pair() else { return };
    // The way to the other side takes eight kilobytes a second, and whatever waits for it is charged
    // to the socket that sends it.
    one.tc("qdisc add dev one root tbf rate 64kbit burst 4kb limit 64mb");
    let slow = two.inside(|| Peer::bind("10.9.0.2:0"));
    let (fast, client) = (one.inside(Peer::v4), one.inside(Peer::v4));
    let balancer = one.inside(|| fan_out(&[&slow, &fast], ""));
    for sent in 0..DATAGRAMS {
        send(&client, sent, 1_000, balancer.address());
        assert_eq!(number(&fast.receive().bytes), sent);
    }
    balancer.assert_lossless(u64::from(DATAGRAMS), 0);
    let figures = balancer.figures();
    let [to_slow, to_fast] = &figures.backends[..] else { panic!("{figures:?}") };
    assert_eq!((to_fast.to.datagrams, to_fast.dropped.datagrams), (u64::from(DATAGRAMS), 0));
    assert!(to_slow.dropped.datagrams > 0, "its queue is bounded");
    // The rest waits.
    assert!(to_slow.to.datagrams + to_slow.dropped.datagrams <= u64::from(DATAGRAMS));
    // Once the way is free again what waited arrives, in order.
    one.tc("qdisc del dev one root");
    let mut last = None;
    while let Some(datagram) = slow.receive_soon() {
        assert!(last < Some(number(&datagram.bytes)), "out of order");
        last = Some(number(&datagram.bytes));
    }
    send(&client, DATAGRAMS, 64, balancer.address());
    assert_eq!(number(&slow.receive().bytes), DATAGRAMS);
    balancer.eventually("each is counted once", |figures| {
        let [to_slow, _] = &figures.backends[..] else { panic!("{figures:?}") };
        to_slow.to.datagrams + to_slow.dropped.datagrams == u64::from(DATAGRAMS) + 1
    });
}

#[test]
fn what_each_backend_missed_is_told_to_operators() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let near = Peer::v4();
        let config = toml(&[&near], "").replace("backends = [", "backends = [\"10.1.2.3:9\", ");
        let mut flowgate = Process::run(FLOWGATE, &config);
        let (address, client) = (flowgate.address(), Peer::v4());
        for sent in 0..10 {
            send(&client, sent, 64, address);
            assert_eq!(number(&near.receive().bytes), sent);
        }
        let backends = eventually("all is counted", || {
            let status = flowgate.ask_json(&["status"]);
            let backends = status["clusters"][0]["backends"].clone();
            (backends[0]["datagrams_dropped"] == 10).then_some(backends)
        });
        assert_eq!(backends[0]["datagrams_to"], 0);
        assert_eq!(
            (&backends[1]["datagrams_to"], &backends[1]["datagrams_dropped"]),
            (&10.into(), &0.into())
        );
    });
}

#[test]
fn the_named_backend_answers_and_the_others_are_not_heard() {
    let peers = [Peer::v4(), Peer::v4(), Peer::v4()];
    let reply_from = format!("reply_from = \"{}\"", peers[1].address());
    let balancer = fan_out(&[&peers[0], &peers[1], &peers[2]], &reply_from);
    let client = Peer::v4();
    for round in 0..20 {
        send(&client, round, 64, balancer.address());
        peers[0].answer(b"not this");
        peers[2].answer(b"nor this");
        assert_eq!(number(&peers[1].answer(b"this").bytes), round);
        let answer = client.receive();
        assert_eq!((answer.bytes.as_slice(), answer.from), (&b"this"[..], balancer.address()));
    }
    assert_eq!(client.receive_soon(), None);
    balancer.assert_lossless(20, 20);
    assert_eq!(balancer.figures().flows_active, 1);
}

#[test]
fn the_first_answer_is_passed_on_and_later_ones_are_not() {
    let peers = [Peer::v4(), Peer::v4(), Peer::v4()];
    let balancer =
        fan_out(&[&peers[0], &peers[1], &peers[2]], "reply_from = \"first\"\nresponses = 1");
    for round in 0..12 {
        // Each question is a flow of its own, and another backend is first each time.
        let client = Peer::v4();
        send(&client, round, 64, balancer.address());
        let requests: Vec<_> = peers.iter().map(Peer::receive).collect();
        let first = round as usize % 3;
        peers[first].send_to(&[first as u8], requests[first].from);
        assert_eq!(client.receive().bytes, [first as u8]);
        for (peer, request) in peers.iter().zip(&requests) {
            peer.send_to(b"late", request.from);
        }
        assert_eq!(client.receive_soon(), None);
    }
    let figures = balancer.eventually("all flows are over", |figures| figures.flows_active == 0);
    assert_eq!(figures.counters.to_backend.received, figures.counters.to_backend.forwarded);
    assert_eq!(figures.counters.to_client.forwarded.datagrams, 12);
    assert_eq!(figures.counters.flows_opened, 36);
}

#[test]
fn when_the_first_to_answer_falls_silent_another_one_is_heard() {
    let peers = [Peer::v4(), Peer::v4()];
    let balancer = fan_out(&[&peers[0], &peers[1]], "reply_from = \"first\"");
    let client = Peer::v4();
    send(&client, 0, 64, balancer.address());
    peers[0].answer(b"first");
    assert_eq!(client.receive().bytes, b"first");
    peers[1].answer(b"second");
    balancer.eventually("it is counted", |figures| {
        figures.counters.to_client.dropped_for(DropReason::NotFirst).datagrams == 1
    });
    // It answers no more. One datagram later someone else is heard.
    for _ in 0..2 {
        send(&client, 1, 64, balancer.address());
        peers[1].receive();
    }
    send(&client, 2, 64, balancer.address());
    peers[1].answer(b"second");
    assert_eq!(client.receive().bytes, b"second");
    let dropped = balancer.dropped(Direction::ToClient, DropReason::NotFirst);
    assert_eq!(dropped, 1);
}

#[test]
fn a_stranger_cannot_answer_in_any_mode() {
    for reply_from in ["none", "first", "NAME"] {
        let (backend, stranger, client) = (Peer::v4(), Peer::v4(), Peer::v4());
        let name = backend.address().to_string();
        let reply_from = reply_from.replace("NAME", &name);
        let balancer = fan_out(&[&backend], &format!("reply_from = {reply_from:?}"));
        client.send_to(b"?", balancer.address());
        let request = backend.receive();
        stranger.send_to(b"forged", request.from);
        backend.send_to(b"!", request.from);
        if reply_from != "none" {
            assert_eq!(client.receive().bytes, b"!");
        }
        assert_eq!(client.receive_soon(), None);
    }
}

#[test]
fn a_drained_backend_gets_no_copies_and_one_of_no_weight_never_does() {
    let peers = [Peer::v4(), Peer::v4(), Peer::v4()];
    let [first, second, weightless] = [0, 1, 2].map(|index| peers[index].address());
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n[cluster.test]\n\
         mode = \"fan-out\"\n\
         backends = [\"{first}\", \"{second}\", {{ address = \"{weightless}\", weight = 0 }}]\n"
    );
    let mut flowgate = Process::run(FLOWGATE, &config);
    let (address, client) = (flowgate.address(), Peer::v4());
    assert!(flowgate.ask(&["drain", &format!("test/{first}")]).status.success());
    send(&client, 1, 64, address);
    assert_eq!(number(&peers[1].receive().bytes), 1);
    assert!(flowgate.ask(&["undrain", &format!("test/{first}")]).status.success());
    send(&client, 2, 64, address);
    assert_eq!(number(&peers[0].receive().bytes), 2);
    assert_eq!(number(&peers[1].receive().bytes), 2);
    assert_eq!(peers[2].receive_soon(), None);
}
