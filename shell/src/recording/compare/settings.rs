//! Every setting of a configuration, by its key and as it is written in a file.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use flowgate_config::{
    Admin, Announce, AnnounceBy, BackendsFrom, Cluster, Config, Expect, FlowLog, Listener, Log,
    LogFormat, LogLevel, Member, Payload, Place, Probe, Probing, QuicLbSpec, Workers, hex,
};
use flowgate_core::config::{
    Accept, Affinity, ClusterConfig, Failback, HealthPolicy, Limits, Mode, OnBackendDown, Passive,
    ReplyFrom, Retry, SendProxyProtocol, Source, Transactions,
};
use ipnet::IpNet;

use super::SettingChange;
use crate::control::source::describe;

/// The settings that differ.
pub(super) fn settings(old: &Config, new: &Config) -> Vec<SettingChange> {
    let (Settings(old), Settings(new)) = (Settings::of(old), Settings::of(new));
    let mut changes = Vec::new();
    for (key, before) in &old {
        if new.get(key) != Some(before) {
            let new = new.get(key).cloned();
            changes.push(SettingChange { key: key.clone(), old: Some(before.clone()), new });
        }
    }
    for (key, after) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
        changes.push(SettingChange { key: key.clone(), old: None, new: Some(after.clone()) });
    }
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    changes
}

/// Settings by their keys.
#[derive(Default)]
struct Settings(BTreeMap<String, String>);

