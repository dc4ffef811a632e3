//! What leaves without a flow, from what the real shard receives to what it sends, on a kernel that
//! does everything a kernel may do.
//!
//! After every step each datagram went out once to whom it was ordered for, waits once, or is
//! counted as dropped once, and what one client sent to one backend leaves in its order.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flowgate::datapath::kernel::Kernel;
use flowgate::datapath::role::Role;
use flowgate::datapath::send::queue::SendQueue;
use flowgate::datapath::shard::Shard;
use flowgate::datapath::sockets::Sockets;
use flowgate::datapath::token::Token;
use flowgate::sys::arena::Arena;
use flowgate_core::config::ManagerConfig;
use flowgate_core::random::Random;
use flowgate_core::{Direction, DropReason, Instant, ManagerInput, PreparedConfig, UdpManager};
use flowgate_tests::fake_kernel::{FakeKernel, Faults, Incoming, SendFault, SocketId};
use nix::errno::Errno;

const CLIENTS: u16 = 5;

/// The shortest datagram: its client and its number.
const SHORTEST: usize = 6;

fn config(mode: &str, backends: &[&str]) -> ManagerConfig {
    let toml = format!(
        "[[listener]]\naddress = \"[::]:53\"\ncluster = \"test\"\n\
         [cluster.test]\nbackends = {backends:?}\n{mode}\n"
    );
    let config = flowgate_config::parse(&toml, "test.toml").unwrap_or_else(|e| panic!("{e}"));
    let listener = &config.listeners[0];
    let backends = listener.cluster.policy.backends.clone();
    listener.manager_config(listener.address, 64, vec![], false, backends)
}

const ONE_WAY: &str = "mode = \"one-way\"\nbalance = \"round-robin\"";
const FAN_OUT: &str = "mode = \"fan-out\"";
const BACKENDS: &[&str] = &["10.1.0.1:53", "[2001:db8::2]:53", "10.1.0.3:53"];

struct World {
    kernel: FakeKernel,
    shard: Shard<FakeKernel>,
    listener: SocketId,
    now: Instant,
    arena: Arena,
    sent: u32,
    /// How many datagrams went to each backend.
    taken: BTreeMap<SocketAddr, u64>,
    /// The last one of each client that went to each backend.
    last: BTreeMap<(SocketAddr, u16), u32>,
}

