//! What an upstream socket is bound to.

use super::proxied::{proxy, told, trusting};
use super::*;
use crate::LocalSource;
use crate::config::PortRange;

fn source_of(outputs: &[Output<'_>]) -> LocalSource {
    let source = |output: &Output<'_>| match output {
        Output::OpenUpstream { source, .. } => Some(*source),
        _ => None,
    };
    outputs.iter().find_map(source).expect("a flow that opens")
}

#[test]
fn an_upstream_socket_is_bound_to_what_is_configured() {
    let mut any = Harness::new(|_| {});
    assert_eq!(source_of(&any.request(client(1), b"", at(0))), LocalSource::Any);
    let mut transparent = Harness::new(|config| config.cluster.source = Source::Client);
    let opened = transparent.request(client(7), b"", at(0));
    assert_eq!(source_of(&opened), LocalSource::Client(client(7)));
    let ip = Some("10.0.0.5".parse().unwrap());
    let mut local =
        Harness::new(|config| config.cluster.source = Source::Local { ip, ports: None });
    let opened = local.request(client(1), b"", at(0));
    assert_eq!(source_of(&opened), LocalSource::Local { ip, ports: None, salt: 0 });
}

#[test]
fn each_opening_draws_another_order_of_ports_and_each_seed_others() {
    let ports = Some(PortRange { first: 20_000, last: 20_999 });
    let config = ManagerConfig {
        cluster: ClusterConfig { source: Source::Local { ip: None, ports }, ..config().cluster },
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
            let LocalSource::Local { salt, .. } = source_of(&outputs) else { panic!() };
            salts.push(salt);
        }
    }
    salts.sort_unstable();
    salts.dedup();
    assert_eq!(salts.len(), 100);
}

#[test]
fn a_change_of_the_source_has_effect_on_new_sockets_and_keeps_none_that_rests() {
    let ip = |text: &str| Some(text.parse().unwrap());
    let from = |text: &str| Source::Local { ip: ip(text), ports: None };
    let mut harness = Harness::new(|config| {
        with_reuse(config);
        config.cluster.source = from("10.0.0.5");
    });
    let (first, _) = one_question(&mut harness, 1, at(0));
    let same = harness.configure(at(1), |_| {});
    assert_eq!(same, [], "what rests stays");
    let changed = harness.configure(at(2), |config| config.cluster.source = from("10.0.0.6"));
    assert_eq!(changed, [Output::CloseUpstream { flow: first }]);
    let opened = harness.request(client(2), b"question", at(9_000));
    let bound = LocalSource::Local { ip: ip("10.0.0.6"), ports: None, salt: 0 };
    assert_eq!(source_of(&opened), bound);
}

#[test]
fn a_client_that_a_proxy_names_is_the_one_that_its_backend_sees() {
    let mut harness = trusting(|config| config.cluster.source = Source::Client);
    let datagram = told(client(7), b"", b"question");
    let opened = harness.request(proxy(1), &datagram, at(0));
    assert_eq!(source_of(&opened), LocalSource::Client(client(7)));
}
