//! `[cluster.NAME]`.

mod affinity;
mod from;
mod health;
mod members;
mod mode;
mod source;
mod upstream;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use flowgate_core::config::{
    Affinity, Balance, ClusterConfig, Failback, HealthPolicy, Limits, OnBackendDown,
    SendProxyProtocol, Source,
};

use toml::de::DeValue;

use crate::cluster::{Cluster, backends};
use crate::error::Fault;
use crate::keys::without_keys;
use crate::nearest::nearest;
use crate::reader::{Item, Table};
use crate::value::{choice, count, duration, is_name, size, text};
use health::Health;
use mode::Modes;
use source::transparent;
use upstream::Upstreams;

pub(super) const TABLES: &str = "[cluster.NAME] tables";

/// How long a flow may be silent. The most is beyond what any network device remembers.
const IDLE: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(30 * 24 * 60 * 60);

/// For how long nobody else may get what comes for a flow that has ended.
const QUARANTINE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60 * 60);
const HOLD: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 60 * 60);

/// What of each client's flow to each backend would have to be counted together.
const NOT_IN_A_RACE: &str = "0 beside reply_from = \"first\"";

/// How many names a message lists.
const NAMES_SHOWN: usize = 8;

/// What is known of all clusters before any of them is read.
struct Known {
    /// Their names, in the order of the text.
    names: Vec<String>,
    /// The names of those that are to send from their clients' addresses.
    transparent: Vec<String>,
}

/// The clusters of a document, for listeners to name.
#[derive(Default)]
pub(super) struct Clusters {
    names: Vec<String>,
    /// None: there is such a cluster, and it has been refused.
    by_name: HashMap<String, Option<Arc<Cluster>>>,
}

impl Clusters {
    pub(super) fn read(item: &Item<'_>) -> Option<Self> {
        let mut clusters = Self { names: names_of(item), by_name: HashMap::new() };
        let known = Known { names: clusters.names.clone(), transparent: transparent(item) };
        item.entries(TABLES, |name, item| {
            if !is_name(name) {
                item.refuse::<()>("a [cluster.NAME] of 1 to 255 bytes");
            }
            let cluster =
                item.table("a [cluster.NAME] table", |table| cluster(name, table, item, &known));
            clusters.by_name.insert(name.to_owned(), cluster.map(Arc::new));
        });
        Some(clusters)
    }

    /// The cluster that an item names.
    pub(super) fn named(&self, item: &Item<'_>) -> Option<Arc<Cluster>> {
        let name = text(item).unwrap_or_default();
        if let Some(cluster) = self.by_name.get(name) {
            return cluster.clone();
        }
        let shown = self.names.iter().take(NAMES_SHOWN).map(|name| format!("{name:?}"));
        let mut shown = shown.collect::<Vec<_>>().join(", ");
        match self.names.len().saturating_sub(NAMES_SHOWN) {
            _ if self.names.is_empty() => shown.push_str("the NAME of a [cluster.NAME] table"),
            0 => {}
            more => shown.push_str(&format!(" and {more} more")),
        }
        item.refuse_name(shown, nearest(name, self.names.iter().map(String::as_str)))
    }

    /// The cluster of this name, unless it has been refused.
    pub(super) fn get(&self, name: &str) -> Option<&Cluster> {
        self.by_name.get(name)?.as_deref()
    }

    /// All of them in the order of the text.
    pub(super) fn in_order(mut self) -> Option<Vec<Arc<Cluster>>> {
        self.names.iter().map(|name| self.by_name.remove(name).flatten()).collect()
    }
}

/// The names of all clusters, in the order of the text.
fn names_of(item: &Item<'_>) -> Vec<String> {
    let mut names = Vec::new();
    if let Some(DeValue::Table(_)) = item.value() {
        item.entries(TABLES, |name, _| names.push(name.to_owned()));
    }
    names
}

