//! Carrying out what belongs to no flow: datagrams that nobody answers, and copies.

use std::net::SocketAddr;

use flowgate_core::backend::Backends;
use flowgate_core::config::{ClusterConfig, Mode, ReplyFrom};
use flowgate_core::proxy_protocol::{ProxyHeader, ProxyInfo, Tlvs};
use flowgate_core::{BackendId, Burst, Direction, LocalAddr, ManagerInput, SendId};

use super::{Dispatch, give_up, lost_to_backend, send};
use crate::datapath::egress::{egress_number_of, needed};
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::datapath::send::outbox::{Chain, Outgoing};
use crate::datapath::send::transmit::{Peer, Transmitter};
use crate::datapath::sockets::Sockets;
use crate::datapath::token::Token;
use crate::sys::errno;

/// What has something to send in this tick that no flow carries.
#[derive(Default)]
pub(super) struct PendingRoles {
    /// Backends, by index.
    backends: Vec<(Role, usize)>,
    /// Their sockets, by number.
    egress_sockets: Vec<(Role, usize)>,
}

/// What a mirror is to have: datagrams as they came from a client.
#[derive(Clone, Copy)]
pub(super) struct Mirrored<'t> {
    pub(super) client: SocketAddr,
    pub(super) local: Option<LocalAddr>,
    pub(super) proxy_info: Option<ProxyInfo<'t>>,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) burst: Burst<'t>,
}

impl<'t> Mirrored<'t> {
    /// Empties a list and keeps its memory for another payload.
    pub(super) fn recycle<'u>(mut list: Vec<Self>) -> Vec<Mirrored<'u>> {
        list.clear();
        list.into_iter().map(|_| -> Mirrored<'u> { unreachable!() }).collect()
    }

    const fn as_input(&self) -> ManagerInput<'t> {
        let Self { client, local, proxy_info, tos, ttl, burst } = *self;
        ManagerInput::Mirrored { client, local, proxy_info, tos, ttl, burst }
    }
}

