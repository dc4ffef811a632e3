//! A running balancer: listeners bound, workers started, and the handle to change, ask and stop
//! them.

mod apply;
mod ask;
mod backend_index;
mod fast_path;
#[cfg(target_os = "linux")]
mod hand_over;
mod mirrors;
pub(crate) mod past;
mod service_states;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use flowgate_config::{Cluster, Config, Listener, Workers};
use flowgate_core::PreparedConfig;
use flowgate_core::config::{BackendConfig, OwnAddress};
use flowgate_core::counters::Counters;
use mio::{Poll, Waker};

use crate::control::accept::AcceptError;
use crate::control::flow_log::FlowLogger;
use crate::control::io::{self as control_io, Io, IoError};
use crate::control::probe::ProbeSnapshot;
use crate::control::reach::ReachError;
use crate::control::service_state::ServiceState;
use crate::control::source::SourceError;
use crate::datapath::fast_path::SharedFastPath;
use crate::datapath::kernel::{Native, Portable, Socket};
use crate::datapath::listener::{BindError, SocketOptions};
use crate::datapath::role::Role;
use crate::datapath::token::Token;
use crate::datapath::worker::kernel::WorkerKernel;
use crate::datapath::worker::{Command, StateListener, Worker};
use crate::sys::clock::Clock;
use crate::sys::fd::OwnedFd;
use crate::sys::process;
pub use fast_path::FastPathError;
use mirrors::Mirror;
use past::PastBackends;
use service_states::ServiceStates;

pub use apply::BoundListeners;
pub use backend_index::assign as assign_indices;
#[cfg(target_os = "linux")]
pub use hand_over::{Released, ServerRestoreError};

/// The most descriptors whose place in the kernel's table is taken up at start: 8 MiB of it.
const MAX_RESERVED: u64 = 1 << 20;

/// Why a server did not start, or did not go over to another configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Datagrams cannot come and go as it is asked for.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A listener could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A cluster's source cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A backend cannot be one.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// There is no kernel path, and one is asked for.
    #[error(transparent)]
    FastPath(#[from] FastPathError),
    /// Clients cannot have sockets of their own.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// A route is new for a listener whose sockets are another process's yet.
    #[error("listener {0:?}: a route cannot be added by an upgrade; reload first, then upgrade")]
    Route(String),
    /// There is no way to receive datagrams.
    #[error("this system has no recvmmsg: {0}; allow it in the sandbox (seccomp), or use Linux")]
    Receive(io::Error),
    /// The system lacks what a worker needs.
    #[error("cannot start a worker: {0}; raise the limits on open files and threads")]
    Worker(#[from] io::Error),
}

/// How a worker's thread ended.
#[derive(Debug)]
pub enum WorkerEnd {
    /// As it was told to.
    Done,
    /// The poll failed.
    Failed(io::Error),
    /// A bug: the message of the panic.
    Panicked(String),
}

/// Completes the sentence "a worker ...".
impl fmt::Display for WorkerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("ended as requested"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Panicked(message) => write!(f, "panicked, which is a bug: {message}"),
        }
    }
}

/// A running balancer. Dropping it stops it.
pub struct Server {
    clock: Clock,
    io: Io,
    /// How many files the process may open.
    descriptors: u64,
    workers: Vec<WorkerHandle>,
    /// In the order of the configuration.
    listeners: Vec<BoundListener>,
    /// In the order of the configuration, with those that no listener uses.
    clusters: Vec<Arc<Cluster>>,
    record_flows: bool,
    /// The addresses of each host that clusters name, as they were last resolved.
    hosts: BTreeMap<String, Vec<IpAddr>>,
    service_states: ServiceStates,
    /// Sockets that were open before the process began and no listener has asked for yet.
    inherited: Vec<(SocketAddr, OwnedFd)>,
    /// What listeners counted that are no more.
    past: Counters,
    /// The same of each backend of each cluster that there still is.
    past_backends: PastBackends,
    /// The kernel path, or why there is none; `None` while nobody has asked for it.
    fast_path: Option<Result<Arc<SharedFastPath>, String>>,
}

