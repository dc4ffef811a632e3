//! The sockets towards backends, and what a balancer promises about them.
//!
//! Here is what an operator counts on, looked at from outside: who is evicted, what one source may
//! take, what a silent client may get, and how long a socket rests before another flow has it.

use std::net::IpAddr;

use flowgate_core::config::Limits;
use flowgate_core::{BackendId, Burst, CloseReason, Direction, FlowId, Instant, ManagerInput};

use super::World;
use crate::sim::setting::canonical;
use crate::sim::{Violation, require};

/// A socket connected to a backend, as one flow has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upstream {
    pub(super) backend: BackendId,
    /// Who is at the other end, once a datagram has said so.
    pub(super) party: Option<u16>,
    client: IpAddr,
    /// How many were opened before.
    number: u64,
    /// Bytes from the client, and to it.
    bytes: [u64; 2],
    is_answered: bool,
    /// The client has sent something since it was answered.
    is_confirmed: bool,
    /// When its flow ended, or something came for that flow after its end.
    quiet_since: Instant,
}

/// A flow that has ended and whose socket another has now.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandedOn {
    former: Upstream,
    to: FlowId,
}

impl World {
    pub(super) fn open(
        &mut self,
        flow: FlowId,
        backend: BackendId,
        reuse: Option<FlowId>,
        input: &ManagerInput<'_>,
        now: Instant,
    ) -> Result<(), Violation> {
        let &ManagerInput::ClientBurst { source, .. } = input else {
            return Err(Violation(format!("{flow:?} is opened for no client")));
        };
        if let Some(rested) = reuse {
            self.hand_on(rested, flow, backend, now)?;
        }
        self.sockets_opened += 1;
        let upstream = Upstream {
            backend,
            party: None,
            client: canonical(source).ip(),
            number: self.sockets_opened,
            bytes: [0; 2],
            is_answered: false,
            is_confirmed: false,
            quiet_since: now,
        };
        let before = self.upstreams.insert(flow, upstream);
        require!(before.is_none(), "a socket is opened twice: {flow:?}");
        self.check_shares(upstream.client)
    }

    /// A socket goes from a finished flow to a new one.
    fn hand_on(
        &mut self,
        rested: FlowId,
        to: FlowId,
        backend: BackendId,
        now: Instant,
    ) -> Result<(), Violation> {
        let Some(former) = self.resting.remove(&rested) else {
            return Err(Violation(format!("{to:?} takes a socket that does not rest: {rested:?}")));
        };
        let (quiet, rest) = (now - former.quiet_since, self.rest);
        require!(quiet >= rest, "the socket of {rested:?} rests for {quiet:?}, not {rest:?}");
        require!(former.backend == backend, "{to:?} takes a socket to another backend");
        require!(rested.index() == to.index(), "{to:?} takes a socket in another slot: {rested:?}");
        self.handed_on.insert(rested, HandedOn { former, to });
        Ok(())
    }

    /// No source and no subnet takes more than its share, and all together no more than there is.
    fn check_shares(&self, client: IpAddr) -> Result<(), Violation> {
        let &Limits { flows_per_source, flows_per_subnet, unanswered_flows, .. } = &self.limits;
        let count = |is_meant: &dyn Fn(&Upstream) -> bool| {
            self.upstreams.values().filter(|upstream| is_meant(upstream)).count()
        };
        let shares = [
            (flows_per_source, count(&|other| other.client == client)),
            (flows_per_subnet, count(&|other| subnet(other.client) == subnet(client))),
            (unanswered_flows, count(&|other| !other.is_answered)),
        ];
        for (limit, flows) in shares {
            require!(
                limit == 0 || flows <= limit as usize,
                "{client} gets a flow that makes it {flows} where {limit} may be"
            );
        }
        let sockets = self.open_sockets();
        require!(sockets <= self.most_sockets, "{sockets} sockets are open");
        Ok(())
    }

