//! Carrying out what a manager emits.
//!
//! Sockets are opened and closed at once, in the order of the outputs. Sends are only noted, and
//! go out together when the tick is over: then the datagrams of one flow lie next to each other,
//! however they were mixed when they arrived, and leave as GSO batches.

mod observed;
mod one_way;
mod open;

use std::net::SocketAddr;

use flowgate_core::proxy_protocol::Tlvs;
use flowgate_core::{
    Carrier, Direction, DropReason, FlowId, FlowRecord, ManagerInput, Output, Outputs,
    UpstreamFailure,
};

use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::datapath::send::gso::Plan;
use crate::datapath::send::outbox::{Chain, Outbox, Outgoing};
use crate::datapath::send::queue::{QueuedDatagram, SendQueue};
use crate::datapath::send::transmit::{Account, SendOutcome, Transmitter};
use crate::datapath::sockets::Sockets;
use crate::datapath::token::Token;
use crate::observe::tap::Taps;
use one_way::{Mirrored, PendingRoles};

/// Memory that one tick leaves to the next.
#[derive(Default)]
pub struct Scratch {
    outbox: Outbox<'static>,
    plan: Plan<'static>,
    pending: Vec<FlowId>,
    outcomes: Vec<SendOutcome>,
    not_opened: Vec<(FlowId, DropReason)>,
    pending_roles: PendingRoles,
    mirrored: Vec<Mirrored<'static>>,
    taps: Taps,
    /// The flows that have ended and are to be written down, for whoever takes them from here.
    pub records: Vec<EndedFlow>,
}

impl Scratch {
    /// Who watches.
    pub const fn taps(&mut self) -> &mut Taps {
        &mut self.taps
    }
}

/// What a flow was, and where its upstream socket led, if it had one.
#[derive(Clone, Copy, Debug)]
pub struct EndedFlow {
    /// What it was.
    pub record: FlowRecord,
    /// The backend's address.
    pub backend: Option<SocketAddr>,
}