/// What a server begins with, beside its configuration.
#[derive(Default)]
pub struct ServerOptions {
    /// The addresses of the hosts that clusters name, as far as they are known already.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Sockets that are bound already, by address: listeners of these addresses use them.
    pub inherited: Vec<(SocketAddr, OwnedFd)>,
    /// Where to log the flows that end.
    pub flow_log: FlowLogger,
    /// Called from workers' threads when a backend has gone over to another state.
    pub on_state_change: Option<StateListener>,
}

/// A listener, and what the workers know of it.
struct BoundListener {
    /// The numbers of its shards, each of which no other of this server has. The workers share them
    /// out among themselves by index, see [`worker_of`].
    shards: Vec<u32>,
    settings: Listener,
    address: SocketAddr,
    flows_max: u64,
    /// The port of each shard, where they have several.
    ports: Vec<u16>,
    /// The backends that its managers know, each in its place, with the ports that the configuration
    /// gives them.
    backend_list: Vec<BackendConfig>,
    /// What they knew before that, until they are told.
    former_backends: Vec<BackendConfig>,
    /// A socket for each shard, until the workers have them, and a seed for its manager.
    sockets: Vec<(Socket, u64)>,
    /// What the workers call it.
    name: Arc<str>,
    options: SocketOptions,
    /// What the manager of each shard is told to do.
    configurations: Vec<PreparedConfig>,
    /// What has been published to the managers of each backend, by index.
    published: Vec<ServiceState>,
    /// What mirrors its cluster.
    mirror: Option<Mirror>,
}

struct WorkerHandle {
    commands: Sender<Command>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts all workers and binds all listeners. `on_end` is called from each worker's thread
    /// when it ends, for whatever reason.
    ///
    /// # Errors
    ///
    /// When a listener cannot be bound or a worker cannot start. Nothing is left running then.
    pub fn start(
        config: &Config,
        clock: Clock,
        options: ServerOptions,
        on_end: impl Fn(WorkerEnd) + Clone + Send + 'static,
    ) -> Result<Self, StartError> {
        let mut server = Self::without_listeners(config.workers, clock, options, on_end)?;
        server.apply(config)?;
        Ok(server)
    }