impl World {
    fn new(config: ManagerConfig, faults: Faults) -> Self {
        let kernel = FakeKernel::new(faults);
        let socket = kernel.listen(Token::Listener { shard: 0 });
        let (listener, now) = (socket.id(), Instant::from_millis(1));
        Self {
            shard: Shard::new(0, socket, UdpManager::new(config, 3, now)),
            kernel,
            listener,
            now,
            arena: Arena::new(32),
            sent: 0,
            taken: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    /// Has equal datagrams of one client arrive, side by side.
    fn arrive(&mut self, client: u16, datagrams: usize, len: usize, tos: u8) {
        let mut bytes = Vec::new();
        for _ in 0..datagrams {
            self.sent += 1;
            let start = bytes.len();
            bytes.extend(client.to_be_bytes());
            bytes.extend(self.sent.to_be_bytes());
            bytes.resize(start + len.max(SHORTEST), tos);
        }
        let source = SocketAddr::from(([192, 0, 2, 1], 1_000 + client));
        let segment = if datagrams > 1 { len.max(SHORTEST) as u16 } else { 0 };
        let incoming = Incoming { tos, ..Incoming::new(source, bytes, segment) };
        self.kernel.arrive(self.listener, incoming);
    }

    fn poll_and_tick(&mut self) {
        for (token, readiness) in self.kernel.poll(4) {
            self.shard.on_event(token, readiness, &mut self.kernel, self.now);
        }
        self.shard.tick(&mut self.kernel, &mut self.arena, self.now);
        self.check();
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.kernel.has_news() && !self.shard.has_work() {
                return;
            }
            self.poll_and_tick();
        }
        panic!("the shard goes on without end");
    }

    fn configure(&mut self, config: ManagerConfig) {
        let configuration = PreparedConfig::new(config);
        let input = ManagerInput::Configured(&configuration);
        self.shard.handle(input, &mut self.kernel, self.now);
        self.check();
    }

    /// All sockets ever opened but the listener's.
    fn egress_sockets(&self) -> Vec<SocketId> {
        let all = self.kernel.sockets().into_iter().map(|(socket, _)| socket);
        all.filter(|socket| *socket != self.listener).collect()
    }

    /// Where one datagram of each kind of way to a backend leaves by.
    fn check(&mut self) {
        for socket in self.egress_sockets() {
            for sent in self.kernel.take_sent(socket) {
                let to = sent.destination.expect("an unconnected socket");
                let client = u16::from_be_bytes(sent.bytes[..2].try_into().unwrap());
                let number = u32::from_be_bytes(sent.bytes[2..6].try_into().unwrap());
                assert!(sent.bytes[6..].iter().all(|byte| *byte == sent.tos), "other marks");
                let last = self.last.insert((to, client), number);
                assert!(last < Some(number), "{to}: {number} of client {client} after {last:?}");
                *self.taken.entry(to).or_default() += 1;
            }
        }
        let manager = self.shard.manager();
        manager.assert_invariants();
        let counted: u64 = manager.backends().iter().map(|(_, backend)| backend.to.datagrams).sum();
        assert_eq!(self.taken.values().sum::<u64>(), counted, "what the kernel has taken");
        let received = manager.counters().to_backend.received.datagrams;
        assert_eq!(received, self.kernel.received(Direction::ToBackend));
    }

    fn taken(&self, backend: &str) -> u64 {
        self.taken.get(&backend.parse().unwrap()).copied().unwrap_or(0)
    }

    fn dropped(&self, index: usize) -> u64 {
        let backends = self.shard.manager().backends();
        backends.iter().nth(index).map(|(_, backend)| backend.dropped.datagrams).unwrap()
    }
}

/// Whatever the kernel does, for a while, in a mode.
fn storm(seed: u64, mode: &str) {
    let mut random = Random::new(seed);
    let per_mille = [0, 50, 400][random.below(3) as usize];
    let mut world = World::new(config(mode, BACKENDS), Faults::by_chance(seed, per_mille));
    for _ in 0..150 {
        match random.below(10) {
            0..5 => {
                let datagrams = 1 + random.below(12) as usize;
                let len = [0, 10, 10, 10, 1_200][random.below(5) as usize];
                let tos = [0, 0, 0, 3][random.below(4) as usize];
                world.arrive(random.below(CLIENTS.into()) as u16, datagrams, len, tos);
            }
            5 => {
                let egress_sockets = world.egress_sockets();
                if let Some(&socket) = egress_sockets.get(random.below(4) as usize) {
                    world.kernel.set_room(socket, [0, 3, 1_000_000][random.below(3) as usize]);
                }
            }
            6 => {
                let egress_sockets = world.egress_sockets();
                if let Some(&socket) = egress_sockets.get(random.below(4) as usize) {
                    let to = BACKENDS[random.below(3) as usize].parse().unwrap();
                    let refusal = [None, Some(Errno::EIO), Some(Errno::EINVAL)];
                    world.kernel.refuse_gso(socket, to, refusal[random.below(3) as usize]);
                }
            }
            _ => world.poll_and_tick(),
        }
    }
    world.kernel.faults().stop();
    for socket in world.egress_sockets() {
        world.kernel.set_room(socket, usize::MAX);
    }
    world.settle();
    assert_eq!(world.shard.queued(Direction::ToBackend), 0, "what waited has gone");
    let to_backend = &world.shard.manager().counters().to_backend;
    assert_eq!(to_backend.received.datagrams, u64::from(world.sent));
    let copies = if mode == FAN_OUT { 3 } else { 1 };
    let dropped: u64 = (0..3).map(|index| world.dropped(index)).sum();
    let taken: u64 = world.taken.values().sum();
    assert_eq!(taken + dropped, copies * u64::from(world.sent), "seed {seed}");
}

#[test]
fn every_datagram_leaves_once_or_is_counted_whatever_the_kernel_does() {
    for seed in 0..300 {
        storm(seed, ONE_WAY);
        storm(seed, FAN_OUT);
    }
}

#[test]
fn a_turn_goes_to_all_backends_with_one_call_for_each_family() {
    let mut world = World::new(config(ONE_WAY, BACKENDS), Faults::default());
    for client in 0..CLIENTS {
        world.arrive(client, 6, 100, 0);
    }
    world.settle();
    let usage: Vec<_> =
        world.egress_sockets().iter().map(|&socket| world.kernel.usage(socket)).collect();
    assert_eq!(usage.len(), 2);
    assert!(usage.iter().all(|usage| usage.calls == 1), "{usage:?}");
    // Equal datagrams of all clients to one backend are one GSO batch.
    assert_eq!(usage.iter().map(|usage| usage.messages).sum::<u64>(), 3, "{usage:?}");
    assert_eq!(BACKENDS.iter().map(|to| world.taken(to)).sum::<u64>(), 30);
}

#[test]
fn a_target_whose_buffer_is_full_holds_up_no_other_and_has_a_queue_of_its_own() {
    let mut world = World::new(config(FAN_OUT, BACKENDS), Faults::default());
    world.arrive(0, 1, 100, 0);
    world.settle();
    let egress_sockets = world.egress_sockets();
    assert_eq!(egress_sockets.len(), 3);
    world.kernel.set_room(egress_sockets[1], 0);
    for _ in 0..400 {
        world.arrive(1, 10, 100, 0);
        world.settle();
    }
    assert_eq!((world.taken(BACKENDS[0]), world.taken(BACKENDS[2])), (4_001, 4_001));
    assert_eq!(world.taken(BACKENDS[1]), 1);
    let waiting = world.shard.queued(Direction::ToBackend) as u64;
    assert_eq!((waiting, world.dropped(1)), (1_024, 4_000 - 1_024));
    assert!(world.kernel.is_watched(egress_sockets[1]));
    world.kernel.set_room(egress_sockets[1], usize::MAX);
    world.settle();
    assert_eq!(world.taken(BACKENDS[1]), 1 + 1_024);
    assert!(!world.kernel.is_watched(egress_sockets[1]));
    let to_backend = &world.shard.manager().counters().to_backend;
    assert_eq!(to_backend.received, to_backend.forwarded);
}

#[test]
fn what_the_routing_table_says_of_one_backend_stops_no_other() {
    let mut world = World::new(config(ONE_WAY, BACKENDS), Faults::default());
    world.arrive(0, 3, 100, 0);
    world.settle();
    let gone = Some(SendFault::Error(Errno::ENETUNREACH));
    world.kernel.faults().sends.extend([gone, None, None]);
    world.arrive(0, 3, 100, 0);
    world.settle();
    let drops = world.shard.manager().counters().to_backend.dropped_for(DropReason::Unreachable);
    assert_eq!(drops.datagrams, 1);
    assert_eq!(world.taken.values().sum::<u64>(), 5);
}

#[test]
fn a_socket_that_cannot_be_had_is_asked_for_again() {
    let mut world = World::new(config(FAN_OUT, &BACKENDS[..1]), Faults::default());
    world.kernel.faults().opens.extend([Some(Errno::EMFILE), Some(Errno::EMFILE)]);
    for _ in 0..3 {
        world.arrive(0, 2, 100, 0);
        world.settle();
    }
    assert_eq!((world.taken(BACKENDS[0]), world.dropped(0)), (2, 4));
}

#[test]
fn what_waits_for_a_removed_backend_is_given_up_and_what_waits_for_others_is_not() {
    for mode in [ONE_WAY, FAN_OUT] {
        let pair = ["10.1.0.1:53", "10.1.0.3:53"];
        let mut world = World::new(config(mode, &pair), Faults::default());
        world.arrive(0, 2, 100, 0);
        world.settle();
        for socket in world.egress_sockets() {
            world.kernel.set_room(socket, 0);
        }
        world.arrive(0, 20, 100, 0);
        world.settle();
        let waiting = world.shard.queued(Direction::ToBackend);
        let mut new = config(mode, &pair);
        new.cluster.backends[0].removed = true;
        world.configure(new);
        assert_eq!(world.shard.queued(Direction::ToBackend), waiting / 2, "{mode}");
        let before = world.taken(pair[0]);
        for socket in world.egress_sockets() {
            world.kernel.set_room(socket, usize::MAX);
        }
        world.settle();
        assert_eq!(world.taken(pair[0]), before);
        assert_eq!(world.shard.queued(Direction::ToBackend), 0);
        assert_eq!(world.dropped(0), waiting as u64 / 2);
        assert_eq!(world.dropped(1), 0);
    }
}

#[test]
fn sockets_that_another_process_had_are_kept_where_they_have_a_source() {
    let mode = "mode = \"one-way\"\nsource = \"10.1.0.9\"";
    let (config, now) = (config(mode, &["10.1.0.1:53"]), Instant::from_millis(1));
    let mut kernel = FakeKernel::new(Faults::default());
    let token = Token::EgressSocket { shard: 0, role: Role::Primary, egress: 0 };
    let socket = kernel.open_egress_socket(false, &config.cluster.source, token).unwrap();
    let listener = kernel.listen(Token::Listener { shard: 0 });
    let ids = [listener.id(), socket.id()];
    let mut sockets = Sockets::new(0, listener, 0);
    sockets.egress_sockets[0].restore(0, socket, SendQueue::default());
    let mut shard = Shard::with_sockets(sockets, UdpManager::new(config, 3, now), None);
    shard.open_egress_sockets(&mut kernel, now);
    let open: Vec<SocketId> = kernel.sockets().into_iter().map(|(socket, _)| socket).collect();
    assert_eq!(open.len(), ids.len());
    assert!(ids.iter().all(|id| open.contains(id)), "{open:?}");
}
