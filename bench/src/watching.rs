//! What it costs that somebody watches: `flowgate trace` of one client, `flowgate trace` that waits for a client that
//! there is not, and `flowgate record`, among many flows at a fixed rate.
//!
//! One process serves all the time, and is watched and not watched in turn. Each stretch in which it is watched is
//! compared with the two next to it in which it is not, so that neither what differs from process to process nor what
//! changes on the machine from minute to minute is taken for a cost.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use clap::Args;

use crate::Result;
use crate::backends::{Backends, Behaviour};
use crate::drive::Driver;
use crate::peers::{Balancer, Peer, Programs};
use crate::process::{self, Cores, Scratch, pin};
use crate::workload::{Pace, USUAL, Workload};

/// A balancer has so long to answer its first datagram.
const START: Duration = Duration::from_secs(5);

/// How long there is traffic before a stretch counts.
const WARM_UP: Duration = Duration::from_millis(100);

/// Longer than what is recorded waits until it is written.
const REST: Duration = Duration::from_millis(300);

/// The options of `flowgate-bench watching`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many clients, each with a flow.
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Round trips a second: each is a datagram of a client's and one of a backend's.
    #[arg(long, default_value_t = 50_000)]
    pace: u64,
    /// How often everything is measured; the median counts.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How long each stretch lasts.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The Flowgate to measure (default: beside this executable).
    #[arg(long, value_name = "PATH")]
    flowgate: Option<PathBuf>,
}

/// A way to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    OneClient,
    Nobody,
    Record,
}

impl Watch {
    const ALL: [Self; 3] = [Self::OneClient, Self::Nobody, Self::Record];

    const fn name(self) -> &'static str {
        match self {
            Self::OneClient => "one client traced",
            Self::Nobody => "nobody traced",
            Self::Record => "recorded",
        }
    }

    /// What it may cost, in percent.
    const fn goal(self) -> f64 {
        match self {
            Self::OneClient => 2.0,
            Self::Nobody => 0.5,
            Self::Record => 5.0,
        }
    }

    /// The command, whose output is at `file`.
    fn command(self, program: &Path, socket: &str, file: &Path) -> Result<Command> {
        let mut command = Command::new(program);
        match self {
            // One of the clients, see `Clients::new`.
            Self::OneClient => command.args(["trace", "--client", "127.16.0.7"]),
            Self::Nobody => command.args(["trace", "--client", "192.0.2.1"]),
            Self::Record => command.arg("record").arg(file),
        };
        command.args(["--socket", socket]).stdin(Stdio::null()).stderr(Stdio::piped());
        command.stdout(if self == Self::Record {
            Stdio::null()
        } else {
            File::create(file)?.into()
        });
        Ok(command)
    }
}

/// A command that watches, until it is dropped.
struct Watcher(Child);

impl Watcher {
    /// Starts it, and waits until it watches.
    fn start(mut command: Command) -> Result<Self> {
        let mut watcher = Self(command.spawn()?);
        let stderr = watcher.0.stderr.take().ok_or("its messages are not to be had")?;
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line)?;
        if line.contains("Ctrl-C ends it") { Ok(watcher) } else { Err(line.into()) }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It may have ended with the balancer.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a stretch took.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    /// CPU time of a round trip, in nanoseconds.
    cpu: f64,
    /// By how many bytes the file of who watches has grown for each datagram.
    bytes: f64,
}

