//! The sockets of a shard as they are handed to another process.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use flowgate_core::UdpManager;
use flowgate_core::snapshot::RestoreError;
use serde::{Deserialize, Serialize};

use super::{QUEUE_BUDGET, Sockets};
use crate::datapath::client::{Clients, ClientsSnapshot};
use crate::datapath::egress::{self, EgressSockets};
use crate::datapath::kernel::{Linux, Socket};
use crate::datapath::role::Role;
use crate::datapath::send::queue::SendQueue;
use crate::datapath::token::Token;
use crate::datapath::upstream::{Upstream, UpstreamSnapshot};

/// What a shard's sockets were for, without the sockets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SocketsSnapshot {
    listener_queue: SendQueue,
    upstreams: Vec<UpstreamSnapshot>,
    clients: ClientsSnapshot,
    egress_sockets: [Vec<EgressSocketSnapshot>; 2],
    upstream_drops: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct EgressSocketSnapshot {
    number: u32,
    v6: bool,
    send_queue: SendQueue,
}

impl SocketsSnapshot {
    /// Whether the sockets can be those of these managers.
    ///
    /// # Errors
    ///
    /// When there are some for flows or backends that there cannot be.
    pub fn check(
        &self,
        manager: &UdpManager,
        mirror: Option<&UdpManager>,
    ) -> Result<(), RestoreError> {
        let mut upstreams = self.upstreams.iter().map(|upstream| upstream.id.index());
        let slots = manager.upstream_slots();
        if upstreams.any(|slot| slot >= slots) || !self.clients.fits(manager.slots()) {
            return Err(RestoreError::Broken("a socket for no flow"));
        }
        let backends = [Some(manager), mirror].map(|m| m.map_or(0, |m| m.backends().len()));
        for (egress_sockets, backends) in self.egress_sockets.iter().zip(backends) {
            if egress_sockets
                .iter()
                .any(|egress| !egress::is_number(egress.number as usize, backends))
            {
                return Err(RestoreError::Broken("a socket for no backend"));
            }
        }
        Ok(())
    }

    /// How many sockets there were, the listener apart.
    pub fn count(&self) -> usize {
        let egress_sockets: usize = self.egress_sockets.iter().map(Vec::len).sum();
        self.upstreams.len() + self.clients.count() + egress_sockets
    }
}

impl Sockets<Linux> {
    /// What they are for.
    pub fn snapshot(&self) -> SocketsSnapshot {
        let egress_sockets = |role: Role| {
            let open = self.egress_sockets[role as usize].iter();
            let snapshot = open.map(|(number, egress)| EgressSocketSnapshot {
                number: number as u32,
                v6: egress.socket.is_v6(),
                send_queue: egress.send_queue.clone(),
            });
            snapshot.collect()
        };
        SocketsSnapshot {
            listener_queue: self.listener_queue.clone(),
            upstreams: self.upstreams.iter().map(Upstream::snapshot).collect(),
            clients: self.clients.snapshot(),
            egress_sockets: [Role::Primary, Role::Mirror].map(egress_sockets),
            upstream_drops: self.upstream_drops,
        }
    }

    /// All of them but the listener, in the order of the [snapshot](Self::snapshot).
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let upstreams = self.upstreams.iter().map(|upstream| upstream.socket.as_fd());
        let clients = self.clients.sockets().map(AsFd::as_fd);
        let egress_sockets = self.egress_sockets.iter().flat_map(EgressSockets::iter);
        upstreams.chain(clients).chain(egress_sockets.map(|(_, egress)| egress.socket.as_fd()))
    }

    /// What a snapshot says, with the sockets that it was made of, in its order. Of those that are
    /// missing the upstream sockets are returned, which have to be opened again; others open by
    /// themselves when they are needed.
    pub fn restore(
        shard: u32,
        listener: Socket,
        room: usize,
        snapshot: SocketsSnapshot,
        descriptors: &mut impl Iterator<Item = Option<OwnedFd>>,
    ) -> (Self, Vec<UpstreamSnapshot>) {
        let mut sockets = Self::new(shard, listener, room);
        let mut missing = Vec::new();
        sockets.listener_queue = snapshot.listener_queue;
        sockets.upstream_drops = snapshot.upstream_drops;
        for upstream in snapshot.upstreams {
            match descriptors.next().flatten() {
                Some(fd) => {
                    let socket =
                        Socket::adopt(fd, (upstream.connect(), upstream.v6), upstream.source);
                    sockets.upstreams.insert(Upstream::restore(socket, upstream));
                }
                None => missing.push(upstream),
            }
        }
        let mut of_clients = descriptors.map(|fd| fd.map(|fd| Socket::new(fd, true)));
        sockets.clients = Clients::restore(snapshot.clients, &mut of_clients);
        for (egress_sockets, snapshots) in
            sockets.egress_sockets.iter_mut().zip(snapshot.egress_sockets)
        {
            for EgressSocketSnapshot { number, v6, send_queue } in snapshots {
                let Some(fd) = descriptors.next().flatten() else {
                    sockets.orphaned_queues.push(send_queue);
                    continue;
                };
                egress_sockets.restore(number as usize, Socket::send_only(fd, v6), send_queue);
            }
        }
        let waiting = sockets.send_queues().map(SendQueue::bytes_on_the_wire).sum();
        sockets.send_queue_budget = QUEUE_BUDGET.saturating_sub(waiting);
        (sockets, missing)
    }

    fn send_queues(&self) -> impl Iterator<Item = &SendQueue> {
        let of_upstreams = self.upstreams.iter().map(|upstream| &upstream.send_queue);
        let of_egress_sockets =
            self.egress_sockets.iter().flat_map(EgressSockets::iter).map(|(_, o)| &o.send_queue);
        std::iter::once(&self.listener_queue).chain(of_upstreams).chain(of_egress_sockets)
    }

    /// Has the poll of `kernel` tell of all but the upstream sockets, whether it has done so before or
    /// not: what is ready already is told too.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`: out of memory.
    pub fn watch(&mut self, kernel: &Linux) -> io::Result<()> {
        let shard = self.shard;
        self.listener_queue.is_watched = !self.listener_queue.is_empty();
        let token = Token::Listener { shard };
        kernel.watch(&self.listener, token, self.listener_queue.is_watched)?;
        for (slot, socket) in self.clients.watched_anew() {
            kernel.watch(socket, Token::Client { shard, slot }, false)?;
        }
        for (role, egress_sockets) in
            [Role::Primary, Role::Mirror].into_iter().zip(&mut self.egress_sockets)
        {
            for (number, egress) in egress_sockets.iter_mut() {
                egress.send_queue.is_watched = !egress.send_queue.is_empty();
                let token = Token::EgressSocket { shard, role, egress: number as u32 };
                kernel.watch(&egress.socket, token, egress.send_queue.is_watched)?;
            }
        }
        self.upstreams.iter_mut().for_each(|upstream| upstream.is_ready = false);
        Ok(())
    }

    /// The same for the upstream sockets in some slots. Says whether there are more behind these.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`: out of memory.
    pub fn watch_upstreams(&mut self, slots: Range<usize>, kernel: &Linux) -> io::Result<bool> {
        let (shard, all) = (self.shard, self.upstreams.slots());
        for slot in slots.start..slots.end.min(all) {
            let Some(upstream) = self.upstreams.at_mut(slot) else { continue };
            upstream.send_queue.is_watched = !upstream.send_queue.is_empty();
            let token = Token::Upstream { shard, upstream: upstream.id };
            kernel.watch(&upstream.socket, token, upstream.send_queue.is_watched)?;
        }
        Ok(slots.end < all)
    }
}
