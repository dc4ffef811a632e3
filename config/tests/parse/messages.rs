//! How problems are told: all at once, in order, with the likeliest meaning of a typo.

use flowgate_config::parse;

use crate::{at_top, in_cluster, in_listener, messages};

#[test]
fn every_problem_is_reported_at_once_in_the_order_of_the_file() {
    let text = r#"
workers = 0
[log]
level = "verbose"
flows = "sterr"

[[listener]]
address = "0.0.0.0:99999"
cluster = "resolver"
max_datagram_size = 70000
colour = "red"

[cluster.resolvers]
balance = "rendezvou"
mode = "on-way"
backends = ["10.0.0.1:53", { address = "10.0.0.2:53", weigth = 2 }, "10.0.0.1:53", "dns.internal"]

[cluster.empty]
"#;
    let expected = [
        "2:11: workers: found 0; allowed: \"auto\" or a whole number from 1 to 1024",
        "4:9: log.level: found \"verbose\"; allowed: error, warn, info, debug",
        "5:9: log.flows: found \"sterr\"; allowed: off, stderr, or the path of a file, such as \"/var/log/flowgate/flows.json\"; did you mean \"stderr\"?",
        "8:11: listener[0].address: found \"0.0.0.0:99999\"; allowed: an IP address and port, such as \"0.0.0.0:53\" or \"[::]:53\"",
        "9:11: listener[0].cluster: found \"resolver\"; allowed: \"resolvers\", \"empty\"; did you mean \"resolvers\"?",
        "10:21: listener[0].max_datagram_size: found 70000; allowed: a whole number from 1 to 65507",
        "11:1: listener[0].colour: unknown key; allowed: accept, accept_proxy_protocol, address, allow, announce, backend_port, cluster, deny, dont_fragment, fast_path, interface, max_datagram_size, max_flows, name, receive_buffer, route, send_buffer, v6_only",
        "14:11: cluster.resolvers.balance: found \"rendezvou\"; allowed: round-robin, random, least-flows, power-of-two, rendezvous, maglev; did you mean \"rendezvous\"?",
        "15:8: cluster.resolvers.mode: found \"on-way\"; allowed: session, one-way, fan-out; did you mean \"one-way\"?",
        "16:55: cluster.resolvers.backends[1].weigth: unknown key; allowed: address, backup, max_flows, server_id, weight; did you mean `weight`?",
        "16:69: cluster.resolvers.backends[2]: found \"10.0.0.1:53\"; allowed: a backend that the cluster does not have yet (line 16 has it)",
        "16:84: cluster.resolvers.backends[3]: found \"dns.internal\"; allowed: a port from 1 to 65535 after the name, such as \"dns.internal:53\"",
        "18:1: cluster.empty.backends: missing; allowed: a list of backends, such as [\"10.0.0.1:53\"]",
    ];
    assert_eq!(messages(text), expected);
}

#[test]
fn an_empty_file_lacks_a_listener() {
    assert_eq!(messages(""), ["1:1: listener: missing; allowed: one or more [[listener]] tables"]);
    assert_eq!(
        messages("listener = []"),
        ["1:12: listener: found []; allowed: one or more [[listener]] tables"]
    );
}

#[test]
fn a_single_listener_table_is_told_from_a_list() {
    assert_eq!(
        messages("[listener]\naddress = \"[::]:53\"\n"),
        ["1:1: listener: found [listener]; allowed: one or more [[listener]] tables"]
    );
}

#[test]
fn an_empty_listener_lacks_address_and_cluster() {
    assert_eq!(
        messages("[[listener]]"),
        [
            "1:1: listener[0].address: missing; allowed: an IP address and port, such as \"0.0.0.0:53\" or \"[::]:53\"",
            "1:1: listener[0].cluster: missing; allowed: the NAME of a [cluster.NAME] table",
        ]
    );
}

#[test]
fn an_unknown_key_names_its_nearest_neighbour() {
    for (written, meant) in [
        ("addres", "address"),
        ("Cluster_", "cluster"),
        ("max-flows", "max_flows"),
        ("recieve_buffer", "receive_buffer"),
        ("v6only", "v6_only"),
    ] {
        let messages = in_listener(&format!("{written} = 1"));
        assert!(messages[0].starts_with(&format!("{written}: unknown key; allowed: ")));
        assert!(messages[0].ends_with(&format!("; did you mean `{meant}`?")), "{messages:?}");
    }
    assert!(!in_listener("colour = 1")[0].contains("did you mean"));
}

#[test]
fn a_word_of_another_balancer_names_what_it_is_called_here() {
    let meant = |messages: Vec<String>, meant: &str| {
        assert!(messages[0].ends_with(&format!("did you mean {meant}?")), "{messages:?}");
    };
    for (written, here) in [
        ("bind", "address"),
        ("maxconn", "max_flows"),
        ("proxy-pass", "cluster"),
        ("dgram-bind", "address"),
        ("acl", "route"),
        ("rcvbuf", "receive_buffer"),
    ] {
        meant(in_listener(&format!("{written} = 1")), &format!("`{here}`"));
    }
    for (written, here) in [
        ("servers", "backends"),
        ("proxy_timeout", "idle_timeout"),
        ("proxy_responses", "responses"),
        ("Health_Check", "health"),
        ("hash", "affinity"),
        ("least_conn", "balance"),
        ("hash-type", "balance"),
        ("stick-table", "affinity"),
        ("timeout_server", "idle_timeout"),
        ("proxy_next_upstream", "retry"),
        ("limit_conn", "limits"),
    ] {
        meant(in_cluster(&format!("{written} = 1")), &format!("`{here}`"));
    }
    for (written, here) in [
        ("least_conn", "least-flows"),
        ("roundrobin", "round-robin"),
        ("ip_hash", "rendezvous"),
        ("ring_hash", "maglev"),
        ("source", "rendezvous"),
        ("static-rr", "round-robin"),
    ] {
        meant(in_cluster(&format!("balance = {written:?}")), &format!("{here:?}"));
    }
    meant(at_top("[upstream.web]\nbackends = []\n"), "`cluster`");
    meant(at_top("worker_processes = 4\n"), "`workers`");
}

