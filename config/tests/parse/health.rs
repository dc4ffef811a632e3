//! `[cluster.NAME.health]`: what is probed, how, and what does not fit together.

use std::time::Duration;

use flowgate_config::{Expect, Payload, Probe, Probing};
use flowgate_core::config::{Failback, HealthPolicy, OnBackendDown, Passive};

use crate::{in_cluster, with_cluster_lines};

const SEND: &str = "\"dns\", \"ntp\", \"sip\", \"quic\", \"hex:...\" or \"text:...\"";

/// The probing and the policy that these keys make.
fn health(lines: &str) -> (Option<Probing>, HealthPolicy) {
    let config = with_cluster_lines(&format!("[cluster.resolvers.health]\n{lines}"));
    assert_eq!(config.warnings, [], "{lines}");
    let cluster = &config.clusters[0];
    (cluster.health.clone(), cluster.policy.health)
}

fn probing(lines: &str) -> Probing {
    health(lines).0.expect("a probe")
}

/// What these keys of a UDP probe make it send and expect.
fn udp(lines: &str) -> (Payload, Expect) {
    match probing(&format!("probe = \"udp\"\n{lines}")).kind {
        Probe::Udp { send, expect } => (send, expect),
        Probe::Tcp => panic!("a UDP probe"),
    }
}

/// The messages about these keys, without the place.
fn refused(lines: &str) -> Vec<String> {
    let messages = in_cluster(&format!("[cluster.web.health]\n{lines}"));
    messages.iter().map(|message| message.trim_start_matches("health.").to_owned()).collect()
}

#[test]
fn a_tcp_probe_needs_no_other_key() {
    assert_eq!(
        probing("probe = \"tcp\""),
        Probing {
            kind: Probe::Tcp,
            port: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
        }
    );
}

#[test]
fn a_udp_probe_sends_a_preset_or_bytes() {
    for (written, payload) in [
        ("dns", Payload::Dns),
        ("ntp", Payload::Ntp),
        ("sip", Payload::Sip),
        ("quic", Payload::Quic),
        ("hex:00ffAb", Payload::Bytes(vec![0x00, 0xff, 0xab])),
        ("text:PING", Payload::Bytes(b"PING".to_vec())),
        ("text:a:\\r\\n\\u0000", Payload::Bytes(b"a:\r\n\0".to_vec())),
        ("text:hex:00", Payload::Bytes(b"hex:00".to_vec())),
        ("text:ä", Payload::Bytes("ä".into())),
        ("text: ", Payload::Bytes(b" ".to_vec())),
    ] {
        assert_eq!(udp(&format!("send = \"{written}\"")), (payload, Expect::Any));
    }
}

#[test]
fn an_answer_is_expected_to_be_anything_or_bytes_or_a_pattern() {
    for (written, expect) in [
        ("any", Expect::Any),
        ("hex:50", Expect::Bytes(vec![0x50])),
        ("text:PONG", Expect::Bytes(b"PONG".to_vec())),
        ("text:any", Expect::Bytes(b"any".to_vec())),
        ("regex:^PONG \\\\d+$", Expect::Regex(r"^PONG \d+$".into())),
        ("regex:(?-u)\\\\xff:", Expect::Regex(r"(?-u)\xff:".into())),
        ("regex:(?i)ok|\\\\w", Expect::Regex(r"(?i)ok|\w".into())),
    ] {
        let keys = format!("send = \"text:PING\"\nexpect = \"{written}\"");
        assert_eq!(udp(&keys).1, expect);
    }
}

#[test]
fn a_preset_knows_its_answer_itself() {
    assert_eq!(udp("send = \"dns\"\nexpect = \"any\""), (Payload::Dns, Expect::Any));
    for preset in ["dns", "ntp", "sip", "quic"] {
        for expect in ["text:a", "hex:00", "regex:a"] {
            assert_eq!(
                refused(&format!("probe = \"udp\"\nsend = \"{preset}\"\nexpect = \"{expect}\"")),
                [format!(
                    "expect: found \"{expect}\"; allowed: \"any\", as the preset in `send` knows what an answer looks like"
                )]
            );
        }
    }
}

