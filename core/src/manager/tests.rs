use super::*;
use crate::config::*;
use crate::local_addr::LocalAddr;
use crate::output::Output;
use crate::proxy_protocol::{ProxyHeader, Tlvs};
use crate::{
    BackendEvent, BackendId, Burst, CloseReason, DropReason, LocalSource, NetworkError, SendId,
};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;
use proptest::prelude::*;
use std::format;
use std::vec;

const MINUTE: Duration = Duration::from_secs(60);

fn backend(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 53))
}

fn client(number: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1_000 + number))
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn config() -> ManagerConfig {
    ManagerConfig {
        max_flows: 100,
        cluster: ClusterConfig {
            balance: Balance::RoundRobin,
            affinity: Affinity::SourceIpPort,
            upstream_quarantine: Duration::ZERO,
            ..ClusterConfig::new([backend(1), backend(2)])
        },
        ..ManagerConfig::new("192.0.2.53:53".parse().unwrap(), [backend(1)])
    }
}

/// A manager that is restored from its snapshot after every input, and checked; and its twin, which
/// never is.
struct Harness {
    manager: UdpManager,
    twin: UdpManager,
    /// What the twin was some inputs ago. Changes alone make of it what the twin is.
    copy: UdpManager,
    inputs: usize,
    /// The upstreams that flows have, or had last, and whom they send to.
    upstreams: BTreeMap<FlowId, (UpstreamId, BackendId, SocketAddr)>,
    /// What was ordered of sockets.
    sockets: Vec<Socket>,
}

/// An order to open or to close a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Open { upstream: UpstreamId, connect: Option<SocketAddr>, source: LocalSource, ttl: u8 },
    Close(UpstreamId),
}

impl Harness {
    fn new(change: impl FnOnce(&mut ManagerConfig)) -> Self {
        let mut config = config();
        change(&mut config);
        let manager = UdpManager::new(config, 1, Instant::ORIGIN);
        let (twin, copy) = (manager.clone(), manager.clone());
        Self { twin, copy, inputs: 0, manager, upstreams: BTreeMap::new(), sockets: vec![] }
    }

