//! The control plane of a process: one thread that owns the [`Server`] and everything around it,
//! and does one thing after another.
//!
//! Signals, requests of operators, results of probes and answers of resolvers all come to it as
//! [`Event`]s through one channel. Workers are told what follows from them, and never wait.

mod answer;
mod reload;
mod targets;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use flowgate_config::{Config, FlowLog as FlowLogConfig};
use flowgate_core::Instant;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::control::place::default_path;
use crate::control::request::{Handler, Request, Response};
use crate::control::socket::{ControlError, ControlSocket};
use crate::flow_log::{Destination, FlowLog, FlowLogger};
use crate::http::HttpServer;
use crate::log::LevelHandle;
use crate::notify::{self, InheritError, Notifier};
use crate::probe::{HealthChange, Prober};
use crate::resolve::{Answer, Resolver};
use crate::server::{Beginnings, Server, StartError, WorkerEnd};
use crate::sys::process;
use targets::{names, probe_targets};

/// How long the start waits for the names of backends to be resolved. After that it goes on with
/// those that are known, and the others follow.
const PATIENCE_WITH_NAMES: Duration = Duration::from_secs(5);

/// Something the control plane has to see to.
enum Event {
    Signal(i32),
    WorkerEnded(WorkerEnd),
    Probed(HealthChange),
    Resolved(Answer),
    Asked(Request, Sender<Response>),
}

