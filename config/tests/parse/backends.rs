//! The backends of a cluster: addresses and names, and what they stand for once resolved.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use flowgate_config::{Cluster, Target};
use flowgate_core::config::BackendConfig;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::{MINIMAL, address, messages, valid, without_place};

const ADDRESS: &str = "an IP address and port, such as \"10.0.0.1:53\" or \"[2001:db8::1]:53\"";

const TARGET: &str = "an IP address or a name, and a port, such as \"10.0.0.1:53\", \
                      \"[2001:db8::1]:53\" or \"resolver.internal:53\"";

/// The messages about a cluster of these backends, without the place.
fn in_backends(backends: &str) -> Vec<String> {
    let text = format!(
        "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n[cluster.web]\nbackends = {backends}"
    );
    without_place(messages(&text), "cluster.web.")
}

/// A valid cluster of these backends.
fn cluster(backends: &str) -> Cluster {
    let config = valid(&MINIMAL.replace("[\"10.0.0.1:53\"]", backends));
    assert_eq!(config.warnings, []);
    Cluster::clone(&config.clusters[0])
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an IP address")).collect()
}

fn addresses(backends: &[BackendConfig]) -> Vec<String> {
    backends.iter().map(|backend| backend.address.to_string()).collect()
}

#[test]
fn a_malformed_address_is_refused_as_an_address() {
    let malformed = [
        "10.0.0.1",
        "10.0.0:53",
        "10.0.0.300:53",
        "10.0.0.256:53",
        "10.0.0.1.:53",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "0.0.0.0:53",
        "[::]:53",
        "::1:53:",
        "2001:db8::1:53",
        "[::1]",
        "[::1:53",
        "53:53",
        "0x7f000001:53",
        "127.0x1:53",
        "127.0X1:53",
        "10.0.0.1:dns",
    ];
    for address in malformed {
        let bare = address.trim_matches(['[', ']']).parse::<IpAddr>();
        let meant = bare.map(|ip| format!("; did you mean \"{}\"?", SocketAddr::new(ip, 53)));
        let meant = meant.unwrap_or_default();
        let expected = format!("backends[0]: found \"{address}\"; allowed: {ADDRESS}{meant}");
        assert_eq!(in_backends(&format!("[\"{address}\"]")), [expected]);
    }
}

#[test]
fn what_is_neither_address_nor_name_is_refused() {
    let label = "a".repeat(64);
    let host = vec!["a".repeat(50); 5].join(".");
    let long = format!("{host}:53");
    let label = format!("{label}.example:53");
    for address in
        ["", ":53", ".:53", "a..b:53", ".a:53", "a b:53", "-a:53", "a-.b:53", "ä:53", &label, &long]
    {
        let found = in_backends(&format!("[\"{address}\"]"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with(&format!("; allowed: {TARGET}")), "{found:?}");
    }
}

#[test]
fn a_name_without_a_port_lacks_a_port() {
    for host in ["host", "resolver.internal"] {
        for port in ["", ":", ":0", ":65536", ":dns", ":-1", ":+53"] {
            let expected = format!(
                "backends[0]: found \"{host}{port}\"; allowed: a port from 1 to 65535 after the name, such as \"{host}:53\""
            );
            assert_eq!(in_backends(&format!("[\"{host}{port}\"]")), [expected]);
        }
    }
}

#[test]
fn each_part_of_a_backend_is_checked() {
    assert_eq!(
        in_backends(
            "[53, {}, { address = \"10.0.0.1:53\", weight = -1, backup = 1, max_flows = \"9\" }, { address = \"host\" }]"
        ),
        [
            format!("backends[0]: found 53; allowed: {TARGET}"),
            format!("backends[1].address: missing; allowed: {TARGET}"),
            "backends[2].weight: found -1; allowed: a whole number from 0 to 4294967295".into(),
            "backends[2].backup: found 1; allowed: true or false".into(),
            "backends[2].max_flows: found \"9\"; allowed: a whole number from 0 to 4294967295"
                .into(),
            "backends[3].address: found \"host\"; allowed: a port from 1 to 65535 after the name, such as \"host:53\"".into(),
        ]
    );
    assert_eq!(
        in_backends("\"10.0.0.1:53\""),
        ["backends: found \"10.0.0.1:53\"; allowed: a list of backends, such as [\"10.0.0.1:53\"]"]
    );
}

#[test]
fn one_backend_in_two_spellings_is_a_duplicate() {
    for [first, second] in [
        ["10.0.0.1:53", "[::ffff:10.0.0.1]:53"],
        ["a.example:53", "a.example:53"],
        ["a.example:53", "A.Example:0053"],
        ["a.example.:53", "a.example:53"],
    ] {
        assert_eq!(
            in_backends(&format!("[\n\"{first}\",\n{{ address = \"{second}\" }}]")),
            [format!(
                "backends[1].address: found \"{second}\"; allowed: a backend that the cluster does not have yet (line 6 has it)"
            )]
        );
    }
}

#[test]
fn a_name_is_read_in_either_form() {
    for (written, host, port) in [
        ("host:53", "host", 53),
        ("Resolver.Internal:1", "resolver.internal", 1),
        ("a.b.:1", "a.b.", 1),
        ("_dns.x-y.example:65535", "_dns.x-y.example", 65_535),
        ("4you.example:53", "4you.example", 53),
        ("10.0.0.1.example:53", "10.0.0.1.example", 53),
    ] {
        let target = Target::Name { host: host.into(), port };
        for backend in [format!("\"{written}\""), format!("{{ address = \"{written}\" }}")] {
            let cluster = cluster(&format!("[{backend}]"));
            assert_eq!(cluster.members[0].target, target);
            assert_eq!(cluster.members[0].weight, 1);
            assert_eq!(cluster.policy.backends, []);
        }
        assert_eq!(target.to_string(), format!("{host}:{port}"));
    }
    let longest =
        [&"a".repeat(63)[..], &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)].join(".");
    assert_eq!(longest.len(), 253);
    assert_eq!(cluster(&format!("[\"{longest}:1\"]")).names().collect::<Vec<_>>(), [longest]);
}