#[test]
fn a_udp_probe_must_be_told_what_to_send() {
    let expected = format!("send: missing; allowed: what probe = \"udp\" is to send: {SEND}");
    assert_eq!(refused("probe = \"udp\""), [expected.as_str()]);
    assert_eq!(refused("probe = \"udp\"\nexpect = \"text:PONG\""), [expected]);
}

#[test]
fn bytes_are_refused_with_what_is_wrong_with_them() {
    let hex = "after \"hex:\" two hexadecimal digits for each byte";
    let length = "1 to 65507 bytes after the colon";
    let expect = "\"any\", \"hex:...\", \"text:...\" or \"regex:...\"";
    for (key, value, allowed) in [
        ("send", "\"hex:123\"", hex),
        ("send", "\"hex:0g\"", hex),
        ("send", "\"hex:00 11\"", hex),
        ("send", "\"hex:ä\"", hex),
        ("send", "\"hex:\"", length),
        ("send", "\"text:\"", length),
        ("send", "\"PING\"", SEND),
        ("send", "\"any\"", SEND),
        ("send", "\"regex:a\"", SEND),
        ("send", "\"\"", SEND),
        ("send", "1", SEND),
        ("expect", "\"hex:0\"", hex),
        ("expect", "\"text:\"", length),
        ("expect", "\"PONG\"", expect),
        ("expect", "\"dns\"", expect),
        ("expect", "\"regex:\"", expect),
        ("expect", "true", expect),
    ] {
        let mut lines = format!("probe = \"udp\"\n{key} = {value}\n");
        if key != "send" {
            lines += "send = \"text:a\"";
        }
        assert_eq!(refused(&lines), [format!("{key}: found {value}; allowed: {allowed}")]);
    }
    let at_most = |bytes| format!("probe = \"udp\"\nsend = \"text:{}\"", "a".repeat(bytes));
    assert!(refused(&at_most(65_508))[0].ends_with(length));
    probing(&at_most(65_507));
    assert!(
        refused("probe = \"udp\"\nsend = \"DNS\"")[0].ends_with("; did you mean \"dns\"?"),
        "a preset in capitals"
    );
}

