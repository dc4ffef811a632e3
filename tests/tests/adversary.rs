//! Anyone who lies about his address gains nothing by it, and costs nobody else anything.
//!
//! Floods are paced by honest round trips: what is sent next waits until all before it has been
//! read, on any machine. So a lost datagram was lost by the balancer, and never by a full receive
//! buffer of the kernel, which spares nobody.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use flowgate_core::{CloseReason, Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::forger::{Forger, Strangers};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// What honest clients send begins so, and is answered.
const HONEST: &[u8] = b"honest";

/// How many forged datagrams are sent at once. This many fit into the receive buffers on their way,
/// which root may have as large as it asks.
const VOLLEY: usize = 500;

/// A flood ends after this many datagrams, or after this time.
const FLOOD: u64 = 1_000_000;
const FLOOD_TIME: Duration = Duration::from_secs(4);

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => panic!("{address} is not of IPv4"),
    }
}

fn loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn config(max_flows: usize, backend: SocketAddr, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\nmax_flows = {max_flows}\n\
         [cluster.test]\nbackends = [\"{backend}\"]\n{more}\n"
    )
}

/// A flood from strangers on a balancer that honest clients use too.
struct Siege {
    target: SocketAddr,
    forger: Forger,
    strangers: Strangers,
    honest: Vec<Peer>,
    round_trips: u64,
}

impl Siege {
    /// Honest clients that the balancer serves already.
    fn new(target: SocketAddr, honest: usize) -> Self {
        let honest = (0..honest).map(|_| Peer::v4()).collect();
        let mut siege = Self {
            target,
            forger: Forger::new(),
            strangers: Strangers::all(),
            honest,
            round_trips: 0,
        };
        (0..siege.honest.len()).for_each(|_| siege.round_trip());
        siege
    }

    /// The next honest client asks and is answered: all that was sent before has been read.
    #[track_caller]
    fn round_trip(&mut self) {
        self.ask(self.round_trips as usize % self.honest.len());
    }

    /// One honest client asks and is answered.
    #[track_caller]
    fn ask(&mut self, client: usize) {
        let client = &self.honest[client];
        let question = [HONEST, &self.round_trips.to_be_bytes()].concat();
        client.send_to(&question, self.target);
        assert_eq!(client.receive().bytes, question);
        self.round_trips += 1;
    }

    /// One honest client, who may have no flow, asks until it is answered.
    #[track_caller]
    fn ask_again_and_again(&mut self, client: usize) {
        let client = &self.honest[client];
        let question = [HONEST, &self.round_trips.to_be_bytes()].concat();
        eventually("the newcomer is served", || {
            client.send_to(&question, self.target);
            client.receive_soon()
        });
        // Where the machine is slow, it has asked twice.
        while client.receive_soon().is_some() {}
        self.round_trips += 1;
    }

    /// One volley, and an honest round trip after it.
    fn volley(&mut self) {
        self.forge();
        self.round_trip();
    }

    fn forge(&mut self) {
        for stranger in self.strangers.by_ref().take(VOLLEY) {
            self.forger.send(stranger, v4(self.target), b"forged");
        }
    }

    /// Volleys until the flood ends.
    fn flood(&mut self) {
        let start = Instant::now();
        while self.strangers.met() < FLOOD && start.elapsed() < FLOOD_TIME {
            self.volley();
        }
        eprintln!("{} forged sources in {:?}", self.strangers.met(), start.elapsed());
    }
}

fn only_honest() -> EchoServer {
    EchoServer::start("127.0.0.1:0", |datagram| datagram.starts_with(HONEST))
}

#[test]
fn forged_sources_push_each_other_out_and_never_a_client_that_was_answered() {
    const MAX_FLOWS: usize = 300;
    const HONEST_CLIENTS: usize = 20;
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let backend = only_honest();
        let limits = "[cluster.test.limits]\nunanswered_timeout = \"3s\"";
        let balancer = Balancer::start(&config(MAX_FLOWS, backend.address(), limits));
        let mut siege = Siege::new(balancer.address(), HONEST_CLIENTS);
        siege.flood();

        let forged = siege.strangers.met();
        let figures = balancer.figures();
        assert!(figures.flows_active <= MAX_FLOWS as u64, "{}", figures.flows_active);
        // Each client that was answered has its first flow to the end, and each stranger a flow, or
        // none while others wait whose answers may be on their way.
        let counters = &figures.counters;
        let refused = [DropReason::MaxFlows, DropReason::Overload]
            .map(|reason| counters.to_backend.dropped_for(reason).datagrams);
        let refused: u64 = refused.iter().sum();
        assert_eq!(counters.flows_opened + refused, forged + HONEST_CLIENTS as u64);
        assert_eq!(counters.to_backend.dropped_total().datagrams, refused);
        assert_eq!(counters.to_backend.received.datagrams, forged + siege.round_trips);
        assert_eq!(counters.to_client.forwarded.datagrams, siege.round_trips);
        assert_eq!(counters.to_client.dropped_total().datagrams, 0);
        let strangers = counters.flows_opened - HONEST_CLIENTS as u64;
        let alive = figures.flows_active - HONEST_CLIENTS as u64;
        let over = counters.closed(CloseReason::Evicted) + counters.closed(CloseReason::Idle);
        assert_eq!(over, strangers - alive);
        assert!(counters.closed(CloseReason::Evicted) > 0, "{counters:?}");

        // Who comes in the middle of it gets in as soon as someone has waited in vain, and so does
        // who was idle meanwhile and had to make room.
        for _ in 0..10 {
            siege.forge();
            siege.honest.push(Peer::v4());
            siege.ask_again_and_again(siege.honest.len() - 1);
        }
        (0..siege.honest.len()).for_each(|client| siege.ask_again_and_again(client));

        let honest = siege.honest.len() as u64;
        let figures = balancer.eventually("strangers go", |f| f.flows_active == honest);
        assert_eq!(figures.counters.to_client.dropped_total().datagrams, 0);
    });
}