#[test]
fn one_name_may_have_several_ports() {
    let cluster = cluster("[\"a.example:53\", \"10.0.0.1:53\", \"a.example:54\"]");
    assert_eq!(cluster.names().collect::<Vec<_>>(), ["a.example", "a.example"]);
    let backends = cluster.backends(|_| ips(&["10.0.0.9"]));
    assert_eq!(addresses(&backends), ["10.0.0.9:53", "10.0.0.1:53", "10.0.0.9:54"]);
}

#[test]
fn before_names_are_resolved_the_policy_has_the_addresses() {
    let cluster = cluster("[\"10.0.0.2:53\", \"a.example:53\", \"10.0.0.1:53\"]");
    assert_eq!(addresses(&cluster.policy.backends), ["10.0.0.2:53", "10.0.0.1:53"]);
    assert_eq!(cluster.backends(|_| vec![]), cluster.policy.backends);
}

#[test]
fn each_address_of_a_name_is_a_backend_of_its_own() {
    let cluster = cluster(
        "[\"10.0.0.5:53\", { address = \"a.example:53\", weight = 7, backup = true, max_flows = 9 }, \"10.0.0.4:53\"]",
    );
    let backends = cluster.backends(|host| {
        assert_eq!(host, "a.example");
        ips(&["2001:db8::1", "10.0.0.9", "10.0.0.8"])
    });
    assert_eq!(
        addresses(&backends),
        ["10.0.0.5:53", "10.0.0.8:53", "10.0.0.9:53", "[2001:db8::1]:53", "10.0.0.4:53"]
    );
    for backend in &backends[1..4] {
        assert_eq!((backend.weight, backend.backup, backend.max_flows), (7, true, 9));
        assert!(!backend.removed);
    }
    assert_eq!(backends[4], BackendConfig::new(address("10.0.0.4:53")));
}

#[test]
fn an_address_that_an_earlier_member_has_is_left_out() {
    let cluster = cluster(
        "[\"10.0.0.1:53\", { address = \"a.example:53\", weight = 2 }, { address = \"b.example:53\", weight = 3 }]",
    );
    let backends = cluster.backends(|host| match host {
        "a.example" => ips(&["10.0.0.2", "::ffff:10.0.0.1", "::ffff:10.0.0.2"]),
        _ => ips(&["10.0.0.3", "10.0.0.2"]),
    });
    assert_eq!(addresses(&backends), ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"]);
    assert_eq!(backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn an_address_that_nothing_can_be_sent_to_is_left_out() {
    let cluster = cluster("[\"a.example:53\"]");
    let backends = cluster.backends(|_| ips(&["0.0.0.0", "::", "::ffff:0.0.0.0", "10.0.0.1"]));
    assert_eq!(addresses(&backends), ["10.0.0.1:53"]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn backends_differ_and_do_not_depend_on_the_order_of_an_answer(
        members in vec(select(&["10.0.0.1:53", "10.0.0.2:53", "a.example:53", "b.example:53", "a.example:54"]), 0..6),
        answers in vec(select(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "::1", "::ffff:10.0.0.3"]), 0..6),
    ) {
        let different: HashSet<_> = members.into_iter().collect();
        let list: Vec<_> = different.iter().map(|member| format!("{member:?}")).collect();
        let text = MINIMAL.replace("\"10.0.0.1:53\"", &list.join(", "));
        let cluster = Cluster::clone(&valid(&text).clusters[0]);
        let mut answer = ips(&answers);
        let backends = cluster.backends(|_| answer.clone());
        answer.reverse();
        prop_assert_eq!(&backends, &cluster.backends(|_| answer.clone()));
        let addresses: HashSet<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
        prop_assert_eq!(addresses.len(), backends.len());
    }
}
