//! Active health checks, with real sockets on loopback: each way to answer a probe, or not to.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

use flowgate::control::probe::{
    ExpectedReply, HealthChange, ProbeMethod, ProbePayload, ProbeTarget, Prober, TargetKey,
};
use flowgate::sys::clock::Clock;
use flowgate_core::config::Source;
use flowgate_core::probe::{ProbeOutcome, ProbePolicy};
use flowgate_tests::e2e::{PATIENCE, eventually};
use flowgate_tests::skip::skip;
use nix::sys::socket::{Backlog, listen};

mod presets;

const INTERVAL: Duration = Duration::from_millis(10);

/// A timeout that passes only where nothing else ends a probe.
const LONG: Duration = PATIENCE;
const SHORT: Duration = Duration::from_millis(30);

/// After this many wrong answers a probe does not wait for its timeout.
const ENOUGH: usize = 64;

/// A prober and what it tells.
struct Watch {
    prober: Prober,
    changes: Receiver<HealthChange>,
}

impl Watch {
    fn start(targets: Vec<ProbeTarget>) -> Self {
        let (sender, changes) = mpsc::channel();
        // That it is up from its first probe on is no change. What is told otherwise is.
        let down = std::sync::Mutex::new(std::collections::HashSet::new());
        let tell = move |change: HealthChange| {
            let mut down = down.lock().unwrap();
            let was_down = down.remove(&change.key);
            if !change.is_up {
                down.insert(change.key.clone());
            }
            if was_down || !change.is_up {
                let _ = sender.send(change);
            }
        };
        let prober = Prober::start(Clock::start(), 42, Vec::new(), tell).expect("a prober");
        prober.set_targets(targets);
        Self { prober, changes }
    }

    /// Waits for the next change, which must be this one.
    #[track_caller]
    fn expect(&self, key: &TargetKey, is_up: bool, outcome: ProbeOutcome) {
        let change = self.changes.recv_timeout(PATIENCE).expect("a change");
        let outcome = Some(outcome);
        assert_eq!(change, HealthChange { key: key.clone(), is_up, outcome });
    }

    #[track_caller]
    fn expect_none(&self) {
        assert_eq!(self.changes.try_recv(), Err(TryRecvError::Empty));
    }
}

/// A target whose key is its address. Two results in a row bring it up, three take it down.
fn target(address: SocketAddr, probe: ProbeMethod, timeout: Duration) -> ProbeTarget {
    let key = TargetKey { cluster: "a\u{1b}\n".to_owned(), backend: address };
    let policy = ProbePolicy { interval: INTERVAL, timeout, rise: 2, fall: 3 };
    ProbeTarget { key, address, source: Source::Any, probe, policy }
}

fn ping() -> ProbeMethod {
    let send = ProbePayload::Bytes(b"PING".to_vec());
    ProbeMethod::Udp { send, expect: ExpectedReply::Begins(b"PONG".to_vec()) }
}

/// An address that no other test has, and nobody serves, below the ports that the kernel gives away by itself.
fn unused() -> SocketAddr {
    static PORT: AtomicU16 = AtomicU16::new(6_000);
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let [a, b, c, _] = std::process::id().to_le_bytes();
    SocketAddr::from(([127, 64 | c, b, a], port))
}

/// A backend that the test plays itself.
struct Backend {
    socket: UdpSocket,
    asked: Cell<usize>,
}

impl Backend {
    fn new() -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address"))
    }

    fn at(address: SocketAddr) -> Self {
        let socket = UdpSocket::bind(address).expect("a socket");
        // Often enough to look for changes in between.
        socket.set_read_timeout(Some(Duration::from_millis(2))).expect("a timeout");
        Self { socket, asked: Cell::new(0) }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("an address")
    }

    /// Takes a question, if there is one soon, and answers it so, several times.
    fn serve(&self, times: usize, answer: impl Fn(&[u8]) -> Vec<u8>) -> Option<SocketAddr> {
        let mut buffer = [0; 2_048];
        let (length, asker) = match self.socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return None;
            }
            // Whom the last answer was for has gone.
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => return None,
            Err(e) => panic!("{e}"),
        };
        self.asked.set(self.asked.get() + 1);
        let answer = answer(&buffer[..length]);
        for _ in 0..times {
            // Once it has had enough, the asker refuses the rest.
            let _ = self.socket.send_to(&answer, asker);
        }
        Some(asker)
    }

    /// Answers this many questions.
    fn serve_many(&self, count: usize, answer: impl Fn(&[u8]) -> Vec<u8>) {
        for _ in 0..count {
            eventually("a question", || self.serve(1, &answer));
        }
    }

    /// Answers until the target goes down or comes up for that reason.
    #[track_caller]
    fn serve_until(
        &self,
        watch: &Watch,
        (is_up, outcome): (bool, ProbeOutcome),
        answer: impl Fn(&[u8]) -> Vec<u8>,
    ) {
        let times = if is_up { 1 } else { ENOUGH };
        let change = eventually("a change", || {
            self.serve(times, &answer);
            watch.changes.try_recv().ok()
        });
        assert_eq!((change.is_up, change.outcome), (is_up, Some(outcome)));
    }
}

