//! Which backend a datagram is for that belongs to no flow yet, and whether a known flow's datagram is
//! for another one than its flow has.

use core::net::SocketAddr;

use super::UdpManager;
use crate::affinity::Place;
use crate::config::{ManagerConfig, slots_for};
use crate::id::{BackendId, FlowId};
use crate::output::Outputs;
use crate::time::Instant;

/// How many slots the flow table has at most, and for how many there is room at start.
pub(super) fn placement_room(config: &ManagerConfig) -> (usize, usize) {
    (slots_for(config.max_flows as usize), slots_for(config.reserved_flows()))
}

impl UdpManager {
    /// What a datagram of no known flow says of where it belongs.
    pub(super) fn place<'d>(&self, datagram: &'d [u8], now: Instant) -> Place<'d> {
        self.placement.place(datagram, now)
    }

    /// The backend for something new of a client, if any can take it.
    pub(super) fn pick(
        &mut self,
        client: SocketAddr,
        place: &Place<'_>,
        now: Instant,
    ) -> Option<BackendId> {
        let Self { placement, balancer, backends, random, .. } = self;
        placement.pick(place, client, balancer, backends, random, now)
    }

    /// Where a known flow's datagram has the id of another backend, the flow goes to that one: its
    /// client has ended one connection and goes on with another from the same address. Answers go
    /// where they have gone, to the address that the datagrams come from.
    #[inline]
    pub(super) fn follow_id<'p>(
        &mut self,
        id: FlowId,
        ttl: u8,
        datagram: &[u8],
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        if self.placement.has_another_id(id.index(), datagram) {
            self.look_at_id(id, ttl, datagram, now, outputs);
        }
    }

    fn look_at_id<'p>(
        &mut self,
        id: FlowId,
        ttl: u8,
        datagram: &[u8],
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let place = self.placement.find(datagram, now);
        let Some(named) = place.named.filter(|_| !place.is_opening) else { return };
        let has_it = self.flows.get(id).is_none_or(|flow| flow.backend() == named);
        if has_it || !self.backends.can_take(named, false) {
            return;
        }
        // It fails only where there is no such backend, and this one can take the flow.
        let _ = self.move_flow_to(id, named, ttl, now, outputs);
        self.placement.closed(id.index(), now);
        self.placement.opened(id.index(), &place, datagram);
    }
}