    fn input<'p>(&mut self, input: ManagerInput<'p>, now: Instant) -> Vec<Output<'p>> {
        if self.twin.clone().snapshot() != self.manager.snapshot() {
            // The test has told the manager something by itself.
            self.twin = self.manager.clone();
        }
        let (mut outputs, mut of_twin) = (vec![], vec![]);
        self.manager.handle_input(input, now, &mut outputs);
        self.twin.handle_input(input, now, &mut of_twin);
        assert_eq!(outputs, of_twin, "the restored manager does something else");
        self.manager.assert_invariants();
        self.go_on_elsewhere();
        self.take_in(outputs)
    }

    /// Sets apart what is ordered of sockets.
    fn take_in<'p>(&mut self, outputs: Vec<Output<'p>>) -> Vec<Output<'p>> {
        let mut others = vec![];
        for output in outputs {
            match output {
                Output::OpenUpstream { upstream, connect, source, ttl, .. } => {
                    self.sockets.push(Socket::Open { upstream, connect, source, ttl });
                    continue;
                }
                Output::CloseUpstream { upstream } => {
                    self.sockets.push(Socket::Close(upstream));
                    continue;
                }
                Output::OpenFlow { flow, upstream, backend, address, .. } => {
                    self.upstreams.insert(flow, (upstream, backend, address));
                }
                _ => {}
            }
            others.push(output);
        }
        others
    }

    /// What was ordered of sockets since this was asked last.
    fn sockets(&mut self) -> Vec<Socket> {
        core::mem::take(&mut self.sockets)
    }

    /// Whether nothing but the closing of a flow's socket was ordered since this was asked last.
    fn closes_socket_of(&mut self, flow: FlowId) -> bool {
        let (upstream, ..) = self.upstreams[&flow];
        self.sockets().last() == Some(&Socket::Close(upstream))
    }

    /// What comes by the socket that a flow has or had last, from its backend.
    fn answer<'p>(&self, flow: FlowId, tos: u8, burst: Burst<'p>) -> ManagerInput<'p> {
        let (upstream, _, sender) = self.upstreams[&flow];
        ManagerInput::UpstreamBurst { upstream, sender, tos, burst }
    }

    fn open_failed(&self, flow: FlowId) -> ManagerInput<'static> {
        ManagerInput::UpstreamOpenFailed { upstream: self.upstreams[&flow].0 }
    }

    fn network_error(&self, flow: FlowId, error: NetworkError) -> ManagerInput<'static> {
        let (upstream, remote, question) = (self.upstreams[&flow].0, None, None);
        ManagerInput::UpstreamError { upstream, remote, question, error }
    }

    fn send_id(&self, flow: FlowId) -> SendId {
        SendId::Flow { flow, upstream: self.upstreams[&flow].0 }
    }

    /// The order that tells of a flow's end.
    fn ended(&self, flow: FlowId, reason: CloseReason) -> Output<'static> {
        Output::CloseFlow { flow, upstream: self.upstreams[&flow].0, reason }
    }

    /// The order to pass an answer on.
    fn to_client<'p>(
        &self,
        flow: FlowId,
        client: SocketAddr,
        local: Option<LocalAddr>,
        tos: u8,
        burst: Burst<'p>,
    ) -> Output<'p> {
        let upstream = self.upstreams[&flow].0;
        Output::SendToClient { flow, upstream, client, local, tos, burst }
    }

    /// From here on a manager is tested that has been restored. Not where that takes a table for
    /// Maglev, which is slow to build.
    fn go_on_elsewhere(&mut self) {
        let snapshot = self.manager.snapshot();
        assert_eq!(snapshot, self.twin.clone().snapshot(), "the restored manager is another");
        self.follow(&snapshot);
        if self.manager.config().cluster.balance == Balance::Maglev {
            return;
        }
        let restored = UdpManager::restore(snapshot, None).expect("the snapshot of a manager");
        restored.assert_invariants();
        assert_eq!(restored.poll_timeout(), self.twin.poll_timeout());
        self.manager = restored;
    }

    /// A copy of the twin becomes what that is by changes alone, those of some inputs.
    fn follow(&mut self, snapshot: &crate::snapshot::ManagerSnapshot) {
        let changes = self.twin.changes();
        if let Some(changes) = &changes {
            let followed = self.copy.clone().update(changes.clone());
            let mut followed = followed.expect("what has changed in such a manager");
            followed.assert_invariants();
            assert_eq!(followed.snapshot(), *snapshot, "the copy has become another");
        }
        self.inputs += 1;
        if changes.is_none() || self.inputs.is_multiple_of(4) {
            self.copy = self.twin.copy_and_note_changes();
        }
    }

    /// What the manager alone does, without its twin: for tests with many steps.
    fn manager_only<'p>(&mut self, input: ManagerInput<'p>, now: Instant) -> Vec<Output<'p>> {
        let mut outputs = vec![];
        self.manager.handle_input(input, now, &mut outputs);
        self.take_in(outputs)
    }

    fn request<'p>(
        &mut self,
        source: SocketAddr,
        payload: &'p [u8],
        now: Instant,
    ) -> Vec<Output<'p>> {
        let burst = Burst::single(payload).unwrap();
        self.input(ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst }, now)
    }

    fn requests<'p>(
        &mut self,
        source: SocketAddr,
        bytes: &'p [u8],
        stride: u16,
    ) -> Vec<Output<'p>> {
        self.requests_at(source, bytes, stride, at(0))
    }

    fn requests_at<'p>(
        &mut self,
        source: SocketAddr,
        bytes: &'p [u8],
        stride: u16,
        now: Instant,
    ) -> Vec<Output<'p>> {
        let burst = Burst::segmented(bytes, stride).unwrap();
        self.input(ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst }, now)
    }

    fn reply<'p>(&mut self, flow: FlowId, payload: &'p [u8], now: Instant) -> Vec<Output<'p>> {
        let burst = Burst::single(payload).unwrap();
        self.input(self.answer(flow, 0, burst), now)
    }

    /// Opens a flow with one request.
    fn open(&mut self, source: SocketAddr, now: Instant) -> FlowId {
        match self.request(source, b"hello", now)[..] {
            [Output::OpenFlow { flow, .. }, Output::Send { .. }] => flow,
            ref other => panic!("no new flow: {other:?}"),
        }
    }

    /// Sends timeouts as a shell would, until the clock reads `until`.
    fn run_until(&mut self, until: Instant) -> Vec<Output<'static>> {
        let mut outputs = vec![];
        while let Some(deadline) = self.manager.poll_timeout().filter(|d| d.at <= until) {
            outputs.extend(self.input(ManagerInput::Timeout, deadline.at));
            let next = self.manager.poll_timeout();
            assert!(next.is_none_or(|next| next.at > deadline.at), "the next deadline is later");
        }
        outputs
    }

    /// Tells the manager that the kernel has taken all that it ordered to send.
    fn deliver(&mut self, outputs: &[Output<'_>], now: Instant) {
        for output in outputs {
            let (send_id, backend, direction, burst) = match *output {
                Output::Send { flow, upstream, backend, burst, .. } => {
                    (SendId::Flow { flow, upstream }, Some(backend), Direction::ToBackend, burst)
                }
                Output::SendOneWay { send_id, burst, .. } => {
                    let (SendId::OneWay(backend) | SendId::Copy(backend)) = send_id else {
                        panic!("a flow's datagram goes one way")
                    };
                    (send_id, Some(backend), Direction::ToBackend, burst)
                }
                Output::SendToClient { flow, upstream, burst, .. } => {
                    (SendId::Flow { flow, upstream }, None, Direction::ToClient, burst)
                }
                _ => continue,
            };
            let (datagrams, bytes) = (burst.count().into(), burst.bytes().len() as u64);
            let delivered =
                ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes };
            self.input(delivered, now);
        }
    }

    fn drops(&self, direction: Direction, reason: DropReason) -> u64 {
        self.manager.counters().ledger(direction).dropped_for(reason).datagrams
    }
}

/// One datagram of a client.
fn from_client(source: SocketAddr, payload: &[u8]) -> ManagerInput<'_> {
    let burst = Burst::single(payload).unwrap();
    ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst }
}

