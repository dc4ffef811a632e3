//! The kernel's table of flows that it forwards by itself: a cache, which refuses, forgets, and tells
//! what it has done when it likes.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use flowgate_core::counters::Traffic;
use flowgate_core::{BackendId, FlowId, Instant, ManagerInput, UpstreamId};

use super::{Event, World};
use crate::sim::{Violation, require};

/// How large the datagrams are that the kernel forwards.
const LEN: u64 = 100;

/// One flow in five is refused.
const REFUSES: u64 = 5;

#[derive(Clone, Debug, Default)]
pub(super) struct KernelTable {
    entries: BTreeMap<FlowId, Entry>,
    /// What was forwarded of flows that were recalled, and not told.
    recalled: VecDeque<(FlowId, Entry)>,
    /// The flows whose activity was asked for.
    asked: VecDeque<FlowId>,
    offers: u64,
    /// What went wrong when it forwarded something.
    broken: Option<Violation>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    backend: BackendId,
    upstream: UpstreamId,
    address: SocketAddr,
    /// Whether its gate stands open.
    is_open: bool,
    untold: [Traffic; 2],
    last: Option<Instant>,
}

impl Entry {
    fn told(&mut self, flow: FlowId) -> Event {
        let [to_backend, to_client] = std::mem::take(&mut self.untold);
        let (backend, last) = (self.backend, self.last);
        Event::Told(ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last })
    }
}

impl KernelTable {
    fn nth(&mut self, pick: u8) -> Option<(&FlowId, &mut Entry)> {
        let nth = usize::from(pick).checked_rem(self.entries.len())?;
        self.entries.iter_mut().nth(nth)
    }

    pub(super) fn tell(&mut self, pick: u8) -> Option<Event> {
        let (&flow, entry) = self.nth(pick)?;
        Some(entry.told(flow))
    }

    pub(super) fn tell_all(&mut self) -> Vec<Event> {
        self.entries.iter_mut().map(|(&flow, entry)| entry.told(flow)).collect()
    }

    pub(super) fn forget(&mut self, pick: u8) -> Option<Event> {
        let flow = *self.nth(pick)?.0;
        let mut entry = self.entries.remove(&flow)?;
        Some(entry.told(flow))
    }

    pub(super) fn take_recalled(&mut self) -> Vec<Event> {
        self.recalled.drain(..).map(|(flow, mut entry)| entry.told(flow)).collect()
    }

    /// What is said of a flow that the kernel has never taken names the backend that it has.
    pub(super) fn take_replies(
        &mut self,
        backend_of: impl Fn(FlowId) -> Option<BackendId>,
    ) -> Vec<Event> {
        let mut replies = vec![];
        for flow in self.asked.drain(..) {
            let nothing = || {
                let backend = backend_of(flow)?;
                let address = SocketAddr::from(([0; 4], 0));
                let untold = [Traffic::default(); 2];
                let upstream = UpstreamId::new(u32::MAX, 0);
                Some(Entry { backend, upstream, address, is_open: false, untold, last: None })
            };
            match self.entries.get_mut(&flow) {
                Some(entry) => replies.push(entry.told(flow)),
                None => replies.extend(nothing().map(|mut nothing| nothing.told(flow))),
            }
        }
        replies
    }

    /// What it was found to do wrong.
    pub(super) fn take_violation(&mut self) -> Result<(), Violation> {
        self.broken.take().map_or(Ok(()), Err)
    }

    /// The backend's gate is closed.
    pub(super) fn close_gate(&mut self, backend: BackendId) {
        let of_it = self.entries.values_mut().filter(|entry| entry.backend == backend);
        of_it.for_each(|entry| entry.is_open = false);
    }

    /// The same of a socket.
    pub(super) fn check_socket(&self, upstream: UpstreamId) -> Result<(), Violation> {
        let left = self.entries.iter().find(|(_, entry)| entry.upstream == upstream);
        require!(left.is_none(), "the kernel still forwards {left:?}, whose socket closes");
        Ok(())
    }

    /// A new configuration finds all gates closed.
    pub(super) fn check_all_closed(&self) -> Result<(), Violation> {
        let open = self.entries.iter().find(|(_, entry)| entry.is_open).map(|(flow, _)| flow);
        require!(open.is_none(), "the kernel goes on with {open:?} by a former configuration");
        Ok(())
    }

    pub(super) fn ask(&mut self, flow: FlowId) {
        self.asked.push_back(flow);
    }

    /// A flow comes back to the sockets.
    pub(super) fn recall(&mut self, flow: FlowId) {
        let entry = self.entries.remove(&flow);
        let told = |entry: &Entry| entry.untold != [Traffic::default(); 2];
        self.recalled.extend(entry.filter(told).map(|entry| (flow, entry)));
    }

    /// No flow may end, or lose its socket, that the kernel still forwards.
    pub(super) fn check_gone(&self, flow: FlowId) -> Result<(), Violation> {
        let is_there = self.entries.contains_key(&flow);
        require!(!is_there, "the kernel still forwards {flow:?}, whose socket closes");
        Ok(())
    }
}

impl World {
    /// A flow is offered to the kernel, which may refuse.
    pub(super) fn offload(&mut self, flow: FlowId, socket: UpstreamId) -> Result<(), Violation> {
        let Some(upstream) = self.upstreams.get(&flow) else {
            return Err(Violation(format!("{flow:?} is offered, and has no socket")));
        };
        self.kernel.offers += 1;
        if self.kernel.offers.is_multiple_of(REFUSES) {
            return Ok(());
        }
        let (backend, address) = (upstream.backend, upstream.address);
        let untold = [Traffic::default(); 2];
        let new = Entry { backend, upstream: socket, address, is_open: true, untold, last: None };
        self.kernel.entries.entry(flow).or_insert(new).is_open = true;
        Ok(())
    }

    /// Datagrams go past the sockets: never to a backend that is to have none.
    pub(super) fn forward(&mut self, pick: u8, to_backend: u8, to_client: u8, now: Instant) {
        let Some((&flow, entry)) = self.kernel.nth(pick) else { return };
        if !entry.is_open {
            return;
        }
        let traffic = |datagrams: u8| {
            let datagrams = u64::from(datagrams);
            Traffic { datagrams, bytes: datagrams * LEN }
        };
        entry.untold[0] = entry.untold[0].plus(traffic(to_backend));
        entry.untold[1] = entry.untold[1].plus(traffic(to_client));
        if to_backend > 0 || to_client > 0 {
            entry.last = Some(now);
        }
        let (backend, address) = (entry.backend, entry.address);
        let socket = self.upstreams.get(&flow).map(|upstream| (upstream.backend, upstream.address));
        let checked = match socket {
            Some(socket) if socket == (backend, address) => self.check_receiver(backend, address),
            other => {
                Err(Violation(format!("the kernel sends {flow:?} to {address}, not {other:?}")))
            }
        };
        if let Err(violation) = checked {
            self.kernel.broken = Some(violation);
        }
    }
}
