//! The control plane of a process: one thread that owns the [`Server`] and everything around it,
//! and does one thing after another.
//!
//! Signals, requests of operators, results of probes and answers of resolvers all come to it as
//! [`Event`]s through one channel. Workers are told what follows from them, and never wait.

mod announcing;
mod answer;
mod conditions;
mod explain;
mod reload;
mod stop;
mod targets;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use flowgate_config::{Config, FlowLog, FoundBackends};
use flowgate_core::Instant;
use tracing::{error, info, warn};

use crate::admin::http::HttpServer;
use crate::admin::request::{Handler, Request, Response};
use crate::admin::socket::{ControlError, ControlSocket};
use crate::admin::socket_path::default_path;
use crate::control::announce::Outcome;
use crate::control::discovery::{self, Discovered, Discoverer};
use crate::control::flow_log::{FlowLogSink, FlowLogWriter, FlowLogger};
use crate::control::io::Io;
use crate::control::log::{self, LevelHandle};
use crate::control::probe::{HealthChange, ProbeSnapshot, Prober};
use crate::control::resolve::{Answer, Resolver};
use crate::control::server::{Server, ServerOptions, StartError, WorkerEnd};
use crate::control::signals::{self, AT_ONCE, Signal};
use crate::control::systemd::{self, InheritError, Notifier};
use crate::control::task;
use crate::control::usage::Usage;
use crate::handover::{Failure, Successor, Upgrade};
use crate::sys::clock::Clock;
use crate::sys::fd::OwnedFd;
use crate::sys::{files, process};
use announcing::Announcing;
use conditions::Conditions;
use stop::LameDuck;
use targets::{discovery_sources, holds, names, probe_targets};

/// How long the start waits for the names of backends to be resolved. After that it goes on with
/// those that are known, and the others follow.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a stop at once may take, of which a log that nobody reads has a part.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the start waits for the sources of backends, for which the same holds.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Something the control plane has to see to.
pub(crate) enum Event {
    Signal(Signal),
    WorkerEnded(WorkerEnd),
    Probed(HealthChange),
    /// Traffic, or time, may have put a backend out of service or back.
    BackendsChanged,
    Resolved(Answer),
    Found(Discovered),
    /// Others have been told by one announcer whether to send traffic here, or could not be.
    Announced(u64, Outcome),
    Asked(Request, Sender<Response>),
    /// The process that is to take over has been started.
    SuccessorStarted(u32),
    /// It could take over, or could not.
    SuccessorReady(Result<Successor, Failure>),
    /// A thread of the control plane has fallen over a bug.
    ThreadEnded(&'static str),
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
        "admin.http: cannot listen on {address}: {source}; choose another address, or stop the program that listens there"
    )]
    Http {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The log of flows cannot be written.
    #[error("log.flows: cannot open {}: {source}; {}", path.display(), files::advice(source))]
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
    /// Half a control plane would look alive.
    #[error("the thread {0:?} has ended, which is a bug; stopping the process")]
    Thread(&'static str),
}

/// All that runs.
pub struct Supervisor {
    /// What runs: the same file may be another program later.
    pub(crate) program: PathBuf,
    pub(crate) path: PathBuf,
    /// What is in force: what is [written](Self::written), with what was [found](Self::found).
    pub(crate) config: Config,
    written: Config,
    found: FoundBackends,
    /// Where the written configuration came from.
    pub(crate) text: String,
    pub(crate) clock: Clock,
    pub(crate) events: Receiver<Event>,
    pub(crate) sender: Sender<Event>,
    level: LevelHandle,
    pub(crate) server: Server,
    pub(crate) prober: Prober,
    resolver: Resolver,
    discoverer: Discoverer,
    flow_log: Option<FlowLogWriter>,
    pub(crate) control: Option<ControlSocket>,
    pub(crate) http: Option<HttpServer>,
    pub(crate) notifier: Notifier,
    /// When the service manager heard last that all is well.
    last_alive: Instant,
    pub(crate) reloads: Reloads,
    conditions: Conditions,
    /// Whether there will be a look at backends that have changed.
    change_is_known: Arc<AtomicBool>,
    usage: Usage,
    /// What time it was at the start of this process.
    started: Duration,
    is_draining: bool,
    /// While everything is served though it is told to stop.
    lame_duck: Option<LameDuck>,
    announcing: Announcing,
    pub(crate) upgrade: Option<Upgrade>,
}

/// How many reloads there were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reloads {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
}

