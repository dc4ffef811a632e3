//! The end of a flow, and what becomes of its socket.

use core::time::Duration;

use super::{UdpManager, resting_queue};
use crate::backend::FlowAction;
use crate::config::Source;
use crate::flow::UdpFlow;
use crate::id::{BackendId, FlowId};
use crate::output::{Output, Outputs};
use crate::reason::CloseReason;
use crate::time::Instant;

/// How long a socket that has rested is kept for another flow before it closes.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(60);

/// What becomes of the socket of a flow that ends.
enum Kept {
    /// It closes.
    Not,
    /// It rests for so long, and then another flow may have it.
    Pool(Duration),
    /// Its port goes to nobody for so long, and then it closes.
    Quarantine(Duration),
}

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
        let kept = self.kept_after(reason, flow);
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
        self.placement.closed(id.index(), now);
        if let Some(proxy) = client.proxy() {
            self.proxies.closed(proxy, self.remembered_until(now));
        }
        if let Some(backend) = self.backends.get_mut(backend) {
            backend.flows_active -= 1;
        }
        self.counters.flows_closed[reason as usize] += 1;

        match kept {
            Kept::Quarantine(time) => {
                self.flows.quarantine(id, now + time);
                self.wheel.schedule(id.index(), now + time);
            }
            Kept::Pool(rest) => self.rest(id, backend, now + rest),
            Kept::Not => {
                self.flows.remove(id);
            }
        }
        let keep_socket = !matches!(kept, Kept::Not);
        outputs.emit(Output::CloseFlow { flow: id, reason, keep_socket });
    }

    /// What becomes of the socket of a flow that ends for `reason`.
    fn kept_after(&self, reason: CloseReason, flow: &UdpFlow) -> Kept {
        if let Some(time) = self.quarantine_after(reason, flow) {
            return Kept::Quarantine(time);
        }
        let ends_by_itself = matches!(reason, CloseReason::Idle | CloseReason::Complete);
        let has_a_use =
            self.drain.is_none() && self.backends.flow_action(flow.backend()) == FlowAction::Stay;
        let is_wanted = ends_by_itself && has_a_use;
        self.config.cluster.upstream_reuse.filter(|_| is_wanted).map_or(Kept::Not, Kept::Pool)
    }

    /// For how long the socket of a flow that ends for `reason` is in quarantine, if it has to be.
    ///
    /// Once it closes, the kernel may give its port to another flow to the same backend at once,
    /// and with it what the backend still sends.
    pub(super) fn quarantine_after(&self, reason: CloseReason, flow: &UdpFlow) -> Option<Duration> {
        self.quarantine().filter(|&time| self.may_be_answered(reason, flow, time))
    }

    /// Whether something may still come for a flow that ends, within its quarantine.
    fn may_be_answered(&self, reason: CloseReason, flow: &UdpFlow, quarantine: Duration) -> bool {
        let was_used_lately = match reason {
            // There is no socket.
            CloseReason::UpstreamFailed => return false,
            CloseReason::Complete => false,
            CloseReason::Idle | CloseReason::Evicted => {
                self.config.cluster.idle_timeout < quarantine
            }
            CloseReason::Drained
            | CloseReason::BackendDown
            | CloseReason::BackendRemoved
            | CloseReason::ModeChanged => true,
        };
        flow.to_backend().datagrams > 0 && (was_used_lately || flow.awaits_replies())
    }

    /// For how long sockets are in quarantine, if they are at all.
    fn quarantine(&self) -> Option<Duration> {
        let cluster = &self.config.cluster;
        let is_shared = cluster.source != Source::Client;
        let is_wanted = self.drain.is_none() && is_shared;
        Some(cluster.upstream_quarantine).filter(|&time| is_wanted && time > Duration::ZERO)
    }

    fn rest(&mut self, id: FlowId, backend: BackendId, until: Instant) {
        self.flows.rest(id, until);
        self.queues.push(resting_queue(backend), id.index());
        self.wheel.schedule(id.index(), until + KEPT_FOR);
    }

    /// A socket without a flow has received something: its former flow is not over for the backend.
    /// It rests again, behind those that have been quiet for longer, or its quarantine begins again.
    pub(super) fn disturb(&mut self, id: FlowId, now: Instant) {
        if let Some(time) = self.quarantine() {
            self.flows.prolong_quarantine(id, now + time);
        }
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

    /// Any flow that only keeps its socket for others.
    pub(super) fn any_resting(&self) -> Option<FlowId> {
        if self.flows.resting() == 0 {
            return None;
        }
        let first = |(backend, _)| self.queues.first(resting_queue(backend));
        self.backends.iter().find_map(first).map(|index| self.flows.at(index).0)
    }

    /// Closes the socket of a flow that has ended and kept it.
    pub(super) fn close_resting<'p>(&mut self, index: usize, outputs: &mut impl Outputs<'p>) {
        self.wheel.cancel(index);
        self.queues.remove(index);
        let flow = self.flows.remove_ended(index);
        outputs.emit(Output::CloseUpstream { flow });
    }
}
