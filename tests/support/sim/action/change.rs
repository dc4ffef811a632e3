//! Changes of the configuration: what an operator may write into it while the balancer runs.

use std::time::Duration;

use flowgate_core::config::{
    Affinity, BackendConfig, Balance, ManagerConfig, OnBackendDown, Passive, SendProxyProtocol,
};

use crate::sim::choice::Choices;
use crate::sim::setting::{self, Temper};

/// One change of the configuration. Backends are named by numbers that are taken modulo how many
/// there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A backend is removed. Its place is kept.
    Remove(u8),
    /// A backend that was removed comes back.
    Return(u8),
    /// A backend is added in a new place at the end, unless there are many.
    Add(Newcomer),
    /// Another backend takes a place in the list.
    Replace(u8, Newcomer),
    /// The list of backends ends one place sooner.
    Shorten,
    /// A backend has another weight.
    Weight(u8, u32),
    /// A backend becomes a backup, or is one no more.
    Backup(u8, bool),
    /// A backend may have this many flows.
    BackendFlows(u8, u32),
    /// Another algorithm chooses.
    Balance(Balance),
    /// It looks at something else of a client.
    Affinity(Affinity),
    /// Flows may be silent for so long.
    IdleTimeout(Duration),
    /// Flows have this many replies.
    Responses(u32),
    /// Flows have this many requests.
    Requests(u32),
    /// Datagrams to backends come from there.
    /// One of [`setting::sources`].
    Source(usize),
    /// Sockets rest for so long.
    Upstream(flowgate_core::config::UpstreamMode),
    /// Other datagrams carry a PROXY header.
    ProxyProtocol(SendProxyProtocol),
    /// What becomes of the flows of a backend that is down.
    OnBackendDown(OnBackendDown),
    /// What happens while all are down.
    FailOpen(bool),
    /// What datagrams say of backends counts, and how.
    Passive(Option<Passive>),
    /// A host may have this many flows.
    FlowsPerSource(u32),
    /// A subnet may have this many flows.
    FlowsPerSubnet(u32),
    /// A host may open this many flows a second.
    NewFlows(u32),
    /// A host may send this many datagrams a second.
    Datagrams(u32),
    /// A host may send this many bytes a second.
    Bytes(u64),
    /// A silent client gets this many bytes for each of its own.
    Amplification(u32),
    /// This many flows may wait for their first answer.
    UnansweredFlows(u32),
    /// They may do so for so long.
    UnansweredTimeout(Duration),
    /// This many flows may be alive.
    MaxFlows(u32),
    /// This many slots of the flow table may be taken.
    MaxSlots(u32),
    /// Datagrams may be so long.
    MaxDatagramSize(u16),
    /// These clients are allowed, by the bits of a number.
    Allow(u8),
    /// These clients are denied, by the bits of a number.
    Deny(u8),
    /// These listeners are ours, by the bits of a number.
    OwnAddresses(u8),
    /// Flows that end are written down.
    RecordFlows(bool),
    /// Everything is read again, and is as it was.
    Nothing,
}

/// A backend that was not there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// Its weight.
    pub weight: u32,
    /// Whether it is a backup.
    pub backup: bool,
    /// The most flows it may have.
    pub max_flows: u32,
    /// How it behaves.
    pub temper: Temper,
}

/// The names of all kinds of changes.
pub const CHANGES: [&str; 35] = [
    "Remove",
    "Return",
    "Add",
    "Replace",
    "Shorten",
    "Weight",
    "Backup",
    "BackendFlows",
    "Balance",
    "Affinity",
    "IdleTimeout",
    "Responses",
    "Requests",
    "Source",
    "Upstream",
    "ProxyProtocol",
    "OnBackendDown",
    "FailOpen",
    "Passive",
    "FlowsPerSource",
    "FlowsPerSubnet",
    "NewFlows",
    "Datagrams",
    "Bytes",
    "Amplification",
    "UnansweredFlows",
    "UnansweredTimeout",
    "MaxFlows",
    "MaxSlots",
    "MaxDatagramSize",
    "Allow",
    "Deny",
    "OwnAddresses",
    "RecordFlows",
    "Nothing",
];

/// The most places of a list.
const MOST_BACKENDS: usize = 8;

