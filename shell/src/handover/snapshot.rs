//! What a process is, as plain data: what it hands over when another one takes its place, and what
//! `flowgate snapshot` writes.
//!
//! It is encoded by the core ([`flowgate_core::snapshot`]), with a version and a checksum. Anyone who
//! has it can tell what the hash tables' keys are and who the clients were: it is as secret as the
//! process's memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use flowgate_core::config::ManagerConfig;
use flowgate_core::snapshot::{CountersSnapshot, ManagerSnapshot, RestoreError, address};
use flowgate_core::{PreparedConfig, UdpManager};
use serde::{Deserialize, Serialize};

use crate::control::probe::ProbeSnapshot;
use crate::control::server::past::PastBackendSnapshot;
use crate::control::service_state::{ServiceState, ServiceStateSnapshot};
use crate::datapath::fast_path::ShardOffloads;
use crate::datapath::kernel::{Linux, Socket};
use crate::datapath::shard::Shard;
use crate::datapath::sockets::{Sockets, SocketsSnapshot};
use crate::datapath::upstream::UpstreamSnapshot;

/// A process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessSnapshot {
    /// Where its clock began, on the clock of the machine.
    pub clock_origin: Duration,
    /// The text of the configuration in force.
    pub config: String,
    /// How many reloads went well, and how many did not.
    pub reloads: [u64; 2],
    /// What its server is.
    pub server: ServerSnapshot,
    /// What the probes have found so far.
    pub probes: Vec<ProbeSnapshot>,
    /// Whether it has a control socket, and where.
    pub control: Option<std::path::PathBuf>,
    /// Whether it has an HTTP listener, and where.
    #[serde(with = "address::optional")]
    pub http: Option<SocketAddr>,
}

/// A server. Its listeners are those of the configuration, in that order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServerSnapshot {
    /// The addresses of each host that clusters name, as they were last resolved.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// What was said of backends.
    pub service_states: Vec<ServiceStateSnapshot>,
    /// What listeners counted that are no more.
    pub past: CountersSnapshot,
    /// The same of each backend.
    pub past_backends: Vec<PastBackendSnapshot>,
    /// The listeners.
    pub listeners: Vec<ListenerSnapshot>,
    /// Whether the kernel goes on with flows. The maps with their accounts and gates are the last of
    /// the descriptors then.
    pub has_fast_path: bool,
}

/// A listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListenerSnapshot {
    /// The address that it is bound to.
    #[serde(with = "address")]
    pub address: SocketAddr,
    /// What has been published to its managers of each backend, by index.
    pub published: Vec<ServiceState>,
    /// The same of the cluster that mirrors its own, and that cluster's name.
    pub mirror_published: Option<(String, Vec<ServiceState>)>,
    /// Its shards, one for each socket.
    pub shards: Vec<ShardSnapshot>,
}

/// A shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardSnapshot {
    manager: ManagerSnapshot,
    mirror: Option<ManagerSnapshot>,
    sockets: SocketsSnapshot,
    /// What the kernel path has to know.
    offloads: ShardOffloads,
}

/// A copy of a shard, of which a snapshot can be made while the shard serves on.
pub struct ShardCopy {
    manager: UdpManager,
    mirror: Option<UdpManager>,
    sockets: SocketsSnapshot,
    offloads: ShardOffloads,
}

impl ShardCopy {
    /// Copies a shard. `is_followed`: what [changes](ShardSnapshot::of_changes) in it is noted from
    /// now on.
    pub fn of(shard: &mut Shard<Linux>, is_followed: bool) -> Self {
        let copy = |manager: &mut UdpManager| match is_followed {
            true => manager.copy_and_note_changes(),
            false => manager.clone(),
        };
        let (manager, mirror) = shard.managers_mut();
        let (manager, mirror) = (copy(manager), mirror.map(copy));
        let (sockets, offloads) = (shard.sockets().snapshot(), shard.offloads().clone());
        Self { manager, mirror, sockets, offloads }
    }

