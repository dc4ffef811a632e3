//! `flowgate-bench`: Flowgate side by side with its peers, on one machine, over loopback.
//!
//! ```text
//! main ── compare ──┬── peers ── process     starts what is measured, on a core of its own
//!                   ├── drive ──┬── clients  send and time
//!                   │           └── backends count or echo
//!                   ├── meter                reads CPU time and memory of what is measured
//!                   └── report ── table, chart     tells what came of it
//! ```
//!
//! See `docs/benchmarks.md` for what the figures mean.

#![forbid(unsafe_code)]

mod backends;
mod chart;
mod clients;
mod compare;
mod drive;
mod fleet;
mod kernel_path;
mod many_flows;
mod meter;
mod payload;
mod peers;
mod process;
mod relay;
mod report;
mod scraper;
mod table;
mod train;
mod watcher;
mod watching;
mod workload;

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What any part of the benchmark may fail with: a message for the person at the terminal.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Flowgate side by side with its peers, on one machine, over loopback.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Measure each workload with each peer, in interleaved rounds.
    Compare(compare::Options),
    /// Measure the kernel path against sockets and the bare relay, between network namespaces (root).
    KernelPath(kernel_path::Options),
    /// Measure Flowgate with very many flows on shared sockets: CPU of a datagram, memory, an upgrade.
    ManyFlows(many_flows::Options),
    /// Measure what a fleet asks: thousands of backends of which one changes, a thousand ports in one range.
    Fleet(fleet::Options),
    /// Measure what `flowgate trace` and `flowgate record` cost among many flows.
    Watching(watching::Options),
    /// Run a bare relay: no limits, no timers, nothing but moving bytes.
    Relay {
        /// What its sockets are like.
        #[arg(long, value_enum, default_value_t)]
        design: relay::Design,
        /// After how many answers a flow of a pool ends; 0: never.
        #[arg(long, default_value_t = 0)]
        responses: u32,
        /// Where clients send to.
        listen: SocketAddrV4,
        /// Where their datagrams go.
        #[arg(required = true)]
        backends: Vec<SocketAddrV4>,
    },
    /// Redraw the chart of a report that `compare --json` has written.
    Chart {
        /// The report.
        json: PathBuf,
        /// The chart.
        svg: PathBuf,
    },
    /// Do nothing, all the time; `compare --crowd` does this to the core of the balancer.
    #[command(hide = true)]
    Spin,
    /// Become another command on one core; this is how peers are started.
    #[command(hide = true)]
    Launch {
        #[arg(long)]
        core: usize,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Action::Compare(options) => compare::run(&options),
        Action::Relay { design, responses, listen, backends } => {
            relay::run(design, responses, listen, &backends).map_err(Into::into)
        }
        Action::KernelPath(options) => kernel_path::run(&options),
        Action::ManyFlows(options) => many_flows::run(&options),
        Action::Fleet(options) => fleet::run(&options),
        Action::Watching(options) => watching::run(&options),
        Action::Chart { json, svg } => redraw(&json, &svg),
        Action::Spin => process::spin(),
        Action::Launch { core, command } => process::launch(core, &command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flowgate-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn redraw(json: &Path, svg: &Path) -> Result<()> {
    let report = serde_json::from_str(&fs::read_to_string(json)?)?;
    Ok(fs::write(svg, chart::svg(&report))?)
}
