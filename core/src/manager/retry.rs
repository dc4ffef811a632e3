//! Asking another backend: where what a flow begins with is refused, cannot be sent, or, being a
//! question, gets no answer in time.
//!
//! It is [kept](crate::retry_buffer) until its flow is answered; in a session no longer than until its client
//! sends more. To ask again, the flow
//! [moves](UdpManager::move_flow_to) to a backend that was not asked yet, and the copy goes there. What
//! it leaves behind is in quarantine, as ever, but an answer that comes there first is still its: then
//! the two change places, and the answer is handled as any other. From then on the other place is one
//! in quarantine, where nothing reaches anybody, so that a client never gets two.
//!
//! Branches of a ring, as copies to all backends have them, could not do it: what would link them is
//! what names the question.

use core::net::SocketAddr;
use core::time::Duration;

use super::UdpManager;
use super::forward::RecvMeta;
use crate::backend::Backend;
use crate::burst::Burst;
use crate::config::SendProxyProtocol;
use crate::counters::Traffic;
use crate::flow::UdpFlow;
use crate::flow::table::FlowTable;
use crate::id::{BackendId, FlowId, SendId, UpstreamId};
use crate::output::{Output, Outputs, Repeat};
use crate::reason::DropReason;
use crate::retry_buffer::{Keep, KeptDatagram, RetryBuffer};
use crate::time::Instant;
use crate::upstream::Carries;

/// How old what a flow begins with is at most when one backend refuses it and another is to get it. Where a
/// host does not answer who asks for its hardware address, the network says so after three seconds
/// (`neigh/default/mcast_solicit`).
const MAX_AGE: Duration = Duration::from_secs(5);

/// Why another backend is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryCause {
    /// The network said that the backend is not there. The question was counted as forwarded.
    Refused,
    /// It could not be sent, and is still counted as queued.
    Unsent,
    /// Nothing came for as long as `after` says.
    Silent,
}

