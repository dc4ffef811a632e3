//! Flows whose backend is down, removed, or to be free of them.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use super::UdpManager;
use crate::affinity::PlacedBy;
use crate::backend::FlowAction;
use crate::backend::event::BackendEvent;
use crate::flow::UdpFlow;
use crate::id::{BackendId, FlowId};
use crate::output::{Output, Outputs};
use crate::reason::{CloseReason, DropReason};
use crate::time::Instant;
use crate::upstream::Carries;

/// How many slots of the flow table one timeout looks at for flows that have to end.
const SLOTS_PER_TIMEOUT: usize = 1_024;

/// A walk over all flows in search of those that have to end, in steps, so that a million of them
/// hold up no datagram for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct Sweep {
    /// When it is to go on.
    pub(super) at: Instant,
    pub(crate) next_slot: usize,
    /// How many slots it has still to look at. It goes once round from where it is when the last
    /// news came, so that it gets to every slot however often news come.
    pub(crate) left: usize,
}

impl UdpManager {
    pub(super) fn handle_backend_event(
        &mut self,
        backend: BackendId,
        event: BackendEvent,
        now: Instant,
    ) {
        self.backends.hear(backend, event, now);
        self.sweep_if_needed(now);
    }

    /// The flow, if it may have its client's next datagram, which is this: with the backend it has, or
    /// with another. `None` where it has ended instead.
    ///
    /// # Errors
    ///
    /// When it has to go on with another backend and none can take it. It stays as it is then, and
    /// the next datagram tries again.
    #[inline]
    pub(super) fn settle<'p>(
        &mut self,
        id: FlowId,
        ttl: u8,
        datagram: &[u8],
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<Option<FlowId>, DropReason> {
        let (_, flow) = self.flows.at(id.index());
        match self.backends.flow_action(flow.backend()) {
            FlowAction::Stay => Ok(Some(id)),
            FlowAction::Move => self.move_flow(id, ttl, datagram, now, outputs).map(|()| Some(id)),
            FlowAction::Return => {
                self.return_flow(id, ttl, datagram, now, outputs);
                Ok(Some(id))
            }
            FlowAction::Close(reason) => {
                self.close(id, reason, now, outputs);
                Ok(None)
            }
        }
    }

    /// Gives a flow that a backup has to a primary, if one can take it: by the key of its client's next
    /// datagram, where keys decide.
    #[cold]
    fn return_flow<'p>(
        &mut self,
        id: FlowId,
        ttl: u8,
        datagram: &[u8],
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let Some(flow) = self.flows.get(id) else { return };
        let client = flow.client();
        let (placed, place) = (self.placement.of(id.index()).by(), self.place(datagram, now));
        let is_named =
            matches!(placed, PlacedBy::ServerId | PlacedBy::LearnedId) || place.named.is_some();
        // The server that an id names is the one that knows the connection; and what says nothing of
        // the key that the flow was placed by does not say where it belongs.
        if is_named || (placed == PlacedBy::Key && place.by != PlacedBy::Key) {
            return;
        }
        let Self { balancer, backends, random, config, .. } = self;
        let affinity = config.cluster.affinity;
        let hash = || place.hash(client, affinity);
        if let Some(primary) = balancer.pick_primary(backends, &hash, random) {
            // It fails only where there is no such backend, and this one can take the flow.
            let _ = self.move_flow_to(id, primary, ttl, now, outputs);
        }
    }

    /// Gives a flow another backend: the one that its client's next datagram would open a flow to. To
    /// the client it is the same flow.
    fn move_flow<'p>(
        &mut self,
        id: FlowId,
        ttl: u8,
        datagram: &[u8],
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<(), DropReason> {
        let Some(flow) = self.flows.get(id) else { return Ok(()) };
        let client = flow.client();
        let place = self.place(datagram, now);
        let backend = self.pick(client, &place, now).ok_or(DropReason::NoBackend)?;
        self.move_flow_to(id, backend, ttl, now, outputs).map(|_| ())
    }

    /// Gives a flow a certain backend in place of the one it has, and another upstream. What it had
    /// is in quarantine where something may still come by it, as far as there is room for that: in a
    /// slot that is returned then.
    pub(super) fn move_flow_to<'p>(
        &mut self,
        id: FlowId,
        backend: BackendId,
        ttl: u8,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<Option<usize>, DropReason> {
        let Some(flow) = self.flows.get(id) else { return Ok(None) };
        let (key, former, former_upstream) = (flow.key(), flow.backend(), flow.upstream());
        let has_sent = !flow.is_new_to_its_backend();
        let chosen = self.backends.get_mut(backend).ok_or(DropReason::NoBackend)?;
        chosen.flows_active += 1;
        let address = chosen.address();
        if let Some(former) = self.backends.get_mut(former) {
            former.flows_active -= 1;
        }
        self.counters.flows_moved += 1;
        self.recall(id, outputs);
        self.flows.remove_route(id.index());
        let mut left_behind = None;
        match self.quarantine().filter(|_| has_sent && self.has_free_slot()) {
            Some(time) => {
                let left = self.flows.leave_behind(id, now + time).index();
                self.wheel.schedule(left, now + time);
                left_behind = Some(left);
                if matches!(self.upstreams.get(former_upstream), Some(Carries::One(_))) {
                    self.upstreams.hand_to(former_upstream, left);
                } else {
                    self.flows.add_route(left);
                }
            }
            None => self.release(former_upstream, former, has_sent, now, outputs),
        }
        let slot = id.index();
        let upstream = self.upstream_for(slot, &key, (backend, address), ttl, now, outputs);
        if let Some(flow) = self.flows.get_mut(id) {
            flow.move_to(backend, upstream);
        }
        self.route(slot, upstream);
        let (flow, has_moved) = (id, true);
        outputs.emit(Output::OpenFlow { flow, upstream, backend, address, has_moved });
        Ok(left_behind)
    }

    /// Begins a sweep where flows have to end. One that is under way goes once round from where it
    /// is.
    pub(super) fn sweep_if_needed(&mut self, now: Instant) {
        self.has_lost_backends |= self.config.offload;
        if self.backends.has_flows_to_close() {
            let next_slot = self.sweep.map_or(0, |sweep| sweep.next_slot);
            self.sweep = Some(Sweep { at: now, next_slot, left: self.flows.slots() });
        }
    }

    /// Ends some of the flows that have to, and says whether it got to the last of them.
    pub(super) fn sweep<'p>(&mut self, now: Instant, outputs: &mut impl Outputs<'p>) -> bool {
        let Some(Sweep { mut next_slot, mut left, .. }) = self.sweep else { return true };
        for _ in 0..left.min(SLOTS_PER_TIMEOUT) {
            let slot = next_slot % self.flows.slots();
            (next_slot, left) = (slot + 1, left - 1);
            let Some((id, flow)) = self.flows.alive_at(slot) else { continue };
            if let FlowAction::Close(reason) = self.backends.flow_action(flow.backend()) {
                self.close(id, reason, now, outputs);
            }
        }
        let is_over = left == 0;
        self.sweep = (!is_over).then_some(Sweep { at: now, next_slot, left });
        is_over
    }

    /// Ends all flows of some kind. Looks at every flow.
    pub(super) fn close_flows<'p>(
        &mut self,
        is_one: impl Fn(&UdpFlow) -> bool,
        reason: CloseReason,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        for slot in 0..self.flows.slots() {
            if let Some((id, _)) = self.flows.alive_at(slot).filter(|(_, flow)| is_one(flow)) {
                self.close(id, reason, now, outputs);
            }
        }
    }
}