    /// The same with nothing to serve yet.
    ///
    /// # Errors
    ///
    /// When a worker cannot start, or `FLOWGATE_IO` says nothing that is known.
    pub fn without_listeners(
        workers: Workers,
        clock: Clock,
        options: ServerOptions,
        on_end: impl Fn(WorkerEnd) + Clone + Send + 'static,
    ) -> Result<Self, StartError> {
        let io = Io::of_this_process()?;
        let descriptors = process::raise_descriptor_limit()?;
        // If it fails, the table grows when it must.
        let _ = process::reserve_descriptors(descriptors.min(MAX_RESERVED));
        let mut server = Self {
            clock,
            io,
            descriptors,
            workers: Vec::new(),
            listeners: Vec::new(),
            clusters: Vec::new(),
            record_flows: false,
            hosts: options.hosts,
            inherited: options.inherited,
            service_states: ServiceStates::default(),
            past: Counters::default(),
            past_backends: PastBackends::default(),
            fast_path: None,
        };
        for number in 0..worker_count(workers) {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), Token::Wake.into())?;
            let (commands, inbox) = mpsc::channel();
            let (log, listener) = (options.flow_log.clone(), options.on_state_change.clone());
            let thread = match io {
                Io::Linux => {
                    let worker = Worker::<Native>::new(poll, clock, inbox, log)?;
                    spawn(number, worker.telling_state_changes_to(listener), on_end.clone())?
                }
                Io::Portable => {
                    let worker = Worker::<Portable>::new(poll, clock, inbox, log)?;
                    spawn(number, worker.telling_state_changes_to(listener), on_end.clone())?
                }
            };
            server.workers.push(WorkerHandle { commands, waker, thread: Some(thread) });
        }
        Ok(server)
    }

    /// The addresses of the listeners as they are bound, in the order of the configuration.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|listener| listener.address)
    }

    /// The same with all ports, for managers: what comes from one of them is in a loop.
    fn own_addresses(&self) -> Vec<OwnAddress> {
        let of = |listener: &BoundListener| {
            let one = OwnAddress::from(listener.address);
            let last_port = listener.settings.last_port;
            OwnAddress { last_port: last_port.unwrap_or(one.last_port), ..one }
        };
        // A route has no address of its own.
        let bound = self.listeners.iter().filter(|l| l.settings.routed_from.is_none());
        bound.map(of).collect()
    }

    /// By which calls of the system datagrams come and go.
    pub const fn io(&self) -> Io {
        self.io
    }

    /// How many shards there are, each with a listener socket.
    pub fn shards(&self) -> usize {
        self.listeners.iter().map(|listener| listener.shards.len()).sum()
    }

    /// How many workers were started.
    pub const fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Takes in the addresses that a host has now, and says whether anything changes for a cluster.
    pub fn resolved(&mut self, host: &str, addresses: Vec<IpAddr>) -> bool {
        let is_new = self.hosts.get(host) != Some(&addresses);
        if is_new {
            self.hosts.insert(host.to_owned(), addresses);
            self.reconfigure();
        }
        is_new
    }

    /// Takes in what the probes find of a backend of a cluster.
    /// `None`: it is no longer probed.
    pub fn probed(&mut self, cluster: &str, backend: SocketAddr, is_up: Option<bool>) {
        self.service_states.change(cluster, backend, |service_state| service_state.probe = is_up);
        self.publish_events();
    }

    /// Takes in what the probes of another process have found, of all backends at once.
    pub fn all_probed(&mut self, snapshots: &[ProbeSnapshot]) {
        for ProbeSnapshot { key, is_up, .. } in snapshots {
            // Where nothing was said, up is only what is taken for granted.
            let change = |service_state: &mut ServiceState| {
                if !is_up || service_state.probe.is_some() {
                    service_state.probe = Some(*is_up);
                }
            };
            self.service_states.change(&key.cluster, key.backend, change);
        }
        self.publish_events();
    }

    /// Gives a backend of a cluster no new flows. Those that it has may go on until `timeout` is
    /// over, if any is given.
    pub fn drain_backend(&mut self, cluster: &str, backend: SocketAddr, timeout: Option<Duration>) {
        let deadline = timeout.map(|timeout| self.clock.now() + timeout);
        self.service_states
            .change(cluster, backend, |service_state| service_state.drain = Some(deadline));
        self.publish_events();
    }

    /// Gives a backend of a cluster new flows again, whatever datagrams have said against it.
    pub fn undrain_backend(&mut self, cluster: &str, backend: SocketAddr) {
        self.service_states.change(cluster, backend, |service_state| {
            service_state.drain = None;
            service_state.undrained = service_state.undrained.wrapping_add(1);
        });
        self.publish_events();
    }

    /// Gives a backend of a cluster another weight than the configuration says, until that is read
    /// again.
    pub fn set_weight(&mut self, cluster: &str, backend: SocketAddr, weight: u32) {
        self.service_states.change(cluster, backend, |said| said.weight = Some(weight));
        self.reconfigure();
    }

    /// Forgets the weights that operators have given to backends. The next configuration that is
    /// gone over to has none of them.
    pub fn forget_weights(&mut self) {
        self.service_states.forget_weights();
    }

    /// The backends of a cluster with the addresses that names have, and the weights that operators
    /// have given.
    pub fn backends_of(&self, cluster: &Cluster) -> Vec<BackendConfig> {
        let mut backends = cluster.backends(|host| self.addresses_of(host));
        let said_of = self.service_states.of(&cluster.name);
        for backend in &mut backends {
            backend.weight = said_of(backend.address).weight.unwrap_or(backend.weight);
        }
        backends
    }

    /// What the probes and the operator have said of a backend of a cluster.
    pub fn service_state(&self, cluster: &str, backend: SocketAddr) -> ServiceState {
        self.service_states.get(cluster, backend)
    }

    /// The clusters in the order of the configuration.
    pub fn clusters(&self) -> &[Arc<Cluster>] {
        &self.clusters
    }

    /// The addresses that a host has, as it was last resolved.
    pub fn addresses_of(&self, host: &str) -> Vec<IpAddr> {
        self.hosts.get(host).cloned().unwrap_or_default()
    }

    /// Lets flows end for `timeout`, then closes what is left. New flows are refused from now on.
    pub fn drain(&self, timeout: Duration) {
        let deadline = self.clock.now() + timeout;
        self.command_all(|| Command::Drain { deadline });
    }

    /// Ends all workers now.
    pub fn stop(&self) {
        self.command_all(|| Command::Stop);
    }

    /// Waits until all workers have ended.
    pub fn join(&mut self) {
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A panic was caught and told to `on_end`.
                let _ = thread.join();
            }
        }
    }

    /// Tells all managers what has been said of backends since they were told last.
    fn publish_events(&mut self) {
        let Self { listeners, workers, service_states, .. } = self;
        for listener in listeners {
            if listener.configurations.is_empty() {
                continue;
            }
            let cluster = &listener.settings.cluster.name;
            let event =
                service_states.event(cluster, &listener.backend_list, &mut listener.published);
            let of_mirror = listener.mirror.as_mut().map(|mirror| mirror.event(service_states));
            let of_mirror = of_mirror.into_iter().flatten().map(|event| (Role::Mirror, event));
            let all = event.into_iter().map(|event| (Role::Primary, event)).chain(of_mirror);
            for (role, (backend, event)) in all {
                let command = |_, shard| Command::BackendChanged { shard, role, backend, event };
                command_shards(workers, &listener.shards, command);
            }
        }
    }

    fn command_all(&self, command: impl Fn() -> Command) {
        self.workers.iter().for_each(|worker| worker.command(command()));
    }

    /// Waits until all workers have done what they were told.
    pub fn acknowledged(&self) {
        let (sender, done) = mpsc::channel();
        self.command_all(|| Command::Acknowledge(sender.clone()));
        drop(sender);
        // One that has ended drops its sender.
        done.iter().for_each(drop);
    }
}

