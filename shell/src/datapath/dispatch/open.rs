//! Opening and closing the sockets of flows, at once and in the order of the outputs.

use std::net::SocketAddr;

use flowgate_core::{
    DropReason, FlowId, FlowRecord, LocalSource, ManagerInput, NetworkError, SendId, UpstreamId,
};

use super::{Dispatch, give_up, lost_to_backend};
use crate::datapath::client::Room;
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::datapath::send::outbox::Outgoing;
use crate::datapath::send::transmit::SendOutcome;
use crate::datapath::token::Token;
use crate::datapath::upstream::{SendTtl, Upstream};
use crate::sys::{errno, udp};

/// An upstream without a socket.
#[derive(Clone, Copy)]
pub(super) struct NotOpened {
    upstream: UpstreamId,
    /// Why what was to leave by it is dropped.
    reason: DropReason,
    /// The backend that it was to be connected to, where that one cannot be reached.
    theirs: Option<(SocketAddr, NetworkError)>,
}

impl<K: Kernel> Dispatch<'_, '_, K> {
    /// Opens an upstream socket. The kernel looks at every port there is before it says that none
    /// is left, which takes as long as serving tens of datagrams: it is asked once a tick.
    pub(super) fn open_upstream(
        &mut self,
        upstream: UpstreamId,
        (connect, v6): (Option<SocketAddr>, bool),
        source: LocalSource,
        ttl: u8,
    ) {
        if self.are_ports_gone {
            let reason = DropReason::NoPorts;
            self.not_opened.push(NotOpened { upstream, reason, theirs: None });
            return;
        }
        let token = Token::Upstream { shard: self.sockets.shard, upstream };
        let buffer = self.sockets.receive_buffer;
        let all = &self.sockets.egress_sockets[Role::Primary as usize].source;
        let opened = udp::open_from(all, (source, v6), |source| {
            let socket = self.kernel.open_upstream((connect, v6), source, ttl, buffer, token)?;
            if self.sockets.dont_fragment {
                self.kernel.set_dont_fragment(&socket, true);
            }
            Ok((socket, source))
        });
        match opened {
            Ok((socket, source)) => {
                let opened = Upstream::new(socket, upstream, (connect, v6), source, ttl);
                self.sockets.upstreams.insert(opened);
            }
            Err(error) => {
                let (reason, theirs) = (errno::drop_reason(&error), errno::connect_failure(&error));
                let is_shared = !matches!(source, LocalSource::Client(_));
                self.are_ports_gone = is_shared && reason == DropReason::NoPorts;
                let theirs = connect.zip(theirs);
                self.not_opened.push(NotOpened { upstream, reason, theirs });
            }
        }
    }

    /// What was to leave by a socket that there is not has been given up, so that it may have gone to
    /// another backend: now it is said whose fault that was, and whose flows end by it.
    pub(super) fn report_not_opened(&mut self) {
        for NotOpened { upstream, theirs, .. } in self.not_opened.drain(..) {
            let error = theirs.map(|(remote, error)| {
                let (remote, question) = (Some(remote), None);
                ManagerInput::UpstreamError { upstream, remote, question, error }
            });
            let failed = ManagerInput::UpstreamOpenFailed { upstream };
            let inputs = error.into_iter().chain([failed]);
            self.outcomes.extend(inputs.map(|input| SendOutcome::Input(Role::Primary, input)));
        }
    }

    pub(super) fn lose_for_want_of_a_socket(&mut self, id: UpstreamId, outgoing: &Outgoing<'_>) {
        let failed = self.not_opened.iter().find(|failed| failed.upstream == id);
        self.lose(outgoing, failed.map_or(DropReason::Closed, |failed| failed.reason));
    }

    pub(super) fn open_client(&mut self, flow: FlowId, client: SocketAddr) {
        let sockets = &mut *self.sockets;
        let Room::New(slot) = sockets.clients.ask(flow, client) else { return };
        let token = Token::Client { shard: sockets.shard, slot };
        match self.kernel.open_client(&sockets.listener, client, token) {
            Ok(socket) => {
                if sockets.dont_fragment {
                    self.kernel.set_dont_fragment(&socket, true);
                }
                sockets.clients.insert(socket, flow, client);
            }
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

    /// The time to live that has to go beside a burst, if any: where all that goes by a connected
    /// socket wants another than the socket's, it becomes the socket's. What was ordered before is
    /// sent first then, with the former one.
    pub(super) fn ttl_beside(&mut self, id: UpstreamId, ttl: u8) -> Option<u8> {
        match self.sockets.upstreams.get_mut(id)?.send_with_ttl(ttl) {
            SendTtl::AsIs => None,
            SendTtl::Beside => Some(ttl),
            SendTtl::Set => {
                self.flush_upstream(id);
                let upstream = self.sockets.upstreams.get_mut(id)?;
                // What waits in the queue is to go with the former one.
                if !upstream.send_queue.is_empty()
                    || self.kernel.set_ttl(&upstream.socket, ttl).is_err()
                {
                    return Some(ttl);
                }
                upstream.ttl = ttl;
                None
            }
        }
    }

    /// Loses what waits for room in a send buffer for a flow that ends: its answers would be
    /// nobody's. What was ordered in this tick is sent, and lost too where there is no room for it.
    pub(super) fn end_flow(&mut self, flow: FlowId, id: UpstreamId) {
        let Some(upstream) = self.sockets.upstreams.get_mut(id) else { return };
        if upstream.backend.is_some() && !upstream.outgoing.is_empty() {
            self.flush_upstream(id);
        }
        let Some(upstream) = self.sockets.upstreams.get_mut(id) else { return };
        if upstream.send_queue.is_empty() {
            return;
        }
        let is_its = |send_id| matches!(send_id, SendId::Flow { flow: of, .. } if of == flow);
        let budget = &mut self.sockets.send_queue_budget;
        let lost = upstream.send_queue.take(budget, |waiting| is_its(waiting.send_id));
        self.outcomes.extend(lost.iter().map(lost_to_backend));
    }

    /// Sends what was ordered, and closes a socket. What waits for room in its send buffer is lost.
    pub(super) fn close_upstream(&mut self, id: UpstreamId) {
        self.flush_upstream(id);
        let Some(mut closed) = self.sockets.upstreams.remove(id) else { return };
        give_up(&mut closed.send_queue, &mut self.sockets.send_queue_budget, &mut self.outcomes);
        let drops = self.kernel.receive_drops(&closed.socket);
        self.sockets.upstream_drops += u64::from(drops.saturating_sub(closed.drops));
    }

    /// Notes what a flow was. It is recalled from the kernel before it ends: what that has brought to
    /// light is part of it.
    pub(super) fn record(&mut self, flow: FlowId, mut record: FlowRecord) {
        if let Some((_, activity)) = self.recalled.take_if(|(recalled, _)| *recalled == flow) {
            record.to_backend = record.to_backend.plus(activity.to_backend);
            record.to_client = record.to_client.plus(activity.to_client);
        }
        self.records.push(record);
    }
}
