//! `fast_path`: which listeners' flows the kernel may forward, and with which it cannot.

use flowgate_config::FastPathMode;

use crate::{messages, valid};

fn text(listener: &str, cluster: &str) -> String {
    format!(
        "[[listener]]\n{listener}\ncluster = \"web\"\n[cluster.web]\nbackends = [\"10.0.0.1:53\"]\n{cluster}\n"
    )
}

#[test]
fn every_value_has_its_meaning() {
    for (lines, mode) in [
        ("", FastPathMode::Off),
        ("fast_path = \"off\"", FastPathMode::Off),
        ("fast_path = \"auto\"", FastPathMode::Auto),
        ("fast_path = \"tc\"", FastPathMode::Tc),
    ] {
        let text = text(&format!("address = \"192.0.2.1:53\"\n{lines}"), "");
        assert_eq!(valid(&text).listeners[0].fast_path, mode, "{lines}");
    }
}

#[test]
fn what_is_named_and_cannot_be_is_refused_and_what_is_automatic_is_not() {
    let clusters = [
        "mode = \"one-way\"",
        "requests = 3",
        "responses = 1",
        "affinity = \"quic\"",
        "send_proxy_protocol = \"every\"",
        "[cluster.web.limits]\namplification = 3",
        "[cluster.web.limits]\ndatagrams_per_second_per_source = 3",
        "[cluster.web.limits]\nbytes_per_second_per_source = \"1KiB\"",
    ];
    for cluster in clusters {
        let listener = |mode| format!("address = \"192.0.2.1:53\"\nfast_path = {mode:?}");
        let found = messages(&text(&listener("tc"), cluster));
        let says = "3:13: listener[0].fast_path: found \"tc\"; allowed: off or auto, as ";
        assert!(found.len() == 1 && found[0].starts_with(says), "{cluster}: {found:?}");
        valid(&text(&listener("auto"), cluster));
    }
    let found = messages(&text("address = \"127.0.0.1:53\"\nfast_path = \"tc\"", ""));
    assert!(found.len() == 1 && found[0].contains("loopback"), "{found:?}");
    let found = messages(&text("address = \"192.0.2.1:53\"\nfast_path = \"xdp\"", ""));
    assert!(found.len() == 1 && found[0].contains("no program for XDP"), "{found:?}");
}
