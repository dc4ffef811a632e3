//! What an upstream socket is bound to.

use super::proxied::{proxy, trusting, with_header};
use super::*;
use crate::config::{PortRange, SourceAddress};

/// What the socket of a flow that has just opened is bound to.
fn source_of(harness: &mut Harness) -> LocalSource {
    let source = |socket: &Socket| match socket {
        Socket::Open { source, .. } => Some(*source),
        Socket::Close(_) => None,
    };
    harness.sockets().iter().find_map(source).expect("a socket that opens")
}

#[test]
fn an_upstream_socket_is_bound_to_what_is_configured() {
    let mut any = Harness::new(|_| {});
    any.request(client(1), b"", at(0));
    assert_eq!(source_of(&mut any), LocalSource::Any);
    let mut transparent = Harness::new(|config| config.cluster.source = Source::Client);
    transparent.request(client(7), b"", at(0));
    assert_eq!(source_of(&mut transparent), LocalSource::Client(client(7)));
    let ip = Some("10.0.0.5".parse().unwrap());
    let mut local = Harness::new(|config| {
        config.cluster.source = Source::Local(vec![SourceAddress { ip, ports: None }])
    });
    local.request(client(1), b"", at(0));
    assert_eq!(source_of(&mut local), LocalSource::Local { ip, ports: None, salt: 0 });
}

#[test]
fn each_opening_draws_another_order_of_ports_and_each_seed_others() {
    let ports = Some(PortRange { first: 20_000, last: 20_999 });
    let config = ManagerConfig {
        cluster: ClusterConfig {
            source: Source::Local(vec![SourceAddress { ip: None, ports }]),
            ..config().cluster
        },
        ..config()
    };
    let mut salts = vec![];
    for seed in 0..10 {
        let mut manager = UdpManager::new(config.clone(), seed, Instant::ORIGIN);
        for number in 0..10 {
            let mut outputs = vec![];
            let burst = Burst::single(b"").unwrap();
            let (source, local, tos, ttl) = (client(number), None, 0, 64);
            let input = ManagerInput::ClientBurst { source, local, tos, ttl, burst };
            manager.handle_input(input, at(0), &mut outputs);
            let Output::OpenUpstream { source: LocalSource::Local { salt, .. }, .. } = outputs[0]
            else {
                panic!("{outputs:?}")
            };
            salts.push(salt);
        }
    }
    salts.sort_unstable();
    salts.dedup();
    assert_eq!(salts.len(), 100);
}

#[test]
fn a_change_of_the_source_has_effect_on_new_sockets_alone() {
    let ip = |text: &str| Some(text.parse().unwrap());
    let from = |text: &str| Source::Local(vec![SourceAddress { ip: ip(text), ports: None }]);
    let mut harness = Harness::new(|config| config.cluster.source = from("10.0.0.5"));
    let flow = harness.open(client(1), at(0));
    let changed = harness.configure(at(2), |config| config.cluster.source = from("10.0.0.6"));
    assert_eq!(changed, []);
    assert!(harness.manager.flow(flow).is_some());
    harness.sockets();
    harness.open(client(2), at(9_000));
    let bound = LocalSource::Local { ip: ip("10.0.0.6"), ports: None, salt: 0 };
    assert_eq!(source_of(&mut harness), bound);
}

#[test]
fn a_client_that_a_proxy_names_is_the_one_that_its_backend_sees() {
    let mut harness = trusting(|config| config.cluster.source = Source::Client);
    let datagram = with_header(client(7), b"", b"question");
    harness.request(proxy(1), &datagram, at(0));
    assert_eq!(source_of(&mut harness), LocalSource::Client(client(7)));
}

#[test]
fn each_socket_has_one_of_several_addresses_of_its_backends_family() {
    let ip = |text: &str| Some(text.parse::<core::net::IpAddr>().unwrap());
    let of = |text: &str| SourceAddress { ip: ip(text), ports: None };
    let all = ["10.0.0.5", "10.0.0.6", "2001:db8::5"].map(of);
    let mut harness = Harness::new(|config| config.cluster.source = Source::Local(all.into()));
    let mut drawn = Vec::new();
    for number in 0..64 {
        harness.request(client(number), b"", at(0));
        let LocalSource::Local { ip, .. } = source_of(&mut harness) else { unreachable!() };
        drawn.push(ip);
    }
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn, [ip("10.0.0.5"), ip("10.0.0.6")]);
}
