//! The command line.

mod ask;
mod check;
mod columns;
mod completions;
mod demo;
mod diff;
mod explain;
mod flows;
mod human;
mod record;
mod replay;
mod run;
mod service;
mod status;
#[cfg_attr(not(target_os = "linux"), path = "cli/take_over/none.rs")]
mod take_over;
mod top;
mod trace;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::control::{log, signals};

/// A UDP load balancer: flows over many servers, replies back to their clients.
#[derive(Debug, Parser)]
#[command(name = "flowgate", version, arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Validate a configuration, as `flowgate check` does
    #[arg(short = 't', value_name = "CONFIG")]
    test: Option<Option<PathBuf>>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The configuration that is meant where none is named.
const DEFAULT_CONFIG: &str = if cfg!(windows) {
    r"C:\ProgramData\flowgate\flowgate.toml"
} else {
    "/etc/flowgate/flowgate.toml"
};

/// Which configuration is meant.
#[derive(Args, Clone, Debug)]
struct ConfigArgument {
    /// The configuration: a file, or a directory whose `*.toml` files are read in order
    #[arg(value_name = "CONFIG", env = "FLOWGATE_CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground; SIGTERM drains then stops, a second SIGTERM or SIGINT stops at once
    Run {
        #[command(flatten)]
        config: ConfigArgument,
        /// Take over from the process that starts this one for an upgrade, over standard input
        #[arg(long, hide = true)]
        take_over: bool,
    },
    /// Validate a configuration: exit 0 and a summary, or exit 1 and every error
    Check(check::CheckArguments),
    /// Run echo backends, a balancer and clients in one process; needs no configuration
    Demo {
        /// How long to run
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3_600))]
        seconds: u32,
        /// Run until Ctrl-C, to have time to open the status page
        #[arg(long, conflicts_with = "seconds")]
        forever: bool,
    },
    /// Show which listener, cluster and backend a client would get, and why
    #[command(allow_missing_positional = true)]
    Explain {
        #[command(flatten)]
        config: ConfigArgument,
        /// The client: an address, or an address and a port
        #[arg(required_unless_present = "backend_setup")]
        client: Option<String>,
        /// Print what backends of clusters with return = "direct" have to set up, for nft(8)
        #[arg(long, conflicts_with_all = ["json", "payload"])]
        backend_setup: bool,
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
        /// Ask the running Flowgate instead, which knows what is down, full or set by an operator
        #[arg(long, conflicts_with = "backend_setup")]
        live: bool,
        #[command(flatten)]
        socket: ask::SocketOption,
        /// The payload of its first datagram, in hexadecimal digits
        #[arg(long, value_name = "HEX", value_parser = explain::Payload::parse)]
        payload: Option<explain::Payload>,
    },
    /// Show the state of a running Flowgate: listeners, backends, datagrams, drops
    Status(status::StatusArguments),
    /// Exit 0 if a running Flowgate accepts new flows and every cluster has a backend that is up
    Ready(ask::ReadyArguments),
    /// List the flows of a running Flowgate
    Flows(flows::FlowsArguments),
    /// Reload the configuration of a running Flowgate
    Reload(ask::ReloadArguments),
    /// Stop sending new flows to a backend; existing flows go on until they end
    Drain(ask::DrainArguments),
    /// Send new flows to a drained backend again
    Undrain(ask::UndrainArguments),
    /// Give a backend of a running Flowgate another weight, until the next reload
    Backend(ask::BackendArguments),
    /// Replace a running Flowgate by a new process of its program, keeping all flows
    Upgrade(ask::UpgradeArguments),
    /// Write the state of a running Flowgate to standard output, for a bug report
    Snapshot(ask::SnapshotArguments),
    /// Stop a running Flowgate: drain its flows first, or stop at once (--now)
    Stop(ask::StopArguments),
    /// Install, start and stop Flowgate as a service of Windows
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Watch a running Flowgate live in the terminal
    Top(top::TopArguments),
    /// Show what another configuration changes, and what it would have done with recorded traffic
    Diff(diff::DiffArguments),
    /// Record what a running Flowgate receives, for replay
    Record(record::RecordArguments),
    /// Play a recording or a capture through the core, with the same or another configuration
    Replay(replay::ReplayArguments),
    /// Show live what a running Flowgate decides about each datagram
    Trace(trace::TraceArguments),
    /// Print the version
    Version,
    /// Print the completion script of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// List the backends of a running Flowgate, for shells
    #[command(name = "__backends", hide = true)]
    Backends(ask::SocketOption),
}

