//! Clients with sockets of their own (`accept`): nothing is lost, no order changes, and answers
//! come from the address that was called, whatever strangers do meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Datagram, Peer, eventually, simple_config};
use flowgate_tests::process::Process;
use flowgate_tests::skip::skip;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
use nix::unistd::Pid;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn config(address: &str, accept: &str, workers: u32, backends: &[&Peer], more: &str) -> String {
    let config = simple_config(address, backends, more);
    let listener = format!("[[listener]]\naccept = {accept:?}");
    format!("workers = {workers}\n{}", config.replace("[[listener]]", &listener))
}

fn balancer(address: &str, accept: &str, backends: &[&Peer]) -> Balancer {
    Balancer::start(&config(address, accept, 1, backends, ""))
}

/// An address of this test alone: a late answer to a port that a flow of another test has had finds
/// nobody.
struct Place(String);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU8 = AtomicU8::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        Self(format!("127.{}.{}.{number}", 1 + process % 200, process / 200 % 250))
    }

    fn peer(&self) -> Peer {
        Peer::bind(&format!("{}:0", self.0))
    }

    fn listen(&self) -> String {
        format!("{}:0", self.0)
    }
}

/// Whether a socket on `at` is connected to `client`, as the kernel lists its sockets.
fn is_connected(at: SocketAddr, client: SocketAddr) -> bool {
    let list = std::fs::read_to_string("/proc/net/udp6").expect("a list of sockets");
    let (local, remote) = (format!(":{:04X}", at.port()), format!(":{:04X}", client.port()));
    list.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let is = |column: Option<&str>, end: &str| column.is_some_and(|text| text.ends_with(end));
        is(columns.next(), &local) && is(columns.next(), &remote)
    })
}

/// Whether this kernel gives clients sockets of their own; says so where it does not.
fn can_have_sockets_of_their_own() -> bool {
    let possible = flowgate::control::accept::try_it();
    possible.or_else(|error| skip(&error.to_string()).ok_or(())).is_ok()
}

fn exchange(client: &Peer, backend: &Peer, at: SocketAddr, what: &[u8]) {
    client.send_to(what, at);
    assert_eq!(backend.answer(what).bytes, what);
    let answer = client.receive();
    assert_eq!((answer.bytes.as_slice(), answer.from), (what, at));
}

#[test]
fn a_connected_client_has_a_socket_of_its_own_from_the_first_datagram_until_its_flow_ends() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let config = config(&place.listen(), "connected", 1, &[&backend], "idle_timeout = \"2s\"");
    let balancer = Balancer::start(&config);
    let client = place.peer();
    client.send_to(b"hello", balancer.address());
    backend.receive();
    eventually("a socket", || is_connected(balancer.address(), client.address()).then_some(()));
    exchange(&client, &backend, balancer.address(), b"again");
    eventually("no socket", || (!is_connected(balancer.address(), client.address())).then_some(()));
    exchange(&client, &backend, balancer.address(), b"a new flow");
    balancer.assert_lossless(3, 2);
}

#[test]
fn a_confirmed_client_has_one_from_its_first_datagram_after_an_answer() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let balancer = balancer(&place.listen(), "confirmed", &[&backend]);
    let client = place.peer();
    exchange(&client, &backend, balancer.address(), b"one");
    assert!(!is_connected(balancer.address(), client.address()));
    for _ in 0..5 {
        exchange(&client, &backend, balancer.address(), b"more");
        assert!(is_connected(balancer.address(), client.address()));
    }
    balancer.assert_lossless(6, 6);
}

#[test]
fn a_shared_client_has_none() {
    let place = Place::new();
    let backend = place.peer();
    let balancer = balancer(&place.listen(), "shared", &[&backend]);
    let client = place.peer();
    (0..3).for_each(|_| exchange(&client, &backend, balancer.address(), b"hello"));
    assert!(!is_connected(balancer.address(), client.address()));
}

/// A storm over a process of its own: clients send numbered datagrams, each from before its socket
/// exists to long after, while strangers who are never heard of again send all the time. Every
/// datagram arrives, those of a client in order.
struct Storm<'a> {
    workers: u32,
    cluster: &'a str,
    /// How many datagrams leave with one system call.
    train: u32,
    /// Whether the backend answers.
    answers: bool,
}

const CLIENTS: u32 = 12;
const DATAGRAMS: u32 = 240;

