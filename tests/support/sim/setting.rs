//! What a simulation is built of: a configuration, the cast, and how each backend behaves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use flowgate_core::config::{
    self, Affinity, BackendConfig, Balance, ClusterConfig, Failback, HealthPolicy, Limits,
    ManagerConfig, Mode, OnBackendDown, OwnAddress, Passive, PortRange, SendProxyProtocol,
};
use flowgate_core::{Instant, LocalAddr};
use ipnet::IpNet;

use super::choice::Choices;

/// What is built before anything happens.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What the manager is told to do.
    pub config: ManagerConfig,
    /// All the randomness it gets.
    pub manager_seed: u64,
    /// When it is made.
    pub start: Instant,
    /// How each backend behaves, in the order of the configuration.
    pub tempers: Vec<Temper>,
}

/// How a backend behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    /// Answers each datagram with one.
    Echo,
    /// Answers each datagram with three, of other lengths.
    Chatty,
    /// Never answers.
    Silent,
    /// Answers from another address.
    Stranger,
}

/// The most flows of a setting. Small enough that one timeout gets to all of them, so that the
/// model need not know how large the budget of a timeout is.
pub(super) const LARGEST_TABLE: u32 = 64;

/// None, below and at the tick of the timer wheel, within its lowest level, and far beyond.
const IDLE_TIMEOUTS: [Duration; 9] = [
    Duration::ZERO,
    Duration::from_nanos(1),
    Duration::from_nanos(1_500_001),
    Duration::from_millis(64),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(60),
    Duration::from_secs(60),
    Duration::from_secs(86_400),
];

/// For how long late answers are kept from others.
const QUARANTINES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(64), Duration::from_secs(1), Duration::from_secs(5)];

/// Some of the cast; none of it has an address in the last one.
const NETWORKS: [&str; 6] = [
    "198.51.100.0/24",
    "198.51.100.1/32",
    "2001:db8::/56",
    "2001:db8::2/128",
    "fe80::/10",
    "0.0.0.0/32",
];

/// Some of the cast, as if they were other listeners of ours.
const LISTENERS: [&str; 6] = [
    "198.51.100.2:4001",
    "0.0.0.0:53",
    "0.0.0.0:4000",
    "[::]:4002",
    "[2001:db8::1]:4003",
    "192.0.2.1:53",
];

/// Which of the networks are trusted proxies.
const TRUSTED: [u8; 8] = [0, 0, 0, 0, 0, 0b10_1011, 0b00_0110, 0b01_0001];

/// Which clients get sockets of their own.
const ACCEPTS: [config::Accept; 4] = [
    config::Accept::Shared,
    config::Accept::Shared,
    config::Accept::Connected,
    config::Accept::Confirmed,
];

/// What names a question: who asks it, which is what datagrams begin with.
pub(super) const NAMED_BY_PARTY: config::Transactions =
    config::Transactions::Pattern { request_offset: 0, answer_offset: 0, length: 2 };

/// When another backend is asked.
const RETRIES: [Option<config::Retry>; 4] = [
    None,
    Some(config::Retry { after: Duration::from_millis(1), times: 1 }),
    Some(config::Retry { after: Duration::from_millis(40), times: 3 }),
    Some(config::Retry { after: Duration::from_secs(3), times: 1 }),
];

/// Where datagrams to backends come from.
/// What may be a cluster's source.
pub(super) fn sources() -> [config::Source; 8] {
    let local = |ip: Option<[u8; 4]>, ports: Option<(u16, u16)>| config::SourceAddress {
        ip: ip.map(IpAddr::from),
        ports: ports.map(|(first, last)| PortRange { first, last }),
    };
    [
        config::Source::Any,
        config::Source::Any,
        config::Source::Any,
        config::Source::Any,
        config::Source::Client,
        config::Source::Client,
        config::Source::Local(vec![
            local(Some([192, 0, 2, 99]), None),
            local(Some([192, 0, 2, 98]), Some((20_000, 20_009))),
        ]),
        config::Source::Local(vec![local(None, Some((20_000, 20_009)))]),
    ]
}

