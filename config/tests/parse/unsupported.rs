//! What belongs to the product and is refused until it is built.

use flowgate_config::{Fault, Problem, parse};

/// The problems of a valid text with `lines` added at the top, in the listener or in the cluster.
fn problems(section: &str, lines: &str) -> Vec<Problem> {
    let at = |name| if name == section { lines } else { "" };
    let text = format!(
        "{}\n[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n{}\n[cluster.web]\nbackends = []\n{}\n",
        at("top"),
        at("listener"),
        at("cluster"),
    );
    parse(&text, "f").map_or_else(|errors| errors.iter().cloned().collect(), |_| Vec::new())
}

/// Each key with a valid value that is not yet supported, and what is.
const NOT_YET: &[(&str, &str, &str, &str)] = &[
    ("top", "admin.socket", "\"/run/x.sock\"", "to leave the key out"),
    ("top", "admin.http", "\"127.0.0.1:9464\"", "to leave the key out"),
    ("top", "log.flows", "\"stderr\"", "\"off\""),
    ("top", "log.flows", "\"/var/log/flows\"", "\"off\""),
    ("listener", "accept_proxy_protocol", "[\"10.0.0.0/8\"]", "[]"),
    ("cluster", "mode", "\"one-way\"", "\"session\""),
    ("cluster", "mode", "\"fan-out\"", "\"session\""),
    ("cluster", "on_backend_down", "\"rehash\"", "\"pin\""),
    ("cluster", "on_backend_down", "\"close\"", "\"pin\""),
    ("cluster", "health.probe", "\"tcp\"", "\"off\""),
    ("cluster", "health.probe", "\"udp\"", "\"off\""),
    ("cluster", "health.port", "53", "to leave the key out"),
    ("cluster", "health.send", "\"dns\"", "to leave the key out"),
    ("cluster", "health.send", "\"hex:00ffAB\"", "to leave the key out"),
    ("cluster", "health.send", "\"text:PING\"", "to leave the key out"),
    ("cluster", "health.expect", "\"any\"", "to leave the key out"),
    ("cluster", "health.expect", "\"regex:^PONG\"", "to leave the key out"),
    ("cluster", "health.interval", "\"5s\"", "to leave the key out"),
    ("cluster", "health.timeout", "\"2s\"", "to leave the key out"),
    ("cluster", "health.rise", "2", "to leave the key out"),
    ("cluster", "health.fall", "3", "to leave the key out"),
    ("cluster", "health.fail_open", "false", "true"),
    ("cluster", "health.passive", "true", "false"),
];

#[test]
fn what_is_not_built_yet_is_refused_by_key_and_value() {
    for (section, key, value, allowed) in NOT_YET {
        let problems = problems(section, &format!("{key} = {value}"));
        let [problem] = &problems[..] else {
            panic!("{key} = {value}: {problems:?}");
        };
        assert!(problem.key.ends_with(key), "{problem}");
        assert_eq!(problem.fault, Fault::NotYetSupported { found: (*value).into() });
        assert_eq!(problem.allowed.as_deref(), Some(*allowed));
    }
}

#[test]
fn what_is_not_built_yet_is_checked_all_the_same() {
    for (section, line, allowed) in [
        (
            "top",
            "admin.http = \"9464\"",
            "an IP address and port, such as \"0.0.0.0:53\" or \"[::]:53\"",
        ),
        ("top", "admin.socket = \"\"", "a name of 1 to 255 bytes"),
        (
            "listener",
            "allow = [\"10.0.0.0/33\"]",
            "a network such as \"10.0.0.0/8\", or an address",
        ),
        ("listener", "deny = \"10.0.0.0/8\"", "a list of networks, such as [\"10.0.0.0/8\"]"),
        ("cluster", "mode = \"sessions\"", "session, one-way, fan-out"),
        ("cluster", "on_backend_down = \"drop\"", "pin, rehash, close"),
        ("cluster", "health.probe = \"icmp\"", "off, tcp, udp"),
        ("cluster", "health.port = 0", "a whole number from 1 to 65535"),
        (
            "cluster",
            "health.send = \"hex:123\"",
            "\"dns\", \"ntp\", \"sip\", \"quic\", \"hex:...\", \"text:...\"",
        ),
        (
            "cluster",
            "health.send = \"text:\"",
            "\"dns\", \"ntp\", \"sip\", \"quic\", \"hex:...\", \"text:...\"",
        ),
        (
            "cluster",
            "health.expect = \"PONG\"",
            "\"any\", \"hex:...\", \"text:...\", \"regex:...\"",
        ),
        ("cluster", "health.interval = \"0s\"", "a duration from 1ms to 1day, such as \"5s\""),
        ("cluster", "health.rise = 0", "a whole number from 1 to 4294967295"),
        ("cluster", "health.passive = 1", "true or false"),
        ("cluster", "limits.amplification = -1", "a whole number from 0 to 4294967295"),
        ("cluster", "health = true", "a table"),
    ] {
        let problems = problems(section, line);
        let [problem] = &problems[..] else {
            panic!("{line}: {problems:?}");
        };
        assert!(matches!(problem.fault, Fault::Invalid { .. }), "{problem}");
        assert_eq!(problem.allowed.as_deref(), Some(allowed));
    }
}
