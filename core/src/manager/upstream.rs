//! Which upstream a flow uses, whose an answer is, and what failures are about.

use core::net::SocketAddr;
use core::time::Duration;

use super::UdpManager;
use super::retry::RetryCause;
use crate::collections::wheel::TICK;
use crate::config::{ManagerConfig, Source, UpstreamMode, slots_for};
use crate::flow::UdpFlow;
use crate::flow::key::FlowKey;
use crate::id::{BackendId, FlowId, UpstreamId};
use crate::output::{Output, Outputs};
use crate::reason::{CloseReason, DropReason};
use crate::time::Instant;
use crate::transaction::TransactionId;
use crate::upstream::Carries;

/// For how long a shared upstream is kept without a flow.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(60);

/// How many sockets of each family the questions of a listener use, where they are told apart by what
/// names them. More are opened where the same name is under way on those that were looked at.
const SOCKETS_FOR_QUESTIONS: usize = 16;

/// How many of them close at once: they close slowly, since they may be wanted again.
const CLOSED_AT_ONCE: usize = 16;

/// How old a datagram is at most that the network reports an error about, where it is not known
/// which one it is.
const OLDEST_ERROR: Duration = Duration::from_secs(1);

/// Whose what comes by an upstream is.
pub(super) enum Recipient {
    /// A flow's.
    Flow(FlowId),
    /// It comes too late for the flow in a slot.
    Ended(usize),
    /// Nobody's.
    Nobody(DropReason),
}

/// How many upstreams to make room for at start. Shared ones are as many as they come to be.
pub(super) fn capacity_for_upstreams(config: &ManagerConfig) -> usize {
    if shares_upstreams(config) { 0 } else { slots_for(config.reserved_flows()) }
}

/// Whether flows that open use upstreams that others use too. One that has its client's address
/// serves nobody else.
pub(super) fn shares_upstreams(config: &ManagerConfig) -> bool {
    let cluster = &config.cluster;
    cluster.upstream == UpstreamMode::Shared && cluster.source != Source::Client
}

impl UdpManager {
    /// Whether flows that open use upstreams that others use too.
    pub(super) fn shares_upstreams(&self) -> bool {
        shares_upstreams(&self.config)
    }

    /// The upstream for a flow of the next slot, or of one that goes on with another backend. It is
    /// opened if it has to be.
    pub(super) fn upstream_for<'p>(
        &mut self,
        slot: usize,
        key: &FlowKey,
        (backend, address): (BackendId, SocketAddr),
        ttl: u8,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> UpstreamId {
        let v6 = address.is_ipv6();
        let (upstream, connect) = if self.shares_upstreams() {
            if let Some(upstream) = self.draw_shared(v6, backend, key, now) {
                self.upstreams.take(upstream);
                return upstream;
            }
            let places = if key.client.asks() { 0 } else { self.backends.len() };
            let upstream = self.upstreams.open_shared(v6, places, now);
            if !key.client.asks() {
                // The only one that is free for the backend.
                self.draw_shared(v6, backend, key, now);
            }
            self.upstreams.take(upstream);
            (upstream, None)
        } else {
            (self.upstreams.open_for(slot), Some(address))
        };
        let source = self.salts.choose(&self.config.cluster.source, key.client.address(), v6);
        outputs.emit(Output::OpenUpstream { upstream, connect, v6, ttl, source });
        upstream
    }

    /// A shared upstream for a flow, if there is one that may have it. Questions that are told apart
    /// by what names them use a few sockets, whose ports nobody can guess together with the names.
    fn draw_shared(
        &mut self,
        v6: bool,
        backend: BackendId,
        key: &FlowKey,
        now: Instant,
    ) -> Option<UpstreamId> {
        let Self { upstreams, flows, random, .. } = self;
        let transaction = key.transaction;
        let is_taken = |id| flows.find_route(id, backend, transaction).is_some();
        if !key.client.asks() {
            return upstreams.draw(v6, backend, now, random, is_taken);
        }
        let are_enough = upstreams.in_pool(v6) >= SOCKETS_FOR_QUESTIONS;
        let drawn = upstreams.draw_any(v6, random, is_taken);
        drawn.filter(|_| are_enough)
    }

