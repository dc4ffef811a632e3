//! What can happen to a manager. Each variant is named for the event, in the past.

use core::net::SocketAddr;

use crate::backends::Backends;
use crate::balance::Balancer;
use crate::burst::Burst;
use crate::config::{BackendConfig, ClusterConfig, ManagerConfig};
use crate::id::{BackendId, Carrier, FlowId};
use crate::local_addr::LocalAddr;
use crate::proxy_protocol::Told;
use crate::reason::{Direction, DropReason};
use crate::time::Instant;

/// Something that happened in the world, told to [`UdpManager::handle_input`].
///
/// [`UdpManager::handle_input`]: crate::UdpManager::handle_input
#[derive(Clone, Copy, Debug)]
pub enum ManagerInput<'p> {
    /// The listener received datagrams of one client.
    ClientBurst {
        /// Who sent them. IPv4 clients of a dual-stack listener are [`SocketAddr::V4`].
        source: SocketAddr,
        /// The local address they were sent to, where the listener is bound to a wildcard.
        local: Option<LocalAddr>,
        /// The TOS or traffic-class byte they carried: DSCP (RFC 2474) and ECN (RFC 3168).
        tos: u8,
        /// The time to live or hop limit they arrived with.
        ttl: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// The cluster that this one mirrors got datagrams of a client, and this one is to have copies.
    Mirrored {
        /// The client that sent them.
        client: SocketAddr,
        /// The local address they were sent to, where the listener is bound to a wildcard.
        local: Option<LocalAddr>,
        /// What the proxy that speaks for the client says of them, if one does.
        told: Option<Told<'p>>,
        /// The TOS or traffic-class byte they carried.
        tos: u8,
        /// The time to live or hop limit they arrived with.
        ttl: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// A flow's upstream socket received datagrams from its backend.
    BackendBurst {
        /// The flow that the socket serves.
        flow: FlowId,
        /// The TOS or traffic-class byte they carried.
        tos: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// Datagrams arrived that cannot be used: cut short, or not from the backend.
    Unusable {
        /// Which way they were going.
        direction: Direction,
        /// What is wrong with them.
        reason: DropReason,
        /// How many there were.
        datagrams: u32,
        /// How many payload bytes of them arrived.
        bytes: u64,
    },
    /// Datagrams that an earlier [`Output`](crate::Output) told to send were not sent.
    Undelivered {
        /// What they belong to. A flow may have closed meanwhile.
        carrier: Carrier,
        /// Which way they were going.
        direction: Direction,
        /// Why they were given up.
        reason: DropReason,
        /// How many there were.
        datagrams: u32,
        /// Their payload bytes, without any prefix.
        bytes: u64,
    },
    /// A flow's upstream socket could not be opened, or reported an error of the network.
    UpstreamFailed {
        /// The flow that the socket serves, or was to serve.
        flow: FlowId,
        /// What failed.
        failure: UpstreamFailure,
    },
    /// Somebody has news of a backend.
    BackendChanged {
        /// The backend.
        backend: BackendId,
        /// The news.
        news: BackendNews,
    },
    /// The configuration has changed.
    Configured(&'p Configuration),
    /// The operator asked for no new flows. Those that live may go on until `deadline`.
    Drain {
        /// When the flows that are left are closed.
        deadline: Instant,
    },
    /// The deadline of [`poll_timeout`](crate::UdpManager::poll_timeout) may have passed.
    ///
    /// Calling too early or too often is harmless.
    Timeout,
}

/// What is wrong with a flow's upstream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamFailure {
    /// There is no socket: out of descriptors, ports or memory, or no route. The flow ends.
    NotOpened,
    /// ICMP port unreachable: nothing listens on the backend's port. It counts against the backend;
    /// one is not enough to put that out of service, since ICMP can be forged.
    Refused,
    /// ICMP host or network unreachable. It counts as [`Refused`](Self::Refused) does.
    Unreachable,
}

/// What the probes and the operator say of a backend. Each stands until the opposite is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendNews {
    /// The probes find it in order, as they are thought to before anything is said.
    Up,
    /// The probes find it out of order.
    Down,
    /// It is to have no new flows. Those that live may go on until `deadline`, if there is one.
    Drain {
        /// When the flows that are left are closed.
        deadline: Option<Instant>,
    },
    /// It may have new flows again.
    Undrain,
}

/// What a manager is told to do from now on, with what takes time to make made beforehand.
#[derive(Clone, Debug)]
pub struct Configuration {
    config: ManagerConfig,
    balancer: Balancer,
}

impl Configuration {
    /// Prepares a configuration, which takes as long as [`Balancer::new`] says.
    pub fn new(config: ManagerConfig) -> Self {
        let backends = Backends::new(&config.cluster.backends, config.cluster.health);
        Self { balancer: Balancer::new(config.cluster.balance, &backends), config }
    }

    /// Prepares a configuration that may have much in common with this one. Takes hardly any time
    /// where the backends and their weights are the same.
    pub fn updated(&self, config: ManagerConfig) -> Self {
        if self.has_the_turns_of(&config.cluster) {
            Self { config, balancer: self.balancer.clone() }
        } else {
            Self::new(config)
        }
    }

    /// What the manager is told to do.
    pub const fn config(&self) -> &ManagerConfig {
        &self.config
    }

    pub(crate) const fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Whether a balancer that was made for `cluster` serves this one too.
    pub(crate) fn has_the_turns_of(&self, cluster: &ClusterConfig) -> bool {
        let turn = |b: &BackendConfig| (b.address, b.weight, b.backup, b.answers, b.removed);
        let ours = &self.config.cluster;
        ours.balance == cluster.balance
            && ours.backends.iter().map(turn).eq(cluster.backends.iter().map(turn))
    }
}