    /// What the shard was.
    pub fn snapshot(mut self) -> ShardSnapshot {
        ShardSnapshot {
            manager: self.manager.snapshot(),
            mirror: self.mirror.as_mut().map(UdpManager::snapshot),
            sockets: self.sockets,
            offloads: self.offloads,
        }
    }
}

impl ShardSnapshot {
    /// What a shard is.
    pub fn of(shard: &mut Shard<Linux>) -> Self {
        Self::made_by(UdpManager::snapshot, shard)
    }

    /// What has changed in a shard since it was copied, where that was noted; or else what it is.
    pub fn of_changes(shard: &mut Shard<Linux>) -> Self {
        Self::made_by(|it| it.changes().unwrap_or_else(|| it.snapshot()), shard)
    }

    fn made_by(snapshot: fn(&mut UdpManager) -> ManagerSnapshot, shard: &mut Shard<Linux>) -> Self {
        let (manager, mirror) = shard.managers_mut();
        Self {
            manager: snapshot(manager),
            mirror: mirror.map(snapshot),
            sockets: shard.sockets().snapshot(),
            offloads: shard.offloads().clone(),
        }
    }

    /// How many sockets belong to it, its listener apart.
    pub fn sockets(&self) -> usize {
        self.sockets.count()
    }

    /// What its manager was told to do.
    pub fn manager(&self) -> &ManagerSnapshot {
        &self.manager
    }

    /// What the manager of its mirror was told to do.
    pub fn mirror(&self) -> Option<&ManagerSnapshot> {
        self.mirror.as_ref()
    }

    /// The shard without its sockets. Where only changes are told, `before` is what they are of.
    /// Configurations that were prepared beforehand save time.
    ///
    /// # Errors
    ///
    /// When the snapshot contradicts itself.
    pub fn restore(
        self,
        before: Option<RestoredShard>,
        [of_cluster, of_mirror]: [Option<&PreparedConfig>; 2],
    ) -> Result<RestoredShard, RestoreError> {
        let (manager, mirror) = match before {
            Some(before) => (Some(before.manager), before.mirror),
            None => (None, None),
        };
        let restored =
            |snapshot: ManagerSnapshot, before: Option<UdpManager>, prepared| match before {
                Some(before) if snapshot.is_partial() => before.update(snapshot),
                _ => UdpManager::restore(snapshot, prepared),
            };
        let manager = restored(self.manager, manager, of_cluster)?;
        let mirror =
            self.mirror.map(|snapshot| restored(snapshot, mirror, of_mirror)).transpose()?;
        self.sockets.check(&manager, mirror.as_ref())?;
        Ok(RestoredShard { manager, mirror, sockets: self.sockets, offloads: self.offloads })
    }
}

/// A shard that was restored as far as that can be without its sockets.
pub struct RestoredShard {
    manager: UdpManager,
    mirror: Option<UdpManager>,
    sockets: SocketsSnapshot,
    offloads: ShardOffloads,
}

impl RestoredShard {
    /// What its manager was told to do.
    pub const fn config(&self) -> &ManagerConfig {
        self.manager.config()
    }

    /// What the manager of its mirror was told to do.
    pub fn mirror_config(&self) -> Option<&ManagerConfig> {
        self.mirror.as_ref().map(UdpManager::config)
    }

    /// The shard, with its listener and as many of its other sockets as there are; and what it had
    /// of those that are missing.
    pub fn with_sockets(
        self,
        number: u32,
        listener: Socket,
        descriptors: &mut impl Iterator<Item = Option<OwnedFd>>,
    ) -> (Shard<Linux>, Vec<UpstreamSnapshot>) {
        let Self { manager, mirror, sockets, offloads } = self;
        let room = manager.upstream_capacity();
        let (sockets, missing) = Sockets::restore(number, listener, room, sockets, descriptors);
        let mut shard = Shard::with_sockets(sockets, manager, mirror);
        *shard.offloads_mut() = offloads;
        (shard, missing)
    }
}
