//! What a reload finds different.

use std::collections::HashSet;

use flowgate_config::{ClusterChanges, Config, Difference, ListenerChanges, parse};
use proptest::prelude::*;
use proptest::sample::select;

use crate::{MINIMAL, valid};

const TWO: &str = r#"
[[listener]]
name = "dns"
address = "0.0.0.0:53"
cluster = "resolvers"

[[listener]]
name = "game"
address = "[::]:27015"
cluster = "games"

[cluster.resolvers]
backends = ["10.0.0.1:53"]

[cluster.games]
backends = ["10.0.0.3:27015"]
"#;

/// The difference from the one text to the same with one part replaced.
fn replaced(old: &str, part: &str, by: &str) -> Difference {
    assert!(old.contains(part), "{part}");
    valid(old).difference_to(&valid(&old.replace(part, by)))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

#[test]
fn a_configuration_does_not_differ_from_itself() {
    let difference = valid(TWO).difference_to(&valid(TWO));
    assert!(difference.is_empty());
    assert_eq!(difference.listeners.unchanged, ["dns", "game"]);
    assert_eq!(difference.clusters.unchanged, ["resolvers", "games"]);
}

#[test]
fn what_changes_is_told_a_line_for_each_thing() {
    let changes = |from: &str, to: &str| valid(from).changes_to(&valid(to));
    assert_eq!(changes(TWO, TWO), [""; 0]);
    let other = TWO
        .replace("10.0.0.1:53", "10.0.0.2:53")
        .replace("cluster = \"games\"", "cluster = \"games\"\nmax_flows = 9")
        .replace("[::]:27015", "[::]:27016");
    assert_eq!(
        changes(TWO, &format!("drain_timeout = \"1s\"\nworkers = 2\n{other}")),
        [
            "listener \"game\" moved to another address",
            "cluster \"resolvers\" changed: backends +10.0.0.2:53 -10.0.0.1:53",
            "drain_timeout changed",
        ]
    );
    let without = TWO.replace("name = \"game\"", "name = \"ga\\u001Bme\"");
    assert_eq!(
        changes(TWO, &without),
        ["listener \"ga\\u{1b}me\" added", "listener \"game\" removed"]
    );
    let slow = TWO.replace("[cluster.games]", "[cluster.games]\nidle_timeout = \"9s\"");
    assert_eq!(changes(TWO, &slow), ["cluster \"games\" changed"]);
    let limited = TWO.replace("name = \"dns\"", "name = \"dns\"\nmax_flows = 9");
    assert_eq!(changes(TWO, &limited), ["listener \"dns\" changed"]);
}

#[test]
fn keys_that_wait_for_a_restart_are_named() {
    for (line, key) in [
        ("workers = 2", "workers"),
        ("workers = \"auto\"", "workers"),
        ("[admin]\nsocket = \"/a\"", "admin.socket"),
        ("[admin]\nhttp = \"127.0.0.1:1\"", "admin.http"),
        ("[log]\nformat = \"json\"", "log.format"),
        ("[log]\nflows = \"stderr\"", "log.flows"),
    ] {
        let difference = valid(MINIMAL).difference_to(&valid(&format!("{line}\n{MINIMAL}")));
        assert_eq!(difference.needs_restart, [key]);
        assert_eq!(difference.settings, [""; 0]);
        assert!(!difference.is_empty());
    }
}

#[test]
fn sockets_of_clients_wait_for_a_restart_where_the_listener_keeps_its_own() {
    let text = |address: &str, accept: &str| {
        let listener = format!("[[listener]]\naccept = {accept:?}");
        let minimal = MINIMAL.replace("[[listener]]", &listener);
        valid(&minimal.replace("0.0.0.0:53", address))
    };
    let old = text("192.0.2.1:53", "shared");
    for (address, accept, waits) in [
        ("192.0.2.1:53", "shared", false),
        ("192.0.2.1:53", "confirmed", true),
        // Another address is another socket.
        ("192.0.2.2:53", "confirmed", false),
    ] {
        let waiting = old.difference_to(&text(address, accept)).needs_restart;
        assert_eq!(waiting == ["listener.accept"], waits, "{address} {accept}: {waiting:?}");
    }
}

#[test]
fn keys_that_a_running_process_follows_are_named() {
    for (line, key) in
        [("drain_timeout = \"1s\"", "drain_timeout"), ("[log]\nlevel = \"debug\"", "log.level")]
    {
        let difference = valid(MINIMAL).difference_to(&valid(&format!("{line}\n{MINIMAL}")));
        assert_eq!(difference.settings, [key]);
        assert_eq!(difference.needs_restart, [""; 0]);
        assert!(!difference.is_empty());
    }
}

#[test]
fn a_listener_that_receives_elsewhere_is_rebound() {
    for (part, by) in [
        ("0.0.0.0:53\"", "0.0.0.0:54\""),
        ("0.0.0.0:53\"", "0.0.0.0:54\"\nmax_flows = 9"),
        ("\"[::]:27015\"", "\"[::]:27015\"\nv6_only = true"),
        ("\"[::]:27015\"", "\"[::]:27015\"\ninterface = \"eth0\""),
    ] {
        let name = if part.contains("[::]") { "game" } else { "dns" };
        let listeners = replaced(TWO, part, by).listeners;
        assert_eq!(listeners.rebound, [name]);
        assert_eq!(listeners.unchanged.len(), 1);
    }
}

#[test]
fn two_listeners_that_swap_addresses_are_both_rebound() {
    let swapped = TWO.replace("0.0.0.0:53", "x").replace("[::]:27015", "0.0.0.0:53");
    let difference = valid(TWO).difference_to(&valid(&swapped.replace('x', "[::]:27015")));
    assert_eq!(difference.listeners.rebound, ["dns", "game"]);
}

#[test]
fn every_other_key_of_a_listener_changes_it_in_place() {
    for line in [
        "max_flows = 9",
        "max_datagram_size = 9",
        "receive_buffer = \"1MiB\"",
        "send_buffer = \"1MiB\"",
        "dont_fragment = true",
        "allow = [\"10.0.0.0/8\"]",
        "deny = [\"10.0.0.0/8\"]",
    ] {
        let difference = replaced(TWO, "name = \"dns\"", &format!("name = \"dns\"\n{line}"));
        let expected = ListenerChanges {
            changed: names(&["dns"]),
            unchanged: names(&["game"]),
            ..ListenerChanges::default()
        };
        assert_eq!(difference.listeners, expected);
        assert_eq!(difference.clusters.unchanged, ["resolvers", "games"]);
    }
}

#[test]
fn another_cluster_changes_the_listener_in_place() {
    let difference = replaced(TWO, "cluster = \"games\"", "cluster = \"resolvers\"");
    assert_eq!(difference.listeners.changed, ["game"]);
    assert_eq!(difference.clusters.unchanged, ["resolvers", "games"]);
    let difference = replaced(TWO, "resolvers", "dns-servers");
    assert_eq!(difference.listeners.changed, ["dns"]);
    assert_eq!(
        difference.clusters,
        ClusterChanges {
            added: names(&["dns-servers"]),
            removed: names(&["resolvers"]),
            unchanged: names(&["games"]),
            ..ClusterChanges::default()
        }
    );
}

#[test]
fn every_key_of_a_cluster_changes_it_and_its_listeners() {
    for line in [
        "balance = \"maglev\"",
        "on_backend_down = \"pin\"",
        "failback = \"all\"",
        "[cluster.games.health]\nprobe = \"tcp\"",
        "[cluster.games.health]\nfail_open = false",
        "[cluster.games.limits]\namplification = 3",
    ] {
        let difference = valid(TWO).difference_to(&valid(&format!("{TWO}{line}")));
        assert_eq!(difference.listeners.changed, ["game"]);
        assert_eq!(difference.listeners.unchanged, ["dns"]);
        assert_eq!(difference.clusters.changed, ["games"]);
        assert_eq!(difference.clusters.unchanged, ["resolvers"]);
    }
    for backends in ["[]", "[\"a.example:27015\"]", "[\"10.0.0.3:27015\", \"a.example:1\"]"] {
        let difference = replaced(TWO, "[\"10.0.0.3:27015\"]", backends);
        assert_eq!(difference.clusters.changed, ["games"]);
        assert_eq!(difference.listeners.changed, ["game"]);
    }
}

#[test]
fn the_order_of_tables_is_no_difference() {
    let (first, rest) = TWO.trim_start().split_once("[[listener]]\nname = \"game\"").unwrap();
    let (second, clusters) = rest.split_once("[cluster.resolvers]").unwrap();
    let turned =
        format!("[[listener]]\nname = \"game\"{second}{first}[cluster.resolvers]{clusters}");
    let difference = valid(TWO).difference_to(&valid(&turned));
    assert!(difference.is_empty());
    assert_eq!(difference.listeners.unchanged, ["game", "dns"]);
}

#[test]
fn a_listener_without_a_name_is_another_at_another_address() {
    let listeners = replaced(MINIMAL, "0.0.0.0:53", "0.0.0.0:54").listeners;
    let expected = ListenerChanges {
        added: names(&["0.0.0.0:54"]),
        removed: names(&["0.0.0.0:53"]),
        ..ListenerChanges::default()
    };
    assert_eq!(listeners, expected);
}

#[test]
fn listeners_and_clusters_are_found_by_name() {
    let config = valid(TWO);
    assert_eq!(config.listener("game"), Some(&config.listeners[1]));
    assert_eq!(config.cluster("games"), Some(&config.clusters[1]));
    assert!(config.listener("games").is_none() && config.cluster("game").is_none());
}

/// A configuration with some listeners of few possible names, addresses and clusters.
fn any_config() -> impl Strategy<Value = Config> {
    let listener = (0..4_usize, 0..6_u16, 0..2_usize, 0..2_u32);
    let cluster = select(&["[]", "[\"10.0.0.1:1\"]", "[\"a.example:1\"]"]);
    let parts = (proptest::collection::vec(listener, 1..5), [cluster.clone(), cluster], 1..3_u16);
    parts.prop_filter_map("two listeners clash", |(listeners, clusters, workers)| {
        let listeners: String = listeners
            .iter()
            .map(|(name, port, cluster, flows)| {
                format!(
                    "[[listener]]\nname = \"l{name}\"\naddress = \"[::1]:{}\"\ncluster = \"c{cluster}\"\nmax_flows = {flows}\n",
                    port + 1
                )
            })
            .collect();
        let [one, other] = clusters;
        let clusters = format!("[cluster.c0]\nbackends = {one}\n[cluster.c1]\nbackends = {other}\n");
        parse(&format!("workers = {workers}\n{listeners}{clusters}"), "f").ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn a_difference_to_itself_is_empty(config in any_config()) {
        prop_assert!(config.difference_to(&config).is_empty());
    }

    #[test]
    fn every_listener_is_in_exactly_one_class(old in any_config(), new in any_config()) {
        let changes = old.difference_to(&new).listeners;
        let ListenerChanges { added, removed, rebound, changed, unchanged } = &changes;
        let all: Vec<_> = [added, removed, rebound, changed, unchanged].into_iter().flatten().collect();
        let different: HashSet<_> = all.iter().copied().collect();
        prop_assert_eq!(different.len(), all.len());
        let listeners = || old.listeners.iter().chain(&new.listeners);
        prop_assert_eq!(&different, &listeners().map(|listener| &listener.name).collect());
        for name in &different {
            let (before, after) = (old.listener(name), new.listener(name));
            let moved = before.zip(after).is_some_and(|(a, b)| a.address != b.address);
            prop_assert_eq!(added.contains(name), before.is_none());
            prop_assert_eq!(removed.contains(name), after.is_none());
            prop_assert_eq!(rebound.contains(name), moved);
            prop_assert_eq!(unchanged.contains(name), before == after);
        }
    }

    #[test]
    fn every_cluster_is_in_exactly_one_class(old in any_config(), new in any_config()) {
        let ClusterChanges { added, removed, changed, unchanged } = old.difference_to(&new).clusters;
        prop_assert!(added.is_empty() && removed.is_empty());
        for name in ["c0", "c1"] {
            let is_same = old.cluster(name) == new.cluster(name);
            prop_assert_eq!(unchanged.iter().any(|unchanged| unchanged == name), is_same);
            prop_assert_eq!(changed.iter().any(|changed| changed == name), !is_same);
        }
    }

    #[test]
    fn what_is_added_on_the_way_there_is_removed_on_the_way_back(old in any_config(), new in any_config()) {
        let (there, back) = (old.difference_to(&new), new.difference_to(&old));
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names
        };
        prop_assert_eq!(there.listeners.added, back.listeners.removed);
        prop_assert_eq!(there.listeners.removed, back.listeners.added);
        prop_assert_eq!(sorted(&there.listeners.rebound), sorted(&back.listeners.rebound));
        prop_assert_eq!(sorted(&there.listeners.changed), sorted(&back.listeners.changed));
        prop_assert_eq!(&there.needs_restart, &back.needs_restart);
        prop_assert_eq!(there.needs_restart.is_empty(), old.workers == new.workers);
    }
}
