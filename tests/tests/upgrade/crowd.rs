//! Upgrades under load: nothing is lost, reordered or moved.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flowgate::sys::process;
use flowgate_tests::skip::skip_test;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::start;

/// How many datagrams a flow has under way at a time, one behind the other.
const TRAIN: u64 = 4;

/// How many flows are asked at the same time: what waits while nobody forwards fits into the
/// buffers of every socket, also where the kernel grants no more than usual.
const ASKED: usize = 48;

/// How many datagrams a second are sent at most: a machine of two cores is to have some time left for
/// two processes at once, as one in use has.
const RATE: u64 = 30_000;

/// How long nothing may come back at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// A backend that says with each answer who asked, as it sees it.
fn backend(is_over: Arc<AtomicBool>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while !is_over.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            let answer =
                [&buffer[..length], &from.port().to_be_bytes(), &address.port().to_be_bytes()];
            // One that is lost is missed by the client.
            let _ = socket.send_to(&answer.concat(), from);
        }
    });
    address
}

/// The clients, all in one thread: each asks in its turn, several times at once, and waits for the
/// answers.
struct Crowd {
    balancer: SocketAddr,
    poll: Poll,
    clients: Vec<Client>,
    next: usize,
    waiting: usize,
    answers: u64,
    /// The longest time in which nothing came back, since it was asked last.
    longest_silence: Duration,
}

struct Client {
    socket: UdpSocket,
    sent: u64,
    received: u64,
    /// The upstream port and the backend that it had with its first answer.
    path: Option<[u8; 4]>,
}

/// Sockets of many hosts with one port: there are not enough ports for all clients and all upstream
/// sockets.
fn neighbours() -> impl Iterator<Item = UdpSocket> {
    let host = |number: u8| std::net::Ipv4Addr::new(127, 0, 77, number);
    let first = UdpSocket::bind((host(1), 0)).unwrap();
    let port = first.local_addr().unwrap().port();
    // Someone else may have the port at one of the addresses.
    let others = (2..=250).filter_map(move |number| UdpSocket::bind((host(number), port)).ok());
    std::iter::once(first).chain(others)
}

impl Crowd {
    fn new(balancer: SocketAddr, size: usize) -> Self {
        let poll = Poll::new().unwrap();
        let mut sockets = Vec::new();
        while sockets.len() < size {
            sockets.extend(neighbours().take(size - sockets.len()));
        }
        let client = |(number, socket): (usize, UdpSocket)| {
            socket.set_nonblocking(true).unwrap();
            let fd = socket.as_raw_fd();
            poll.registry()
                .register(&mut SourceFd(&fd), Token(number), Interest::READABLE)
                .unwrap();
            Client { socket, sent: 0, received: 0, path: None }
        };
        let clients = sockets.into_iter().enumerate().map(client).collect();
        let longest_silence = Duration::ZERO;
        Self { balancer, poll, clients, next: 0, waiting: 0, answers: 0, longest_silence }
    }

    /// Asks and listens until `is_over` says so, then until all answers have come.
    fn run(&mut self, mut is_over: impl FnMut(&Self) -> bool) {
        let mut events = Events::with_capacity(1_024);
        let begun = Instant::now();
        let (mut last, mut asked) = (begun, 0);
        loop {
            let stops = is_over(self);
            let due = begun.elapsed().as_micros() as u64 * RATE / 1_000_000;
            while !stops && self.waiting < ASKED && asked < due {
                self.ask();
                asked += TRAIN;
            }
            if stops && self.waiting == 0 {
                return;
            }
            self.poll.poll(&mut events, Some(Duration::from_millis(1))).unwrap();
            if events.is_empty() && self.waiting > 0 {
                assert!(last.elapsed() < PATIENCE, "{} clients wait for an answer", self.waiting);
                continue;
            }
            self.longest_silence = self.longest_silence.max(last.elapsed());
            events.iter().for_each(|event| self.listen(event.token().0));
            last = Instant::now();
        }
    }

