//! Datagrams on a flow, both ways.

use core::net::SocketAddr;

use super::admit::first_of;
use super::retry::RetryCause;
use super::upstream::Recipient;
use super::{CONTINUED, EXCHANGED, UdpManager};
use crate::burst::Burst;
use crate::config::{Accept, SendProxyProtocol};
use crate::counters::Traffic;
use crate::flow::key::FlowKey;
use crate::flow::{AcceptedReplies, AcceptedRequests};
use crate::id::{BackendId, FlowId, SendId, UpstreamId};
use crate::local_addr::LocalAddr;
use crate::output::{Output, Outputs};
use crate::proxy_protocol::{ProxyHeader, ProxyInfo, Tlvs};
use crate::reason::{CloseReason, Direction, DropReason};
use crate::time::Instant;

/// How a client's datagrams came here.
#[derive(Clone, Copy)]
pub(super) struct RecvMeta<'p> {
    /// The TOS or traffic-class byte they carried.
    pub(super) tos: u8,
    /// The time to live or hop limit they have left.
    pub(super) ttl: u8,
    /// What a proxy says of them, if they came by one.
    pub(super) proxy_info: Option<ProxyInfo<'p>>,
}

impl UdpManager {
    /// Forwards what the flow takes, and returns what belongs to the client's next flow.
    #[inline]
    pub(super) fn forward_requests<'p>(
        &mut self,
        id: FlowId,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Option<Burst<'p>> {
        let flow = self.flows.get_mut(id)?;
        let (is_first, is_mirrored) = (flow.is_new_to_its_backend(), flow.is_mirrored());
        let is_heard = flow.is_heard();
        let AcceptedRequests { now: accepted, beyond, confirms } =
            flow.accept_requests(burst, &self.limits, now);
        let (is_retired, backend) = (flow.is_retired(), flow.backend());
        let (client, sent) = (flow.client(), flow.to_backend().datagrams);
        if let Some(burst) = accepted {
            if confirms && self.config.accept == Accept::Confirmed {
                outputs.emit(Output::OpenClient { flow: id, client });
            }
            let traffic = Traffic::of(&burst);
            self.counters.to_backend.queued.add(traffic);
            self.emit_requests((id, backend), is_first, recv_meta, burst, outputs);
            let is_opening = sent == u64::from(burst.count());
            let asks = self.config.cluster.questions().is_some();
            if is_first && (is_opening || asks) {
                self.keep_question(id, recv_meta, &burst, now);
            } else if !asks && !is_heard && !self.kept.is_empty() {
                // An error may be about this, and what is kept may have arrived.
                self.kept.forget(id.index());
            }
            if is_mirrored {
                self.mirror(id, recv_meta, burst, outputs);
            }
        }
        if self.config.offload && accepted.is_some() {
            self.offer(id, burst.count(), outputs);
        }
        if confirms {
            self.queues.push_back(CONTINUED, id.index());
        }
        if is_retired {
            self.flows.unindex(id);
        }
        beyond
    }

    /// Emits a flow's datagrams with the PROXY headers they are to carry.
    #[inline]
    pub(super) fn emit_requests<'p>(
        &self,
        (id, backend): (FlowId, BackendId),
        is_first: bool,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) {
        let with_header = match self.config.cluster.send_proxy_protocol {
            SendProxyProtocol::Off => 0,
            SendProxyProtocol::First => u16::from(is_first),
            SendProxyProtocol::Every => burst.count(),
        };
        let &RecvMeta { tos, ttl, .. } = recv_meta;
        let Some(flow) = self.flows.get(id) else { return };
        let upstream = flow.upstream();
        let to = self.shared_destination(upstream, backend);
        let (with, without) = burst.split_at(with_header);
        let mut emit = |prefix, tlvs, burst| {
            let flow = id;
            outputs.emit(Output::Send {
                flow,
                upstream,
                backend,
                to,
                prefix,
                tlvs,
                tos,
                ttl,
                burst,
            });
        };
        if let Some(burst) = with {
            let (prefix, tlvs) = self.proxy_header(&flow.key(), recv_meta);
            emit(Some(prefix), tlvs, burst);
        }
        if let Some(burst) = without {
            emit(None, Tlvs::NONE, burst);
        }
    }

    /// Has a copy made of what a flow carries.
    fn mirror<'p>(
        &self,
        id: FlowId,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) {
        let Some(flow) = self.flows.get(id) else { return };
        // The mirror takes one hop itself.
        let &RecvMeta { tos, ttl, proxy_info } = recv_meta;
        let (client, local, ttl) = (flow.client(), flow.local(), ttl.saturating_add(1));
        outputs.emit(Output::Mirror { client, local, proxy_info, tos, ttl, burst });
    }

    /// The header that tells a backend who the client is and whom it called, and what else a
    /// proxy has said of it.
    pub(super) fn proxy_header<'p>(
        &self,
        key: &FlowKey,
        recv_meta: &RecvMeta<'p>,
    ) -> (ProxyHeader, Tlvs<'p>) {
        let (destination, tlvs) = match &recv_meta.proxy_info {
            Some(info) => (info.destination, info.tlvs),
            None => (self.destination(key.local()), Tlvs::NONE),
        };
        (ProxyHeader::new(key.client.address(), destination).followed_by(&tlvs), tlvs)
    }

    /// The address that was called by the client that called `local`.
    pub(super) fn destination(&self, local: Option<LocalAddr>) -> SocketAddr {
        let address = self.config.address;
        local.map_or(address, |local| SocketAddr::new(local.ip, address.port()))
    }

    #[inline]
    pub(super) fn handle_upstream_burst<'p>(
        &mut self,
        upstream: UpstreamId,
        sender: SocketAddr,
        tos: u8,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.counters.to_client.received.add(Traffic::of(&burst));
        if self.config.cluster.questions().is_none() {
            self.handle_answers(upstream, sender, tos, burst, now, outputs);
            return;
        }
        // What comes together need not answer the same question.
        for answer in burst.datagrams().filter_map(Burst::single) {
            self.handle_answers(upstream, sender, tos, answer, now, outputs);
        }
    }

    /// Takes what has come for one flow.
    #[inline]
    fn handle_answers<'p>(
        &mut self,
        upstream: UpstreamId,
        sender: SocketAddr,
        tos: u8,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let first = first_of(&burst);
        let burst = self.drop_too_large(Direction::ToClient, burst, outputs);
        let reason = match self.recipient(upstream, sender, first) {
            Recipient::Flow(flow) => return self.handle_replies(flow, tos, burst, now, outputs),
            Recipient::Ended(left) => {
                if let Some((flow, backend)) = self.asker(left, sender) {
                    if burst.is_some() && self.waits_for_an_answer(flow) {
                        self.change_back(flow, left, outputs);
                        self.handle_replies(flow, tos, burst, now, outputs);
                        // That backend may be to have no flows meanwhile.
                        self.sweep_if_needed(now);
                        return;
                    }
                    // It comes second, and shows that the backend is there.
                    self.count_answer(backend, Traffic::default(), now);
                }
                self.prolong_quarantine(left, now);
                DropReason::UnknownFlow
            }
            Recipient::Nobody(reason) => reason,
        };
        if let Some(burst) = burst {
            self.drop_burst(Direction::ToClient, reason, &burst, outputs);
        }
    }

    /// Takes what the backend of a flow has sent for it, as far as it is not too large.
    #[inline]
    fn handle_replies<'p>(
        &mut self,
        id: FlowId,
        tos: u8,
        burst: Option<Burst<'p>>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let backend = flow.backend();
        if !flow.is_heard() && !self.kept.is_empty() {
            self.kept.forget(id.index());
        }
        let Some(burst) = burst else {
            flow.hear();
            self.count_answer(backend, Traffic::default(), now);
            return;
        };
        if id.is_branch() && !self.may_win(id) {
            self.drop_losing_reply(id, &burst, now, outputs);
            return;
        }
        self.placement.answered(id.index(), backend, first_of(&burst), now);
        let Some(flow) = self.flows.get_mut(id) else { return };
        let AcceptedReplies { now: accepted, over_budget, beyond, is_first_answer } =
            flow.accept_replies(burst, &self.limits, now);
        let (is_complete, opened) = (flow.is_complete(&self.limits), flow.opened());
        let traffic = accepted.as_ref().map(Traffic::of).unwrap_or_default();
        if let Some(burst) = accepted {
            let (client, local) = match flow.proxy() {
                None => (flow.client(), flow.local()),
                Some(proxy) => self.proxies.return_path(proxy),
            };
            let (flow, upstream) = (id, flow.upstream());
            self.counters.to_client.queued.add(traffic);
            outputs.emit(Output::SendToClient { flow, upstream, client, local, tos, burst });
        }
        self.count_answer(backend, traffic, now);
        if is_first_answer {
            self.queues.push_back(EXCHANGED, id.index());
            self.first_answers.record(opened, now);
            if let Some(backend) = self.backends.get_mut(backend) {
                backend.answer_times.record(now - opened);
            }
            self.remember_answered(id);
        }
        let dropped =
            [(over_budget, DropReason::Amplification), (beyond, DropReason::AfterLastReply)];
        for (burst, reason) in dropped {
            if let Some(burst) = burst {
                self.drop_burst(Direction::ToClient, reason, &burst, outputs);
            }
        }
        if is_complete {
            self.close_branches(id, CloseReason::Complete, now, outputs);
        }
    }

    /// Where flows end with their answers, it counts who was answered before. Only the silence to those is
    /// a sign against a backend, since what others ask may have no answer; and they come again.
    fn remember_answered(&mut self, id: FlowId) {
        if self.config.cluster.responses > 0
            && let Some(flow) = self.flows.get(id)
        {
            self.answered_clients.insert(flow.key().client.source());
        }
    }

    /// Counts what a backend has answered, as far as it is passed on. That it answers at all shows
    /// that it is there.
    #[inline]
    pub(super) fn count_answer(&mut self, backend: BackendId, passed_on: Traffic, now: Instant) {
        if self.backends.answered(backend, passed_on, now) {
            self.sweep_if_needed(now);
        }
    }

    /// Takes in that the kernel has taken datagrams.
    #[inline]
    pub(super) fn handle_delivered(
        &mut self,
        send_id: SendId,
        backend: Option<BackendId>,
        direction: Direction,
        traffic: Traffic,
    ) {
        if !is_copy(send_id, direction) {
            self.counters.ledger_mut(direction).deliver(traffic);
        }
        if let Some(backend) = backend.and_then(|backend| self.backends.get_mut(backend)) {
            backend.to.add(traffic);
        }
    }

    /// Moves datagrams that were queued to the drops. Not a question that goes to another backend
    /// instead, which stays queued until that one has it.
    pub(super) fn handle_undelivered<'p>(
        &mut self,
        (send_id, backend, direction): (SendId, Option<BackendId>, Direction),
        reason: DropReason,
        traffic: Traffic,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        if let Some(backend) = backend.and_then(|backend| self.backends.get_mut(backend)) {
            backend.dropped.add(traffic);
        }
        if direction == Direction::ToBackend
            && let SendId::Flow { flow, upstream } = send_id
            && !self.kept.is_empty()
            && self.is_unsent_question((flow, upstream), reason, traffic)
        {
            if self.ask_another(flow, RetryCause::Unsent, now, outputs) {
                return;
            }
            self.kept.forget(flow.index());
        }
        if !is_copy(send_id, direction) {
            self.counters.ledger_mut(direction).give_up(reason, traffic);
        }
        if let SendId::Flow { flow: id, .. } = send_id
            && let Some(flow) = self.flows.get_mut(id)
        {
            match direction {
                Direction::ToBackend => {
                    flow.take_back_requests(traffic);
                    if flow.to_backend().datagrams == 0 {
                        // What it began with is lost, and counted so.
                        self.kept.forget(id.index());
                    }
                }
                Direction::ToClient => flow.take_back_replies(traffic),
            }
        }
    }
}

/// Whether the listener's ledger counts something when it is copied, and not when the copies are
/// sent: of those the backends' own figures tell.
const fn is_copy(send_id: SendId, direction: Direction) -> bool {
    match send_id {
        SendId::Flow { flow, .. } => flow.is_branch() && matches!(direction, Direction::ToBackend),
        SendId::OneWay(_) => false,
        SendId::Copy(_) => true,
    }
}