const MAX_SLOTS: [u32; 4] = [3, 8, 16, 40];

impl Setting {
    /// Any setting. Each one is small in some way, so that limits are met often.
    pub fn choose(choices: &mut impl Choices) -> Self {
        let count = choices.one_of(&[0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 5, 6]);
        let backends: Vec<_> = (0..count).map(|index| choose_backend(index, choices)).collect();
        let tempers = backends.iter().map(|_| choose_temper(choices)).collect();
        let mut config = ManagerConfig {
            address: choices.one_of(&["192.0.2.53:53", "[2001:db8::53]:53"]).parse().unwrap(),
            max_flows: choose_max_flows(choices),
            max_slots: u32::MAX,
            shares_max_flows: false,
            max_datagram_size: choose_max_datagram_size(choices),
            accept_proxy_protocol: vec![],
            allow: networks(choose_mask(choices)),
            deny: networks(choose_mask(choices)),
            own_addresses: listeners(choose_mask(choices)),
            record_flows: choices.one_in(2),
            offload: false,
            accept: config::Accept::Shared,
            cluster: ClusterConfig {
                quic_lb: config::QuicLb::default(),
                mode: Mode::SESSION,
                balance: choose_balance(choices),
                affinity: choose_affinity(choices),
                idle_timeout: choose_idle_timeout(choices),
                responses: choose_responses(choices),
                requests: choose_requests(choices),
                send_proxy_protocol: choose_proxy_protocol(choices),
                upstream: choose_upstream(choices),
                transactions: None,
                retry: None,
                upstream_quarantine: Duration::ZERO,
                source: config::Source::Any,
                health: HealthPolicy {
                    on_backend_down: choose_on_backend_down(choices),
                    failback: Failback::NewFlows,
                    fail_open: choices.one_in(2),
                    passive: choose_passive(choices),
                },
                limits: choose_limits(choices),
                backends,
            },
        };
        let manager_seed = choices.below(u64::MAX);
        // Some settings trust some of the cast to speak for others.
        config.accept_proxy_protocol = networks(TRUSTED[(manager_seed % 8) as usize]);
        config.cluster.source = sources()[(manager_seed / 8 % 8) as usize].clone();
        config.cluster.upstream_quarantine = QUARANTINES[(manager_seed / 256 % 4) as usize];
        config.accept = ACCEPTS[(manager_seed / 64 % 4) as usize];
        if manager_seed / 1024 % 4 == 0 {
            config.cluster.transactions = Some(NAMED_BY_PARTY);
            config.cluster.retry = RETRIES[(manager_seed / 8_192 % 4) as usize];
        }
        if manager_seed / 4_096 % 2 == 1 {
            config.cluster.health.failback = Failback::All;
        }
        if manager_seed / 32_768 % 4 == 0 {
            config.max_slots = MAX_SLOTS[(manager_seed / 131_072 % 4) as usize];
        }
        config.shares_max_flows = manager_seed / 524_288 % 4 == 0;
        config.offload = manager_seed / 256 % 2 == 0;
        if config.offload && manager_seed / 512 % 2 == 0 {
            // Nothing is in the way of the kernel.
            let cluster = &mut config.cluster;
            (cluster.responses, cluster.requests) = (0, 0);
            cluster.limits.amplification = 0;
            cluster.send_proxy_protocol = SendProxyProtocol::Off;
        }
        Self {
            config,
            manager_seed,
            start: Instant::from_nanos(choices.one_of(&[0, 1, 999_999, 86_400_000_000_000])),
            tempers,
        }
    }
}

pub(super) fn choose_max_flows(choices: &mut impl Choices) -> u32 {
    choices.one_of(&[0, 1, 2, 8, 8, 16, 16, 32, 32, 32, LARGEST_TABLE, LARGEST_TABLE])
}