/// The flow that outputs open.
fn opened(outputs: &[Output<'_>]) -> Option<FlowId> {
    outputs.iter().find_map(|output| match *output {
        Output::OpenFlow { flow, .. } => Some(flow),
        _ => None,
    })
}

#[test]
fn the_first_datagram_opens_a_flow_and_the_next_ones_use_it() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    let again = harness.request(client(1), b"again", at(1));
    assert!(matches!(again[..], [Output::Send { flow: f, .. }] if f == flow), "{again:?}");
    assert_eq!(harness.manager.flow_count(), 1);
}

#[test]
fn a_client_that_calls_two_addresses_has_two_flows() {
    let mut harness = Harness::new(|_| {});
    let mut flow_of = |ip: [u8; 4]| {
        let local = Some(LocalAddr { ip: ip.into(), interface: 0 });
        let burst = Burst::single(b"hello").unwrap();
        let input = ManagerInput::ClientBurst { source: client(1), local, tos: 0, ttl: 64, burst };
        match harness.input(input, at(0))[..] {
            [Output::OpenFlow { flow, .. }, ..] | [Output::Send { flow, .. }] => flow,
            ref other => panic!("{other:?}"),
        }
    };
    let flows = [[127, 0, 0, 1], [127, 0, 0, 2]].map(&mut flow_of);
    assert_ne!(flows[0], flows[1]);
    assert_eq!([[127, 0, 0, 1], [127, 0, 0, 2]].map(&mut flow_of), flows);
}

#[test]
fn a_reply_goes_to_the_client_from_the_address_it_called() {
    let mut harness = Harness::new(|_| {});
    let local = Some(LocalAddr { ip: [127, 0, 0, 7].into(), interface: 0 });
    let burst = Burst::single(b"hello").unwrap();
    let input = ManagerInput::ClientBurst { source: client(1), local, tos: 0, ttl: 64, burst };
    let Output::OpenFlow { flow, .. } = harness.input(input, at(0))[0] else { panic!() };
    let reply = harness.answer(flow, 3, burst);
    assert_eq!(harness.input(reply, at(1)), [harness.to_client(flow, client(1), local, 3, burst)]);
}

#[test]
fn a_client_that_calls_two_local_addresses_has_two_flows() {
    let mut harness = Harness::new(|_| {});
    for last in [1, 2, 1] {
        let local = Some(LocalAddr { ip: [127, 0, 0, last].into(), interface: 0 });
        let burst = Burst::single(b"x").unwrap();
        harness.input(
            ManagerInput::ClientBurst { source: client(1), local, tos: 0, ttl: 64, burst },
            at(0),
        );
    }
    assert_eq!(harness.manager.flow_count(), 2);
}

#[test]
fn link_local_clients_with_one_address_on_two_interfaces_are_two() {
    let mut harness = Harness::new(|_| {});
    let on = |scope| -> SocketAddr {
        core::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, scope).into()
    };
    let flow = harness.open(on(2), at(0));
    harness.open(on(3), at(0));
    let reply = harness.reply(flow, b"y", at(1));
    assert!(matches!(reply[..], [Output::SendToClient { client, .. }] if client == on(2)));
}

#[test]
fn a_client_that_calls_a_link_local_address_keeps_its_own() {
    let mut harness = Harness::new(|_| {});
    let local = Some(LocalAddr { ip: "fe80::1".parse().unwrap(), interface: 3 });
    let burst = Burst::single(b"x").unwrap();
    let source = "[2001:db8::1]:9".parse().unwrap();
    let input = ManagerInput::ClientBurst { source, local, tos: 0, ttl: 64, burst };
    let Output::OpenFlow { flow, .. } = harness.input(input, at(0))[0] else { panic!() };
    assert_eq!(harness.manager.flow(flow).unwrap().client(), source);
    assert_eq!(harness.manager.flow(flow).unwrap().local(), local);
}

#[test]
fn the_payload_is_lent_back_not_copied() {
    let mut harness = Harness::new(|_| {});
    let payload = *b"here";
    let outputs = harness.request(client(1), &payload, at(0));
    let Output::Send { burst, .. } = outputs[1] else { panic!() };
    assert!(core::ptr::eq(burst.bytes(), payload.as_slice()));
}

#[test]
fn an_idle_flow_closes_at_its_deadline() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    assert_eq!(harness.run_until(at(59_999)), []);
    let closed = harness.ended(flow, CloseReason::Idle);
    assert_eq!(harness.run_until(at(60_000)), [closed]);
    assert_eq!(harness.manager.poll_timeout(), None, "nothing left to wait for");
}

#[test]
fn a_refreshed_flow_survives_its_old_deadline() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    harness.request(client(1), b"again", at(30_000));
    assert_eq!(harness.run_until(at(89_999)), []);
    harness.reply(flow, b"late", at(89_999));
    assert_eq!(harness.run_until(at(149_998)), []);
    assert_eq!(harness.run_until(at(149_999)).len(), 1);
}

#[test]
fn a_datagram_at_the_instant_of_the_deadline_keeps_the_flow() {
    let mut harness = Harness::new(|_| {});
    harness.open(client(1), at(0));
    harness.request(client(1), b"just in time", at(60_000));
    assert_eq!(harness.input(ManagerInput::Timeout, at(60_000)), []);
    assert_eq!(harness.manager.flow_count(), 1);
}