impl Supervisor {
    /// Starts everything that a configuration asks for. It was read from the file at `path`, which
    /// reloads read again, as `text`. `level` changes how much is logged.
    ///
    /// # Errors
    ///
    /// When anything of it does not start; nothing is left running then.
    pub fn start(
        path: &Path,
        (config, text): (Config, String),
        level: LevelHandle,
    ) -> Result<Self, RunError> {
        let mut inherited = systemd::inherited()?;
        if let Some(supervisor) = Self::resume(path, (&config, &text), &level, &mut inherited)? {
            return Ok(supervisor);
        }
        let runtime = Runtime::start(config, Clock::start(), BTreeMap::new())?;
        let handler = handler(runtime.sender.clone());
        let control = open_control_socket(&runtime.config, &handler)?;
        let options = runtime.options(inherited.listeners);
        let on_end = sending(&runtime.sender, Event::WorkerEnded);
        let server = Server::start(&runtime.config, runtime.clock, options, on_end)?;
        let http = runtime.config.admin.http.map(|address| open_http(address, handler));
        let http = http.transpose()?;
        let supervisor = runtime.supervise(path, text, level, server, Vec::new())?;
        let supervisor = Self { control, http, ..supervisor };
        supervisor.update_probes();
        supervisor.notifier.ready();
        supervisor.keep_listeners();
        supervisor.notifier.forget_flows();
        Ok(supervisor)
    }

    /// By which calls of the system datagrams come and go.
    pub const fn io(&self) -> Io {
        self.server.io()
    }

    /// Sees to whatever happens until all workers have ended, or another process serves.
    ///
    /// # Errors
    ///
    /// When a worker ends that was not told to.
    pub fn run(mut self) -> Result<(), RunError> {
        self.announce_as_configured();
        let outcome = self.see_to_events();
        self.call_off_upgrade();
        self.end_announcing();
        outcome
    }

    fn see_to_events(&mut self) -> Result<(), RunError> {
        let mut running = self.server.workers();
        while running > 0 {
            let Some(event) = self.next_event() else { continue };
            match event {
                Event::Signal(Signal::Reload) => drop(self.reload()),
                Event::Signal(Signal::ReopenLogs) => {
                    self.flow_log.iter().for_each(FlowLogWriter::reopen);
                }
                Event::Signal(Signal::Upgrade) => self.begin_upgrade(None, None),
                Event::Signal(Signal::Stop) if !self.is_stopping() => self.begin_stop(true),
                Event::Signal(Signal::Stop | Signal::StopNow) => self.stop_now(),
                Event::Probed(change) => {
                    let is_up = change.outcome.map(|_| change.is_up);
                    self.server.probed(&change.key.cluster, change.key.backend, is_up);
                    self.look_at_backends();
                }
                Event::BackendsChanged => {
                    self.change_is_known.store(false, Ordering::Release);
                    self.look_at_backends();
                }
                Event::Resolved(answer) => self.take_answer(answer),
                Event::Found(found) => self.take_found(found),
                Event::Announced(number, outcome) => self.take_announced(number, outcome),
                Event::Asked(Request::Upgrade { binary }, reply) => {
                    self.begin_upgrade(binary, Some(reply));
                }
                Event::Asked(request, reply) => {
                    // The caller may have gone.
                    let _ = reply.send(self.answer(request));
                }
                Event::SuccessorStarted(pid) => {
                    if let Some(upgrade) = &mut self.upgrade {
                        upgrade.successor = Some(pid);
                    }
                }
                Event::SuccessorReady(Ok(successor)) => {
                    if let Err(error) = self.hand_over(successor) {
                        self.answer_upgrade(Err(error));
                    } else {
                        self.leave();
                        return Ok(());
                    }
                }
                Event::SuccessorReady(Err(error)) => self.answer_upgrade(Err(error.to_string())),
                Event::WorkerEnded(WorkerEnd::Done) => running -= 1,
                Event::WorkerEnded(end) => return Err(RunError::Worker(end)),
                Event::ThreadEnded(name) => return Err(RunError::Thread(name)),
            }
        }
        self.server.join();
        Ok(())
    }

