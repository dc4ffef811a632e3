//! Carrying out what belongs to no flow: datagrams that nobody answers, and copies.

use std::net::SocketAddr;

use flowgate_core::backends::Backends;
use flowgate_core::config::{ClusterConfig, Mode, ReplyFrom};
use flowgate_core::proxy_protocol::{ProxyHeader, Tlvs, Told};
use flowgate_core::{BackendId, Burst, Carrier, Direction, LocalAddr, ManagerInput};

use super::{Dispatch, give_up, lost_to_backend, send};
use crate::datapath::egress::{needed, outlet_of};
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Way;
use crate::datapath::send::outbox::{Chain, Outgoing};
use crate::datapath::send::transmit::{Exit, drop_reason};
use crate::datapath::sockets::Sockets;
use crate::datapath::token::Token;

/// What has something to send in this turn that no flow carries.
#[derive(Default)]
pub(super) struct DirtyWays {
    /// Backends, by place.
    backends: Vec<(Way, usize)>,
    /// Their sockets, by number.
    outlets: Vec<(Way, usize)>,
}

/// What a mirror is to have: datagrams as they came from a client.
#[derive(Clone, Copy)]
pub(super) struct Mirrored<'t> {
    pub(super) client: SocketAddr,
    pub(super) local: Option<LocalAddr>,
    pub(super) told: Option<Told<'t>>,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) burst: Burst<'t>,
}

impl<'t> Mirrored<'t> {
    /// Empties a list and keeps its memory for another payload.
    pub(super) fn recycle<'u>(mut list: Vec<Self>) -> Vec<Mirrored<'u>> {
        list.clear();
        list.into_iter().map(|_| -> Mirrored<'u> { unreachable!() }).collect()
    }

    const fn as_input(&self) -> ManagerInput<'t> {
        let Self { client, local, told, tos, ttl, burst } = *self;
        ManagerInput::Mirrored { client, local, told, tos, ttl, burst }
    }
}

