//! A server as plain data, released by one process and taken up by another.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use flowgate_config::{Config, Listener};
use flowgate_core::PreparedConfig;
use flowgate_core::counters::Counters;
use flowgate_core::snapshot::RestoreError;
use flowgate_fastpath::InheritedMaps;
use tracing::warn;

use super::mirrors::Mirror;
use super::past::PastBackends;
use super::service_states::ServiceStates;
use super::{BoundListener, Server, StartError, WorkerHandle, worker_of};
use crate::datapath::kernel::{Linux, Socket};
use crate::datapath::listener::{self, SocketOptions};
use crate::datapath::shard::Shard;
use crate::datapath::worker::{Adopted, Command, HandOver};
use crate::handover::prepared::{PreparedListener, PreparedListeners};
use crate::handover::snapshot::{
    ListenerSnapshot, RestoredShard, ServerSnapshot, ShardCopy, ShardSnapshot,
};

/// What nobody serves at the moment: the shards of a server, with their sockets.
pub struct Released {
    /// By the listener's index and their own among its shards.
    shards: Vec<Vec<Shard<Linux>>>,
    /// What a process needs to go on with the flows that the kernel forwards, where it still does.
    fast_path: Vec<OwnedFd>,
}

impl Released {
    /// How many sockets there are.
    pub fn sockets(&self) -> usize {
        self.descriptors().count() - self.fast_path.len()
    }

    /// All sockets, in the order in which [`Server::restore`] expects them: the listeners first,
    /// since with them alone one can serve already, and the maps of the kernel path last.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let all = || self.shards.iter().flatten();
        let listeners = all().map(|shard| shard.listener().as_fd());
        let of_flows = all().flat_map(|shard| shard.sockets().descriptors());
        listeners.chain(of_flows).chain(self.fast_path.iter().map(AsFd::as_fd))
    }
}

