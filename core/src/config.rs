//! What a manager is told to do. The core checks nothing here: `flowgate-config` builds these from
//! text and refuses what makes no sense, and every value is safe even where it makes none.
//!
//! All of it is part of [snapshots](crate::snapshot), in the order in which fields and variants stand
//! here: anyone who adds one, or moves one, changes their format.

mod defaults;
pub(crate) mod prepared;

use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use ipnet::IpNet;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// The most flows of a listener. Its flow table is allocated at start, so a slip of the finger must
/// not ask for more than a machine has.
pub const MAX_FLOWS: u32 = 1 << 24;

/// How many slots the flow table has where `max_flows` may be alive: as many sockets again may be in
/// quarantine.
pub const fn slots_for(max_flows: usize) -> usize {
    max_flows * 2
}

/// For how many flows tables are allocated at start where other managers may have all of `max_flows`.
const FIRST_FLOWS: u32 = 16;

impl ManagerConfig {
    /// For how many flows the tables are allocated at start.
    pub(crate) fn reserved_flows(&self) -> usize {
        let most = if self.shares_max_flows { FIRST_FLOWS } else { u32::MAX };
        self.max_flows.min(most) as usize
    }

    /// How many of them may be taken.
    pub(crate) fn available_slots(&self) -> usize {
        slots_for(self.max_flows as usize).min(self.max_slots as usize)
    }
}

pub use crate::affinity::{Affinity, QuicLb};
pub use crate::egress::{PortRange, Source, SourceAddress};
pub use crate::transaction::Transactions;
pub use flowgate_quic_lb::ServerId;

/// How one listener's datagrams are to be balanced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct ManagerConfig {
    /// The address and port that clients call, as a PROXY header is to tell it. Where the
    /// listener is bound to a wildcard, each datagram's own local address takes its place.
    #[cfg_attr(feature = "serde", serde(with = "crate::snapshot::address"))]
    pub address: SocketAddr,
    /// The most flows alive at once. The flow table is allocated for them at start, and for as many
    /// sockets in [quarantine](ClusterConfig::upstream_quarantine).
    pub max_flows: u32,
    /// The most flows that have a socket, or a place on a shared one: those alive and those in
    /// quarantine. It is for the descriptors and ports that there are; the flow table has slots for no
    /// more than twice `max_flows`.
    pub max_slots: u32,
    /// Whether other managers have `max_flows` and `max_slots` together with this one. How much of them
    /// the others hold is told as [`TakenElsewhere`](crate::ManagerInput::TakenElsewhere), and the
    /// tables are not allocated for all of it, but grow with the flows.
    pub shares_max_flows: bool,
    /// The longest datagram in bytes that is forwarded, either way. Longer ones are counted drops.
    pub max_datagram_size: u16,
    /// Proxies that speak for others: what comes from here has to begin with a PROXY v2 header,
    /// which tells the client, or to follow a datagram that did. From elsewhere a header is payload.
    pub accept_proxy_protocol: Vec<IpNet>,
    /// Clients that may open flows; empty: all of them.
    pub allow: Vec<IpNet>,
    /// Clients that may not, also where they are allowed.
    pub deny: Vec<IpNet>,
    /// The addresses of all our listeners; `address` is one in any case. A datagram that comes from
    /// one of them is in a loop. A wildcard stands for the address that the datagram was sent to.
    pub own_addresses: Vec<OwnAddress>,
    /// Whether to emit [`Output::RecordFlow`](crate::Output::RecordFlow) for each flow that ends.
    pub record_flows: bool,
    /// Whether a client gets a socket of its own, and when.
    pub accept: Accept,
    /// Whether to emit [`Output::Offload`](crate::Output::Offload) for flows whose datagrams the
    /// kernel may forward by itself.
    pub offload: bool,
    /// The cluster that serves the listener.
    pub cluster: ClusterConfig,
}

/// Where one of our listeners receives: at a port, or at each of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct OwnAddress {
    /// Its address, with the first of its ports.
    #[cfg_attr(feature = "serde", serde(with = "crate::snapshot::address"))]
    pub address: SocketAddr,
    /// The last of its ports.
    pub last_port: u16,
}

impl OwnAddress {
    /// Whether a port is one of its.
    pub fn has_port(&self, port: u16) -> bool {
        (self.address.port()..=self.last_port).contains(&port)
    }
}

/// One port.
impl From<SocketAddr> for OwnAddress {
    fn from(address: SocketAddr) -> Self {
        Self { address, last_port: address.port() }
    }
}

