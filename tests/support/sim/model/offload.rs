//! What the kernel may forward by itself, and what it has.

use std::time::Duration;

use flowgate_core::config::{SendProxyProtocol, UpstreamMode};
use flowgate_core::counters::Traffic;
use flowgate_core::{BackendId, CloseReason, FlowId, Instant};

use super::effect::Effect;
use super::{Model, timeout_of};

/// So many datagrams by the sockets are worth an offer.
const WORTH_IT: u64 = 16;

/// What the kernel has forwarded, as it is told.
pub(super) struct Told {
    pub(super) backend: usize,
    pub(super) to_backend: Traffic,
    pub(super) to_client: Traffic,
    pub(super) last: Option<Instant>,
}

impl Model {
    /// What a client's burst that was forwarded gives rise to.
    pub(super) fn offer<'p>(&mut self, effects: &[Effect<'p>]) -> Option<Effect<'p>> {
        let &Effect::Request { flow: id, .. } = effects.last()? else { return None };
        let is_of_it =
            |effect: &&Effect<'_>| matches!(effect, Effect::Request { flow, .. } if *flow == id);
        let datagrams = effects.iter().filter(is_of_it).count() as u64;
        let cluster = &self.config.cluster;
        let limits = &cluster.limits;
        let each_counts = cluster.responses + cluster.requests + limits.amplification > 0
            || limits.datagrams_per_second_per_source > 0
            || limits.bytes_per_second_per_source > 0
            || cluster.transactions.is_some()
            || cluster.upstream == UpstreamMode::Shared;
        let each_changes = cluster.send_proxy_protocol == SendProxyProtocol::Every;
        let each_is_read = cluster.affinity.reads_payload();
        if !self.config.offload
            || self.drain.is_some()
            || each_counts
            || each_changes
            || each_is_read
        {
            return None;
        }
        let index = self.index_of(id)?;
        let flow = &mut self.flows[index];
        if flow.via.is_some() || flow.retired {
            return None;
        }
        flow.by_sockets += datagrams;
        let is_worth_it = (!flow.offered && flow.confirmed) || flow.by_sockets >= WORTH_IT;
        if !is_worth_it {
            return None;
        }
        (flow.offered, flow.asked_until, flow.by_sockets) = (true, None, 0);
        flow.kept = None;
        let (backend, client, local) = (BackendId::new(flow.backend), flow.client, flow.local);
        Some(Effect::Offload { flow: id, backend, client, local })
    }

    /// A flow's time is over as far as the sockets know.
    pub(super) fn ask<'p>(&mut self, index: usize, now: Instant) -> Effect<'p> {
        let flow = &mut self.flows[index];
        let timeout = timeout_of(&self.config.cluster, flow.answered);
        let again = timeout.clamp(Duration::from_nanos(1), Duration::from_secs(1));
        flow.asked_until = Some(now + again);
        Effect::AskActivity { flow: flow.id }
    }

    /// The kernel has forwarded something, or says that it has not.
    pub(super) fn activity<'p>(
        &mut self,
        id: FlowId,
        told: &Told,
        now: Instant,
    ) -> Vec<Effect<'p>> {
        let &Told { backend, to_backend, to_client, last } = told;
        let counters = &mut self.counters;
        for (ledger, more) in
            [(&mut counters.to_backend, to_backend), (&mut counters.to_client, to_client)]
        {
            ledger.received = ledger.received.plus(more);
            ledger.forwarded = ledger.forwarded.plus(more);
            ledger.by_kernel = ledger.by_kernel.plus(more);
        }
        let has_answered = to_client.datagrams > 0;
        if let Some(load) = self.loads.get_mut(backend) {
            load.to = load.to.plus(to_backend);
            load.from = load.from.plus(to_client);
            if has_answered {
                load.health.answered(now);
            }
        }
        let Some(index) = self.index_of(id) else { return vec![] };
        let flow = &mut self.flows[index];
        flow.requests = flow.requests.plus(to_backend);
        flow.replies = flow.replies.plus(to_client);
        flow.heard |= has_answered;
        let mut effects = vec![];
        if to_backend.datagrams > 0 {
            effects.extend(self.opens_client_by_confirming(index));
            self.go_on(index);
        }
        let flow = &mut self.flows[index];
        if has_answered && !flow.answered {
            flow.answered = true;
            flow.first_answer = Some(last.unwrap_or(flow.opened).max(flow.opened));
            self.unconfirmed.push_back(id);
        }
        if let Some(last) = last {
            let timeout = timeout_of(&self.config.cluster, flow.answered);
            flow.deadline = flow.deadline.max(last.min(now) + timeout);
        }
        let was_asked = flow.asked_until.take().is_some();
        if was_asked && flow.deadline <= now {
            effects.extend(self.close(index, CloseReason::Idle, now));
        }
        effects
    }
}

impl super::Flow {
    /// When its timer has something to do.
    pub(super) fn next_check(&self) -> Instant {
        self.asked_until.map_or(self.deadline, |again| again.max(self.deadline))
    }
}
