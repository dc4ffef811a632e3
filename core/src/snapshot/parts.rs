//! The documents: what is written, in this order. The module above says how they may change.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::address;
use crate::affinity::Placed;
use crate::affinity::learned::LearnedId;
use crate::backend::BackendHealth;
use crate::config::{BackendConfig, ManagerConfig};
use crate::counters::{AnswerTimes, Traffic};
use crate::egress::Salts;
use crate::flow::first_answers::FirstAnswers;
use crate::flow::{Offload, Stage};
use crate::id::UpstreamId;
use crate::limits::answered::AnsweredClients;
use crate::limits::overload::OpeningBudget;
use crate::manager::evict::TakenElsewhere;
use crate::manager::failover::Sweep;
use crate::retry_buffer::RetrySnapshot;
use crate::time::Instant;
use crate::upstream::Carries;
use crate::upstream::pool::Pool;

/// Everything that a manager knows.
///
/// It can be serialized and deserialized, by itself or as a part of something larger, and be wrapped
/// with [`encode`](super::encode).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerSnapshot {
    pub(crate) config: ManagerConfig,
    pub(crate) backends: BackendsSnapshot,
    /// When each member of a tier has its next turn, in their order, in full turns of a member of
    /// weight 1 and 2^-64 parts of one. Empty where there are no turns.
    pub(crate) turns: [Vec<(u64, u64)>; 2],
    pub(crate) flows: FlowsSnapshot,
    pub(crate) upstreams: UpstreamsSnapshot,
    pub(crate) timers: TimersSnapshot,
    pub(crate) sources: SourcesSnapshot,
    pub(crate) proxies: ProxiesSnapshot,
    pub(crate) counters: CountersSnapshot,
    pub(crate) openings: OpeningBudget,
    pub(crate) answered_clients: AnsweredClients,
    /// How long first answers take.
    pub(crate) first_answers: FirstAnswers,
    pub(crate) next_into_quarantine: Instant,
    /// What others hold of what they share with it.
    pub(crate) elsewhere: TakenElsewhere,
    pub(crate) placement: PlacementSnapshot,
    /// The state of the manager's randomness.
    pub(crate) random: u64,
    /// Where the orders of our ports come from.
    pub(crate) salts: Salts,
    pub(crate) drain: Option<Instant>,
    pub(crate) silences_known_from: Instant,
    pub(crate) sweep: Option<Sweep>,
    pub(crate) last_partial_timeout: Option<Instant>,
    /// The questions that may be asked again.
    pub(crate) kept: RetrySnapshot,
    /// Whether it only tells of flows and timers that have changed.
    pub(crate) is_partial: bool,
}

impl ManagerSnapshot {
    /// What the manager was told to do.
    pub const fn config(&self) -> &ManagerConfig {
        &self.config
    }

    /// Whether it only tells what has changed in a manager.
    pub const fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// The upstream sockets. Always in the same order.
    ///
    /// What a snapshot of unknown origin says here means nothing before it has been
    /// [restored](crate::UdpManager::restore).
    pub fn upstream_ids(&self) -> impl Iterator<Item = UpstreamId> {
        self.upstreams.open.iter().map(|upstream| upstream.id)
    }
}

/// The backends: first those that the configuration lists, in its order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackendsSnapshot {
    pub(crate) figures: Vec<BackendSnapshot>,
    /// Those whose indices are beyond the end of the configuration's list, and count as removed.
    pub(crate) beyond: Vec<BackendConfig>,
    /// The index of the one that answered last, and when; and when another did.
    pub(crate) latest_answer: Option<(u32, Instant)>,
    pub(crate) latest_other: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackendSnapshot {
    pub(crate) health: BackendHealth,
    /// Since when it is in the state that it is in.
    pub(crate) state_since: Instant,
    /// How often it was ejected, by cause.
    pub(crate) ejections: [u64; 2],
    pub(crate) to: Traffic,
    pub(crate) dropped: Traffic,
    pub(crate) from: Traffic,
    /// How long first answers took.
    pub(crate) answer_times: AnswerTimes,
}

/// The flow table and the queues that flows wait in. Every slot is named once, or every slot that has
/// changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlowsSnapshot {
    pub(crate) hash_keys: (u64, u64),
    pub(crate) next_generation: u32,
    /// In the order of their slots.
    pub(crate) alive: Vec<FlowSnapshot>,
    /// In the order of their slots.
    pub(crate) quarantined: Vec<QuarantinedSnapshot>,
    /// Slots in the order in which they will be used.
    pub(crate) vacant: Vec<u32>,
    /// Slots of flows that have not been answered, oldest first.
    pub(crate) unanswered: Vec<u32>,
    /// Slots of flows that have been answered and not been confirmed, in the order in which they
    /// are looked at.
    pub(crate) unconfirmed: Vec<u32>,
    /// The same of flows that have been confirmed.
    pub(crate) continued: Vec<u32>,
}

