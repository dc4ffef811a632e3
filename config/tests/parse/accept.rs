//! `accept`: which clients get sockets of their own, and which listeners cannot give them any.

use flowgate_core::config::Accept;

use crate::{messages, valid};

fn text(listener: &str, cluster: &str) -> String {
    format!(
        "[[listener]]\n{listener}\ncluster = \"web\"\n[cluster.web]\nbackends = [\"10.0.0.1:53\"]\n{cluster}\n"
    )
}

#[test]
fn every_value_has_its_meaning() {
    for (lines, accept) in [
        ("", Accept::Shared),
        ("accept = \"shared\"", Accept::Shared),
        ("accept = \"connected\"", Accept::Connected),
        ("accept = \"confirmed\"", Accept::Confirmed),
    ] {
        let text = text(&format!("address = \"192.0.2.1:53\"\n{lines}"), "");
        assert_eq!(valid(&text).listeners[0].accept, accept, "{lines}");
    }
    assert_eq!(
        messages(&text("address = \"192.0.2.1:53\"\naccept = \"conected\"", "")),
        ["3:10: listener[0].accept: found \"conected\"; allowed: shared, connected, confirmed; \
             did you mean \"connected\"?"]
    );
}

#[test]
fn what_cannot_be_had_is_refused_with_the_reason() {
    let one_address =
        "shared, or another value beside one IPv4 address: not beside a wildcard or IPv6";
    for (listener, cluster, allowed) in [
        ("address = \"0.0.0.0:53\"", "", one_address),
        ("address = \"[::]:53\"", "", one_address),
        ("address = \"[::1]:53\"", "", one_address),
        (
            "address = \"192.0.2.1:53\"\naccept_proxy_protocol = [\"10.0.0.0/8\"]",
            "",
            "shared, as accept_proxy_protocol lets a proxy's socket speak for many clients",
        ),
        (
            "address = \"192.0.2.1:53\"",
            "mode = \"one-way\"",
            "shared, as the cluster's mode is not \"session\"",
        ),
        (
            "address = \"192.0.2.1:53\"",
            "mode = \"fan-out\"\nreply_from = \"first\"",
            "shared, as the cluster's mode is not \"session\"",
        ),
    ] {
        for accept in ["connected", "confirmed"] {
            let found = messages(&text(&format!("accept = {accept:?}\n{listener}"), cluster));
            let expected =
                format!("2:10: listener[0].accept: found {accept:?}; allowed: {allowed}");
            assert_eq!(found, [expected]);
        }
        valid(&text(&format!("accept = \"shared\"\n{listener}"), cluster));
    }
}
