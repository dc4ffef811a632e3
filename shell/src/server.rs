//! A running balancer: listeners bound, workers started, and the handle to ask and stop them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use flowgate_config::{Config, Listener, Workers};
use flowgate_core::UdpManager;
use flowgate_core::config::ManagerConfig;
use mio::{Poll, Waker};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::listener::{self, BindError, Group};
use crate::report::{ListenerReport, ShardReport};
use crate::sys::process;
use crate::token::Token;
use crate::worker::{Command, Worker};

/// Descriptors that are not upstream sockets: the standard streams, logs, a poll and a waker for
/// each worker, and some to spare.
const RESERVED_DESCRIPTORS: u64 = 64;

/// The most descriptors whose place in the kernel's table is taken up at start: 8 MiB of it.
const MOST_RESERVED: u64 = 1 << 20;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
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
            Self::Done => f.write_str("ended as it was told to"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Panicked(message) => write!(f, "panicked, which is a bug: {message}"),
        }
    }
}

/// A running balancer. Dropping it stops it.
pub struct Server {
    clock: Clock,
    listeners: Vec<BoundListener>,
    workers: Vec<WorkerHandle>,
}

struct BoundListener {
    name: String,
    cluster: String,
    address: SocketAddr,
    flows_max: u64,
}

struct WorkerHandle {
    commands: Sender<Command>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds all listeners and starts all workers. `on_end` is called from each worker's thread
    /// when it ends, for whatever reason.
    ///
    /// # Errors
    ///
    /// When a listener cannot be bound or a worker cannot start. Nothing is left running then.
    pub fn start(
        config: &Config,
        on_end: impl Fn(WorkerEnd) + Clone + Send + 'static,
    ) -> Result<Self, StartError> {
        let clock = Clock::start();
        let count = worker_count(config.workers);
        let descriptors = process::raise_descriptor_limit()?;
        // If it fails, the table grows when it must.
        let _ = process::reserve_descriptors(descriptors.min(MOST_RESERVED));
        let mut server = Self { clock, listeners: Vec::new(), workers: Vec::new() };
        let mut workers = Vec::new();
        for _ in 0..count {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), Token::Wake.into())?;
            let (commands, inbox) = mpsc::channel();
            workers.push(Worker::new(poll, clock, inbox)?);
            server.workers.push(WorkerHandle { commands, waker, thread: None });
        }
        for listener in &config.listeners {
            let shards = count * config.listeners.len();
            let affordable = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / shards as u64;
            server.add_listener(listener, &mut workers, affordable)?;
        }
        for ((number, worker), handle) in workers.into_iter().enumerate().zip(&mut server.workers) {
            handle.thread = Some(spawn(number, worker, on_end.clone())?);
        }
        Ok(server)
    }

    /// The addresses of the listeners as they are bound, in the order of the configuration.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|listener| listener.address)
    }

    /// How many workers were started.
    pub const fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Lets flows end for `patience`, then closes what is left. New flows are refused from now on.
    pub fn drain(&self, patience: Duration) {
        let deadline = self.clock.now() + patience;
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

    /// How things stand, asked of all workers. Those that have ended are left out.
    pub fn report(&self) -> Vec<ListenerReport> {
        let (sender, reports) = mpsc::channel();
        self.command_all(|| Command::Report(sender.clone()));
        drop(sender);
        let mut sums = vec![ShardReport::default(); self.listeners.len()];
        for worker in reports {
            sums.iter_mut().zip(&worker).for_each(|(sum, shard)| sum.add(shard));
        }
        let described = self.listeners.iter().zip(sums).map(|(listener, figures)| ListenerReport {
            name: listener.name.clone(),
            address: listener.address,
            cluster: listener.cluster.clone(),
            flows_max: listener.flows_max,
            figures,
        });
        described.collect()
    }

    /// Binds a listener and gives each worker its shard.
    fn add_listener(
        &mut self,
        listener: &Listener,
        workers: &mut [Worker],
        affordable: u64,
    ) -> Result<(), StartError> {
        let Group { address, sockets } = {
            let group = listener::bind(listener, workers.len(), self.addresses())?;
            listener::size_buffers(listener, &group);
            group
        };
        let asked = listener.max_flows.map(|flows| u64::from(flows.get()));
        let affordable = affordable * workers.len() as u64;
        let flows_max = asked.unwrap_or(affordable);
        if flows_max > affordable {
            warn!(
                listener = ?listener.name,
                "max_flows is {flows_max}, but the limit on open files (RLIMIT_NOFILE) leaves \
                 room for {affordable}; raise it, for systemd with LimitNOFILE="
            );
        }
        let shards = workers.len() as u64;
        for (number, (worker, socket)) in workers.iter_mut().zip(sockets).enumerate() {
            let share = |total: u64| total / shards + u64::from((number as u64) < total % shards);
            let max_flows = u32::try_from(share(flows_max)).unwrap_or(u32::MAX);
            let mut config = listener.manager_config(address, max_flows);
            share_backend_limits(&mut config, share);
            let manager = UdpManager::new(config, process::random_seed()?, self.clock.now());
            worker.add_shard(socket, manager)?;
        }
        let cluster = &listener.cluster.name;
        info!(listener = ?listener.name, %address, ?cluster, max_flows = flows_max, "listening");
        self.listeners.push(BoundListener {
            name: listener.name.clone(),
            cluster: cluster.clone(),
            address,
            flows_max,
        });
        Ok(())
    }

    fn command_all(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker that has ended takes no commands, and needs none.
            if worker.commands.send(command()).is_ok() {
                let _ = worker.waker.wake();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

/// How many threads to run.
fn worker_count(workers: Workers) -> usize {
    match workers {
        Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
        Workers::Count(count) => usize::from(count.get()),
    }
}

/// Gives a shard its share of each backend's `max_flows`: at least one, since 0 means no limit.
fn share_backend_limits(config: &mut ManagerConfig, share: impl Fn(u64) -> u64) {
    for backend in &mut config.cluster.backends {
        if backend.max_flows > 0 {
            backend.max_flows = share(u64::from(backend.max_flows)).max(1) as u32;
        }
    }
}

fn spawn(
    number: usize,
    mut worker: Worker,
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
