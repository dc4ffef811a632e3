//! Which values are refused, key by key.

use crate::{MINIMAL, at_top, in_cluster, in_listener, messages, without_place};

#[test]
fn a_number_out_of_range_is_refused_with_the_range() {
    for (line, range) in [
        ("max_datagram_size = 0", "1 to 65507"),
        ("max_datagram_size = 65508", "1 to 65507"),
        ("max_datagram_size = 18446744073709551616", "1 to 65507"),
        ("max_flows = -1", "0 to 16777216"),
        ("max_flows = 16777217", "0 to 16777216"),
    ] {
        let (key, value) = line.split_once(" = ").unwrap();
        let expected = format!("{key}: found {value}; allowed: a whole number from {range}");
        assert_eq!(in_listener(line), [expected]);
    }
    for key in ["responses", "requests"] {
        let expected = "found 4294967296; allowed: a whole number from 0 to 4294967295";
        assert_eq!(in_cluster(&format!("{key} = 4294967296")), [format!("{key}: {expected}")]);
    }
    for value in ["0", "1025", "-1", "70000", "1.0", "99999999999999999999999999999999999999999"] {
        let allowed = "\"auto\" or a whole number from 1 to 1024";
        let expected = format!("workers: found {value}; allowed: {allowed}");
        assert_eq!(at_top(&format!("workers = {value}")), [expected]);
    }
}

#[test]
fn a_duration_is_refused_with_its_range() {
    let allowed = "allowed: a duration from 1ms to 30days, such as \"5s\"";
    for value in ["\"0s\"", "\"31days\"", "\"\"", "\"a while\"", "\"-5s\"", "true"] {
        let expected = format!("idle_timeout: found {value}; {allowed}");
        assert_eq!(in_cluster(&format!("idle_timeout = {value}")), [expected]);
    }
    for value in ["60", "\"60\""] {
        assert_eq!(
            in_cluster(&format!("idle_timeout = {value}")),
            [format!("idle_timeout: found {value}; {allowed}; did you mean \"60s\"?")]
        );
    }
    assert_eq!(
        at_top("drain_timeout = \"25h\""),
        ["drain_timeout: found \"25h\"; allowed: a duration from 0s to 1day, such as \"5s\""]
    );
}

#[test]
fn a_size_is_refused_with_its_range() {
    for value in ["\"4KB\"", "\"1GiB\"", "\"4 apples\"", "\"\"", "0", "-1", "\"inf\"", "[]"] {
        let allowed = "allowed: a size from 4.0 KiB to 512.0 MiB, such as \"4MiB\"";
        for key in ["receive_buffer", "send_buffer"] {
            let expected = format!("{key}: found {value}; {allowed}");
            assert_eq!(in_listener(&format!("{key} = {value}")), [expected]);
        }
    }
}

/// The messages about a file of listeners with these lines.
fn of_listeners(listeners: &[&str]) -> Vec<String> {
    let listener = |lines: &&str| format!("[[listener]]\ncluster = \"web\"\n{lines}\n");
    let listeners: String = listeners.iter().map(listener).collect();
    messages(&format!("{listeners}[cluster.web]\nbackends = []\n"))
}

#[test]
fn a_listeners_address_is_its_own() {
    let clash = |found: &str| {
        format!(
            "6:11: listener[1].address: found \"{found}\"; allowed: an address that no other listener receives on (line 3 has it)"
        )
    };
    for [first, second] in [
        ["0.0.0.0:53", "0.0.0.0:53"],
        ["[::1]:53", "[0::1]:53"],
        ["127.0.0.1:53", "[::ffff:127.0.0.1]:53"],
        ["0.0.0.0:53", "[::]:53"],
        ["[::]:53", "0.0.0.0:53"],
    ] {
        let listeners = [first, second].map(|address| format!("address = \"{address}\""));
        assert_eq!(of_listeners(&[&listeners[0], &listeners[1]]), [clash(second)]);
    }
}