/// Measures all ways to watch, and prints a line for each.
pub(crate) fn run(options: &Options) -> Result<()> {
    let program = process::flowgate(options.flowgate.as_deref())?;
    let programs = Programs::find(Some(&program));
    let cores = Cores::available()?;
    pin(cores.load)?;
    let length = Duration::try_from_secs_f64(options.seconds.max(0.1))?;
    let workload = Workload {
        name: "watching",
        unit: "round trip",
        behaviour: Behaviour::Echo,
        clients: options.clients.max(8),
        pace: Pace::PerSecond(options.pace.max(1)),
        ..USUAL
    };
    let backends = Backends::new(workload.behaviour, workload.payload)?;
    let addresses = backends.addresses()?;
    let balancer =
        Balancer::start(Peer::Flowgate, &programs, &workload, &addresses, cores.balancer)?;
    let mut driver = Driver::new(&workload, &balancer.targets, backends, 1)?;
    if !driver.knock(START)? {
        return Err(format!("nothing comes through; it said:\n{}", balancer.output()).into());
    }
    // Until each client has had its turn.
    let turns = Duration::from_secs_f64(workload.clients as f64 / options.pace.max(1) as f64);
    driver.warm_up(2 * turns)?;

    let scratch = Scratch::new("watching")?;
    let mut unwatched = vec![stretch(&mut driver, &balancer, length, None)?];
    let mut watched = Vec::new();
    for round in 1..=options.rounds.max(1) {
        for watch in Watch::ALL {
            let file = scratch.path(&format!("{watch:?}"));
            let watcher = Watcher::start(watch.command(&program, &balancer.control, &file)?)?;
            let taken = stretch(&mut driver, &balancer, length, Some(&file))?;
            drop(watcher);
            watched.push(taken);
            fs::remove_file(&file)?;
            unwatched.push(stretch(&mut driver, &balancer, length, None)?);
        }
        eprintln!("round {round} of {}", options.rounds.max(1));
    }
    print(options, &unwatched, &watched);
    for (place, watch) in Watch::ALL.into_iter().enumerate() {
        let all = watched.iter().skip(place).step_by(Watch::ALL.len());
        let bytes: f64 = all.map(|taken| taken.bytes).sum();
        if (bytes > 0.0) != (watch != Watch::Nobody) {
            return Err(format!("{}: {bytes} bytes came", watch.name()).into());
        }
    }
    Ok(())
}

/// Sends for a while, and says what that took.
fn stretch(
    driver: &mut Driver<'_>,
    balancer: &Balancer,
    length: Duration,
    file: Option<&Path>,
) -> Result<Stretch> {
    let size = || file.map_or(Ok(0), |file| fs::metadata(file).map(|file| file.len()));
    driver.warm_up(WARM_UP)?;
    sleep(REST);
    let (before, bytes) = (balancer.usage()?, size()?);
    driver.measure(length)?;
    driver.drain()?;
    let after = balancer.usage()?;
    sleep(REST);
    let arrived = driver.tally().arrived;
    if arrived == 0 {
        return Err("nothing was delivered".into());
    }
    Ok(Stretch {
        cpu: (after.cpu - before.cpu).as_nanos() as f64 / arrived as f64,
        bytes: (size()? - bytes) as f64 / (2 * arrived) as f64,
    })
}

/// A line for each way to watch.
fn print(options: &Options, unwatched: &[Stretch], watched: &[Stretch]) {
    let Options { clients, pace, rounds, .. } = options;
    println!("{clients} clients, {pace} round trips a second, {rounds} rounds");
    println!("{:<18} {:>9} {:>9} {:>7} {:>6}", "", "CPU us", "cost %", "+-", "goal %");
    let cpu: Vec<f64> = unwatched.iter().map(|stretch| stretch.cpu).collect();
    println!("{:<18} {:>9.2}", "unwatched", median(&cpu) / 1e3);
    for (place, watch) in Watch::ALL.into_iter().enumerate() {
        let all = watched.iter().enumerate().skip(place).step_by(Watch::ALL.len());
        // Before and after each there is one without.
        let costs = all.clone().map(|(at, taken)| {
            let without = (unwatched[at].cpu + unwatched[at + 1].cpu) / 2.0;
            (taken.cpu / without - 1.0) * 100.0
        });
        let costs: Vec<f64> = costs.collect();
        let cpu: Vec<f64> = all.clone().map(|(_, taken)| taken.cpu).collect();
        let bytes: Vec<f64> = all.map(|(_, taken)| taken.bytes).collect();
        let recorded = match watch {
            Watch::Record => {
                format!("   {:.1} bytes of the file for each datagram", median(&bytes))
            }
            Watch::OneClient | Watch::Nobody => String::new(),
        };
        println!(
            "{:<18} {:>9.2} {:>9.2} {:>7.2} {:>6.1}{recorded}",
            watch.name(),
            median(&cpu) / 1e3,
            median(&costs),
            error_of_median(&costs),
            watch.goal(),
        );
    }
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

/// The standard error of the median: from the median deviation, which single disturbances do not move.
fn error_of_median(numbers: &[f64]) -> f64 {
    let middle = median(numbers);
    let deviations: Vec<f64> = numbers.iter().map(|number| (number - middle).abs()).collect();
    1.253 * 1.4826 * median(&deviations) / (numbers.len().max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_and_its_error() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(error_of_median(&[5.0; 9]), 0.0);
        let error = error_of_median(&[1.0, 2.0, 3.0, 4.0, 500.0]);
        assert!((0.5..1.0).contains(&error), "{error}");
    }
}