#[test]
fn a_timeout_that_comes_early_or_twice_is_harmless() {
    let mut harness = Harness::new(|_| {});
    harness.open(client(1), at(0));
    for millis in [0, 1, 1, 30_000, 59_999, 59_999] {
        assert_eq!(harness.input(ManagerInput::Timeout, at(millis)), []);
    }
    assert_eq!(harness.input(ManagerInput::Timeout, at(60_000)).len(), 1);
    assert_eq!(harness.input(ManagerInput::Timeout, at(60_000)), []);
}

#[test]
fn a_clock_that_stands_still_never_asks_for_now_again() {
    let mut harness = Harness::new(|c| c.max_flows = 5_000);
    for port in 0..5_000 {
        harness.manager.handle_input(
            ManagerInput::ClientBurst {
                source: client(port),
                local: None,
                tos: 0,
                ttl: 64,
                burst: Burst::single(b"").unwrap(),
            },
            at(0),
            &mut Vec::new(),
        );
    }
    let now = at(60_000);
    let mut calls = 0;
    while harness.manager.flow_count() > 0 {
        harness.manager.handle_input(ManagerInput::Timeout, now, &mut Vec::new());
        assert!(harness.manager.poll_timeout().is_none_or(|next| next.at > now));
        calls += 1;
    }
    assert!(calls > 4, "one timeout may not close all flows at once, {calls} did");
}

#[test]
fn a_clock_that_jumps_a_year_closes_idle_flows_and_keeps_busy_ones() {
    let mut harness = Harness::new(|_| {});
    harness.open(client(1), at(0));
    harness.open(client(2), at(0));
    let in_a_year = at(365 * 86_400_000);
    harness.request(client(2), b"still here", in_a_year);
    assert_eq!(harness.input(ManagerInput::Timeout, in_a_year).len(), 1);
    assert_eq!(harness.manager.flow_count(), 1);
    assert!(harness.manager.poll_timeout().unwrap().at > in_a_year);
}

#[test]
fn an_event_for_a_closed_flow_does_not_reach_the_flow_that_took_its_slot() {
    let mut harness = Harness::new(|_| {});
    let old = harness.open(client(1), at(0));
    harness.run_until(at(60_000));
    let new = harness.open(client(2), at(60_001));
    assert_eq!(old.index(), new.index(), "the slot is used again");

    let late = harness.reply(old, b"late", at(60_002));
    assert!(matches!(late[..], [Output::Drop { reason: DropReason::UnknownFlow, .. }]));
    let failed = harness.open_failed(old);
    assert_eq!(harness.input(failed, at(60_003)), []);
    assert_eq!(harness.manager.flow_count(), 1);
}

#[test]
fn one_response_closes_the_flow_after_the_reply() {
    let mut harness = Harness::new(|c| c.cluster.responses = 1);
    let flow = harness.open(client(1), at(0));
    let outputs = harness.reply(flow, b"answer", at(1));
    assert!(matches!(
        outputs[..],
        [Output::SendToClient { .. }, Output::CloseFlow { reason: CloseReason::Complete, .. }]
    ));
}

#[test]
fn two_questions_from_one_port_both_get_their_answer() {
    let mut harness = Harness::new(|c| c.cluster.responses = 1);
    let flow = harness.open(client(1), at(0));
    harness.request(client(1), b"AAAA", at(0));
    assert_eq!(harness.reply(flow, b"a", at(1)).len(), 1);
    assert_eq!(harness.reply(flow, b"aaaa", at(2)).len(), 2, "sent, then closed");
}

#[test]
fn replies_beyond_the_last_are_dropped_wherever_the_burst_ends() {
    let mut harness = Harness::new(|c| c.cluster.responses = 3);
    let flow = harness.open(client(1), at(0));
    let burst = Burst::segmented(b"aabbccdde", 2).unwrap();
    let outputs = harness.input(harness.answer(flow, 0, burst), at(1));
    let Output::SendToClient { burst, .. } = outputs[0] else { panic!("{outputs:?}") };
    assert_eq!(burst.bytes(), b"aabbcc");
    assert!(matches!(
        outputs[1..],
        [
            Output::Drop { reason: DropReason::AfterLastReply, datagrams: 2, .. },
            Output::CloseFlow { .. }
        ]
    ));
}

#[test]
fn the_last_request_still_gets_its_reply() {
    let mut harness = Harness::new(|c| c.cluster.requests = 2);
    let first = harness.open(client(1), at(0));
    harness.request(client(1), b"second", at(1));
    let second = harness.open(client(1), at(2));
    assert_ne!(first, second, "the third datagram starts a new flow");
    assert_eq!(harness.manager.flow_count(), 2);

    assert_eq!(harness.reply(first, b"1", at(3)).len(), 1);
    let last = harness.reply(first, b"2", at(4));
    assert!(matches!(last[..], [Output::SendToClient { .. }, Output::CloseFlow { .. }]));
    assert_eq!(harness.reply(second, b"3", at(5)).len(), 1, "the new flow goes on");
}

#[test]
fn a_retired_flow_without_replies_ends_by_idle_time() {
    let mut harness = Harness::new(|c| c.cluster.requests = 1);
    let flow = harness.open(client(1), at(0));
    let closed = harness.ended(flow, CloseReason::Idle);
    assert_eq!(harness.run_until(at(60_000)), [closed]);
}

