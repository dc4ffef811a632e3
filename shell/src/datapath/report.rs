//! How things stand, gathered from all workers when someone asks.

use std::net::SocketAddr;
use std::ops::Range;

use flowgate_config::FastPathMode;
use flowgate_core::affinity::Placed;
use flowgate_core::backend::{Backend, BackendState, Ejection, EjectionCause};
use flowgate_core::counters::{AnswerTimes, Counters, Traffic};
use flowgate_core::{BackendId, FlowId, Instant, LocalAddr, UdpManager};

use crate::datapath::fast_path::FastPathFigures;
use crate::datapath::kernel::Kernel;
use crate::datapath::shard::Shard;

/// How things stand on one listener, all workers together.
#[derive(Clone, Debug)]
pub struct ListenerReport {
    /// Its name in the configuration.
    pub name: String,
    /// The address it is bound to, with all its ports where it has a range of them.
    pub address: String,
    /// The name of its cluster.
    pub cluster: String,
    /// The name of the cluster that mirrors its cluster.
    pub mirror: Option<String>,
    /// The most flows it can have.
    pub flows_max: u64,
    /// How far the kernel may forward its flows; `None` if it is not to.
    pub fast_path: Option<FastPathState>,
    /// The figures.
    pub figures: ShardReport,
}

/// How far the kernel may forward a listener's flows by itself.
#[derive(Clone, Debug)]
pub struct FastPathState {
    /// What the configuration asks for.
    pub mode: FastPathMode,
    /// Why it does not, if it does not.
    pub obstacle: Option<String>,
}

/// The figures of one shard, or of several together.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {
    /// Flows alive.
    pub flows_active: u64,
    /// Datagrams that the kernel dropped since the listener's receive buffer was full.
    pub socket_drops: u64,
    /// The same of the upstream sockets.
    pub upstream_socket_drops: u64,
    /// Upstream sockets that one flow has for itself.
    pub upstreams_per_flow: u64,
    /// Those that flows share.
    pub upstreams_shared: u64,
    /// Flows that have ended and are in quarantine.
    pub flows_quarantined: u64,
    /// Clients that have sockets of their own.
    pub client_sockets: u64,
    /// How often one could not be opened.
    pub client_sockets_failed: u64,
    /// What was counted since the start.
    pub counters: Counters,
    /// Each backend by its place, with those that have been removed and not been replaced.
    pub backends: Vec<BackendReport>,
    /// What the mirror of the cluster counted, if it has one.
    pub mirror: Option<MirrorFigures>,
    /// What the kernel forwards past the sockets.
    pub fast_path: FastPathFigures,
}

/// The figures of a mirror.
#[derive(Clone, Debug, Default)]
pub struct MirrorFigures {
    /// What was counted since it began. What is received are the copies that were made.
    pub counters: Counters,
    /// Each backend by its place, with those that have been removed and not been replaced.
    pub backends: Vec<BackendReport>,
}

/// The figures of one backend.
#[derive(Clone, Copy, Debug)]
pub struct BackendReport {
    /// Its address.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// How it stands.
    pub state: BackendState,
    /// The time out of service that datagrams have brought about, while it lasts.
    pub ejection: Option<Ejection>,
    /// How often that has been, by [`EjectionCause`].
    pub ejections: [u64; EjectionCause::ALL.len()],
    /// How often errors of the network were a reason to probe it.
    pub doubts: u64,
    /// Whether its probes and the datagrams have nothing against it.
    pub is_up: bool,
    /// Whether it has been removed from the configuration.
    pub is_removed: bool,
    /// Flows alive on it.
    pub flows_active: u64,
    /// What was sent to it.
    pub to: Traffic,
    /// What was to be sent to it and could not be.
    pub dropped: Traffic,
    /// What came from it.
    pub from: Traffic,
    /// How long its first answers took.
    pub answer_times: AnswerTimes,
}

impl ShardReport {
    /// How things stand on one shard, whose listener has lost this many datagrams.
    pub fn of<K: Kernel>(shard: &Shard<K>, socket_drops: u64) -> Self {
        let manager = shard.manager();
        let (upstreams, shared) = manager.upstream_counts();
        Self {
            flows_active: manager.flow_count() as u64,
            socket_drops,
            upstream_socket_drops: shard.sockets().upstream_drops,
            upstreams_per_flow: (upstreams - shared) as u64,
            upstreams_shared: shared as u64,
            flows_quarantined: manager.quarantined() as u64,
            client_sockets: shard.clients().len() as u64,
            client_sockets_failed: shard.clients().not_opened,
            counters: manager.counters().clone(),
            backends: BackendReport::of_all(manager),
            mirror: shard.mirror().map(|mirror| MirrorFigures {
                counters: mirror.counters().clone(),
                backends: BackendReport::of_all(mirror),
            }),
            fast_path: FastPathFigures { flows: 0, overtaken: shard.offloads().overtaken },
        }
    }