impl Settings {
    fn of(config: &Config) -> Self {
        let mut all = Self::default();
        let Config {
            workers,
            drain_timeout,
            lame_duck,
            announce,
            admin: Admin { socket, http },
            log: Log { level, format, flows },
            listeners,
            clusters,
            warnings: _,
        } = config;
        let workers = match workers {
            Workers::Auto => "auto".to_owned(),
            Workers::Count(count) => count.to_string(),
        };
        all.note("workers", workers);
        all.note("drain_timeout", span(*drain_timeout));
        all.note("lame_duck", span(*lame_duck));
        if let Some(announce) = announce {
            all.announce("announce", announce);
        }
        let socket = socket.as_deref().map_or("(default)".into(), |path| path.to_string_lossy());
        all.note("admin.socket", socket);
        all.note("admin.http", http.map_or("off".to_owned(), |address| address.to_string()));
        let level = match level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        };
        all.note("log.level", level);
        let format = match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        all.note("log.format", format);
        let flows = match flows {
            FlowLog::Off => "off".into(),
            FlowLog::Stderr => "stderr".into(),
            FlowLog::File(path) => path.to_string_lossy(),
        };
        all.note("log.flows", flows);
        listeners.iter().for_each(|listener| all.listener(listener));
        clusters.iter().for_each(|cluster| all.cluster(cluster));
        all
    }

    fn note(&mut self, key: impl Into<String>, value: impl Display) {
        self.0.insert(key.into(), value.to_string());
    }

    fn announce(&mut self, table: &str, announce: &Announce) {
        let Announce { min_backends_up, rise, fall, interval, by } = announce;
        let key = |key: &str| format!("{table}.{key}");
        self.note(key("min_backends_up"), min_backends_up);
        self.note(key("rise"), rise);
        self.note(key("fall"), fall);
        self.note(key("interval"), span(*interval));
        match by {
            AnnounceBy::Command(words) => self.note(key("command"), words.join(" ")),
            AnnounceBy::Bird { socket, protocol } => {
                self.note(key("bird.socket"), socket.display());
                self.note(key("bird.protocol"), protocol);
            }
            AnnounceBy::ExaBgp { routes, next_hop } => {
                self.note(key("exabgp.routes"), networks(routes));
                self.note(key("exabgp.next_hop"), next_hop);
            }
        }
    }

    fn listener(&mut self, listener: &Listener) {
        let Listener {
            name,
            address: _,
            interface,
            last_port: _,
            same_port,
            v6_only,
            cluster,
            routes,
            routed_from,
            max_flows,
            max_datagram_size,
            receive_buffer,
            send_buffer,
            dont_fragment,
            accept_proxy_protocol,
            accept,
            fast_path,
            allow,
            deny,
            announce,
        } = listener;
        if routed_from.is_some() {
            // It is no table of the file: all that it has is that of the listener with the route.
            return;
        }
        let key = |key: &str| format!("listener.{name}.{key}");
        self.note(key("address"), listener.written_address());
        self.note(key("backend_port"), if *same_port { "same" } else { "own" });
        self.note(key("interface"), interface.as_deref().unwrap_or("any"));
        self.note(key("v6_only"), v6_only);
        self.note(key("cluster"), &cluster.name);
        // Two routes may be to one cluster, and which is the first may count.
        for (index, (from, cluster)) in routes.iter().enumerate() {
            let index = index + 1;
            self.note(key(&format!("route.{index}")), format!("{} -> {cluster}", networks(from)));
        }
        self.note(key("max_flows"), max_flows.map_or(0, |flows| flows.get()));
        self.note(key("max_datagram_size"), max_datagram_size);
        self.note(key("receive_buffer"), receive_buffer);
        self.note(key("send_buffer"), send_buffer);
        self.note(key("dont_fragment"), dont_fragment);
        self.note(key("accept_proxy_protocol"), networks(accept_proxy_protocol));
        let accept = match accept {
            Accept::Shared => "shared",
            Accept::Connected => "connected",
            Accept::Confirmed => "confirmed",
        };
        self.note(key("accept"), accept);
        self.note(key("fast_path"), fast_path.as_str());
        self.note(key("allow"), networks(allow));
        self.note(key("deny"), networks(deny));
        if let Some(announce) = announce {
            self.announce(&key("announce"), announce);
        }
    }

    fn cluster(&mut self, cluster: &Cluster) {
        let Cluster { name, members, from, hold, health, is_direct, mirror, quic_lb, policy } =
            cluster;
        let key = |key: &str| format!("cluster.{name}.{key}");
        for member in members {
            self.note(key(&format!("backends.{}", member.target)), described(member));
        }
        if let Some(BackendsFrom { place, allow_empty }) = from {
            let (kind, place, interval) = match place {
                Place::File(path) => ("file", path.to_string_lossy(), None),
                Place::Http { url, interval } => ("http", url.into(), Some(*interval)),
                Place::Srv(name) => ("srv", name.into(), None),
            };
            self.note(key(&format!("backends_from.{kind}")), place);
            self.note(key("backends_from.allow_empty"), allow_empty);
            if let Some(interval) = interval {
                self.note(key("backends_from.interval"), span(interval));
            }
        }
        self.note(key("hold"), span(*hold));
        match health {
            None => self.note(key("health.probe"), "off"),
            Some(probing) => self.probing(name, probing),
        }
        self.note(key("return"), if *is_direct { "direct" } else { "nat" });
        if let Some(mirror) = mirror {
            self.note(key("mirror.cluster"), mirror);
        }
        for QuicLbSpec { config, key: from } in quic_lb {
            let file = from.as_ref().map_or("none".into(), |key| key.path.to_string_lossy());
            let (id, nonce) = (config.server_id_length(), config.nonce_length());
            self.note(
                key(&format!("quic_lb.{}", config.rotation())),
                format!("server_id_length {id}, nonce_length {nonce}, key_file {file}"),
            );
        }
        self.policy(name, policy);
    }

    fn probing(&mut self, cluster: &str, probing: &Probing) {
        let Probing { kind, port, interval, timeout, rise, fall } = probing;
        let key = |key: &str| format!("cluster.{cluster}.health.{key}");
        match kind {
            Probe::Tcp => self.note(key("probe"), "tcp"),
            Probe::Udp { send, expect } => {
                self.note(key("probe"), "udp");
                let send = match send {
                    Payload::Bytes(bytes) => format!("hex:{}", hex::encode(bytes)),
                    Payload::Dns => "dns".to_owned(),
                    Payload::Ntp => "ntp".to_owned(),
                    Payload::Sip => "sip".to_owned(),
                    Payload::Quic => "quic".to_owned(),
                };
                self.note(key("send"), send);
                let expect = match expect {
                    Expect::Any => "any".to_owned(),
                    Expect::Bytes(bytes) => format!("hex:{}", hex::encode(bytes)),
                    Expect::Regex(pattern) => format!("regex:{pattern}"),
                };
                self.note(key("expect"), expect);
            }
        }
        let port = port.map_or("that of the backend".to_owned(), |port| port.to_string());
        self.note(key("port"), port);
        self.note(key("interval"), span(*interval));
        self.note(key("timeout"), span(*timeout));
        self.note(key("rise"), rise);
        self.note(key("fall"), fall);
    }

    fn policy(&mut self, cluster: &str, policy: &ClusterConfig) {
        let ClusterConfig {
            mode,
            balance,
            affinity,
            idle_timeout,
            responses,
            requests,
            send_proxy_protocol,
            upstream,
            transactions,
            retry,
            upstream_quarantine,
            source,
            health,
            limits,
            // Told as the file has them.
            quic_lb: _,
            backends: _,
        } = policy;
        let key = |key: &str| format!("cluster.{cluster}.{key}");
        self.note(key("mode"), mode.as_str());
        match mode {
            Mode::Session { mirrored_per_million: 0 } | Mode::OneWay => {}
            Mode::Session { mirrored_per_million } => {
                let percent = f64::from(*mirrored_per_million) / 1e4;
                self.note(key("mirror.percent"), percent);
            }
            Mode::FanOut { reply_from } => {
                let reply_from = match reply_from {
                    ReplyFrom::Nobody => "none",
                    ReplyFrom::Chosen => "a backend",
                    ReplyFrom::First => "first",
                };
                self.note(key("reply_from"), reply_from);
            }
        }
        self.note(key("balance"), balance);
        self.note(key("affinity"), by(*affinity));
        self.note(key("idle_timeout"), span(*idle_timeout));
        self.note(key("responses"), responses);
        self.note(key("requests"), requests);
        let send_proxy_protocol = match send_proxy_protocol {
            SendProxyProtocol::Off => "off",
            SendProxyProtocol::First => "first",
            SendProxyProtocol::Every => "every",
        };
        self.note(key("send_proxy_protocol"), send_proxy_protocol);
        self.note(key("upstream"), upstream.as_str());
        self.note(key("transactions"), transactions.map_or("off".to_owned(), questions));
        let of_retry = |Retry { after, times }: Retry| {
            format!("{{ after = {}, times = {times} }}", span(after))
        };
        self.note(key("retry"), retry.map_or("off".to_owned(), of_retry));
        self.note(key("upstream_quarantine"), span(*upstream_quarantine));
        self.note(key("source"), from(source));
        let HealthPolicy { on_backend_down, failback, fail_open, passive } = health;
        let on_backend_down = match on_backend_down {
            OnBackendDown::Pin => "pin",
            OnBackendDown::Rehash => "rehash",
            OnBackendDown::Close => "close",
        };
        self.note(key("on_backend_down"), on_backend_down);
        let failback = match failback {
            Failback::NewFlows => "new-flows",
            Failback::All => "all",
        };
        self.note(key("failback"), failback);
        self.note(key("health.fail_open"), fail_open);
        self.note(key("health.passive"), passive.is_some());
        if let Some(Passive { silent_flows, back_off }) = passive {
            // Where nothing probes, these say what they are for.
            self.note(key("health.fall"), silent_flows);
            self.note(key("health.interval"), span(*back_off));
        }
        self.limits(cluster, limits);
    }

    fn limits(&mut self, cluster: &str, limits: &Limits) {
        let Limits {
            flows_per_source,
            flows_per_subnet,
            new_flows_per_second_per_source,
            datagrams_per_second_per_source,
            bytes_per_second_per_source,
            amplification,
            unanswered_flows,
            unanswered_timeout,
        } = limits;
        let key = |key: &str| format!("cluster.{cluster}.limits.{key}");
        self.note(key("flows_per_source"), flows_per_source);
        self.note(key("flows_per_subnet"), flows_per_subnet);
        self.note(key("new_flows_per_second_per_source"), new_flows_per_second_per_source);
        self.note(key("datagrams_per_second_per_source"), datagrams_per_second_per_source);
        self.note(key("bytes_per_second_per_source"), bytes_per_second_per_source);
        self.note(key("amplification"), amplification);
        self.note(key("unanswered_flows"), unanswered_flows);
        self.note(key("unanswered_timeout"), span(*unanswered_timeout));
    }
}