#[test]
fn forged_sources_that_the_backend_answers_cost_others_nothing() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        // As a resolver does: everybody gets one answer. Where strangers live no route leads.
        let backend = EchoServer::start("127.0.0.1:0", |_| true);
        let balancer = Balancer::start(&config(2_000, backend.address(), "responses = 1"));
        let mut siege = Siege::new(balancer.address(), 20);
        siege.flood();

        let forged = siege.strangers.met();
        let figures = balancer.eventually("all are answered", |f| f.flows_active == 0);
        let to_client = &figures.counters.to_client;
        assert_eq!(to_client.forwarded.datagrams, siege.round_trips);
        assert_eq!(to_client.dropped_for(DropReason::Unreachable).datagrams, forged);
        assert_eq!(to_client.dropped_total().datagrams, forged);
        assert_eq!(figures.counters.to_backend.dropped_total().datagrams, 0);
    });
}

#[test]
fn memory_does_not_grow_with_the_number_of_forged_sources() {
    const GROWTH: u64 = 4 << 20;
    const MAX_FLOWS: usize = 300;
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let backend = only_honest();
        // Every limit keeps its own books about sources.
        let limits = "[cluster.test.limits]\nflows_per_source = 100\nflows_per_subnet = 100\n\
                      new_flows_per_second_per_source = 100\nunanswered_flows = 200";
        let mut flowgate = Process::run(FLOWGATE, &config(MAX_FLOWS, backend.address(), limits));
        let mut siege = Siege::new(flowgate.address(), 20);
        (0..20).for_each(|_| siege.volley());
        let before = flowgate.resident_memory();
        let sockets = flowgate.sockets();
        siege.flood();
        let after = flowgate.resident_memory();
        assert!(after <= before + GROWTH, "{before} bytes became {after}");
        // A socket for each flow, and one for each that may still be answered.
        assert!(sockets.max(flowgate.sockets()) <= 2 * MAX_FLOWS + 20, "{sockets}");
    });
}

#[test]
fn keys_made_to_look_alike_are_all_found_again() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let backend = only_honest();
        let balancer = Balancer::start(&config(4_000, backend.address(), ""));
        let mut siege = Siege::new(balancer.address(), 20);
        let opened = |strangers: u64| strangers + 20;
        (0..4).for_each(|_| siege.volley());
        assert_eq!(balancer.figures().counters.flows_opened, opened(2_000));
        // The same strangers again: each finds its flow.
        siege.strangers = Strangers::all();
        (0..4).for_each(|_| siege.volley());
        let figures = balancer.figures();
        assert_eq!(figures.counters.flows_opened, opened(2_000));
        assert_eq!(figures.flows_active, opened(2_000));
        balancer.assert_lossless(4_000 + siege.round_trips, siege.round_trips);
    });
}

#[test]
fn datagrams_that_cannot_be_answered_or_would_come_back_are_dropped_and_counted() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let backend = EchoServer::start("127.0.0.1:0", |_| true);
        let balancer = Balancer::start(&config(100, backend.address(), ""));
        let (target, forger) = (v4(balancer.address()), Forger::new());
        let port_zero = loopback(0);
        let stranger = loopback(4_000);
        let cases = [
            (port_zero, 64, DropReason::PortZero),
            (target, 64, DropReason::OwnAddress),
            (stranger, 130, DropReason::TtlExpired),
        ];
        for (number, (from, ttl, _)) in cases.iter().enumerate() {
            for _ in 0..=number {
                forger.send_with_ttl(*from, target, *ttl, b"forged");
            }
        }
        // One socket, in its order: once this is answered all have been read.
        Siege::new(balancer.address(), 1).round_trip();
        for (reason, expected) in
            [(DropReason::PortZero, 1), (DropReason::OwnAddress, 2), (DropReason::TtlExpired, 3)]
        {
            assert_eq!(balancer.dropped(Direction::ToBackend, reason), expected, "{reason}");
        }
        let figures = balancer.figures();
        assert_eq!(figures.counters.flows_opened, 1);
        assert_eq!(figures.counters.to_backend.dropped_total().datagrams, 1 + 2 + 3);
        assert_eq!(backend.received(), 2);
    });
}
