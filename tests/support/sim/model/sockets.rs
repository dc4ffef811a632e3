//! Sockets towards backends, and what becomes of what flows were answered by.

use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::config::{Source, UpstreamMode};
use flowgate_core::{CloseReason, DropReason, FlowId, Instant, UpstreamId};

use super::effect::{Bound, Effect};
use super::relay::Name;
use super::{Flow, Model, Violation, require};

/// A socket that is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket {
    /// Whether flows share it.
    pub(super) is_shared: bool,
    v6: bool,
    /// When the last flow left it.
    idle_since: Instant,
    /// Whether it takes no more flows.
    is_retired: bool,
}

impl Socket {
    /// Whether it stays when a flow leaves it.
    pub(super) const fn stays_open(&self) -> bool {
        self.is_shared && !self.is_retired
    }
}

/// What a flow has left behind: nobody else may have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quarantined {
    pub(super) upstream: UpstreamId,
    pub(super) backend: usize,
    /// What names its question, where each is a flow of its own.
    question: Option<Name>,
    pub(super) until: Instant,
    /// The flow that has left it to ask another backend.
    pub(super) asker: Option<FlowId>,
}

/// Whose something is that comes by a socket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Recipient {
    /// The flow's in this place.
    Flow(usize),
    /// It comes too late.
    Ended(Quarantined),
    Nobody(DropReason),
}

/// How long a shared socket is kept without a flow.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(60);

impl Model {
    /// Whether each question is a flow of its own.
    pub(super) fn asks(&self) -> bool {
        self.config.cluster.transactions.is_some()
    }

    /// What names a question or its answer, where each is a flow of its own.
    pub(super) fn name_of(&self, datagram: &[u8]) -> Option<Name> {
        datagram.first_chunk().copied().filter(|_| self.asks())
    }

    pub(super) fn shares(&self) -> bool {
        let cluster = &self.config.cluster;
        cluster.upstream == UpstreamMode::Shared && cluster.source != Source::Client
    }

    /// For how long nobody gets what may still come for a flow that ends for `reason`.
    pub(super) fn quarantine_after(&self, reason: CloseReason, flow: &Flow) -> Option<Duration> {
        let cluster = &self.config.cluster;
        let time = self.quarantine()?;
        let was_used_lately = match reason {
            CloseReason::Complete => false,
            CloseReason::Idle | CloseReason::Evicted => cluster.idle_timeout < time,
            _ => true,
        };
        let may_come = was_used_lately || flow.replies.datagrams < flow.requests.datagrams;
        let has_sent = reason != CloseReason::UpstreamFailed && flow.requests.datagrams > 0;
        (has_sent && may_come).then_some(time)
    }

    pub(super) fn quarantine(&self) -> Option<Duration> {
        let cluster = &self.config.cluster;
        let is_wanted = self.drain.is_none() && cluster.source != Source::Client;
        let time = Some(cluster.upstream_quarantine);
        time.filter(|time| is_wanted && !time.is_zero())
    }

    /// Whether there is a slot for another flow, alive or in quarantine.
    pub(super) fn has_free_slot(&self) -> bool {
        self.free_slots() > 0
    }

    pub(super) fn free_slots(&self) -> usize {
        let taken = self.flows.len() + self.quarantined.len();
        self.slots().saturating_sub(taken + self.others().1)
    }

    /// How many flows others have of those that there may be, and how many slots.
    pub(super) const fn others(&self) -> (usize, usize) {
        if self.config.shares_max_flows { self.others } else { (0, 0) }
    }

    /// What is in quarantine has as many slots as there may be flows, as far as there are sockets.
    pub(super) fn slots(&self) -> usize {
        (2 * self.config.max_flows as usize).min(self.config.max_slots as usize)
    }