#[test]
fn a_number_without_unit_and_an_address_without_port_are_told_what_they_lack() {
    let messages = in_cluster("idle_timeout = \"30\"");
    assert!(messages[0].ends_with("; did you mean \"30s\"?"), "{messages:?}");
    let messages = in_cluster("idle_timeout = 30");
    assert!(messages[0].ends_with("; did you mean \"30s\"?"), "{messages:?}");
    let messages = in_cluster("idle_timeout = \"soon\"");
    assert!(!messages[0].contains("did you mean"), "{messages:?}");
}

#[test]
fn an_unknown_section_names_its_nearest_neighbour() {
    assert_eq!(
        at_top("[clusters.web]\nbackends = []\n"),
        [
            "clusters: unknown key; allowed: admin, announce, cluster, drain_timeout, lame_duck, listener, log, workers; did you mean `cluster`?"
        ]
    );
}

#[test]
fn an_unknown_word_names_its_nearest_neighbour() {
    assert_eq!(
        in_cluster("affinity = \"sourceip\""),
        [
            "affinity: found \"sourceip\"; allowed: source-ip, source-ip-port, host, quic, wireguard, sip-call-id; did you mean \"source-ip\"?"
        ]
    );
    assert_eq!(
        at_top("workers = \"atuo\""),
        [
            "workers: found \"atuo\"; allowed: \"auto\" or a whole number from 1 to 1024; did you mean \"auto\"?"
        ]
    );
}

#[test]
fn a_value_of_another_type_is_shown_as_written() {
    for (written, found) in [
        ("\"yes\"", "\"yes\""),
        ("'yes'", "'yes'"),
        ("1_0", "1_0"),
        ("1.5", "1.5"),
        ("1979-05-27", "1979-05-27"),
        ("[ 1, 2 ]", "[ 1, 2 ]"),
        ("{ a = 1 }", "{ a = 1 }"),
        ("[\n1]", "[\\n1]"),
    ] {
        let messages = in_listener(&format!("v6_only = {written}"));
        assert_eq!(messages, [format!("v6_only: found {found}; allowed: true or false")]);
    }
}

#[test]
fn a_long_value_is_cut() {
    let messages = in_listener(&format!("v6_only = \"{}\"", "ä".repeat(10_000)));
    assert_eq!(
        messages,
        [format!("v6_only: found \"{}...; allowed: true or false", "ä".repeat(59))]
    );
}

#[test]
fn control_characters_are_shown_escaped() {
    assert_eq!(
        messages(
            "[[listener]]\naddress = \"[::]:53\"\ncluster = \"\\u001b[2J\"\n\"\\u001b\\n\" = 1"
        ),
        [
            "3:11: listener[0].cluster: found \"\\u001b[2J\"; allowed: the NAME of a [cluster.NAME] table",
            "4:1: listener[0].\"\\u{1b}\\n\": unknown key; allowed: accept, accept_proxy_protocol, address, allow, announce, backend_port, cluster, deny, dont_fragment, fast_path, interface, max_datagram_size, max_flows, name, receive_buffer, route, send_buffer, v6_only",
        ]
    );
    let errors = parse("workers = \"\u{202e}\"", "a\u{1b}b\n").unwrap_err().to_string();
    assert!(errors.starts_with("a\\u{1b}b\\n:1:1: listener: missing"), "{errors}");
    assert!(errors.contains("workers: found \"\\u{202e}\";"), "{errors}");
}

#[test]
fn a_column_counts_characters() {
    assert_eq!(
        messages("listener = [{ address = \"äöü\", cluster = 1 }]"),
        [
            "1:25: listener[0].address: found \"äöü\"; allowed: an IP address and port, such as \"0.0.0.0:53\" or \"[::]:53\"",
            "1:42: listener[0].cluster: found 1; allowed: the NAME of a [cluster.NAME] table",
        ]
    );
}

#[test]
fn a_refused_cluster_is_not_called_unknown() {
    assert_eq!(in_cluster("responses = -1").len(), 1);
}

#[test]
fn many_clusters_are_not_all_listed() {
    let clusters: String = (0..20).map(|i| format!("[cluster.c{i}]\nbackends = []\n")).collect();
    let text = format!("[[listener]]\naddress = \"[::1]:1\"\ncluster = \"x\"\n{clusters}");
    assert_eq!(
        messages(&text),
        [
            "3:11: listener[0].cluster: found \"x\"; allowed: \"c0\", \"c1\", \"c2\", \"c3\", \"c4\", \"c5\", \"c6\", \"c7\" and 12 more"
        ]
    );
}