#[test]
fn a_burst_is_cut_where_requests_says_so() {
    let mut harness = Harness::new(|c| c.cluster.requests = 2);
    let outputs = harness.requests(client(1), b"aabbccdde", 2);
    let sent: Vec<(FlowId, &[u8])> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Send { flow, burst, .. } => Some((*flow, burst.bytes())),
            _ => None,
        })
        .collect();
    assert_eq!(sent.iter().map(|s| s.1).collect::<Vec<_>>(), [b"aabb" as &[u8], b"ccdd", b"e"]);
    assert_eq!(harness.manager.flow_count(), 3);
}

#[test]
fn a_full_table_drops_new_clients_and_serves_old_ones() {
    let mut harness = Harness::new(|c| c.max_flows = 2);
    let flows = [harness.open(client(1), at(0)), harness.open(client(2), at(0))];
    for flow in flows {
        harness.reply(flow, b"answered", at(0));
    }
    let refused = harness.request(client(3), b"x", at(1));
    assert!(matches!(refused[..], [Output::Drop { reason: DropReason::MaxFlows, .. }]));
    assert_eq!(harness.request(client(1), b"x", at(1)).len(), 1);
    harness.run_until(at(60_000));
    harness.open(client(3), at(60_001));
}

#[test]
fn an_unanswered_flow_makes_room_for_a_new_one_oldest_first() {
    let mut harness = Harness::new(|c| c.max_flows = 3);
    let flows = [1, 2, 3].map(|port| harness.open(client(port), at(u64::from(port))));
    harness.reply(flows[0], b"answered", at(4));
    for (evicted, port) in [(flows[1], 4), (flows[2], 5)] {
        let outputs = harness.request(client(port), b"x", at(30));
        let closed = harness.ended(evicted, CloseReason::Evicted);
        assert_eq!(outputs[0], closed);
        assert!(matches!(outputs[1], Output::OpenFlow { .. }));
    }
    assert!(harness.manager.flow(flows[0]).is_some(), "an answered flow is never evicted");
}

#[test]
fn unanswered_flows_have_a_cap_and_a_timeout_of_their_own() {
    let mut harness = Harness::new(|c| {
        c.cluster.limits.unanswered_flows = 2;
        c.cluster.limits.unanswered_timeout = Duration::from_secs(1);
    });
    let answered = harness.open(client(1), at(0));
    harness.reply(answered, b"x", at(0));
    let [first, second] = [2, 3].map(|port| harness.open(client(port), at(0)));
    let outputs = harness.request(client(4), b"x", at(500));
    let evicted = harness.ended(first, CloseReason::Evicted);
    assert_eq!(outputs[0], evicted);
    let idle = harness.ended(second, CloseReason::Idle);
    assert_eq!(harness.run_until(at(1_000)), [idle]);
    assert_eq!(harness.run_until(at(59_999)).len(), 1, "the last unanswered one");
    assert_eq!(harness.run_until(at(60_000)).len(), 1, "the answered one has the idle timeout");
}

#[test]
fn nothing_is_evicted_for_a_flow_that_cannot_open() {
    let mut harness = Harness::new(|c| {
        c.max_flows = 1;
        c.cluster.backends.truncate(1);
        c.cluster.backends[0].max_flows = 1;
    });
    harness.open(client(1), at(0));
    let refused = harness.request(client(2), b"x", at(0));
    assert!(matches!(refused[..], [Output::Drop { reason: DropReason::NoBackend, .. }]));
    assert_eq!(harness.manager.flow_count(), 1);
}

#[test]
fn a_silent_client_gets_no_more_than_its_budget() {
    let mut harness = Harness::new(|c| c.cluster.limits.amplification = 3);
    let flow = harness.open(client(1), at(0));
    let burst = Burst::segmented(&[0; 23], 4).unwrap();
    let reply = harness.answer(flow, 0, burst);
    let outputs = harness.input(reply, at(1));
    let Output::SendToClient { burst: sent, .. } = outputs[0] else { panic!("{outputs:?}") };
    assert_eq!(sent.bytes().len(), 12, "three datagrams of 4 bytes for 5 bytes of request");
    assert_eq!(harness.drops(Direction::ToClient, DropReason::Amplification), 3);
    assert_eq!(harness.input(reply, at(2)).len(), 1, "all of it dropped");

    harness.request(client(1), b"I heard you", at(3));
    assert_eq!(harness.input(reply, at(4)).len(), 1, "all of it sent");
    assert_eq!(harness.drops(Direction::ToClient, DropReason::Amplification), 9);
}

#[test]
fn clients_are_allowed_and_denied_by_network() {
    let mut harness = Harness::new(|c| {
        c.allow = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        c.deny = vec!["192.0.2.128/25".parse().unwrap()];
    });
    for (client, is_served) in [
        ("192.0.2.1:9", true),
        ("192.0.2.200:9", false),
        ("198.51.100.1:9", false),
        ("[2001:db8::1]:9", true),
        ("[2001:db9::1]:9", false),
    ] {
        let outputs = harness.request(client.parse().unwrap(), b"x", at(0));
        assert_eq!(outputs.len() == 2, is_served, "{client}: {outputs:?}");
    }
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::Denied), 3);
}