#[test]
fn a_pattern_is_refused_with_the_reason() {
    for (pattern, reason) in [
        ("(", "unclosed group"),
        ("[", "unclosed character class"),
        ("*", "repetition operator missing expression"),
        ("a\\n(", "unclosed group"),
        ("(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
        ("((a{1000}){1000}){1000}", "this one takes too much memory"),
    ] {
        let lines = format!("probe = \"udp\"\nsend = \"text:a\"\nexpect = \"regex:{pattern}\"");
        assert_eq!(
            refused(&lines),
            [format!(
                "expect: found \"regex:{pattern}\"; allowed: after \"regex:\" a regular expression ({reason})"
            )]
        );
    }
}

#[test]
fn a_timeout_is_no_longer_than_the_interval() {
    let probing = probing("probe = \"tcp\"\ninterval = \"1s\"\ntimeout = \"1s\"");
    assert_eq!(probing.timeout, Duration::from_secs(1));
    assert_eq!(
        refused("probe = \"tcp\"\ninterval = \"1s\"\ntimeout = \"2s\""),
        ["timeout: found \"2s\"; allowed: at most the `interval`, 1s"]
    );
}

#[test]
fn the_usual_timeout_gives_way_to_a_short_interval() {
    assert_eq!(probing("probe = \"tcp\"\ninterval = \"1s\"").timeout, Duration::from_secs(1));
    assert_eq!(probing("probe = \"tcp\"\ninterval = \"1h\"").timeout, Duration::from_secs(2));
}

#[test]
fn without_probes_and_passive_signs_nothing_counts_against_a_backend() {
    let policy = HealthPolicy {
        on_backend_down: OnBackendDown::Rehash,
        failback: Failback::NewFlows,
        fail_open: true,
        passive: None,
    };
    assert_eq!(health("passive = false"), (None, policy));
    assert_eq!(
        health("passive = false\nfail_open = false"),
        (None, HealthPolicy { fail_open: false, ..policy })
    );
}

#[test]
fn passive_signs_share_fall_and_interval_with_the_probe() {
    let passive = Some(Passive { silent_flows: 7, back_off: Duration::from_secs(9) });
    let keys = "fall = 7\ninterval = \"9s\"";
    assert_eq!(health(keys).1.passive, passive);
    assert_eq!(health(&format!("probe = \"tcp\"\n{keys}")).1.passive, passive);
    let without = health(&format!("probe = \"tcp\"\npassive = false\n{keys}"));
    assert_eq!(without.1.passive, None);
    assert_eq!(without.0.map(|probing| probing.fall), Some(7));
}

#[test]
fn what_a_tcp_probe_would_send_and_expect_draws_warnings() {
    let config = with_cluster_lines(
        "[cluster.resolvers.health]\nprobe = \"tcp\"\nsend = \"dns\"\nexpect = \"any\"",
    );
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let ending = "has no effect, as only probe = \"udp\" sends and expects";
    assert!(warnings.iter().all(|warning| warning.ends_with(ending)), "{warnings:?}");
}

#[test]
fn keys_of_a_probe_that_is_off_draw_warnings() {
    let warned = |lines: &str| -> Vec<String> {
        let config = with_cluster_lines(&format!("[cluster.resolvers.health]\n{lines}"));
        assert_eq!(config.clusters[0].health, None);
        config.warnings.iter().map(|warning| warning.to_string()).collect()
    };
    let of_probes = "port = 53\nsend = \"hex:00\"\nexpect = \"any\"\ntimeout = \"9s\"\nrise = 1";
    let expected: Vec<_> = [(10, 8, "port"), (11, 8, "send"), (12, 10, "expect"), (13, 11, "timeout"), (14, 8, "rise")]
        .map(|(line, column, key)| {
            format!("flowgate.toml:{line}:{column}: cluster.resolvers.health.{key}: has no effect, as `probe` is \"off\"")
        })
        .into();
    assert_eq!(warned(of_probes), expected);
    assert_eq!(
        warned("passive = false\ninterval = \"1s\"\nfall = 1"),
        [
            "flowgate.toml:11:12: cluster.resolvers.health.interval: has no effect, as `probe` is \"off\" and `passive` is false",
            "flowgate.toml:12:8: cluster.resolvers.health.fall: has no effect, as `probe` is \"off\" and `passive` is false",
        ]
    );
    assert_eq!(warned("interval = \"1s\"\nfall = 1"), [""; 0]);
}

#[test]
fn each_key_is_checked() {
    let pace = "a duration from 1ms to 1day, such as \"5s\"";
    for (key, value, allowed) in [
        ("probe", "\"icmp\"", "off, tcp, udp"),
        ("probe", "false", "off, tcp, udp"),
        ("port", "0", "a whole number from 1 to 65535"),
        ("port", "65536", "a whole number from 1 to 65535"),
        ("interval", "\"0s\"", pace),
        ("timeout", "\"25h\"", pace),
        ("rise", "0", "a whole number from 1 to 4294967295"),
        ("fall", "0", "a whole number from 1 to 4294967295"),
        ("fail_open", "\"yes\"", "true or false"),
        ("passive", "1", "true or false"),
    ] {
        let expected = format!("{key}: found {value}; allowed: {allowed}");
        assert_eq!(refused(&format!("{key} = {value}")), [expected]);
    }
    assert_eq!(in_cluster("health = true"), ["health: found true; allowed: a table"]);
    assert_eq!(
        refused("prob = \"tcp\""),
        [
            "prob: unknown key; allowed: expect, fail_open, fall, interval, passive, port, probe, rise, send, timeout; did you mean `probe`?"
        ]
    );
    assert_eq!(
        in_cluster("on_backend_down = \"drop\""),
        ["on_backend_down: found \"drop\"; allowed: pin, rehash, close"]
    );
}

#[test]
fn an_unknown_probe_is_no_reason_to_refuse_its_keys() {
    let messages =
        refused("probe = \"udpp\"\nsend = \"dns\"\nexpect = \"text:a\"\ntimeout = \"9s\"");
    assert_eq!(messages, ["probe: found \"udpp\"; allowed: off, tcp, udp; did you mean \"udp\"?"]);
}