impl Storm<'_> {
    fn rage(&self) {
        let place = Place::new();
        let backend = place.peer();
        let toml = config(&place.listen(), "connected", self.workers, &[&backend], self.cluster);
        let mut flowgate = Process::run(FLOWGATE, &toml);
        let at = flowgate.address();
        let (is_over, strangers) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && strangers.load(Ordering::Relaxed) < 600 {
                    place.peer().send_to(&[0xFF; 8], at);
                    strangers.fetch_add(1, Ordering::Relaxed);
                }
            });
            for client in 0..CLIENTS {
                let socket = place.peer();
                scope.spawn(move || self.send(client, &socket, at));
            }
            let came = self.receive(&backend, || flowgate.ask_json(&["status"]));
            is_over.store(true, Ordering::Relaxed);
            for (client, numbers) in came {
                assert!(numbers.iter().copied().eq(0..DATAGRAMS), "of {client}: {numbers:?}");
            }
        });
        let sent = u64::from(CLIENTS * DATAGRAMS) + strangers.load(Ordering::Relaxed);
        eventually("everything arrives", || {
            let status = flowgate.ask_json(&["status"]);
            let ledger = &status["listeners"][0]["to_backend"];
            let (received, forwarded) = (&ledger["received"], &ledger["forwarded"]);
            (received["datagrams"] == sent && received == forwarded).then_some(())
        });
    }

    /// What a client sends, from one core: from one to the next the kernel does not keep the order.
    fn send(&self, client: u32, socket: &Peer, at: SocketAddr) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut core = CpuSet::new();
        core.set(client as usize % cores).unwrap();
        sched_setaffinity(Pid::from_raw(0), &core).unwrap();
        for first in (0..DATAGRAMS).step_by(self.train as usize) {
            let datagram =
                |number: u32| [client.to_be_bytes(), number.to_be_bytes()].into_iter().flatten();
            let bytes: Vec<u8> = (first..first + self.train).flat_map(datagram).collect();
            match self.train {
                1 => socket.send_to(&bytes, at),
                _ => socket.send_train(&bytes, 8, at),
            }
            if first % 48 < self.train {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// The numbers that come of each client.
    fn receive(
        &self,
        backend: &Peer,
        status: impl Fn() -> serde_json::Value,
    ) -> BTreeMap<u32, Vec<u32>> {
        let mut came: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        while came.values().map(Vec::len).sum::<usize>() < (CLIENTS * DATAGRAMS) as usize {
            let Ok(Datagram { bytes, from, .. }) = backend.try_receive() else {
                panic!("lost, of {:?}: {}", came, status());
            };
            // An answer to a flow of another test, whose port the backend has now, is none.
            let Ok(numbers) = <[u8; 8]>::try_from(bytes.as_slice()) else { continue };
            let numbers = u64::from_be_bytes(numbers);
            let (client, number) = ((numbers >> 32) as u32, numbers as u32);
            if client != u32::MAX {
                came.entry(client).or_default().push(number);
            }
            if self.answers {
                backend.send_to(b"answer", from);
            }
        }
        came
    }
}

const CALM: Storm<'_> = Storm { workers: 1, cluster: "", train: 1, answers: false };

#[test]
fn a_train_from_before_the_socket_exists_to_long_after_keeps_its_order() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let balancer = balancer(&place.listen(), "connected", &[&backend]);
    for _ in 0..20 {
        let client = place.peer();
        for number in 0..200_u8 {
            client.send_to(&[number], balancer.address());
        }
        for number in 0..200 {
            assert_eq!(backend.receive().bytes, [number]);
        }
    }
    balancer.assert_lossless(4_000, 0);
}

#[test]
fn a_storm_loses_nothing_and_changes_no_order() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    CALM.rage();
}

#[test]
fn nor_does_one_over_several_workers() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    Storm { workers: 2, ..CALM }.rage();
    Storm { workers: 3, ..CALM }.rage();
}

#[test]
fn nor_one_of_trains() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    Storm { train: 24, ..CALM }.rage();
    Storm { train: 24, workers: 2, ..CALM }.rage();
}

#[test]
fn nor_one_in_which_flows_retire() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    Storm { cluster: "requests = 3", ..CALM }.rage();
    Storm { cluster: "requests = 3", train: 8, workers: 2, answers: true }.rage();
}

#[test]
fn nor_one_in_which_flows_end_all_the_time() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let cluster = "responses = 1";
    Storm { cluster, answers: true, ..CALM }.rage();
    Storm { cluster, answers: true, workers: 2, train: 4 }.rage();
}

