//! Datagrams that nobody answers: they need no flow, only a backend, or all of them.

use core::net::SocketAddr;

use super::UdpManager;
use super::admit::first_of;
use super::forward::RecvMeta;
use crate::burst::Burst;
use crate::config::{Balance, Mode, SendProxyProtocol, Source};
use crate::counters::Traffic;
use crate::egress::is_nobodys;
use crate::flow::UdpFlow;
use crate::flow::key::FlowKey;
use crate::id::{BackendId, SendId};
use crate::output::{Output, Outputs};
use crate::proxy_protocol::{ProxyHeader, Tlvs};
use crate::reason::{Direction, DropReason};
use crate::time::Instant;

/// How datagrams travel on: what is the same for all backends that get them.
#[derive(Clone, Copy)]
pub(super) struct SendMeta<'p> {
    /// The client, where backends are to see it.
    source: Option<SocketAddr>,
    prefix: Option<ProxyHeader>,
    tlvs: Tlvs<'p>,
    tos: u8,
    ttl: u8,
}

impl UdpManager {
    /// Takes a client's datagrams where clients get no answers.
    pub(super) fn handle_one_way<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let checked = match self.drain {
            Some(_) => Err(DropReason::Draining),
            None => self.check(key.client.address(), sender),
        };
        if let Err(reason) = checked {
            self.drop_burst(Direction::ToBackend, reason, &burst, outputs);
            return;
        }
        let send_meta = self.send_meta(key, recv_meta);
        // Whom a PROXY header names may be anybody.
        if send_meta.source.is_some_and(is_nobodys) {
            self.drop_burst(Direction::ToBackend, DropReason::NoSource, &burst, outputs);
            return;
        }
        if self.config.cluster.mode == Mode::OneWay {
            self.distribute(key, send_meta, burst, now, outputs);
        } else {
            self.copy_to_all(send_meta, burst, outputs);
        }
    }

    fn send_meta<'p>(&self, key: &FlowKey, recv_meta: &RecvMeta<'p>) -> SendMeta<'p> {
        let &RecvMeta { tos, ttl, .. } = recv_meta;
        let source = match self.config.cluster.source {
            Source::Client => Some(key.client.address()),
            Source::Any | Source::Local(_) => None,
        };
        if self.config.cluster.send_proxy_protocol == SendProxyProtocol::Off {
            return SendMeta { source, prefix: None, tlvs: Tlvs::NONE, tos, ttl };
        }
        let (prefix, tlvs) = self.proxy_header(key, recv_meta);
        SendMeta { source, prefix: Some(prefix), tlvs, tos, ttl }
    }

    /// Sends each datagram to one backend: all of a burst to the same where its client decides
    /// which, or where there is only one.
    fn distribute<'p>(
        &mut self,
        key: &FlowKey,
        send_meta: SendMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let client = key.client.address();
        let balance = self.config.cluster.balance;
        let is_hashed = matches!(balance, Balance::Rendezvous | Balance::Maglev);
        let by_source = is_hashed && !self.placement.reads_payload();
        let step = if by_source || self.backends.len() == 1 { burst.count() } else { 1 };
        let mut rest = Some(burst);
        while let Some(burst) = rest {
            let place = self.place(first_of(&burst), now);
            let Some(backend) = self.pick(client, &place, now) else {
                self.drop_burst(Direction::ToBackend, DropReason::NoBackend, &burst, outputs);
                return;
            };
            let (next, after) = burst.split_at(step);
            if let Some(burst) = next {
                if !self.can_pose(send_meta.source, backend) {
                    self.drop_burst(Direction::ToBackend, DropReason::NoSource, &burst, outputs);
                    rest = after;
                    continue;
                }
                self.counters.to_backend.queued.add(Traffic::of(&burst));
                self.send_one_way(SendId::OneWay, backend, send_meta, burst, outputs);
            }
            rest = after;
        }
    }

    /// Takes a client's datagrams where some backends answer and the others get copies. While none
    /// of those can take the client's flow, the others get copies all the same.
    pub(super) fn handle_copied<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let copies = self.send_meta(key, recv_meta);
        let mut rest = Some(burst);
        while let Some(burst) = rest {
            let first = first_of(&burst);
            let flow = match self.flow_for(key, sender, recv_meta.ttl, first, now, outputs) {
                Ok(flow) => flow,
                Err(DropReason::NoBackend) => {
                    self.copy_to_all(copies, burst, outputs);
                    return;
                }
                Err(reason) => {
                    self.drop_burst(Direction::ToBackend, reason, &burst, outputs);
                    return;
                }
            };
            let backend = self.flows.get(flow).map(UdpFlow::backend);
            rest = self.forward_requests(flow, recv_meta, burst, now, outputs);
            let taken = rest.map_or(burst.count(), |rest| burst.count() - rest.count());
            if let (Some(burst), _) = burst.split_at(taken) {
                self.copy_to_others(backend, copies, burst, outputs);
            }
        }
    }

    /// Sends a burst to every backend in service. It counts as forwarded if any can have it.
    fn copy_to_all<'p>(
        &mut self,
        send_meta: SendMeta<'p>,
        burst: Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) {
        let targets = self.backends.targets();
        if !targets.iter().any(|&backend| self.can_pose(send_meta.source, backend)) {
            let is_none = targets.is_empty();
            let reason = if is_none { DropReason::NoBackend } else { DropReason::NoSource };
            self.drop_burst(Direction::ToBackend, reason, &burst, outputs);
            return;
        }
        self.counters.to_backend.forwarded.add(Traffic::of(&burst));
        self.copy_to_others(None, send_meta, burst, outputs);
    }

    /// Sends a burst to every backend in service but one.
    fn copy_to_others<'p>(
        &mut self,
        except: Option<BackendId>,
        send_meta: SendMeta<'p>,
        burst: Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) {
        for place in 0..self.backends.targets().len() {
            let backend = self.backends.targets()[place];
            if Some(backend) != except && self.can_pose(send_meta.source, backend) {
                self.send_one_way(SendId::Copy, backend, send_meta, burst, outputs);
            }
        }
    }

    fn send_one_way<'p>(
        &self,
        send_id: fn(BackendId) -> SendId,
        backend: BackendId,
        send_meta: SendMeta<'p>,
        burst: Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) {
        let SendMeta { source, prefix, tlvs, tos, ttl } = send_meta;
        let Some(chosen) = self.backends.get(backend) else { return };
        let (send_id, address) = (send_id(backend), chosen.address());
        outputs.emit(Output::SendOneWay {
            send_id,
            address,
            source,
            prefix,
            tlvs,
            tos,
            ttl,
            burst,
        });
    }

    /// Whether a backend can be sent something from a client's address, if that is to be.
    fn can_pose(&self, source: Option<SocketAddr>, backend: BackendId) -> bool {
        let family = |address: SocketAddr| address.is_ipv6();
        let of_backend = self.backends.get(backend).map(|backend| family(backend.address()));
        source.is_none_or(|source| of_backend.is_none_or(|v6| v6 == family(source)))
    }
}