/// Runs the command line of this process and returns its exit code: 0 done, 1 refused or failed,
/// 2 wrong usage.
pub fn main() -> ExitCode {
    // From its first moment on, a reload that is asked for is never the end of what is to serve.
    signals::hold();
    let Arguments { test, command } = arguments();
    if !matches!(command, Some(Command::Run { .. })) {
        signals::release();
    }
    let command = match (command, test) {
        (Some(command), _) => command,
        (None, Some(config)) => Command::Check(check::CheckArguments::of(config)),
        // Clap shows the help before that.
        (None, None) => Command::Version,
    };
    let outcome = match command {
        Command::Run { config, take_over: false } => run::run(&config.config),
        Command::Run { config, take_over: true } => take_over::run(&config.config),
        Command::Check(arguments) => check::run(&arguments),
        Command::Demo { seconds, forever } => {
            let length = Duration::from_secs(seconds.into());
            demo::run((!forever).then_some(length))
        }
        // What stands alone is the configuration: there is no client.
        Command::Explain { config, client, backend_setup: true, .. } => {
            explain::backend_setup(client.map_or(config.config, PathBuf::from).as_path())
        }
        Command::Explain { config, client, json, payload, live, socket, .. } => {
            let client = parse_client(&client.unwrap_or_default()).unwrap_or_else(|reason| {
                Arguments::command().error(ErrorKind::ValueValidation, reason).exit()
            });
            if live {
                explain::run_live(&socket, client, payload.as_ref(), json)
            } else {
                explain::run(&config.config, client, payload.as_ref(), json)
            }
        }
        Command::Status(arguments) => status::run(&arguments),
        Command::Ready(arguments) => ask::ready(&arguments),
        Command::Flows(arguments) => flows::run(&arguments),
        Command::Reload(arguments) => ask::reload(&arguments),
        Command::Drain(arguments) => ask::drain(&arguments),
        Command::Undrain(arguments) => ask::undrain(&arguments),
        Command::Backend(arguments) => ask::backend(&arguments),
        Command::Upgrade(arguments) => ask::upgrade(&arguments),
        Command::Snapshot(arguments) => ask::snapshot(&arguments),
        Command::Stop(arguments) => ask::stop(&arguments),
        Command::Service(command) => service::run(command),
        Command::Top(arguments) => top::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Record(arguments) => record::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Version => {
            println!("flowgate {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Command::Completions { shell } => completions::run(shell),
        Command::Backends(socket) => completions::backends(&socket),
    };
    // What was logged comes before what is printed at the end.
    log::flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message)) => {
            let mark = if log::goes_to_the_journal() { log::JOURNAL_ERROR } else { "" };
            message.trim_end().lines().for_each(|line| eprintln!("{mark}{line}"));
            ExitCode::FAILURE
        }
    }
}

/// What went wrong, in words for the operator.
#[derive(Debug)]
struct Failure(String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What is asked for. Exits where that cannot be.
fn arguments() -> Arguments {
    let mut command = Arguments::command();
    let matches = command.get_matches_mut();
    if let Some(explain) = matches.subcommand_matches("explain")
        && explain.get_flag("live")
        && explain.value_source("config") == Some(ValueSource::CommandLine)
    {
        let reason = "with --live the configuration is that of the running Flowgate: name none";
        command.error(ErrorKind::ArgumentConflict, reason).exit();
    }
    Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// An address with a port, or without: then any port may be meant, and 0 stands for it.
fn parse_client(text: &str) -> Result<SocketAddr, String> {
    let without_port = || text.parse().map(|ip| SocketAddr::new(ip, 0));
    text.parse().or_else(|_| without_port()).map_err(|_| {
        "expected an address such as 192.0.2.7, 192.0.2.7:5353 or [2001:db8::7]:5353".to_owned()
    })
}
