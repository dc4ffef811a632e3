//! Flowgate by the kernel path, by its sockets, and the bare relay, between network namespaces: what each costs, softirq
//! included, over a direct cable.
//!
//! Over loopback there is no interface that a program could be attached to. So clients, balancer and backends have
//! namespaces of their own, joined by cables (veth), and a fourth cable joins clients and backends directly. The work of
//! the kernel is done on behalf of whoever sends: what counts is the CPU time of everybody together, the balancer, clients
//! and backends, and the kernel's own threads, less that over the direct cable.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{io, process};

use clap::Args;
use flowgate_fastpath::FastPath;
use nix::sched::{CloneFlags, setns};

use crate::Result;
use crate::backends::{Backends, Behaviour};
use crate::clients::Clients;
use crate::drive::Driver;
use crate::meter::{Usage, scheduled};
use crate::peers::relay_command;
use crate::process::{Cores, Guarded, Scratch, pin};
use crate::workload::{Pace, USUAL, Workload};

/// How long is sent at least before anything is measured, and how many datagrams of each client: a flow that is never
/// answered is handed over to the kernel after 16, which at 20 a second takes most of a second, and longer on a busy machine.
const WARM_UP: Duration = Duration::from_millis(1_500);
const WARM_UP_DATAGRAMS: u64 = 24;

const START_TIMEOUT: Duration = Duration::from_secs(10);

const LISTENER: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 1);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 81, 0, 2);
const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 82, 0, 2);
const PORT: u16 = 7_000;

/// What is run for the packets that are nobody's flow, and how often before the mean is taken.
const MISS: &str = "miss";
const MISS_RUNS: u32 = 1_000_000;

/// The options of `flowgate-bench kernel-path`.
#[derive(Args)]
pub(crate) struct Options {
    /// How often everything is measured; the medians count.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The best of all rounds counts, each figure by itself: for a machine that others use as well.
    #[arg(long)]
    best: bool,
    /// How long each measurement takes.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The Flowgate to measure (default: beside this executable).
    #[arg(long, value_name = "PATH")]
    flowgate: Option<PathBuf>,
    /// Only workloads whose names contain this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// A way from the clients to the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Relay,
    Sockets,
    Kernel,
}

impl Way {
    const ALL: [Self; 4] = [Self::Direct, Self::Relay, Self::Sockets, Self::Kernel];

    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct cable",
            Self::Relay => "bare relay",
            Self::Sockets => "Flowgate, sockets",
            Self::Kernel => "Flowgate, kernel",
        }
    }
}

/// A busy sender's windows are larger than any of these.
const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "one-way-64",
        title: "one way, 64 B, 64 clients",
        pace: Pace::PerSecond(100_000),
        ..USUAL
    },
    Workload {
        name: "one-way-4096",
        title: "one way, 64 B, 4,096 clients",
        clients: 4_096,
        pace: Pace::PerSecond(100_000),
        ..USUAL
    },
    Workload {
        name: "round-trips-4096",
        title: "round trips, 4,096 flows, closed loop",
        unit: "round trip",
        clients: 4_096,
        behaviour: Behaviour::Echo,
        pace: Pace::Window(512),
        ..USUAL
    },
    Workload {
        name: "bulk",
        title: "bulk trains of 32 x 1,200 B and back, closed loop",
        unit: "round trip",
        clients: 16,
        size: 1_200,
        train: 32,
        behaviour: Behaviour::Echo,
        pace: Pace::Window(512),
        ..USUAL
    },
    Workload {
        name: "latency",
        title: "round trips, 20,000/s, 64 flows",
        unit: "round trip",
        behaviour: Behaviour::Echo,
        pace: Pace::PerSecond(20_000),
        ..USUAL
    },
];

/// What one measurement says.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    per_second: f64,
    /// Nanoseconds of CPU time of everybody together for each datagram or round trip.
    all: f64,
    /// The same of the balancer's own threads.
    own: f64,
    p50: f64,
    lost: f64,
}

/// Measures everything and prints a table of it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let flowgate = crate::process::flowgate(options.flowgate.as_deref())?;
    let cores = Cores::available()?;
    pin(cores.load)?;
    let network = Network::new()?;
    let length = Duration::try_from_secs_f64(options.seconds.max(0.1))?;
    println!(
        "CPU time of everybody together less that over the direct cable, ns; {} of {} rounds of {:?}\n",
        if options.best { "the best" } else { "medians" },
        options.rounds,
        length
    );
    for workload in WORKLOADS.iter().filter(|workload| workload.name.contains(&options.only)) {
        let mut samples = [const { Vec::new() }; Way::ALL.len()];
        for _ in 0..options.rounds.max(1) {
            for (way, samples) in Way::ALL.into_iter().zip(&mut samples) {
                let sample = network.measure(way, workload, &flowgate, cores.balancer, length);
                samples
                    .push(sample.map_err(|e| format!("{}, {}: {e}", workload.name, way.name()))?);
            }
        }
        let of_rounds = if options.best { best } else { median };
        tell(workload, &samples.map(|samples| of_rounds(&samples)));
    }
    if MISS.contains(&options.only) {
        tell_misses(options.rounds.max(1))?;
    }
    Ok(())
}