pub(super) fn choose_max_slots(choices: &mut impl Choices) -> u32 {
    choices.one_of(&[u32::MAX, 2, 4, 12, 20, 40])
}

pub(super) fn choose_max_datagram_size(choices: &mut impl Choices) -> u16 {
    choices.one_of(&[8, 300, 1_200, 65_507, 65_507, 65_535])
}

pub(super) fn choose_affinity(choices: &mut impl Choices) -> Affinity {
    choices.one_of(&[Affinity::SourceIp, Affinity::SourceIpPort])
}

pub(super) fn choose_idle_timeout(choices: &mut impl Choices) -> Duration {
    choices.one_of(&IDLE_TIMEOUTS)
}

pub(super) fn choose_responses(choices: &mut impl Choices) -> u32 {
    choices.one_of(&[0, 0, 0, 1, 1, 2, 5])
}

pub(super) fn choose_requests(choices: &mut impl Choices) -> u32 {
    choices.one_of(&[0, 0, 0, 0, 1, 2, 3, 7])
}

pub(super) fn choose_proxy_protocol(choices: &mut impl Choices) -> SendProxyProtocol {
    choices.one_of(&[SendProxyProtocol::Off, SendProxyProtocol::First, SendProxyProtocol::Every])
}

pub(super) fn choose_source(choices: &mut impl Choices) -> usize {
    choices.below(8) as usize
}

pub(super) fn choose_upstream(choices: &mut impl Choices) -> config::UpstreamMode {
    choices.one_of(&[
        config::UpstreamMode::PerFlow,
        config::UpstreamMode::PerFlow,
        config::UpstreamMode::Shared,
        config::UpstreamMode::Shared,
    ])
}

pub(super) fn choose_on_backend_down(choices: &mut impl Choices) -> OnBackendDown {
    choices.one_of(&[
        OnBackendDown::Pin,
        OnBackendDown::Rehash,
        OnBackendDown::Rehash,
        OnBackendDown::Close,
    ])
}

pub(super) fn choose_passive(choices: &mut impl Choices) -> Option<Passive> {
    choices.one_in(2).then(|| Passive {
        silent_flows: choices.one_of(&[1, 2, 2, 5]),
        back_off: choices.one_of(&[
            Duration::ZERO,
            Duration::from_nanos(1_500_001),
            Duration::from_millis(64),
            Duration::from_secs(5),
            Duration::from_secs(60),
        ]),
    })
}

/// Mostly no bits. Where there are some, there are two of the first six, which may be the same.
pub(super) fn choose_mask(choices: &mut impl Choices) -> u8 {
    let count = choices.one_of(&[0, 0, 0, 0, 0, 0, 0, 2]);
    (0..count).fold(0, |mask, _| mask | 1 << choices.below(6))
}

/// The networks that the bits of a number name.
pub(super) fn networks(mask: u8) -> Vec<IpNet> {
    named(mask, &NETWORKS).map(|network| network.parse().expect("a network")).collect()
}

/// The listeners that the bits of a number name.
pub(super) fn listeners(mask: u8) -> Vec<OwnAddress> {
    let own = |written: &str| {
        let mut own = OwnAddress::from(written.parse::<SocketAddr>().expect("an address"));
        // A range that ends there.
        if own.last_port == 53 {
            own.address.set_port(50);
        }
        own
    };
    named(mask, &LISTENERS).map(own).collect()
}

fn named(mask: u8, all: &'static [&'static str]) -> impl Iterator<Item = &'static str> {
    all.iter().enumerate().filter(move |(bit, _)| mask >> bit & 1 == 1).map(|(_, name)| *name)
}

/// Half of the settings have no limits. Among the others each limit is set about as often as not.
fn choose_limits(choices: &mut impl Choices) -> Limits {
    if choices.one_in(2) { Limits::default() } else { choose_some_limits(choices) }
}