fn pong(_: &[u8]) -> Vec<u8> {
    b"PONG 1".to_vec()
}

fn busy(_: &[u8]) -> Vec<u8> {
    b"BUSY".to_vec()
}

/// Takes this many connections.
fn accept(listener: &TcpListener, count: usize) {
    for _ in 0..count {
        listener.accept().expect("a connection");
    }
}

#[test]
fn tcp_that_connects_is_up_and_refused_is_down() {
    let listener = TcpListener::bind(unused()).expect("a listener");
    let target = target(listener.local_addr().expect("an address"), ProbeMethod::Tcp, LONG);
    let (key, address) = (target.key.clone(), target.address);
    let watch = Watch::start(vec![target]);
    accept(&listener, 10);
    watch.expect_none();
    drop(listener);
    watch.expect(&key, false, ProbeOutcome::Refused);
    let listener = eventually("the port is free", || TcpListener::bind(address).ok());
    watch.expect(&key, true, ProbeOutcome::Answered);
    accept(&listener, 10);
    watch.expect_none();
}

#[test]
fn tcp_into_a_black_hole_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    listen(&listener, Backlog::new(0).expect("a backlog")).expect("a shorter queue");
    // Once the queue is full, the kernel ignores who knocks.
    let mut queued = Vec::new();
    let ignored = loop {
        match TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            Ok(stream) if queued.len() < 16 => queued.push(stream),
            Ok(_) => break false,
            Err(error) => break error.kind() == ErrorKind::TimedOut,
        }
    };
    if !ignored {
        skip::<()>("a listener whose queue is full does not ignore who knocks");
        return;
    }
    let target = target(address, ProbeMethod::Tcp, SHORT);
    let key = target.key.clone();
    let watch = Watch::start(vec![target]);
    watch.expect(&key, false, ProbeOutcome::TimedOut);
    drop(queued);
    listener.set_nonblocking(true).expect("an option");
    eventually("it is up again", || {
        let _ = listener.accept();
        watch.changes.try_recv().ok().filter(|change| change.is_up)
    });
}

#[test]
fn udp_that_answers_right_is_up() {
    let backend = Backend::new();
    let watch = Watch::start(vec![target(backend.address(), ping(), LONG)]);
    backend.serve_many(20, |question| {
        assert_eq!(question, b"PING");
        pong(question)
    });
    watch.expect_none();
}

#[test]
fn udp_that_is_silent_is_down_and_comes_up_when_it_speaks() {
    let backend = Backend::new();
    let target = target(backend.address(), ping(), SHORT);
    let watch = Watch::start(vec![target.clone()]);
    watch.expect(&target.key, false, ProbeOutcome::TimedOut);
    backend.serve_until(&watch, (true, ProbeOutcome::Answered), pong);
}

#[test]
fn udp_that_answers_wrong_is_down_whatever_it_says() {
    for wrong in [&b"BUSY"[..], b"", b"PON", b" PONG"] {
        let backend = Backend::new();
        let watch = Watch::start(vec![target(backend.address(), ping(), LONG)]);
        backend.serve_until(&watch, (false, ProbeOutcome::WrongAnswer), |_| wrong.to_vec());
        backend.serve_until(&watch, (true, ProbeOutcome::Answered), pong);
    }
}

#[test]
fn a_stray_before_the_right_answer_does_no_harm() {
    let backend = Backend::new();
    let watch = Watch::start(vec![target(backend.address(), ping(), LONG)]);
    for _ in 0..10 {
        let asker = eventually("a question", || backend.serve(1, busy));
        backend.socket.send_to(b"PONG", asker).expect("a sent answer");
    }
    watch.expect_none();
}

#[test]
fn one_wrong_answer_that_the_right_one_does_not_follow_is_a_failure() {
    let backend = Backend::new();
    let mut target = target(backend.address(), ping(), Duration::from_secs(3));
    target.policy.fall = 1;
    let watch = Watch::start(vec![target.clone()]);
    backend.serve_many(1, busy);
    watch.expect(&target.key, false, ProbeOutcome::WrongAnswer);
}

