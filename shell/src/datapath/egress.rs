//! The sockets by which datagrams leave that no flow carries: unconnected, so that nothing that the
//! network says of one backend is told to them, and send-only, since nobody waits for an answer.
//!
//! All that goes to one backend alone leaves by one socket of each family, across clients and
//! backends. A backend that gets copies of what others get too has a socket of its own, so that
//! what waits for it holds up no other.

use std::net::SocketAddr;

use flowgate_core::backend::Backends;
use flowgate_core::config::Source;
use flowgate_core::{BackendId, SendId};

use crate::datapath::send::outbox::Chain;
use crate::datapath::send::queue::SendQueue;

/// One socket, and what is under way on it.
#[derive(Debug)]
pub struct EgressSocket<S> {
    /// The socket.
    pub socket: S,
    /// What this tick sends by it.
    pub outgoing: Chain,
    /// What waits for room in its send buffer.
    pub send_queue: SendQueue,
}

/// What is known of a backend as a destination.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// What this tick sends to it.
    pub outgoing: Chain,
    /// Whether GSO batches have been refused for good on the way to it.
    pub no_gso: bool,
    /// The socket that this tick sends it by.
    pub egress: usize,
}

impl Default for Destination {
    fn default() -> Self {
        Self { outgoing: Chain::EMPTY, no_gso: false, egress: 0 }
    }
}

/// The sockets of one way, by number: the shared ones, then one for each backend, by its index.
#[derive(Debug)]
pub struct EgressSockets<S> {
    egress_sockets: Vec<Option<EgressSocket<S>>>,
    destinations: Vec<Destination>,
    /// What they are bound to.
    pub source: Source,
}

impl<S> Default for EgressSockets<S> {
    fn default() -> Self {
        Self { egress_sockets: Vec::new(), destinations: Vec::new(), source: Source::Any }
    }
}

/// The numbers of the sockets that backends share.
const SHARED_V4: usize = 0;
const SHARED_V6: usize = 1;
const SHARED: usize = 2;

/// The number of the socket by which something leaves that no flow carries.
pub const fn egress_number_of(send_id: SendId, address: SocketAddr) -> Option<(BackendId, usize)> {
    match send_id {
        SendId::Flow { .. } => None,
        SendId::OneWay(backend) if address.is_ipv6() => Some((backend, SHARED_V6)),
        SendId::OneWay(backend) => Some((backend, SHARED_V4)),
        SendId::Copy(backend) => Some((backend, SHARED + backend.index())),
    }
}

/// Whether a socket can have this number where there are this many backends.
pub const fn is_number(number: usize, backends: usize) -> bool {
    number < SHARED + backends
}

impl<S> EgressSockets<S> {
    /// Makes room for this many backends.
    #[inline]
    pub fn reserve(&mut self, backends: usize) {
        if backends > self.destinations.len() {
            self.grow(backends);
        }
    }

    fn grow(&mut self, backends: usize) {
        self.destinations.resize(backends, Destination::default());
        let egress_sockets = SHARED + backends;
        self.egress_sockets.resize_with(egress_sockets, || None);
    }

    /// The socket of a number, if it is open.
    pub fn get_mut(&mut self, number: usize) -> Option<&mut EgressSocket<S>> {
        self.egress_sockets.get_mut(number)?.as_mut()
    }

    /// Takes in a socket under a number for which there is room.
    pub fn open(&mut self, number: usize, socket: S) {
        if let Some(egress) = self.egress_sockets.get_mut(number) {
            *egress = Some(EgressSocket {
                socket,
                outgoing: Chain::EMPTY,
                send_queue: SendQueue::default(),
            });
        }
    }

    /// Takes in a socket under a number, with what waits for it.
    pub fn restore(&mut self, number: usize, socket: S, send_queue: SendQueue) {
        self.reserve((number + 1).saturating_sub(SHARED).max(1));
        if let Some(egress) = self.egress_sockets.get_mut(number) {
            *egress = Some(EgressSocket { socket, outgoing: Chain::EMPTY, send_queue });
        }
    }

    /// Closes a socket.
    pub fn close(&mut self, number: usize) {
        if let Some(egress) = self.egress_sockets.get_mut(number) {
            *egress = None;
        }
    }

    /// A backend as a destination, if there is room for it.
    pub fn destination_mut(&mut self, backend: BackendId) -> Option<&mut Destination> {
        self.destinations.get_mut(backend.index())
    }

    /// A backend and the egress socket that this tick sends it by.
    pub fn path_to(&mut self, backend: usize) -> Option<(&mut Destination, &mut EgressSocket<S>)> {
        let destination = self.destinations.get_mut(backend)?;
        let egress = self.egress_sockets.get_mut(destination.egress)?.as_mut()?;
        Some((destination, egress))
    }

    /// All open sockets with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &EgressSocket<S>)> {
        self.egress_sockets.iter().enumerate().filter_map(|(n, egress)| Some((n, egress.as_ref()?)))
    }

    /// The same, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut EgressSocket<S>)> {
        self.egress_sockets
            .iter_mut()
            .enumerate()
            .filter_map(|(n, egress)| Some((n, egress.as_mut()?)))
    }

    /// Closes all of them.
    pub fn close_all(&mut self) {
        self.egress_sockets.iter_mut().for_each(|egress| *egress = None);
    }

    /// Forgets which ways take no GSO batches.
    pub fn forget_gso_refusals(&mut self) {
        self.destinations.iter_mut().for_each(|destination| destination.no_gso = false);
    }

    /// How many datagrams wait for room in send buffers.
    pub fn queued(&self) -> usize {
        self.egress_sockets.iter().flatten().map(|egress| egress.send_queue.len()).sum()
    }
}

/// The sockets by which datagrams to these backends leave: for each backend the number, and whether
/// it is of IPv6.
pub fn needed(
    backends: &Backends,
    send_id: fn(BackendId) -> SendId,
) -> impl Iterator<Item = (usize, bool)> {
    let present = backends.iter().filter(|(_, backend)| !backend.is_removed());
    present.filter_map(move |(id, backend)| {
        let (_, number) = egress_number_of(send_id(id), backend.address())?;
        Some((number, backend.address().is_ipv6()))
    })
}
