//! The shell's side of the world: orders are carried out, and looked at closely.

use std::net::SocketAddr;

use flowgate_core::{
    Burst, Direction, DropReason, FlowId, Instant, ManagerInput, Output, Repeat, SendId,
    UdpManager, UpstreamId,
};

use super::sockets::{Upstream, not_open};
use super::{Event, NOBODY, UNTAGGED, Unsent, World};
use crate::sim::account::Account;
use crate::sim::action::Train;
use crate::sim::payload::Tag;
use crate::sim::setting::{Party, Temper};
use crate::sim::wire::{Parcel, Route};
use crate::sim::{Violation, require};

const MOST_CLOSED: usize = 32;
const MOST_UNSENT: usize = 64;

impl World {
    /// Carries out what the balancer ordered, and checks that every datagram that arrived goes to
    /// whom it is for, or is dropped: once, in order, uncut.
    pub(in crate::sim) fn carry_out(
        &mut self,
        input: &ManagerInput<'_>,
        now: Instant,
        outputs: &[Output<'_>],
        manager: &UdpManager,
    ) -> Result<(), Violation> {
        self.kernel.take_violation()?;
        self.note(input);
        let crowd = self.crowd();
        let mut account = Account::open(input);
        for output in outputs {
            match *output {
                Output::OpenUpstream { upstream, connect, .. } => {
                    let before = self.sockets.insert(upstream, connect);
                    require!(before.is_none(), "a socket is opened twice: {upstream:?}");
                }
                Output::OpenFlow { flow, upstream, backend, address, .. } => {
                    // Where an answer comes from a flow may go back to, whatever is said of it meanwhile.
                    if !matches!(input, ManagerInput::UpstreamBurst { .. }) {
                        self.check_choice(backend, address)?;
                    }
                    self.open(flow, upstream, (backend, address), input, now)?;
                    self.check_crowd(&crowd)?;
                }
                Output::Send { flow, upstream, to, tos, burst, .. } => {
                    account.forward(&burst)?;
                    self.send_to_backend(flow, (upstream, to), tos, &burst)?;
                    self.upstreams.entry(flow).and_modify(|upstream| upstream.last = now);
                }
                Output::Repeat(Repeat { flow, upstream, to, send_id, tos, .. }) => {
                    let closes = |output: &Output<'_>| matches!(*output, Output::CloseFlow { flow: closed, .. } if closed == flow);
                    if outputs.iter().any(closes) {
                        continue;
                    }
                    let kept = manager.kept(flow).map(|kept| kept.datagram.to_vec());
                    let kept = kept.ok_or_else(|| not_open("repeated on", flow))?;
                    let burst = Burst::single(&kept).expect("a datagram");
                    self.repeat(flow, (upstream, to), send_id, tos, &burst)?;
                }
                Output::SendToClient { flow, burst, .. } => {
                    account.forward(&burst)?;
                    self.send_to_client(flow, output, &burst)?;
                    self.upstreams.entry(flow).and_modify(|upstream| upstream.last = now);
                }
                Output::Offload { flow, upstream, .. } => self.offload(flow, upstream)?,
                Output::Recall { flow } => self.kernel.recall(flow),
                Output::RecallBackend { backend } => self.kernel.close_gate(backend),
                Output::AskActivity { flow } => self.kernel.ask(flow),
                Output::CloseFlow { flow, upstream, reason } => {
                    self.kernel.check_gone(flow)?;
                    self.close(flow, upstream, reason, now)?;
                }
                Output::CloseUpstream { upstream } => {
                    self.kernel.check_socket(upstream)?;
                    self.close_socket(upstream)?;
                }
                Output::OpenClient { flow, .. } => {
                    let is_open = self.upstreams.contains_key(&flow);
                    require!(is_open, "{flow:?} asks for its client's socket after its end");
                }
                // What it says is for the model to judge.
                Output::RecordFlow { flow, .. } => {
                    let is_open = self.upstreams.contains_key(&flow);
                    require!(is_open, "{flow:?} is written down after its end");
                }
                Output::Drop { datagrams, .. } => account.drop(datagrams),
                Output::SendOneWay { .. } | Output::Mirror { .. } => {
                    return Err(Violation("a session's datagram leaves without a flow".to_owned()));
                }
            }
        }
        if matches!(input, ManagerInput::Configured(_)) {
            self.kernel.check_all_closed()?;
        }
        let without = self.upstreams.iter().find(|(_, it)| !self.sockets.contains_key(&it.id));
        require!(without.is_none(), "{without:?} is left without a socket");
        account.close()
    }

    fn send_to_backend(
        &mut self,
        flow: FlowId,
        (by, to): (UpstreamId, Option<SocketAddr>),
        tos: u8,
        burst: &Burst<'_>,
    ) -> Result<(), Violation> {
        let upstream = *self.upstreams.get(&flow).ok_or_else(|| not_open("sent on", flow))?;
        require!(upstream.id == by, "{flow:?} sends by {by:?}, which is another's");
        let connected = self.sockets.get(&by).copied().flatten();
        let reached = to.or(connected);
        require!(reached == Some(upstream.address), "{flow:?} sends to {reached:?}");
        require!(to.is_none() || connected.is_none(), "a connected socket is told whom to send to");
        self.check_receiver(upstream.backend, upstream.address)?;
        let upstream = self.upstreams.get_mut(&flow).ok_or_else(|| not_open("sent on", flow))?;
        for tag in burst.datagrams().filter_map(Tag::read) {
            let party = *upstream.party.get_or_insert(tag.party);
            require!(
                party == tag.party,
                "{flow:?} carries datagrams of two clients: {party} and {}",
                tag.party
            );
        }
        upstream.forward(Direction::ToBackend, burst, &self.config.cluster.limits)?;
        let upstream = *upstream;
        self.check_alone(flow, &upstream, to)?;
        self.queue(flow, Direction::ToBackend, burst);
        self.answer(flow, upstream, tos, burst);
        Ok(())
    }

    /// Nobody else gets the answers that are a flow's.
    fn check_alone(
        &self,
        flow: FlowId,
        upstream: &Upstream,
        to: Option<SocketAddr>,
    ) -> Result<(), Violation> {
        let is_like = |(other, it): &(&FlowId, &Upstream)| {
            let way = |it: &Upstream| (it.id, it.address, it.party);
            **other != flow && way(it) == way(upstream) && upstream.party.is_some()
        };
        let other = self.upstreams.iter().find(is_like).filter(|_| to.is_some());
        require!(other.is_none(), "{flow:?} gets the answers of {other:?}");
        Ok(())
    }

    /// What a flow has sent to one backend goes to another. It is counted once.
    fn repeat(
        &mut self,
        flow: FlowId,
        (by, to): (UpstreamId, Option<SocketAddr>),
        send_id: SendId,
        tos: u8,
        question: &Burst<'_>,
    ) -> Result<(), Violation> {
        let upstream = *self.upstreams.get(&flow).ok_or_else(|| not_open("repeated on", flow))?;
        require!(upstream.id == by, "{flow:?} repeats by {by:?}, which is another's");
        require!(!upstream.is_answered, "{flow:?} has been answered, and asks again");
        let connected = self.sockets.get(&by).copied().flatten();
        let reached = to.or(connected);
        require!(reached == Some(upstream.address), "{flow:?} asks {reached:?} again");
        self.check_receiver(upstream.backend, upstream.address)?;
        let party = question.datagrams().find_map(Tag::read).map(|tag| tag.party);
        let is_its = party.is_none() || party == upstream.party;
        require!(is_its, "{flow:?} asks what {party:?} has asked");
        self.check_alone(flow, &upstream, to)?;
        let of_flow = matches!(send_id, SendId::Flow { .. });
        let is_right = send_id == SendId::Flow { flow, upstream: by }
            || send_id == SendId::Copy(upstream.backend);
        require!(is_right, "{flow:?} asks again for {send_id:?}");
        self.given_up.remove(&flow);
        if of_flow {
            // It counts for this backend, and no more for the former.
            if let Some(upstream) = self.upstreams.get_mut(&flow) {
                upstream.forward(Direction::ToBackend, question, &self.config.cluster.limits)?;
            }
            self.queue(flow, Direction::ToBackend, question);
        } else {
            self.take_from(send_id, &Unsent::of(flow, &upstream, question));
        }
        self.answer(flow, upstream, tos, question);
        Ok(())
    }

    fn send_to_client(
        &mut self,
        flow: FlowId,
        output: &Output<'_>,
        burst: &Burst<'_>,
    ) -> Result<(), Violation> {
        let upstream = self.upstreams.get_mut(&flow);
        let upstream = upstream.ok_or_else(|| not_open("answered on", flow))?;
        upstream.forward(Direction::ToClient, burst, &self.config.cluster.limits)?;
        let &Output::SendToClient { client, local, .. } = output else {
            return Ok(());
        };
        for tag in burst.datagrams().filter_map(Tag::read) {
            let meant = Party::of_identity(tag.party);
            let Some(meant) = meant.filter(|meant| meant.is_at(client, local)) else {
                return Err(Violation(format!(
                    "{client} at {local:?} gets a datagram that is for {meant:?}"
                )));
            };
            require!(meant.can_be_answered(), "a datagram goes to port 0");
        }
        self.queue(flow, Direction::ToClient, burst);
        Ok(())
    }

    pub(super) fn remember_closed(&mut self, flow: FlowId, upstream: Upstream) {
        self.closed.push_back((flow, upstream));
        if self.closed.len() > MOST_CLOSED {
            self.closed.pop_front();
        }
    }

    fn queue(&mut self, flow: FlowId, direction: Direction, burst: &Burst<'_>) {
        let Some(upstream) = self.upstreams.get(&flow) else { return };
        let backend = (direction == Direction::ToBackend).then_some(upstream.backend);
        let unsent = Unsent { direction, backend, ..Unsent::of(flow, upstream, burst) };
        if !self.blocked {
            self.take(unsent);
            return;
        }
        self.outbox.push_back(unsent);
        if self.outbox.len() > MOST_UNSENT
            && let Some(first) = self.outbox.pop_front()
        {
            // The kernel takes one after all.
            self.take(first);
        }
    }

    /// The kernel takes datagrams.
    pub(super) fn take(&mut self, sent: Unsent) {
        self.take_from(SendId::Flow { flow: sent.flow, upstream: sent.upstream }, &sent);
    }

    fn take_from(&mut self, send_id: SendId, sent: &Unsent) {
        self.delivered.push(Event::Told(ManagerInput::Delivered {
            send_id,
            backend: sent.backend,
            direction: sent.direction,
            datagrams: sent.datagrams.into(),
            bytes: sent.bytes as u64,
        }));
    }

    /// Some of what waits for the sockets is never sent.
    pub(super) fn give_up(&mut self, pick: u8, datagrams: u8, reason: DropReason) -> Option<Event> {
        let index = usize::from(pick).checked_rem(self.outbox.len())?;
        let unsent = self.outbox.remove(index)?;
        if unsent.direction == Direction::ToBackend {
            // Nobody answers what was never sent.
            self.given_up.insert(unsent.flow);
            self.from_backends.lose(|route| match *route {
                Route::FromBackend(way) => way.flow == unsent.flow,
                Route::FromClient { .. } => false,
            });
        }
        let given_up = 1 + u16::from(datagrams) % unsent.datagrams;
        let sent = usize::from(unsent.datagrams - given_up) * usize::from(unsent.stride);
        if given_up < unsent.datagrams {
            self.take(Unsent { datagrams: unsent.datagrams - given_up, bytes: sent, ..unsent });
        }
        Some(Event::Told(ManagerInput::Undelivered {
            send_id: SendId::Flow { flow: unsent.flow, upstream: unsent.upstream },
            backend: unsent.backend,
            direction: unsent.direction,
            reason,
            datagrams: given_up.into(),
            bytes: (unsent.bytes - sent) as u64,
        }))
    }

    /// What a backend does about datagrams that it gets.
    fn answer(&mut self, flow: FlowId, upstream: Upstream, tos: u8, burst: &Burst<'_>) {
        let asked = Train {
            len: burst.stride(),
            count: burst.count() as u8,
            short_by: (usize::from(burst.stride()) - burst.last_len()) as u16,
        };
        let answer = match upstream.temper {
            Temper::Silent => return,
            Temper::Echo | Temper::Stranger => asked,
            Temper::Chatty => {
                Train { len: asked.len / 2 + 9, count: asked.count.saturating_mul(3), short_by: 1 }
            }
        };
        let (party, answer) = match upstream.party {
            Some(party) => (party, answer),
            None => (NOBODY, UNTAGGED),
        };
        let route = Route::FromBackend(self.way_of(flow, Some(upstream)));
        let parcel = Parcel::new(route, tos, answer, party, &mut self.next_number);
        self.from_backends.hold(parcel);
    }
}

impl Unsent {
    /// What a flow sends to its backend.
    fn of(flow: FlowId, upstream: &Upstream, burst: &Burst<'_>) -> Self {
        Self {
            flow,
            upstream: upstream.id,
            backend: Some(upstream.backend),
            direction: Direction::ToBackend,
            stride: burst.stride(),
            datagrams: burst.count(),
            bytes: burst.bytes().len(),
        }
    }
}
