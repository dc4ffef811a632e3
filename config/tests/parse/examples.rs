//! Whole files: every key set, and every key left out.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use flowgate_config::{
    Admin, Cluster, Expect, FastPathMode, FlowLog, Listener, Log, LogFormat, LogLevel, Member,
    Payload, Probe, Probing, Target, Workers,
};
use flowgate_core::config::{
    Accept, Affinity, BackendConfig, Balance, ClusterConfig, Failback, HealthPolicy, Limits,
    ManagerConfig, Mode, OnBackendDown, OwnAddress, Passive, PortRange, SendProxyProtocol, Source,
    SourceAddress, UpstreamMode,
};
use ipnet::IpNet;

use crate::{MINIMAL, address, valid};

pub(crate) const DEFAULTS: &str = r#"
workers = 1
drain_timeout = "30s"

[admin]

[log]
level = "info"
format = "text"
flows = "off"

[[listener]]
name = "0.0.0.0:53"
address = "0.0.0.0:53"
v6_only = false
cluster = "resolvers"
max_flows = 0
max_datagram_size = 65507
receive_buffer = "4MiB"
send_buffer = "4MiB"
dont_fragment = false
accept_proxy_protocol = []
fast_path = "off"
allow = []
deny = []

[cluster.resolvers]
balance = "rendezvous"
affinity = "source-ip"
mode = "session"
idle_timeout = "60s"
responses = 0
requests = 0
send_proxy_protocol = "off"
upstream = "per-flow"
upstream_quarantine = "1s"
on_backend_down = "rehash"
backends = [{ address = "10.0.0.1:53", weight = 1, backup = false, max_flows = 0 }]

[cluster.resolvers.health]
probe = "off"
interval = "5s"
fall = 3
fail_open = true
passive = true

[cluster.resolvers.limits]
flows_per_source = 0
flows_per_subnet = 0
new_flows_per_second_per_source = 0
datagrams_per_second_per_source = 0
bytes_per_second_per_source = "0"
amplification = 0
unanswered_flows = 0
unanswered_timeout = "0s"
"#;

pub(crate) const FULL: &str = r#"
workers = "auto"
drain_timeout = "1m 30s"

[admin]
socket = "/run/flowgate/control.sock"
http = "127.0.0.1:9464"

[log]
level = "debug"
format = "json"
flows = "/var/log/flowgate/flows.json"

[[listener]]
name = "dns"
address = "[::]:53"
interface = "eth0"
v6_only = true
cluster = "resolvers"
max_flows = 20_000
max_datagram_size = 1472
receive_buffer = "8MiB"
send_buffer = 1048576
dont_fragment = true
accept_proxy_protocol = ["fd00::/8", "2001:db8::7"]
fast_path = "auto"
allow = ["10.0.0.0/8", "2001:db8::/32"]
deny = ["10.1.2.3"]

[[listener]]
address = "0.0.0.0:53"
cluster = "games"

[cluster.resolvers]
balance = "maglev"
affinity = "source-ip-port"
idle_timeout = "1500ms"
responses = 1
requests = 2
send_proxy_protocol = "every"
upstream = "shared"
upstream_quarantine = "250ms"
source = "0.0.0.0:20000-20999"
on_backend_down = "close"
backends = [
  "10.0.0.1:53",
  { address = "[2001:db8::2]:53", weight = 7, backup = true, max_flows = 900 },
  { address = "resolver.internal:5353", weight = 3 },
]

[cluster.resolvers.health]
probe = "udp"
port = 5300
send = "hex:00ffAB"
expect = "regex:^PONG"
interval = "10s"
timeout = "500ms"
rise = 4
fall = 6
fail_open = false
passive = true

[cluster.resolvers.limits]
flows_per_source = 100
flows_per_subnet = 1000
new_flows_per_second_per_source = 50
datagrams_per_second_per_source = 20_000
bytes_per_second_per_source = "64KiB"
amplification = 3
unanswered_flows = 5000
unanswered_timeout = "2s"

[cluster.games]
balance = "least-flows"
backends = [{ address = "10.0.0.3:27015" }]
"#;

fn network(text: &str) -> IpNet {
    text.parse().expect("a network")
}