/// Why a server cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum ServerRestoreError {
    /// The snapshot contradicts itself.
    #[error(transparent)]
    Snapshot(#[from] RestoreError),
    /// It is not one of this configuration.
    #[error("it has {snapshot} listeners, and its configuration {config}")]
    OtherListeners {
        /// How many it has.
        snapshot: usize,
        /// How many there should be.
        config: usize,
    },
    /// This process could not go on with its flows.
    #[error("FLOWGATE_IO is \"portable\", which cannot go on with another process's flows")]
    Io,
    /// A listener had to be bound again, and could not be.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Server {
    /// What it is at the moment. It goes on serving.
    pub fn snapshot(&self) -> ServerSnapshot {
        self.snapshot_of(
            self.ask(|reply| Command::HandOver(HandOver::Copy { is_followed: false, reply })),
        )
    }

    /// The same, and what [changes](Self::changes) afterwards is noted.
    pub fn followed_snapshot(&self) -> ServerSnapshot {
        self.snapshot_of(
            self.ask(|reply| Command::HandOver(HandOver::Copy { is_followed: true, reply })),
        )
    }

    fn snapshot_of(&self, mut copies: HashMap<u32, ShardCopy>) -> ServerSnapshot {
        self.snapshot_with(|listener| {
            listener.take_its(&mut copies).into_iter().map(ShardCopy::snapshot).collect()
        })
    }

    /// What it is at the moment, but of flows only what has changed, as far as that is noted.
    pub fn changes(&self) -> ServerSnapshot {
        let mut changes = self.ask(|reply| Command::HandOver(HandOver::Changes(reply)));
        self.snapshot_with(|listener| listener.take_its(&mut changes))
    }

    /// Notes no longer what changes.
    pub fn forget_changes(&self) {
        self.command_all(|| Command::HandOver(HandOver::ForgetChanges));
    }

    /// Lets go of all shards, and says what it was: nobody serves them, and what comes for them waits
    /// in their sockets' buffers, until they are served again. Nothing else may be done with this
    /// server meanwhile. Where another process goes on at once, the kernel goes on with the flows that
    /// it forwards.
    pub fn release(&self, to_another: bool) -> (ServerSnapshot, Released) {
        let fast_path = self.fast_path.as_ref().filter(|_| to_another);
        let fast_path = fast_path.and_then(|loaded| loaded.as_ref().ok()?.descriptors().ok());
        let release: fn(_) -> _ =
            if fast_path.is_some() { HandOver::Lend } else { HandOver::Release };
        let mut all = self.ask(|reply| Command::HandOver(release(reply)));
        let of_listener = |listener: &BoundListener| listener.take_its(&mut all);
        let mut shards: Vec<_> = self.listeners.iter().map(of_listener).collect();
        // Another process knows how they were; the service manager's next one does not.
        let of_shard = if to_another { ShardSnapshot::of_changes } else { ShardSnapshot::of };
        let mut snapshots =
            shards.iter_mut().map(|shards| shards.iter_mut().map(of_shard).collect());
        let snapshot = self.snapshot_with(|_| snapshots.next().unwrap_or_default());
        drop(snapshots);
        let has_fast_path = fast_path.is_some();
        let fast_path = fast_path.map(Vec::from).unwrap_or_default();
        (ServerSnapshot { has_fast_path, ..snapshot }, Released { shards, fast_path })
    }

    /// Serves again what it released.
    pub fn take_back(&self, released: Released) {
        let all = released.shards.into_iter().map(|shards| {
            let adopted = |mut shard: Shard<Linux>| {
                shard.forget_changes();
                Adopted { shard, missing: Vec::new(), inherited: None }
            };
            shards.into_iter().map(adopted).collect()
        });
        self.serve(all.collect());
    }

    fn snapshot_with(
        &self,
        mut shards: impl FnMut(&BoundListener) -> Vec<ShardSnapshot>,
    ) -> ServerSnapshot {
        let snapshot = |listener: &BoundListener| ListenerSnapshot {
            address: listener.address,
            published: listener.published.clone(),
            mirror_published: listener.mirror.as_ref().map(Mirror::published),
            shards: shards(listener),
        };
        ServerSnapshot {
            hosts: self.hosts.clone(),
            service_states: self.service_states.snapshot(),
            past: self.past.snapshot(),
            past_backends: self.past_backends.snapshot(),
            listeners: self.listeners.iter().map(snapshot).collect(),
            has_fast_path: false,
        }
    }

    /// Becomes what a snapshot of another server says, which worked by `config`, and of which the
    /// listeners' shards were prepared, with its sockets in
    /// the order of [`Released::descriptors`]. Where one is missing, another is opened in its stead.
    /// Nothing is served yet: what is to be given to [`serve`](Self::serve) is returned. This server
    /// must not have any listeners.
    ///
    /// # Errors
    ///
    /// When the snapshot contradicts itself or the configuration, or a listener that is missing cannot
    /// be bound.
    pub fn restore(
        &mut self,
        snapshot: ServerSnapshot,
        config: &Config,
        prepared: PreparedListeners,
        descriptors: impl IntoIterator<Item = Option<OwnedFd>>,
    ) -> Result<Vec<Vec<Adopted>>, ServerRestoreError> {
        if !self.io.can_hand_over() {
            return Err(ServerRestoreError::Io);
        }
        let counts = (snapshot.listeners.len(), config.listeners.len());
        if counts.0 != counts.1 {
            return Err(ServerRestoreError::OtherListeners {
                snapshot: counts.0,
                config: counts.1,
            });
        }
        for (host, addresses) in snapshot.hosts {
            // What was resolved here is newer, and there may be names that the snapshot does not know.
            self.hosts.entry(host).or_insert(addresses);
        }
        self.service_states = ServiceStates::restore(snapshot.service_states);
        // All flows of those listeners have ended.
        self.past = Counters::restored(&snapshot.past, 0)?;
        self.past_backends = PastBackends::restore(snapshot.past_backends);
        self.clusters.clone_from(&config.clusters);

        let mut descriptors = descriptors.into_iter();
        let mut groups = sockets(&snapshot.listeners, config, &prepared, &mut descriptors)?;
        let (listeners, has_fast_path) = (snapshot.listeners, snapshot.has_fast_path);
        let mut number = 0..;
        let mut all = Vec::new();
        for ((index, listener), prepared) in listeners.into_iter().enumerate().zip(prepared.0) {
            let settings = &config.listeners[index];
            let mut restored = self.describe(settings, &listener, &prepared);
            let mut shards = Vec::new();
            let sockets = std::mem::take(&mut groups[index]);
            for ((shard, socket), number) in
                prepared.shards.into_iter().zip(sockets).zip(&mut number)
            {
                let config = shard.config().clone();
                let (shard, missing) = shard.with_sockets(number, socket, &mut descriptors);
                let like = restored.configurations.first().or(prepared.configs[0].as_ref());
                restored.configurations.push(match like {
                    Some(like) => like.updated(config),
                    None => PreparedConfig::new(config),
                });
                restored.shards.push(number);
                shards.push(Adopted { shard, missing, inherited: None });
            }
            self.listeners.push(restored);
            all.push(shards);
        }
        if has_fast_path {
            let inherited = inherit(&mut descriptors);
            all.iter_mut().flatten().for_each(|adopted| adopted.inherited.clone_from(&inherited));
        }
        Ok(all)
    }

    /// A listener as a snapshot describes it, without its shards.
    fn describe(
        &self,
        settings: &Listener,
        snapshot: &ListenerSnapshot,
        prepared: &PreparedListener,
    ) -> BoundListener {
        let of_mirrors = prepared.shards.first().and_then(RestoredShard::mirror_config);
        let mirror = snapshot.mirror_published.as_ref().zip(of_mirrors).and_then(
            |((name, published), config)| {
                let cluster = self.clusters.iter().find(|cluster| cluster.name == *name)?;
                let configuration = match &prepared.configs[1] {
                    Some(like) => like.updated(config.clone()),
                    None => PreparedConfig::new(config.clone()),
                };
                Some(Mirror::restore(cluster.clone(), configuration, published.clone()))
            },
        );
        let configs = || prepared.shards.iter().map(RestoredShard::config);
        let ports = configs().map(|config| config.address.port());
        let mut backend_list =
            configs().next().map(|c| c.cluster.backends.clone()).unwrap_or_default();
        if settings.same_port {
            let configured = settings.cluster.backends(|host| self.addresses_of(host));
            for backend in &mut backend_list {
                let its =
                    configured.iter().find(|other| other.address.ip() == backend.address.ip());
                backend.address = its.map_or(backend.address, |its| its.address);
            }
        }
        BoundListener {
            shards: Vec::new(),
            settings: settings.clone(),
            address: snapshot.address,
            flows_max: 0,
            ports: if settings.last_port.is_some() { ports.collect() } else { Vec::new() },
            backend_list,
            former_backends: Vec::new(),
            sockets: Vec::new(),
            name: settings.name.as_str().into(),
            options: SocketOptions::of(settings),
            configurations: Vec::new(),
            published: snapshot.published.clone(),
            mirror,
        }
    }

    /// Serves shards, by the index of their listener and their index among its shards.
    pub fn serve(&self, shards: Vec<Vec<Adopted>>) {
        for (listener, shards) in self.listeners.iter().zip(shards) {
            let first = listener.first_shard();
            for (index, (&shard, adopted)) in listener.shards.iter().zip(shards).enumerate() {
                let (name, adopted) = (listener.name.clone(), Box::new(adopted));
                let worker = worker_of(index, self.workers.len());
                let adopt = HandOver::Adopt { shard, first, name, adopted };
                // A worker that has ended takes no commands, and needs none.
                let _ = self.workers[worker].commands.send(Command::HandOver(adopt));
            }
        }
        // Only now: what shards share is not known before all of them are there.
        self.workers.iter().for_each(WorkerHandle::wake);
        self.set_routes();
        self.acknowledged();
    }
}

