//! `[cluster.NAME]`.

mod health;
mod members;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use flowgate_core::config::{
    Affinity, Balance, ClusterConfig, HealthPolicy, Limits, OnBackendDown, SendProxyProtocol,
};

use crate::cluster::{Cluster, backends};
use crate::error::Fault;
use crate::nearest::nearest;
use crate::reader::{Item, Table};
use crate::value::{choice, count, duration, is_name, off_or, text, word};
use health::Health;

pub(super) const TABLES: &str = "[cluster.NAME] tables";

/// How long a flow may be silent. The most is beyond what any network device remembers.
const IDLE: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(30 * 24 * 60 * 60);

/// How long a finished flow's socket may have to rest. Less than any server's answer takes would be
/// no rest at all.
const REST: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60 * 60);

/// How many names a message lists.
const NAMES_SHOWN: usize = 8;

/// The clusters of a document, for listeners to name.
#[derive(Default)]
pub(super) struct Clusters {
    names: Vec<String>,
    /// None: there is such a cluster, and it has been refused.
    by_name: HashMap<String, Option<Arc<Cluster>>>,
}

impl Clusters {
    pub(super) fn read(item: &Item<'_>) -> Option<Self> {
        let mut clusters = Self::default();
        item.entries(TABLES, |name, item| {
            if !is_name(name) {
                item.refuse::<()>("a [cluster.NAME] of 1 to 255 bytes");
            }
            let cluster = item.table("a [cluster.NAME] table", |table| cluster(name, table, item));
            clusters.names.push(name.to_owned());
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

    /// All of them in the order of the text.
    pub(super) fn in_order(mut self) -> Option<Vec<Arc<Cluster>>> {
        self.names.iter().map(|name| self.by_name.remove(name).flatten()).collect()
    }
}

fn cluster(name: &str, table: &Table<'_>, item: &Item<'_>) -> Option<Cluster> {
    let balance = table.get("balance", choice(BALANCE)).or(Balance::Rendezvous);
    let affinity = table.get("affinity", choice(AFFINITY)).or(Affinity::SourceIp);
    let idle_timeout = table.get("idle_timeout", duration(IDLE)).or(Duration::from_secs(60));
    let responses = table.get("responses", count).or(0);
    let requests = table.get("requests", count).or(0);
    let send_proxy_protocol =
        table.get("send_proxy_protocol", choice(SEND_PROXY_PROTOCOL)).or(SendProxyProtocol::Off);
    let upstream_reuse = table.get("upstream_reuse", off_or(duration(REST))).or(None);
    table.get("mode", word(&["session", "one-way", "fan-out"])).only("session");
    let on_backend_down =
        table.get("on_backend_down", choice(ON_BACKEND_DOWN)).or(OnBackendDown::Rehash);
    let health = table.section("health", health::health);
    let limits = table.section("limits", limits);
    let members = table.require("backends", members::members).value?;
    if members.is_empty() {
        item.warn(Fault::NoBackends);
    }
    let Health { probing, fail_open, passive } = health?;
    let policy = ClusterConfig {
        balance,
        affinity,
        idle_timeout,
        responses,
        requests,
        send_proxy_protocol,
        upstream_reuse,
        health: HealthPolicy { on_backend_down, fail_open, passive },
        limits: limits?,
        backends: backends(&members, |_| Vec::new()),
    };
    Some(Cluster { name: name.to_owned(), members, health: probing, policy })
}

const BALANCE: &[(&str, Balance)] = &[
    (Balance::RoundRobin.as_str(), Balance::RoundRobin),
    (Balance::Random.as_str(), Balance::Random),
    (Balance::LeastFlows.as_str(), Balance::LeastFlows),
    (Balance::PowerOfTwo.as_str(), Balance::PowerOfTwo),
    (Balance::Rendezvous.as_str(), Balance::Rendezvous),
    (Balance::Maglev.as_str(), Balance::Maglev),
];

const AFFINITY: &[(&str, Affinity)] =
    &[("source-ip", Affinity::SourceIp), ("source-ip-port", Affinity::SourceIpPort)];

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

fn limits(table: &Table<'_>) -> Option<Limits> {
    Some(Limits {
        flows_per_source: table.get("flows_per_source", count).or(0),
        flows_per_subnet: table.get("flows_per_subnet", count).or(0),
        new_flows_per_second_per_source: table.get("new_flows_per_second_per_source", count).or(0),
        amplification: table.get("amplification", count).or(0),
        unanswered_flows: table.get("unanswered_flows", count).or(0),
        unanswered_timeout: table
            .get("unanswered_timeout", duration(Duration::ZERO..=*IDLE.end()))
            .or(Duration::ZERO),
    })
}
