//! The sockets towards backends, and what a balancer promises about them.
//!
//! Here is what an operator counts on, looked at from outside: who is evicted, what one source may
//! take, what a silent client may get, and how long a socket rests before another flow has it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flowgate_core::config::Limits;
use flowgate_core::{
    BackendId, Burst, Carrier, CloseReason, Direction, FlowId, Instant, ManagerInput,
};

use super::World;
use crate::sim::setting::{Source, Temper, source as of_client};
use crate::sim::wire::Route;
use crate::sim::{Violation, require};

/// A socket connected to a backend, as one flow has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upstream {
    pub(super) backend: BackendId,
    pub(super) address: SocketAddr,
    /// How the backend behaves.
    pub(super) temper: Temper,
    /// Who is at the other end, once a datagram has said so.
    pub(super) party: Option<u16>,
    client: Source,
    /// How many were opened before.
    number: u64,
    /// Bytes from the client, and to it.
    bytes: [u64; 2],
    is_answered: bool,
    /// When something was passed on to the client, or else when it was opened.
    pub(super) last: Instant,
    /// When it has rested enough, after its flow has ended.
    rested_at: Instant,
}

/// A flow that has ended and whose socket another has now.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandedOn {
    former: Upstream,
    /// `None` when the other has left the socket since, to go on with another backend.
    to: Option<FlowId>,
}

/// How many flows and sockets there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowd {
    flows: usize,
    unanswered: usize,
    sockets: usize,
}

impl World {
    pub(super) fn open(
        &mut self,
        flow: FlowId,
        (backend, address): (BackendId, SocketAddr),
        reuse: Option<FlowId>,
        input: &ManagerInput<'_>,
        now: Instant,
    ) -> Result<(), Violation> {
        let &ManagerInput::ClientBurst { .. } = input else {
            return Err(Violation(format!("{flow:?} is opened for no client")));
        };
        let source = self.caller;
        let client = of_client(source);
        let temper = self.tempers[backend.index()];
        if let Some(former) = self.moving.remove(&flow) {
            require!(reuse.is_none(), "{flow:?} goes on by the socket of another: {reuse:?}");
            require!(former.client == client, "{flow:?} moves for another client");
            require!(former.backend != backend, "{flow:?} moves to the backend that it had");
            self.upstreams.insert(flow, Upstream { backend, address, temper, ..former });
            return Ok(());
        }
        if let Some(rested) = reuse {
            self.hand_on(rested, flow, backend, now)?;
        }
        self.sockets_opened += 1;
        let upstream = Upstream {
            backend,
            address,
            temper,
            party: None,
            client,
            number: self.sockets_opened,
            bytes: [0; 2],
            is_answered: false,
            last: now,
            rested_at: now,
        };
        let before = self.upstreams.insert(flow, upstream);
        require!(before.is_none(), "a socket is opened twice: {flow:?}");
        self.check_shares(client)
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
        let rested_at = former.rested_at;
        require!(rested_at <= now, "the socket of {rested:?} rests until {rested_at:?}");
        require!(former.backend == backend, "{to:?} takes a socket to another backend");
        require!(rested.index() == to.index(), "{to:?} takes a socket in another slot: {rested:?}");
        self.handed_on.insert(rested, HandedOn { former, to: Some(to) });
        Ok(())
    }

    /// No source and no subnet takes more than its share.
    fn check_shares(&self, client: Source) -> Result<(), Violation> {
        let &Limits { flows_per_source, flows_per_subnet, .. } = &self.config.cluster.limits;
        let count = |is_meant: &dyn Fn(&Upstream) -> bool| {
            self.upstreams.values().filter(|upstream| is_meant(upstream)).count()
        };
        let shares = [
            (flows_per_source, count(&|other| other.client == client)),
            (flows_per_subnet, count(&|other| subnet(other.client) == subnet(client))),
        ];
        for (limit, flows) in shares {
            require!(
                limit == 0 || flows <= limit as usize,
                "{client:?} gets a flow that makes it {flows} where {limit} may be"
            );
        }
        Ok(())
    }

    pub(super) fn crowd(&self) -> Crowd {
        let upstreams = self.upstreams.values();
        Crowd {
            flows: self.upstreams.len() + self.moving.len(),
            unanswered: upstreams.filter(|upstream| !upstream.is_answered).count(),
            sockets: self.open_sockets(),
        }
    }