#[test]
fn our_own_listener_is_no_client_and_a_backend_may_be_one() {
    let mut harness = Harness::new(|_| {});
    harness.request(config().address, b"x", at(0));
    let local = Some(LocalAddr { ip: [127, 0, 0, 1].into(), interface: 0 });
    let burst = Burst::single(b"x").unwrap();
    let source = "127.0.0.1:53".parse().unwrap();
    harness.input(ManagerInput::ClientBurst { source, local, tos: 0, ttl: 64, burst }, at(0));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::OwnAddress), 2);
    assert_eq!(harness.manager.flow_count(), 0);
    for caller in [backend(1), backend(2)] {
        harness.open(caller, at(0));
    }
    assert_eq!(harness.manager.flow_count(), 2);
}

#[test]
fn our_own_link_local_address_is_no_client_on_its_own_link() {
    let mut harness = Harness::new(|_| {});
    let local = Some(LocalAddr { ip: "fe80::5".parse().unwrap(), interface: 2 });
    let burst = Burst::single(b"x").unwrap();
    let source = "[fe80::5%2]:53".parse().unwrap();
    harness.input(ManagerInput::ClientBurst { source, local, tos: 0, ttl: 64, burst }, at(0));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::OwnAddress), 1);
}

#[test]
fn a_datagram_that_went_in_circles_opens_no_flow() {
    let mut harness = Harness::new(|_| {});
    let burst = Burst::single(b"round and round").unwrap();
    let arrives =
        |ttl| ManagerInput::ClientBurst { source: client(1), local: None, tos: 0, ttl, burst };
    for ttl in [0, 129, 132] {
        let outputs = harness.input(arrives(ttl), at(0));
        assert!(matches!(outputs[..], [Output::Drop { reason: DropReason::TtlExpired, .. }]));
    }
    let outputs = harness.input(arrives(2), at(0));
    assert!(matches!(outputs[0], Output::OpenFlow { .. }));
    assert!(matches!(harness.sockets()[..], [Socket::Open { ttl: 1, .. }]));
}

#[test]
fn a_client_whose_datagrams_arrive_with_their_last_hop_is_served_and_a_loop_ends_all_the_same() {
    let mut harness = Harness::new(|_| {});
    let burst = Burst::single(b"on my link").unwrap();
    let mut left = 1;
    for rounds in 0.. {
        let source = client(rounds);
        let arrival = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: left, burst };
        match harness.input(arrival, at(0))[..] {
            [Output::OpenFlow { .. }, Output::Send { ttl, .. }] => left = ttl,
            [Output::Drop { reason: DropReason::TtlExpired, .. }] => {
                assert_eq!(rounds, 9);
                break;
            }
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_flow_sends_each_datagram_with_one_hop_less_than_it_had_left() {
    let mut harness = Harness::new(|_| {});
    let burst = Burst::single(b"round and round").unwrap();
    let arrives =
        |ttl| ManagerInput::ClientBurst { source: client(1), local: None, tos: 0, ttl, burst };
    harness.input(arrives(64), at(0));
    for left in [64, 40, 2, 255] {
        let outputs = harness.input(arrives(left), at(0));
        let [Output::Send { ttl, .. }] = outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(ttl, left - 1);
    }
    let outputs = harness.input(arrives(130), at(0));
    assert!(matches!(outputs[..], [Output::Drop { reason: DropReason::TtlExpired, .. }]));
}

#[test]
fn one_source_cannot_take_every_flow() {
    let mut harness = Harness::new(|c| c.cluster.limits.flows_per_source = 2);
    let flow = harness.open(client(1), at(0));
    harness.open(client(2), at(30_000));
    let refused = harness.request(client(3), b"x", at(30_000));
    assert!(matches!(refused[..], [Output::Drop { reason: DropReason::SourceFlows, .. }]));
    harness.open("198.51.100.1:9".parse().unwrap(), at(30_000));

    let closed = harness.ended(flow, CloseReason::Idle);
    assert_eq!(harness.run_until(at(60_000)), [closed]);
    harness.open(client(3), at(60_001));
}

#[test]
fn one_address_on_two_links_is_two_sources() {
    let mut harness = Harness::new(|c| {
        c.cluster.limits.flows_per_source = 1;
        c.cluster.limits.flows_per_subnet = 1;
    });
    for scope in [2, 3, 0x8000_0000] {
        let on = |port| core::net::SocketAddrV6::new("fe80::1".parse().unwrap(), port, 0, scope);
        let flow = harness.open(on(9).into(), at(0));
        let source = harness.manager.flow(flow).unwrap().client();
        assert_eq!(source, on(9).into());
        let refused = harness.request(on(10).into(), b"x", at(0));
        assert!(matches!(refused[..], [Output::Drop { reason: DropReason::SourceFlows, .. }]));
    }
}

#[test]
fn the_addresses_that_one_host_can_have_are_one_source() {
    let mut harness = Harness::new(|c| c.cluster.limits.flows_per_source = 1);
    harness.open("[2001:db8::1]:9".parse().unwrap(), at(0));
    let refused = harness.request("[2001:db8::ffff:2]:9".parse().unwrap(), b"x", at(0));
    assert!(matches!(refused[..], [Output::Drop { reason: DropReason::SourceFlows, .. }]));
    for other in ["[2001:db8:0:1::1]:9", "[::1]:9", "192.0.2.1:9", "192.0.2.2:9"] {
        harness.open(other.parse().unwrap(), at(0));
    }
    // On a link each host has one.
    harness.open("[fe80::1%2]:9".parse().unwrap(), at(0));
    harness.open("[fe80::2%2]:9".parse().unwrap(), at(0));
}

#[test]
fn without_a_backend_datagrams_are_counted_drops() {
    let mut harness = Harness::new(|c| c.cluster.backends.clear());
    harness.requests(client(1), b"aabbc", 2);
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::NoBackend), 3);
    assert_eq!(harness.manager.flow_count(), 0);
}