#[test]
fn nor_one_in_which_upstream_sockets_are_shared() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let cluster = "responses = 1\nupstream = \"shared\"";
    Storm { cluster, answers: true, ..CALM }.rage();
    Storm { cluster, answers: true, workers: 2, train: 4 }.rage();
}

#[test]
fn nor_one_in_which_flows_are_idle_at_once() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    Storm { cluster: "idle_timeout = \"1ms\"", ..CALM }.rage();
    Storm { cluster: "idle_timeout = \"1ms\"", workers: 2, train: 4, answers: true }.rage();
}

#[test]
fn what_comes_while_a_flow_ends_goes_to_the_next_one() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let more = "responses = 1\nidle_timeout = \"5s\"";
    let balancer = Balancer::start(&config(&place.listen(), "connected", 1, &[&backend], more));
    let client = place.peer();
    exchange(&client, &backend, balancer.address(), b"the first flow");
    // Fewer than an upstream socket's receive buffer holds by default.
    const QUESTIONS: u32 = 200;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..QUESTIONS {
                client.send_to(&number.to_be_bytes(), balancer.address());
                if number % 7 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        });
        for _ in 0..QUESTIONS {
            let Ok(question) = backend.try_receive() else {
                panic!("a question is lost: {:?}", balancer.figures())
            };
            backend.send_to(&question.bytes, question.from);
        }
    });
    let mut answers = Vec::new();
    for _ in 0..QUESTIONS {
        match client.try_receive() {
            Ok(answer) => answers.push(answer.bytes),
            Err(_) => panic!("an answer is lost: {:?}", balancer.figures()),
        }
    }
    answers.sort();
    answers.dedup();
    assert_eq!(answers.len(), QUESTIONS as usize);
    balancer.assert_lossless(u64::from(QUESTIONS) + 1, u64::from(QUESTIONS) + 1);
    assert!(balancer.figures().counters.flows_opened > 1);
}

#[test]
fn each_retired_flow_leaves_its_client_to_the_next() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let config = config(&place.listen(), "connected", 1, &[&backend], "requests = 3");
    let balancer = Balancer::start(&config);
    let client = place.peer();
    (0..30_u8).for_each(|number| client.send_to(&[number], balancer.address()));
    for number in 0..30 {
        assert_eq!(backend.answer(b"answer").bytes, [number]);
    }
    (0..30).for_each(|_| assert_eq!(client.receive().bytes, b"answer"));
    balancer.assert_lossless(30, 30);
    assert_eq!(balancer.figures().counters.flows_opened, 10);
}

#[test]
fn answers_come_from_the_address_that_was_called_with_their_marks() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let balancer = balancer(&place.listen(), "connected", &[&backend]);
    let client = place.peer();
    for round in 0..5_u8 {
        client.set_tos(0x2C);
        client.send_to(&[round], balancer.address());
        let request = backend.receive();
        assert_eq!((request.bytes, request.tos), (vec![round], 0x2C));
        backend.set_tos(0xB8);
        backend.send_to(&[round], request.from);
        let answer = client.receive();
        let expected = (vec![round], balancer.address(), 0xB8);
        assert_eq!((answer.bytes, answer.from, answer.tos), expected);
    }
    assert!(is_connected(balancer.address(), client.address()));
    balancer.assert_lossless(5, 5);
}

#[test]
fn a_datagram_longer_than_a_clients_socket_may_take_is_a_counted_drop() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let toml = config(&place.listen(), "connected", 1, &[&backend], "");
    let balancer =
        Balancer::start(&toml.replace("[[listener]]", "[[listener]]\nmax_datagram_size = 100"));
    let client = place.peer();
    exchange(&client, &backend, balancer.address(), b"hello");
    client.send_to(&[7; 101], balancer.address());
    exchange(&client, &backend, balancer.address(), b"and on");
    assert_eq!(balancer.dropped(Direction::ToBackend, DropReason::TooLarge), 1);
}

#[test]
fn a_reload_leaves_it_as_it_is_until_a_restart_and_says_so() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let toml = |accept: &str| config(&place.listen(), accept, 1, &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &toml("shared"));
    let at = flowgate.address();
    flowgate.reload(&toml("connected"));
    flowgate.line("listener.accept: takes effect when flowgate is started again");
    let client = place.peer();
    exchange(&client, &backend, at, b"hello");
    exchange(&client, &backend, at, b"hello");
    assert!(!is_connected(at, client.address()));
}

