//! Very many flows by few sockets: what a datagram costs among them, how much memory a flow takes, and how long an
//! upgrade with all of them pauses.
//!
//! Clients are told apart by their addresses, of which loopback has sixteen million: a few sockets send from all of
//! them. The balancer's cluster has `upstream = "shared"`, so that flows need no descriptors of their own.

use std::fs;
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

use crate::Result;
use crate::backends::{Backends, Behaviour};
use crate::meter::Usage;
use crate::payload::Payload;
use crate::process::{self, Cores, Guarded, Scratch, pin};
use crate::train::{Inbox, bind};

/// Where clients have their addresses, and up.
const FIRST_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 0);

/// From how many sockets clients send.
const SOCKETS: usize = 8;

/// How many questions are under way.
const WINDOW: usize = 512;

/// The bytes of a datagram.
const SIZE: usize = 64;

/// Who asks next is that many flows away: a prime, so that each has its turn.
const STRIDE: usize = 1_000_003;

/// After so long nothing more comes of what is under way.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// Questions a second while there is an upgrade.
const PACE: u64 = 5_000;

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The options of `flowgate-bench many-flows`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many flows; a measurement for each number.
    #[arg(long, value_delimiter = ',', default_value = "1000,100000,1000000")]
    flows: Vec<usize>,
    /// How many backends they are spread over. A shared socket has at most one flow for each of them.
    #[arg(long, default_value_t = 50)]
    backends: usize,
    /// How long each measurement takes.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Upgrade the balancer with all flows open, too.
    #[arg(long)]
    upgrade: bool,
    /// The Flowgate to measure (default: beside this executable).
    #[arg(long, value_name = "PATH")]
    flowgate: Option<PathBuf>,
}

/// Measures every number of flows and prints a line for each.
pub(crate) fn run(options: &Options) -> Result<()> {
    let flowgate = process::flowgate(options.flowgate.as_deref())?;
    let cores = Cores::available()?;
    pin(cores.load)?;
    let length = Duration::try_from_secs_f64(options.seconds.max(0.1))?;
    println!("{:>9} {:>9} {:>10} {:>9} {:>8}", "flows", "open", "CPU us", "memory MB", "lost");
    for &flows in &options.flows {
        let flows = flows.max(1);
        let mut crowd = Crowd::new(flows, options.backends)?;
        let balancer = crowd.start(&flowgate, cores.balancer)?;
        let usage = || Usage::of(balancer.process.id());
        crowd.knock().map_err(|error| format!("{error}:\n{}", balancer.process.output()))?;
        crowd.run(|crowd, _| crowd.asked < flows as u64)?;
        let (open, resident) = (balancer.flows_active()?, usage()?.resident);
        let (before, start) = (usage()?.cpu, Instant::now());
        crowd.begin();
        crowd.run(|_, now| now < start + length)?;
        println!(
            "{flows:>9} {open:>9} {:>10.2} {:>9.1} {:>8}",
            (usage()?.cpu - before).as_secs_f64() * 1e6 / crowd.answered.max(1) as f64,
            resident as f64 / 1e6,
            crowd.asked - crowd.answered,
        );
        if options.upgrade {
            crowd.begin();
            let took = crowd.upgrade(&balancer)?;
            println!(
                "{:>9} upgrade in {:.2} s at {PACE} questions a second: longest answer {:.1} ms, lost {} of {}, {} flows open after it",
                "",
                took.as_secs_f64(),
                crowd.longest.as_secs_f64() * 1e3,
                crowd.asked - crowd.answered,
                crowd.asked,
                balancer.flows_active()?,
            );
        }
    }
    Ok(())
}

/// A Flowgate that runs; it ends with this value, whichever process has taken it over.
struct Balancer {
    process: Guarded,
    program: PathBuf,
    socket: String,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.ask(&["stop", "--now", "--wait"]).output();
    }
}

impl Balancer {
    fn ask(&self, question: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(question).args(["--socket", &self.socket]);
        command
    }

    fn flows_active(&self) -> Result<u64> {
        let status = self.ask(&["status", "--json"]).output()?.stdout;
        let status: serde_json::Value = serde_json::from_slice(&status)?;
        let flows = &status["listeners"][0]["flows_active"];
        flows.as_u64().ok_or_else(|| "the status tells no flows".into())
    }
}

/// The clients and the backends.
struct Crowd {
    flows: usize,
    sockets: Vec<UdpSocket>,
    backends: Backends,
    inbox: Inbox,
    listener: SocketAddrV4,
    epoch: Instant,
    next: usize,
    asked: u64,
    answered: u64,
    longest: Duration,
}

impl Crowd {
    fn new(flows: usize, backends: usize) -> Result<Self> {
        let sockets = (0..SOCKETS).map(|_| bind(Ipv4Addr::UNSPECIFIED, 0));
        let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let SocketAddr::V4(listener) = probe.local_addr()? else { unreachable!("bound to IPv4") };
        Ok(Self {
            flows,
            sockets: sockets.collect::<std::io::Result<_>>()?,
            backends: Backends::many(backends, Behaviour::Echo, Payload::Plain)?,
            inbox: Inbox::new(SIZE),
            listener,
            epoch: Instant::now(),
            next: 0,
            asked: 0,
            answered: 0,
            longest: Duration::ZERO,
        })
    }

