//! Who is measured: Flowgate, what a user would pick instead, and two yardsticks.

mod dnsdist;
mod envoy;
mod flowgate;
mod nginx;
mod program;
mod traefik;

use std::env;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::meter::Usage;
use crate::payload::Payload;
use crate::process::{self, Guarded, Scratch};
use crate::scraper::Scraper;
use crate::watcher::Watcher;
use crate::workload::{Mode, Workload};
use program::Program;

/// A way from the clients to the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peer {
    /// The `stream` module of nginx, with one worker.
    Nginx,
    /// The UDP proxy of Envoy, with one worker.
    Envoy,
    /// Traefik, with one thread of Go.
    Traefik,
    /// dnsdist, which knows DNS only.
    Dnsdist,
    /// Flowgate, with one worker.
    Flowgate,
    /// Flowgate by the calls that every system has (`FLOWGATE_IO=portable`).
    Portable,
    /// Flowgate, while someone reads its metrics ten times a second.
    Scraped,
    /// Flowgate, while `flowgate trace` shows one of the clients.
    Traced,
    /// Flowgate, while `flowgate trace` waits for a client that there is not.
    Untraced,
    /// Flowgate, while `flowgate record` writes down everything.
    Recorded,
    /// The bare relay of this crate: the limit of a balancer that is made of sockets.
    Relay,
    /// The bare relay of unconnected sockets, each of which has a flow for every backend.
    Pool,
    /// The same that tells answers apart by the ID of DNS, too.
    Ids,
    /// No balancer at all: the limit of the clients and backends themselves.
    Direct,
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Nginx => "nginx",
            Peer::Flowgate => "Flowgate",
            Peer::Scraped => "scraped",
            Peer::Traced => "one client traced",
            Peer::Untraced => "nobody traced",
            Peer::Recorded => "recorded",
            Peer::Portable => "portable",
            Peer::Envoy => "Envoy",
            Peer::Traefik => "Traefik",
            Peer::Dnsdist => "dnsdist",
            Peer::Relay => "bare relay",
            Peer::Pool => "bare pool",
            Peer::Ids => "bare ids",
            Peer::Direct => "direct",
        }
    }
}

impl Peer {
    /// Whether it is Flowgate, whatever else goes on.
    fn is_flowgate(self) -> bool {
        match self {
            Peer::Flowgate | Peer::Portable => true,
            Peer::Scraped | Peer::Traced | Peer::Untraced | Peer::Recorded => true,
            Peer::Nginx | Peer::Envoy | Peer::Traefik | Peer::Dnsdist => false,
            Peer::Relay | Peer::Pool | Peer::Ids | Peer::Direct => false,
        }
    }

    /// What is asked of Flowgate all the time that it is measured.
    fn watch(self) -> Option<&'static [&'static str]> {
        match self {
            // One of the clients, see `Clients::new`.
            Peer::Traced => Some(&["trace", "--client", "127.16.0.7"]),
            Peer::Untraced => Some(&["trace", "--client", "192.0.2.1"]),
            Peer::Recorded => Some(&["record", "/dev/null"]),
            _ => None,
        }
    }

    /// Whether it can be compared with others in a workload. Those that end no flow after an answer
    /// would keep the clients' flows where others open new ones; and some know DNS only.
    pub(crate) fn takes(self, workload: &Workload) -> bool {
        let is_dns = workload.payload == Payload::Dns;
        match self {
            Peer::Dnsdist | Peer::Ids => is_dns,
            Peer::Envoy | Peer::Traefik => workload.responses == 0,
            Peer::Pool => workload.mode == Mode::Session,
            Peer::Nginx | Peer::Relay | Peer::Direct => true,
            Peer::Flowgate | Peer::Portable => true,
            Peer::Scraped | Peer::Traced | Peer::Untraced | Peer::Recorded => true,
        }
    }
}

/// The programs found on this machine.
pub(crate) struct Programs {
    flowgate: std::result::Result<PathBuf, String>,
    nginx: std::result::Result<nginx::Program, String>,
    others: [(Peer, std::result::Result<Program, String>); 3],
}

impl Programs {
    /// Looks for the other peers, and for Flowgate at `flowgate` or beside this executable.
    pub(crate) fn find(flowgate: Option<&Path>) -> Self {
        Programs {
            flowgate: process::flowgate(flowgate),
            nginx: nginx::Program::find(),
            others: [
                (Peer::Envoy, envoy::find()),
                (Peer::Traefik, traefik::find()),
                (Peer::Dnsdist, dnsdist::find()),
            ],
        }
    }

    /// Why `peer` cannot be measured here; none if it can.
    pub(crate) fn missing(&self, peer: Peer) -> Option<String> {
        match peer {
            Peer::Nginx => self.nginx.as_ref().err().cloned(),
            peer if peer.is_flowgate() => self.flowgate.as_ref().err().cloned(),
            Peer::Flowgate
            | Peer::Portable
            | Peer::Scraped
            | Peer::Traced
            | Peer::Untraced
            | Peer::Recorded
            | Peer::Relay
            | Peer::Pool
            | Peer::Ids
            | Peer::Direct => None,
            Peer::Envoy | Peer::Traefik | Peer::Dnsdist => self.other(peer).err(),
        }
    }

