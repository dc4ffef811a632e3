//! Opening, reusing and closing the sockets of flows, at once and in the order of the outputs.

use std::net::SocketAddr;

use flowgate_core::{Direction, DropReason, FlowId, FlowRecord, LocalSource, ManagerInput};

use super::{Dispatch, EndedFlow, give_up};
use crate::datapath::client::Room;
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::datapath::send::transmit::SendOutcome;
use crate::datapath::token::Token;
use crate::datapath::upstream::Upstream;
use crate::sys::errno;

impl<K: Kernel> Dispatch<'_, '_, K> {
    /// Opens a socket for a flow. The kernel looks at every port there is before it says that none
    /// is left, which takes as long as serving tens of datagrams: it is asked once a tick.
    pub(super) fn open_upstream(
        &mut self,
        flow: FlowId,
        address: SocketAddr,
        source: LocalSource,
        ttl: u8,
    ) {
        if self.are_ports_gone {
            self.not_opened.push((flow, DropReason::NoPorts));
            return;
        }
        let token = Token::Upstream { shard: self.sockets.shard, flow: flow.index() as u32 };
        match self.kernel.open_upstream(address, source, ttl, self.sockets.receive_buffer, token) {
            Ok(socket) => {
                self.sockets.upstreams.insert(Upstream::new(socket, flow, address, source, ttl));
            }
            Err(error) => {
                let (reason, failure) =
                    (errno::drop_reason(&error), errno::connect_failure(&error));
                let is_shared = !matches!(source, LocalSource::Client(_));
                self.are_ports_gone = is_shared && reason == DropReason::NoPorts;
                if let Some(failure) = failure {
                    let input = ManagerInput::UpstreamFailed { flow, failure };
                    self.outcomes.push(SendOutcome::Input(Role::Primary, input));
                }
                self.not_opened.push((flow, reason));
            }
        }
    }

    pub(super) fn open_client(&mut self, flow: FlowId, client: SocketAddr) {
        let sockets = &mut *self.sockets;
        let Room::New(slot) = sockets.clients.ask(flow, client) else { return };
        let token = Token::Client { shard: sockets.shard, slot };
        match self.kernel.open_client(&sockets.listener, client, token) {
            Ok(socket) => sockets.clients.insert(slot, socket, flow, client),
            // It stays with the listener.
            Err(_) => sockets.clients.not_opened += 1,
        }
    }

    pub(super) fn release_client(&mut self, flow: FlowId) {
        let sockets = &mut *self.sockets;
        let queued = || self.kernel.most_queued(&sockets.listener);
        if let Some(socket) = sockets.clients.release(flow, queued) {
            self.leave_client(socket);
        }
    }

    /// Gives a client back to the listener. What has come by its own socket is read first.
    pub fn leave_client(&mut self, socket: K::Socket) {
        let clients = &mut self.sockets.clients;
        clients.drops += self.kernel.leave_client(&socket);
        clients.leaving.push_back(socket);
    }

    /// Gives the socket of a finished flow to a new one. What came for the former flow until now is
    /// thrown away first.
    pub(super) fn reuse_upstream(&mut self, former: FlowId, flow: FlowId) {
        let Some(upstream) = self.sockets.upstreams.get_mut(former) else {
            self.not_opened.push((flow, DropReason::Closed));
            return;
        };
        upstream.serve(flow);
        let (datagrams, bytes) = self.kernel.discard(&upstream.socket);
        if datagrams > 0 {
            let (direction, reason) = (Direction::ToClient, DropReason::UnknownFlow);
            let input = ManagerInput::Unusable { direction, reason, datagrams, bytes };
            self.outcomes.push(SendOutcome::Input(Role::Primary, input));
        }
    }

    /// Has a socket send with another time to live from now on. What was ordered before is sent
    /// first, with the former one.
    pub(super) fn set_ttl(&mut self, flow: FlowId, ttl: u8) {
        if self.sockets.upstreams.get_mut(flow).is_none_or(|upstream| upstream.ttl == ttl) {
            return;
        }
        self.flush_upstream(flow);
        if let Some(upstream) = self.sockets.upstreams.get_mut(flow)
            && self.kernel.set_ttl(&upstream.socket, ttl).is_ok()
        {
            upstream.ttl = ttl;
        }
    }

    /// Sends what a flow that ends has still to send. What waits for room in its socket's send
    /// buffer is lost, also where the socket stays: its answers would go to the next flow.
    pub(super) fn end(&mut self, flow: FlowId, keep_socket: bool) {
        self.flush_upstream(flow);
        let Some(upstream) = self.sockets.upstreams.get_mut(flow) else { return };
        give_up(&mut upstream.send_queue, &mut self.sockets.send_queue_budget, &mut self.outcomes);
        if !keep_socket && let Some(closed) = self.sockets.upstreams.remove(flow) {
            let drops = self.kernel.receive_drops(&closed.socket);
            self.sockets.upstream_drops += u64::from(drops.saturating_sub(closed.drops));
        }
    }

    /// Notes what a flow was. Its socket tells the backend's address also where another backend
    /// has taken the place in the configuration.
    pub(super) fn record(&mut self, flow: FlowId, record: FlowRecord) {
        let backend = self.sockets.upstreams.get_mut(flow).map(|upstream| upstream.backend);
        self.records.push(EndedFlow { record, backend });
    }
}
