//! Sockets that flows share: whose an answer is, what a new flow costs, and what the network says.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually};
use flowgate_tests::skip::lacks;

const SHARED: &str = "upstream = \"shared\"\nbalance = \"round-robin\"";

/// A DNS question for a name of one letter, and an answer that repeats it.
fn dns(id: u16, letter: u8, is_answer: bool) -> Vec<u8> {
    let flags = if is_answer { 0x80 } else { 0x01 };
    let header = [(id >> 8) as u8, id as u8, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], &[1, letter, 0, 0, 1, 0, 1]].concat()
}

#[test]
fn clients_share_sockets_and_each_gets_its_own_answers() {
    let backends = [Peer::v4(), Peer::v4()];
    let balancer = Balancer::between("127.0.0.1:0", &[&backends[0], &backends[1]], SHARED);
    let clients: Vec<Peer> = (0..20).map(|_| Peer::v4()).collect();
    let mut asked = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], balancer.address());
        let backend = &backends[number % 2];
        let question = backend.receive();
        asked.push((backend, question.from));
    }
    // Ten flows to each backend, on ten sockets that both use.
    let sockets: BTreeSet<SocketAddr> = asked.iter().map(|(_, from)| *from).collect();
    assert_eq!(sockets.len(), 10, "{sockets:?}");
    for (number, (backend, from)) in asked.iter().enumerate().rev() {
        backend.send_to(&[100 + number as u8], *from);
    }
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(client.receive().bytes, [100 + number as u8]);
    }
    let stranger = Peer::v4();
    stranger.send_to(b"who am I?", asked[0].1);
    eventually("it is dropped", || {
        let foreign = balancer.dropped(Direction::ToClient, DropReason::ForeignSource);
        (foreign == 1).then_some(())
    });
}

#[test]
fn a_late_answer_reaches_nobody_else() {
    let backend = Peer::v4();
    let more = format!("{SHARED}\nidle_timeout = \"20ms\"\nupstream_quarantine = \"60s\"");
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], &more);
    let late = Peer::v4();
    late.send_to(b"late", balancer.address());
    let place = backend.receive().from;
    balancer.eventually("it ends", |figures| figures.flows_active == 0);
    let others: Vec<Peer> = (0..10).map(|_| Peer::v4()).collect();
    for other in &others {
        other.send_to(b"another", balancer.address());
        assert_ne!(backend.receive().from, place, "its place is nobody else's");
    }
    backend.send_to(b"answer", place);
    eventually("it is dropped", || {
        let unknown = balancer.dropped(Direction::ToClient, DropReason::UnknownFlow);
        (unknown == 1).then_some(())
    });
    assert!(others.iter().all(|other| other.receive_soon().is_none()));
}

#[test]
fn what_icmp_says_is_held_against_the_backend_that_it_speaks_of() {
    if lacks("what ICMP says of shared sockets") {
        return;
    }
    let (alive, dead) = (Peer::v4(), Peer::v4());
    let more = format!("{SHARED}\nhealth.passive = true");
    let balancer = Balancer::between("127.0.0.1:0", &[&alive, &dead], &more);
    drop(dead);
    let clients: Vec<Peer> = (0..8).map(|_| Peer::v4()).collect();
    eventually("the dead one is out of service", || {
        clients.iter().for_each(|client| client.send_to(b"?", balancer.address()));
        let figures = balancer.figures();
        let states: Vec<_> = figures.backends.iter().map(|b| b.state.as_str()).collect();
        while alive.receive_soon().is_some() {}
        (states[1] == "ejected").then(|| assert_ne!(states[0], "ejected"))
    });
}

#[test]
fn one_client_has_many_questions_under_way_and_gets_every_answer() {
    const QUESTIONS: u16 = 200;
    let backends = [Peer::v4(), Peer::v4()];
    let more = "transactions = \"dns\"\nbalance = \"round-robin\"";
    let balancer = Balancer::between("127.0.0.1:0", &[&backends[0], &backends[1]], more);
    let client = Peer::v4();
    let mut waiting = Vec::new();
    for id in 0..QUESTIONS {
        client.send_to(&dns(id, b'a', false), balancer.address());
        let backend = &backends[usize::from(id % 2)];
        let question = backend.receive();
        assert_eq!(question.bytes, dns(id, b'a', false), "as sent");
        waiting.push((id, backend, question.from));
    }
    let sockets: BTreeSet<SocketAddr> = waiting.iter().map(|(_, _, from)| *from).collect();
    assert!(sockets.len() <= 16, "{}", sockets.len());
    for &(id, backend, from) in waiting.iter().rev() {
        // Neither an answer to another question, nor one that is none.
        backend.send_to(&dns(id, b'b', true), from);
        backend.send_to(&dns(id, b'a', true), from);
    }
    let mut answered = BTreeSet::new();
    for _ in 0..QUESTIONS {
        let answer = client.receive().bytes;
        assert_eq!(answer[12..15], [1, b'a', 0]);
        answered.insert(u16::from_be_bytes([answer[0], answer[1]]));
    }
    assert_eq!(answered.len(), usize::from(QUESTIONS));
    balancer.eventually("all are over", |figures| figures.flows_active == 0);
    let unknown = balancer.dropped(Direction::ToClient, DropReason::UnknownFlow);
    assert_eq!(unknown, u64::from(QUESTIONS));

    client.send_to(b"no question", balancer.address());
    eventually("it is dropped", || {
        let malformed = balancer.dropped(Direction::ToBackend, DropReason::Malformed);
        (malformed == 1).then_some(())
    });
}

#[test]
fn the_same_question_of_two_clients_goes_by_two_sockets() {
    let backend = Peer::v4();
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], "transactions = \"dns\"");
    let clients = [(); 40].map(|()| Peer::v4());
    let mut places = Vec::new();
    for client in &clients {
        client.send_to(&dns(7, b'a', false), balancer.address());
        places.push(backend.receive().from);
    }
    let distinct: BTreeSet<_> = places.iter().collect();
    assert_eq!(distinct.len(), clients.len(), "an answer would be anybody's");
    for (place, client) in places.iter().zip(&clients) {
        backend.send_to(&dns(7, b'a', true), *place);
        assert_eq!(client.receive().bytes, dns(7, b'a', true));
        assert!(client.receive_soon().is_none());
    }
}
