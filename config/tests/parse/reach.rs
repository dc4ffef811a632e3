//! Addresses from which nothing would arrive, or to which nothing would go.

use flowgate_config::Target;
use ipnet::IpNet;

use crate::{in_cluster, in_listener, messages, with_cluster_lines, with_listener_lines};

#[test]
fn a_network_of_mapped_addresses_is_the_ipv4_network_that_it_stands_for() {
    let config = with_listener_lines(
        "deny = [\"::ffff:192.0.2.0/120\", \"::ffff:127.0.0.1\", \"::ffff:0:0/96\", \"2001:db8::/32\", \"::/0\"]",
    );
    let networks = ["192.0.2.0/24", "127.0.0.1/32", "0.0.0.0/0", "2001:db8::/32", "::/0"];
    let networks = networks.map(|network| network.parse::<IpNet>().unwrap());
    assert_eq!(config.listeners[0].deny, networks);
}

/// The messages about a cluster of this mode with this backend, without the place.
fn of_backend(lines: &str, address: &str) -> Vec<String> {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:53\"\ncluster = \"web\"\n[cluster.web]\n{lines}\nbackends = [\"{address}\"]\n"
    );
    messages(&text).iter().map(|m| m.split_once(": ").unwrap().1.to_owned()).collect()
}

#[test]
fn a_backend_is_one_host() {
    for address in ["255.255.255.255:53", "239.1.2.3:53", "[ff02::1]:53"] {
        let messages = of_backend("", address);
        assert!(messages[0].contains("allowed: the address of one host"), "{messages:?}");
    }
    // Nobody answers there, so a group is as good as a host.
    let config = with_cluster_lines(
        "mode = \"one-way\"\n[cluster.group]\nmode = \"one-way\"\nbackends = [\"239.1.2.3:53\"]",
    );
    assert_eq!(config.clusters[1].members.len(), 1);
    assert_eq!(of_backend("mode = \"one-way\"", "255.255.255.255:53").len(), 1);
}

#[test]
fn a_link_local_address_has_a_zone_which_may_be_a_name() {
    for address in ["[fe80::1]:53", "[fe80::1%nosuchinterface]:53", "[fe80::1%]:53"] {
        let messages = of_backend("", address);
        let allowed = "allowed: a link-local address with the interface that it is of";
        assert!(messages[0].contains(allowed), "{address}: {messages:?}");
    }
    let text = |zone: &str| {
        format!(
            "[[listener]]\naddress = \"[::]:53\"\ncluster = \"web\"\n[cluster.web]\nbackends = [\"[fe80::1%{zone}]:53\"]"
        )
    };
    let target = |zone: &str| {
        let config = flowgate_config::parse(&text(zone), "f").unwrap();
        config.clusters[0].members[0].target.clone()
    };
    // The loopback interface is the first of every network namespace.
    assert_eq!(target("lo"), target("1"));
    let Target::Address(std::net::SocketAddr::V6(address)) = target("lo") else { panic!() };
    assert_eq!(address.scope_id(), 1);
}

#[test]
fn a_listener_is_on_an_address_at_which_something_arrives() {
    let of = |address: &str| {
        messages(&format!(
            "[[listener]]\naddress = \"{address}\"\ncluster = \"web\"\n[cluster.web]\nbackends = []\n"
        ))
    };
    for address in ["239.1.2.3:5000", "[ff05::1]:5000"] {
        let messages = of(address);
        assert!(
            messages[0].contains("or a multicast group beside the `interface`"),
            "{messages:?}"
        );
        let joined = format!("{address}\"\ninterface = \"eth0");
        let joined = format!(
            "[[listener]]\naddress = \"{joined}\"\ncluster = \"web\"\n[cluster.web]\nbackends = []\n"
        );
        assert!(flowgate_config::parse(&joined, "f").is_ok(), "{address}");
    }
    assert!(of("[fe80::1]:53")[0].contains("allowed: a link-local address with the interface"));
}

#[test]
fn a_backend_is_not_the_listener_that_it_serves() {
    let of = |address: &str, backend: &str| {
        messages(&format!(
            "[[listener]]\naddress = \"{address}\"\ncluster = \"web\"\n[cluster.web]\nbackends = [\"10.0.0.1:53\", \"{backend}\"]\n"
        ))
    };
    for (address, backend) in [
        ("127.0.0.1:53", "127.0.0.1:53"),
        ("127.0.0.1:53", "[::ffff:127.0.0.1]:53"),
        ("0.0.0.0:53", "127.0.0.1:53"),
        ("[::]:53", "127.0.0.9:53"),
        ("[::]:53", "[::1]:53"),
    ] {
        let messages = of(address, backend);
        let allowed = "allowed: a cluster that has not the listener itself among its backends";
        assert!(messages[0].contains(allowed), "{address} {backend}: {messages:?}");
    }
    let mirrored = "[[listener]]\naddress = \"127.0.0.1:53\"\ncluster = \"web\"\n[cluster.web]\nmirror = { cluster = \"shadow\" }\nbackends = []\n[cluster.shadow]\nbackends = [\"127.0.0.1:53\"]\n";
    assert_eq!(messages(mirrored).len(), 1);
    // Another port is another service.
    assert!(flowgate_config::parse("[[listener]]\naddress = \"0.0.0.0:53\"\ncluster = \"web\"\n[cluster.web]\nbackends = [\"127.0.0.1:5353\"]\n", "f").is_ok());
}

#[test]
fn limits_of_flows_need_flows() {
    assert_eq!(
        in_cluster("mode = \"one-way\"\nlimits = { unanswered_timeout = \"5s\" }"),
        [
            "limits.unanswered_timeout: found \"5s\"; allowed: \"0s\", as there are no flows without answers to clients"
        ]
    );
    assert_eq!(in_listener("deny = [\"10.0.0.0/33\"]").len(), 1);
}
