//! What valid text means.

use std::num::NonZeroU16;
use std::path::Path;
use std::time::{Duration, Instant};

use flowgate_config::{Config, ConfigFileError, Fault, FlowLog, LogLevel, Workers, load};
use flowgate_core::config::{Affinity, Balance, Failback, OnBackendDown, SendProxyProtocol};

use crate::{MINIMAL, address, valid, with_cluster_lines};

/// The minimal configuration with lines added to its listener.
fn with_listener_lines(lines: &str) -> Config {
    valid(&MINIMAL.replace("\n\n[cluster", &format!("\n{lines}\n\n[cluster")))
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
    for (word, on_backend_down) in [
        ("pin", OnBackendDown::Pin),
        ("rehash", OnBackendDown::Rehash),
        ("close", OnBackendDown::Close),
    ] {
        let config = with_cluster_lines(&format!("on_backend_down = \"{word}\""));
        assert_eq!(config.clusters[0].policy.health.on_backend_down, on_backend_down);
    }
    for (word, failback) in [("new-flows", Failback::NewFlows), ("all", Failback::All)] {
        let config = with_cluster_lines(&format!("failback = \"{word}\""));
        assert_eq!(config.clusters[0].policy.health.failback, failback);
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
fn the_flow_log_goes_nowhere_to_standard_error_or_to_a_file() {
    for (word, flows) in [
        ("off", FlowLog::Off),
        ("stderr", FlowLog::Stderr),
        ("/var/log/flows", FlowLog::File("/var/log/flows".into())),
        ("./stderr", FlowLog::File("./stderr".into())),
    ] {
        let config = with_cluster_lines(&format!("[log]\nflows = \"{word}\""));
        assert_eq!(config.log.flows, flows);
    }
}

#[test]
fn administration_over_http_that_others_reach_draws_a_warning() {
    for http in ["127.0.0.1:9464", "[::1]:9464", "127.9.9.9:0", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(with_cluster_lines(&format!("[admin]\nhttp = \"{http}\"")).warnings, []);
    }
    for http in ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464"] {
        let config = with_cluster_lines(&format!("[admin]\nhttp = \"{http}\""));
        assert_eq!(config.admin.http, Some(address(http)));
        let [warning] = &config.warnings[..] else {
            panic!("{:?}", config.warnings);
        };
        assert_eq!(
            warning.to_string(),
            "flowgate.toml:10:8: admin.http: other hosts may reach this address, and no password is asked for"
        );
    }
}

#[test]
fn the_longest_path_of_a_socket_is_that_of_the_system() {
    let path = format!("/{}", "a".repeat(106));
    let config = with_cluster_lines(&format!("[admin]\nsocket = \"{path}\""));
    assert_eq!(config.admin.socket.as_deref(), Some(Path::new(&path)));
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
fn a_file_is_loaded_under_its_own_name() {
    let folder = std::env::temp_dir().join(format!("flowgate-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("flowgate.toml");
    std::fs::write(&path, MINIMAL).unwrap();
    assert_eq!(load(&path).unwrap(), valid(MINIMAL));

    std::fs::write(&path, "workers = 0").unwrap();
    let Err(ConfigFileError::Invalid(errors)) = load(&path) else {
        panic!("no workers are not valid");
    };
    assert!(errors.iter().all(|problem| *problem.file == path.display().to_string()));

    std::fs::remove_dir_all(&folder).unwrap();
    let message = load(&path).unwrap_err().to_string();
    assert!(message.starts_with(&format!("cannot read {}: No such file", path.display())));
}

#[test]
fn a_listener_that_believes_everybody_draws_a_warning() {
    let config = with_listener_lines("accept_proxy_protocol = [\"10.0.0.0/8\", \"192.0.2.1\"]");
    assert_eq!(config.listeners[0].accept_proxy_protocol.len(), 2);
    assert_eq!(config.warnings, []);
    let config = with_listener_lines("accept_proxy_protocol = [\"0.0.0.0/0\"]");
    let faults: Vec<_> = config.warnings.iter().map(|warning| &warning.fault).collect();
    assert_eq!(faults, [&Fault::TrustsEverybody]);
}
