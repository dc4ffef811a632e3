//! What the core costs: nanoseconds for each burst, by the number of flows.
//!
//! `cargo bench -p flowgate-bench --bench core`. Flows are visited in random order, so that with
//! many of them the table does not fit the processor's caches, as with real clients.

use std::array::from_fn;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use divan::counter::ItemsCount;
use divan::{Bencher, Divan};
use flowgate_core::config::*;
use flowgate_core::random::Random;
use flowgate_core::snapshot::{decode, encode};
use flowgate_core::{
    Burst, FlowId, Instant, ManagerInput, Output, Outputs, PreparedConfig, UdpManager, UpstreamId,
};

const FLOWS: [usize; 4] = [100, 10_000, 100_000, 1_000_000];

/// Flows of one manager that an upgrade hands over.
const HANDED_OVER: [usize; 3] = [1_000, 5_000, 15_000];

/// Bursts in one sample, so that reading the clock does not count.
const BURSTS: usize = 1_024;

/// Bursts in one receive of a listener.
const BATCH: usize = 64;

fn main() {
    Divan::from_args().main();
}

/// Datagrams of known flows, from client to backend, in batches as a listener delivers them.
#[divan::bench(args = FLOWS)]
fn request_of_a_known_flow(bencher: Bencher, flows: usize) {
    requests_of_known_flows(bencher, &mut World::new(flows), flows);
}

fn requests_of_known_flows(bencher: Bencher, world: &mut World, flows: usize) {
    bencher.counter(ItemsCount::new(BURSTS)).bench_local(|| {
        for _ in 0..BURSTS / BATCH {
            let clients: [SocketAddr; BATCH] = from_fn(|_| world.any_client(flows));
            world.manager.prefetch(clients.iter().map(|&client| (client, None)));
            for client in clients {
                world.request(client);
            }
        }
    });
}

/// The same where the ids of QUIC place flows: what a known flow pays is a look at whether its id has
/// changed. The datagrams are short headers to QUIC.
#[divan::bench(args = FLOWS)]
fn request_of_a_known_flow_with_quic_ids(bencher: Bencher, flows: usize) {
    let mut world = World::with(flows, |cluster| cluster.affinity = Affinity::Quic);
    requests_of_known_flows(bencher, &mut world, flows);
}

/// The same datagrams one at a time, each waiting for its flow to come from memory.
#[divan::bench(args = FLOWS)]
fn lone_request_of_a_known_flow(bencher: Bencher, flows: usize) {
    let mut world = World::new(flows);
    bencher.counter(ItemsCount::new(BURSTS)).bench_local(|| {
        for _ in 0..BURSTS {
            let client = world.any_client(flows);
            world.request(client);
        }
    });
}

/// Datagrams of known flows, from backend to client, whose sockets became ready together.
#[divan::bench(args = FLOWS)]
fn reply_of_a_known_flow(bencher: Bencher, flows: usize) {
    let mut world = World::answered(flows);
    bencher.counter(ItemsCount::new(BURSTS)).bench_local(|| {
        for _ in 0..BURSTS / BATCH {
            let batch: [FlowId; BATCH] = from_fn(|_| world.any_flow());
            let upstreams = batch.iter().filter_map(|id| Some(world.manager.flow(*id)?.upstream()));
            world.manager.prefetch_upstreams(
                upstreams.map(UpstreamId::index).collect::<Vec<_>>().into_iter(),
            );
            for flow in batch {
                world.reply(flow);
            }
        }
    });
}

/// The same datagrams one at a time, each waiting for its flow to come from memory.
#[divan::bench(args = FLOWS)]
fn lone_reply_of_a_known_flow(bencher: Bencher, flows: usize) {
    let mut world = World::answered(flows);
    bencher.counter(ItemsCount::new(BURSTS)).bench_local(|| {
        for _ in 0..BURSTS {
            let flow = world.any_flow();
            world.reply(flow);
        }
    });
}

/// A whole flow: opened by a request, closed by its reply.
#[divan::bench(args = FLOWS)]
fn flow_of_one_question(bencher: Bencher, flows: usize) {
    let mut world = World::new(flows);
    world.manager =
        UdpManager::new(config(flows + 1, |cluster| cluster.responses = 1), 1, world.now);
    bencher.counter(ItemsCount::new(BURSTS)).bench_local(|| {
        for number in 0..BURSTS {
            let flow = world.open(client(flows + number));
            world.reply(flow);
        }
    });
}

/// Asking for the next deadline, which a worker does once for each turn.
#[divan::bench(args = FLOWS)]
fn next_deadline(bencher: Bencher, flows: usize) {
    let world = World::new(flows);
    bencher.counter(ItemsCount::new(BURSTS)).bench_local(|| {
        for _ in 0..BURSTS {
            black_box(black_box(&world.manager).poll_timeout());
        }
    });
}

/// Saying all that a manager knows, and wrapping it: forwarding waits for that in an upgrade.
#[divan::bench(args = HANDED_OVER)]
fn snapshot_of_flows(bencher: Bencher, flows: usize) {
    let mut world = World::in_use(flows);
    bencher.bench_local(|| encode(&black_box(&mut world.manager).snapshot()));
}