#[test]
fn a_listeners_name_is_its_own() {
    assert_eq!(
        of_listeners(&[
            "address = \"[::1]:1\"\nname = \"a\"",
            "address = \"[::1]:2\"\nname = \"a\""
        ]),
        [
            "8:8: listener[1].name: found \"a\"; allowed: a name that no other listener has (line 4 has it)"
        ]
    );
    assert_eq!(
        of_listeners(&["address = \"[::1]:1\"\nname = \"[::1]:2\"", "address = \"[::1]:2\""]),
        [
            "5:1: listener[1].name: missing; allowed: a name that no other listener has (line 4 has it)"
        ]
    );
}

#[test]
fn names_are_not_empty() {
    assert_eq!(in_listener("name = \"\""), ["name: found \"\"; allowed: a name of 1 to 255 bytes"]);
    assert_eq!(
        messages(
            "[[listener]]\naddress = \"[::1]:1\"\ncluster = \"\"\n[cluster.\"\"]\nbackends = []"
        ),
        ["4:1: cluster.\"\": found [cluster.\"\"]; allowed: a [cluster.NAME] of 1 to 255 bytes"]
    );
}

#[test]
fn only_an_ipv6_listener_is_v6_only() {
    assert_eq!(
        of_listeners(&["address = \"0.0.0.0:53\"\nv6_only = true"]),
        ["4:11: listener[0].v6_only: found true; allowed: false, as the address is IPv4"]
    );
}

#[test]
fn a_listener_address_is_never_a_name() {
    let messages = messages(
        "[[listener]]\naddress = \"localhost:53\"\ncluster = \"a\"\n[cluster.a]\nbackends = []",
    );
    assert_eq!(
        messages,
        [
            "2:11: listener[0].address: found \"localhost:53\"; allowed: an IP address and port, such as \"0.0.0.0:53\" or \"[::]:53\""
        ]
    );
}

#[test]
fn each_key_of_the_administration_is_checked() {
    let socket = "a path of 1 to 107 bytes, such as \"/run/flowgate/control.sock\"";
    let http = "an IP address and port, such as \"127.0.0.1:9464\"";
    let long = format!("\"/{}\"", "a".repeat(107));
    for (key, value, allowed) in [
        ("socket", "\"\"", socket),
        ("socket", "1", socket),
        ("socket", "\"a\\u0000b\"", socket),
        ("http", "\"9464\"", http),
        ("http", "\"localhost:9464\"", http),
        ("http", "true", http),
    ] {
        let expected = format!("admin.{key}: found {value}; allowed: {allowed}");
        assert_eq!(at_top(&format!("[admin]\n{key} = {value}")), [expected]);
    }
    assert!(at_top(&format!("[admin]\nsocket = {long}"))[0].ends_with(socket));
    assert_eq!(
        at_top("[admin]\nsockets = \"/a\""),
        ["admin.sockets: unknown key; allowed: http, socket; did you mean `socket`?"]
    );
}

#[test]
fn a_misspelt_word_is_no_path_of_a_flow_log() {
    let allowed = "off, stderr, or the path of a file, such as \"/var/log/flowgate/flows.json\"";
    for (value, meant) in [
        ("\"sterr\"", "; did you mean \"stderr\"?"),
        ("\"Off\"", "; did you mean \"off\"?"),
        ("\"stdout\"", ""),
        ("\"/var/log/\"", ""),
        ("\"/var/\\u0000\"", ""),
        ("\"\"", ""),
        ("false", ""),
    ] {
        let expected = format!("log.flows: found {value}; allowed: {allowed}{meant}");
        assert_eq!(at_top(&format!("[log]\nflows = {value}")), [expected]);
    }
}