impl<'t, K: Kernel> Dispatch<'_, 't, K> {
    /// Sends what `act` emits on behalf of a mirror.
    pub fn for_mirror<R>(&mut self, act: impl FnOnce(&mut Self) -> R) -> R {
        let role = std::mem::replace(&mut self.role, Role::Mirror);
        let result = act(self);
        self.role = role;
        result
    }

    /// Tells the mirror of all that it is to have.
    pub fn pass_on_mirrored(&mut self, mut tell: impl FnMut(ManagerInput<'t>, &mut Self)) {
        let mut mirrored = std::mem::take(&mut self.mirrored);
        self.for_mirror(|dispatch| {
            mirrored.drain(..).for_each(|copy| tell(copy.as_input(), dispatch));
        });
        self.mirrored = mirrored;
    }

    /// Notes datagrams to a backend that no flow carries.
    pub(super) fn send_one_way(
        &mut self,
        send_id: SendId,
        (address, source): (SocketAddr, Option<SocketAddr>),
        (prefix, tlvs): (Option<ProxyHeader>, Tlvs<'t>),
        (tos, ttl): (u8, u8),
        burst: Burst<'t>,
    ) {
        let role = self.role;
        let outgoing = Outgoing {
            role,
            send_id,
            backend: None,
            direction: Direction::ToBackend,
            destination: Some(address),
            local: None,
            source,
            prefix,
            tlvs,
            tos,
            ttl: Some(ttl),
            // The kernel cuts nothing apart that a raw socket is given.
            may_use_gso: source.is_none(),
            burst,
        };
        let Some((backend, egress)) = egress_number_of(send_id, address) else { return };
        let outgoing = Outgoing { backend: Some(backend), ..outgoing };
        let egress_sockets = &mut self.sockets.egress_sockets[role as usize];
        egress_sockets.reserve(backend.index() + 1);
        if egress_sockets.get_mut(egress).is_none()
            && let Err(error) = self.open_egress_socket(role, egress, address.is_ipv6())
        {
            self.lose(&outgoing, errno::drop_reason(&error));
            return;
        }
        let egress_sockets = &mut self.sockets.egress_sockets[role as usize];
        let Some(destination) = egress_sockets.destination_mut(backend) else { return };
        if destination.outgoing.is_empty() {
            destination.egress = egress;
            self.pending_roles.backends.push((role, backend.index()));
        }
        let may_use_gso = outgoing.may_use_gso && !destination.no_gso;
        self.outbox.push(&mut destination.outgoing, Outgoing { may_use_gso, ..outgoing });
    }

    fn open_egress_socket(&mut self, role: Role, number: usize, v6: bool) -> std::io::Result<()> {
        let sockets = &mut *self.sockets;
        let token = Token::EgressSocket { shard: sockets.shard, role, egress: number as u32 };
        let egress_sockets = &mut sockets.egress_sockets[role as usize];
        let socket = self.kernel.open_egress_socket(v6, &egress_sockets.source, token)?;
        if sockets.dont_fragment {
            self.kernel.set_dont_fragment(&socket, true);
        }
        egress_sockets.open(number, socket);
        Ok(())
    }

    /// Sends what was noted: all that goes to one backend lies together, so that it makes GSO batches,
    /// and all that leaves by one socket goes with as few calls as it takes.
    pub(super) fn flush_egress_sockets(&mut self) {
        let mut pending = std::mem::take(&mut self.pending_roles);
        for (role, backend) in pending.backends.drain(..) {
            let egress_sockets = &mut self.sockets.egress_sockets[role as usize];
            let Some((destination, egress)) = egress_sockets.path_to(backend) else { continue };
            if egress.outgoing.is_empty() {
                pending.egress_sockets.push((role, destination.egress));
            }
            let chain = std::mem::replace(&mut destination.outgoing, Chain::EMPTY);
            self.outbox.append(&mut egress.outgoing, chain);
        }
        for (role, number) in pending.egress_sockets.drain(..) {
            self.flush_egress_socket(role, number);
        }
        self.pending_roles = pending;
    }

    fn flush_egress_socket(&mut self, role: Role, number: usize) {
        let sockets = &mut *self.sockets;
        let Some(egress) = sockets.egress_sockets[role as usize].get_mut(number) else { return };
        let chain = std::mem::replace(&mut egress.outgoing, Chain::EMPTY);
        let transmitter = Transmitter {
            kernel: self.kernel,
            socket: &egress.socket,
            peer: Peer::Nobody,
            send_queue: &mut egress.send_queue,
            send_queue_budget: &mut sockets.send_queue_budget,
            outcomes: &mut self.outcomes,
        };
        let token = Token::EgressSocket { shard: sockets.shard, role, egress: number as u32 };
        self.plan = send(transmitter, &self.outbox, chain, token, std::mem::take(&mut self.plan));
    }

    /// Opens the sockets that a way needs and closes the others, now that its backends may be others
    /// than before. What waits for backends that are gone is given up. A socket that cannot be had
    /// is asked for again with the first datagram that needs it.
    pub fn fit_egress_sockets(&mut self, role: Role, backends: &Backends, cluster: &ClusterConfig) {
        if self.sockets.egress_sockets[role as usize].source != cluster.source {
            self.close_egress_sockets(role);
            self.sockets.egress_sockets[role as usize].source = cluster.source.clone();
        }
        let send_id: fn(BackendId) -> SendId = match cluster.mode {
            Mode::Session { .. } | Mode::FanOut { reply_from: ReplyFrom::First } => {
                return self.close_egress_sockets(role);
            }
            Mode::OneWay => SendId::OneWay,
            Mode::FanOut { .. } => SendId::Copy,
        };
        let needed: Vec<_> = needed(backends, send_id).collect();
        let most = needed.iter().map(|(number, _)| *number).max().map_or(0, |most| most + 1);
        let mut is_needed = vec![false; most];
        needed.iter().for_each(|(number, _)| is_needed[*number] = true);

        let Sockets { egress_sockets, send_queue_budget, .. } = &mut *self.sockets;
        let egress_sockets = &mut egress_sockets[role as usize];
        egress_sockets.reserve(backends.len());
        egress_sockets.forget_gso_refusals();
        let mut unneeded = Vec::new();
        for (number, egress) in egress_sockets.iter_mut() {
            let stays = is_needed.get(number).is_some_and(|needed| *needed);
            let is_present = |to: SocketAddr| stays && backends.has_address(to);
            let lost = egress
                .send_queue
                .take(send_queue_budget, |waiting| !waiting.destination.is_some_and(is_present));
            self.outcomes.extend(lost.iter().map(lost_to_backend));
            if !stays {
                unneeded.push(number);
            }
        }
        unneeded.into_iter().for_each(|number| egress_sockets.close(number));
        for (number, v6) in needed {
            if self.sockets.egress_sockets[role as usize].get_mut(number).is_none() {
                let _ = self.open_egress_socket(role, number, v6);
            }
        }
    }

    /// Closes all sockets of a way. What waits for them is given up.
    pub fn close_egress_sockets(&mut self, role: Role) {
        let Sockets { egress_sockets, send_queue_budget, .. } = &mut *self.sockets;
        for (_, egress) in egress_sockets[role as usize].iter_mut() {
            give_up(&mut egress.send_queue, send_queue_budget, &mut self.outcomes);
        }
        egress_sockets[role as usize].close_all();
    }
}
