//! Forwarding allocates nothing, and neither does refusing: the core alone, and the real shard on
//! Linux over loopback. The allocator of this binary counts for each thread by itself
//! (`allocation-counter`), so that tests beside each other do not disturb.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use flowgate::datapath::kernel::Linux;
use flowgate::datapath::listener;
use flowgate::datapath::shard::{Readiness, Shard};
use flowgate::datapath::token::Token;
use flowgate::sys::arena::Arena;
use flowgate::sys::clock::Clock;
use flowgate_config::Config;
use flowgate_core::config::ManagerConfig;
use flowgate_core::{
    BackendEvent, Burst, CloseReason, Direction, DropReason, ManagerInput, Output, Outputs,
    UdpManager,
};
use flowgate_tests::e2e::PATIENCE;
use mio::{Events, Poll};

/// Counts the allocations of `act` on this thread.
fn allocations(act: impl FnMut()) -> u64 {
    allocation_counter::measure(act).count_total
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1]))), 1);
    assert_eq!(allocations(|| {}), 0);
}

/// What a manager of the only listener is told, which is at `address`.
fn manager_config(config: &Config, address: SocketAddr, max_flows: u32) -> ManagerConfig {
    let listener = &config.listeners[0];
    let backends = listener.cluster.policy.backends.clone();
    listener.manager_config(address, max_flows, vec![], false, backends)
}

/// A worker with one shard, whose loop the test runs by hand.
struct Worker {
    poll: Poll,
    events: Events,
    kernel: Linux,
    clock: Clock,
    arena: Arena,
    shard: Shard<Linux>,
    address: SocketAddr,
}

impl Worker {
    /// Two flows at most, to `backends`. `more` is of the cluster's table.
    fn new(backends: &[&UdpSocket], more: &str) -> Self {
        let backends: Vec<_> =
            backends.iter().map(|socket| socket.local_addr().unwrap().to_string()).collect();
        let toml = format!(
            "[[listener]]\naddress = \"0.0.0.0:0\"\ncluster = \"test\"\n\
             [cluster.test]\nbackends = {backends:?}\n{more}\n"
        );
        let config = flowgate_config::parse(&toml, "test.toml").unwrap();
        let group =
            listener::bind(&config.listeners[0], 1, std::iter::empty(), &mut vec![]).unwrap();
        let socket = group.sockets.into_iter().next().unwrap();
        let poll = Poll::new().unwrap();
        let kernel = Linux::new(poll.registry().try_clone().unwrap());
        kernel.watch(&socket, Token::Listener { shard: 0 }, false).unwrap();
        let clock = Clock::start();
        let manager = manager_config(&config, group.address, 2);
        Self {
            shard: Shard::new(0, socket, UdpManager::new(manager, 1, clock.now())),
            poll,
            events: Events::with_capacity(64),
            kernel,
            clock,
            arena: Arena::new(64),
            address: ([127, 0, 0, 1], group.address.port()).into(),
        }
    }

    /// One round of the loop of a worker.
    fn tick(&mut self) {
        self.poll.poll(&mut self.events, Some(Duration::from_millis(10))).unwrap();
        let now = self.clock.now();
        for event in &self.events {
            let readiness = Readiness {
                readable: event.is_readable(),
                writable: event.is_writable(),
                error: event.is_error(),
            };
            self.shard.on_event(event.token().into(), readiness, &mut self.kernel, now);
        }
        while self.shard.has_work() {
            self.shard.tick(&mut self.kernel, &mut self.arena, now);
        }
        if self.shard.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            self.shard.handle(ManagerInput::Timeout, &mut self.kernel, now);
        }
    }

    /// Runs the loop until `socket` has received `datagrams`; returns the sender of the last.
    fn tick_until_received(&mut self, socket: &UdpSocket, datagrams: usize) -> SocketAddr {
        let (start, mut buffer) = (Instant::now(), [0; 2_048]);
        let (mut received, mut sender) = (0, self.address);
        while received < datagrams {
            match socket.recv_from(&mut buffer) {
                Ok((_, from)) => (received, sender) = (received + 1, from),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.tick(),
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain for {datagrams} datagrams");
        }
        sender
    }

    /// Runs the loop until this many datagrams were dropped for `reason`.
    fn tick_until_dropped(&mut self, reason: DropReason, datagrams: u64) {
        let start = Instant::now();
        let dropped = |shard: &Shard<Linux>| {
            let ledger = shard.manager().counters().ledger(Direction::ToBackend);
            ledger.dropped_for(reason).datagrams
        };
        while dropped(&self.shard) < datagrams {
            self.tick();
            assert!(start.elapsed() < PATIENCE, "waited in vain for {datagrams} {reason}");
        }
    }
}