impl UdpManager {
    /// The question of a flow, which an [`Output::Repeat`] tells to send. Until the next input.
    pub fn kept(&self, flow: FlowId) -> Option<KeptDatagram<'_>> {
        self.flows.get(flow)?;
        self.kept.datagram(flow.index())
    }

    /// Keeps what a flow begins with, if it is one datagram.
    pub(super) fn keep_question<'p>(
        &mut self,
        id: FlowId,
        recv_meta: &RecvMeta<'p>,
        question: &Burst<'p>,
        now: Instant,
    ) {
        let Some((times, after)) = self.config.cluster.attempts() else { return };
        let slot = id.index();
        let Some(flow) = self.flows.get(id) else { return };
        if question.count() > 1 || flow.is_heard() || self.kept.get(slot).is_some() {
            return;
        }
        let header = match self.config.cluster.send_proxy_protocol {
            SendProxyProtocol::Off => None,
            SendProxyProtocol::First | SendProxyProtocol::Every => {
                Some(self.proxy_header(&flow.key(), recv_meta))
            }
        };
        let front = header.as_ref().map_or([&[][..]; 3], |(prefix, tlvs)| {
            let [before, after] = tlvs.parts();
            [prefix.as_bytes(), before, after]
        });
        let (datagram, due) = (question.bytes(), after.map(|after| now + after));
        let &RecvMeta { tos, ttl, .. } = recv_meta;
        self.kept.keep(slot, &Keep { front, datagram, tos, ttl, times, due });
        if due.is_some() {
            self.schedule(slot);
        }
    }

    /// Whether this is the question of a flow, which never left it for a reason that another backend may
    /// not give. What its client has sent besides is counted by itself, so it is not where the kept one
    /// is gone already and this is another.
    pub(super) fn is_unsent_question(
        &self,
        (flow, upstream): (FlowId, UpstreamId),
        reason: DropReason,
        unsent: Traffic,
    ) -> bool {
        use DropReason::{NotPermitted, Refused, SendFailed, Unreachable};
        let is_theirs = matches!(reason, Refused | Unreachable | NotPermitted | SendFailed);
        let is_all = |flow: &UdpFlow| flow.upstream() == upstream && flow.to_backend() == unsent;
        let is_it = |kept: KeptDatagram<'_>| {
            unsent == Traffic { datagrams: 1, bytes: kept.datagram.len() as u64 }
        };
        is_theirs && self.flows.get(flow).is_some_and(is_all) && self.kept(flow).is_some_and(is_it)
    }

    /// Whether what is kept is what flows wait for.
    pub(super) fn is_kept_rightly(&self) -> bool {
        let is_unanswered =
            |slot| self.flows.alive_at(slot).is_some_and(|(_, flow)| !flow.is_heard());
        let has_ended = |slot| self.flows.has_ended_at(slot);
        self.kept.is_sound(is_unanswered, has_ended)
    }

    /// Has the flow in a slot looked at when it ends, or when another backend is to be asked.
    pub(super) fn schedule(&mut self, slot: usize) {
        let Self { wheel, flows, kept, .. } = self;
        wheel.schedule(slot, next_look(flows, kept, slot));
    }

    /// When the flow in a slot has to be looked at.
    pub(super) fn next_look(&self, slot: usize) -> Instant {
        next_look(&self.flows, &self.kept, slot)
    }

    /// Asks another backend for a flow, if it still waits for an answer and there is one. Says whether
    /// it did.
    pub(super) fn ask_another<'p>(
        &mut self,
        id: FlowId,
        cause: RetryCause,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> bool {
        let slot = id.index();
        let (Some(flow), Some((_, after))) = (self.flows.get(id), self.config.cluster.attempts())
        else {
            return false;
        };
        let (client, former, opened) = (flow.client(), flow.backend(), flow.opened());
        let (source, deadline) = (flow.key().client.source(), flow.deadline());
        let is_missed = flow.is_owed_an_answer(&self.limits);
        let Some(question) = self.kept.get_mut(slot) else { return false };
        question.due = None;
        // What is older is of no use to another.
        let is_late = cause == RetryCause::Refused && after.is_none() && opened + MAX_AGE < now;
        if question.times_left == 0 || is_late {
            return false;
        }
        if cause == RetryCause::Silent {
            // Its answer may still come, and is to find the flow.
            if self.quarantine().is_none() || !self.has_free_slot() {
                return false;
            }
        }
        let Some(backend) = self.pick_another(client, slot, former, now) else { return false };
        if cause == RetryCause::Silent && is_missed {
            let is_known = self.answered_clients.contains(source);
            if self.backends.record_unanswered(former, opened, is_known, now) {
                self.sweep_if_needed(now);
            }
        }
        let Some(question) = self.kept.get_mut(slot) else { return false };
        question.turn_from(former, after.map(|after| now + after));
        let (tos, ttl) = (question.tos, question.ttl);
        let Ok(left) = self.move_flow_to(id, backend, ttl, now, outputs) else { return false };
        if let Some(left) = left {
            self.flows.prolong_quarantine(left, deadline);
            self.kept.leave(left, id);
        }
        self.counters.retries += 1;
        let Some(flow) = self.flows.get_mut(id) else { return false };
        flow.introduce();
        let upstream = flow.upstream();
        let to = self.shared_destination(upstream, backend);
        let send_id = match cause {
            RetryCause::Unsent => SendId::Flow { flow: id, upstream },
            RetryCause::Refused | RetryCause::Silent => SendId::Copy(backend),
        };
        let flow = id;
        outputs.emit(Output::Repeat(Repeat { flow, upstream, backend, to, send_id, tos, ttl }));
        self.schedule(slot);
        true
    }

    /// A backend that was not asked for the flow in a slot: by the key of what it has asked, where
    /// keys decide.
    fn pick_another(
        &mut self,
        client: SocketAddr,
        slot: usize,
        former: BackendId,
        now: Instant,
    ) -> Option<BackendId> {
        let Self { placement, balancer, backends, random, config, kept, .. } = self;
        let others = kept.get(slot)?.asked().chain([former]);
        let affinity = config.cluster.affinity;
        let asked = kept.datagram(slot)?.datagram;
        let place = placement.place(asked, now);
        let hash = || place.hash(client, affinity);
        backends.without(others, |backends| balancer.pick_by(backends, &hash, random))
    }

    /// The flow that has left a slot behind to ask another backend, and whom it had asked there, if that
    /// is the sender.
    pub(super) fn asker(&self, left: usize, sender: SocketAddr) -> Option<(FlowId, BackendId)> {
        let asker = self.kept.asker(left)?;
        let backend = self.flows.at(left).1.backend();
        let is_sender = self.backends.get(backend).is_some_and(|it| it.address() == sender);
        is_sender.then_some((asker, backend))
    }

    /// Whether a flow's question is kept still.
    pub(super) fn waits_for_an_answer(&self, flow: FlowId) -> bool {
        self.flows.get(flow).is_some() && self.kept.get(flow.index()).is_some()
    }

    /// Gives a flow back what it has left behind in a slot; what it has now is left there instead.
    pub(super) fn change_back<'p>(
        &mut self,
        id: FlowId,
        left: usize,
        outputs: &mut impl Outputs<'p>,
    ) {
        let slot = id.index();
        let of = |slot: usize| {
            let (_, flow) = self.flows.at(slot);
            (flow.backend(), flow.upstream())
        };
        let (after, before) = (of(slot), of(left));
        for slot in [slot, left] {
            self.flows.remove_route(slot);
        }
        for (slot, (backend, upstream)) in [(slot, before), (left, after)] {
            self.flows.put(slot, backend, upstream);
            match self.upstreams.get(upstream) {
                Some(Carries::One(_)) => self.upstreams.hand_to(upstream, slot),
                _ => self.flows.add_route(slot),
            }
        }
        if let Some(flow) = self.flows.get_mut(id) {
            // It was asked before.
            flow.introduce();
        }
        for (backend, change) in [(after.0, -1), (before.0, 1)] {
            if let Some(backend) = self.backends.get_mut(backend) {
                backend.flows_active = backend.flows_active.saturating_add_signed(change);
            }
        }
        self.counters.flows_moved += 1;
        let (backend, upstream) = before;
        let Some(address) = self.backends.get(backend).map(Backend::address) else {
            return;
        };
        outputs.emit(Output::OpenFlow { flow: id, upstream, backend, address, has_moved: true });
    }
}

fn next_look(flows: &FlowTable, kept: &RetryBuffer, slot: usize) -> Instant {
    let deadline = flows.at(slot).1.deadline();
    kept.due(slot).map_or(deadline, |due| due.min(deadline))
}
