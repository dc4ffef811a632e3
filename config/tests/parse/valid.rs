//! What valid text means: every key, every default.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowgate_config::{
    Cluster, Config, Fault, Listener, LoadError, Log, LogFormat, LogLevel, Workers, load, parse,
};
use flowgate_core::config::{
    Affinity, BackendConfig, Balance, ClusterConfig, Limits, SendProxyProtocol,
};
use ipnet::IpNet;

const MINIMAL: &str = r#"
[[listener]]
address = "0.0.0.0:53"
cluster = "resolvers"

[cluster.resolvers]
backends = ["10.0.0.1:53"]
"#;

const DEFAULTS: &str = r#"
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
accept_proxy_protocol = []
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
upstream_reuse = "off"
on_backend_down = "pin"
backends = [{ address = "10.0.0.1:53", weight = 1, backup = false, max_flows = 0 }]

[cluster.resolvers.health]
probe = "off"
fail_open = true
passive = false

[cluster.resolvers.limits]
flows_per_source = 0
flows_per_subnet = 0
new_flows_per_second_per_source = 0
amplification = 0
unanswered_flows = 0
unanswered_timeout = "0s"
"#;

const FULL: &str = r#"
workers = "auto"
drain_timeout = "1m 30s"

[log]
level = "debug"
format = "json"

[[listener]]
name = "dns"
address = "[::]:53"
v6_only = true
cluster = "resolvers"
max_flows = 20_000
max_datagram_size = 1472
receive_buffer = "8MiB"
send_buffer = 1048576
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
upstream_reuse = "5s"
backends = [
  "10.0.0.1:53",
  { address = "[2001:db8::2]:53", weight = 7, backup = true, max_flows = 900 },
]

[cluster.resolvers.limits]
flows_per_source = 100
flows_per_subnet = 1000
new_flows_per_second_per_source = 50
amplification = 3
unanswered_flows = 5000
unanswered_timeout = "2s"

[cluster.games]
balance = "least-flows"
backends = [{ address = "10.0.0.3:27015" }]
"#;