#[test]
fn a_full_example_sets_every_supported_key() {
    let config = valid(FULL);
    let member = |target, weight, backup, max_flows| Member {
        server_id: None,
        target,
        weight,
        backup,
        max_flows,
        answers: true,
    };
    let resolvers = Arc::new(Cluster {
        quic_lb: Vec::new(),
        name: "resolvers".into(),
        from: None,
        hold: Duration::from_secs(10),
        members: vec![
            member(Target::Address(address("10.0.0.1:53")), 1, false, 0),
            member(Target::Address(address("[2001:db8::2]:53")), 7, true, 900),
            member(Target::Name { host: "resolver.internal".into(), port: 5353 }, 3, false, 0),
        ],
        health: Some(Probing {
            kind: Probe::Udp {
                send: Payload::Bytes(vec![0x00, 0xff, 0xab]),
                expect: Expect::Regex("^PONG".into()),
            },
            port: Some(5300),
            interval: Duration::from_secs(10),
            timeout: Duration::from_millis(500),
            rise: 4,
            fall: 6,
        }),
        is_direct: false,
        mirror: None,
        policy: ClusterConfig {
            quic_lb: flowgate_core::config::QuicLb::default(),
            mode: Mode::SESSION,
            balance: Balance::Maglev,
            affinity: Affinity::SourceIpPort,
            idle_timeout: Duration::from_millis(1500),
            responses: 1,
            requests: 2,
            send_proxy_protocol: SendProxyProtocol::Every,
            upstream: UpstreamMode::Shared,
            transactions: None,
            retry: None,
            upstream_quarantine: Duration::from_millis(250),
            source: Source::Local(vec![SourceAddress {
                ip: None,
                ports: Some(PortRange { first: 20_000, last: 20_999 }),
            }]),
            health: HealthPolicy {
                on_backend_down: OnBackendDown::Close,
                failback: Failback::NewFlows,
                fail_open: false,
                passive: Some(Passive { silent_flows: 6, back_off: Duration::from_secs(10) }),
            },
            limits: Limits {
                flows_per_source: 100,
                flows_per_subnet: 1000,
                new_flows_per_second_per_source: 50,
                datagrams_per_second_per_source: 20_000,
                bytes_per_second_per_source: 65_536,
                amplification: 3,
                unanswered_flows: 5000,
                unanswered_timeout: Duration::from_secs(2),
            },
            backends: vec![
                BackendConfig::new(address("10.0.0.1:53")),
                BackendConfig {
                    weight: 7,
                    backup: true,
                    max_flows: 900,
                    ..BackendConfig::new(address("[2001:db8::2]:53"))
                },
            ],
        },
    });
    assert_eq!(config.workers, Workers::Auto);
    assert_eq!(config.drain_timeout, Duration::from_secs(90));
    assert_eq!(
        config.admin,
        Admin {
            socket: Some("/run/flowgate/control.sock".into()),
            http: Some(address("127.0.0.1:9464")),
        }
    );
    let flows = FlowLog::File("/var/log/flowgate/flows.json".into());
    assert_eq!(config.log, Log { level: LogLevel::Debug, format: LogFormat::Json, flows });
    assert_eq!(
        config.listeners[0],
        Listener {
            name: "dns".into(),
            address: address("[::]:53"),
            interface: Some("eth0".into()),
            routes: flowgate_core::route::Routes::default(),
            routed_from: None,
            last_port: None,
            same_port: false,
            v6_only: true,
            cluster: Arc::clone(&resolvers),
            max_flows: NonZeroU32::new(20_000),
            max_datagram_size: 1472,
            receive_buffer: 8 << 20,
            send_buffer: 1 << 20,
            dont_fragment: true,
            accept: Accept::Shared,
            fast_path: FastPathMode::Auto,
            accept_proxy_protocol: vec![network("fd00::/8"), network("2001:db8::7/128")],
            allow: vec![network("10.0.0.0/8"), network("2001:db8::/32")],
            deny: vec![network("10.1.2.3/32")],
            announce: None,
        }
    );
    assert_eq!(config.clusters[0], resolvers);
    assert_eq!(config.clusters[1], config.listeners[1].cluster);
    assert_eq!(config.clusters[1].policy.balance, Balance::LeastFlows);
    assert_eq!(config.warnings, []);
}

#[test]
fn the_minimal_configuration_equals_the_defaults_written_out() {
    assert_eq!(valid(MINIMAL), valid(DEFAULTS));
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    let config = valid(MINIMAL);
    let listener = &config.listeners[0];
    assert_eq!(config.workers, Workers::Count(NonZeroU16::MIN));
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.admin, Admin { socket: None, http: None });
    let log = Log { level: LogLevel::Info, format: LogFormat::Text, flows: FlowLog::Off };
    assert_eq!(config.log, log);
    assert_eq!(listener.name, "0.0.0.0:53");
    assert_eq!(listener.max_flows, None);
    assert_eq!(listener.max_datagram_size, 65_507);
    assert_eq!((listener.receive_buffer, listener.send_buffer), (4 << 20, 4 << 20));
    assert_eq!(listener.cluster.health, None);
    assert_eq!(
        listener.cluster.policy,
        ClusterConfig {
            quic_lb: flowgate_core::config::QuicLb::default(),
            mode: Mode::SESSION,
            balance: Balance::Rendezvous,
            affinity: Affinity::SourceIp,
            idle_timeout: Duration::from_secs(60),
            responses: 0,
            requests: 0,
            send_proxy_protocol: SendProxyProtocol::Off,
            upstream: UpstreamMode::PerFlow,
            transactions: None,
            retry: None,
            upstream_quarantine: Duration::from_secs(1),
            source: Source::Any,
            health: HealthPolicy {
                on_backend_down: OnBackendDown::Rehash,
                failback: Failback::NewFlows,
                fail_open: true,
                passive: Some(Passive { silent_flows: 3, back_off: Duration::from_secs(5) }),
            },
            limits: Limits::default(),
            backends: vec![BackendConfig::new(address("10.0.0.1:53"))],
        }
    );
}

#[test]
fn a_listener_tells_its_manager_what_to_do() {
    let config = valid(FULL);
    let listener = &config.listeners[0];
    let own: Vec<OwnAddress> =
        [address("[::]:53"), address("0.0.0.0:53")].map(OwnAddress::from).to_vec();
    let backends = vec![BackendConfig::new(address("10.0.0.7:53"))];
    let manager =
        listener.manager_config(address("[::]:53"), 300, own.clone(), true, backends.clone());
    assert_eq!(
        manager,
        ManagerConfig {
            offload: false,
            address: address("[::]:53"),
            max_flows: 300,
            max_slots: u32::MAX,
            shares_max_flows: false,
            max_datagram_size: 1472,
            accept_proxy_protocol: listener.accept_proxy_protocol.clone(),
            allow: listener.allow.clone(),
            deny: listener.deny.clone(),
            own_addresses: own,
            record_flows: true,
            accept: Accept::Shared,
            cluster: ClusterConfig { backends, ..listener.cluster.policy.clone() },
        }
    );
}
