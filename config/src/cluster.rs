//! A named set of backends, as the file describes it.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flowgate_core::config::{
    Affinity, BackendConfig, Balance, ClusterConfig, HealthPolicy, Mode, ReplyFrom, ServerId,
    Source,
};

use crate::{BackendsFrom, Probing, QuicLbSpec};

/// A named set of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its name in the file: never empty, and free to hold any character, so escape it where it is
    /// shown.
    pub name: String,
    /// Its backends as the file lists them, no two with the same target.
    pub members: Vec<Member>,
    /// Where more of them are found. None: these are all. See
    /// [`Config::with_found`](crate::Config::with_found).
    pub from: Option<BackendsFrom>,
    /// For how long an address goes on serving that its name gives no more, while the name still
    /// gives others that it gave before.
    pub hold: Duration,
    /// How its backends are probed. None: they are not.
    pub health: Option<Probing>,
    /// Whether answers go from the backends straight to the clients: then datagrams go out from the
    /// clients' addresses, and there are no flows, though it is made for sessions.
    pub is_direct: bool,
    /// The cluster that gets copies of some of its flows: one of
    /// [`Config::clusters`](crate::Config::clusters). How many flows, the policy's mode says.
    pub mirror: Option<String>,
    /// How connection ids name its backends: see [`ClusterConfig::quic_lb`].
    pub quic_lb: Vec<QuicLbSpec>,
    /// How its backends share the work. Its `backends` are those that need no resolving: all members
    /// where none is a name. See [`backends`](Self::backends) for the others.
    pub policy: ClusterConfig,
}

impl Cluster {
    /// The hosts to resolve, once for each member that is a name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter_map(|member| match &member.target {
            Target::Address(_) => None,
            Target::Name { host, .. } => Some(host.as_str()),
        })
    }

    /// The backends that the members stand for while each name has the addresses that `resolve` says.
    ///
    /// They come in the order of the members, those of a name in the order of their addresses, so
    /// that the order of an answer changes nothing. An address that an earlier member has is left
    /// out, as is one that nothing can be sent to, from the cluster's source if it has one.
    pub fn backends(&self, resolve: impl Fn(&str) -> Vec<IpAddr>) -> Vec<BackendConfig> {
        let is_reached = |ip: &IpAddr| self.policy.source.reaches(ip.to_canonical().is_ipv6());
        backends(&self.members, |host| resolve(host).into_iter().filter(is_reached).collect())
    }
}

impl Cluster {
    /// Whether nothing but what its backends announce says to whom a client belongs that has moved. What
    /// is announced is known to the worker that hears it.
    pub fn learns_ids(&self) -> bool {
        let is_learned = match self.policy.affinity {
            Affinity::Quic => self.quic_lb.is_empty(),
            affinity => affinity.has_ids(),
        };
        is_learned && self.policy.mode.has_flows()
    }

    /// How it serves as another cluster's mirror. Nothing comes back, and of a cluster that is not
    /// made for that each client's datagrams go to one backend, as those of its flow would.
    pub fn as_mirror(&self) -> ClusterConfig {
        let policy = &self.policy;
        let by_source = matches!(policy.balance, Balance::Rendezvous | Balance::Maglev);
        let (balance, affinity) = match policy.mode {
            Mode::Session { .. } if !by_source => (Balance::Rendezvous, Affinity::SourceIpPort),
            _ => (policy.balance, policy.affinity),
        };
        let mode = match policy.mode {
            Mode::Session { .. } | Mode::OneWay => Mode::OneWay,
            Mode::FanOut { .. } => Mode::FanOut { reply_from: ReplyFrom::Nobody },
        };
        let health = HealthPolicy { passive: None, ..policy.health };
        ClusterConfig { mode, balance, affinity, health, ..policy.clone() }
    }
}

pub(crate) fn backends(
    members: &[Member],
    resolve: impl Fn(&str) -> Vec<IpAddr>,
) -> Vec<BackendConfig> {
    let mut taken = HashSet::with_capacity(members.len());
    let mut backends = Vec::with_capacity(members.len());
    for member in members {
        let (mut ips, port) = match &member.target {
            Target::Address(address) => {
                if taken.insert(*address) {
                    backends.push(member.at(*address));
                }
                continue;
            }
            Target::Name { host, port } => (resolve(host), *port),
        };
        ips.iter_mut().for_each(|ip| *ip = ip.to_canonical());
        ips.sort_unstable();
        ips.retain(names_one_host);
        let addresses = ips.into_iter().map(|ip| SocketAddr::from((ip, port)));
        let fresh = addresses.filter(|address| taken.insert(*address));
        backends.extend(fresh.map(|address| member.at(address)));
    }
    backends
}

/// Whether datagrams to an address that a name has can arrive at one host. A link-local one does not
/// say of which interface it is.
pub fn names_one_host(ip: &IpAddr) -> bool {
    let is_special = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !is_special && !ip.is_unspecified() && !ip.is_multicast()
}

/// An element of a cluster's list of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where its datagrams go.
    pub target: Target,
    /// The share of new flows, relative to the other backends' weights, of each address that it has.
    /// 0: no new flows.
    pub weight: u32,
    /// Whether it is used only while no other backend can take the flow.
    pub backup: bool,
    /// The most flows at once of each address that it has. 0: no limit.
    pub max_flows: u32,
    /// Whether its answers may go to clients; not in fan-out mode where those of another do.
    pub answers: bool,
    /// What names it in the connection ids of QUIC-LB.
    pub server_id: Option<ServerId>,
}

impl Member {
    /// Whether it may have an address of IPv6, or of IPv4: what a name stands for is not known.
    pub const fn may_be_of_family(&self, v6: bool) -> bool {
        match self.target {
            Target::Address(backend) => backend.is_ipv6() == v6,
            Target::Name { .. } => true,
        }
    }

    /// Whether datagrams to it can leave from there, as far as that is known.
    pub(crate) fn is_reached_from(&self, source: &Source) -> bool {
        [false, true].into_iter().any(|v6| self.may_be_of_family(v6) && source.reaches(v6))
    }

    /// The backend that it stands for at one of its addresses.
    fn at(&self, address: SocketAddr) -> BackendConfig {
        let Self { weight, backup, max_flows, answers, server_id, .. } = *self;
        let backend = BackendConfig::new(address);
        BackendConfig { weight, backup, max_flows, answers, server_id, ..backend }
    }
}

/// Where a member's datagrams go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// To one address: never an unspecified one, port 0 or an IPv4 address mapped into IPv6.
    Address(SocketAddr),
    /// To every address of a host.
    Name {
        /// The name in lower case: letters, digits, hyphens, underscores and dots, never the look of
        /// an IPv4 address. A dot at its end says that no search domain is to be tried.
        host: String,
        /// The port of all of them, never 0.
        port: u16,
    },
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