/// Whether a client gets a socket of its own beside the listener's, connected to it, so that what
/// it sends does not wait among everybody else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum Accept {
    /// It does not: all clients share the listener's socket.
    #[default]
    Shared,
    /// It does, as soon as it is admitted.
    Connected,
    /// It does, once it has sent something after an answer: anyone who forges an address and sends once
    /// costs no second socket.
    Confirmed,
}

/// A set of backends and how they share the work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct ClusterConfig {
    /// What becomes of a client's datagrams.
    pub mode: Mode,
    /// How a backend is chosen for a new flow; in [`Mode::OneWay`], for each datagram.
    pub balance: Balance,
    /// What a new flow is placed by. Where that is a hash, only [`Balance::Rendezvous`] and
    /// [`Balance::Maglev`] look at it.
    pub affinity: Affinity,
    /// A flow with no datagram in either direction for this long is closed.
    pub idle_timeout: Duration,
    /// Close a flow after this many replies, once every request has had one. 0: no limit.
    pub responses: u32,
    /// Retire a flow after this many client datagrams: the next one starts a new flow, and the
    /// retired one closes once its replies came or the idle timeout passed. 0: no limit.
    pub requests: u32,
    /// Which datagrams to a backend carry a PROXY protocol v2 header.
    pub send_proxy_protocol: SendProxyProtocol,
    /// Which sockets its flows use. It has effect on flows that open.
    pub upstream: UpstreamMode,
    /// What names a question, where each is a flow of its own: those of one client are told apart by
    /// it, and so are their answers on shared upstreams. Only in a session:
    /// [`questions`](Self::questions).
    pub transactions: Option<Transactions>,
    /// When a question is asked again of another backend. It has effect on [questions](Self::questions)
    /// that come.
    pub retry: Option<Retry>,
    /// How long nobody else gets what comes for a flow that may still be answered after it has
    /// ended: its socket stays open, or its place on a shared one stays taken. Each late answer is
    /// dropped and starts the time again. Zero: not at all. It has no effect with
    /// [`Source::Client`], where late answers reach the client whose they are.
    pub upstream_quarantine: Duration,
    /// Which address and port of ours the backends see.
    pub source: Source,
    /// When a backend is out of service, and what that means for its flows.
    pub health: HealthPolicy,
    /// What one client may take.
    pub limits: Limits,
    /// How connection ids name the backends, with [`Affinity::Quic`].
    #[cfg_attr(feature = "serde", serde(skip))]
    pub quic_lb: QuicLb,
    /// The backends. A [`BackendId`](crate::BackendId) is an index into this list.
    pub backends: Vec<BackendConfig>,
}

/// When another backend is asked: at once where one refuses a question or cannot be reached, and where
/// it is silent for long. The client gets the first answer, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Retry {
    /// For how long.
    pub after: Duration,
    /// How many others are asked at most.
    pub times: u8,
}

/// Which sockets towards backends flows use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum UpstreamMode {
    /// Each has one of its own, connected to its backend.
    #[default]
    PerFlow,
    /// Each takes one on which its backend has no other flow. They are connected to nobody, and
    /// answers are told apart by who sends them.
    Shared,
}

impl UpstreamMode {
    /// The name in configurations and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PerFlow => "per-flow",
            Self::Shared => "shared",
        }
    }
}

impl ClusterConfig {
    /// How many other backends may get what a flow begins with, and after how long a silence; without
    /// that only where it is refused. `None`: it is not kept.
    pub(crate) fn attempts(&self) -> Option<(u8, Option<Duration>)> {
        match self.retry.filter(|_| self.questions().is_some()) {
            Some(Retry { after, times }) => Some((times, Some(after))),
            None if matches!(self.mode, Mode::Session { .. }) && self.backends.len() > 1 => {
                Some((crate::retry_buffer::MAX_OTHERS, None))
            }
            None => None,
        }
    }

    /// What names a question, where each is a flow of its own.
    pub const fn questions(&self) -> Option<Transactions> {
        if matches!(self.mode, Mode::Session { .. }) { self.transactions } else { None }
    }