    /// Has a flow found where its answers come, if others share its upstream.
    pub(super) fn route(&mut self, slot: usize, upstream: UpstreamId) {
        if matches!(self.upstreams.get(upstream), Some(Carries::Many { .. })) {
            self.flows.add_route(slot);
        }
    }

    /// Where what leaves by an upstream for a backend has to be sent, if it is not connected.
    #[inline]
    pub(super) fn shared_destination(
        &self,
        upstream: UpstreamId,
        backend: BackendId,
    ) -> Option<SocketAddr> {
        if self.upstreams.counts().1 == 0 {
            return None;
        }
        match self.upstreams.get(upstream)? {
            Carries::One(_) => None,
            Carries::Many { .. } => Some(self.backends.get(backend)?.address()),
        }
    }

    /// Gives back what a flow used, which is in a slot until then or has left it to go elsewhere:
    /// its socket, which closes, or its place on a shared one. That is in quarantine while something
    /// may come for the flow all the same.
    pub(super) fn release<'p>(
        &mut self,
        upstream: UpstreamId,
        backend: BackendId,
        is_quarantined: bool,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let quarantined_until = self.quarantine().filter(|_| is_quarantined).map(|time| now + time);
        if self.upstreams.release(upstream, backend, quarantined_until, now) {
            self.close_upstream(upstream, outputs);
        }
    }

    fn close_upstream<'p>(&mut self, upstream: UpstreamId, outputs: &mut impl Outputs<'p>) {
        self.upstreams.remove(upstream);
        outputs.emit(Output::CloseUpstream { upstream });
    }

    /// Closes some of the shared upstreams that have been without a flow for long, and says whether
    /// it got to the last of them.
    pub(super) fn close_idle_upstreams<'p>(
        &mut self,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> bool {
        // Those that were left a moment ago are no more urgent now.
        let most = match self.last_partial_timeout {
            Some(last) if now < last + TICK => 0,
            _ => CLOSED_AT_ONCE,
        };
        let is_due = |idle: &(UpstreamId, Instant)| idle.1 + KEPT_FOR <= now;
        for _ in 0..most {
            let Some((upstream, _)) = self.upstreams.longest_idle().filter(is_due) else {
                return true;
            };
            self.close_upstream(upstream, outputs);
        }
        !self.upstreams.longest_idle().is_some_and(|idle| is_due(&idle))
    }

    /// Has new flows use none of the shared upstreams that there are.
    pub(super) fn retire_shared_upstreams<'p>(&mut self, outputs: &mut impl Outputs<'p>) {
        self.upstreams.retire_shared();
        while let Some((upstream, _)) = self.upstreams.longest_idle() {
            self.close_upstream(upstream, outputs);
        }
    }

    /// Whose is what a sender has sent to an upstream.
    #[inline]
    pub(super) fn recipient(
        &self,
        upstream: UpstreamId,
        sender: SocketAddr,
        datagram: &[u8],
    ) -> Recipient {
        let slot = match self.upstreams.get(upstream) {
            None => return Recipient::Nobody(DropReason::UnknownFlow),
            Some(Carries::One(slot)) => slot as usize,
            Some(Carries::Many { .. }) => match self.sharing_flow(upstream, sender, datagram) {
                Ok(slot) => slot,
                Err(reason) => return Recipient::Nobody(reason),
            },
        };
        let (id, flow) = self.flows.at(slot);
        if flow.has_ended() {
            return Recipient::Ended(slot);
        }
        let is_backend = |backend: &crate::backend::Backend| backend.address() == sender;
        match self.backends.get(flow.backend()).is_some_and(is_backend) {
            true => Recipient::Flow(id),
            // Before it is connected a socket hears anyone who guesses its port.
            false => Recipient::Nobody(DropReason::ForeignSource),
        }
    }

    /// The slot of the flow that a backend answers by a shared upstream.
    fn sharing_flow(
        &self,
        upstream: UpstreamId,
        sender: SocketAddr,
        datagram: &[u8],
    ) -> Result<usize, DropReason> {
        let mut backends = self.backends.at(sender).peekable();
        if backends.peek().is_none() {
            return Err(DropReason::ForeignSource);
        }
        let transaction = match self.config.cluster.questions() {
            None => 0,
            Some(transactions) => match transactions.answer_id(datagram) {
                Some(id) => self.flows.name_question(id),
                None => return Err(DropReason::Malformed),
            },
        };
        let find = |backend| self.flows.find_route(upstream, backend, transaction);
        backends.find_map(find).ok_or(DropReason::UnknownFlow)
    }

    /// The flow that gets what a sender sends by an upstream; where that is not said, whom it is
    /// connected to.
    pub fn flow_of(
        &self,
        upstream: UpstreamId,
        sender: Option<SocketAddr>,
        datagram: &[u8],
    ) -> Option<FlowId> {
        let slot = match self.upstreams.get(upstream)? {
            Carries::One(slot) => slot as usize,
            Carries::Many { .. } => self.sharing_flow(upstream, sender?, datagram).ok()?,
        };
        let (id, flow) = self.flows.at(slot);
        (!flow.has_ended()).then_some(id)
    }

    /// Something has come for the flow in a slot that has ended: for its backend it is not over. Its
    /// quarantine begins again.
    pub(super) fn prolong_quarantine(&mut self, slot: usize, now: Instant) {
        if let Some(time) = self.quarantine() {
            self.flows.prolong_quarantine(slot, now + time);
        }
    }

    /// Ends the flows of an upstream that could not be opened.
    pub(super) fn handle_open_failed<'p>(
        &mut self,
        upstream: UpstreamId,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        match self.upstreams.get(upstream) {
            None => {}
            Some(Carries::One(slot)) => {
                let (id, flow) = self.flows.at(slot as usize);
                if !flow.has_ended() {
                    self.close(id, CloseReason::UpstreamFailed, now, outputs);
                }
            }
            Some(Carries::Many { .. }) => {
                self.upstreams.retire(upstream);
                let is_on_it = |flow: &UdpFlow| flow.upstream() == upstream;
                self.close_flows(is_on_it, CloseReason::UpstreamFailed, now, outputs);
                if matches!(self.upstreams.get(upstream), Some(Carries::Many { flows: 0, .. })) {
                    self.close_upstream(upstream, outputs);
                }
            }
        }
    }

    /// The network has reported an error about what an upstream has sent.
    pub(super) fn handle_upstream_error<'p>(
        &mut self,
        upstream: UpstreamId,
        remote: Option<SocketAddr>,
        question: Option<TransactionId>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.counters.upstream_errors += 1;
        let id = match question.filter(|_| self.config.cluster.questions().is_some()) {
            Some(question) => self.asking_flow(upstream, remote, question),
            None => self.flow_of(upstream, remote, &[]),
        };
        let flow = id.and_then(|id| self.flows.get(id));
        let failed = match (flow, remote) {
            // What it quotes was sent when the flow was used last, or before.
            (Some(flow), _) => Some((flow.backend(), flow.last_used(&self.limits))),
            // Whose it was is not known any more, only that it was not long ago.
            (None, Some(remote)) => {
                let now = now.as_nanos().saturating_sub(OLDEST_ERROR.as_nanos() as u64);
                let backend = self.backends.at(remote).next();
                backend.map(|backend| (backend, Instant::from_nanos(now)))
            }
            (None, None) => None,
        };
        if let Some((backend, sent)) = failed
            && self.backends.network_failed(backend, sent, now)
        {
            self.sweep_if_needed(now);
        }
        if let Some(id) = id {
            self.ask_another(id, RetryCause::Refused, now, outputs);
        }
    }

    /// The flow of a question that a backend has got by a shared upstream.
    fn asking_flow(
        &self,
        upstream: UpstreamId,
        remote: Option<SocketAddr>,
        question: TransactionId,
    ) -> Option<FlowId> {
        let name = self.flows.name_question(question);
        let find = |backend| self.flows.find_route(upstream, backend, name);
        let (id, flow) = self.flows.at(self.backends.at(remote?).find_map(find)?);
        (!flow.has_ended()).then_some(id)
    }
}