#[test]
fn networks_of_proxies_are_networks_that_the_listener_can_hear() {
    let key = "accept_proxy_protocol";
    let networks = "a list of networks, such as [\"10.0.0.0/8\"]";
    let one = "a network such as \"10.0.0.0/8\", or an address";
    for (value, place, allowed) in
        [("\"fd00::/8\"", key, networks), ("[\"fd00::/129\"]", "accept_proxy_protocol[0]", one)]
    {
        let found = value.trim_matches(['[', ']']);
        let expected = format!("{place}: found {found}; allowed: {allowed}");
        assert_eq!(in_listener(&format!("{key} = {value}")), [expected]);
    }
    let allowed = "allowed: networks of the families that the listener receives";
    for (listener, proxies) in [
        ("address = \"0.0.0.0:1\"", "[\"10.0.0.0/8\", \"fd00::/8\"]"),
        ("address = \"[::1]:1\"", "[\"10.0.0.0/8\"]"),
        ("address = \"[::]:1\"\nv6_only = true", "[\"10.0.0.0/8\"]"),
    ] {
        let messages = of_listeners(&[&format!("{listener}\n{key} = {proxies}")]);
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(messages[0].contains(allowed), "{messages:?}");
    }
}

#[test]
fn an_interface_has_a_name_that_linux_allows() {
    for name in ["", "eth 0", "a/b", "eth0:1", "..", "sixteen-letters-"] {
        let messages = of_listeners(&[&format!("address = \"0.0.0.0:53\"\ninterface = {name:?}")]);
        let allowed = "allowed: the name of an interface, such as \"eth0\"";
        assert!(messages.iter().any(|message| message.contains(allowed)), "{name:?}: {messages:?}");
    }
}

#[test]
fn one_address_at_two_interfaces_is_two_listeners_with_names_of_their_own() {
    let at = |name: &str, interface: &str| {
        format!("name = {name:?}\naddress = \"0.0.0.0:53\"\ninterface = {interface:?}")
    };
    let two = format!(
        "[[listener]]\ncluster = \"web\"\n{}\n[[listener]]\ncluster = \"web\"\n{}\n[cluster.web]\nbackends = []\n",
        at("a", "eth0"),
        at("b", "eth1")
    );
    assert!(flowgate_config::parse(&two, "f").is_ok());
    let refused = of_listeners(&[&at("a", "eth0"), &at("b", "eth0")]);
    assert!(refused[0].contains("an address that no other listener receives on ("), "{refused:?}");
    let refused = of_listeners(&[&at("a", "eth0"), "address = \"0.0.0.0:53\""]);
    assert!(refused[0].contains("unless each of them has an `interface`"), "{refused:?}");
}

#[test]
fn what_knows_no_interface_is_refused_beside_one() {
    for line in ["accept = \"connected\"", "fast_path = \"tc\""] {
        let listener = format!("address = \"192.0.2.1:53\"\ninterface = \"eth0\"\n{line}");
        let refused = of_listeners(&[&listener]);
        assert!(refused[0].contains("the datagrams of one interface only"), "{refused:?}");
    }
}

#[test]
fn what_leaves_by_raw_sockets_cannot_be_kept_from_being_cut() {
    for lines in ["return = \"direct\"", "mode = \"one-way\"\nsource = \"client\""] {
        let text = format!("{MINIMAL}\n{lines}");
        let text = text.replace("[[listener]]", "[[listener]]\ndont_fragment = true");
        let said = without_place(messages(&text), "listener[0].");
        assert!(said.len() == 1 && said[0].starts_with("dont_fragment: "), "{lines}: {said:?}");
    }
}

#[test]
fn quic_is_not_cut_unless_it_is_said() {
    let quic = format!("{MINIMAL}\naffinity = \"quic\"");
    let is_whole = |text: &str| {
        flowgate_config::parse(text, "test.toml").expect("it is valid").listeners[0].dont_fragment
    };
    assert!(is_whole(&quic) && !is_whole(MINIMAL));
    assert!(!is_whole(&quic.replace("[[listener]]", "[[listener]]\ndont_fragment = false")));
}
