//! `return = "direct"`, and `source = "client"` where nothing comes back.

use flowgate_core::config::{Mode, Source};

use crate::{MINIMAL, in_cluster, messages, with_cluster_lines, without_place};

#[test]
fn direct_return_sends_from_the_clients_addresses_and_has_no_flows() {
    for lines in
        ["return = \"direct\"", "return = \"direct\"\nsource = \"client\"\nbalance = \"maglev\""]
    {
        let cluster = &with_cluster_lines(lines).clusters[0];
        assert!(cluster.is_direct);
        assert_eq!((cluster.policy.mode, &cluster.policy.source), (Mode::OneWay, &Source::Client));
        assert_eq!(cluster.policy.health.passive, None);
    }
    let cluster = &with_cluster_lines("return = \"nat\"").clusters[0];
    assert_eq!((cluster.is_direct, cluster.policy.mode), (false, Mode::SESSION));
    for affinity in ["\"source-ip-port\"", "\"sip-call-id\"", "{ offset = 0, length = 8 }"] {
        with_cluster_lines(&format!("return = \"direct\"\naffinity = {affinity}"));
    }
}

#[test]
fn what_answers_would_be_needed_for_is_refused_beside_direct_return() {
    for (lines, key) in [
        ("mode = \"one-way\"", "return: found \"direct\"; allowed: nat, or direct beside"),
        ("balance = \"least-flows\"", "balance: "),
        ("balance = \"round-robin\"", "balance: "),
        ("responses = 1", "responses: "),
        ("requests = 1", "requests: "),
        ("upstream_reuse = \"5s\"", "upstream_reuse: "),
        ("source = \"10.0.0.5\"", "source: "),
        ("affinity = \"wireguard\"", "affinity: "),
        ("affinity = \"quic\"", "affinity: "),
        ("affinity = { dtls-cid = 8 }", "affinity: "),
        ("limits = { flows_per_source = 1 }", "limits.flows_per_source: "),
        ("limits = { amplification = 1 }", "limits.amplification: "),
        ("health = { passive = true }", "health.passive: "),
    ] {
        let text = format!("{MINIMAL}\nreturn = \"direct\"\n{lines}");
        let said = without_place(messages(&text), "cluster.resolvers.");
        assert!(said.len() == 1 && said[0].starts_with(key), "{lines}: {said:?}");
    }
    assert!(in_cluster("return = \"back\"")[0].contains("nat, direct"));
}

#[test]
fn copies_and_datagrams_that_nobody_answers_may_have_the_clients_address() {
    for lines in ["mode = \"one-way\"", "mode = \"fan-out\""] {
        let config = with_cluster_lines(&format!("{lines}\nsource = \"client\""));
        assert_eq!(config.clusters[0].policy.source, Source::Client);
    }
}