#[test]
fn out_of_descriptors_a_client_stays_with_the_listener() {
    if !can_have_sockets_of_their_own() {
        return;
    }
    let place = Place::new();
    let backend = place.peer();
    let config = config(&place.listen(), "connected", 1, &[&backend], "");
    let config = config.replace("[[listener]]", "[[listener]]\nmax_flows = 1000");
    let mut flowgate = Process::run_with_descriptors(FLOWGATE, &config, 40);
    let at = flowgate.address();
    let mut served = Vec::new();
    for number in 0..30_u8 {
        let client = place.peer();
        client.send_to(&[number], at);
        // The flow that got the last descriptor but no second one is served all the same; the one
        // after it gets none, and an older client shows that it never comes.
        served.push(client);
        served[0].send_to(b"old", at);
        if backend.receive().bytes == b"old" {
            served.pop();
            break;
        }
        backend.receive();
    }
    assert!(served.len() < 30, "forty descriptors are not enough for thirty flows");
    for client in &served {
        exchange(client, &backend, at, b"still here");
    }
}

/// How much of what a steady client sends is lost while another floods the listener, by `accept`.
/// `cargo test --release -p flowgate-tests --test connected_clients flood -- --ignored --nocapture`
#[test]
#[ignore = "measures, and takes half a minute"]
fn flood() {
    for flooders_are_heard in [true, false] {
        for accept in ["shared", "connected", "confirmed"] {
            let lost = lost_in_a_flood(accept, flooders_are_heard);
            let whom = if flooders_are_heard { "one client" } else { "forged clients" };
            println!("flood of {whom}, {accept}: {lost:.1} % of the steady client's are lost");
        }
    }
}

fn lost_in_a_flood(accept: &str, from_one: bool) -> f64 {
    const STEADY: u32 = 4_000;
    let place = Place::new();
    let backend = place.peer();
    let more = "[cluster.test.limits]\nunanswered_flows = 256";
    let toml = config(&place.listen(), accept, 1, &[&backend], more);
    let mut flowgate = Process::run(FLOWGATE, &toml);
    let at = flowgate.address();
    let steady = place.peer();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // It echoes what the steady client sends, and is silent to others.
        scope.spawn(|| {
            while let Some(Datagram { bytes, from, .. }) = backend.receive_soon() {
                if bytes.len() == 4 {
                    backend.send_to(&bytes, from);
                }
            }
        });
        (0..3).for_each(|_| exchange_with(&steady, at));
        scope.spawn(|| {
            let one = place.peer();
            while !is_over.load(Ordering::Relaxed) {
                let sender = if from_one { &one } else { &place.peer() };
                (0..if from_one { 64 } else { 4 }).for_each(|_| sender.send_to(&[0; 1_000], at));
            }
        });
        for number in 0..STEADY {
            steady.send_to(&number.to_be_bytes(), at);
            std::thread::sleep(Duration::from_millis(1));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let came = std::iter::from_fn(|| steady.receive_soon()).count();
    100.0 * (1.0 - came as f64 / f64::from(STEADY))
}

fn exchange_with(client: &Peer, at: SocketAddr) {
    client.send_to(b"ping", at);
    assert_eq!(client.receive().bytes, b"ping");
}

/// What a client's socket costs, by how many there are: to open one, and to everybody else's
/// datagrams. `cargo test --release -p flowgate-tests --test connected_clients cost -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn cost() {
    const DATAGRAMS: u32 = 20_000;
    let family = AddressFamily::Inet;
    let listener = socket(family, SockType::Datagram, SockFlag::empty(), None).unwrap();
    flowgate::sys::sockopt::found_group(listener.as_fd()).unwrap();
    bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let listener = std::net::UdpSocket::from(listener);
    let (at, stranger) = (listener.local_addr().unwrap(), Peer::v4());
    let mut clients = Vec::new();
    for count in [100, 1_000, 10_000] {
        let before = (Instant::now(), clients.len());
        for number in clients.len()..count {
            let client = SocketAddr::from(([127, 9, (number >> 8) as u8, number as u8], 9_999));
            clients.push(flowgate::sys::udp::over_listener(at, client).unwrap());
        }
        let each = before.0.elapsed() / (count - before.1) as u32;
        let before = Instant::now();
        for _ in 0..DATAGRAMS {
            stranger.send_to(b"?", at);
            listener.recv(&mut [0; 1]).unwrap();
        }
        let datagram = before.elapsed() / DATAGRAMS;
        println!(
            "{count} sockets: {each:?} to open one, {datagram:?} to send and receive past them"
        );
    }
}