/// What the program takes for packets of others, on an interface that it is attached to.
fn tell_misses(rounds: usize) -> Result<()> {
    let mut path = FastPath::load()?;
    println!("packets of others, ns each in the program, best of {rounds} rounds of {MISS_RUNS}");
    for (name, packet) in others_packets() {
        let mut best = Duration::MAX;
        for _ in 0..rounds {
            best = best.min(path.time(&packet, MISS_RUNS)?);
        }
        println!("  {name:<18} {:>10}", best.as_nanos());
    }
    Ok(())
}

/// An Ethernet frame each: of TCP, and of UDP that is nobody's flow, by IPv4 and by IPv6.
fn others_packets() -> [(&'static str, Vec<u8>); 4] {
    const PAYLOAD: usize = 64;
    let v4 = |protocol: u8, header: usize| {
        let length = (20 + header + PAYLOAD) as u16;
        let mut packet = [&[2; 12][..], &[8, 0, 0x45, 0], &length.to_be_bytes()].concat();
        packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        packet.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        packet.resize(34, 0);
        packet
    };
    let v6 = |protocol: u8, header: usize| {
        let length = (header + PAYLOAD) as u16;
        let mut packet = [&[2; 12][..], &[0x86, 0xDD, 0x60, 0, 0, 0]].concat();
        packet.extend(length.to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend([0x20; 32]);
        packet
    };
    let udp = |mut packet: Vec<u8>| {
        packet.extend([0x12, 0x34, 0x56, 0x78, 0, 8 + PAYLOAD as u8, 1, 1]);
        packet.extend([0; PAYLOAD]);
        packet
    };
    let tcp = |mut packet: Vec<u8>| {
        packet.extend([0x12; 20]);
        packet.extend([0; PAYLOAD]);
        packet
    };
    [
        ("UDP over IPv4", udp(v4(17, 8))),
        ("UDP over IPv6", udp(v6(17, 8))),
        ("TCP over IPv4", tcp(v4(6, 20))),
        ("TCP over IPv6", tcp(v6(6, 20))),
    ]
}

fn tell(workload: &Workload, samples: &[Sample; Way::ALL.len()]) {
    let [direct, relay, sockets, kernel] = samples;
    let over = |sample: &Sample| sample.all - direct.all;
    println!("{}, per {}", workload.title, workload.unit);
    println!(
        "  {:<18} {:>10} {:>9} {:>12} {:>11} {:>12} {:>9} {:>7}",
        "", "per second", "all", "over direct", "relay : it", "its threads", "p50 us", "lost"
    );
    for (way, sample) in Way::ALL.into_iter().zip(samples) {
        // Within noise there is no ratio to tell.
        let ratio = over(relay) / over(sample);
        let ratio = match way {
            Way::Direct => "-".to_owned(),
            _ if over(sample) < 10.0 => "(noise)".to_owned(),
            _ => format!("{ratio:.1}"),
        };
        println!(
            "  {:<18} {:>10.0} {:>9.0} {:>12.0} {:>11} {:>12.0} {:>9.1} {:>7.0}",
            way.name(),
            sample.per_second,
            sample.all,
            over(sample),
            ratio,
            sample.own,
            sample.p50,
            sample.lost
        );
    }
    println!(
        "  kernel : sockets, rate {:.2}, p50 {:.2}\n",
        kernel.per_second / sockets.per_second,
        kernel.p50 / sockets.p50
    );
}

/// The best of each figure by itself.
fn best(samples: &[Sample]) -> Sample {
    let least = |figure: fn(&Sample) -> f64| samples.iter().map(figure).fold(f64::MAX, f64::min);
    Sample {
        per_second: samples.iter().map(|s| s.per_second).fold(0.0, f64::max),
        all: least(|s| s.all),
        own: least(|s| s.own),
        p50: least(|s| s.p50),
        lost: least(|s| s.lost),
    }
}

/// The median of each figure by itself.
fn median(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| {
        let mut figures: Vec<f64> = samples.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or_default()
    };
    Sample {
        per_second: of(|s| s.per_second),
        all: of(|s| s.all),
        own: of(|s| s.own),
        p50: of(|s| s.p50),
        lost: of(|s| s.lost),
    }
}

/// Three namespaces and the cables between them; they go with this value.
struct Network {
    home: File,
    names: [String; 3],
}

impl Network {
    fn new() -> Result<Self> {
        let names = ["client", "balancer", "backend"]
            .map(|who| format!("flowgate-bench-{}-{who}", process::id()));
        let network = Self { home: File::open("/proc/self/ns/net")?, names };
        let [client, balancer, backend] = &network.names;
        for name in &network.names {
            ip(&format!("netns add {name}"))
                .map_err(|error| format!("namespaces need root and iproute2: {error}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        for (near, far, subnet) in
            [(balancer, client, 80), (balancer, backend, 81), (client, backend, 82)]
        {
            let end = format!("cable{subnet}");
            ip(&format!("-n {near} link add {end} type veth peer name {end} netns {far}"))?;
            for (name, number) in [(near, 1), (far, 2)] {
                ip(&format!("-n {name} address add 10.{subnet}.0.{number}/24 dev {end}"))?;
                ip(&format!("-n {name} link set {end} up"))?;
            }
        }
        Ok(network)
    }

    /// Does something in one of the namespaces: sockets and processes that it makes stay there.
    fn inside<T>(&self, place: usize, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let namespace = File::open(Path::new("/run/netns").join(&self.names[place]))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let outcome = act();
        setns(&self.home, CloneFlags::CLONE_NEWNET)?;
        outcome
    }

    fn measure(
        &self,
        way: Way,
        workload: &Workload,
        flowgate: &Path,
        core: usize,
        length: Duration,
    ) -> Result<Sample> {
        let address = if way == Way::Direct { DIRECT } else { BACKEND };
        let backends =
            self.inside(2, || Ok(Backends::at(workload.behaviour, workload.payload, address)?))?;
        let behind = backends.addresses()?;
        let listener = SocketAddr::from((LISTENER, PORT));
        let balancer = match way {
            Way::Direct => None,
            _ => Some(self.inside(1, || start(way, flowgate, core, listener, &behind))?),
        };
        let targets = if balancer.is_some() { vec![listener] } else { behind };
        let clients =
            self.inside(0, || Ok(Clients::at(workload, &targets, |_| Ipv4Addr::UNSPECIFIED)?))?;
        let mut driver = Driver::of(workload, clients, backends, 1);
        if !driver.knock(START_TIMEOUT)? {
            let said = balancer.as_ref().map(Guarded::output).unwrap_or_default();
            return Err(format!("nothing came through; the balancer said:\n{said}").into());
        }
        let mut sent = 0;
        while sent < WARM_UP_DATAGRAMS * workload.clients as u64 {
            driver.warm_up(WARM_UP)?;
            sent += driver.tally().sent;
        }
        let own = || match &balancer {
            Some(balancer) => Usage::of(balancer.id()).map(|usage| usage.cpu),
            None => Ok(Duration::ZERO),
        };
        let (own_before, others_before) = (own()?, others()?);
        let arrived = driver.measure(length)?;
        driver.drain()?;
        let (own, others) = (own()? - own_before, others()? - others_before);
        let tally = driver.tally();
        let units = (tally.arrived as f64).max(1.0);
        Ok(Sample {
            per_second: arrived as f64 / length.as_secs_f64(),
            all: (own + others).as_nanos() as f64 / units,
            own: own.as_nanos() as f64 / units,
            p50: tally.latency.value_at_quantile(0.5) as f64 / 1e3,
            lost: tally.sent.saturating_sub(tally.arrived) as f64,
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

fn start(
    way: Way,
    flowgate: &Path,
    core: usize,
    listener: SocketAddr,
    backends: &[SocketAddr],
) -> Result<Guarded> {
    let scratch = Scratch::new(&format!("{way:?}"))?;
    let command = if way == Way::Relay {
        relay_command("connected", 0, listener, backends)?
    } else {
        let fast_path = if way == Way::Kernel { "tc" } else { "off" };
        let file = scratch.path("flowgate.toml");
        let backends: Vec<_> = backends.iter().map(SocketAddr::to_string).collect();
        let socket = scratch.path("control.sock");
        let toml = format!(
            "[admin]\nsocket = {socket:?}\n[[listener]]\naddress = \"{listener}\"\ncluster = \"bench\"\n\
             fast_path = \"{fast_path}\"\n[cluster.bench]\nbalance = \"round-robin\"\n\
             backends = {backends:?}\n"
        );
        fs::write(&file, toml)?;
        vec![flowgate.display().to_string(), "run".to_owned(), file.display().to_string()]
    };
    Ok(Guarded::start(core, &command, scratch)?)
}

/// The CPU time of this thread, which is clients and backends, and of the kernel's threads for softirqs.
fn others() -> io::Result<Duration> {
    let mut sum = scheduled(&fs::read_to_string("/proc/thread-self/schedstat")?).0;
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if name.starts_with("ksoftirqd/") {
            sum += scheduled(&fs::read_to_string(process.join("schedstat"))?).0;
        }
    }
    Ok(sum)
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}
