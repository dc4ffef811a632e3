//! `source`: which address and port of ours the backends see, and what does not go with it.

use std::net::IpAddr;

use flowgate_core::config::{PortRange, Source, SourceAddress};

use crate::{in_cluster, messages, valid, with_cluster_lines};

fn source(written: &str) -> Source {
    with_cluster_lines(&format!("source = {written:?}")).clusters[0].policy.source.clone()
}

const ALLOWED: &str = "allowed: \"client\", an address of this host such as \"10.0.0.5\", one with a \
                       range of ports such as \"10.0.0.5:20000-29999\" or \"0.0.0.0:20000-29999\", or a \
                       list of addresses";

#[test]
fn a_source_is_the_client_an_address_or_ports() {
    let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let ports = Some(PortRange { first: 20_000, last: 29_999 });
    assert_eq!(source("client"), Source::Client);
    assert_eq!(
        source("10.0.0.5"),
        Source::Local(vec![SourceAddress { ip: ip("10.0.0.5"), ports: None }])
    );
    assert_eq!(
        source("10.0.0.5:20000-29999"),
        Source::Local(vec![SourceAddress { ip: ip("10.0.0.5"), ports }])
    );
    assert_eq!(
        source("0.0.0.0:20000-29999"),
        Source::Local(vec![SourceAddress { ip: None, ports }])
    );
    assert_eq!(source("[::]:20000-29999"), Source::Local(vec![SourceAddress { ip: None, ports }]));
}

#[test]
fn a_source_that_is_nothing_of_that_is_refused_with_examples() {
    for written in ["\"any\"", "\"0.0.0.0\"", "\"10.0.0.5:0-9\"", "\"10.0.0.0/24\"", "53", "[]"] {
        let expected = format!("source: found {written}; {ALLOWED}");
        assert_eq!(in_cluster(&format!("source = {written}")), [expected]);
    }
}

#[test]
fn a_source_is_a_list_of_addresses_too() {
    let listed = |list: &str| in_cluster(&format!("source = {list}"));
    let read = with_cluster_lines("source = [\"10.0.0.5\", \"10.0.0.6:2-9\", \"2001:db8::5\"]");
    let address = |ip: &str, ports| SourceAddress { ip: Some(ip.parse().unwrap()), ports };
    let some = Some(PortRange { first: 2, last: 9 });
    assert_eq!(
        read.clusters[0].policy.source,
        Source::Local(vec![
            address("10.0.0.5", None),
            address("10.0.0.6", some),
            address("2001:db8::5", None)
        ])
    );
    let one = "an address of this host such as \"10.0.0.5\", or one with a range of ports such as \
               \"10.0.0.5:20000-29999\"";
    for written in ["\"client\"", "\"0.0.0.0\"", "7"] {
        let expected = format!("source[0]: found {written}; allowed: {one}");
        assert_eq!(listed(&format!("[{written}]")), [expected]);
    }
    let once = "allowed: each address, or each range of its ports, once";
    for (first, second) in
        [("10.0.0.5", "10.0.0.5"), ("10.0.0.5:2-9", "10.0.0.5"), ("10.0.0.5:2-9", "10.0.0.5:9-10")]
    {
        assert_eq!(
            listed(&format!("[{first:?}, {second:?}]")),
            [format!("source[1]: found {second:?}; {once}")]
        );
    }
    with_cluster_lines("source = [\"10.0.0.5:2-9\", \"10.0.0.5:10-11\"]");
    // One of the list has to be of the family of the backends, which have IPv4.
    assert_eq!(listed("[\"::1\", \"::2\"]").len(), 1);
}

#[test]
fn an_address_is_of_the_family_of_all_backends() {
    assert_eq!(
        in_cluster("source = \"2001:db8::5\""),
        ["source: found \"2001:db8::5\"; allowed: an address of the family of all backends, such \
             as 10.0.0.1:53"]
    );
    // What a name stands for is not known, and what leaves the address open suits every family.
    let named = "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n[cluster.web]\n\
                 backends = [\"web.internal:53\"]\nsource = \"2001:db8::5\"\n";
    valid(named);
    with_cluster_lines("source = \"[::]:20000-29999\"");
}

#[test]
fn the_clients_address_needs_a_socket_for_each_flow_and_one_flow_for_each_client() {
    let needs_session = "an address, or \"client\" in another mode: of the clients' answers to copies there \
                         would be two";
    for (lines, allowed) in [
        ("mode = \"fan-out\"\nreply_from = \"first\"", needs_session),
        (
            "upstream = \"shared\"",
            "an address, or \"client\" with upstream = \"per-flow\": a socket that has a client's \
             address serves no other client",
        ),
        (
            "requests = 1",
            "an address, or \"client\" with requests = 0: two flows of one client cannot both have \
             its address",
        ),
    ] {
        assert_eq!(
            in_cluster(&format!("{lines}\nsource = \"client\"")),
            [format!("source: found \"client\"; allowed: {allowed}")]
        );
        with_cluster_lines(&format!("{lines}\nsource = \"10.0.0.5:20000-29999\""));
    }
}

#[test]
fn a_mirror_does_not_send_from_its_clients_addresses() {
    let text = |source: &str| {
        format!(
            "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n[cluster.web]\n\
             backends = [\"[::1]:54\"]\nmirror = {{ cluster = \"shadow\" }}\n\
             [cluster.shadow]\nbackends = [\"[::1]:55\"]\nsource = {source:?}\n"
        )
    };
    assert_eq!(
        messages(&text("client")),
        ["6:22: cluster.web.mirror.cluster: found \"shadow\"; allowed: the NAME of a \
             [cluster.NAME] with another source than \"client\": copies leave by sockets that all \
             clients share"]
    );
    let config = valid(&text("::1"));
    let mirror = config.cluster("shadow").expect("the mirror").as_mirror();
    assert!(matches!(&mirror.source, Source::Local(all) if all.len() == 1));
}

#[test]
fn clients_of_one_family_are_not_posed_as_towards_backends_of_the_other() {
    let text = |listener: &str, backend: &str| {
        format!(
            "[[listener]]\n{listener}\ncluster = \"web\"\n[cluster.web]\nbackends = [{backend:?}]\n\
             source = \"client\"\n"
        )
    };
    for (listener, backend) in [
        ("address = \"0.0.0.0:53\"", "[2001:db8::1]:53"),
        ("address = \"[::1]:53\"", "10.0.0.1:53"),
        ("v6_only = true\naddress = \"[::]:53\"", "10.0.0.1:53"),
    ] {
        let messages = messages(&text(listener, backend));
        let [message] = &messages[..] else { panic!("{messages:?}") };
        assert!(
            message.contains(
                "listener[0].cluster: found \"web\"; allowed: a cluster all of whose backends are \
                 of the clients' family"
            ),
            "{message}"
        );
    }
    for (listener, backend) in [
        ("address = \"0.0.0.0:53\"", "10.0.0.1:53"),
        ("address = \"0.0.0.0:53\"", "web.internal:53"),
        ("address = \"[::]:53\"", "10.0.0.1:53"),
        // The clients that a proxy speaks for are of any family.
        ("accept_proxy_protocol = [\"10.0.0.0/8\"]\naddress = \"0.0.0.0:53\"", "[::1]:53"),
    ] {
        valid(&text(listener, backend));
    }
}
