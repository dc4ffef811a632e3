//! Who is measured: Flowgate, what a user would pick instead, and two yardsticks.

mod flowgate;
mod nginx;

use std::env;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::meter::Usage;
use crate::process::{Guarded, Scratch};
use crate::scraper::Scraper;
use crate::workload::Workload;

/// A way from the clients to the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peer {
    /// The `stream` module of nginx, with one worker.
    Nginx,
    /// Flowgate, with one worker.
    Flowgate,
    /// Flowgate, while someone reads its metrics ten times a second.
    Scraped,
    /// The bare relay of this crate: the limit of a balancer that is made of sockets.
    Relay,
    /// No balancer at all: the limit of the clients and backends themselves.
    Direct,
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Nginx => "nginx",
            Peer::Flowgate => "Flowgate",
            Peer::Scraped => "scraped",
            Peer::Relay => "bare relay",
            Peer::Direct => "direct",
        }
    }
}

/// The programs found on this machine.
pub(crate) struct Programs {
    flowgate: PathBuf,
    nginx: std::result::Result<nginx::Program, String>,
}

impl Programs {
    /// Looks for nginx, and for Flowgate at `flowgate` or beside this executable.
    pub(crate) fn find(flowgate: Option<PathBuf>) -> Result<Self> {
        let beside = env::current_exe()?.with_file_name("flowgate");
        Ok(Programs { flowgate: flowgate.unwrap_or(beside), nginx: nginx::Program::find() })
    }

    /// Why `peer` cannot be measured here; none if it can.
    pub(crate) fn missing(&self, peer: Peer) -> Option<String> {
        match peer {
            Peer::Nginx => self.nginx.as_ref().err().cloned(),
            Peer::Flowgate | Peer::Scraped if !self.flowgate.is_file() => Some(format!(
                "{} does not exist; build it with `cargo build --release -p flowgate`, or name it with --flowgate",
                self.flowgate.display()
            )),
            Peer::Flowgate | Peer::Scraped | Peer::Relay | Peer::Direct => None,
        }
    }

    /// What goes with a report, so that figures can be compared later.
    pub(crate) fn versions(&self) -> Vec<(Peer, String)> {
        let nginx = self.nginx.as_ref().ok().map(|nginx| (Peer::Nginx, nginx.version().to_owned()));
        nginx.into_iter().collect()
    }
}

/// A way to the backends that is ready, or about to be.
pub(crate) struct Balancer {
    /// Where the clients send to.
    pub(crate) targets: Vec<SocketAddr>,
    process: Option<Guarded>,
    _scraper: Option<Scraper>,
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
                return Ok(Balancer { targets: backends.to_vec(), process: None, _scraper: None });
            }
            Peer::Relay => relay_command(address, backends)?,
            Peer::Nginx => programs
                .nginx
                .as_ref()
                .map_err(String::clone)?
                .command(address, workload, backends, &scratch)?,
            Peer::Flowgate | Peer::Scraped => {
                let admin = flowgate::Admin { http, socket: scratch.path("control.sock") };
                flowgate::command(
                    &programs.flowgate,
                    address,
                    workload,
                    backends,
                    &admin,
                    &scratch,
                )?
            }
        };
        let process = Guarded::start(core, &command, scratch)?;
        let scraper = http.map(Scraper::start);
        Ok(Balancer { targets: vec![address], process: Some(process), _scraper: scraper })
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

fn relay_command(address: SocketAddr, backends: &[SocketAddr]) -> Result<Vec<String>> {
    let executable = env::current_exe()?.display().to_string();
    let mut command = vec![executable, "relay".to_owned(), address.to_string()];
    command.extend(backends.iter().map(SocketAddr::to_string));
    Ok(command)
}