fn valid(text: &str) -> Config {
    parse(text, "flowgate.toml").unwrap_or_else(|errors| panic!("{errors}"))
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn network(text: &str) -> IpNet {
    text.parse().expect("a network")
}

/// The minimal configuration with lines added to its cluster.
fn with_cluster_lines(lines: &str) -> Config {
    valid(&format!("{MINIMAL}\n{lines}"))
}

/// The minimal configuration with lines added to its listener.
fn with_listener_lines(lines: &str) -> Config {
    valid(&MINIMAL.replace("\n\n[cluster", &format!("\n{lines}\n\n[cluster")))
}

#[test]
fn a_full_example_sets_every_supported_key() {
    let config = valid(FULL);
    let resolvers = Arc::new(Cluster {
        name: "resolvers".into(),
        policy: ClusterConfig {
            balance: Balance::Maglev,
            affinity: Affinity::SourceIpPort,
            idle_timeout: Duration::from_millis(1500),
            responses: 1,
            requests: 2,
            send_proxy_protocol: SendProxyProtocol::Every,
            upstream_reuse: Some(Duration::from_secs(5)),
            limits: Limits {
                flows_per_source: 100,
                flows_per_subnet: 1000,
                new_flows_per_second_per_source: 50,
                amplification: 3,
                unanswered_flows: 5000,
                unanswered_timeout: Duration::from_secs(2),
            },
            backends: vec![
                BackendConfig::new(address("10.0.0.1:53")),
                BackendConfig {
                    address: address("[2001:db8::2]:53"),
                    weight: 7,
                    backup: true,
                    max_flows: 900,
                },
            ],
        },
    });
    assert_eq!(config.workers, Workers::Auto);
    assert_eq!(config.drain_timeout, Duration::from_secs(90));
    assert_eq!(config.log, Log { level: LogLevel::Debug, format: LogFormat::Json });
    assert_eq!(
        config.listeners[0],
        Listener {
            name: "dns".into(),
            address: address("[::]:53"),
            v6_only: true,
            cluster: Arc::clone(&resolvers),
            max_flows: NonZeroU32::new(20_000),
            max_datagram_size: 1472,
            receive_buffer: 8 << 20,
            send_buffer: 1 << 20,
            allow: vec![network("10.0.0.0/8"), network("2001:db8::/32")],
            deny: vec![network("10.1.2.3/32")],
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
    assert_eq!(config.log, Log { level: LogLevel::Info, format: LogFormat::Text });
    assert_eq!(listener.name, "0.0.0.0:53");
    assert_eq!(listener.max_flows, None);
    assert_eq!(listener.max_datagram_size, 65_507);
    assert_eq!((listener.receive_buffer, listener.send_buffer), (4 << 20, 4 << 20));
    assert_eq!(
        listener.cluster.policy,
        ClusterConfig {
            balance: Balance::Rendezvous,
            affinity: Affinity::SourceIp,
            idle_timeout: Duration::from_secs(60),
            responses: 0,
            requests: 0,
            send_proxy_protocol: SendProxyProtocol::Off,
            upstream_reuse: None,
            limits: Limits::default(),
            backends: vec![BackendConfig::new(address("10.0.0.1:53"))],
        }
    );
}

#[test]
fn each_word_of_a_choice_has_its_meaning() {
    for (word, balance) in [
        ("round-robin", Balance::RoundRobin),
        ("random", Balance::Random),
        ("least-flows", Balance::LeastFlows),
        ("power-of-two", Balance::PowerOfTwo),
        ("rendezvous", Balance::Rendezvous),
        ("maglev", Balance::Maglev),
    ] {
        let config = with_cluster_lines(&format!("balance = \"{word}\""));
        assert_eq!(config.clusters[0].policy.balance, balance);
    }
    for (word, affinity) in
        [("source-ip", Affinity::SourceIp), ("source-ip-port", Affinity::SourceIpPort)]
    {
        let config = with_cluster_lines(&format!("affinity = \"{word}\""));
        assert_eq!(config.clusters[0].policy.affinity, affinity);
    }
    for (word, header) in [
        ("off", SendProxyProtocol::Off),
        ("first", SendProxyProtocol::First),
        ("every", SendProxyProtocol::Every),
    ] {
        let config = with_cluster_lines(&format!("send_proxy_protocol = \"{word}\""));
        assert_eq!(config.clusters[0].policy.send_proxy_protocol, header);
    }
    for (word, level) in [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
    ] {
        let config = with_cluster_lines(&format!("[log]\nlevel = \"{word}\""));
        assert_eq!(config.log.level, level);
    }
}

#[test]
fn numbers_reach_to_their_bounds() {
    for workers in [1, 1024] {
        let count = NonZeroU16::new(workers).map(Workers::Count);
        assert_eq!(Some(valid(&format!("workers = {workers}\n{MINIMAL}")).workers), count);
    }
    for length in [1, 65_507] {
        let config = with_listener_lines(&format!("max_datagram_size = {length}"));
        assert_eq!(config.listeners[0].max_datagram_size, length);
    }
    for timeout in ["1ms", "30days"] {
        let config = with_cluster_lines(&format!("idle_timeout = \"{timeout}\""));
        let expected = humantime::parse_duration(timeout).unwrap();
        assert_eq!(config.clusters[0].policy.idle_timeout, expected);
    }
    for size in ["4KiB", "512MiB"] {
        with_listener_lines(&format!("receive_buffer = \"{size}\""));
    }
    let config = with_cluster_lines("requests = 4294967295\nresponses = 0xffff_ffff");
    assert_eq!(config.clusters[0].policy.requests, u32::MAX);
    assert_eq!(config.clusters[0].policy.responses, u32::MAX);
    assert_eq!(valid(&format!("drain_timeout = \"0s\"\n{MINIMAL}")).drain_timeout, Duration::ZERO);
}

#[test]
fn an_ipv4_address_mapped_into_ipv6_is_the_ipv4_address() {
    let text = MINIMAL.replace("0.0.0.0:53", "[::ffff:127.0.0.1]:53");
    let config = valid(&text.replace("10.0.0.1:53", "[::ffff:10.0.0.1]:53"));
    assert_eq!(config.listeners[0].address, address("127.0.0.1:53"));
    assert_eq!(config.clusters[0].policy.backends[0].address, address("10.0.0.1:53"));
}

#[test]
fn a_link_local_address_keeps_its_scope() {
    let config = valid(&MINIMAL.replace("10.0.0.1:53", "[fe80::1%2]:53"));
    assert_eq!(config.clusters[0].policy.backends[0].address, address("[fe80::1%2]:53"));
}

#[test]
fn one_address_beside_the_wildcard_is_no_clash() {
    let second = "[[listener]]\naddress = \"127.0.0.1:53\"\ncluster = \"resolvers\"\n";
    assert_eq!(valid(&format!("{MINIMAL}{second}")).listeners.len(), 2);
}

#[test]
fn listeners_on_ports_of_the_kernels_choice_do_not_clash() {
    let listener = |name| {
        format!("[[listener]]\nname = \"{name}\"\naddress = \"[::]:0\"\ncluster = \"resolvers\"\n")
    };
    assert_eq!(valid(&format!("{MINIMAL}{}{}", listener("a"), listener("b"))).listeners.len(), 3);
}

#[test]
fn an_empty_list_of_backends_draws_a_warning() {
    let config = valid(&MINIMAL.replace("[\"10.0.0.1:53\"]", "[]"));
    assert_eq!(config.clusters[0].policy.backends, []);
    assert_eq!(
        config.warnings[0].to_string(),
        "flowgate.toml:6:1: cluster.resolvers: no backends: every datagram to this cluster is dropped"
    );
}

#[test]
fn an_unused_cluster_draws_a_warning_and_is_kept() {
    let config = with_cluster_lines("[cluster.spare]\nbackends = [\"10.0.0.9:53\"]\n");
    assert_eq!(config.clusters[1].name, "spare");
    assert_eq!(config.warnings[0].fault, Fault::Unused);
    assert_eq!(
        config.warnings[0].to_string(),
        "flowgate.toml:9:1: cluster.spare: no listener uses this cluster"
    );
}

#[test]
fn a_cluster_may_come_first_or_inline_or_dotted() {
    let listener = "[[listener]]\naddress = \"0.0.0.0:53\"\ncluster = \"resolvers\"\n";
    for cluster in [
        "[cluster.resolvers]\nbackends = [\"10.0.0.1:53\"]\n",
        "[cluster]\nresolvers = { backends = [\"10.0.0.1:53\"] }\n",
        "cluster.resolvers.backends = [\"10.0.0.1:53\"]\n",
    ] {
        assert_eq!(valid(&format!("{cluster}{listener}")), valid(MINIMAL));
    }
}

#[test]
fn clusters_keep_the_order_of_the_file() {
    let more = "[cluster.b]\nbackends = []\n[cluster.a]\nbackends = []\n";
    let names: Vec<_> = with_cluster_lines(more).clusters.iter().map(|c| c.name.clone()).collect();
    assert_eq!(names, ["resolvers", "b", "a"]);
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_change_nothing() {
    assert_eq!(valid(&format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"))), valid(MINIMAL));
}

#[test]
fn a_hundred_thousand_backends_are_read_in_a_moment() {
    let backend = |i| format!("\"10.{}.{}.1:{}\"", i / 256 % 256, i % 256, 1 + i / 65_536);
    let backends: Vec<_> = (0..100_000).map(backend).collect();
    let text = MINIMAL.replace("\"10.0.0.1:53\"", &backends.join(",\n"));
    let started = Instant::now();
    assert_eq!(valid(&text).clusters[0].policy.backends.len(), 100_000);
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
}

#[test]
fn a_listener_tells_its_manager_what_to_do() {
    let config = valid(FULL);
    let manager = config.listeners[0].manager_config(address("[::]:53"), 300);
    assert_eq!(manager.address, address("[::]:53"));
    assert_eq!(manager.max_flows, 300);
    assert_eq!(manager.max_datagram_size, 1472);
    assert_eq!(manager.cluster, config.clusters[0].policy);
}

#[test]
fn a_file_is_loaded_under_its_own_name() {
    let folder = std::env::temp_dir().join(format!("flowgate-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("flowgate.toml");
    std::fs::write(&path, MINIMAL).unwrap();
    assert_eq!(load(&path).unwrap(), valid(MINIMAL));

    std::fs::write(&path, "workers = 0").unwrap();
    let Err(LoadError::Invalid(errors)) = load(&path) else {
        panic!("no workers are not valid");
    };
    assert!(errors.iter().all(|problem| *problem.file == path.display().to_string()));

    std::fs::remove_dir_all(&folder).unwrap();
    let message = load(&path).unwrap_err().to_string();
    assert!(message.starts_with(&format!("cannot read {}: No such file", path.display())));
}