/// The sockets of each listener: those that were passed on, and others in the stead of those that are
/// missing.
fn sockets(
    listeners: &[ListenerSnapshot],
    config: &Config,
    prepared: &PreparedListeners,
    descriptors: &mut impl Iterator<Item = Option<OwnedFd>>,
) -> Result<Vec<Vec<Socket>>, StartError> {
    let mut groups: Vec<Vec<Socket>> = Vec::new();
    for (index, (listener, settings)) in listeners.iter().zip(&config.listeners).enumerate() {
        let count = prepared.0.get(index).map_or(0, |prepared| prepared.shards.len());
        let bound = descriptors.by_ref().take(count).flatten().collect();
        let settings = Listener { address: listener.address, ..settings.clone() };
        let all = listeners.iter().zip(&config.listeners).enumerate();
        let has_sockets = |(_, s): &(_, &Listener)| s.routed_from.is_none();
        let others = all.filter(|(other, pair)| *other != index && has_sockets(pair));
        let others = others.map(|(_, (other, settings))| (other.address, settings.v6_only));
        if let Some(parent) = &settings.routed_from {
            // They are the sockets of the listener that it is a route of.
            let parent = config.listeners.iter().position(|l| l.name == *parent);
            let sockets: &[Socket] =
                parent.and_then(|p| groups.get(p)).map_or(&[][..], Vec::as_slice);
            let copies = sockets.iter().map(|socket| {
                let copy = socket.as_fd().try_clone_to_owned();
                copy.map(|fd| Socket::send_only(fd, socket.is_v6()))
            });
            let copies = copies.collect::<Result<Vec<_>, _>>();
            groups.push(copies?);
            continue;
        }
        let group = match settings.last_port {
            Some(_) => listener::all_passed_on(&settings, count, bound),
            None => listener::complete(&settings, count, others, bound),
        };
        groups.push(group?.sockets);
    }
    Ok(groups)
}

/// What the kernel goes on with. Without it, that has ended with the process that began it, and what
/// was forwarded last is not known.
fn inherit(descriptors: &mut impl Iterator<Item = Option<OwnedFd>>) -> Option<Arc<InheritedMaps>> {
    let (accounts, gates) = (descriptors.next()??, descriptors.next()??);
    let inherited = InheritedMaps::new([accounts.as_fd(), gates.as_fd()]);
    let failed = |error: &std::io::Error| warn!("what the kernel has forwarded is lost: {error}");
    inherited.inspect_err(failed).ok().map(Arc::new)
}