/// Making a manager of what was said, which forwarding waits for too.
#[divan::bench(args = HANDED_OVER)]
fn restoring_flows(bencher: Bencher, flows: usize) {
    let mut world = World::in_use(flows);
    let encoded = encode(&world.manager.snapshot());
    let prepared = PreparedConfig::new(world.manager.config().clone());
    bencher.bench_local(|| {
        let snapshot = decode(black_box(&encoded)).expect("a snapshot");
        UdpManager::restore(snapshot, Some(&prepared)).expect("the snapshot of a manager")
    });
}

/// A manager with flows, and a clock that ticks a microsecond for each burst.
struct World {
    manager: UdpManager,
    flows: Vec<FlowId>,
    random: Random,
    now: Instant,
}

/// Takes outputs as a shell would, without carrying them out.
struct Sink;

impl<'p> Outputs<'p> for Sink {
    #[inline(never)]
    fn emit(&mut self, output: Output<'p>) {
        black_box(&output);
    }
}

impl World {
    fn new(flows: usize) -> Self {
        Self::with(flows, |_| {})
    }

    fn with(flows: usize, change: impl FnOnce(&mut ClusterConfig)) -> Self {
        let manager = UdpManager::new(config(flows, change), 1, Instant::ORIGIN);
        let (random, now) = (Random::new(1), Instant::ORIGIN);
        let mut world = Self { manager, flows: Vec::new(), random, now };
        for number in 0..flows {
            let flow = world.open(client(number));
            world.flows.push(flow);
        }
        world
    }

    /// Flows that were opened one after the other, and have carried datagrams both ways, where
    /// everything is limited.
    fn in_use(flows: usize) -> Self {
        let mut config = config(flows, |cluster| {
            cluster.limits = Limits {
                flows_per_source: flows as u32,
                flows_per_subnet: flows as u32,
                new_flows_per_second_per_source: flows as u32,
                ..Limits::default()
            };
        });
        config.max_flows = 2 * flows as u32;
        let manager = UdpManager::new(config, 1, Instant::ORIGIN);
        let (random, now) = (Random::new(1), Instant::from_millis(86_400_000));
        let mut world = Self { manager, flows: Vec::new(), random, now };
        for number in 0..flows {
            world.now += Duration::from_micros(500);
            let flow = world.open(client(number));
            world.flows.push(flow);
            for _ in 0..3 {
                world.reply(flow);
                world.request(client(number));
            }
        }
        world
    }

    /// The same, in which each flow has been answered once: a first answer does more.
    fn answered(flows: usize) -> Self {
        let mut world = Self::new(flows);
        for number in 0..flows {
            world.reply(world.flows[number]);
        }
        world
    }

    fn open(&mut self, source: SocketAddr) -> FlowId {
        let mut outputs = Opened::default();
        self.manager.handle_input(request(source), self.now, &mut outputs);
        outputs.flow.expect("a new flow")
    }

    fn any_client(&mut self, flows: usize) -> SocketAddr {
        client(self.random.below(flows as u64) as usize)
    }

    fn any_flow(&mut self) -> FlowId {
        self.flows[self.random.below(self.flows.len() as u64) as usize]
    }

    fn request(&mut self, source: SocketAddr) {
        self.now += Duration::from_micros(1);
        self.manager.handle_input(request(source), self.now, &mut Sink);
    }

    fn reply(&mut self, flow: FlowId) {
        self.now += Duration::from_micros(1);
        let Some(known) = self.manager.flow(flow) else { return };
        let Some(backend) = self.manager.backends().get(known.backend()) else { return };
        let (upstream, sender) = (known.upstream(), backend.address());
        let input = ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst: payload() };
        self.manager.handle_input(input, self.now, &mut Sink);
    }
}

/// Remembers which flow was opened.
#[derive(Default)]
struct Opened {
    flow: Option<FlowId>,
}

impl<'p> Outputs<'p> for Opened {
    fn emit(&mut self, output: Output<'p>) {
        if let Output::OpenFlow { flow, .. } = output {
            self.flow = Some(flow);
        }
    }
}

fn payload() -> Burst<'static> {
    Burst::single(&[7; 64]).expect("shorter than an IP packet")
}

fn request(source: SocketAddr) -> ManagerInput<'static> {
    ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst: payload() }
}

fn client(number: usize) -> SocketAddr {
    let ip = Ipv4Addr::from(0x0A00_0000 + number as u32 / 50_000);
    SocketAddr::from((ip, (number % 50_000) as u16 + 1_024))
}

fn config(max_flows: usize, change: impl FnOnce(&mut ClusterConfig)) -> ManagerConfig {
    let backend = |number| SocketAddr::from(([10, 1, 0, number], 53));
    let mut cluster = ClusterConfig {
        balance: Balance::RoundRobin,
        affinity: Affinity::SourceIpPort,
        upstream_quarantine: Duration::ZERO,
        ..ClusterConfig::new((1..=4).map(backend))
    };
    change(&mut cluster);
    ManagerConfig {
        max_flows: max_flows as u32,
        cluster,
        ..ManagerConfig::new(([192, 0, 2, 1], 53).into(), [backend(1)])
    }
}
