//! The end of a flow, and what becomes of its socket.

use core::time::Duration;

use super::{UdpManager, resting_queue};
use crate::backend::FlowAction;
use crate::id::{BackendId, FlowId};
use crate::output::{Output, Outputs};
use crate::reason::CloseReason;
use crate::time::Instant;

/// How long a socket that has rested is kept for another flow before it closes.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(60);

impl UdpManager {
    /// Ends a flow. Nothing happens if the id is stale.
    pub(super) fn close<'p>(
        &mut self,
        id: FlowId,
        reason: CloseReason,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let Some(flow) = self.flows.get(id) else { return };
        if self.config.record_flows {
            outputs.emit(Output::RecordFlow { flow: id, record: flow.record(reason, now) });
        }
        let (client, backend) = (flow.key().client, flow.backend());
        let has_companions = flow.next_branch() != id;
        let is_silence = reason == CloseReason::Idle && flow.is_owed_an_answer(&self.limits);
        let (opened, is_known) =
            (flow.opened(), is_silence && self.answered_clients.contains(client.source()));
        if is_silence && self.backends.record_unanswered(backend, opened, is_known, now) {
            self.sweep_if_needed(now);
        }
        if has_companions {
            self.leave_request(id);
        }
        self.wheel.cancel(id.index());
        self.queues.remove(id.index());
        self.source_limits.closed(client.source());
        if let Some(proxy) = client.proxy() {
            self.proxies.closed(proxy, self.remembered_until(now));
        }
        if let Some(backend) = self.backends.get_mut(backend) {
            backend.flows_active -= 1;
        }
        self.counters.flows_closed[reason as usize] += 1;

        let rest = self.rest_after(reason, backend);
        match rest {
            Some(rest) => self.rest(id, backend, now + rest),
            None => {
                self.flows.remove(id);
            }
        }
        outputs.emit(Output::CloseFlow { flow: id, reason, keep_socket: rest.is_some() });
    }

    /// How long the socket of a flow that ends for `reason` has to rest; `None` to close it.
    fn rest_after(&self, reason: CloseReason, backend: BackendId) -> Option<Duration> {
        let ends_by_itself = matches!(reason, CloseReason::Idle | CloseReason::Complete);
        let has_a_use =
            self.drain.is_none() && self.backends.flow_action(backend) == FlowAction::Stay;
        let is_wanted = ends_by_itself && has_a_use;
        self.config.cluster.upstream_reuse.filter(|_| is_wanted)
    }

    fn rest(&mut self, id: FlowId, backend: BackendId, until: Instant) {
        self.flows.rest(id, until);
        self.queues.push(resting_queue(backend), id.index());
        self.wheel.schedule(id.index(), until + KEPT_FOR);
    }

    /// A resting socket has received something: its former flow is not over for the backend. It
    /// rests again, behind those that have been quiet for longer.
    pub(super) fn disturb(&mut self, id: FlowId, now: Instant) {
        let Some(rest) = self.config.cluster.upstream_reuse else { return };
        if self.flows.rest_longer(id, now + rest) {
            let (_, flow) = self.flows.at(id.index());
            self.queues.push(resting_queue(flow.backend()), id.index());
        }
    }

    /// The flow of `backend` whose socket has rested longest, if it has rested enough.
    pub(super) fn rested(&self, backend: BackendId, now: Instant) -> Option<FlowId> {
        self.config.cluster.upstream_reuse?;
        let (id, flow) = self.flows.at(self.queues.first(resting_queue(backend))?);
        (flow.deadline() <= now).then_some(id)
    }

    /// Any flow that only keeps its socket.
    pub(super) fn any_resting(&self) -> Option<FlowId> {
        if self.flows.resting() == 0 {
            return None;
        }
        let first = |(backend, _)| self.queues.first(resting_queue(backend));
        self.backends.iter().find_map(first).map(|index| self.flows.at(index).0)
    }

    /// Closes the socket of a resting flow.
    pub(super) fn close_resting<'p>(&mut self, index: usize, outputs: &mut impl Outputs<'p>) {
        self.wheel.cancel(index);
        self.queues.remove(index);
        let flow = self.flows.remove_resting(index);
        outputs.emit(Output::CloseUpstream { flow });
    }
}