    pub(super) fn close(
        &mut self,
        flow: FlowId,
        reason: CloseReason,
        keep_socket: bool,
        now: Instant,
    ) -> Result<(), Violation> {
        let upstream = self.upstreams.remove(&flow).ok_or_else(|| not_open("closed", flow))?;
        if reason == CloseReason::Evicted {
            require!(!upstream.is_answered, "{flow:?} is evicted, and was answered");
            let is_older = |other: &Upstream| !other.is_answered && other.number < upstream.number;
            let has_older = self.upstreams.values().any(is_older);
            require!(!has_older, "{flow:?} is evicted before one that is older");
        }
        let upstream = Upstream { quiet_since: now, ..upstream };
        if keep_socket {
            self.resting.insert(flow, upstream);
        }
        self.remember_closed(flow, upstream);
        Ok(())
    }

    pub(super) fn close_resting(&mut self, flow: FlowId) -> Result<(), Violation> {
        let upstream = self.resting.remove(&flow);
        upstream.map(drop).ok_or_else(|| not_open("closed", flow))
    }

    /// What an input says about sockets, whatever the balancer makes of it.
    pub(super) fn note(&mut self, input: &ManagerInput<'_>, now: Instant) {
        match *input {
            ManagerInput::BackendBurst { flow, .. } => {
                if let Some(disturbed) = self.resting.get_mut(&flow) {
                    disturbed.quiet_since = now;
                }
            }
            ManagerInput::Undelivered { flow, direction, bytes, .. } => {
                if let Some(upstream) = self.upstreams.get_mut(&flow) {
                    upstream.bytes[direction as usize] -= bytes;
                }
            }
            _ => {}
        }
    }

    /// Which flow a backend's answer to one reaches now: its own, dead or alive, or the one that
    /// has the socket today. `None` when it comes so late that the network has lost it: no answer
    /// is underway for longer than sockets rest.
    pub(super) fn flow_reached(&mut self, answered: FlowId, now: Instant) -> Option<FlowId> {
        let Some(handed_on) = self.handed_on.get_mut(&answered) else {
            return Some(answered);
        };
        if now - handed_on.former.quiet_since >= self.rest {
            return None;
        }
        let mut owner = handed_on.to;
        while let Some(later) = self.handed_on.get(&owner) {
            owner = later.to;
        }
        Some(owner)
    }

    /// The backend that is at the other end of a flow's socket, while there is one.
    pub(super) fn backend_of(&self, flow: FlowId) -> Option<BackendId> {
        let upstream = self.upstreams.get(&flow).or_else(|| self.resting.get(&flow));
        let former = || self.handed_on.get(&flow).map(|handed_on| &handed_on.former);
        upstream.or_else(former).map(|upstream| upstream.backend)
    }
}

impl Upstream {
    /// A client that has sent nothing since it was answered may have forged its address: it gets
    /// so many bytes for each of its own, and no more.
    pub(super) fn forward(
        &mut self,
        direction: Direction,
        burst: &Burst<'_>,
        limits: &Limits,
    ) -> Result<(), Violation> {
        self.bytes[direction as usize] += burst.bytes().len() as u64;
        match direction {
            Direction::ToBackend => self.is_confirmed |= self.is_answered,
            Direction::ToClient => self.is_answered = true,
        }
        let [sent, got] = self.bytes;
        let budget = sent.saturating_mul(limits.amplification.into());
        let is_limited = limits.amplification > 0 && !self.is_confirmed;
        let costs = direction == Direction::ToClient && !burst.bytes().is_empty();
        require!(
            !is_limited || !costs || got <= budget,
            "{} sends {sent} bytes and gets {got}",
            self.client
        );
        Ok(())
    }
}

pub(super) fn not_open(done: &str, flow: FlowId) -> Violation {
    Violation(format!("a socket is {done} that is not open: {flow:?}"))
}

/// The /24 of IPv4 or /56 of IPv6 that an address lies in.
fn subnet(client: IpAddr) -> (bool, u128) {
    match client {
        IpAddr::V4(ip) => (false, u128::from(ip.to_bits() >> 8)),
        IpAddr::V6(ip) => (true, ip.to_bits() >> 72),
    }
}