    /// The socket for a flow to a backend: the one that was seen to be taken or to be opened, if
    /// that is right.
    pub(super) fn socket_for<'p>(
        &mut self,
        upstream: UpstreamId,
        (backend, address): (usize, SocketAddr),
        (client, question): (SocketAddr, Option<Name>),
        ttl: u8,
        now: Instant,
    ) -> Result<Option<Effect<'p>>, Violation> {
        let v6 = address.is_ipv6();
        let is_shared = self.shares();
        let free: Vec<UpstreamId> = self
            .sockets
            .iter()
            .filter(|(_, socket)| is_shared && socket.is_shared && !socket.is_retired)
            .filter(|(id, socket)| socket.v6 == v6 && self.is_free(**id, (backend, question), now))
            .map(|(id, _)| *id)
            .collect();
        let pool = self
            .sockets
            .values()
            .filter(|socket| socket.is_shared && !socket.is_retired && socket.v6 == v6);
        // Questions use a few sockets at least, of which not all are looked at.
        let may_open = match question {
            Some(_) => pool.count() < 16 || free.len() < self.sockets.len(),
            None => free.is_empty(),
        };
        let is_open = self.sockets.contains_key(&upstream);
        if !free.is_empty() && (is_open || !may_open) {
            require!(free.contains(&upstream), "{upstream:?} is not free where {free:?} are");
            return Ok(None);
        }
        require!(!self.sockets.contains_key(&upstream), "{upstream:?} is open already");
        let socket = Socket { is_shared, v6, idle_since: now, is_retired: false };
        self.sockets.insert(upstream, socket);
        let bound = Bound::chosen(&self.config.cluster.source, client);
        let connect = (!is_shared).then_some(address);
        Ok(Some(Effect::OpenSocket { upstream, connect, v6, ttl, bound }))
    }

    /// Whether a backend has no flow on a socket, and none in quarantine.
    fn is_free(
        &self,
        upstream: UpstreamId,
        (backend, question): (usize, Option<Name>),
        now: Instant,
    ) -> bool {
        let is_it = |other: UpstreamId, to: usize, name: Option<Name>| {
            other == upstream && to == backend && name == question
        };
        let alive = self.flows.iter().any(|it| is_it(it.upstream, it.backend, it.question));
        let left = self.quarantined.iter().any(|it| is_it(it.upstream, it.backend, it.question));
        let is_left = |pair: &Quarantined| {
            is_it(pair.upstream, pair.backend, pair.question) && pair.until > now
        };
        !alive && !left && !self.quarantined_pairs.iter().any(is_left)
    }

    /// A flow has left a socket, which may close; or its place on that is in quarantine, if something may come
    /// there all the same.
    pub(super) fn leave<'p>(
        &mut self,
        upstream: UpstreamId,
        backend: usize,
        is_quarantined: bool,
        now: Instant,
    ) -> Option<Effect<'p>> {
        let is_used = self.is_used(upstream);
        let (time, asks) = (self.quarantine(), self.asks());
        let socket = self.sockets.get_mut(&upstream)?;
        if !socket.is_shared || (socket.is_retired && !is_used) {
            return self.close_socket(upstream);
        }
        if !is_used {
            socket.idle_since = now;
        }
        if let (true, Some(time), false) = (is_quarantined, time, asks) {
            let (question, until, asker) = (None, now + time, None);
            self.quarantined_pairs.push(Quarantined { upstream, backend, question, until, asker });
        }
        None
    }

    pub(super) fn close_socket<'p>(&mut self, upstream: UpstreamId) -> Option<Effect<'p>> {
        self.sockets.remove(&upstream)?;
        self.quarantined_pairs.retain(|it| it.upstream != upstream);
        Some(Effect::CloseSocket { upstream })
    }

    pub(super) fn is_used(&self, upstream: UpstreamId) -> bool {
        self.flows.iter().any(|flow| flow.upstream == upstream)
            || self.quarantined.iter().any(|left| left.upstream == upstream)
    }

    /// The shared sockets without flows, and when they are to close.
    pub(super) fn idle_sockets(&self) -> Vec<(UpstreamId, Instant)> {
        let idle = |(id, socket): (&UpstreamId, &Socket)| {
            let is_idle = socket.is_shared && !self.is_used(*id);
            is_idle.then(|| (*id, socket.idle_since + KEPT_FOR))
        };
        self.sockets.iter().filter_map(idle).collect()
    }

    /// No shared socket takes another flow, and those without one close.
    pub(super) fn retire_sockets<'p>(&mut self, observed: &[Effect<'_>]) -> Vec<Effect<'p>> {
        self.sockets.values_mut().for_each(|socket| socket.is_retired |= socket.is_shared);
        let mut idle: Vec<UpstreamId> = self.idle_sockets().iter().map(|(id, _)| *id).collect();
        // The one that has been idle longest goes first. Which of two is that, is left open.
        let index = |id: &UpstreamId| {
            observed.iter().position(|effect| effect.closed_socket() == Some(*id))
        };
        idle.sort_by_key(index);
        idle.into_iter().filter_map(|id| self.close_socket(id)).collect()
    }

    /// One shared socket takes no other flow.
    pub(super) fn retire_socket(&mut self, upstream: UpstreamId) {
        if let Some(socket) = self.sockets.get_mut(&upstream) {
            socket.is_retired |= socket.is_shared;
        }
    }

    /// Whose something is that a sender has sent to a socket.
    pub(super) fn recipient(
        &self,
        upstream: UpstreamId,
        sender: SocketAddr,
        question: Option<Name>,
    ) -> Recipient {
        let Some(socket) = self.sockets.get(&upstream) else {
            return Recipient::Nobody(DropReason::UnknownFlow);
        };
        let address = |index: usize| self.loads[index].config.address;
        let is_here = |flow: &Flow| flow.upstream == upstream;
        if !socket.is_shared {
            return match self.flows.iter().position(is_here) {
                Some(index) if address(self.flows[index].backend) == sender => {
                    Recipient::Flow(index)
                }
                Some(_) => Recipient::Nobody(DropReason::ForeignSource),
                None => match self.quarantined.iter().find(|left| left.upstream == upstream) {
                    Some(left) => Recipient::Ended(*left),
                    None => Recipient::Nobody(DropReason::UnknownFlow),
                },
            };
        }
        let senders: Vec<usize> =
            (0..self.loads.len()).filter(|&index| address(index) == sender).collect();
        if senders.is_empty() {
            return Recipient::Nobody(DropReason::ForeignSource);
        }
        if self.asks() && question.is_none() {
            return Recipient::Nobody(DropReason::Malformed);
        }
        for backend in senders {
            let of_it =
                |flow: &Flow| is_here(flow) && flow.backend == backend && flow.question == question;
            if let Some(index) = self.flows.iter().position(of_it) {
                return Recipient::Flow(index);
            }
            let left = |left: &&Quarantined| {
                left.upstream == upstream && left.backend == backend && left.question == question
            };
            if let Some(left) = self.quarantined.iter().find(left) {
                return Recipient::Ended(*left);
            }
        }
        Recipient::Nobody(DropReason::UnknownFlow)
    }

    /// Something came for a flow that has ended: its quarantine begins again.
    pub(super) fn disturb(&mut self, disturbed: Quarantined, now: Instant) {
        let Some(time) = self.quarantine() else { return };
        for left in &mut self.quarantined {
            if left.is(&disturbed) {
                left.until = left.until.max(now + time);
            }
        }
    }

    /// A flow has ended, or goes on elsewhere, and has left this behind.
    pub(super) fn put_in_quarantine(
        &mut self,
        (upstream, backend, question): (UpstreamId, usize, Option<Name>),
        until: Instant,
    ) {
        let asker = None;
        self.quarantined.push(Quarantined { upstream, backend, question, until, asker });
    }
}

impl Quarantined {
    /// Whether it is the same place.
    pub(super) fn is(&self, other: &Self) -> bool {
        (self.upstream, self.backend, self.question)
            == (other.upstream, other.backend, other.question)
    }
}