impl<'t, K: Kernel> Dispatch<'_, 't, K> {
    /// Sends what `act` emits on behalf of a mirror.
    pub fn for_mirror<R>(&mut self, act: impl FnOnce(&mut Self) -> R) -> R {
        let way = std::mem::replace(&mut self.way, Way::Mirror);
        let result = act(self);
        self.way = way;
        result
    }

    /// Tells the mirror of all that it is to have.
    pub fn pass_on_mirrored(&mut self, mut tell: impl FnMut(ManagerInput<'t>, &mut Self)) {
        let mut mirrored = std::mem::take(&mut self.mirrored);
        self.for_mirror(|dispatch| {
            mirrored.drain(..).for_each(|copy| tell(copy.as_input(), dispatch));
        });
        self.mirrored = mirrored;
    }

    /// Notes datagrams to a backend that no flow carries.
    pub(super) fn send_one_way(
        &mut self,
        carrier: Carrier,
        address: SocketAddr,
        (prefix, tlvs): (Option<ProxyHeader>, Tlvs<'t>),
        (tos, ttl): (u8, u8),
        burst: Burst<'t>,
    ) {
        let way = self.way;
        let outgoing = Outgoing {
            way,
            carrier,
            direction: Direction::ToBackend,
            destination: Some(address),
            local: None,
            prefix,
            tlvs,
            tos,
            ttl: Some(ttl),
            may_be_train: true,
            burst,
        };
        let Some((backend, outlet)) = outlet_of(carrier, address) else { return };
        let outlets = &mut self.sockets.outlets[way as usize];
        outlets.reserve(backend.index() + 1);
        if outlets.get_mut(outlet).is_none()
            && let Err(error) = self.open_outlet(way, outlet, address.is_ipv6())
        {
            self.lose(&outgoing, drop_reason(&error));
            return;
        }
        let outlets = &mut self.sockets.outlets[way as usize];
        let Some(destination) = outlets.destination_mut(backend) else { return };
        if destination.outgoing.is_empty() {
            destination.outlet = outlet;
            self.dirty_ways.backends.push((way, backend.index()));
        }
        let may_be_train = !destination.no_trains;
        self.outbox.push(&mut destination.outgoing, Outgoing { may_be_train, ..outgoing });
    }

    fn open_outlet(&mut self, way: Way, number: usize, v6: bool) -> std::io::Result<()> {
        let sockets = &mut *self.sockets;
        let token = Token::Outlet { shard: sockets.shard, way, outlet: number as u32 };
        let outlets = &mut sockets.outlets[way as usize];
        outlets.open(number, self.kernel.open_outlet(v6, outlets.source, token)?);
        Ok(())
    }

    /// Sends what was noted: all that goes to one backend lies together, so that it makes trains,
    /// and all that leaves by one socket goes with as few calls as it takes.
    pub(super) fn flush_outlets(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty_ways);
        for (way, backend) in dirty.backends.drain(..) {
            let outlets = &mut self.sockets.outlets[way as usize];
            let Some((destination, outlet)) = outlets.way_to(backend) else { continue };
            if outlet.outgoing.is_empty() {
                dirty.outlets.push((way, destination.outlet));
            }
            let chain = std::mem::replace(&mut destination.outgoing, Chain::EMPTY);
            self.outbox.append(&mut outlet.outgoing, chain);
        }
        for (way, number) in dirty.outlets.drain(..) {
            self.flush_outlet(way, number);
        }
        self.dirty_ways = dirty;
    }

    fn flush_outlet(&mut self, way: Way, number: usize) {
        let sockets = &mut *self.sockets;
        let Some(outlet) = sockets.outlets[way as usize].get_mut(number) else { return };
        let chain = std::mem::replace(&mut outlet.outgoing, Chain::EMPTY);
        let exit = Exit {
            kernel: self.kernel,
            socket: &outlet.socket,
            spill: &mut outlet.spill,
            spill_budget: &mut sockets.spill_budget,
            reports: &mut self.reports,
        };
        let token = Token::Outlet { shard: sockets.shard, way, outlet: number as u32 };
        self.plan = send(exit, &self.outbox, chain, token, std::mem::take(&mut self.plan));
    }

    /// Opens the sockets that a way needs and closes the others, now that its backends may be others
    /// than before. What waits for backends that are gone is given up. A socket that cannot be had
    /// is asked for again with the first datagram that needs it.
    pub fn fit_outlets(&mut self, way: Way, backends: &Backends, cluster: &ClusterConfig) {
        if self.sockets.outlets[way as usize].source != cluster.source {
            self.close_outlets(way);
            self.sockets.outlets[way as usize].source = cluster.source;
        }
        let carrier: fn(BackendId) -> Carrier = match cluster.mode {
            Mode::Session { .. } | Mode::FanOut { reply_from: ReplyFrom::First } => {
                return self.close_outlets(way);
            }
            Mode::OneWay => Carrier::OneWay,
            Mode::FanOut { .. } => Carrier::Copy,
        };
        let needed: Vec<_> = needed(backends, carrier).collect();
        let most = needed.iter().map(|(number, _)| *number).max().map_or(0, |most| most + 1);
        let mut is_needed = vec![false; most];
        needed.iter().for_each(|(number, _)| is_needed[*number] = true);

        let Sockets { outlets, spill_budget, .. } = &mut *self.sockets;
        let outlets = &mut outlets[way as usize];
        outlets.reserve(backends.len());
        outlets.forget_trains();
        let mut unneeded = Vec::new();
        for (number, outlet) in outlets.iter_mut() {
            let stays = is_needed.get(number).is_some_and(|needed| *needed);
            let is_present = |to: SocketAddr| stays && backends.has_address(to);
            let lost = outlet
                .spill
                .take(spill_budget, |waiting| !waiting.destination.is_some_and(is_present));
            self.reports.extend(lost.iter().map(lost_to_backend));
            if !stays {
                unneeded.push(number);
            }
        }
        unneeded.into_iter().for_each(|number| outlets.close(number));
        for (number, v6) in needed {
            if self.sockets.outlets[way as usize].get_mut(number).is_none() {
                let _ = self.open_outlet(way, number, v6);
            }
        }
    }

    /// Closes all sockets of a way. What waits for them is given up.
    pub fn close_outlets(&mut self, way: Way) {
        let Sockets { outlets, spill_budget, .. } = &mut *self.sockets;
        for (_, outlet) in outlets[way as usize].iter_mut() {
            give_up(&mut outlet.spill, spill_budget, &mut self.reports);
        }
        outlets[way as usize].close_all();
    }
}