    /// Adds the figures of another shard of the same listener.
    pub fn add(&mut self, other: &Self) {
        self.flows_active += other.flows_active;
        self.socket_drops += other.socket_drops;
        self.upstream_socket_drops += other.upstream_socket_drops;
        self.upstreams_per_flow += other.upstreams_per_flow;
        self.upstreams_shared += other.upstreams_shared;
        self.flows_quarantined += other.flows_quarantined;
        self.client_sockets += other.client_sockets;
        self.client_sockets_failed += other.client_sockets_failed;
        self.counters.merge(&other.counters);
        self.fast_path.add(other.fast_path);
        BackendReport::add_all(&mut self.backends, &other.backends);
        if let Some(other) = &other.mirror {
            let sum = self.mirror.get_or_insert_default();
            sum.counters.merge(&other.counters);
            BackendReport::add_all(&mut sum.backends, &other.backends);
        }
    }
}

impl BackendReport {
    fn of_all(manager: &UdpManager) -> Vec<Self> {
        let report = |(_, backend): (BackendId, &Backend)| Self {
            address: backend.address(),
            weight: backend.weight(),
            state: backend.state(),
            ejection: backend.ejection(),
            ejections: EjectionCause::ALL.map(|cause| backend.ejections(cause)),
            doubts: backend.doubts(),
            is_up: backend.is_up(),
            is_removed: backend.is_removed(),
            flows_active: u64::from(backend.flows_active),
            to: backend.to,
            dropped: backend.dropped,
            from: backend.from,
            answer_times: backend.answer_times,
        };
        manager.backends().iter().map(report).collect()
    }

    fn add_all(sums: &mut Vec<Self>, more: &[Self]) {
        if sums.is_empty() {
            sums.extend_from_slice(more);
            return;
        }
        for (sum, other) in sums.iter_mut().zip(more) {
            sum.add(other);
        }
    }

    /// Adds the figures of the same backend elsewhere. Where one finds it down, it is down.
    pub fn add(&mut self, other: &Self) {
        let rank = |state| match state {
            BackendState::Unchecked => 0,
            BackendState::Up => 1,
            BackendState::Ejected => 2,
            BackendState::Draining => 3,
            BackendState::Down => 4,
        };
        if rank(other.state) > rank(self.state) {
            self.state = other.state;
        }
        // Each worker looks for itself: the one that comes back last tells.
        self.ejection = [self.ejection, other.ejection]
            .into_iter()
            .flatten()
            .max_by_key(|ejection| ejection.until);
        for (sum, more) in self.ejections.iter_mut().zip(other.ejections) {
            *sum += more;
        }
        self.doubts += other.doubts;
        self.is_up &= other.is_up;
        self.flows_active += other.flows_active;
        self.to = self.to.plus(other.to);
        self.dropped = self.dropped.plus(other.dropped);
        self.from = self.from.plus(other.from);
        self.answer_times.add(&other.answer_times);
    }
}

/// One flow.
#[derive(Clone, Copy, Debug)]
pub struct FlowFigures {
    /// The client.
    pub client: SocketAddr,
    /// The address that the client sends to, where the listener is on a wildcard.
    pub local: Option<LocalAddr>,
    /// The backend that serves it.
    pub backend: SocketAddr,
    /// When it opened.
    pub opened: Instant,
    /// When it closes, unless a datagram comes before.
    pub deadline: Instant,
    /// When it looked like this.
    pub now: Instant,
    /// What the client sent.
    pub to_backend: Traffic,
    /// What the backend sent.
    pub to_client: Traffic,
    /// Whether it has been answered.
    pub is_answered: bool,
    /// What it was placed by.
    pub placed: Placed,
    /// Whether the kernel forwards its datagrams past the sockets.
    pub is_in_fast_path: bool,
}

impl FlowFigures {
    /// The flows in some slots of a manager, as far as it knows of them.
    pub fn of(
        manager: &UdpManager,
        slots: Range<usize>,
        now: Instant,
    ) -> impl Iterator<Item = (FlowId, Self)> {
        let slots = slots.start..slots.end.min(manager.slots());
        manager.flows_in(slots).filter_map(move |(id, flow)| {
            let figures = Self {
                client: flow.client(),
                local: flow.local(),
                backend: manager.backends().get(flow.backend()).map(Backend::address)?,
                opened: flow.opened(),
                deadline: flow.deadline(),
                now,
                to_backend: flow.to_backend(),
                to_client: flow.to_client(),
                is_answered: flow.is_answered(),
                placed: manager.placed(id),
                is_in_fast_path: false,
            };
            Some((id, figures))
        })
    }
}