/// The orders of one tick.
pub struct Dispatch<'a, 't, K: Kernel> {
    kernel: &'a mut K,
    sockets: &'a mut Sockets<K>,
    outbox: Outbox<'t>,
    plan: Plan<'static>,
    /// What leaves by the listener.
    to_clients: Chain,
    /// The flows that have something to send to their backend.
    pending: Vec<FlowId>,
    outcomes: Vec<SendOutcome>,
    /// The flows whose socket could not be opened in this tick, and why.
    not_opened: Vec<(FlowId, DropReason)>,
    /// Whether a socket was to be opened in this tick when no local port was left.
    are_ports_gone: bool,
    /// On whose behalf what is emitted now is to be sent.
    role: Role,
    pending_roles: PendingRoles,
    /// What the mirror is to have, and has not been told of.
    mirrored: Vec<Mirrored<'t>>,
    /// Who watches.
    taps: Taps,
    records: Vec<EndedFlow>,
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
                    SendOutcome::Input(role, input) => tell(role, input, &mut self),
                    SendOutcome::GsoRefused { role, carrier, direction } => {
                        self.forbid_gso(role, carrier, direction);
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
            if !upstream.send_queue.is_empty() && is_gone(upstream.backend) {
                give_up(
                    &mut upstream.send_queue,
                    &mut sockets.send_queue_budget,
                    &mut self.outcomes,
                );
            }
        }
    }

    /// Gives up what waited for a socket that another process had, and that cannot be had here.
    pub fn lose_queued(&mut self, mut queue: SendQueue) {
        // It never took anything from the budget of this process.
        let mut budget = 0;
        give_up(&mut queue, &mut budget, &mut self.outcomes);
    }

    /// Goes on sending what waits for a socket that can be written to again.
    pub fn resume(&mut self, token: Token) {
        let sockets = &mut *self.sockets;
        let mut peer = None;
        let (socket, send_queue, direction) = match token {
            // Clients' own sockets send nothing.
            Token::Wake | Token::Addresses | Token::Client { .. } => return,
            Token::Listener { .. } => {
                (&sockets.listener, &mut sockets.listener_queue, Direction::ToClient)
            }
            Token::Upstream { flow, .. } => match sockets.upstreams.at_mut(flow as usize) {
                Some(upstream) => {
                    peer = Some(upstream.peer());
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
        if transmitter.resume(direction) {
            // A socket that cannot be unwatched only causes idle wake-ups.
            let _ = self.kernel.watch_writable(socket, token, false);
            send_queue.is_watched = false;
        }
    }

    fn flush(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        for flow in pending.drain(..) {
            self.flush_upstream(flow);
        }
        self.pending = pending;
        self.flush_egress_sockets();
        self.flush_listener();
        for (flow, _) in self.not_opened.drain(..) {
            let failure = UpstreamFailure::NotOpened;
            let input = ManagerInput::UpstreamFailed { flow, failure };
            self.outcomes.push(SendOutcome::Input(Role::Primary, input));
        }
    }

    fn flush_upstream(&mut self, flow: FlowId) {
        let sockets = &mut *self.sockets;
        let Some(upstream) = sockets.upstreams.get_mut(flow) else {
            return;
        };
        let chain = std::mem::replace(&mut upstream.outgoing, Chain::EMPTY);
        let token = Token::Upstream { shard: sockets.shard, flow: flow.index() as u32 };
        let transmitter = Transmitter {
            kernel: self.kernel,
            peer: Some(upstream.peer()),
            socket: &upstream.socket,
            send_queue: &mut upstream.send_queue,
            send_queue_budget: &mut sockets.send_queue_budget,
            outcomes: &mut self.outcomes,
        };
        self.plan = send(transmitter, &self.outbox, chain, token, std::mem::take(&mut self.plan));
    }

    fn flush_listener(&mut self) {
        let sockets = &mut *self.sockets;
        let chain = std::mem::replace(&mut self.to_clients, Chain::EMPTY);
        let transmitter = Transmitter {
            kernel: self.kernel,
            socket: &sockets.listener,
            peer: None,
            send_queue: &mut sockets.listener_queue,
            send_queue_budget: &mut sockets.send_queue_budget,
            outcomes: &mut self.outcomes,
        };
        let token = Token::Listener { shard: sockets.shard };
        self.plan = send(transmitter, &self.outbox, chain, token, std::mem::take(&mut self.plan));
    }

    fn send_to_backend(&mut self, flow: FlowId, outgoing: Outgoing<'t>) {
        let Some(upstream) = self.sockets.upstreams.get_mut(flow) else {
            self.lose_for_want_of_a_socket(flow, &outgoing);
            return;
        };
        if upstream.outgoing.is_empty() {
            self.pending.push(flow);
        }
        let may_use_gso = upstream.may_use_gso(Direction::ToBackend);
        self.outbox.push(&mut upstream.outgoing, Outgoing { may_use_gso, ..outgoing });
    }

    fn lose_for_want_of_a_socket(&mut self, flow: FlowId, outgoing: &Outgoing<'_>) {
        let failed = self.not_opened.iter().find(|(failed, _)| *failed == flow);
        let reason = failed.map_or(DropReason::Closed, |&(_, reason)| reason);
        self.lose(outgoing, reason);
    }

    fn lose(&mut self, outgoing: &Outgoing<'_>, reason: DropReason) {
        let (datagrams, bytes) =
            (usize::from(outgoing.burst.count()), outgoing.burst.bytes().len());
        self.outcomes.push(Account::of(outgoing).undelivered(reason, datagrams, bytes));
    }

    fn send_to_client(&mut self, flow: FlowId, outgoing: Outgoing<'t>) {
        let upstream = self.sockets.upstreams.get_mut(flow);
        let may_use_gso = upstream.is_none_or(|u| u.may_use_gso(Direction::ToClient));
        self.outbox.push(&mut self.to_clients, Outgoing { may_use_gso, ..outgoing });
    }

    fn forbid_gso(&mut self, role: Role, carrier: Carrier, direction: Direction) {
        match carrier {
            Carrier::Flow(flow) => {
                if let Some(upstream) = self.sockets.upstreams.get_mut(flow) {
                    upstream.forbid_gso(direction);
                }
            }
            Carrier::OneWay(backend) | Carrier::Copy(backend) => {
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
            Output::OpenUpstream { flow, address, ttl, reuse: None, source, .. } => {
                self.open_upstream(flow, address, source, ttl);
            }
            // Its first send brings the time to live.
            Output::OpenUpstream { flow, reuse: Some(former), .. } => {
                self.reuse_upstream(former, flow);
            }
            Output::SendToBackend { flow, backend, prefix, tlvs, tos, ttl, burst } => {
                self.set_ttl(flow, ttl);
                self.send_to_backend(
                    flow,
                    Outgoing {
                        role: Role::Primary,
                        carrier: Carrier::Flow(flow),
                        backend: Some(backend),
                        direction: Direction::ToBackend,
                        destination: None,
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
            Output::SendToClient { flow, client, local, tos, burst } => {
                self.send_to_client(
                    flow,
                    Outgoing {
                        role: Role::Primary,
                        carrier: Carrier::Flow(flow),
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
            Output::SendOneWay { carrier, address, source, prefix, tlvs, tos, ttl, burst } => {
                self.send_one_way(carrier, (address, source), (prefix, tlvs), (tos, ttl), burst);
            }
            Output::Mirror { client, local, proxy_info, tos, ttl, burst } => {
                self.mirrored.push(Mirrored { client, local, proxy_info, tos, ttl, burst });
            }
            Output::OpenClient { flow, client } => self.open_client(flow, client),
            Output::CloseFlow { flow, keep_socket, .. } => {
                self.end(flow, keep_socket);
                self.release_client(flow);
            }
            Output::CloseUpstream { flow } => self.end(flow, false),
            Output::RecordFlow { flow, record } => self.record(flow, record),
            Output::Drop { .. } => {}
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
