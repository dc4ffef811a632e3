//! Questions that are asked again of another backend.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually};

/// A DNS question for one name, and an answer that repeats it.
fn dns(id: u16, is_answer: bool) -> Vec<u8> {
    let flags = if is_answer { 0x80 } else { 0x01 };
    let header = [(id >> 8) as u8, id as u8, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], &[1, b'a', 0, 0, 1, 0, 1]].concat()
}

fn asking_again(after: &str) -> String {
    format!(
        "transactions = \"dns\"\nbalance = \"round-robin\"\nidle_timeout = \"120s\"\n\
         retry = {{ after = \"{after}\", times = 1 }}"
    )
}

/// A name server that can be killed: what waits for it then is lost, and what comes later is refused.
struct Server {
    is_dead: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(socket: UdpSocket) -> Self {
        let is_dead = Arc::new(AtomicBool::new(false));
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let stop = Arc::clone(&is_dead);
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 512];
            while !stop.load(Ordering::Relaxed) {
                match socket.recv_from(&mut bytes) {
                    Ok((len, from)) => {
                        bytes[2] = 0x80;
                        let _ = socket.send_to(&bytes[..len], from);
                    }
                    Err(error) => assert!(
                        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                        "{error}"
                    ),
                }
            }
        });
        Self { is_dead, thread: Some(thread) }
    }

    fn kill(&mut self) {
        self.is_dead.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a server that answers");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn udp() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("an address");
    (socket, address)
}

fn between(backends: &[SocketAddr], more: &str) -> String {
    let list: Vec<String> = backends.iter().map(ToString::to_string).collect();
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n[cluster.test]\n{more}\n\
         backends = {list:?}\n"
    )
}

#[test]
fn a_backend_that_is_killed_under_a_stream_of_questions_leaves_none_unanswered() {
    const QUESTIONS: u16 = 3_000;
    const UNDER_WAY: u16 = 32;
    let ((first, first_address), (second, second_address)) = (udp(), udp());
    let mut dying = Server::start(first);
    let _living = Server::start(second);
    let more = asking_again("300ms");
    let balancer = Balancer::start(&between(&[first_address, second_address], &more));
    let client = Peer::v4();
    let ask = |id: u16| client.send_to(&dns(id, false), balancer.address());
    (0..UNDER_WAY).for_each(ask);
    let mut answered = BTreeSet::new();
    for next in UNDER_WAY..QUESTIONS + UNDER_WAY {
        if next == QUESTIONS / 3 {
            dying.kill();
        }
        let answer = client.receive().bytes;
        let id = u16::from_be_bytes([answer[0], answer[1]]);
        assert!(answered.insert(id), "{id} is answered twice");
        if next < QUESTIONS {
            ask(next);
        }
    }
    assert_eq!(answered.len(), usize::from(QUESTIONS));
    assert!(client.receive_soon().is_none());
    balancer.eventually("all are over", |figures| figures.flows_active == 0);
    let figures = balancer.figures();
    assert!(figures.counters.retries > 0, "nothing was asked again");
    let ledger = &figures.counters.to_backend;
    assert_eq!(ledger.received.datagrams, u64::from(QUESTIONS));
    assert_eq!(ledger.forwarded, ledger.received, "each counts once");
}

#[test]
fn a_question_that_is_refused_goes_to_another_backend_at_once() {
    let ((dead, dead_address), (socket, address)) = (udp(), udp());
    drop(dead);
    let _living = Server::start(socket);
    let balancer = Balancer::start(&between(&[dead_address, address], &asking_again("60s")));
    let client = Peer::v4();
    // Turns begin with either of them, and each question takes at least one.
    for id in 0..2 {
        client.send_to(&dns(id, false), balancer.address());
        assert_eq!(client.receive().bytes, dns(id, true));
    }
    assert!(balancer.figures().counters.retries > 0);
}

#[test]
fn a_silent_backend_may_still_be_the_first_to_answer_and_the_client_gets_one_answer() {
    let backends = [Peer::v4(), Peer::v4()];
    let more = asking_again("50ms");
    let balancer = Balancer::between("127.0.0.1:0", &[&backends[0], &backends[1]], &more);
    for first_wins in [true, false] {
        let client = Peer::v4();
        client.send_to(&dns(7, false), balancer.address());
        let (first, second) = loop {
            // Turns go on, so that either may be asked first.
            if let Some(question) = backends[0].receive_soon() {
                break ((&backends[0], question.from), (&backends[1], backends[1].receive().from));
            }
            if let Some(question) = backends[1].receive_soon() {
                break ((&backends[1], question.from), (&backends[0], backends[0].receive().from));
            }
        };
        let (winner, loser) = if first_wins { (first, second) } else { (second, first) };
        winner.0.send_to(&dns(7, true), winner.1);
        assert_eq!(client.receive().bytes, dns(7, true));
        let unknown = || balancer.dropped(Direction::ToClient, DropReason::UnknownFlow);
        let before = unknown();
        loser.0.send_to(&dns(7, true), loser.1);
        eventually("it is dropped", || (unknown() == before + 1).then_some(()));
        assert!(client.receive_soon().is_none());
    }
    assert_eq!(balancer.figures().counters.retries, 2);
}