#[test]
fn a_backend_at_its_limit_gets_no_more_flows() {
    let mut harness = Harness::new(|c| c.cluster.backends[0].max_flows = 1);
    for port in 0..10 {
        harness.open(client(port), at(0));
    }
    let flows: Vec<u32> =
        harness.manager.backends().iter().map(|(_, backend)| backend.flows_active).collect();
    assert_eq!(flows, [1, 9]);
}

#[test]
fn datagrams_longer_than_allowed_are_dropped_and_the_short_tail_is_not() {
    let mut harness = Harness::new(|c| c.max_datagram_size = 3);
    let outputs = harness.requests(client(1), b"aaaabbbbcc", 4);
    let Some(Output::Send { burst, .. }) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!(burst.bytes(), b"cc");
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::TooLarge), 2);
    harness.requests(client(2), b"aaaabbbb", 4);
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::TooLarge), 4);
    assert_eq!(harness.manager.flow_count(), 1, "nothing left to open a flow for");
}

#[test]
fn a_datagram_from_port_zero_opens_no_flow() {
    let mut harness = Harness::new(|_| {});
    harness.request("192.0.2.1:0".parse().unwrap(), b"x", at(0));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::PortZero), 1);
    assert_eq!(harness.manager.flow_count(), 0);
}

#[test]
fn only_the_first_datagram_carries_the_proxy_header() {
    let mut harness = Harness::new(|c| c.cluster.send_proxy_protocol = SendProxyProtocol::First);
    let outputs = harness.requests(client(1), b"aabbc", 2);
    let [_, Output::Send { prefix: Some(prefix), burst: first, .. }, rest] = outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(prefix, ProxyHeader::new(client(1), config().address));
    assert_eq!(first.bytes(), b"aa");
    assert!(matches!(rest, Output::Send { prefix: None, .. }));
    let next = harness.request(client(1), b"dd", at(1));
    assert!(matches!(next[..], [Output::Send { prefix: None, .. }]));
}

#[test]
fn every_datagram_can_carry_the_proxy_header() {
    let mut harness = Harness::new(|c| c.cluster.send_proxy_protocol = SendProxyProtocol::Every);
    for _ in 0..2 {
        let outputs = harness.requests(client(1), b"aabbc", 2);
        let Some(Output::Send { prefix, burst, .. }) = outputs.last() else { panic!() };
        assert!(prefix.is_some());
        assert_eq!(burst.count(), 3);
    }
}

#[test]
fn the_proxy_header_names_the_address_that_was_called() {
    let mut harness = Harness::new(|c| c.cluster.send_proxy_protocol = SendProxyProtocol::First);
    let local = Some(LocalAddr { ip: [127, 0, 0, 9].into(), interface: 0 });
    let burst = Burst::single(b"x").unwrap();
    let input = ManagerInput::ClientBurst { source: client(1), local, tos: 0, ttl: 64, burst };
    let outputs = harness.input(input, at(0));
    let Output::Send { prefix, .. } = outputs[1] else { panic!() };
    assert_eq!(prefix, Some(ProxyHeader::new(client(1), "127.0.0.9:53".parse().unwrap())));
}

#[test]
fn a_datagram_is_queued_until_the_kernel_has_taken_it_or_it_is_lost() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    let one = Traffic { datagrams: 1, bytes: 5 };
    let books = |harness: &Harness| {
        let ledger = &harness.manager.counters().to_backend;
        (ledger.forwarded, ledger.queued, ledger.dropped_total())
    };
    let none = Traffic::default();
    assert_eq!(books(&harness), (none, one, none));
    let undelivered = ManagerInput::Undelivered {
        send_id: harness.send_id(flow),
        backend: Some(BackendId::new(0)),
        direction: Direction::ToBackend,
        reason: DropReason::NoBuffers,
        datagrams: 1,
        bytes: 5,
    };
    harness.input(undelivered, at(1));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::NoBuffers), 1);
    assert_eq!(books(&harness), (none, none, one));
    assert_eq!(harness.manager.flow(flow).unwrap().to_backend(), none);

    let outputs = harness.request(client(1), b"again", at(2));
    assert_eq!(books(&harness), (none, one, one));
    harness.deliver(&outputs, at(3));
    assert_eq!(books(&harness), (one, none, one));
    let backend = harness.manager.backends().get(BackendId::new(0)).unwrap();
    assert_eq!((backend.to, backend.dropped), (one, one));
    // Nothing makes it go back.
    harness.input(undelivered, at(4));
    assert_eq!(books(&harness), (one, none, one));
}