    fn ask(&mut self) {
        let client = &mut self.clients[self.next];
        if client.received == client.sent {
            for _ in 0..TRAIN {
                client.socket.send_to(&client.sent.to_be_bytes(), self.balancer).unwrap();
                client.sent += 1;
            }
            self.waiting += 1;
        }
        self.next = (self.next + 1) % self.clients.len();
    }

    fn listen(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let mut buffer = [0; 64];
        loop {
            let length = match client.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    assert_eq!(from, self.balancer);
                    length
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            };
            let (number, path) = buffer[..length].split_at(8);
            assert_eq!(number, client.received.to_be_bytes(), "lost, reordered or repeated");
            let path: [u8; 4] = path.try_into().unwrap();
            assert_eq!(*client.path.get_or_insert(path), path, "another backend or port");
            client.received += 1;
            self.answers += 1;
            if client.received == client.sent {
                self.waiting -= 1;
            }
        }
    }
}

fn under_load(flows: usize, upgrades: usize) {
    // Both ends of all flows, and the same again while two processes have them.
    let limit = process::raise_descriptor_limit().unwrap();
    if limit < flows as u64 + 500 {
        return skip_test(&format!("{flows} flows need more open files than {limit}"));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let backends = [(); 2].map(|()| backend(Arc::clone(&is_over)).to_string());
    let (mut flowgate, address) = start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\nmax_flows = {}\n\
         [cluster.test]\nbackends = {backends:?}\nbalance = \"least-flows\"\n",
        flows + 10
    ));
    let mut crowd = Crowd::new(address, flows);
    // All flows are there before the first upgrade.
    crowd.run(|crowd| crowd.answers >= flows as u64 * TRAIN);
    (crowd.answers, crowd.longest_silence) = (0, Duration::ZERO);

    let begun = Instant::now();
    let (pauses, flowgate) = std::thread::scope(|scope| {
        let upgrades = scope.spawn(move || {
            let pause = |_| {
                let said = flowgate.upgrade(&[]);
                let after = said.split_once("for ").unwrap().1;
                after.split_once(" ms").unwrap().0.parse::<f64>().unwrap()
            };
            ((0..upgrades).map(pause).collect::<Vec<_>>(), flowgate)
        });
        crowd.run(|_| upgrades.is_finished());
        upgrades.join().unwrap()
    });
    let seconds = begun.elapsed().as_secs_f64();
    is_over.store(true, Ordering::Relaxed);

    let mut sorted = pauses;
    sorted.sort_by(f64::total_cmp);
    println!(
        "{upgrades} upgrades in {seconds:.1} s with {flows} flows and {:.0} datagrams/s there and \
         as many back: nothing was forwarded for {:.1} ms (median), {:.1} ms (99 %), {:.1} ms (most); \
         no answer came for {:?} at most",
        crowd.answers as f64 / seconds,
        sorted[sorted.len() / 2],
        sorted[(sorted.len() * 99).div_ceil(100) - 1],
        sorted[sorted.len() - 1],
        crowd.longest_silence,
    );
    let status = flowgate.ask_json(&["status"]);
    let figure = |name: &str| status["counters"][name].clone();
    let all: u64 = crowd.clients.iter().map(|client| client.received).sum();
    assert_eq!(figure("flows_opened"), flows);
    assert_eq!(status["listeners"][0]["flows_active"], flows);
    for figures in ["datagrams_received", "datagrams_forwarded"] {
        let both = HashMap::from([("to_backend", all), ("to_client", all)]);
        assert_eq!(figure(figures), serde_json::to_value(both).unwrap());
    }
}

/// One after the other: both together would need too many open files.
#[test]
fn upgrades_under_load_lose_move_and_reorder_nothing() {
    under_load(5_000, 100);
    under_load(15_000, 10);
}