    /// Why the kernel may not forward its flows by itself: each of their datagrams counts, or is
    /// looked at or changed. `None`: it may, but for flows that are mirrored or behind a proxy.
    pub const fn offload_obstacle(&self) -> Option<&'static str> {
        if !matches!(self.mode, Mode::Session { .. }) {
            Some("the cluster's mode is not \"session\"")
        } else if self.responses > 0 {
            Some("the cluster counts responses")
        } else if self.requests > 0 {
            Some("the cluster counts requests")
        } else if self.limits.amplification > 0 {
            Some("the cluster limits amplification")
        } else if self.limits.datagrams_per_second_per_source > 0
            || self.limits.bytes_per_second_per_source > 0
        {
            Some("the cluster limits what each client sends")
        } else if self.questions().is_some() {
            Some("each question is a flow of its own")
        } else if matches!(self.upstream, UpstreamMode::Shared) {
            Some("the cluster's upstream sockets are shared")
        } else if matches!(self.send_proxy_protocol, SendProxyProtocol::Every) {
            Some("every datagram gets a PROXY header")
        } else if self.affinity.reads_payload() {
            Some("the cluster's affinity looks into datagrams")
        } else {
            None
        }
    }
}

/// What becomes of a client's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum Mode {
    /// They make a flow, which has one backend, and its answers go to the client.
    Session {
        /// How many flows in a million are copied to the cluster's mirror. Which
        /// ones is left to chance when they open, and stays so.
        mirrored_per_million: u32,
    },
    /// Each goes to one backend and is forgotten. Nothing comes back, so there are no flows.
    OneWay,
    /// Each goes to every backend that is in service: to the backups only while no other is.
    FanOut {
        /// Whose answers the client gets.
        reply_from: ReplyFrom,
    },
}

impl Mode {
    /// Flows with one backend each, and no mirror.
    pub const SESSION: Self = Self::Session { mirrored_per_million: 0 };

    /// The name in configurations and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session { .. } => "session",
            Self::OneWay => "one-way",
            Self::FanOut { .. } => "fan-out",
        }
    }

    /// What its flows are like: those of one kind are none of another's.
    pub fn kind(self) -> impl PartialEq {
        let is_hedged = matches!(self, Self::FanOut { reply_from: ReplyFrom::First });
        (core::mem::discriminant(&self), is_hedged, self.has_flows())
    }

    /// Whether clients get answers, for which there must be flows.
    pub const fn has_flows(self) -> bool {
        match self {
            Self::Session { .. } => true,
            Self::OneWay => false,
            Self::FanOut { reply_from } => !matches!(reply_from, ReplyFrom::Nobody),
        }
    }
}

/// Whose answers a client gets of those to whom its datagrams are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum ReplyFrom {
    /// Nobody's. There are no flows.
    Nobody,
    /// Those of the backends that [may answer](BackendConfig::answers): of one of them for each
    /// flow, chosen as in a session.
    Chosen,
    /// Those of the backend that answers first.
    First,
}

/// When a backend is out of service, and what that means for its flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct HealthPolicy {
    /// What a live flow does when its backend goes down.
    pub on_backend_down: OnBackendDown,
    /// What goes back to the primaries when one of them can serve again.
    pub failback: Failback,
    /// Whether to balance over all backends, as if all were up, while all are down.
    pub fail_open: bool,
    /// Whether a backend's silence and the network's errors count against it, and how.
    pub passive: Option<Passive>,
}

/// Flows stay where they are, no datagram counts against a backend, and none is used that is down.
impl Default for HealthPolicy {
    fn default() -> Self {
        let failback = Failback::NewFlows;
        Self { on_backend_down: OnBackendDown::Pin, failback, fail_open: false, passive: None }
    }
}

/// What a live flow does when its backend goes down. One whose backend is removed never stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum OnBackendDown {
    /// It stays, and hopes.
    Pin,
    /// It goes on with another backend from the client's next datagram on.
    Rehash,
    /// It ends.
    Close,
}

/// What goes back to the primaries after backups have served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum Failback {
    /// New flows. Those that a backup has stay with it.
    NewFlows,
    /// New flows at once, and each flow that a backup has with its client's next datagram, as soon as
    /// a primary can take it. Those stay that an id in their datagrams has led there.
    All,
}

/// When the signs that datagrams themselves give put a backend out of service for a while.
///
/// Network errors and silence are counted apart. Any answer of the backend resets both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Passive {
    /// How many flows in a row may end without the answer that they expect: those of a cluster
    /// where `responses` says that there is one. At least 1.
    pub silent_flows: u32,
    /// For how long a backend is out of service the first time. It doubles with every further time
    /// up to [`MAX_EJECTION`], until the backend answers.
    pub back_off: Duration,
}

/// How many errors of the network in a row put a backend out of service. One is not enough, since
/// it can be forged; each is a datagram lost.
pub const NETWORK_ERRORS: u32 = 2;

/// The shortest that a backend is left out of service by what datagrams say of it.
pub const MIN_EJECTION: Duration = Duration::from_millis(1);