impl WorkerHandle {
    fn command(&self, command: Command) {
        // A worker that has ended takes no commands, and needs none.
        if self.commands.send(command).is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        let _ = self.waker.wake();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

/// Commands the workers that have the shards of a listener, with the place and the number of each
/// shard.
fn command_shards(
    workers: &[WorkerHandle],
    shards: &[u32],
    mut command: impl FnMut(usize, u32) -> Command,
) {
    for (index, &shard) in shards.iter().enumerate() {
        // A worker that has ended takes no commands, and needs none.
        let _ = workers[worker_of(index, workers.len())].commands.send(command(index, shard));
    }
    // Once for all: those of a range of ports have thousands.
    workers.iter().take(shards.len()).for_each(WorkerHandle::wake);
}

/// Which of a number of workers has the shard in a place of its listener's. There are as many shards as
/// workers, unless both came from a process that had more or fewer workers.
const fn worker_of(index: usize, workers: usize) -> usize {
    index % workers
}

/// How many threads to run.
fn worker_count(workers: Workers) -> usize {
    match workers {
        Workers::Auto => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            cores.min(control_io::max_workers())
        }
        Workers::Count(count) => usize::from(count.get()),
    }
}

fn spawn(
    number: usize,
    mut worker: Worker<impl WorkerKernel>,
    on_end: impl Fn(WorkerEnd) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| worker.run()));
        // The sockets close, and commands are refused, before anyone is told.
        drop(worker);
        on_end(match outcome {
            Ok(Ok(())) => WorkerEnd::Done,
            Ok(Err(error)) => WorkerEnd::Failed(error),
            Err(panic) => WorkerEnd::Panicked(panic_message(panic.as_ref())),
        });
    })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