impl FlowsSnapshot {
    /// All slots that it tells of.
    pub(crate) fn slots(&self) -> Vec<u32> {
        let alive = self.alive.iter().map(|flow| flow.slot);
        let quarantined = self.quarantined.iter().map(|flow| flow.slot);
        alive.chain(quarantined).chain(self.vacant.iter().copied()).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlowSnapshot {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) key: KeySnapshot,
    pub(crate) backend: u32,
    pub(crate) upstream: UpstreamId,
    pub(crate) stage: Stage,
    pub(crate) confirmed: bool,
    pub(crate) introduced: bool,
    pub(crate) heard: bool,
    pub(crate) mirrored: bool,
    pub(crate) is_winner: bool,
    pub(crate) is_prompt: bool,
    pub(crate) to_backend: Traffic,
    pub(crate) to_client: Traffic,
    pub(crate) opened: Instant,
    /// If it has been answered.
    pub(crate) first_answer: Option<Instant>,
    pub(crate) deadline: Instant,
    /// The slot of the next branch in its ring, if it is not alone.
    pub(crate) next_branch: Option<u32>,
    pub(crate) offload: Offload,
    pub(crate) by_sockets: u8,
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeySnapshot {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) path: PathSnapshot,
    /// What names its question, where each is a flow of its own.
    pub(crate) transaction: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PathSnapshot {
    Direct { scope: u32 },
    ToLocal { scope: u32, ip: IpAddr },
    Proxied { proxy: u32 },
}

/// A flow that has ended and is in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuarantinedSnapshot {
    /// What names its question, where each is a flow of its own.
    pub(crate) transaction: Option<u64>,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) backend: u32,
    pub(crate) upstream: UpstreamId,
    pub(crate) until: Instant,
}

/// The sockets towards backends. Every slot is named once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpstreamsSnapshot {
    pub(crate) next_generation: u16,
    /// In the order of their slots.
    pub(crate) open: Vec<UpstreamSnapshot>,
    /// Slots in the order in which they will be used.
    pub(crate) vacant: Vec<u32>,
    /// The shared ones of IPv4, and those of IPv6.
    pub(crate) pools: [Pool; 2],
    /// The slots of the shared ones without a flow, in the order in which they close.
    pub(crate) idle: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpstreamSnapshot {
    pub(crate) id: UpstreamId,
    pub(crate) carries: Carries,
}

/// The timer wheel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimersSnapshot {
    /// The millisecond up to which everything has come up.
    pub(crate) elapsed: u64,
    pub(crate) slots: Vec<TimerSlotSnapshot>,
}

/// The timers that come up together, in the order in which they do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimerSlotSnapshot {
    pub(crate) level: u8,
    pub(crate) slot: u8,
    /// The slots of their flows.
    pub(crate) timers: Vec<u32>,
}

/// What is known of sources, besides their flows. A part is there where the limit is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourcesSnapshot {
    pub(crate) source_keys: Option<(u64, u64)>,
    pub(crate) subnet_keys: Option<(u64, u64)>,
    /// Of new flows, of datagrams and of bytes.
    pub(crate) rates: [Option<RateSnapshot>; 3],
}

/// How fast sources are in something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RateSnapshot {
    pub(crate) keys: (u64, u64),
    /// How many buckets there are: two to the power of this.
    pub(crate) buckets: u8,
    /// The buckets that have not run empty, whose they are, and when they will have.
    pub(crate) filled: Vec<(u32, u32, Instant)>,
}

/// The proxies that speak for clients. Every number is named once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProxiesSnapshot {
    pub(crate) hash_keys: (u64, u64),
    pub(crate) capacity: u32,
    pub(crate) known: Vec<ProxySnapshot>,
    /// Numbers in the order in which they will be used.
    pub(crate) vacant: Vec<u32>,
    /// The numbers of those without a flow, in the order in which they will be forgotten.
    pub(crate) idle: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProxySnapshot {
    pub(crate) number: u32,
    pub(crate) key: KeySnapshot,
    #[serde(with = "address")]
    pub(crate) client: SocketAddr,
    #[serde(with = "address")]
    pub(crate) destination: SocketAddr,
    pub(crate) until: Instant,
}

/// What flows were placed by, and which ids were learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlacementSnapshot {
    pub(crate) learned: LearnedIdsSnapshot,
    /// In the order of their slots.
    pub(crate) flows: Vec<PlacedFlowSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlacedFlowSnapshot {
    pub(crate) slot: u32,
    pub(crate) fingerprint: u64,
    /// The number of its learned id, or 0.
    pub(crate) learned: u64,
    pub(crate) placed: Placed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LearnedIdsSnapshot {
    pub(crate) keys: (u64, u64),
    pub(crate) lengths: u32,
    /// In the order of their numbers.
    pub(crate) ids: Vec<LearnedId>,
    /// Numbers of those without a flow, in the order in which they are forgotten.
    pub(crate) without_flow: Vec<(u64, Instant)>,
}

/// What was counted, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersSnapshot {
    pub(crate) to_backend: LedgerSnapshot,
    pub(crate) to_client: LedgerSnapshot,
    pub(crate) flows_opened: u64,
    pub(crate) flows_closed: ByReason<u64>,
    pub(crate) flows_moved: u64,
    pub(crate) retries: u64,
    pub(crate) upstream_errors: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LedgerSnapshot {
    pub(crate) received: Traffic,
    pub(crate) forwarded: Traffic,
    pub(crate) queued: Traffic,
    pub(crate) by_kernel: Traffic,
    pub(crate) dropped: ByReason<Traffic>,
}

/// What has been counted for each reason, by its name in reports, where it is not nothing.
pub(crate) type ByReason<T> = Vec<(Cow<'static, str>, T)>;
