//! The comparison: every workload, every peer, in interleaved rounds.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::Result;
use crate::backends::Backends;
use crate::chart;
use crate::drive::Driver;
use crate::peers::{Balancer, Peer, Programs};
use crate::process::{Cores, Guarded, Scratch, pin};
use crate::report::{Costs, Figures, Report};
use crate::table;
use crate::workload::{Mode, WORKLOADS, Workload};

/// A peer has so long to answer its first datagram.
const START: Duration = Duration::from_secs(5);

/// Flows are opened, and caches filled, for so long before a measurement.
const WARM_UP: Duration = Duration::from_millis(300);

/// What to compare, and where to tell.
#[derive(Args)]
pub(crate) struct Options {
    /// The peers to measure, in this order.
    #[arg(long, value_delimiter = ',', default_values = ["nginx", "envoy", "traefik", "dnsdist", "flowgate", "relay", "pool", "ids", "direct"])]
    peers: Vec<Peer>,
    /// The workloads to measure (default: all).
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(WORKLOADS.map(|workload| workload.name)))]
    only: Vec<String>,
    /// How often each measurement is repeated; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement lasts.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The Flowgate to measure (default: beside this executable).
    #[arg(long, value_name = "PATH")]
    flowgate: Option<PathBuf>,
    /// The core of clients and backends (default: the first one allowed).
    #[arg(long, value_name = "N")]
    load_core: Option<usize>,
    /// The core of the balancer (default: the second one allowed).
    #[arg(long, value_name = "N")]
    balancer_core: Option<usize>,
    /// Processes that spin beside the balancer, so that it gets only a part of its core. Then clients and backends, which
    /// have a whole one, can saturate a balancer that is cheaper than they are.
    #[arg(long, value_name = "N", default_value_t = 0)]
    crowd: usize,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw a chart into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// One tiny round of everything, to see that it works; the figures mean nothing.
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    smoke: bool,
}

/// Runs the comparison and tells what came of it. Nothing delivered is a failure, slow is not.
pub(crate) fn run(options: &Options) -> Result<()> {
    let programs = Programs::find(options.flowgate.as_deref());
    let peers = present(&options.peers, &programs)?;
    let cores = cores(options)?;
    pin(cores.load)?;
    let _crowd = crowd(options.crowd, cores.balancer)?;

    let (rounds, seconds) =
        if options.smoke { (1, 0.1) } else { (options.rounds.max(1), options.seconds.max(0.1)) };
    let length = Duration::try_from_secs_f64(seconds)?;
    let mut report = Report::new(&programs.versions(), rounds, seconds, options.crowd);
    for workload in WORKLOADS.iter().filter(|workload| wanted(workload, options)) {
        let peers: Vec<_> = peers.iter().copied().filter(|peer| peer.takes(workload)).collect();
        let mut samples = vec![Vec::new(); peers.len()];
        for round in 1..=rounds {
            for (peer, samples) in peers.iter().zip(&mut samples) {
                let figures = measure(*peer, workload, &programs, cores, length)
                    .map_err(|error| format!("{}, {}: {error}", workload.name, peer.name()))?;
                eprintln!(
                    "{:>15}  {round}/{rounds}  {:<10}  {}",
                    workload.name,
                    peer.name(),
                    table::brief(&figures)
                );
                samples.push(figures);
            }
        }
        report.add(workload, peers.iter().copied().zip(samples));
    }

    println!("{}", table::text(&report));
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(file) = &options.svg {
        fs::write(file, chart::svg(&report))?;
    }
    Ok(())
}

/// The peers that are on this machine. Any but Flowgate may be absent.
fn present(peers: &[Peer], programs: &Programs) -> Result<Vec<Peer>> {
    let mut present = Vec::new();
    for &peer in peers {
        match programs.missing(peer) {
            None => present.push(peer),
            Some(reason) if peer == Peer::Flowgate => return Err(reason.into()),
            Some(reason) => eprintln!("without {}: {reason}", peer.name()),
        }
    }
    Ok(present)
}

fn cores(options: &Options) -> Result<Cores> {
    let available = Cores::available()?;
    let cores = Cores {
        load: options.load_core.unwrap_or(available.load),
        balancer: options.balancer_core.unwrap_or(available.balancer),
    };
    if cores.load == cores.balancer {
        eprintln!(
            "the balancer shares core {} with its clients: figures are low and noisy",
            cores.load
        );
    }
    Ok(cores)
}

/// Keeps the core of the balancer busy with something else for as long as the result lives.
fn crowd(number: usize, core: usize) -> Result<Vec<Guarded>> {
    let command = [env::current_exe()?.display().to_string(), "spin".to_owned()];
    let spinners = (0..number).map(|index| {
        let scratch = Scratch::new(&format!("spin-{index}"))?;
        Guarded::start(core, &command, scratch)
    });
    Ok(spinners.collect::<io::Result<_>>()?)
}

fn wanted(workload: &Workload, options: &Options) -> bool {
    options.only.is_empty() || options.only.iter().any(|name| name == workload.name)
}

/// How long to warm up for a measurement of some length: where sockets rest, until those are used again that were opened
/// first, but in a smoke test.
fn warm_up(workload: &Workload, length: Duration) -> Duration {
    if length < WARM_UP { length } else { WARM_UP.max(workload.rest() * 3 / 2) }
}

/// One measurement of one peer, which is started for it and stopped after it.
fn measure(
    peer: Peer,
    workload: &Workload,
    programs: &Programs,
    cores: Cores,
    length: Duration,
) -> Result<Figures> {
    let backends = Backends::new(workload.behaviour, workload.payload)?;
    let mut addresses = backends.addresses()?;
    if let Mode::FanOut(targets) = workload.mode {
        addresses.truncate(targets);
    }
    let balancer = Balancer::start(peer, programs, workload, &addresses, cores.balancer)?;
    let copies = workload.copies(peer);
    let mut driver = Driver::new(workload, &balancer.targets, backends, copies)?;
    if !driver.knock(START)? {
        return Err(format!("nothing comes through; it said:\n{}", balancer.output()).into());
    }
    driver.warm_up(warm_up(workload, length))?;

    let before = balancer.usage()?;
    let begin = Instant::now();
    let in_time = driver.measure(length)?;
    driver.drain()?;
    let elapsed = begin.elapsed();
    let after = balancer.usage()?;

    let tally = driver.tally();
    if tally.arrived == 0 {
        return Err("nothing was delivered".into());
    }
    let (cpu, waited) = (after.cpu - before.cpu, after.waited - before.waited);
    let costs = (peer != Peer::Direct).then(|| Costs {
        cpu_ns: cpu.as_nanos() as f64 / tally.arrived as f64,
        busy: cpu.div_duration_f64(elapsed),
        waited: waited.div_duration_f64(elapsed),
        resident: after.resident,
        peak: after.peak,
    });
    Ok(Figures::new(in_time as f64 / length.as_secs_f64(), tally, costs))
}
