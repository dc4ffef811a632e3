//! The sockets towards backends, and what a balancer promises about them.
//!
//! Here is what an operator counts on, looked at from outside: who is evicted, what one source may
//! take, what a silent client may get, and that no two flows get each other's answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flowgate_core::config::Limits;
use flowgate_core::{
    BackendId, Burst, CloseReason, Direction, FlowId, Instant, ManagerInput, SendId, UpstreamId,
};

use super::World;
use crate::sim::setting::{Source, Temper, source as of_client};
use crate::sim::wire::{Route, STRANGER, Way};
use crate::sim::{Violation, require};

/// What one flow uses towards its backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upstream {
    /// The socket.
    pub(super) id: UpstreamId,
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
    pub(super) is_answered: bool,
    /// When something was passed on to the client, or else when it was opened.
    pub(super) last: Instant,
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
        id: UpstreamId,
        (backend, address): (BackendId, SocketAddr),
        input: &ManagerInput<'_>,
        now: Instant,
    ) -> Result<(), Violation> {
        let is_asked_by_client = matches!(input, ManagerInput::ClientBurst { .. });
        let asks_again = self.upstreams.contains_key(&flow);
        require!(is_asked_by_client || asks_again, "{flow:?} is opened for no client");
        let Some(&connected) = self.sockets.get(&id) else {
            return Err(Violation(format!("{flow:?} is opened on {id:?}, which is not open")));
        };
        let is_right = connected.is_none_or(|connected| connected == address);
        require!(is_right, "{flow:?} goes to {address} by a socket to {connected:?}");
        // Questions are told apart by what names them, which is whose they are.
        let asks = self.config.cluster.transactions.is_some();
        let is_there = |other: &Upstream| {
            other.id == id && (connected.is_some() || (other.address == address && !asks))
        };
        let others = self.upstreams.iter().find(|(other, it)| **other != flow && is_there(it));
        require!(others.is_none(), "{flow:?} gets the answers of {others:?}");
        let client = of_client(self.caller);
        let temper = self.tempers[backend.index()];
        if let Some(former) = self.upstreams.get(&flow).copied() {
            let goes_back = matches!(input, ManagerInput::UpstreamBurst { .. }) && former.id != id;
            let is_other = former.backend != backend;
            require!(is_other || goes_back, "{flow:?} moves to the backend that it had");
            if is_asked_by_client {
                require!(former.client == client, "{flow:?} moves for another client");
                self.check_move(former.backend, former.address)?;
            } else {
                require!(!former.is_answered, "{flow:?} has been answered, and asks another");
            }
            self.leave(flow, &former, now);
            // It may have gone back.
            self.left.remove(&(flow, id, address));
            self.upstreams.insert(flow, Upstream { id, backend, address, temper, ..former });
            return Ok(());
        }
        self.flows_opened += 1;
        let upstream = Upstream {
            id,
            backend,
            address,
            temper,
            party: None,
            client,
            number: self.flows_opened,
            bytes: [0; 2],
            is_answered: false,
            last: now,
        };
        self.upstreams.insert(flow, upstream);
        self.check_shares(client)
    }

    /// A flow leaves a backend. For as long as its quarantine takes something may come there for it,
    /// and for no longer: what is under way for more than that the network loses.
    fn leave(&mut self, flow: FlowId, former: &Upstream, now: Instant) {
        // A backend that got nothing of it has nothing to say.
        let is_unheard = self.given_up.contains(&flow);
        let until = if is_unheard { now } else { now + self.config.cluster.upstream_quarantine };
        self.left.insert((flow, former.id, former.address), until);
    }

    /// Whether something comes so late that the network has lost it.
    pub(super) fn is_too_late(&self, way: Way, now: Instant) -> bool {
        let is_shared = self.sockets.get(&way.upstream).is_some_and(Option::is_none);
        let until = self.left.get(&(way.flow, way.upstream, way.sender));
        is_shared
            && (self.is_draining || until.is_some_and(|until| *until <= now))
            && until.is_some()
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
            flows: self.upstreams.len(),
            unanswered: upstreams.filter(|upstream| !upstream.is_answered).count(),
            sockets: self.sockets.values().filter(|connected| connected.is_some()).count(),
        }
    }

    /// All together take no more than there is. Where fewer may be than were before, there are no
    /// more of them than there were; but each flow that stays may go on by a socket of its own.
    pub(super) fn check_crowd(&self, before: &Crowd) -> Result<(), Violation> {
        let most = self.config.max_flows as usize;
        let most_unanswered = match self.config.cluster.limits.unanswered_flows {
            0 => most.max(before.flows),
            limit => limit as usize,
        };
        let after = self.crowd();
        for (what, is, was, may_be) in [
            ("flows", after.flows, before.flows, most),
            ("sockets", after.sockets, before.sockets, 2 * most.max(before.flows)),
            ("unanswered flows", after.unanswered, before.unanswered, most_unanswered),
        ] {
            require!(is <= may_be.max(was), "there are {is} {what} where {may_be} may be");
        }
        Ok(())
    }

    pub(super) fn close(
        &mut self,
        flow: FlowId,
        id: UpstreamId,
        reason: CloseReason,
        now: Instant,
    ) -> Result<(), Violation> {
        let upstream = self.upstreams.remove(&flow).ok_or_else(|| not_open("closed", flow))?;
        require!(upstream.id == id, "{flow:?} leaves {id:?}, which it did not have");
        if reason == CloseReason::Evicted {
            Self::check_eviction(flow, &upstream, now)?;
            let is_older = |other: &Upstream| !other.is_answered && other.number < upstream.number;
            let has_older = !upstream.is_answered && self.upstreams.values().any(is_older);
            require!(!has_older, "{flow:?} is evicted before one that is older");
        }
        self.leave(flow, &upstream, now);
        self.remember_closed(flow, upstream);
        Ok(())
    }

    /// One that was answered goes only where nothing has come on it for two seconds.
    fn check_eviction(flow: FlowId, upstream: &Upstream, now: Instant) -> Result<(), Violation> {
        let is_idle = upstream.last + Duration::from_secs(2) <= now;
        require!(!upstream.is_answered || is_idle, "{flow:?} is evicted, and in use");
        Ok(())
    }

    /// A socket closes, and nobody hears any more what is on its way to it.
    pub(super) fn close_socket(&mut self, id: UpstreamId) -> Result<(), Violation> {
        let was_open = self.sockets.remove(&id).is_some();
        require!(was_open, "a socket is closed that is not open: {id:?}");
        self.from_backends.lose(|route| match *route {
            Route::FromBackend(way) => way.upstream == id && self.upstreams.contains_key(&way.flow),
            Route::FromClient { .. } => false,
        });
        Ok(())
    }

    /// What an input says about sockets, whatever the balancer makes of it.
    pub(super) fn note(&mut self, input: &ManagerInput<'_>) {
        match *input {
            ManagerInput::ClientBurst { source, local, burst, .. } => {
                self.learn_caller(source, local, burst.bytes());
            }
            ManagerInput::Drain { .. } => self.is_draining = true,
            ManagerInput::Undelivered {
                send_id: SendId::Flow { flow, .. },
                direction,
                bytes,
                ..
            } => {
                if let Some(upstream) = self.upstreams.get_mut(&flow) {
                    upstream.bytes[direction as usize] -= bytes;
                }
            }
            // What the kernel forwards counts for a flow once it is told.
            ManagerInput::FlowActivity { flow, to_backend, to_client, last, .. } => {
                if let Some(upstream) = self.upstreams.get_mut(&flow) {
                    upstream.bytes[0] += to_backend.bytes;
                    upstream.bytes[1] += to_client.bytes;
                    upstream.is_answered |= to_client.datagrams > 0;
                    upstream.last = upstream.last.max(last.unwrap_or(upstream.last));
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
}

impl Upstream {
    /// Whom answers come from: one that is a stranger does not answer from where it was asked.
    pub(super) fn sender(&self) -> SocketAddr {
        match self.temper {
            Temper::Stranger => STRANGER,
            _ => self.address,
        }
    }

    /// A client may have forged its address: it gets this many bytes for each of its own, and no more.
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