/// A socket that does not wait.
fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Datagrams of two clients in turn, in both directions: `count` each, some of equal length.
fn round_trips(worker: &mut Worker, clients: &[UdpSocket; 2], backend: &UdpSocket, count: usize) {
    let bytes = [7; 1_200];
    for client in clients {
        for number in 0..count {
            client.send_to(&bytes[..1_200 - number / 4], worker.address).unwrap();
        }
        let upstream = worker.tick_until_received(backend, count);
        for number in 0..count {
            backend.send_to(&bytes[..1_000 + number / 4], upstream).unwrap();
        }
        worker.tick_until_received(client, count);
    }
}

#[test]
fn the_shard_forwards_without_allocating_both_ways() {
    let (clients, backend) = ([socket(), socket()], socket());
    let mut worker = Worker::new(&[&backend], "");
    for count in [1, 40] {
        // Buffers grow to what a tick needs, once.
        for _ in 0..50 {
            round_trips(&mut worker, &clients, &backend, count);
        }
        let allocated = allocations(|| {
            for _ in 0..200 {
                round_trips(&mut worker, &clients, &backend, count);
            }
        });
        assert_eq!(allocated, 0, "{count} datagrams at a time");
    }
    assert_eq!(worker.shard.manager().counters().flows_opened, 2);
}

#[test]
fn the_shard_opens_and_closes_flows_without_allocating() {
    let (client, backend) = (socket(), socket());
    let mut worker = Worker::new(&[&backend], "responses = 1\nupstream = \"per-flow\"");
    let ask = |worker: &mut Worker| {
        client.send_to(b"question", worker.address).unwrap();
        let upstream = worker.tick_until_received(&backend, 1);
        backend.send_to(b"answer", upstream).unwrap();
        worker.tick_until_received(&client, 1);
    };
    (0..10).for_each(|_| ask(&mut worker));
    assert_eq!(allocations(|| (0..100).for_each(|_| ask(&mut worker))), 0);
    assert!(worker.shard.manager().counters().flows_opened >= 100);
}

#[test]
fn the_shard_refuses_a_client_beyond_max_flows_without_allocating() {
    let (clients, backend) = ([socket(), socket()], socket());
    let mut worker = Worker::new(&[&backend], "");
    round_trips(&mut worker, &clients, &backend, 1);
    let refused = socket();
    let refuse = |worker: &mut Worker, total: &mut u64| {
        *total += 1;
        refused.send_to(b"refused", worker.address).unwrap();
        worker.tick_until_dropped(DropReason::MaxFlows, *total);
    };
    let mut total = 0;
    refuse(&mut worker, &mut total);
    let allocated = allocations(|| (0..100).for_each(|_| refuse(&mut worker, &mut total)));
    assert_eq!(allocated, 0);
}

#[test]
fn the_shard_refuses_without_a_backend_and_while_draining_without_allocating() {
    let (client, backend) = (socket(), socket());
    let refuse = |worker: &mut Worker, reason, total: &mut u64| {
        *total += 1;
        client.send_to(b"refused", worker.address).unwrap();
        worker.tick_until_dropped(reason, *total);
    };
    let mut draining = Worker::new(&[&backend], "");
    let (now, end) = (draining.clock.now(), flowgate_core::Instant::FAR_FUTURE);
    draining.shard.handle(ManagerInput::Drain { deadline: end }, &mut draining.kernel, now);
    for (mut worker, reason) in
        [(Worker::new(&[], ""), DropReason::NoBackend), (draining, DropReason::Draining)]
    {
        let mut total = 0;
        refuse(&mut worker, reason, &mut total);
        let allocated =
            allocations(|| (0..100).for_each(|_| refuse(&mut worker, reason, &mut total)));
        assert_eq!(allocated, 0, "{reason}");
    }
}