    /// All together take no more than there is. Where fewer may be than were before, there are no
    /// more of them than there were.
    pub(super) fn check_crowd(&self, before: &Crowd) -> Result<(), Violation> {
        let most = self.config.max_flows as usize;
        let most_unanswered = match self.config.cluster.limits.unanswered_flows {
            0 => most.max(before.flows),
            limit => limit as usize,
        };
        let after = self.crowd();
        for (what, is, was, may_be) in [
            ("flows", after.flows, before.flows, most),
            ("sockets", after.sockets, before.sockets, 2 * most),
            ("unanswered flows", after.unanswered, before.unanswered, most_unanswered),
        ] {
            require!(is <= may_be.max(was), "there are {is} {what} where {may_be} may be");
        }
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
            Self::check_eviction(flow, &upstream, now)?;
            let is_older = |other: &Upstream| !other.is_answered && other.number < upstream.number;
            let has_older = !upstream.is_answered && self.upstreams.values().any(is_older);
            require!(!has_older, "{flow:?} is evicted before one that is older");
        }
        let rest = self.config.cluster.upstream_reuse.unwrap_or_default();
        let upstream = Upstream { rested_at: now + rest, ..upstream };
        if keep_socket {
            self.resting.insert(flow, upstream);
        }
        self.remember_closed(flow, upstream);
        Ok(())
    }

    /// One that was answered goes only where nothing has come on it for two seconds.
    fn check_eviction(flow: FlowId, upstream: &Upstream, now: Instant) -> Result<(), Violation> {
        let is_idle = upstream.last + Duration::from_secs(2) <= now;
        require!(!upstream.is_answered || is_idle, "{flow:?} is evicted, and in use");
        Ok(())
    }

    /// A socket closes: that of a flow that has ended, or of one that goes on with another backend.
    pub(super) fn close_socket(&mut self, flow: FlowId) -> Result<(), Violation> {
        if self.resting.remove(&flow).is_some() {
            return Ok(());
        }
        let upstream = self.upstreams.remove(&flow).ok_or_else(|| not_open("closed", flow))?;
        self.check_move(upstream.backend, upstream.address)?;
        self.moving.insert(flow, upstream);
        self.lose_what_is_under_way_to(flow);
        Ok(())
    }

    /// Nobody hears any more what a backend has sent to a flow's socket, and to those who had that
    /// socket before.
    fn lose_what_is_under_way_to(&mut self, flow: FlowId) {
        let Self { from_backends, handed_on, .. } = self;
        from_backends.lose(|route| match *route {
            Route::FromBackend(answered) => owner(handed_on, answered) == Some(flow),
            Route::FromClient { .. } => false,
        });
        for handed_on in handed_on.values_mut().filter(|handed_on| handed_on.to == Some(flow)) {
            handed_on.to = None;
        }
    }

    /// What an input says about sockets, whatever the balancer makes of it.
    pub(super) fn note(&mut self, input: &ManagerInput<'_>, now: Instant) {
        match *input {
            ManagerInput::ClientBurst { source, local, burst, .. } => {
                self.learn_caller(source, local, burst.bytes());
            }
            ManagerInput::BackendBurst { flow, .. } => {
                let rest = self.config.cluster.upstream_reuse;
                if let (Some(disturbed), Some(rest)) = (self.resting.get_mut(&flow), rest) {
                    disturbed.rested_at = disturbed.rested_at.max(now + rest);
                }
            }
            ManagerInput::Undelivered {
                carrier: Carrier::Flow(flow), direction, bytes, ..
            } => {
                if let Some(upstream) = self.upstreams.get_mut(&flow) {
                    upstream.bytes[direction as usize] -= bytes;
                }
            }
            ManagerInput::BackendChanged { backend, event } => self.known.hear(backend, event),
            ManagerInput::Configured(new) => {
                self.known.configure(new.config());
                self.config = new.config().clone();
            }
            _ => {}
        }
    }

    /// Which flow a backend's answer to one reaches now: its own, dead or alive, or the one that
    /// has the socket today. `None` when nobody has it, or it comes so late that the network has
    /// lost it: no answer is underway for longer than sockets rest.
    pub(super) fn flow_reached(&self, answered: FlowId, now: Instant) -> Option<FlowId> {
        let handed_on = self.handed_on.get(&answered);
        if handed_on.is_some_and(|handed_on| handed_on.former.rested_at <= now) {
            return None;
        }
        owner(&self.handed_on, answered)
    }

    /// How the backend behaves that is at the other end of a flow's socket, while there is one.
    pub(super) fn temper_of(&self, flow: FlowId) -> Option<Temper> {
        let upstream = self.upstreams.get(&flow).or_else(|| self.resting.get(&flow));
        let former = || self.handed_on.get(&flow).map(|handed_on| &handed_on.former);
        upstream.or_else(former).map(|upstream| upstream.temper)
    }
}

/// Who has the socket today that a flow had.
fn owner(handed_on: &BTreeMap<FlowId, HandedOn>, flow: FlowId) -> Option<FlowId> {
    let mut owner = flow;
    while let Some(later) = handed_on.get(&owner) {
        owner = later.to?;
    }
    Some(owner)
}

impl Upstream {
    /// A client may have forged its address: it gets so many bytes for each of its own, and no more.
    pub(super) fn forward(
        &mut self,
        direction: Direction,
        burst: &Burst<'_>,
        limits: &Limits,
    ) -> Result<(), Violation> {
        self.bytes[direction as usize] += burst.bytes().len() as u64;
        self.is_answered |= direction == Direction::ToClient;
        let [sent, got] = self.bytes;
        let budget = sent.saturating_mul(limits.amplification.into());
        let is_limited = limits.amplification > 0;
        let costs = direction == Direction::ToClient && !burst.bytes().is_empty();
        require!(
            !is_limited || !costs || got <= budget,
            "{:?} sends {sent} bytes and gets {got}",
            self.client
        );
        Ok(())
    }
}

pub(super) fn not_open(done: &str, flow: FlowId) -> Violation {
    Violation(format!("a socket is {done} that is not open: {flow:?}"))
}

/// The /24 of IPv4 or /56 of IPv6 that an address lies in, on its link.
fn subnet((client, link): Source) -> (u32, bool, u128) {
    match client {
        IpAddr::V4(ip) => (link, false, u128::from(ip.to_bits() >> 8)),
        IpAddr::V6(ip) => (link, true, ip.to_bits() >> 72),
    }
}
