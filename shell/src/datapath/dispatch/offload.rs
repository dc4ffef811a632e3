//! Flows that the kernel may forward past the sockets.

use std::net::SocketAddr;

use flowgate_core::counters::Traffic;
use flowgate_core::{BackendId, FlowId, LocalAddr, UpstreamId};

use super::Dispatch;
use crate::datapath::fast_path::Activity;
use crate::datapath::kernel::{Kernel, Offer};
use crate::datapath::role::Role;
use crate::datapath::send::transmit::SendOutcome;

impl<K: Kernel> Dispatch<'_, '_, K> {
    pub(super) fn offload(
        &mut self,
        flow: FlowId,
        upstream: UpstreamId,
        (backend, address): (BackendId, SocketAddr),
        client: SocketAddr,
        local: Option<LocalAddr>,
    ) {
        let sockets = &mut *self.sockets;
        let Some(upstream) = sockets.upstreams.get_mut(upstream) else { return };
        self.kernel.offload(&Offer {
            shard: sockets.shard,
            flow,
            backend,
            client,
            called: local.map(|local| local.ip),
            address,
            listener: &sockets.listener,
            upstream: &upstream.socket,
            max_datagram_size: sockets.max_datagram_size,
        });
    }

    /// Has a flow's datagrams come by the sockets from now on.
    pub(super) fn recall(&mut self, flow: FlowId) {
        if let Some(activity) = self.kernel.recall(self.sockets.shard, flow) {
            self.recalled = Some((flow, activity));
            let input = activity.input(flow);
            self.outcomes.push(SendOutcome::Input(Role::Primary, input));
        }
    }

    /// Tells what the kernel has forwarded of a flow, nothing if it does not forward it.
    pub(super) fn tell_activity(&mut self, flow: FlowId) {
        let nothing = Traffic::default();
        let unknown = BackendId::new(0);
        let none =
            Activity { backend: unknown, to_backend: nothing, to_client: nothing, last: None };
        let activity = self.kernel.activity(self.sockets.shard, flow).unwrap_or(none);
        let input = activity.input(flow);
        self.outcomes.push(SendOutcome::Input(Role::Primary, input));
    }
}