/// The longest that a backend is left out of service by what datagrams say of it.
pub const MAX_EJECTION: Duration = Duration::from_secs(300);

/// What one client may take. 0 is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Limits {
    /// The most flows of one client: an IPv4 address, or a /64 of IPv6.
    pub flows_per_source: u32,
    /// The most flows of one /24 of IPv4 or /56 of IPv6.
    pub flows_per_subnet: u32,
    /// How many flows one such client may open in a second.
    pub new_flows_per_second_per_source: u32,
    /// How many datagrams one such client may send in a second, on whatever flows it has.
    pub datagrams_per_second_per_source: u32,
    /// How many bytes they may have. A datagram of more than a second's worth passes once there has
    /// been none for long enough, and then there is none for as long as it is worth.
    pub bytes_per_second_per_source: u64,
    /// How many bytes go to a client for each byte that came from it, for the whole life of a flow: nothing
    /// that a client sends shows that it hears what it is sent.
    pub amplification: u32,
    /// The most flows that have not been answered yet; the oldest makes room for a new one if its
    /// answer is late.
    pub unanswered_flows: u32,
    /// The idle timeout of flows that have not been answered yet; zero: as for all.
    pub unanswered_timeout: Duration,
}

/// One server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct BackendConfig {
    /// Where its datagrams go.
    #[cfg_attr(feature = "serde", serde(with = "crate::snapshot::address"))]
    pub address: SocketAddr,
    /// Its share of new flows, relative to the other backends' weights. 0: no new flows.
    pub weight: u32,
    /// Used only while no other backend can take the flow.
    pub backup: bool,
    /// The most flows it has at once. 0: no limit.
    pub max_flows: u32,
    /// Whether it can be the one backend of a flow. One that cannot gets only copies, and its
    /// answers are thrown away: see [`ReplyFrom::Chosen`].
    pub answers: bool,
    /// Whether it has been removed from the configuration. Its index in the list is kept for as long
    /// as flows refer to it.
    pub removed: bool,
    /// What names it in the connection ids of QUIC-LB.
    #[cfg_attr(feature = "serde", serde(with = "crate::affinity::server_id"))]
    pub server_id: Option<ServerId>,
}

impl BackendConfig {
    /// A backend of weight 1, no backup, without a flow limit.
    pub const fn new(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            backup: false,
            max_flows: 0,
            answers: true,
            removed: false,
            server_id: None,
        }
    }
}

/// How a backend is chosen for a new flow. All respect weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum Balance {
    /// Each in turn, in proportion to the weights.
    RoundRobin,
    /// At random, in proportion to the weights.
    Random,
    /// The one with the fewest flows for its weight.
    LeastFlows,
    /// The less loaded of two taken at random.
    PowerOfTwo,
    /// Highest random weight (Thaler and Ravishankar, 1998): a client keeps its backend, and
    /// when a backend goes only its own clients move. Looks at every backend for each new flow.
    Rendezvous,
    /// Maglev hashing (Eisenbud et al., NSDI 2016): as rendezvous, in constant time for any number
    /// of backends, at the price of moving a few other clients too.
    Maglev,
}

impl Balance {
    /// The name in configurations, reports and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastFlows => "least-flows",
            Self::PowerOfTwo => "power-of-two",
            Self::Rendezvous => "rendezvous",
            Self::Maglev => "maglev",
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which datagrams to a backend carry a PROXY protocol v2 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum SendProxyProtocol {
    /// None.
    Off,
    /// The first of each flow.
    First,
    /// All of them.
    Every,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backends;

    #[test]
    fn every_way_to_balance_has_the_name_that_operators_know() {
        let names = [
            (Balance::RoundRobin, "round-robin"),
            (Balance::Random, "random"),
            (Balance::LeastFlows, "least-flows"),
            (Balance::PowerOfTwo, "power-of-two"),
            (Balance::Rendezvous, "rendezvous"),
            (Balance::Maglev, "maglev"),
        ];
        for (balance, name) in names {
            assert_eq!((balance.as_str(), &*std::format!("{balance}")), (name, name));
        }
    }

    #[test]
    fn a_cluster_without_backends_is_empty_and_one_with_a_backend_is_not() {
        let backend = BackendConfig::new(([10, 0, 0, 1], 53).into());
        for backends in [&[][..], &[backend]] {
            let known = Backends::new(backends, HealthPolicy::default());
            assert_eq!((known.is_empty(), known.len()), (backends.is_empty(), backends.len()));
        }
    }
}