/// Why a process did not start, or ended other than it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The workers or listeners did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is no way in for operators.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// What the service manager left for us is of no use.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The address of `admin.http` cannot be listened on.
    #[error(
        "admin.http: cannot listen on {address}: {source}; change it, or stop who listens there"
    )]
    Http {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The log of flows cannot be written.
    #[error("log.flows: cannot open {path:?}: {source}; change it, or make its directory writable")]
    FlowLog {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system lacks what a thread needs.
    #[error("cannot start: {0}; raise the limits on open files and threads")]
    System(#[from] io::Error),
    /// Half a balancer would serve some clients and not others.
    #[error("a worker {0}; stopping the process")]
    Worker(WorkerEnd),
}

/// All that runs.
pub struct Supervisor {
    path: PathBuf,
    config: Config,
    clock: Clock,
    events: Receiver<Event>,
    level: LevelHandle,
    server: Server,
    prober: Prober,
    resolver: Resolver,
    flow_log: Option<FlowLog>,
    // Held for as long as the process is to be asked.
    _control: Option<ControlSocket>,
    _http: Option<HttpServer>,
    notifier: Notifier,
    /// When the service manager heard last that all is well.
    last_alive: Instant,
    reloads: Reloads,
    is_draining: bool,
}

/// How many reloads there were.
#[derive(Clone, Copy, Debug, Default)]
struct Reloads {
    ok: u64,
    failed: u64,
}

impl Supervisor {
    /// Starts everything that a configuration asks for. It was read from the file at `path`, which
    /// reloads read again. `level` changes how much is logged.
    ///
    /// # Errors
    ///
    /// When anything of it does not start; nothing is left running then.
    pub fn start(path: &Path, config: Config, level: LevelHandle) -> Result<Self, RunError> {
        let clock = Clock::start();
        let (sender, events) = mpsc::channel();
        // Before the first socket is bound: from then on a signal finds its handler.
        listen_for_signals(sender.clone())?;
        let resolver = Resolver::start(sending(&sender, Event::Resolved))?;
        let hosts = resolver.resolve_now(names(&config), PATIENCE_WITH_NAMES);
        let flow_log = start_flow_log(&config, clock)?;
        let logger = flow_log.as_ref().map_or_else(FlowLogger::default, FlowLog::logger);
        let handler = handler(sender.clone());
        let control = open_control_socket(&config, &handler)?;
        let on_end = sending(&sender, Event::WorkerEnded);
        let inherited = notify::inherited_sockets()?;
        let beginnings = Beginnings { hosts, inherited, flow_log: logger };
        let server = Server::start(&config, clock, beginnings, on_end)?;
        let prober =
            Prober::start(clock, process::random_seed()?, sending(&sender, Event::Probed))?;
        let http = match config.admin.http {
            Some(address) => Some(
                HttpServer::start(address, handler)
                    .map_err(|source| RunError::Http { address, source })?,
            ),
            None => None,
        };
        let supervisor = Self {
            path: path.to_owned(),
            config,
            clock,
            events,
            level,
            server,
            prober,
            resolver,
            flow_log,
            _control: control,
            _http: http,
            notifier: Notifier::from_environment(),
            last_alive: clock.now(),
            reloads: Reloads::default(),
            is_draining: false,
        };
        supervisor.retarget();
        supervisor.notifier.ready();
        Ok(supervisor)
    }

    /// Sees to whatever happens until all workers have ended.
    ///
    /// # Errors
    ///
    /// When a worker ends that was not told to.
    pub fn run(mut self) -> Result<(), RunError> {
        let mut running = self.server.workers();
        while running > 0 {
            let Some(event) = self.next_event() else { continue };
            match event {
                Event::Signal(SIGHUP) => self.reload_by_signal(),
                Event::Signal(SIGUSR1) => self.flow_log.iter().for_each(FlowLog::reopen),
                Event::Signal(SIGTERM) if !self.is_draining => self.drain(),
                Event::Signal(_) => self.server.stop(),
                Event::Probed(change) => {
                    self.server.probed(&change.key.cluster, change.key.backend, change.is_up);
                }
                Event::Resolved(answer) => self.take_answer(answer),
                Event::Asked(request, reply) => {
                    // Whoever asked may have gone.
                    let _ = reply.send(self.answer(request));
                }
                Event::WorkerEnded(WorkerEnd::Done) => running -= 1,
                Event::WorkerEnded(end) => return Err(RunError::Worker(end)),
            }
        }
        self.server.join();
        Ok(())
    }

    /// What happens next; `None` where the service manager is to hear first that all is well.
    fn next_event(&mut self) -> Option<Event> {
        let Some(interval) = self.notifier.watchdog_interval() else {
            // Those who hold senders live as long as this.
            return self.events.recv().ok();
        };
        let due = self.last_alive + interval;
        let now = self.clock.now();
        if now < due {
            return self.events.recv_timeout(due - now).ok();
        }
        // All is well when every worker says so: one that hangs hangs this too.
        self.server.acknowledged();
        self.notifier.alive();
        self.last_alive = now;
        None
    }

    /// Lets flows end, and the process with the last of them.
    fn drain(&mut self) {
        let patience = self.config.drain_timeout;
        info!("draining for at most {patience:?}; a second SIGTERM stops at once");
        self.is_draining = true;
        self.notifier.stopping(patience);
        self.server.drain(patience);
    }

    fn take_answer(&mut self, answer: Answer) {
        if self.server.resolved(&answer.name, answer.addresses) {
            self.retarget();
        }
    }

    /// Has the backends probed that there are now.
    fn retarget(&self) {
        let targets = probe_targets(&self.config, |host| self.server.addresses_of(host));
        self.prober.set_targets(targets);
    }
}

/// Makes an event of whatever it is given.
fn sending<T>(
    sender: &Sender<Event>,
    event: impl Fn(T) -> Event + Clone + Send + 'static,
) -> impl Fn(T) + Clone + Send + 'static {
    let sender = sender.clone();
    move |happened| {
        // The control plane may be on its way out already.
        let _ = sender.send(event(happened));
    }
}

/// Answers requests by asking the control plane.
fn handler(sender: Sender<Event>) -> Handler {
    Arc::new(move |request| {
        let (reply, answer) = mpsc::channel();
        let is_asked = sender.send(Event::Asked(request, reply)).is_ok();
        let answer = is_asked.then(|| answer.recv().ok()).flatten();
        answer.unwrap_or_else(|| Response::refused("flowgate is stopping"))
    })
}

fn listen_for_signals(sender: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            if sender.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}

/// Opens the way in for operators. Where the configuration names none, several processes may meet
/// at the usual place: those that come later do without.
fn open_control_socket(
    config: &Config,
    handler: &Handler,
) -> Result<Option<ControlSocket>, ControlError> {
    if let Some(path) = &config.admin.socket {
        return ControlSocket::start(path, Arc::clone(handler)).map(Some);
    }
    let opened = ControlSocket::start(&default_path(), Arc::clone(handler));
    if let Err(error) = &opened {
        warn!("no control socket: {error}; set admin.socket to have one");
    }
    Ok(opened.ok())
}

fn start_flow_log(config: &Config, clock: Clock) -> Result<Option<FlowLog>, RunError> {
    let destination = match &config.log.flows {
        FlowLogConfig::Off => return Ok(None),
        FlowLogConfig::Stderr => Destination::Stderr,
        FlowLogConfig::File(path) => Destination::File(path.clone()),
    };
    match FlowLog::start(&destination, clock) {
        Ok(log) => Ok(Some(log)),
        Err(source) => {
            let path = match destination {
                Destination::File(path) => path,
                Destination::Stderr => PathBuf::from("stderr"),
            };
            Err(RunError::FlowLog { path, source })
        }
    }
}