pub(super) fn choose_some_limits(choices: &mut impl Choices) -> Limits {
    Limits {
        flows_per_source: choices.one_of(&[0, 0, 0, 1, 3, 8]),
        flows_per_subnet: choices.one_of(&[0, 0, 0, 1, 5, 10]),
        new_flows_per_second_per_source: choices.one_of(&[0, 0, 0, 1, 3, 10, 1_000]),
        datagrams_per_second_per_source: choices.one_of(&[0, 0, 0, 0, 0, 3, 20, 1_000]),
        bytes_per_second_per_source: choices.one_of(&[0, 0, 0, 0, 0, 60, 2_000, 200_000]),
        amplification: choices.one_of(&[0, 1, 1, 3]),
        unanswered_flows: choices.one_of(&[0, 0, 0, 1, 3, 10]),
        unanswered_timeout: choices.one_of(&[
            Duration::ZERO,
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_millis(64),
            Duration::from_secs(5),
        ]),
    }
}

/// A table for Maglev takes as long to build as a simulation takes to run, so it is rarer.
pub(super) fn choose_balance(choices: &mut impl Choices) -> Balance {
    if choices.one_in(48) {
        return Balance::Maglev;
    }
    choices.one_of(&[
        Balance::RoundRobin,
        Balance::Random,
        Balance::LeastFlows,
        Balance::PowerOfTwo,
        Balance::Rendezvous,
    ])
}

fn choose_backend(index: u8, choices: &mut impl Choices) -> BackendConfig {
    let ip: IpAddr = if choices.one_in(4) {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 10, 0, 0, 0, index.into()).into()
    } else {
        Ipv4Addr::new(10, 0, 0, index).into()
    };
    BackendConfig {
        weight: choose_weight(choices),
        backup: choices.one_in(4),
        max_flows: choose_backend_flows(choices),
        removed: choices.one_in(16),
        ..BackendConfig::new((ip, 53).into())
    }
}

pub(super) fn choose_weight(choices: &mut impl Choices) -> u32 {
    choices.one_of(&[1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 5, 0, 100, u32::MAX])
}

pub(super) fn choose_backend_flows(choices: &mut impl Choices) -> u32 {
    choices.one_of(&[0, 0, 0, 0, 1, 3, 10, 10])
}

pub(super) fn choose_temper(choices: &mut impl Choices) -> Temper {
    choices.one_of(&[
        Temper::Echo,
        Temper::Echo,
        Temper::Echo,
        Temper::Chatty,
        Temper::Silent,
        Temper::Stranger,
    ])
}

/// A client in one of its roles: who it is, and which local address it calls.
///
/// There are clients of both families, one host with several ports, one address on two links, an
/// IPv4 client that also appears mapped into IPv6, one that sends from port 0, and some that claim
/// to be the balancer or one of its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Party {
    client: u8,
    local: u8,
}

/// How many roles there are.
pub(super) const PARTIES: u8 = CLIENTS * LOCALS;
const CLIENTS: u8 = KINDS * 4;
const KINDS: u8 = 8;
const LOCALS: u8 = 3;

const PLAIN: u8 = 0;
const MAPPED: u8 = 2;
const LINK_LOCAL: [u8; 2] = [4, 5];
const IMPOSTOR: u8 = 7;

impl Party {
    /// One of the cast, whatever the number.
    pub(super) const fn new(number: u8) -> Self {
        Self { client: number / LOCALS % CLIENTS, local: number % LOCALS }
    }

    /// A number for each party, the same for an IPv4 client and its mapped appearance.
    pub(super) const fn identity(self) -> u16 {
        let client = if self.kind() == MAPPED { self.client - MAPPED + PLAIN } else { self.client };
        client as u16 * LOCALS as u16 + self.local as u16
    }

    /// The party that has an identity, if there is one.
    pub(super) fn of_identity(identity: u16) -> Option<Self> {
        let number = u8::try_from(identity).ok().filter(|&number| number < PARTIES)?;
        Some(Self::new(number))
    }

