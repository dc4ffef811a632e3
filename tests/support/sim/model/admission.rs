//! Whether a client may have another flow, and who has to go for it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flowgate_core::{BackendId, DropReason, FlowId, Instant, LocalAddr, ManagerInput, UpstreamId};
use ipnet::IpNet;

use super::effect::Effect;
use super::health::Fate;
use super::relay::{Call, Caller};
use super::room::Room;
use super::{Model, Sender};
use crate::sim::setting::{Source, source};

/// What the outputs of one input say that the model cannot know.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The flows that were opened or have moved, in order.
    pub(super) opened: VecDeque<(FlowId, BackendId, UpstreamId)>,
}

impl Seen {
    pub(super) fn of(effects: &[Effect<'_>]) -> Self {
        let mut seen = Self::default();
        for effect in effects {
            if let Effect::Open { flow, upstream, backend, .. } = *effect {
                seen.opened.push_back((flow, backend, upstream));
            }
        }
        seen
    }
}

impl Model {
    /// Whether the one datagram that arrives has a flow, or would get one.
    pub fn would_serve(&self, input: &ManagerInput<'_>, now: Instant) -> bool {
        let &ManagerInput::ClientBurst { source, local, tos, ttl, burst } = input else {
            return false;
        };
        let mut asked = self.clone();
        let from = Sender { source, local, tos, ttl };
        let Ok(Call { mut caller, datagram, .. }) = asked.call(from, burst.bytes(), false, now)
        else {
            return false;
        };
        caller.question = self.name_of(datagram);
        let is_malformed = self.asks() && caller.question.is_none();
        if asked.takes_too_much(&caller, datagram, now).is_some() || is_malformed {
            return false;
        }
        if let Some(index) = self.flow_of(&caller) {
            match self.fate(self.flows[index].backend) {
                Fate::Stays | Fate::Returns => return true,
                Fate::Moves => return self.able().contains(&true),
                Fate::Ends(reason) => drop(asked.close(index, reason, now)),
            }
        }
        asked.refusal(&caller, now).is_none()
    }

    /// Why there can be no new flow for a client, if there can be none.
    pub(super) fn refusal(&mut self, caller: &Caller, now: Instant) -> Option<DropReason> {
        let (client, (sender, local)) = (caller.client, caller.way());
        let limits = &self.config.cluster.limits;
        let is_over = |limit: u32, flows: usize| limit > 0 && flows >= limit as usize;
        self.room = Room::Free;
        let reason = if self.openings.is_used_up() {
            DropReason::Overload
        } else if self.is_ours(sender, local) {
            DropReason::OwnAddress
        } else if !self.is_allowed(client.ip()) {
            DropReason::Denied
        } else if self.drain.is_some() {
            DropReason::Draining
        } else if is_over(limits.flows_per_source, self.flows_of(client, Width::Host)) {
            DropReason::SourceFlows
        } else if is_over(limits.flows_per_subnet, self.flows_of(client, Width::Subnet)) {
            DropReason::SubnetFlows
        } else if self.is_too_fast(source(client), now) {
            DropReason::SourceRate
        } else if let Err(reason) = self.find_room(source(client), now) {
            reason
        } else if !self.able().contains(&true) {
            self.room = Room::Free;
            DropReason::NoBackend
        } else {
            return None;
        };
        Some(reason)
    }

    fn is_ours(&self, client: SocketAddr, local: Option<LocalAddr>) -> bool {
        let destination = local.map_or(self.config.address.ip(), |local| local.ip);
        let this = SocketAddr::new(destination, self.config.address.port());
        // One that is bound to a wildcard has every address of the host, of which two are known.
        let has_ip = |listener: IpAddr| match listener.is_unspecified() {
            true => client.ip() == destination || client.ip().is_loopback(),
            false => client.ip() == listener,
        };
        let is_at = |ip: IpAddr, first: u16, last: u16| {
            has_ip(ip) && first <= client.port() && client.port() <= last
        };
        let mut others = self.config.own_addresses.iter();
        is_at(this.ip(), this.port(), this.port())
            || others.any(|own| is_at(own.address.ip(), own.address.port(), own.last_port))
    }

    fn is_allowed(&self, client: IpAddr) -> bool {
        let is_in = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&client));
        let is_on_the_list = self.config.allow.is_empty() || is_in(&self.config.allow);
        is_on_the_list && !is_in(&self.config.deny)
    }

    fn flows_of(&self, client: SocketAddr, width: Width) -> usize {
        let network = |client| network(source(client), width);
        self.flows.iter().filter(|flow| network(flow.client) == network(client)).count()
    }

    fn is_too_fast(&mut self, client: Source, now: Instant) -> bool {
        match self.config.cluster.limits.new_flows_per_second_per_source {
            0 => false,
            rate => self.rates.new_flows.takes(client, SECOND / rate, now).is_none(),
        }
    }

    /// Why a datagram is more than its client may send, if it is. If not, it counts.
    pub(super) fn takes_too_much(
        &mut self,
        caller: &Caller,
        datagram: &[u8],
        now: Instant,
    ) -> Option<DropReason> {
        let limits = &self.config.cluster.limits;
        let (client, before) = (source(caller.client), self.rates.clone());
        if let rate @ 1.. = limits.datagrams_per_second_per_source
            && self.rates.datagrams.takes(client, SECOND / rate, now).is_none()
        {
            return Some(DropReason::SourceDatagrams);
        }
        if let rate @ 1.. = limits.bytes_per_second_per_source {
            let nanos = datagram.len() as u64 * 1_000_000_000 / rate;
            if self.rates.bytes.takes(client, Duration::from_nanos(nanos), now).is_none() {
                self.rates = before;
                return Some(DropReason::SourceBytes);
            }
        }
        None
    }
}

/// Who is counted together.
#[derive(Clone, Copy)]
enum Width {
    Host,
    Subnet,
}

/// The address, or the /24 of IPv4 or /56 of IPv6 that it lies in, on its link.
fn network((ip, link): Source, width: Width) -> (Vec<u8>, u32) {
    let (octets, subnet) = match ip {
        IpAddr::V4(ip) => (ip.octets().to_vec(), 24 / 8),
        IpAddr::V6(ip) => (ip.octets().to_vec(), 56 / 8),
    };
    match width {
        Width::Host => (octets, link),
        Width::Subnet => (octets[..subnet].to_vec(), link),
    }
}

/// How fast each source opens flows and sends.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    new_flows: Rate,
    datagrams: Rate,
    bytes: Rate,
}

/// How fast each source does something: a bucket for each, which holds a second's worth and leaks.
#[derive(Clone, Debug, Default)]
struct Rate {
    buckets: BTreeMap<Source, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: Duration,
    at: Instant,
}

const SECOND: Duration = Duration::from_secs(1);

impl Rate {
    /// Counts what a source does, which is worth so much of the time, unless it is too much. More
    /// than a second's worth is too much while anything is in the bucket. The balancer knows a
    /// limited number of sources, which is more than there are here.
    fn takes(&mut self, source: Source, worth: Duration, now: Instant) -> Option<()> {
        let own = self.buckets.get(&source).map_or(Duration::ZERO, |bucket| bucket.level(now));
        let is_too_much = worth.min(SECOND) > SECOND.saturating_sub(own);
        (!is_too_much).then(|| {
            self.buckets.insert(source, Bucket { level: own + worth, at: now });
        })
    }
}

impl Bucket {
    fn level(&self, now: Instant) -> Duration {
        self.level.saturating_sub(now - self.at)
    }
}