    /// What happens next; `None` where there may be something to do that nobody has asked for.
    fn next_event(&mut self) -> Option<Event> {
        let alive = self.notifier.watchdog_interval().map(|interval| self.last_alive + interval);
        let lame_duck = self.lame_duck.map(|lame_duck| lame_duck.until);
        let Some(due) = [alive, lame_duck, self.next_look()].into_iter().flatten().min() else {
            // Those who hold senders live as long as this.
            return self.events.recv().ok();
        };
        let now = self.clock.now();
        if now < due {
            return self.events.recv_timeout(due - now).ok();
        }
        if alive.is_some_and(|alive| alive <= now) {
            // All is well when every worker says so: one that hangs hangs this too.
            self.server.acknowledged();
            self.notifier.alive();
            self.last_alive = now;
        }
        if lame_duck.is_some_and(|until| until <= now) {
            self.end_lame_duck();
        }
        if self.next_look().is_some_and(|look| look <= now) {
            self.look_whether_fit();
        }
        None
    }

    /// Lets flows end, and the process with the last of them.
    fn drain(&mut self) {
        let timeout = self.config.drain_timeout;
        info!(
            "draining for at most {}; {AT_ONCE} stops at once",
            humantime::format_duration(timeout)
        );
        self.is_draining = true;
        self.notifier.stopping(timeout);
        self.server.drain(timeout);
    }

    fn take_answer(&mut self, answer: Answer) {
        if self.server.resolved(&answer.name, answer.addresses) {
            self.update_probes();
        }
    }

    /// Goes over to what was found of a cluster, which replaces what was found before.
    fn take_found(&mut self, Discovered { cluster, members }: Discovered) {
        let is_asked_for = self.written.cluster(&cluster).is_some_and(|c| c.from.is_some());
        if !is_asked_for || self.found.get(&cluster) == Some(&members) {
            return;
        }
        let mut found = self.found.clone();
        found.insert(cluster.clone(), members);
        let config = self.written.with_found(&found);
        match self.server.apply(&config) {
            Ok(()) => {
                info!(?cluster, "the backends that were found are in force");
                (self.config, self.found) = (config, found);
                self.follow_names();
                self.update_probes();
            }
            // What is found of other clusters is not to wait for this one.
            Err(error) => warn!(
                ?cluster,
                "cannot go over to the backends that were found: {error}; those that were found \
                 before serve on until others are found"
            ),
        }
    }

    /// Has the names resolved that are in force. Those that are new are heard of when they are known.
    fn follow_names(&self) {
        self.resolver.set_holds(holds(&self.config));
        self.resolver.set_names(names(&self.config));
    }

    /// Has the backends probed that there are now.
    pub(crate) fn update_probes(&self) {
        let targets = probe_targets(&self.config, |host| self.server.addresses_of(host));
        self.prober.set_targets(targets);
    }
}

/// What there is before the server.
pub(crate) struct Runtime {
    /// What is written, with what was found.
    config: Config,
    written: Config,
    pub(crate) found: FoundBackends,
    clock: Clock,
    events: Receiver<Event>,
    pub(crate) sender: Sender<Event>,
    resolver: Resolver,
    discoverer: Discoverer,
    hosts: BTreeMap<String, Vec<IpAddr>>,
    flow_log: Option<FlowLogWriter>,
    change_is_known: Arc<AtomicBool>,
}

impl Runtime {
    /// Some hosts may be known already.
    pub(crate) fn start(
        written: Config,
        clock: Clock,
        known: BTreeMap<String, Vec<IpAddr>>,
    ) -> Result<Self, RunError> {
        let (sender, events) = mpsc::channel();
        // Before the first socket is bound: from then on a signal finds its handler.
        listen_for_signals(sender.clone())?;
        let on_end = sender.clone();
        task::on_end(move |name| {
            let _ = on_end.send(Event::ThreadEnded(name));
        });
        let resolver = Resolver::start(sending(&sender, Event::Resolved))?;
        let discoverer = Discoverer::start(discovery::directory(), sending(&sender, Event::Found))?;
        let found = discoverer.find_now(discovery_sources(&written), DISCOVERY_TIMEOUT);
        let config = written.with_found(&found);
        let mut hosts = known;
        resolver.set_holds(holds(&config));
        hosts.extend(resolver.resolve_now(names(&config), RESOLVE_TIMEOUT));
        let flow_log = start_flow_log(&config, clock)?;
        Ok(Self {
            config,
            written,
            found,
            clock,
            events,
            sender,
            resolver,
            discoverer,
            hosts,
            flow_log,
            change_is_known: Arc::default(),
        })
    }