fn cluster(name: &str, table: &Table<'_>, item: &Item<'_>, known: &Known) -> Option<Cluster> {
    let modes = Modes::read(table, name, known);
    let balance = modes.fit_balance(table.get("balance", choice(BALANCE))).or(Balance::Rendezvous);
    let affinity = table.get("affinity", affinity::affinity);
    let quic_lb = affinity::quic_lb(table, affinity.value.unwrap_or(Affinity::SourceIp));
    let idle_timeout = table.get("idle_timeout", duration(IDLE));
    let upstreams = Upstreams::read(table, &modes);
    let retry = upstream::retry(table, upstreams.are_named());
    let usual = upstreams.usual_responses();
    let responses = modes.fit(table.get("responses", count), 0, "0").or(usual);
    let requests = modes.fit(table.get("requests", count), 0, "0");
    let requests = requests.when(|n| !modes.is_race() || *n == 0, NOT_IN_A_RACE).or(0);
    let send_proxy_protocol = table.get("send_proxy_protocol", choice(SEND_PROXY_PROTOCOL));
    let send_proxy_protocol = modes.fit_proxy(send_proxy_protocol).or(SendProxyProtocol::Off);
    let upstream_quarantine = table.get("upstream_quarantine", duration(QUARANTINE));
    let source = table.get("source", source::source);
    let source = source::fit(source, &modes, upstreams.asked_for(), requests);
    let have_ends = responses > 0 || requests > 0;
    let upstreams = upstreams.finish(&modes, source.value.as_ref(), have_ends);
    let on_backend_down = table.get("on_backend_down", choice(ON_BACKEND_DOWN));
    let failback = table.get("failback", choice(FAILBACK));
    modes.warn_of_no_effect(&[
        &idle_timeout.item,
        &on_backend_down.item,
        &failback.item,
        &upstream_quarantine.item,
    ]);
    let idle_timeout = idle_timeout.or(Duration::from_secs(60));
    let on_backend_down = on_backend_down.or(OnBackendDown::Rehash);
    let failback = failback.or(Failback::NewFlows);
    let health = table.section("health", |table| health::health(table, modes.has_flows()));
    let limits = table.section("limits", |table| limits(table, &modes));
    let hold = table.get("hold", duration(HOLD)).or(Duration::from_secs(10));
    let from = table.get("backends_from", from::backends_from);
    let list = |item: &Item<'_>| members::members(item, &modes);
    let members = match from.item.value() {
        // What may be absent beside another key is not required.
        None if !item.is_described() => table.require("backends", list),
        _ => table.get("backends", list),
    };
    if modes.is_direct() {
        affinity::check_direct(&affinity, quic_lb.as_deref());
    }
    affinity::check(&affinity, balance, members.value.as_deref());
    if let (Some(all), Some(specs)) = (&members.value, &quic_lb) {
        affinity::check_lengths(&members.item, all, specs);
    }
    if members.is_refused() || from.is_refused() {
        return None;
    }
    let mut members = members.value.or_else(|| from.value.is_some().then(Vec::new))?;
    let (affinity, quic_lb) = (affinity.or(Affinity::SourceIp), quic_lb?);
    let source = source::finish(source, &members);
    let is_direct = modes.is_direct();
    let source = if is_direct { source.map(|_| Source::Client) } else { source };
    let (mode, mirror) = modes.finish(&mut members)?;
    if members.is_empty() && from.value.is_none() {
        item.warn(Fault::NoBackends);
    }
    let Health { probing, fail_open, passive } = health?;
    let (upstream, transactions) = upstreams?;
    let limits = limits?;
    let upstream_quarantine = upstream_quarantine.or(Duration::from_secs(1));
    let timeout = match limits.unanswered_timeout {
        Duration::ZERO => idle_timeout,
        unanswered => unanswered.min(idle_timeout),
    };
    let retry = upstream::fit_retry(retry, timeout, upstream_quarantine);
    let policy = ClusterConfig {
        mode,
        balance,
        affinity,
        idle_timeout,
        responses,
        requests,
        send_proxy_protocol,
        upstream,
        transactions,
        upstream_quarantine,
        retry,
        source: source?,
        health: HealthPolicy { on_backend_down, failback, fail_open, passive },
        limits,
        quic_lb: without_keys(&quic_lb),
        backends: backends(&members, |_| Vec::new()),
    };
    Some(Cluster {
        name: name.to_owned(),
        members,
        from: from.value,
        hold,
        health: probing,
        is_direct,
        mirror,
        quic_lb,
        policy,
    })
}

const BALANCE: &[(&str, Balance)] = &[
    (Balance::RoundRobin.as_str(), Balance::RoundRobin),
    (Balance::Random.as_str(), Balance::Random),
    (Balance::LeastFlows.as_str(), Balance::LeastFlows),
    (Balance::PowerOfTwo.as_str(), Balance::PowerOfTwo),
    (Balance::Rendezvous.as_str(), Balance::Rendezvous),
    (Balance::Maglev.as_str(), Balance::Maglev),
];

const SEND_PROXY_PROTOCOL: &[(&str, SendProxyProtocol)] = &[
    ("off", SendProxyProtocol::Off),
    ("first", SendProxyProtocol::First),
    ("every", SendProxyProtocol::Every),
];

const ON_BACKEND_DOWN: &[(&str, OnBackendDown)] = &[
    ("pin", OnBackendDown::Pin),
    ("rehash", OnBackendDown::Rehash),
    ("close", OnBackendDown::Close),
];

const FAILBACK: &[(&str, Failback)] = &[("new-flows", Failback::NewFlows), ("all", Failback::All)];

fn limits(table: &Table<'_>, modes: &Modes<'_>) -> Option<Limits> {
    let limit = |key| modes.fit(table.get(key, count), 0, "0");
    Some(Limits {
        flows_per_source: limit("flows_per_source").or(0),
        flows_per_subnet: limit("flows_per_subnet").or(0),
        new_flows_per_second_per_source: limit("new_flows_per_second_per_source").or(0),
        datagrams_per_second_per_source: table.get("datagrams_per_second_per_source", count).or(0),
        bytes_per_second_per_source: table
            .get("bytes_per_second_per_source", size(ByteSize::b(0)..=ByteSize::tib(1)))
            .or(0) as u64,
        amplification: limit("amplification")
            .when(|n| !modes.is_race() || *n == 0, NOT_IN_A_RACE)
            .or(0),
        unanswered_flows: limit("unanswered_flows").or(0),
        unanswered_timeout: modes
            .fit(
                table.get("unanswered_timeout", duration(Duration::ZERO..=*IDLE.end())),
                Duration::ZERO,
                "\"0s\"",
            )
            .or(Duration::ZERO),
    })
}