    fn start(&self, flowgate: &Path, core: usize) -> Result<Balancer> {
        let scratch = Scratch::new(&format!("many-{}", self.flows))?;
        let (file, socket) = (scratch.path("flowgate.toml"), scratch.path("control.sock"));
        let backends: Vec<_> =
            self.backends.addresses()?.iter().map(SocketAddr::to_string).collect();
        fs::write(
            &file,
            format!(
                "[admin]\nsocket = {socket:?}\n[[listener]]\naddress = \"{}\"\ncluster = \"bench\"\n\
                 max_flows = {}\n[cluster.bench]\nbalance = \"round-robin\"\nidle_timeout = \"1h\"\n\
                 upstream = \"shared\"\nbackends = {backends:?}\n",
                self.listener,
                self.flows + WINDOW,
            ),
        )?;
        let command =
            [flowgate.display().to_string(), "run".to_owned(), file.display().to_string()];
        let socket = socket.display().to_string();
        let program = flowgate.to_owned();
        Ok(Balancer { process: Guarded::start(core, &command, scratch)?, program, socket })
    }

    /// Waits until the balancer forwards.
    fn knock(&mut self) -> Result<()> {
        let end = Instant::now() + START_TIMEOUT;
        while self.answered == 0 {
            if Instant::now() > end {
                return Err("nothing came through; the balancer said".into());
            }
            self.next = 0;
            self.ask()?;
            let again = Instant::now() + Duration::from_millis(20);
            while self.answered == 0 && Instant::now() < again {
                self.take()?;
            }
        }
        self.begin();
        Ok(())
    }

    /// Counts from here.
    fn begin(&mut self) {
        (self.asked, self.answered, self.longest) = (0, 0, Duration::ZERO);
    }

    /// Asks, and takes answers, for as long as `goes_on` says; then waits for the last ones.
    fn run(&mut self, goes_on: impl Fn(&Self, Instant) -> bool) -> Result<()> {
        let (mut given_up, mut last) = (0, Instant::now());
        loop {
            let (now, before) = (Instant::now(), self.answered);
            let asks = goes_on(self, now);
            let under_way = (self.asked - self.answered).saturating_sub(given_up);
            if asks {
                for _ in under_way..WINDOW as u64 {
                    if !goes_on(self, now) || !self.ask()? {
                        break;
                    }
                }
            }
            self.take()?;
            if self.answered > before {
                last = now;
            } else if now > last + LOST_AFTER {
                (given_up, last) = (self.asked - self.answered, now);
            }
            if !asks && self.asked - self.answered <= given_up {
                return Ok(());
            }
        }
    }

    /// Asks at a steady pace until an upgrade is done, and a little longer; says how long the command took.
    fn upgrade(&mut self, balancer: &Balancer) -> Result<Duration> {
        let start = Instant::now();
        let (mut upgrade, mut took) = (None, None);
        loop {
            let now = Instant::now();
            let due = now.duration_since(start).as_micros() as u64 * PACE / 1_000_000;
            while self.asked < due && self.ask()? {}
            self.take()?;
            let child = match &mut upgrade {
                None if now < start + Duration::from_millis(500) => continue,
                None => upgrade.insert(balancer.ask(&["upgrade"]).spawn()?),
                Some(child) => child,
            };
            match took {
                Some(took) if now > start + took + Duration::from_secs(1) => break,
                Some(_) => {}
                None => {
                    if let Some(status) = child.try_wait()? {
                        if !status.success() {
                            return Err(
                                format!("upgrade failed:\n{}", balancer.process.output()).into()
                            );
                        }
                        took = Some(now.duration_since(start));
                    }
                }
            }
        }
        self.run(|_, _| false)?;
        Ok(took.unwrap_or_default() - Duration::from_millis(500))
    }

    /// The next client asks; false: the socket takes nothing now.
    fn ask(&mut self) -> Result<bool> {
        let (socket, host) = (self.next % SOCKETS, self.next / SOCKETS);
        let client = u32::from(FIRST_CLIENT) + host as u32;
        let source = in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr { s_addr: client.to_be() },
            ipi_addr: in_addr { s_addr: 0 },
        };
        let mut datagram = [0; SIZE];
        let stamp = self.epoch.elapsed().as_nanos() as u64;
        Payload::Plain.write(&mut datagram, stamp, self.asked);
        match sendmsg(
            self.sockets[socket].as_raw_fd(),
            &[IoSlice::new(&datagram)],
            &[ControlMessage::Ipv4PacketInfo(&source)],
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrIn::from(self.listener)),
        ) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.asked += 1;
        self.next = (self.next + STRIDE) % self.flows;
        Ok(true)
    }

    /// Has the backends answer, and takes the answers that are there.
    fn take(&mut self) -> Result<()> {
        self.backends.serve(|_| {})?;
        let now = self.epoch.elapsed().as_nanos() as u64;
        let Self { inbox, answered, longest, .. } = self;
        for socket in &self.sockets {
            inbox.receive(socket, |trains| {
                for train in trains {
                    for datagram in train.bytes.chunks(SIZE) {
                        let stamp = Payload::Plain.stamp(datagram).unwrap_or(now);
                        *longest = (*longest).max(Duration::from_nanos(now.saturating_sub(stamp)));
                    }
                    *answered += train.datagrams as u64;
                }
            })?;
        }
        Ok(())
    }
}
