//! A manager to which everything has happened that leaves a trace.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::vec;

use alloc::vec::Vec;

use crate::config::*;
use crate::proxy_protocol::ProxyHeader;
use crate::{
    BackendEvent, BackendId, Burst, FlowId, Instant, LocalAddr, ManagerInput, NetworkError, Output,
    PreparedConfig, UdpManager,
};

/// Ten hours after the origin.
const START: Instant = Instant::from_millis(36_000_000);

pub(super) fn after(millis: u64) -> Instant {
    START + Duration::from_millis(millis)
}

pub(super) fn client(number: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 7], 4_000 + number))
}

pub(super) fn proxy(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, 1], 2_000 + number))
}

fn backend(number: u8) -> BackendConfig {
    BackendConfig::new(SocketAddr::from(([10, 0, 0, number], 53)))
}

fn limits() -> Limits {
    Limits {
        flows_per_source: 30,
        flows_per_subnet: 40,
        new_flows_per_second_per_source: 50,
        datagrams_per_second_per_source: 40,
        bytes_per_second_per_source: 1_000,
        amplification: 100,
        unanswered_flows: 20,
        unanswered_timeout: Duration::from_secs(20),
    }
}

fn config() -> ManagerConfig {
    ManagerConfig {
        address: "[fe80::53%2]:53".parse().unwrap(),
        max_flows: 64,
        max_slots: 100,
        shares_max_flows: true,
        max_datagram_size: 1_400,
        accept: Accept::Confirmed,
        accept_proxy_protocol: vec!["10.9.0.0/16".parse().unwrap()],
        allow: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        deny: vec!["192.0.2.66/32".parse().unwrap()],
        own_addresses: vec![OwnAddress {
            address: "[fe80::53%2]:54".parse().unwrap(),
            last_port: 59,
        }],
        record_flows: true,
        offload: true,
        cluster: ClusterConfig {
            quic_lb: QuicLb::default(),
            mode: Mode::FanOut { reply_from: ReplyFrom::First },
            balance: Balance::RoundRobin,
            affinity: Affinity::SourceIpPort,
            idle_timeout: Duration::from_secs(60),
            responses: 0,
            requests: 2,
            send_proxy_protocol: SendProxyProtocol::First,
            upstream: UpstreamMode::PerFlow,
            transactions: None,
            retry: Some(Retry { after: Duration::from_millis(300), times: 1 }),
            upstream_quarantine: Duration::from_secs(5),
            source: Source::Local(vec![SourceAddress {
                ip: None,
                ports: Some(PortRange { first: 20_000, last: 29_999 }),
            }]),
            health: HealthPolicy {
                on_backend_down: OnBackendDown::Close,
                failback: Failback::All,
                fail_open: false,
                passive: Some(Passive { silent_flows: 3, back_off: Duration::from_secs(7) }),
            },
            limits: limits(),
            backends: vec![
                BackendConfig { weight: 3, ..backend(1) },
                backend(2),
                BackendConfig { weight: 2, max_flows: 30, ..backend(3) },
                backend(4),
                BackendConfig { backup: true, ..backend(5) },
                backend(6),
            ],
        },
    }
}

/// Tells a manager something, and returns the flow that it opens.
fn tell(manager: &mut UdpManager, input: ManagerInput<'_>, now: Instant) -> Option<FlowId> {
    let mut outputs = vec![];
    manager.handle_input(input, now, &mut outputs);
    outputs.iter().find_map(|output| match output {
        Output::OpenFlow { flow, .. } => Some(*flow),
        _ => None,
    })
}

pub(super) fn ask(
    manager: &mut UdpManager,
    source: SocketAddr,
    local: Option<LocalAddr>,
    bytes: &[u8],
    now: Instant,
) -> Option<FlowId> {
    let burst = Burst::single(bytes).unwrap();
    tell(manager, ManagerInput::ClientBurst { source, local, tos: 0, ttl: 64, burst }, now)
}

fn answer(manager: &mut UdpManager, flow: FlowId, now: Instant) {
    let burst = Burst::single(b"answer").unwrap();
    let Some(known) = manager.flow(flow) else { return };
    let sender = manager.backends().get(known.backend()).unwrap().address();
    let upstream = known.upstream();
    tell(manager, ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst }, now);
}

pub(super) fn with_header(client: SocketAddr) -> Vec<u8> {
    let header = ProxyHeader::new(client, "203.0.113.1:443".parse().unwrap());
    [header.as_bytes(), b"x"].concat()
}

fn event(manager: &mut UdpManager, backend: usize, event: BackendEvent, now: Instant) {
    let backend = BackendId::new(backend);
    tell(manager, ManagerInput::BackendChanged { backend, event }, now);
}

fn configure(manager: &mut UdpManager, now: Instant, change: impl FnOnce(&mut ManagerConfig)) {
    let mut config = manager.config().clone();
    change(&mut config);
    tell(manager, ManagerInput::Configured(&PreparedConfig::new(config)), now);
}

