//! Carrying out what a manager emits.
//!
//! Sockets are opened and closed at once, in the order of the outputs. Sends are only noted, and
//! go out together when the tick is over: then the datagrams of one flow lie next to each other,
//! however they were mixed when they arrived, and leave as GSO batches.

mod observed;
mod offload;
mod one_way;
mod open;
mod repeat;

use std::net::SocketAddr;

use flowgate_core::proxy_protocol::Tlvs;
use flowgate_core::{
    Direction, DropReason, FlowId, FlowRecord, ManagerInput, Output, Outputs, Repeat, SendId,
    UpstreamId,
};

use crate::datapath::fast_path::Activity;
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::datapath::send::gso::Plan;
use crate::datapath::send::outbox::{Chain, Outbox, Outgoing};
use crate::datapath::send::queue::{QueuedDatagram, SendQueue};
use crate::datapath::send::transmit::{Peer, SendAccount, SendOutcome, Transmitter};
use crate::datapath::sockets::Sockets;
use crate::datapath::token::Token;
use crate::observe::tap::Taps;
use one_way::{Mirrored, PendingRoles};
use open::NotOpened;

/// How much leaves by a listener until it is looked how full its send buffer is: a small part of that,
/// so that it costs nothing.
const LOOK_AFTER: usize = 64 << 10;

/// What the kernel needs for a datagram besides, about.
const OVERHEAD: usize = 512;

/// Memory that one tick leaves to the next.
#[derive(Default)]
pub struct Scratch {
    outbox: Outbox<'static>,
    plan: Plan<'static>,
    pending: Vec<UpstreamId>,
    outcomes: Vec<SendOutcome>,
    not_opened: Vec<NotOpened>,
    pending_roles: PendingRoles,
    mirrored: Vec<Mirrored<'static>>,
    taps: Taps,
    /// The flows that have ended and are to be written down, to be taken from here.
    pub records: Vec<FlowRecord>,
}

impl Scratch {
    /// Who watches.
    pub const fn taps(&mut self) -> &mut Taps {
        &mut self.taps
    }
}

/// The orders of one tick.
pub struct Dispatch<'a, 't, K: Kernel> {
    kernel: &'a mut K,
    sockets: &'a mut Sockets<K>,
    outbox: Outbox<'t>,
    plan: Plan<'static>,
    /// What leaves by the listener.
    to_clients: Chain,
    /// The upstream sockets that have something to send.
    pending: Vec<UpstreamId>,
    outcomes: Vec<SendOutcome>,
    /// The upstream sockets that could not be opened in this tick.
    not_opened: Vec<NotOpened>,
    /// Whether a socket was to be opened in this tick when no local port was left.
    are_ports_gone: bool,
    /// On whose behalf what is emitted now is to be sent.
    role: Role,
    pending_roles: PendingRoles,
    /// What the mirror is to have, and has not been told of.
    mirrored: Vec<Mirrored<'t>>,
    /// Who watches.
    taps: Taps,
    records: Vec<FlowRecord>,
    /// The questions to be sent again that the manager has just told.
    repeats: Vec<Repeat>,
    /// The last flow that the kernel was told to forward no more, and what it had not told of it.
    recalled: Option<(FlowId, Activity)>,
}

impl<'a, 't, K: Kernel> Dispatch<'a, 't, K> {
    /// Begins a tick.
    pub fn begin(kernel: &'a mut K, sockets: &'a mut Sockets<K>, scratch: Scratch) -> Self {
        Self {
            kernel,
            sockets,
            outbox: scratch.outbox.recycle(),
            plan: scratch.plan,
            to_clients: Chain::EMPTY,
            pending: scratch.pending,
            outcomes: scratch.outcomes,
            not_opened: scratch.not_opened,
            are_ports_gone: false,
            role: Role::Primary,
            pending_roles: scratch.pending_roles,
            mirrored: Mirrored::recycle(scratch.mirrored),
            taps: scratch.taps,
            records: scratch.records,
            repeats: Vec::new(),
            recalled: None,
        }
    }

    /// The kernel and the sockets, for reading.
    pub const fn parts(&mut self) -> (&mut K, &mut Sockets<K>) {
        (self.kernel, self.sockets)
    }

