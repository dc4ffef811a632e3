//! What a configuration asks to be resolved and probed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use flowgate_config as config;
use flowgate_config::{Cluster, Config, Probing};
use flowgate_core::config::{Source, SourceAddress};
use flowgate_core::probe::ProbePolicy;
use regex::bytes::Regex;

use crate::control::discovery::DiscoverySources;
use crate::control::probe::preset::Preset;
use crate::control::probe::{ExpectedReply, ProbeMethod, ProbePayload, ProbeTarget, TargetKey};

/// The hosts whose addresses clusters need.
pub(super) fn names(config: &Config) -> BTreeSet<String> {
    config.clusters.iter().flat_map(|cluster| cluster.names().map(str::to_owned)).collect()
}

/// For how long addresses of these hosts are kept that they give no more: as long as any cluster
/// wants.
pub(super) fn holds(config: &Config) -> BTreeMap<String, Duration> {
    let mut holds = BTreeMap::new();
    for cluster in &config.clusters {
        for name in cluster.names() {
            let hold = holds.entry(name.to_owned()).or_insert(cluster.hold);
            *hold = cluster.hold.max(*hold);
        }
    }
    holds
}

/// Where clusters have backends to be found.
pub(super) fn discovery_sources(config: &Config) -> DiscoverySources {
    let from = |cluster: &Arc<Cluster>| Some((cluster.name.clone(), cluster.from.clone()?));
    config.clusters.iter().filter_map(from).collect()
}

/// The backends to probe, while hosts have the addresses that `resolve` says.
pub(super) fn probe_targets(
    config: &Config,
    resolve: impl Fn(&str) -> Vec<IpAddr>,
) -> Vec<ProbeTarget> {
    let mut targets = Vec::new();
    // Clusters that no listener uses are not worth a probe.
    for cluster in config.used_clusters() {
        let Some(probing) = &cluster.health else { continue };
        let backends = cluster.backends(&resolve);
        targets.extend(backends.iter().map(|b| target(cluster, probing, b.address)));
    }
    targets
}

fn target(cluster: &Cluster, probing: &Probing, backend: SocketAddr) -> ProbeTarget {
    let port = probing.port.unwrap_or(backend.port());
    ProbeTarget {
        key: TargetKey { cluster: cluster.name.clone(), backend },
        address: SocketAddr::new(backend.ip(), port),
        source: source(&cluster.policy.source, backend.is_ipv6()),
        probe: probe(&probing.kind),
        policy: ProbePolicy {
            interval: probing.interval,
            timeout: probing.timeout,
            rise: probing.rise,
            fall: probing.fall,
        },
    }
}

/// Where probes of backends of that family come from: the addresses of their flows, to which the ports
/// are left.
fn source(of_flows: &Source, v6: bool) -> Source {
    let without_ports = |address| SourceAddress { ports: None, ..address };
    let addresses: Vec<_> = of_flows.of_family(v6).map(without_ports).collect();
    if addresses.is_empty() { Source::Any } else { Source::Local(addresses) }
}

fn probe(kind: &config::Probe) -> ProbeMethod {
    match kind {
        config::Probe::Tcp => ProbeMethod::Tcp,
        config::Probe::Udp { send, expect } => {
            ProbeMethod::Udp { send: payload(send), expect: expectation(expect) }
        }
    }
}

fn payload(send: &config::Payload) -> ProbePayload {
    match send {
        config::Payload::Bytes(bytes) => ProbePayload::Bytes(bytes.clone()),
        config::Payload::Dns => ProbePayload::Preset(Preset::Dns),
        config::Payload::Ntp => ProbePayload::Preset(Preset::Ntp),
        config::Payload::Sip => ProbePayload::Preset(Preset::Sip),
        config::Payload::Quic => ProbePayload::Preset(Preset::Quic),
    }
}

fn expectation(expect: &config::Expect) -> ExpectedReply {
    match expect {
        config::Expect::Any => ExpectedReply::Any,
        config::Expect::Bytes(bytes) => ExpectedReply::Begins(bytes.clone()),
        // The configuration holds none that is not valid.
        config::Expect::Regex(pattern) => {
            Regex::new(pattern).map_or(ExpectedReply::Any, ExpectedReply::Regex)
        }
    }
}