    /// The address it sends from.
    pub(super) fn source(self) -> SocketAddr {
        let turn = self.client / KINDS;
        let port = 4_000 + u16::from(turn);
        match self.kind() {
            PLAIN => SocketAddr::from(([198, 51, 100, 1], port)),
            MAPPED => SocketAddr::from((Ipv4Addr::new(198, 51, 100, 1).to_ipv6_mapped(), port)),
            1 => SocketAddr::from(([198, 51, 100, 2], port)),
            IMPOSTOR => match turn {
                0 => SocketAddr::from(([198, 51, 101, 1], 0)),
                1 => SocketAddr::from(([10, 0, 0, 0], 53)),
                2 => SocketAddr::from(([192, 0, 2, 53], 53)),
                _ => SocketAddr::from(([192, 0, 2, 1], 53)),
            },
            3 => SocketAddr::from((documentation_address(1), port)),
            // A flow label says nothing about who sends.
            6 => SocketAddrV6::new(documentation_address(2), port, 0xF10, 0).into(),
            _ => SocketAddrV6::new(link_local_address(1), port, 0, self.link()).into(),
        }
    }

    /// The local address it calls, where the listener is bound to a wildcard.
    pub(super) fn local(self) -> Option<LocalAddr> {
        let number = self.local;
        let ip: IpAddr = match self.source().ip() {
            _ if number == 0 => return None,
            IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, number).into(),
            IpAddr::V6(_) if self.kind() == MAPPED => {
                Ipv4Addr::new(192, 0, 2, number).to_ipv6_mapped().into()
            }
            IpAddr::V6(_) if self.link() > 0 => link_local_address(0x50 + number).into(),
            IpAddr::V6(_) => documentation_address(0x50 + number).into(),
        };
        let interface = self.link();
        Some(LocalAddr { ip, interface })
    }

    /// Its address and the local one as the balancer uses them: IPv4 is never mapped, and there are
    /// no flow labels.
    pub(super) fn canonical(self) -> (SocketAddr, Option<LocalAddr>) {
        let local = self.local().map(|local| LocalAddr { ip: local.ip.to_canonical(), ..local });
        (canonical(self.source()), local)
    }

    /// Whether this is who is reached at an address, from a local address.
    pub(super) fn is_at(self, client: SocketAddr, local: Option<LocalAddr>) -> bool {
        self.canonical() == (client, local)
    }

    /// Whether an answer can reach it.
    pub(super) fn can_be_answered(self) -> bool {
        self.source().port() != 0
    }

    const fn kind(self) -> u8 {
        self.client % KINDS
    }

    /// The interface of a link-local client; 0 for all others.
    fn link(self) -> u32 {
        let index = LINK_LOCAL.iter().position(|&kind| kind == self.kind());
        index.map_or(0, |index| index as u32 + 2)
    }
}

/// An address as the balancer tells it: IPv4 where it is IPv4 mapped, and without a flow label.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match (address.ip().to_canonical(), address) {
        (IpAddr::V6(ip), SocketAddr::V6(v6)) => {
            SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()).into()
        }
        (ip, _) => SocketAddr::new(ip, address.port()),
    }
}

/// Who a client is to limits: its address, and the link that it is on where that is part of it. One
/// host may have a whole /64 of IPv6.
pub(super) fn source(client: SocketAddr) -> Source {
    match canonical(client) {
        SocketAddr::V4(client) => (IpAddr::V4(*client.ip()), 0),
        SocketAddr::V6(client) if !client.ip().is_unicast_link_local() => {
            let [a, b, c, d, ..] = client.ip().segments();
            let network = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0);
            let is_loopback = network.is_unspecified();
            (IpAddr::V6(if is_loopback { *client.ip() } else { network }), client.scope_id())
        }
        SocketAddr::V6(client) => (IpAddr::V6(*client.ip()), client.scope_id()),
    }
}

/// An address and a link.
pub(super) type Source = (IpAddr, u32);

fn documentation_address(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into())
}

fn link_local_address(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host.into())
}