    /// Ends the tick: sends all that was ordered. What went wrong goes to `tell`, which may emit
    /// more.
    pub fn finish(
        mut self,
        mut tell: impl FnMut(Role, ManagerInput<'static>, &mut Self),
    ) -> Scratch {
        let mut outcomes = Vec::new();
        loop {
            self.flush();
            std::mem::swap(&mut outcomes, &mut self.outcomes);
            if outcomes.is_empty() {
                break;
            }
            for outcome in outcomes.drain(..) {
                match outcome {
                    SendOutcome::Input(role, input) => {
                        if let ManagerInput::FlowActivity { flow, .. } = input {
                            // From now on it is among what the manager knows of the flow.
                            self.recalled.take_if(|(recalled, _)| *recalled == flow);
                        }
                        tell(role, input, &mut self);
                    }
                    SendOutcome::GsoRefused { role, send_id, direction } => {
                        self.forbid_gso(role, send_id, direction);
                    }
                }
            }
        }
        self.taps.flush();
        Scratch {
            outbox: self.outbox.recycle(),
            plan: self.plan,
            pending: self.pending,
            outcomes: self.outcomes,
            not_opened: self.not_opened,
            pending_roles: self.pending_roles,
            mirrored: Mirrored::recycle(self.mirrored),
            taps: self.taps,
            records: self.records,
        }
    }

    /// Gives up what waits for room in the send buffers of sockets to backends that `is_gone` says
    /// are to have nothing any more.
    pub fn abandon(&mut self, is_gone: impl Fn(SocketAddr) -> bool) {
        let sockets = &mut *self.sockets;
        for upstream in sockets.upstreams.iter_mut() {
            if upstream.send_queue.is_empty() {
                continue;
            }
            let connected = upstream.backend;
            let lost = upstream.send_queue.take(&mut sockets.send_queue_budget, |waiting| {
                waiting.destination.or(connected).is_some_and(&is_gone)
            });
            self.outcomes.extend(lost.iter().map(lost_to_backend));
        }
    }

    /// Gives up what waited for a socket that another process had, and that cannot be had here.
    pub fn lose_queued(&mut self, mut queue: SendQueue) {
        // It never took anything from the budget of this process.
        let mut budget = 0;
        give_up(&mut queue, &mut budget, &mut self.outcomes);
    }

    /// Goes on sending what waits for a socket that can be written to again, or may be.
    pub fn resume(&mut self, token: Token) {
        let sockets = &mut *self.sockets;
        let mut peer = Peer::Nobody;
        let (socket, send_queue, direction) = match token {
            // Clients' own sockets send nothing.
            Token::Wake | Token::Network | Token::Client { .. } => return,
            Token::Listener { .. } => {
                (&sockets.listener, &mut sockets.listener_queue, Direction::ToClient)
            }
            Token::Upstream { upstream, .. } => match sockets.upstreams.get_mut(upstream) {
                Some(upstream) => {
                    peer = upstream.peer(sockets.questions);
                    (&upstream.socket, &mut upstream.send_queue, Direction::ToBackend)
                }
                None => return,
            },
            Token::EgressSocket { role, egress, .. } => {
                match sockets.egress_sockets[role as usize].get_mut(egress as usize) {
                    Some(egress) => (&egress.socket, &mut egress.send_queue, Direction::ToBackend),
                    None => return,
                }
            }
        };
        if send_queue.is_empty() {
            return;
        }
        let mut transmitter = Transmitter {
            kernel: self.kernel,
            socket,
            peer,
            send_queue: &mut *send_queue,
            send_queue_budget: &mut sockets.send_queue_budget,
            outcomes: &mut self.outcomes,
        };
        let is_all_sent = transmitter.resume(direction);
        if is_all_sent == send_queue.is_watched {
            // A socket that cannot be unwatched only causes idle wake-ups, and one that cannot be
            // watched is tried again with its next datagram.
            let is_done = self.kernel.watch_writable(socket, token, !is_all_sent).is_ok();
            send_queue.is_watched = !is_all_sent && is_done;
        }
    }

    fn flush(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        for upstream in pending.drain(..) {
            self.flush_upstream(upstream);
        }
        self.pending = pending;
        self.flush_egress_sockets();
        self.flush_listener();
        self.report_not_opened();
    }

    fn flush_upstream(&mut self, id: UpstreamId) {
        let sockets = &mut *self.sockets;
        let Some(upstream) = sockets.upstreams.get_mut(id) else {
            return;
        };
        let chain = std::mem::replace(&mut upstream.outgoing, Chain::EMPTY);
        let token = Token::Upstream { shard: sockets.shard, upstream: id };
        let transmitter = Transmitter {
            kernel: self.kernel,
            peer: upstream.peer(sockets.questions),
            socket: &upstream.socket,
            send_queue: &mut upstream.send_queue,
            send_queue_budget: &mut sockets.send_queue_budget,
            outcomes: &mut self.outcomes,
        };
        self.plan = send(transmitter, &self.outbox, chain, token, std::mem::take(&mut self.plan));
    }

    fn flush_listener(&mut self) {
        let sockets = &mut *self.sockets;
        if sockets.unlooked >= LOOK_AFTER {
            sockets.unlooked = 0;
            if self.kernel.look_for_silent(&sockets.listener) {
                let (kernel, budget) = (&*self.kernel, &mut sockets.send_queue_budget);
                let lost = sockets.listener_queue.take(budget, |waiting| {
                    waiting.destination.is_some_and(|client| kernel.is_silent(client.ip()))
                });
                let lost = lost.iter().map(|lost| {
                    let account = lost.account(Direction::ToClient);
                    account.undelivered(DropReason::Unreachable, 1, lost.bytes)
                });
                self.outcomes.extend(lost);
            }
        }
        let chain = std::mem::replace(&mut self.to_clients, Chain::EMPTY);
        let transmitter = Transmitter {
            kernel: self.kernel,
            socket: &sockets.listener,
            peer: Peer::Nobody,
            send_queue: &mut sockets.listener_queue,
            send_queue_budget: &mut sockets.send_queue_budget,
            outcomes: &mut self.outcomes,
        };
        let token = Token::Listener { shard: sockets.shard };
        self.plan = send(transmitter, &self.outbox, chain, token, std::mem::take(&mut self.plan));
    }

    /// Notes a flow's datagrams. One socket's time to live is for the peer that it is connected to; by
    /// one that others use too each message says its own, where that differs.
    fn send_to_backend(&mut self, id: UpstreamId, ttl: u8, outgoing: Outgoing<'t>) {
        let is_connected = outgoing.destination.is_none();
        let beside = if is_connected { self.ttl_beside(id, ttl) } else { Some(ttl) };
        let Some(upstream) = self.sockets.upstreams.get_mut(id) else {
            self.lose_for_want_of_a_socket(id, &outgoing);
            return;
        };
        if upstream.outgoing.is_empty() {
            self.pending.push(id);
        }
        let may_use_gso = upstream.may_use_gso(Direction::ToBackend);
        let ttl = beside.filter(|&ttl| ttl != upstream.ttl);
        self.outbox.push(&mut upstream.outgoing, Outgoing { may_use_gso, ttl, ..outgoing });
    }

    fn lose(&mut self, outgoing: &Outgoing<'_>, reason: DropReason) {
        let (datagrams, bytes) =
            (usize::from(outgoing.burst.count()), outgoing.burst.bytes().len());
        self.outcomes.push(SendAccount::of(outgoing).undelivered(reason, datagrams, bytes));
    }

    fn send_to_client(&mut self, id: UpstreamId, outgoing: Outgoing<'t>) {
        self.sockets.unlooked +=
            outgoing.burst.bytes().len() + OVERHEAD * usize::from(outgoing.burst.count());
        // What waits for one client to say where it is must not hold up the others.
        if outgoing.destination.is_some_and(|client| self.kernel.is_silent(client.ip())) {
            self.lose(&outgoing, DropReason::Unreachable);
            return;
        }
        let upstream = self.sockets.upstreams.get_mut(id);
        let may_use_gso = upstream.is_none_or(|u| u.may_use_gso(Direction::ToClient));
        self.outbox.push(&mut self.to_clients, Outgoing { may_use_gso, ..outgoing });
    }

    fn forbid_gso(&mut self, role: Role, send_id: SendId, direction: Direction) {
        match send_id {
            SendId::Flow { upstream, .. } => {
                if let Some(upstream) = self.sockets.upstreams.get_mut(upstream) {
                    upstream.forbid_gso(direction);
                }
            }
            SendId::OneWay(backend) | SendId::Copy(backend) => {
                let egress_sockets = &mut self.sockets.egress_sockets[role as usize];
                if let Some(destination) = egress_sockets.destination_mut(backend) {
                    destination.no_gso = true;
                }
            }
        }
    }
}

impl<'t, K: Kernel> Outputs<'t> for Dispatch<'_, 't, K> {
    #[inline]
    fn emit(&mut self, output: Output<'t>) {
        match output {
            Output::OpenUpstream { upstream, connect, v6, ttl, source } => {
                self.open_upstream(upstream, (connect, v6), source, ttl);
            }
            Output::Send { flow, upstream, backend, to, prefix, tlvs, tos, ttl, burst } => {
                self.send_to_backend(
                    upstream,
                    ttl,
                    Outgoing {
                        role: Role::Primary,
                        send_id: SendId::Flow { flow, upstream },
                        backend: Some(backend),
                        direction: Direction::ToBackend,
                        destination: to,
                        local: None,
                        source: None,
                        prefix,
                        tlvs,
                        tos,
                        ttl: None,
                        may_use_gso: true,
                        burst,
                    },
                );
            }
            Output::SendToClient { flow, upstream, client, local, tos, burst } => {
                self.send_to_client(
                    upstream,
                    Outgoing {
                        role: Role::Primary,
                        send_id: SendId::Flow { flow, upstream },
                        backend: None,
                        direction: Direction::ToClient,
                        destination: Some(client),
                        local,
                        source: None,
                        prefix: None,
                        tlvs: Tlvs::NONE,
                        tos,
                        ttl: None,
                        may_use_gso: true,
                        burst,
                    },
                );
            }
            Output::SendOneWay { send_id, address, source, prefix, tlvs, tos, ttl, burst } => {
                self.send_one_way(send_id, (address, source), (prefix, tlvs), (tos, ttl), burst);
            }
            Output::Mirror { client, local, proxy_info, tos, ttl, burst } => {
                self.mirrored.push(Mirrored { client, local, proxy_info, tos, ttl, burst });
            }
            Output::Repeat(repeat) => self.repeats.push(repeat),
            Output::OpenClient { flow, client } => self.open_client(flow, client),
            Output::CloseFlow { flow, upstream, .. } => {
                self.end_flow(flow, upstream);
                self.release_client(flow);
            }
            Output::CloseUpstream { upstream } => self.close_upstream(upstream),
            Output::RecordFlow { flow, record } => self.record(flow, record),
            Output::Offload { flow, upstream, backend, address, client, local } => {
                self.offload(flow, upstream, (backend, address), client, local);
            }
            Output::Recall { flow } => self.recall(flow),
            Output::RecallBackend { backend } => {
                self.kernel.recall_backend(self.sockets.shard, backend);
            }
            Output::AskActivity { flow } => self.tell_activity(flow),
            Output::OpenFlow { .. } | Output::Drop { .. } => {}
        }
    }
}

/// Reports what waits to go to a backend as lost.
fn give_up(send_queue: &mut SendQueue, budget: &mut usize, outcomes: &mut Vec<SendOutcome>) {
    while let Some(lost) = send_queue.pop(budget) {
        outcomes.push(lost_to_backend(&lost));
    }
}

const fn lost_to_backend(lost: &QueuedDatagram) -> SendOutcome {
    lost.account(Direction::ToBackend).undelivered(DropReason::Closed, 1, lost.bytes)
}

/// Sends a chain, and has the kernel say when to go on if it did not take all of it.
fn send<K: Kernel>(
    mut transmitter: Transmitter<'_, K>,
    outbox: &Outbox<'_>,
    chain: Chain,
    token: Token,
    plan: Plan<'static>,
) -> Plan<'static> {
    if chain.is_empty() {
        return plan;
    }
    let plan = transmitter.deliver(outbox, chain, plan).recycle();
    if !transmitter.send_queue.is_empty() && !transmitter.send_queue.is_watched {
        // A socket that cannot be watched is tried again with its next datagram.
        transmitter.send_queue.is_watched =
            transmitter.kernel.watch_writable(transmitter.socket, token, true).is_ok();
    }
    plan
}
