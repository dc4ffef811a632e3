//! The end of a flow, and what becomes of what it was answered by.

use core::time::Duration;

use super::UdpManager;
use crate::config::Source;
use crate::flow::UdpFlow;
use crate::id::FlowId;
use crate::output::{Output, Outputs};
use crate::reason::CloseReason;
use crate::time::Instant;

impl UdpManager {
    /// Ends a flow. Nothing happens if the id is stale.
    pub(super) fn close<'p>(
        &mut self,
        id: FlowId,
        reason: CloseReason,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.recall(id, outputs);
        let Some(flow) = self.flows.get(id) else { return };
        let quarantine = self.quarantine_after(reason, flow);
        let (client, backend, upstream) = (flow.key().client, flow.backend(), flow.upstream());
        if self.config.record_flows
            && let Some(backend) = self.backends.get(backend)
        {
            let record = flow.record(reason, backend.address(), now);
            outputs.emit(Output::RecordFlow { flow: id, record });
        }
        let has_sent = flow.to_backend().datagrams > 0;
        let has_companions = flow.next_branch(id) != id;
        let is_silence = reason == CloseReason::Idle && flow.is_owed_an_answer(&self.limits);
        let (opened, is_known) =
            (flow.opened(), is_silence && self.answered_clients.contains(client.source()));
        if is_silence && self.backends.record_unanswered(backend, opened, is_known, now) {
            self.sweep_if_needed(now);
        }
        if has_companions {
            self.leave_branches(id);
        }
        self.kept.forget(id.index());
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

        outputs.emit(Output::CloseFlow { flow: id, upstream, reason });
        match quarantine {
            Some(time) => {
                self.flows.quarantine(id, now + time);
                self.wheel.schedule(id.index(), now + time);
            }
            None => {
                self.flows.remove_route(id.index());
                self.flows.remove(id);
                self.release(upstream, backend, has_sent, now, outputs);
            }
        }
    }

    /// Gives up what a flow has left in quarantine.
    pub(super) fn end_quarantine<'p>(
        &mut self,
        slot: usize,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.kept.end(slot);
        self.wheel.cancel(slot);
        self.flows.remove_route(slot);
        let flow = self.flows.remove_ended(slot);
        self.release(flow.upstream(), flow.backend(), false, now, outputs);
    }

    /// For how long what a flow was answered by is in quarantine, if it has to be, when that ends for
    /// `reason`.
    ///
    /// Once its socket closes, the kernel may give its port to another flow to the same backend at
    /// once, and with it what the backend still sends; and so it is with a place on a shared one.
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

    /// How long a quarantine takes, if there is any at all.
    pub(super) fn quarantine(&self) -> Option<Duration> {
        let cluster = &self.config.cluster;
        let is_shared = cluster.source != Source::Client;
        let is_wanted = self.drain.is_none() && is_shared;
        Some(cluster.upstream_quarantine).filter(|&time| is_wanted && time > Duration::ZERO)
    }
}