/// Branches of a race, some of which answer, and a session from then on.
fn race(manager: &mut UdpManager) {
    ask(manager, client(1), None, b"race", after(1));
    let branches: Vec<FlowId> = manager.flows().map(|(id, _)| id).collect();
    answer(manager, branches[1], after(2));
    answer(manager, branches[2], after(3));
    ask(manager, client(1), None, b"again", after(4));
    answer(manager, branches[1], after(5));
    // A change of the mode would end them.
    let mut snapshot = manager.snapshot();
    snapshot.config.cluster.mode = Mode::Session { mirrored_per_million: 500_000 };
    *manager = UdpManager::restore(snapshot, None).unwrap();
    configure(manager, after(6), |config| {
        // Another takes the place of one whose branch has not been answered, and waits in quarantine.
        config.cluster.backends[3] = backend(9);
        // The last one keeps its place, and counts as removed.
        config.cluster.backends.pop();
    });
}

/// Flows in every stage of their lives.
fn flows(manager: &mut UdpManager) {
    let opened: Vec<FlowId> =
        (10..22).filter_map(|n| ask(manager, client(n), None, b"x", after(20))).collect();
    for &flow in &opened[..8] {
        answer(manager, flow, after(21));
    }
    // Two are confirmed and retired, and one of those is complete: its socket closes.
    for number in 10..12 {
        ask(manager, client(number), None, b"y", after(22));
    }
    answer(manager, opened[0], after(23));
    configure(manager, after(25), |config| config.cluster.requests = 0);
    ask(manager, client(12), None, b"confirms", after(26));
    let link_local = |host: &str, interface| LocalAddr { ip: host.parse().unwrap(), interface };
    let called = Some(link_local("fe80::53", 2));
    ask(manager, "[fe80::7%2]:4000".parse().unwrap(), called, b"local", after(27));
    let called = Some(LocalAddr { ip: IpAddr::from([192, 0, 2, 53]), interface: 0 });
    ask(manager, client(30), called, b"local", after(28));
    ask(manager, proxy(1), None, &with_header(client(31)), after(29));
    ask(manager, proxy(1), None, &with_header(client(32)), after(30));
    let proxied = ask(manager, proxy(2), None, &with_header(client(33)), after(31)).unwrap();
    let upstream = manager.flow(proxied).unwrap().upstream();
    tell(manager, ManagerInput::UpstreamOpenFailed { upstream }, after(32));
    ask(manager, proxy(3), None, &with_header("192.0.2.66:9".parse().unwrap()), after(33));
}

/// Backends that are down, out of service and draining.
fn standings(manager: &mut UdpManager) {
    event(manager, 2, BackendEvent::Drain { deadline: Some(after(50_000)) }, after(42));
    event(manager, 3, BackendEvent::Down, after(43));
    ask(manager, client(3), None, &[0; 1_401], after(44));
    ask(manager, "192.0.2.66:4000".parse().unwrap(), None, b"denied", after(45));
    ask(manager, client(40), None, b"late", after(46));
    // Three end, and leave their slots vacant.
    for number in [19, 14, 17] {
        let client = client(number);
        let flow = manager.flows().find(|(_, flow)| flow.client() == client).unwrap().1;
        let upstream = flow.upstream();
        tell(manager, ManagerInput::UpstreamOpenFailed { upstream }, after(47));
    }
    tell(manager, ManagerInput::Drain { deadline: after(90_000) }, after(48));
    // Its backend has answered others before, and nobody since.
    let late = manager.flows().find(|(_, flow)| flow.client() == client(40)).unwrap().1;
    let (upstream, remote, error) = (late.upstream(), None, NetworkError::Refused);
    for millis in [6_052, 6_053] {
        tell(
            manager,
            ManagerInput::UpstreamError { upstream, remote, question: None, error },
            after(millis),
        );
    }
}

pub(super) fn manager_with_everything() -> UdpManager {
    let mut manager = UdpManager::new(config(), 7, START);
    race(&mut manager);
    flows(&mut manager);
    standings(&mut manager);
    manager
}

/// A few inputs of every kind, and then as many timeouts as it asks for, within reason.
pub(super) fn survive(mut manager: UdpManager) {
    let flows: Vec<FlowId> = manager.flows().map(|(id, _)| id).collect();
    for number in 0..40 {
        ask(&mut manager, client(number), None, b"x", after(60));
    }
    ask(&mut manager, proxy(1), None, &with_header(client(31)), after(61));
    ask(&mut manager, proxy(3), None, b"follows", after(61));
    flows.iter().for_each(|&flow| answer(&mut manager, flow, after(62)));
    manager.assert_invariants();
    for index in 0..7 {
        event(&mut manager, index, BackendEvent::Down, after(63));
    }
    configure(&mut manager, after(64), |config| {
        config.max_flows = 8;
        config.cluster.balance = Balance::Random;
    });
    manager.assert_invariants();
    for _ in 0..200 {
        let Some(deadline) = manager.poll_timeout() else { break };
        tell(&mut manager, ManagerInput::Timeout, deadline.at.max(after(65)));
    }
    manager.assert_invariants();
}