#[test]
fn what_the_kernel_took_counts_for_the_backend_that_it_went_to() {
    let mut harness = Harness::new(|c| {
        c.cluster.backends.push(BackendConfig::new(backend(2)));
        c.cluster.health.on_backend_down = OnBackendDown::Rehash;
    });
    let outputs = harness.request(client(1), b"hello", at(0));
    let flow = opened(&outputs).unwrap();
    let first = harness.manager.flow(flow).unwrap().backend();
    harness
        .input(ManagerInput::BackendChanged { backend: first, event: BackendEvent::Down }, at(1));
    let moved = harness.request(client(1), b"hello", at(2));
    let second = harness.manager.flow(flow).unwrap().backend();
    assert_ne!(first, second);
    // What was ordered before the flow moved is told of late.
    harness.deliver(&moved, at(3));
    harness.deliver(&outputs, at(3));
    for backend in [first, second] {
        assert_eq!(harness.manager.backends().get(backend).unwrap().to.datagrams, 1);
    }
}

#[test]
fn a_flow_whose_socket_cannot_be_opened_ends() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    let failed = harness.open_failed(flow);
    let closed = harness.ended(flow, CloseReason::UpstreamFailed);
    assert_eq!(harness.input(failed, at(1)), [closed]);
}

#[test]
fn an_icmp_error_is_counted_and_the_flow_goes_on() {
    let mut harness = Harness::new(|config| config.cluster.backends.truncate(1));
    let flow = harness.open(client(1), at(0));
    for failure in [NetworkError::Refused, NetworkError::Unreachable] {
        assert_eq!(harness.input(harness.network_error(flow, failure), at(1)), []);
    }
    assert_eq!(harness.manager.counters().upstream_errors, 2);
    assert_eq!(harness.manager.flow_count(), 1);
}

#[test]
fn a_draining_manager_takes_no_new_flows_and_ends_the_old_ones_at_the_deadline() {
    let mut harness = Harness::new(|_| {});
    let flow = harness.open(client(1), at(0));
    harness.input(ManagerInput::Drain { deadline: at(10_000) }, at(1));
    harness.request(client(2), b"x", at(2));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::Draining), 1);
    assert_eq!(harness.reply(flow, b"old flows go on", at(3)).len(), 1);
    assert!(!harness.manager.is_drained());

    let closed = harness.ended(flow, CloseReason::Drained);
    assert_eq!(harness.run_until(at(9_999)), []);
    assert_eq!(harness.run_until(at(10_000)), [closed]);
    assert!(harness.manager.is_drained());
}

#[test]
fn a_drain_ends_early_when_the_last_flow_does() {
    let mut harness = Harness::new(|c| c.cluster.responses = 1);
    let flow = harness.open(client(1), at(0));
    harness.input(ManagerInput::Drain { deadline: at(10_000) }, at(1));
    harness.reply(flow, b"done", at(2));
    assert!(harness.manager.is_drained());
    assert_eq!(harness.manager.poll_timeout(), None);
}

proptest! {
    /// Prefetching is a hint: right, wrong or out of date, it changes nothing but speed.
    #[test]
    fn prefetching_changes_no_output(
        rounds in prop::collection::vec(
            (prop::collection::vec(0u16..8, 0..6), prop::collection::vec(0u16..8, 0..6)),
            1..20,
        ),
    ) {
        let new = || Harness::new(|c| c.cluster.requests = 2);
        let (mut with, mut without) = (new(), new());
        let deadlines = |harness: &Harness| -> Vec<_> {
            harness.manager.flows().map(|(id, flow)| (id, flow.deadline())).collect()
        };
        for (round, (expected, arriving)) in rounds.into_iter().enumerate() {
            with.manager.prefetch(expected.iter().map(|&port| (client(port), None)));
            with.manager.prefetch_upstreams(expected.iter().map(|&slot| slot.into()));
            for (number, port) in arriving.into_iter().enumerate() {
                let now = at((round * 10 + number) as u64);
                let outputs = with.request(client(port), b"x", now);
                prop_assert_eq!(outputs, without.request(client(port), b"x", now));
                prop_assert_eq!(deadlines(&with), deadlines(&without));
            }
        }
    }
}

#[test]
fn many_flows_are_prefetched_and_found() {
    let mut harness = Harness::new(|c| c.max_flows = 2_000);
    for port in 0..2_000 {
        let burst = Burst::single(b"x").unwrap();
        let source = client(port);
        let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
        harness.manager.handle_input(input, at(0), &mut Vec::new());
    }
    for first in (0..2_000).step_by(64) {
        let ports = || (first..2_000).take(64);
        harness.manager.prefetch(ports().map(|port| (client(port), None)));
        for port in ports() {
            assert_eq!(harness.request(client(port), b"x", at(1)).len(), 1, "a known flow");
        }
    }
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let trace = || {
        let mut harness = Harness::new(|c| c.cluster.balance = Balance::Random);
        let outputs: Vec<_> = (0..50)
            .map(|port| format!("{:?}", harness.request(client(port), b"x", at(0))))
            .collect();
        outputs
    };
    assert_eq!(trace(), trace());
}

mod accept;
mod affinity;
mod failover;
mod offload;
mod one_way;
mod overload;
mod proxied;
mod proxied_modes;
mod quarantine;
mod retry;
mod room;
mod shared;
mod shared_max_flows;
mod source;