/// Takes orders and keeps the last flow that was opened.
#[derive(Default)]
struct Sink(Option<(flowgate_core::UpstreamId, SocketAddr)>);

impl Sink {
    /// A client's request, an answer by the flow that was opened last, and whatever is due.
    fn exchange(
        &mut self,
        manager: &mut UdpManager,
        port: u16,
        burst: Burst<'_>,
        now: flowgate_core::Instant,
    ) {
        let source = ([192, 0, 2, 1], port).into();
        let (local, tos, ttl) = (None, 0, 64);
        let request = ManagerInput::ClientBurst { source, local, tos, ttl, burst };
        manager.handle_input(request, now, self);
        if let Some((upstream, sender)) = self.0 {
            let answer = ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst };
            manager.handle_input(answer, now, self);
        }
        if manager.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            manager.handle_input(ManagerInput::Timeout, now, self);
        }
    }
}

impl<'p> Outputs<'p> for Sink {
    fn emit(&mut self, output: Output<'p>) {
        if let Output::OpenFlow { upstream, address, .. } = output {
            self.0 = Some((upstream, address));
        }
    }
}

/// A manager of at most 1,000 flows as `toml` says of its cluster.
fn manager(toml: &str) -> UdpManager {
    let toml = format!(
        "[[listener]]\naddress = \"127.0.0.1:53\"\ncluster = \"test\"\n\
         [cluster.test]\nbackends = [\"10.0.0.1:53\", \"10.0.0.2:53\", \"10.0.0.3:53\"]\n{toml}\n"
    );
    let config = flowgate_config::parse(&toml, "test.toml").unwrap();
    let address = config.listeners[0].address;
    UdpManager::new(manager_config(&config, address, 1_000), 1, flowgate_core::Instant::ORIGIN)
}

const REHASH: &str = "on_backend_down = \"rehash\"";

#[test]
fn the_core_never_allocates_after_it_was_made() {
    for balance in ["round-robin", "random", "least-flows", "power-of-two", "rendezvous", "maglev"]
    {
        let mut manager =
            manager(&format!("balance = {balance:?}\nsend_proxy_protocol = \"first\"\n{REHASH}"));
        let mut sink = Sink::default();
        let backends: Vec<_> = manager.backends().iter().map(|(id, _)| id).collect();
        let allocated = allocations(|| {
            let mut now = flowgate_core::Instant::ORIGIN;
            let burst = Burst::segmented(&[1; 4_000], 1_000).unwrap();
            // More clients than there may be flows, answers, and all that time brings.
            for number in 0..5_000u16 {
                now += Duration::from_millis(20);
                // One backend is down at any time, and its flows move on.
                if number % 100 == 0 {
                    let down = usize::from(number / 100) % backends.len();
                    for (place, &backend) in backends.iter().enumerate() {
                        let is_down = place == down;
                        let event = if is_down { BackendEvent::Down } else { BackendEvent::Up };
                        let input = ManagerInput::BackendChanged { backend, event };
                        manager.handle_input(input, now, &mut sink);
                    }
                }
                // Every other one is a client that comes back while its flow lives.
                let port = if number % 2 == 0 { number } else { 10_000 + number % 50 };
                sink.exchange(&mut manager, 1 + port, burst, now);
            }
            let drain = ManagerInput::Drain { deadline: now + Duration::from_secs(1) };
            manager.handle_input(drain, now, &mut sink);
            now += Duration::from_secs(2);
            manager.handle_input(ManagerInput::Timeout, now, &mut sink);
        });
        assert_eq!(allocated, 0, "{balance}");
        let counters = manager.counters();
        assert!(counters.closed(CloseReason::Evicted) > 0, "flows that seem over make room");
        assert!(counters.flows_moved > 100, "{balance}: {} moved", counters.flows_moved);
        assert_eq!(manager.flow_count(), 0);
    }
}

/// Sends `count` datagrams from each client, and waits until every backend has all it is to have.
fn one_way(worker: &mut Worker, clients: &[UdpSocket; 2], backends: &[(&UdpSocket, usize)]) {
    for client in clients {
        for number in 0..12 {
            client.send_to(&[7; 1_200][..1_200 - number / 4], worker.address).unwrap();
        }
    }
    for (backend, share) in backends {
        worker.tick_until_received(backend, 24 / share);
    }
}