fn described(member: &Member) -> String {
    let Member { target: _, weight, backup, max_flows, answers, server_id } = member;
    let mut value = format!("weight {weight}");
    if *backup {
        value += ", backup";
    }
    if *max_flows > 0 {
        value += &format!(", max_flows {max_flows}");
    }
    if !answers {
        value += ", gets copies only";
    }
    if let Some(id) = server_id {
        value += &format!(", server_id {id}");
    }
    value
}

fn span(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn networks(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn by(affinity: Affinity) -> String {
    match affinity {
        Affinity::SourceIp => "source-ip".to_owned(),
        Affinity::SourceIpPort => "source-ip-port".to_owned(),
        Affinity::Host => "host".to_owned(),
        Affinity::Quic => "quic".to_owned(),
        Affinity::WireGuard => "wireguard".to_owned(),
        Affinity::SipCallId => "sip-call-id".to_owned(),
        Affinity::DtlsCid { length } => format!("{{ dtls-cid = {length} }}"),
        Affinity::Offset { offset, length } => {
            format!("{{ offset = {offset}, length = {length} }}")
        }
    }
}

fn questions(transactions: Transactions) -> String {
    match transactions {
        Transactions::Dns => "dns".to_owned(),
        Transactions::Ntp => "ntp".to_owned(),
        Transactions::Stun => "stun".to_owned(),
        Transactions::Sip => "sip".to_owned(),
        Transactions::Pattern { request_offset, answer_offset, length } => format!(
            "{{ request = [{request_offset}, {length}], answer = [{answer_offset}, {length}] }}"
        ),
    }
}

fn from(source: &Source) -> String {
    match source {
        Source::Any => "(the kernel chooses)".to_owned(),
        Source::Client | Source::Local(_) => describe(source),
    }
}