    fn other(&self, peer: Peer) -> std::result::Result<&Program, String> {
        let other = self.others.iter().find(|(other, _)| *other == peer);
        let (_, program) = other.ok_or_else(|| format!("{peer:?} is no program"))?;
        program.as_ref().map_err(String::clone)
    }

    /// What goes with a report, so that figures can be compared later.
    pub(crate) fn versions(&self) -> Vec<(Peer, String)> {
        let nginx = self.nginx.as_ref().ok().map(|nginx| (Peer::Nginx, nginx.version().to_owned()));
        let others = self
            .others
            .iter()
            .filter_map(|(peer, program)| Some((*peer, program.as_ref().ok()?.version.clone())));
        nginx.into_iter().chain(others).collect()
    }
}

/// A way to the backends that is ready, or about to be.
pub(crate) struct Balancer {
    /// Where the clients send to.
    pub(crate) targets: Vec<SocketAddr>,
    /// The path of its control socket, if it has one.
    pub(crate) control: String,
    process: Option<Guarded>,
    _scraper: Option<Scraper>,
    _watcher: Option<Watcher>,
}

impl Balancer {
    /// Starts `peer` on `core`, in front of `backends`.
    pub(crate) fn start(
        peer: Peer,
        programs: &Programs,
        workload: &Workload,
        backends: &[SocketAddr],
        core: usize,
    ) -> Result<Self> {
        let scratch = Scratch::new(&format!("{peer:?}"))?;
        let address = free_address()?;
        let http = match peer {
            Peer::Scraped => Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?),
            _ => None,
        };
        let command = match peer {
            Peer::Direct => {
                let targets = backends.to_vec();
                return Ok(Balancer {
                    targets,
                    control: String::new(),
                    process: None,
                    _scraper: None,
                    _watcher: None,
                });
            }
            Peer::Relay => relay_command("connected", workload.responses, address, backends)?,
            Peer::Pool => relay_command("pool", workload.responses, address, backends)?,
            Peer::Ids => relay_command("ids", workload.responses, address, backends)?,
            Peer::Envoy | Peer::Traefik | Peer::Dnsdist => {
                programs.other(peer)?.command(address, backends, &scratch)?
            }
            Peer::Nginx => programs
                .nginx
                .as_ref()
                .map_err(String::clone)?
                .command(address, workload, backends, &scratch)?,
            Peer::Flowgate
            | Peer::Portable
            | Peer::Scraped
            | Peer::Traced
            | Peer::Untraced
            | Peer::Recorded => {
                let admin = flowgate::Admin { http, socket: scratch.path("control.sock") };
                let program = programs.flowgate.as_ref().map_err(String::as_str)?;
                let command =
                    flowgate::command(program, address, workload, backends, &admin, &scratch)?;
                let portable = ["env", "FLOWGATE_IO=portable"].map(str::to_owned);
                let portable = portable.into_iter().filter(|_| peer == Peer::Portable);
                portable.chain(command).collect()
            }
        };
        let socket = scratch.path("control.sock").display().to_string();
        let process = Guarded::start(core, &command, scratch)?;
        let scraper = http.map(Scraper::start);
        let watcher = match peer.watch() {
            None => None,
            Some(arguments) => {
                let arguments = arguments.iter().map(ToString::to_string);
                let arguments = arguments.chain(["--socket".to_owned(), socket.clone()]).collect();
                Some(Watcher::start(programs.flowgate.clone()?, arguments))
            }
        };
        Ok(Balancer {
            targets: vec![address],
            control: socket,
            process: Some(process),
            _scraper: scraper,
            _watcher: watcher,
        })
    }

    /// What the balancer has used until now; nothing if there is none.
    pub(crate) fn usage(&self) -> Result<Usage> {
        match &self.process {
            Some(process) => Usage::of(process.id()).map_err(|error| {
                format!("the balancer has ended ({error}); it said:\n{}", process.output()).into()
            }),
            None => Ok(Usage::default()),
        }
    }

    /// What the balancer has printed.
    pub(crate) fn output(&self) -> String {
        self.process.as_ref().map(Guarded::output).unwrap_or_default()
    }
}

/// A loopback address that nobody listens on, for a process that cannot tell us which one it got.
fn free_address() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The command that runs a bare relay of this design, whose flows end after so many answers.
pub(crate) fn relay_command(
    design: &str,
    responses: u32,
    address: SocketAddr,
    backends: &[SocketAddr],
) -> Result<Vec<String>> {
    let executable = env::current_exe()?.display().to_string();
    let responses = responses.to_string();
    let options = ["relay", "--design", design, "--responses", &responses].map(str::to_owned);
    let addresses = [&address].into_iter().chain(backends).map(SocketAddr::to_string);
    Ok([executable].into_iter().chain(options).chain(addresses).collect())
}
