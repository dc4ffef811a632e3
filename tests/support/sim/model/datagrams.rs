//! What becomes of datagrams, one by one.

use flowgate_core::config::{Accept, ClusterConfig, SendProxyProtocol};
use flowgate_core::counters::Traffic;
use flowgate_core::proxy_protocol::{ProxyHeader, Tlvs};
use flowgate_core::{Burst, CloseReason, Direction, DropReason, FlowId, Instant, UpstreamId};
use std::net::SocketAddr;

use super::admission::Seen;
use super::effect::Effect;
use super::health::Fate;
use super::relay::{Call, Caller};
use super::sockets::Recipient;
use super::{Flow, Model, Sender, Violation, count, require, timeout_of};
use crate::sim::forge::backend_id;
use crate::sim::setting::source;

/// The socket of a flow that is between two.
const NOWHERE: UpstreamId = UpstreamId::new(u32::MAX, 0);

impl Model {
    pub(super) fn requests<'p>(
        &mut self,
        from: Sender,
        burst: &Burst<'p>,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Vec<Effect<'p>>, Violation> {
        let mut effects = vec![];
        // A burst is one attempt: what is left of it when a flow is refused is refused too.
        let mut refused = None;
        // And once a datagram of it is too many, those behind it are.
        let mut too_many = None;
        let mut follows = false;
        // The flow that has taken the datagram before goes on where it is.
        let mut current = None;
        for datagram in burst.datagrams() {
            let call = match self.call(from, datagram, follows, now) {
                Ok(call) => call,
                Err(reason) => {
                    count(&mut self.counters.to_backend.received, datagram);
                    effects.push(self.drop(Direction::ToBackend, reason, datagram));
                    continue;
                }
            };
            let Call { mut caller, datagram, had_header, .. } = call;
            caller.question = self.name_of(datagram);
            count(&mut self.counters.to_backend.received, datagram);
            if had_header || !follows || self.asks() {
                // A part of the burst that is looked at by itself.
                current = None;
            }
            follows = !had_header;
            if had_header {
                (refused, too_many) = (None, None);
            }
            if self.asks() {
                refused = None;
            }
            let unfit = if caller.way().0.port() == 0 {
                Some(DropReason::PortZero)
            } else if datagram.len() > usize::from(self.config.max_datagram_size) {
                Some(DropReason::TooLarge)
            } else if sent_with(from.ttl).is_none() {
                Some(DropReason::TtlExpired)
            } else {
                too_many = too_many.or_else(|| self.takes_too_much(&caller, datagram, now));
                let is_malformed = self.asks() && caller.question.is_none();
                too_many.or(is_malformed.then_some(DropReason::Malformed)).or(refused)
            };
            if let Some(reason) = unfit {
                effects.push(self.drop(Direction::ToBackend, reason, datagram));
                continue;
            }
            refused = self.settle(&caller, current, from.ttl, now, seen, &mut effects)?;
            if refused.is_none() && self.flow_of(&caller).is_none() {
                refused = self.refusal(&caller, now);
                effects.extend(match refused {
                    None => self.open(&caller, from.ttl, now, seen)?,
                    Some(_) => self.make_room(now),
                });
            }
            let index = self.flow_of(&caller);
            current = index.map(|index| self.flows[index].id);
            if let (None, Some(index)) = (refused, index) {
                effects.extend(self.opens_client_by_confirming(index));
            }
            effects.push(match (refused, index) {
                (None, Some(index)) => self.request(index, from, &call, now),
                (reason, _) => {
                    let reason = reason.unwrap_or(DropReason::NoBackend);
                    self.drop(Direction::ToBackend, reason, datagram)
                }
            });
            self.retire_if_full(index.filter(|_| refused.is_none()));
        }
        let offer = self.offer(&effects);
        effects.extend(offer);
        Ok(effects)
    }

    /// The first request after an answer shows that the client is where it says.
    pub(super) fn opens_client_by_confirming<'p>(&self, index: usize) -> Option<Effect<'p>> {
        let flow = &self.flows[index];
        let is_wanted = self.config.accept == Accept::Confirmed;
        let confirms = flow.answered && !flow.confirmed;
        let (flow, client) = (flow.id, flow.client);
        (is_wanted && confirms).then_some(Effect::OpenClient { flow, client })
    }

