//! A client's datagrams: which flow they belong to, and whether there may be one.

use core::net::{IpAddr, SocketAddr};
use core::ops::RangeInclusive;

use ipnet::IpNet;

use super::evict::Room;
use super::forward::RecvMeta;
use super::{UNANSWERED, UdpManager};
use crate::burst::Burst;
use crate::config::{Accept, ManagerConfig, Mode, OwnAddress};
use crate::counters::Traffic;
use crate::flow::UdpFlow;
use crate::flow::key::FlowKey;
use crate::id::{BackendId, FlowId};
use crate::output::{Output, Outputs};
use crate::reason::{Direction, DropReason};
use crate::time::Instant;
use crate::transaction::Transactions;

/// What a datagram is sent with whose time to live ends here: a little more than [`LOOPED`].
const LAST_TTL: u8 = 140;

/// What only a datagram has left that was sent with [`LAST_TTL`] and has come round to a balancer
/// again. No system begins between 128 and 255, and no path takes as many hops as lie between. They
/// are several, as a loop may lead by routers that take hops too.
const LOOPED: RangeInclusive<u8> = 129..=132;

/// The time to live or hop limit to send a datagram on with: one less than it has left, so that
/// what goes round among balancers ends. `None`: it has.
///
/// One that arrives with its last hop is served all the same, as by any server: it may come from a
/// client that sends no farther than its link. It is sent with enough to reach a backend, but no
/// longer as one that a client has sent: a loop ends a few rounds later.
fn onward_ttl(left: u8) -> Option<u8> {
    match left {
        0 => None,
        1 => Some(LAST_TTL),
        _ if LOOPED.contains(&left) => None,
        _ => Some(left - 1),
    }
}