    /// What the server begins with.
    pub(crate) fn options(&self, inherited: Vec<(SocketAddr, OwnedFd)>) -> ServerOptions {
        let flow_log =
            self.flow_log.as_ref().map_or_else(FlowLogger::default, FlowLogWriter::logger);
        let (sender, is_known) = (self.sender.clone(), Arc::clone(&self.change_is_known));
        let on_state_change = move || {
            // One look is enough for all that changed before it.
            if !is_known.swap(true, Ordering::AcqRel) {
                let _ = sender.send(Event::BackendsChanged);
            }
        };
        ServerOptions {
            hosts: self.hosts.clone(),
            inherited,
            flow_log,
            on_state_change: Some(Arc::new(on_state_change)),
        }
    }

    /// All that runs, but for the ways in for operators.
    pub(crate) fn supervise(
        self,
        path: &Path,
        text: String,
        level: LevelHandle,
        server: Server,
        known: Vec<ProbeSnapshot>,
    ) -> Result<Supervisor, RunError> {
        let on_change = sending(&self.sender, Event::Probed);
        let prober = Prober::start(self.clock, process::random_seed()?, known, on_change)?;
        Ok(Supervisor {
            program: std::env::current_exe()?,
            path: path.to_owned(),
            config: self.config,
            written: self.written,
            found: self.found,
            text,
            clock: self.clock,
            events: self.events,
            sender: self.sender,
            level,
            server,
            prober,
            resolver: self.resolver,
            discoverer: self.discoverer,
            flow_log: self.flow_log,
            control: None,
            http: None,
            notifier: Notifier::from_environment(),
            last_alive: self.clock.now(),
            reloads: Reloads::default(),
            conditions: Conditions::default(),
            change_is_known: self.change_is_known,
            usage: Usage::default(),
            started: self.clock.unix_time(),
            is_draining: false,
            lame_duck: None,
            announcing: Announcing::default(),
            upgrade: None,
        })
    }
}

/// Makes an event of whatever it is given.
pub(crate) fn sending<T>(
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
pub(crate) fn handler(sender: Sender<Event>) -> Handler {
    Arc::new(move |request| {
        let (reply, answer) = mpsc::channel();
        let is_asked = sender.send(Event::Asked(request, reply)).is_ok();
        let answer = is_asked.then(|| answer.recv().ok()).flatten();
        answer.unwrap_or_else(|| Response::refused("flowgate is stopping"))
    })
}

fn listen_for_signals(sender: Sender<Event>) -> io::Result<()> {
    let mut stops = 0;
    signals::listen(move |signal| {
        stops += u32::from(signal == Signal::Stop);
        if signal == Signal::StopNow || stops == 2 {
            end_in_any_case();
        }
        // Where a start has fallen back to another way, that one has a thread of its own.
        let _ = sender.send(Event::Signal(signal));
    })
}

/// Ends the process in a moment, if it has not ended by then, whatever hangs.
fn end_in_any_case() {
    let end = || {
        std::thread::sleep(STOP_TIMEOUT);
        error!("a thread hangs and has not stopped within {STOP_TIMEOUT:?}: ending the process");
        log::flush();
        process::exit_now(1);
    };
    if std::thread::Builder::new().name("end".into()).spawn(end).is_err() {
        end();
    }
}

/// Opens the way in for operators. Where the configuration names none, several processes may meet
/// at the usual place: those that come later do without.
pub(crate) fn open_control_socket(
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

pub(crate) fn open_http(address: SocketAddr, handler: Handler) -> Result<HttpServer, RunError> {
    HttpServer::start(address, handler).map_err(|source| RunError::Http { address, source })
}

fn start_flow_log(config: &Config, clock: Clock) -> Result<Option<FlowLogWriter>, RunError> {
    let destination = match &config.log.flows {
        FlowLog::Off => return Ok(None),
        FlowLog::Stderr => FlowLogSink::Stderr,
        FlowLog::File(path) => FlowLogSink::File(path.clone()),
    };
    match FlowLogWriter::start(&destination, clock) {
        Ok(log) => Ok(Some(log)),
        Err(source) => {
            let path = match destination {
                FlowLogSink::File(path) => path,
                FlowLogSink::Stderr => PathBuf::from("stderr"),
            };
            Err(RunError::FlowLog { path, source })
        }
    }
}