impl Change {
    /// Any change. Backends come and go most often.
    pub(super) fn choose(choices: &mut impl Choices) -> Self {
        match choices.below(64) {
            0..6 => Self::Remove(choices.byte()),
            6..18 => Self::Return(choices.byte()),
            18 => Self::Source(setting::choose_source(choices)),
            19..22 => Self::Add(Newcomer::choose(choices)),
            22..27 => Self::Replace(choices.byte(), Newcomer::choose(choices)),
            27 => Self::Shorten,
            28..30 => Self::Weight(choices.byte(), setting::choose_weight(choices)),
            30 => Self::Backup(choices.byte(), choices.one_in(2)),
            31 => Self::BackendFlows(choices.byte(), setting::choose_backend_flows(choices)),
            32..34 => Self::Balance(setting::choose_balance(choices)),
            34 => Self::Affinity(setting::choose_affinity(choices)),
            35..37 => Self::IdleTimeout(setting::choose_idle_timeout(choices)),
            37 => Self::Responses(setting::choose_responses(choices)),
            38 => Self::Requests(setting::choose_requests(choices)),
            39..41 => Self::Upstream(setting::choose_upstream(choices)),
            41 => Self::ProxyProtocol(setting::choose_proxy_protocol(choices)),
            42..45 => Self::OnBackendDown(setting::choose_on_backend_down(choices)),
            45..47 => Self::FailOpen(choices.one_in(2)),
            47..49 => Self::Passive(setting::choose_passive(choices)),
            49..55 => Self::choose_limit(choices),
            55..57 => Self::MaxFlows(setting::choose_max_flows(choices)),
            57 => Self::MaxSlots(setting::choose_max_slots(choices)),
            58 => Self::MaxDatagramSize(setting::choose_max_datagram_size(choices)),
            59 => Self::Allow(setting::choose_mask(choices)),
            60 => Self::Deny(setting::choose_mask(choices)),
            61 => Self::OwnAddresses(setting::choose_mask(choices)),
            62 => Self::RecordFlows(choices.one_in(2)),
            _ => Self::Nothing,
        }
    }

    fn choose_limit(choices: &mut impl Choices) -> Self {
        let limits = setting::choose_some_limits(choices);
        match choices.below(8) {
            0 => Self::FlowsPerSource(limits.flows_per_source),
            1 => Self::FlowsPerSubnet(limits.flows_per_subnet),
            2 => Self::NewFlows(limits.new_flows_per_second_per_source),
            3 => Self::Datagrams(limits.datagrams_per_second_per_source),
            4 => Self::Bytes(limits.bytes_per_second_per_source),
            5 => Self::Amplification(limits.amplification),
            6 => Self::UnansweredFlows(limits.unanswered_flows),
            _ => Self::UnansweredTimeout(limits.unanswered_timeout),
        }
    }

    /// Writes the change into a configuration. The backend that comes, if one does, has the
    /// address of that number.
    pub(in crate::sim) fn apply(self, config: &mut ManagerConfig, newcomer: u16) {
        let cluster = &mut config.cluster;
        let known = cluster.backends.len();
        let mut change_backend = |index: u8, change: &dyn Fn(&mut BackendConfig)| {
            if let Some(index) = usize::from(index).checked_rem(known) {
                change(&mut cluster.backends[index]);
            }
        };
        match self {
            Self::Remove(index) => change_backend(index, &|backend| backend.removed = true),
            Self::Return(index) => change_backend(index, &|backend| backend.removed = false),
            Self::Add(new) if known < MOST_BACKENDS => cluster.backends.push(new.at(newcomer)),
            Self::Add(_) => {}
            Self::Replace(index, new) => change_backend(index, &|old| *old = new.at(newcomer)),
            Self::Shorten => drop(cluster.backends.pop()),
            Self::Weight(index, weight) => change_backend(index, &|b| b.weight = weight),
            Self::Backup(index, backup) => change_backend(index, &|b| b.backup = backup),
            Self::BackendFlows(index, flows) => change_backend(index, &|b| b.max_flows = flows),
            Self::Balance(balance) => cluster.balance = balance,
            Self::Affinity(affinity) => cluster.affinity = affinity,
            Self::IdleTimeout(timeout) => cluster.idle_timeout = timeout,
            Self::Responses(responses) => cluster.responses = responses,
            Self::Requests(requests) => cluster.requests = requests,
            Self::Source(which) => cluster.source = setting::sources()[which].clone(),
            Self::Upstream(upstream) => cluster.upstream = upstream,
            Self::ProxyProtocol(which) => cluster.send_proxy_protocol = which,
            Self::OnBackendDown(policy) => cluster.health.on_backend_down = policy,
            Self::FailOpen(fail_open) => cluster.health.fail_open = fail_open,
            Self::Passive(passive) => cluster.health.passive = passive,
            Self::FlowsPerSource(limit) => cluster.limits.flows_per_source = limit,
            Self::FlowsPerSubnet(limit) => cluster.limits.flows_per_subnet = limit,
            Self::NewFlows(limit) => cluster.limits.new_flows_per_second_per_source = limit,
            Self::Datagrams(limit) => cluster.limits.datagrams_per_second_per_source = limit,
            Self::Bytes(limit) => cluster.limits.bytes_per_second_per_source = limit,
            Self::Amplification(factor) => cluster.limits.amplification = factor,
            Self::UnansweredFlows(limit) => cluster.limits.unanswered_flows = limit,
            Self::UnansweredTimeout(timeout) => cluster.limits.unanswered_timeout = timeout,
            Self::MaxFlows(flows) => config.max_flows = flows,
            Self::MaxSlots(slots) => config.max_slots = slots,
            Self::MaxDatagramSize(size) => config.max_datagram_size = size,
            Self::Allow(mask) => config.allow = setting::networks(mask),
            Self::Deny(mask) => config.deny = setting::networks(mask),
            Self::OwnAddresses(mask) => config.own_addresses = setting::listeners(mask),
            Self::RecordFlows(record) => config.record_flows = record,
            Self::Nothing => {}
        }
    }