#[test]
fn udp_to_a_port_that_nobody_has_is_refused_at_once() {
    let address = unused();
    let any = ProbeMethod::Udp { send: ProbePayload::Bytes(vec![]), expect: ExpectedReply::Any };
    let target = target(address, any, LONG);
    let watch = Watch::start(vec![target.clone()]);
    watch.expect(&target.key, false, ProbeOutcome::Refused);
    let backend = Backend::at(address);
    backend.serve_until(&watch, (true, ProbeOutcome::Answered), |question| question.to_vec());
}

#[test]
fn kinds_of_probes_never_mix() {
    // TCP and UDP to the same ports: one is open for UDP only, the other for TCP only.
    let backend = Backend::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let targets = [backend.address(), listener.local_addr().expect("an address")].map(|address| {
        [("tcp", ProbeMethod::Tcp), ("udp", ping())].map(|(cluster, probe)| {
            let target = target(address, probe, LONG);
            ProbeTarget { key: TargetKey { cluster: cluster.to_owned(), ..target.key }, ..target }
        })
    });
    let watch = Watch::start(targets.concat());
    let [[tcp_to_udp, _], [_, udp_to_tcp]] = targets;
    let mut down = Vec::new();
    let mut answered = 0;
    while down.len() < 2 || answered < 20 {
        answered += usize::from(backend.serve(1, pong).is_some());
        let changes: Vec<_> = watch.changes.try_iter().collect();
        down.extend(changes.into_iter().map(|change| {
            assert_eq!((change.is_up, change.outcome), (false, Some(ProbeOutcome::Refused)));
            (change.key.cluster, change.key.backend)
        }));
    }
    accept(&listener, 20);
    watch.expect_none();
    down.sort();
    let expected = [tcp_to_udp, udp_to_tcp].map(|t| (t.key.cluster, t.key.backend));
    assert_eq!(down, expected);
}

#[test]
fn results_of_different_kinds_are_never_added_up() {
    // Nobody has the port over TCP. Over UDP it is silent, then speaks.
    let backend = Backend::new();
    let tcp = target(backend.address(), ProbeMethod::Tcp, LONG);
    let watch = Watch::start(vec![tcp.clone()]);
    watch.expect(&tcp.key, false, ProbeOutcome::Refused);
    // It stays down until the new kind of probe has succeeded as often as it must.
    let mut udp = target(backend.address(), ping(), LONG);
    udp.policy.rise = 5;
    watch.prober.set_targets(vec![udp]);
    backend.serve_until(&watch, (true, ProbeOutcome::Answered), pong);
    assert!((5..=6).contains(&backend.asked.get()), "{}", backend.asked.get());
}

#[test]
fn a_target_that_did_not_change_keeps_counts_and_schedule() {
    let backend = Backend::new();
    let mut target = target(backend.address(), ping(), LONG);
    target.policy.fall = 5;
    let watch = Watch::start(vec![target.clone()]);
    // The same set, again and again, and a change of policy now and then.
    let mut sets = 0;
    let change = eventually("it is down", || {
        backend.serve(ENOUGH, busy);
        sets += 1;
        target.policy.rise = sets % 7;
        watch.prober.set_targets(vec![target.clone()]);
        watch.changes.try_recv().ok()
    });
    assert_eq!((change.is_up, change.outcome), (false, Some(ProbeOutcome::WrongAnswer)));
    assert!((5..=6).contains(&backend.asked.get()), "{} of {sets}", backend.asked.get());
}

#[test]
fn a_target_that_leaves_while_it_is_down_is_taken_to_be_up() {
    let closed = target(unused(), ping(), LONG);
    let watch = Watch::start(vec![closed.clone()]);
    watch.expect(&closed.key, false, ProbeOutcome::Refused);
    let other = Backend::new();
    watch.prober.set_targets(vec![target(other.address(), ping(), LONG)]);
    let change = watch.changes.recv_timeout(PATIENCE).expect("a change");
    assert_eq!(change, HealthChange { key: closed.key.clone(), is_up: true, outcome: None });
    other.serve_many(5, pong);
    // Back again, it begins again.
    watch.prober.set_targets(vec![closed.clone()]);
    watch.expect(&closed.key, false, ProbeOutcome::Refused);
    watch.prober.set_targets(vec![]);
    watch.changes.recv_timeout(PATIENCE).expect("a change");
    watch.expect_none();
}

#[test]
fn silent_targets_hold_up_nobody() {
    let silent: Vec<_> = (0..100).map(|_| Backend::new()).collect();
    let mut targets: Vec<_> = silent.iter().map(|b| target(b.address(), ping(), LONG)).collect();
    let closed = target(unused(), ping(), LONG);
    targets.push(closed.clone());
    let watch = Watch::start(targets);
    watch.expect(&closed.key, false, ProbeOutcome::Refused);
    // Nor do they hold up the end.
    let Watch { prober, changes } = watch;
    drop(prober);
    assert_eq!(changes.try_recv(), Err(TryRecvError::Disconnected));
}
