//! `[cluster.NAME]`.

mod health;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use flowgate_core::config::{
    Affinity, BackendConfig, Balance, ClusterConfig, Limits, SendProxyProtocol,
};
use toml::de::DeValue;

use crate::Cluster;
use crate::error::Fault;
use crate::nearest::nearest;
use crate::reader::{Claims, Item, Table};
use crate::value::{boolean, choice, count, duration, is_name, off_or, server_address, text, word};

pub(super) const TABLES: &str = "[cluster.NAME] tables";

const BACKENDS: &str = "a list of backends, such as [\"10.0.0.1:53\"]";

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
            let policy = item.table("a [cluster.NAME] table", |table| policy(table, item));
            let cluster = policy.map(|policy| Arc::new(Cluster { name: name.to_owned(), policy }));
            clusters.names.push(name.to_owned());
            clusters.by_name.insert(name.to_owned(), cluster);
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

fn policy(table: &Table<'_>, item: &Item<'_>) -> Option<ClusterConfig> {
    let balance = table.get("balance", choice(BALANCE)).or(Balance::Rendezvous);
    let affinity = table.get("affinity", choice(AFFINITY)).or(Affinity::SourceIp);
    let idle_timeout = table.get("idle_timeout", duration(IDLE)).or(Duration::from_secs(60));
    let responses = table.get("responses", count).or(0);
    let requests = table.get("requests", count).or(0);
    let send_proxy_protocol =
        table.get("send_proxy_protocol", choice(SEND_PROXY_PROTOCOL)).or(SendProxyProtocol::Off);
    let upstream_reuse = table.get("upstream_reuse", off_or(duration(REST))).or(None);
    table.get("mode", word(&["session", "one-way", "fan-out"])).only("session");
    table.get("on_backend_down", word(&["pin", "rehash", "close"])).only("pin");
    table.section("health", health::health);
    let limits = table.section("limits", limits);
    let backends = table.require("backends", backends).value?;
    if backends.is_empty() {
        item.warn(Fault::NoBackends);
    }
    Some(ClusterConfig {
        balance,
        affinity,
        idle_timeout,
        responses,
        requests,
        send_proxy_protocol,
        upstream_reuse,
        limits: limits?,
        backends,
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

const AFFINITY: &[(&str, Affinity)] =
    &[("source-ip", Affinity::SourceIp), ("source-ip-port", Affinity::SourceIpPort)];

const SEND_PROXY_PROTOCOL: &[(&str, SendProxyProtocol)] = &[
    ("off", SendProxyProtocol::Off),
    ("first", SendProxyProtocol::First),
    ("every", SendProxyProtocol::Every),
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

fn backends(item: &Item<'_>) -> Option<Vec<BackendConfig>> {
    let mut taken = Claims::new();
    item.list(BACKENDS, |item| backend(item, &mut taken))
}

/// A backend is a table, or its address alone.
fn backend(item: &Item<'_>, taken: &mut Claims<SocketAddr>) -> Option<BackendConfig> {
    let mut address = |item: &Item<'_>| {
        let address = server_address(item)?;
        taken
            .claim(address, item, "a backend that the cluster does not have yet")
            .then_some(address)
    };
    let Some(DeValue::Table(_)) = item.value() else {
        return address(item).map(BackendConfig::new);
    };
    item.table("a backend", |table| {
        let address = table.require("address", address).value;
        let weight = table.get("weight", count).or(1);
        let backup = table.get("backup", boolean).or(false);
        let max_flows = table.get("max_flows", count).or(0);
        Some(BackendConfig { address: address?, weight, backup, max_flows })
    })
}
