//! What goes in circles dies, is counted, and leaves a balancer that serves everybody else and then
//! rests.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use flowgate_core::counters::Ledger;
use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::forger::{Forger, TTL};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::Process;
use nix::sys::signal::Signal;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// Ports in a namespace of the test's own, where nobody else can have them.
const RING: [u16; 2] = [5_301, 5_302];
const HONEST: [u16; 2] = [5_311, 5_312];

/// How long processes are watched that should do nothing. This wait is the measurement.
const WATCHED: Duration = Duration::from_secs(1);

fn loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// How often a datagram arrives that goes round among balancers: with each hop that it has, and a
/// few more times until it is clear that the last of them was no client's.
const ARRIVALS: u64 = TTL as u64 + 9;

/// How often it arrives at the first of two listeners.
const AT_THE_FIRST: u64 = ARRIVALS.div_ceil(2);

/// Two listeners of one balancer that are each other's only backends.
fn ring_in_one(more: &str) -> String {
    let [one, other] = RING;
    listener(one, loopback(other).into(), more) + &listener(other, loopback(one).into(), more)
}

/// A listener and its cluster.
fn listener(port: u16, backend: SocketAddr, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\ncluster = \"to-{port}\"\n\
         [cluster.to-{port}]\nbackends = [\"{backend}\"]\n{more}\n"
    )
}

fn to_backend(balancer: &Balancer) -> Ledger {
    balancer.figures().counters.to_backend
}

#[test]
fn listeners_pointed_at_each_other_drop_each_datagram_when_its_hops_are_used_up() {
    const DATAGRAMS: u64 = 20;
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        for more in ["", "requests = 1", "responses = 1\nupstream = \"shared\""] {
            let balancer = Balancer::start(&ring_in_one(more));
            // Kept until the end: no upstream socket may get the port of a client with a flow.
            let clients: Vec<_> = (0..DATAGRAMS).map(|_| Peer::v4()).collect();
            for (client, number) in clients.iter().zip(1..) {
                client.send_to(b"round and round", balancer.address());
                let expired = || balancer.dropped(Direction::ToBackend, DropReason::TtlExpired);
                eventually("the datagram dies", || (expired() == number).then_some(()));
            }
            let ledger = to_backend(&balancer);
            // It came from outside once, and from itself with one hop less each time.
            assert_eq!(ledger.received.datagrams, DATAGRAMS * AT_THE_FIRST, "{more:?}");
            assert_eq!(ledger.dropped_total().datagrams, DATAGRAMS, "{more:?}");
        }
    });
}

/// A port that is used again leads into the middle of a loop that is open already.
#[test]
fn a_loop_that_closes_on_itself_comes_to_an_end_too() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        // Without a quarantine, since each datagram goes round on 64 sockets and there are 100 ports.
        let more = "idle_timeout = \"200ms\"\nupstream_quarantine = \"0s\"";
        let balancer = Balancer::start(&ring_in_one(more));
        // So few ports that one of the loop's own sockets soon has that of a client.
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        std::fs::write(range, "40000 40099").expect("a range of the namespace's own");
        let forger = Forger::new();
        for number in 1..=6 {
            // A client that has closed its socket: the port is free.
            forger.send(loopback(40_000 + number), loopback(RING[0]), b"round and round");
            let expired = || balancer.dropped(Direction::ToBackend, DropReason::TtlExpired);
            eventually("the datagram dies", || (expired() == u64::from(number)).then_some(()));
            let received = to_backend(&balancer).received.datagrams;
            assert_eq!(received, u64::from(number) * AT_THE_FIRST);
            balancer.eventually("its flows end", |figures| figures.flows_active == 0);
        }
    });
}

#[test]
fn two_balancers_in_a_ring_drop_what_goes_round_between_them() {
    const CLIENTS: u64 = 10;
    const EACH: u64 = 5;
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let [one, other] = RING;
        let ring = [(one, other), (other, one)]
            .map(|(from, to)| Balancer::start(&listener(from, loopback(to).into(), "")));
        let clients: Vec<_> = (0..CLIENTS).map(|_| Peer::v4()).collect();
        for _ in 0..EACH {
            clients.iter().for_each(|client| client.send_to(b"round", ring[0].address()));
        }
        let sum = |of: &dyn Fn(&Balancer) -> u64| ring.iter().map(of).sum::<u64>();
        let expired = |b: &Balancer| b.dropped(Direction::ToBackend, DropReason::TtlExpired);
        let sent = CLIENTS * EACH;
        eventually("all datagrams die", || (sum(&expired) == sent).then_some(()));
        let received = sum(&|balancer| to_backend(balancer).received.datagrams);
        assert_eq!(received, sent * ARRIVALS);
        assert_eq!(sum(&|balancer| to_backend(balancer).dropped_total().datagrams), sent);
    });
}

#[test]
fn processes_in_a_ring_serve_others_and_then_rest_and_stop_when_told() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let backend = EchoServer::start("127.0.0.1:0", |_| true);
        let mut ring = [0, 1].map(|at| {
            // Both listeners of a process are served by the same worker.
            let ring = listener(RING[at], loopback(RING[1 - at]).into(), "");
            let honest = listener(HONEST[at], backend.address(), "");
            let mut flowgate = Process::run(FLOWGATE, &format!("{ring}{honest}"));
            flowgate.line("started");
            flowgate
        });
        let (honest, lost) = (Peer::v4(), Peer::v4());
        for round in 0..50u8 {
            for target in RING {
                lost.send_to(b"round and round", loopback(target).into());
            }
            for target in HONEST {
                honest.send_to(&[round], loopback(target).into());
                assert_eq!(honest.receive().bytes, [round]);
            }
        }

        let runs = |ring: &[Process]| -> u64 {
            ring.iter().flat_map(Process::threads).map(|(_, runs)| runs).sum()
        };
        eventually("what goes round dies, and nothing moves any more", || {
            let before = runs(&ring);
            std::thread::sleep(WATCHED);
            (runs(&ring) == before).then_some(())
        });
        for flowgate in &mut ring {
            flowgate.signal(Signal::SIGINT);
            assert_eq!(flowgate.wait().code(), Some(0));
        }
    });
}