    /// Its kind: one of [`CHANGES`].
    pub(in crate::sim) const fn name(self) -> &'static str {
        match self {
            Self::Remove(..) => "Remove",
            Self::Return(..) => "Return",
            Self::Add(..) => "Add",
            Self::Replace(..) => "Replace",
            Self::Shorten => "Shorten",
            Self::Weight(..) => "Weight",
            Self::Backup(..) => "Backup",
            Self::BackendFlows(..) => "BackendFlows",
            Self::Balance(..) => "Balance",
            Self::Affinity(..) => "Affinity",
            Self::IdleTimeout(..) => "IdleTimeout",
            Self::Responses(..) => "Responses",
            Self::Requests(..) => "Requests",
            Self::Upstream(..) => "Upstream",
            Self::ProxyProtocol(..) => "ProxyProtocol",
            Self::OnBackendDown(..) => "OnBackendDown",
            Self::FailOpen(..) => "FailOpen",
            Self::Passive(..) => "Passive",
            Self::FlowsPerSource(..) => "FlowsPerSource",
            Self::FlowsPerSubnet(..) => "FlowsPerSubnet",
            Self::NewFlows(..) => "NewFlows",
            Self::Datagrams(..) => "Datagrams",
            Self::Bytes(..) => "Bytes",
            Self::Amplification(..) => "Amplification",
            Self::UnansweredFlows(..) => "UnansweredFlows",
            Self::UnansweredTimeout(..) => "UnansweredTimeout",
            Self::MaxFlows(..) => "MaxFlows",
            Self::MaxSlots(..) => "MaxSlots",
            Self::MaxDatagramSize(..) => "MaxDatagramSize",
            Self::Allow(..) => "Allow",
            Self::Deny(..) => "Deny",
            Self::OwnAddresses(..) => "OwnAddresses",
            Self::RecordFlows(..) => "RecordFlows",
            Self::Source(_) => "Source",
            Self::Nothing => "Nothing",
        }
    }

    /// Where a backend comes that was not there before, in a list of `known`.
    pub(in crate::sim) fn newcomer(self, known: usize) -> Option<(usize, Newcomer)> {
        match self {
            Self::Add(new) => (known < MOST_BACKENDS).then_some((known, new)),
            Self::Replace(index, new) => {
                usize::from(index).checked_rem(known).map(|index| (index, new))
            }
            _ => None,
        }
    }
}

impl Newcomer {
    fn choose(choices: &mut impl Choices) -> Self {
        Self {
            weight: setting::choose_weight(choices),
            backup: choices.one_in(4),
            max_flows: setting::choose_backend_flows(choices),
            temper: setting::choose_temper(choices),
        }
    }

    fn at(self, number: u16) -> BackendConfig {
        let [high, low] = number.to_be_bytes();
        let Self { weight, backup, max_flows, .. } = self;
        let address = ([10, 1, high, low], 53).into();
        BackendConfig { weight, backup, max_flows, ..BackendConfig::new(address) }
    }
}