impl UdpManager {
    #[inline]
    pub(super) fn handle_client_burst<'p>(
        &mut self,
        sender: &FlowKey,
        tos: u8,
        ttl: u8,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        if sender.client.port() == 0 {
            self.refuse(DropReason::PortZero, &burst, outputs);
            return;
        }
        let recv_meta = RecvMeta { tos, ttl, proxy_info: None };
        if self.is_proxy(sender) {
            self.handle_proxied_burst(sender, recv_meta, burst, now, outputs);
        } else {
            self.handle_datagrams(sender, sender, &recv_meta, burst, now, outputs);
        }
    }

    /// Takes the datagrams of one client. `sender` is the client itself or a proxy that speaks for
    /// it.
    #[inline]
    pub(super) fn handle_datagrams<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.counters.to_backend.received.add(Traffic::of(&burst));
        let fitting = self.drop_too_large(Direction::ToBackend, burst, outputs);
        let Some(burst) = fitting else { return };
        let Some(ttl) = onward_ttl(recv_meta.ttl) else {
            self.drop_burst(Direction::ToBackend, DropReason::TtlExpired, &burst, outputs);
            return;
        };
        let recv_meta = RecvMeta { ttl, ..*recv_meta };
        if !self.source_limits.measure_datagrams() {
            self.handle_admitted(key, sender, &recv_meta, burst, now, outputs);
            return;
        }
        let source = key.client.source();
        let (admitted, reason) = self.source_limits.admit_datagrams(source, &burst, now);
        let (admitted, beyond) = burst.split_at(admitted);
        if let Some(burst) = admitted {
            self.handle_admitted(key, sender, &recv_meta, burst, now, outputs);
        }
        if let Some(burst) = beyond {
            self.drop_burst(Direction::ToBackend, reason, &burst, outputs);
        }
    }

    /// Takes the datagrams of one client that are fit to be sent on.
    #[inline]
    fn handle_admitted<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        match self.config.cluster.mode {
            Mode::Session { .. } => match self.config.cluster.questions() {
                None => self.handle_session(key, sender, recv_meta, burst, now, outputs),
                Some(named) => {
                    self.handle_questions(named, key, sender, recv_meta, burst, now, outputs);
                }
            },
            mode if !mode.has_flows() => {
                self.handle_one_way(key, sender, recv_meta, burst, now, outputs);
            }
            _ if self.is_hedged() => {
                self.handle_hedged(key, sender, recv_meta, burst, now, outputs);
            }
            _ => self.handle_copied(key, sender, recv_meta, burst, now, outputs),
        }
    }

    /// Takes the datagrams of a flow that has one backend.
    #[inline]
    fn handle_session<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        // One turn, unless `requests` makes the burst reach into a next flow.
        let mut rest = Some(burst);
        while let Some(burst) = rest {
            let first = first_of(&burst);
            let flow = match self.flow_for(key, sender, recv_meta.ttl, first, now, outputs) {
                Ok(flow) => flow,
                Err(reason) => {
                    self.drop_burst(Direction::ToBackend, reason, &burst, outputs);
                    return;
                }
            };
            rest = self.forward_requests(flow, recv_meta, burst, now, outputs);
        }
    }

    /// Takes the questions of one client, each of which is a flow of its own.
    #[expect(clippy::too_many_arguments)]
    fn handle_questions<'p>(
        &mut self,
        named: Transactions,
        key: &FlowKey,
        sender: &FlowKey,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        for question in burst.datagrams().filter_map(Burst::single) {
            match named.request_id(question.bytes()) {
                Some(id) => {
                    let key = key.asking(self.flows.name_question(id));
                    self.handle_session(&key, sender, recv_meta, question, now, outputs);
                }
                None => {
                    let reason = DropReason::Malformed;
                    self.drop_burst(Direction::ToBackend, reason, &question, outputs);
                }
            }
        }
    }

    /// The flow that takes a client's next datagram, or why there is none.
    #[inline]
    pub(super) fn flow_for<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        ttl: u8,
        datagram: &[u8],
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<FlowId, DropReason> {
        if let Some(flow) = self.flows.find(key)
            && let Some(flow) = self.settle(flow, ttl, datagram, now, outputs)?
        {
            self.follow_id(flow, ttl, datagram, now, outputs);
            return Ok(flow);
        }
        self.admit(key, sender, ttl, datagram, now, outputs)
    }

    /// Opens a flow, or says why there can be none. Nothing is allocated or asked of the shell
    /// for a datagram that is refused.
    fn admit<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        ttl: u8,
        datagram: &[u8],
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<FlowId, DropReason> {
        let client = key.client.address();
        self.check_new(client, sender)?;
        let place = self.place(datagram, now);
        // What is underway is nothing new, from whatever address it goes on.
        if self.drain.is_some() && place.named.is_none_or(|_| place.is_opening) {
            return Err(DropReason::Draining);
        }
        self.source_limits.admit(key.client.source(), now)?;
        let room = self.find_room(key.client.source(), now, outputs)?;
        let backend = self.pick(client, &place, now).ok_or(DropReason::NoBackend)?;
        let flow = self.open(key, backend, room, ttl, now, outputs)?;
        self.placement.opened(flow.index(), &place, datagram);
        Ok(flow)
    }

    /// Opens a flow to a backend, in the room that was found for it.
    pub(super) fn open<'p>(
        &mut self,
        key: &FlowKey,
        backend: BackendId,
        room: Room,
        ttl: u8,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<FlowId, DropReason> {
        self.make_room(room, now, outputs);
        let chosen = self.backends.get_mut(backend).ok_or(DropReason::NoBackend)?;
        chosen.flows_active += 1;
        let address = chosen.address();

        let is_mirrored = match self.config.cluster.mode {
            Mode::Session { mirrored_per_million: share @ 1.. } => {
                self.random.below(1_000_000) < u64::from(share)
            }
            _ => false,
        };
        let slot = self.flows.next_slot();
        let upstream = self.upstream_for(slot, key, (backend, address), ttl, now, outputs);
        let (limits, is_branch) = (&self.limits, self.is_hedged());
        let head = if is_branch { self.flows.look_up(key) } else { None };
        let build =
            |id| UdpFlow::new(key, id, backend, upstream, limits, now).mirrored(is_mirrored);
        let flow = self.flows.insert(is_branch, build);
        self.route(flow.index(), upstream);
        self.join_branches(head, flow);
        self.wheel.schedule(flow.index(), self.flows.at(flow.index()).1.deadline());
        self.queues.push_back(UNANSWERED, flow.index());
        self.source_limits.opened(key.client.source());
        if let Some(proxy) = key.client.proxy() {
            self.proxies.opened(proxy);
        }
        self.counters.flows_opened += 1;
        self.openings.record_opened();
        outputs.emit(Output::OpenFlow { flow, upstream, backend, address, has_moved: false });
        if self.config.accept == Accept::Connected {
            outputs.emit(Output::OpenClient { flow, client: key.client.address() });
        }
        Ok(flow)
    }

    /// Whether a client may have its datagrams taken here, which `sender` has sent for it.
    pub(super) fn check(&self, client: SocketAddr, sender: &FlowKey) -> Result<(), DropReason> {
        self.check_sender(sender)?;
        self.check_client(client)
    }

    /// The same where a flow has to be opened for it.
    pub(super) fn check_new(&self, client: SocketAddr, sender: &FlowKey) -> Result<(), DropReason> {
        // First, and cheap: while this holds, there is no time for more.
        if !self.openings.has_room() {
            return Err(DropReason::Overload);
        }
        self.check(client, sender)
    }

    /// Whether a sender can be anybody's client: not where it is one of our listeners. A backend may
    /// call from the port that it serves at, as SIP proxies and time servers do.
    fn check_sender(&self, sender: &FlowKey) -> Result<(), DropReason> {
        let own_addresses = &self.config.own_addresses;
        // A sender and the local address it calls are on one link, if on any.
        let (sender, destination) = (sender.client.address(), self.destination(sender.local()));
        let is_this = (sender.ip(), sender.port()) == (destination.ip(), destination.port());
        let is_ours = || own_addresses.iter().any(|own| is_at(sender, own, destination.ip()));
        if is_this || is_ours() {
            return Err(DropReason::OwnAddress);
        }
        Ok(())
    }

    /// Whether a client may have flows here at all.
    fn check_client(&self, client: SocketAddr) -> Result<(), DropReason> {
        let ManagerConfig { allow, deny, .. } = &self.config;
        let is_in = |networks: &[IpNet]| networks.iter().any(|net| net.contains(&client.ip()));
        if is_in(deny) || !(allow.is_empty() || is_in(allow)) {
            return Err(DropReason::Denied);
        }
        Ok(())
    }

    /// Drops the datagrams longer than `max_datagram_size` and returns the others. All datagrams
    /// of a burst but the last are equally long, so either all pass, or at most the last.
    #[inline]
    pub(super) fn drop_too_large<'p>(
        &mut self,
        direction: Direction,
        burst: Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) -> Option<Burst<'p>> {
        let longest = self.config.max_datagram_size;
        if burst.stride() <= longest {
            return Some(burst);
        }
        let (too_large, fits) = if burst.last_len() <= usize::from(longest) {
            burst.split_at(burst.count() - 1)
        } else {
            (Some(burst), None)
        };
        if let Some(too_large) = too_large {
            self.drop_burst(direction, DropReason::TooLarge, &too_large, outputs);
        }
        fits
    }
}

/// The first datagram of a burst, which speaks for all of them.
#[inline]
pub(super) fn first_of<'p>(burst: &Burst<'p>) -> &'p [u8] {
    let bytes = burst.bytes();
    &bytes[..bytes.len().min(usize::from(burst.stride()))]
}

/// Whether a client that called us at `called` has the address of one of our listeners.
fn is_at(client: SocketAddr, listener: &OwnAddress, destination: IpAddr) -> bool {
    let has_ip = match listener.address.ip() {
        // A wildcard receives at every address of the host. Which those are the core does not
        // know, but for the one that the client has just called, and the loopback.
        ip if ip.is_unspecified() => client.ip() == destination || client.ip().is_loopback(),
        ip => client.ip() == ip,
    };
    has_ip && listener.has_port(client.port())
}