    /// What has to happen to the flow of a client before it carries anything more: it may have to
    /// end, to go on with another backend, or to give way since it has had all its requests, as
    /// fewer are allowed than were. Says why it can carry nothing, if that is so.
    fn settle<'p>(
        &mut self,
        caller: &Caller,
        current: Option<FlowId>,
        ttl: u8,
        now: Instant,
        seen: &mut Seen,
        effects: &mut Vec<Effect<'p>>,
    ) -> Result<Option<DropReason>, Violation> {
        let Some(index) = self.flow_of(caller) else { return Ok(None) };
        match self.fate(self.flows[index].backend) {
            Fate::Stays => {}
            Fate::Moves if !self.able().contains(&true) => return Ok(Some(DropReason::NoBackend)),
            Fate::Moves => effects.extend(self.move_flow(index, ttl, now, seen)?),
            Fate::Returns if current == Some(self.flows[index].id) => {}
            Fate::Returns => {
                let able = self.able();
                let is_primary = |index: &usize| !self.loads[*index].config.backup;
                if (0..able.len()).filter(is_primary).any(|index| able[index]) {
                    effects.extend(self.move_flow(index, ttl, now, seen)?);
                }
            }
            Fate::Ends(reason) => {
                effects.extend(self.close(index, reason, now));
                return Ok(None);
            }
        }
        if self.has_had_all_requests(index) {
            let flow = &mut self.flows[index];
            flow.postpone(&self.config.cluster, now);
            flow.retired = true;
            self.go_on(index);
        }
        Ok(None)
    }

    /// A flow goes on with another backend, by another socket. Nothing else about it changes.
    fn move_flow<'p>(
        &mut self,
        index: usize,
        ttl: u8,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Vec<Effect<'p>>, Violation> {
        if let Some((_, backend, _)) = seen.opened.front() {
            let (client, able) = (self.flows[index].client, self.able());
            self.balance.check(client, backend.index(), &self.loads, &able)?;
        }
        self.move_unchecked(index, ttl, now, seen)
    }

    /// The same, where it is known that the other backend is a right one.
    pub(super) fn move_unchecked<'p>(
        &mut self,
        index: usize,
        ttl: u8,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Vec<Effect<'p>>, Violation> {
        let id = self.flows[index].id;
        let Some((opened, backend, upstream)) = seen.opened.pop_front() else {
            return Err(Violation(format!("{id:?} goes on with no other backend")));
        };
        require!(opened == id, "{opened:?} is opened where {id:?} has to move");
        let Flow { client, question, backend: former, upstream: former_upstream, .. } =
            self.flows[index];
        self.loads[former].flows -= 1;
        self.loads[backend.index()].flows += 1;
        self.counters.flows_moved += 1;
        let mut effects = vec![];
        let flow = &mut self.flows[index];
        effects.extend(flow.offered.then_some(Effect::Recall { flow: id }));
        (flow.offered, flow.asked_until) = (false, None);
        let has_room = self.has_free_slot();
        let flow = &mut self.flows[index];
        let has_sent = flow.introduced && flow.requests.datagrams > 0;
        // It is nowhere, for as long as it takes to find another place.
        flow.upstream = NOWHERE;
        match self.quarantine().filter(|_| has_sent && has_room) {
            Some(time) => {
                let left = (former_upstream, former, question);
                self.put_in_quarantine(left, now + time);
            }
            None => effects.extend(self.leave(former_upstream, former, has_sent, now)),
        }
        let address = self.loads[backend.index()].config.address;
        let ttl = sent_with(ttl).unwrap_or(0);
        let to = (backend.index(), address);
        effects.extend(self.socket_for(upstream, to, (client, question), ttl, now)?);
        let flow = &mut self.flows[index];
        (flow.backend, flow.upstream, flow.introduced) = (backend.index(), upstream, false);
        effects.push(Effect::Open { flow: id, upstream, backend, address });
        Ok(effects)
    }

    /// The client sends something, perhaps after an answer.
    pub(super) fn go_on(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        if flow.answered && !flow.confirmed {
            flow.confirmed = true;
            let id = flow.id;
            self.unconfirmed.retain(|&other| other != id);
            self.continued.push_back(id);
        }
    }

    fn has_had_all_requests(&self, index: usize) -> bool {
        let limit = u64::from(self.config.cluster.requests);
        limit > 0 && self.flows[index].requests.datagrams >= limit
    }

    fn retire_if_full(&mut self, index: Option<usize>) {
        if let Some(index) = index.filter(|&index| self.has_had_all_requests(index)) {
            self.flows[index].retired = true;
        }
    }

    pub(super) fn flow_of(&self, caller: &Caller) -> Option<usize> {
        let is_this = |flow: &Flow| !flow.retired && flow.caller() == *caller;
        self.flows.iter().position(is_this)
    }

    fn open<'p>(
        &mut self,
        caller: &Caller,
        ttl: u8,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Vec<Effect<'p>>, Violation> {
        let &Caller { client, local, via, question } = caller;
        let Some((id, backend, upstream)) = seen.opened.pop_front() else {
            return Err(Violation(format!("no flow was opened for {client}")));
        };
        require!(self.used_ids.insert(id), "{id:?} is given out again");
        let table = 2 * self.largest_table;
        require!(id.index() < table, "{id:?} lies beyond the table of {table}");
        let able = self.able();
        self.balance.check(client, backend.index(), &self.loads, &able)?;
        let mut effects = self.make_room(now);
        let address = self.config.cluster.backends[backend.index()].address;
        let ttl = sent_with(ttl).unwrap_or(0);
        let to = (backend.index(), address);
        effects.extend(self.socket_for(upstream, to, (client, question), ttl, now)?);
        self.loads[backend.index()].flows += 1;
        self.counters.flows_opened += 1;
        self.openings.opened += 1;
        let mut flow = Flow {
            id,
            client,
            local,
            via,
            question,
            backend: backend.index(),
            upstream,
            opened: now,
            first_answer: None,
            deadline: now,
            requests: Traffic::default(),
            replies: Traffic::default(),
            retired: false,
            answered: false,
            confirmed: false,
            introduced: false,
            heard: false,
            offered: false,
            asked_until: None,
            by_sockets: 0,
            kept: None,
        };
        flow.postpone(&self.config.cluster, now);
        self.flows.push(flow);
        effects.push(Effect::Open { flow: id, upstream, backend, address });
        if self.config.accept == Accept::Connected {
            effects.push(Effect::OpenClient { flow: id, client });
        }
        Ok(effects)
    }

    fn request<'p>(
        &mut self,
        index: usize,
        from: Sender,
        call: &Call<'p>,
        now: Instant,
    ) -> Effect<'p> {
        let &Call { destination, tlvs, datagram, .. } = call;
        self.go_on(index);
        let cluster = &self.config.cluster;
        let flow = &mut self.flows[index];
        let is_opening = flow.requests.datagrams == 0;
        let is_first = !flow.introduced || is_opening;
        let has_header = match cluster.send_proxy_protocol {
            SendProxyProtocol::Off => false,
            SendProxyProtocol::First => is_first,
            SendProxyProtocol::Every => true,
        };
        flow.postpone(cluster, now);
        flow.introduced = true;
        count(&mut flow.requests, datagram);
        count(&mut self.counters.to_backend.queued, datagram);

        let header = ProxyHeader::new(flow.client, destination).followed_by(&tlvs);
        if is_first && (is_opening || self.asks()) {
            let parts = tlvs.parts().into_iter().flatten();
            let front = header.as_bytes().iter().chain(parts).filter(|_| has_header);
            let front = front.copied().collect();
            self.keep(index, (front, datagram), (from.tos, from.ttl), now);
        } else if !self.asks() {
            // An error may be about this one.
            self.flows[index].kept = None;
        }
        let flow = &self.flows[index];
        let to = self.sockets.get(&flow.upstream).filter(|socket| socket.is_shared);
        Effect::Request {
            flow: flow.id,
            upstream: flow.upstream,
            backend: backend_id(flow.backend as u8),
            to: to.map(|_| self.loads[flow.backend].config.address),
            prefix: has_header.then_some(header),
            tlvs: if has_header { tlvs } else { Tlvs::NONE },
            tos: from.tos,
            ttl: sent_with(from.ttl).unwrap_or(0),
            datagram,
        }
    }

    pub(super) fn replies<'p>(
        &mut self,
        (upstream, sender): (UpstreamId, SocketAddr),
        tos: u8,
        burst: &Burst<'p>,
        now: Instant,
    ) -> Vec<Effect<'p>> {
        if !self.asks() || burst.count() == 1 {
            return self.replies_to_one((upstream, sender), tos, burst, now);
        }
        // Each may answer another question.
        let single = |datagram| Burst::single(datagram).expect("one of a burst");
        let each = burst.datagrams().map(single).collect::<Vec<_>>();
        let answer = |one: Burst<'p>| self.replies_to_one((upstream, sender), tos, &one, now);
        each.into_iter().flat_map(answer).collect()
    }

    fn replies_to_one<'p>(
        &mut self,
        (upstream, sender): (UpstreamId, SocketAddr),
        tos: u8,
        burst: &Burst<'p>,
        now: Instant,
    ) -> Vec<Effect<'p>> {
        let first = burst.datagrams().next().unwrap_or_default();
        let mut recipient = self.recipient(upstream, sender, self.name_of(first));
        let mut effects = vec![];
        if let Recipient::Ended(left) = recipient
            && self.loads[left.backend].config.address == sender
        {
            let fits = first.len() <= usize::from(self.config.max_datagram_size);
            if let Some((index, effect)) = self.goes_back(&left, fits, now) {
                effects.push(effect);
                recipient = Recipient::Flow(index);
            }
        }
        let (index, vain) = match recipient {
            Recipient::Nobody(reason) => (None, reason),
            Recipient::Ended(index) => {
                self.disturb(index, now);
                (None, DropReason::UnknownFlow)
            }
            // Also an answer that goes no further shows that the backend is there.
            Recipient::Flow(index) => {
                self.flows[index].heard = true;
                self.flows[index].kept = None;
                self.has_answered(self.flows[index].backend, now);
                (Some(index), DropReason::UnknownFlow)
            }
        };
        let mut expected = index.map_or(0, |index| self.replies_expected(index));
        let mut is_over_budget = false;
        let mut may_complete = None;
        for datagram in burst.datagrams() {
            count(&mut self.counters.to_client.received, datagram);
            let unfit = if datagram.len() > usize::from(self.config.max_datagram_size) {
                Some(DropReason::TooLarge)
            } else if let Some(index) = index {
                may_complete = Some(index);
                // Once one cannot be afforded, none behind it may overtake it.
                is_over_budget |= !self.can_afford(index, datagram);
                let is_expected = expected > 0;
                expected = expected.saturating_sub(1);
                match (is_expected, is_over_budget) {
                    (false, _) => Some(DropReason::AfterLastReply),
                    (true, true) => Some(DropReason::Amplification),
                    (true, false) => None,
                }
            } else {
                Some(vain)
            };
            effects.push(match (unfit, index) {
                (None, Some(index)) => self.reply(index, tos, datagram, now),
                (reason, _) => {
                    let reason = reason.unwrap_or(DropReason::UnknownFlow);
                    self.drop(Direction::ToClient, reason, datagram)
                }
            });
        }
        // A burst is one event: the flow goes on or ends after all of it, not in the middle.
        if let Some(index) = may_complete {
            self.flows[index].postpone(&self.config.cluster, now);
            if self.replies_expected(index) == 0 {
                effects.extend(self.close(index, CloseReason::Complete, now));
            }
        }
        effects
    }

    fn reply<'p>(&mut self, index: usize, tos: u8, datagram: &'p [u8], now: Instant) -> Effect<'p> {
        let flow = &mut self.flows[index];
        if !flow.answered {
            flow.first_answer = Some(now);
            self.unconfirmed.push_back(flow.id);
            self.first_answers.take(now - flow.opened);
            if self.config.cluster.responses > 0 {
                self.answered_clients.insert(source(flow.client));
            }
        }
        flow.answered = true;
        count(&mut flow.replies, datagram);
        count(&mut self.loads[flow.backend].from, datagram);
        count(&mut self.counters.to_client.queued, datagram);
        let (client, local) = flow.caller().way();
        Effect::Reply { flow: flow.id, upstream: flow.upstream, client, local, tos, datagram }
    }

    /// How many replies may still come. With a limit there are as many as it says, but no fewer
    /// than requests.
    fn replies_expected(&self, index: usize) -> u64 {
        let flow = &self.flows[index];
        let responses = u64::from(self.config.cluster.responses);
        if responses == 0 && !flow.retired {
            return u64::MAX;
        }
        responses.max(flow.requests.datagrams).saturating_sub(flow.replies.datagrams)
    }

    /// Whether a reply may go to a client, which may not be who it says: it gets this many bytes for
    /// each of its own, and no more, as long as its flow lives.
    fn can_afford(&self, index: usize, reply: &[u8]) -> bool {
        let flow = &self.flows[index];
        let factor = u64::from(self.config.cluster.limits.amplification);
        let after = flow.replies.bytes + reply.len() as u64;
        factor == 0 || reply.is_empty() || after <= factor * flow.requests.bytes
    }
}

impl Flow {
    fn caller(&self) -> Caller {
        Caller { client: self.client, local: self.local, via: self.via, question: self.question }
    }

    /// Something has come on it: it ends later.
    fn postpone(&mut self, cluster: &ClusterConfig, now: Instant) {
        self.deadline = now + timeout_of(cluster, self.answered);
    }
}

/// What a datagram that arrives with this many hops left is sent on with, unless it is in a loop.
pub(super) const fn sent_with(left: u8) -> Option<u8> {
    match left {
        0 | 129..=132 => None,
        1 => Some(140),
        left => Some(left - 1),
    }
}