#[test]
fn what_leaves_without_a_flow_allocates_nothing() {
    let clients = [socket(), socket()];
    let answering = "mode = \"fan-out\"\nreply_from = \"NAME\"";
    for (mode, share) in [
        ("mode = \"one-way\"\nbalance = \"round-robin\"", 2),
        ("mode = \"one-way\"\nbalance = \"round-robin\"\nsend_proxy_protocol = \"every\"", 2),
        ("mode = \"fan-out\"", 1),
        (answering, 1),
    ] {
        let backends = [socket(), socket()];
        let name = backends[0].local_addr().unwrap().to_string();
        let mode = mode.replace("NAME", &name);
        let mut worker = Worker::new(&[&backends[0], &backends[1]], &mode);
        let shares = [(&backends[0], share), (&backends[1], share)];
        (0..50).for_each(|_| one_way(&mut worker, &clients, &shares));
        let allocated =
            allocations(|| (0..200).for_each(|_| one_way(&mut worker, &clients, &shares)));
        assert_eq!(allocated, 0, "{mode}");
    }
}

#[test]
fn a_mirror_allocates_nothing() {
    let (clients, backend, mirrored) = ([socket(), socket()], socket(), socket());
    let address = mirrored.local_addr().unwrap();
    let more = format!(
        "mirror = {{ cluster = \"shadow\" }}\n[cluster.shadow]\nbackends = [\"{address}\"]"
    );
    let mut worker = Worker::new(&[&backend], &more);
    let config = {
        let toml = "[[listener]]\naddress = \"127.0.0.1:53\"\ncluster = \"test\"\n[cluster.test]\n\
                    backends = [\"10.0.0.1:53\"]\nmirror = { cluster = \"shadow\" }\n\
                    [cluster.shadow]\nbackends = [\"10.0.0.2:53\"]";
        flowgate_config::parse(toml, "test.toml").unwrap()
    };
    let backends = vec![flowgate_core::config::BackendConfig::new(address)];
    let shadow = config.cluster("shadow").unwrap();
    let mirror = config.listeners[0].mirror_config(shadow, worker.address, vec![], backends);
    let (configuration, now) = (flowgate_core::PreparedConfig::new(mirror), worker.clock.now());
    worker.shard.set_mirror(Some((&configuration, 1)), &mut worker.kernel, now);
    let both = [(&backend, 1), (&mirrored, 1)];
    (0..50).for_each(|_| one_way(&mut worker, &clients, &both));
    let allocated = allocations(|| (0..200).for_each(|_| one_way(&mut worker, &clients, &both)));
    assert_eq!(allocated, 0);
    let copied = worker.shard.mirror().unwrap().counters().to_backend.forwarded.datagrams;
    assert_eq!(copied, 250 * 24);
}

#[test]
fn the_core_never_allocates_in_any_mode() {
    for mode in [
        "mode = \"one-way\"\nbalance = \"random\"",
        "mode = \"fan-out\"",
        "mode = \"fan-out\"\nreply_from = \"10.0.0.1:53\"",
        "mode = \"fan-out\"\nreply_from = \"first\"",
    ] {
        let (mut manager, mut sink) = (manager(mode), Sink::default());
        let backends: Vec<_> = manager.backends().iter().map(|(id, _)| id).collect();
        let allocated = allocations(|| {
            let mut now = flowgate_core::Instant::ORIGIN;
            let burst = Burst::segmented(&[1; 4_000], 1_000).unwrap();
            for number in 0..3_000u16 {
                now += Duration::from_millis(20);
                let backend = backends[usize::from(number / 50) % backends.len()];
                let is_down = number % 50 == 0;
                let event = if is_down { BackendEvent::Down } else { BackendEvent::Up };
                let input = ManagerInput::BackendChanged { backend, event };
                manager.handle_input(input, now, &mut sink);
                sink.exchange(&mut manager, 1 + number % 1_500, burst, now);
            }
        });
        assert_eq!(allocated, 0, "{mode}");
        manager.assert_invariants();
    }
}
