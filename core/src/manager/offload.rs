//! Flows whose datagrams the kernel forwards past the sockets: which may be, and what becomes of
//! them. All of it is a hint to the shell but the recalls.

use core::time::Duration;

use super::{CONTINUED, EXCHANGED, UdpManager};
use crate::backend::{Backend, FlowAction};
use crate::config::Accept;
use crate::counters::Traffic;
use crate::flow::{NotedActivity, Offload};
use crate::id::{BackendId, FlowId};
use crate::output::{Output, Outputs};
use crate::reason::{CloseReason, Direction};
use crate::time::Instant;

/// How long after it has asked for a flow's activity the manager asks again at the latest, unless it
/// is told. Sooner where flows live for less long: a datagram may come by the sockets meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the kernel has forwarded of a flow.
pub(super) struct Activity {
    pub(super) backend: BackendId,
    pub(super) to_backend: Traffic,
    pub(super) to_client: Traffic,
    pub(super) last: Option<Instant>,
}

impl UdpManager {
    /// Whether the datagrams of a flow are all treated alike once it is established, so that the
    /// manager need not see each of them.
    fn may_offload(&self) -> bool {
        self.config.offload
            && self.drain.is_none()
            && self.config.cluster.offload_obstacle().is_none()
    }

    /// Offers a flow to the kernel, once its client has sent that many datagrams by the sockets, if
    /// that is worth it.
    pub(super) fn offer<'p>(&mut self, id: FlowId, datagrams: u16, outputs: &mut impl Outputs<'p>) {
        if !self.may_offload() {
            return;
        }
        let Some(flow) = self.flows.get_mut(id) else { return };
        let is_plain = flow.is_findable() && !flow.is_mirrored() && flow.proxy().is_none();
        if is_plain && flow.is_worth_offloading(datagrams) {
            flow.set_offload(Offload::Offered);
            let (backend, upstream) = (flow.backend(), flow.upstream());
            let (client, local) = (flow.client(), flow.local());
            let Some(address) = self.backends.get(backend).map(Backend::address) else { return };
            // What it began with is long since there, and its answer may not come by here.
            self.kept.forget(id.index());
            outputs.emit(Output::Offload { flow: id, upstream, backend, address, client, local });
        }
    }

    /// Has a flow's datagrams come by the sockets again, if it was offered to the kernel.
    pub(super) fn recall<'p>(&mut self, id: FlowId, outputs: &mut impl Outputs<'p>) {
        let offered = self.flows.get_mut(id).filter(|flow| flow.offload() != Offload::No);
        if let Some(flow) = offered {
            flow.set_offload(Offload::No);
            outputs.emit(Output::Recall { flow: id });
        }
    }

    /// Has all datagrams of all flows come by the sockets again. They are offered again in time, as far
    /// as they may still be.
    pub(super) fn recall_all<'p>(&self, outputs: &mut impl Outputs<'p>) {
        if self.config.offload {
            let of_flows = self.backends.iter().filter(|(_, backend)| backend.flows_active > 0);
            of_flows.for_each(|(backend, _)| outputs.emit(Output::RecallBackend { backend }));
        }
    }

    /// Has the datagrams of all flows come by the sockets that do not stay with their backends.
    pub(super) fn recall_lost_backends<'p>(&mut self, outputs: &mut impl Outputs<'p>) {
        self.has_lost_backends = false;
        for (backend, figures) in self.backends.iter() {
            let stays = self.backends.flow_action(backend) == FlowAction::Stay;
            if !stays && figures.flows_active > 0 {
                outputs.emit(Output::RecallBackend { backend });
            }
        }
    }

    /// Asks whether a flow has been silent, whose deadline has passed as far as the sockets know.
    pub(super) fn ask_activity<'p>(
        &mut self,
        id: FlowId,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.set_offload(Offload::Asked);
        let again = flow.timeout(&self.limits).clamp(Duration::from_nanos(1), ASK_AGAIN);
        self.wheel.schedule(id.index(), now + again);
        outputs.emit(Output::AskActivity { flow: id });
    }

    /// Takes in what the kernel has forwarded, which is received and forwarded, all of it.
    pub(super) fn handle_flow_activity<'p>(
        &mut self,
        id: FlowId,
        activity: &Activity,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let &Activity { backend, to_backend, to_client, last } = activity;
        for (direction, traffic) in
            [(Direction::ToBackend, to_backend), (Direction::ToClient, to_client)]
        {
            let ledger = self.counters.ledger_mut(direction);
            ledger.received.add(traffic);
            ledger.forwarded.add(traffic);
            ledger.by_kernel.add(traffic);
        }
        if let Some(backend) = self.backends.get_mut(backend) {
            backend.to.add(to_backend);
        }
        if to_client.datagrams > 0 {
            self.count_answer(backend, to_client, now);
        }
        let Some(flow) = self.flows.get_mut(id) else { return };
        let last = last.map(|last| last.min(now));
        let NotedActivity { is_first_answer, confirms } =
            flow.note_activity(to_backend, to_client, last, &self.limits);
        if is_first_answer {
            self.queues.push_back(EXCHANGED, id.index());
        }
        if confirms {
            if self.config.accept == Accept::Confirmed {
                outputs.emit(Output::OpenClient { flow: id, client: flow.client() });
            }
            self.queues.push_back(CONTINUED, id.index());
        }
        let was_asked = flow.offload() == Offload::Asked;
        if was_asked {
            flow.set_offload(Offload::Offered);
            let deadline = flow.deadline();
            if deadline <= now {
                self.close(id, CloseReason::Idle, now, outputs);
            } else {
                self.wheel.schedule(id.index(), deadline);
            }
        }
    }
}
