//! What one tick is going to send, in one list, chained by socket.

use std::net::SocketAddr;

use flowgate_core::proxy_protocol::{ProxyHeader, Tlvs};
use flowgate_core::{BackendId, Burst, Direction, LocalAddr, SendId};

use super::transmit::SendAccount;
use crate::datapath::role::Role;

/// A burst on its way out.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'t> {
    /// On whose behalf it goes.
    pub role: Role,
    /// What it belongs to.
    pub send_id: SendId,
    /// The backend that it goes to; `None` where it goes to a client.
    pub backend: Option<BackendId>,
    /// Which way it goes.
    pub direction: Direction,
    /// Where to; `None` on a connected socket.
    pub destination: Option<SocketAddr>,
    /// The address to send from, where the socket is bound to a wildcard.
    pub local: Option<LocalAddr>,
    /// The client's address and port, where it is sent from them by a raw socket.
    pub source: Option<SocketAddr>,
    /// What goes in front of every datagram.
    pub prefix: Option<ProxyHeader>,
    /// What of another's header goes between the prefix and each datagram.
    pub tlvs: Tlvs<'t>,
    /// The TOS or traffic-class byte.
    pub tos: u8,
    /// The time to live or hop limit, where that of the socket is not it.
    pub ttl: Option<u8>,
    /// Whether the kernel may be given several datagrams to cut apart.
    pub may_use_gso: bool,
    /// The datagrams.
    pub burst: Burst<'t>,
}

impl Outgoing<'_> {
    /// What goes in front of every datagram, piece by piece; any may be empty.
    pub fn front(&self) -> [&[u8]; 3] {
        let prefix = self.prefix.as_ref().map_or(&[][..], ProxyHeader::as_bytes);
        let [tlvs, more_tlvs] = self.tlvs.parts();
        [prefix, tlvs, more_tlvs]
    }

    /// How many bytes go in front of every datagram.
    pub fn front_len(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.as_bytes().len() + self.tlvs.len())
    }

    /// The length of each datagram but the last, with what goes in front.
    pub fn stride(&self) -> usize {
        self.front_len() + usize::from(self.burst.stride())
    }

    /// All bytes that go out for it, prefixes included.
    pub fn wire_bytes(&self) -> usize {
        self.burst.bytes().len() + self.front_len() * usize::from(self.burst.count())
    }

    /// The length of the last datagram, with what goes in front.
    pub fn last_len(&self) -> usize {
        self.front_len() + self.burst.last_len()
    }

    /// Whether `next` leaves by the same way, so that one message can carry both.
    pub fn goes_with(&self, next: &Self) -> bool {
        let is_alike = (self.tos, self.ttl) == (next.tos, next.ttl);
        // A flow that moves may go on by a socket that both its backends share.
        let is_one_account = SendAccount::of(self) == SendAccount::of(next);
        is_one_account && is_alike && self.may_use_gso && next.may_use_gso
    }
}

/// The bursts of one tick that leave by one socket, as a chain through the [`Outbox`].
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    head: u32,
    tail: u32,
}

const NIL: u32 = u32::MAX;

impl Chain {
    /// A chain without bursts.
    pub const EMPTY: Self = Self { head: NIL, tail: NIL };

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// Where its first datagram is.
    pub const fn start(&self) -> Position {
        Position { item: self.head, datagram: 0 }
    }
}

/// A datagram in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    item: u32,
    datagram: u16,
}

/// All bursts of one tick that wait to be sent. The payload stays where it was received.
#[derive(Debug, Default)]
pub struct Outbox<'t> {
    items: Vec<Outgoing<'t>>,
    next: Vec<u32>,
}

impl<'t> Outbox<'t> {
    /// Appends a burst to the chain of its socket.
    pub fn push(&mut self, chain: &mut Chain, outgoing: Outgoing<'t>) {
        let index = self.items.len() as u32;
        match self.next.get_mut(chain.tail as usize) {
            Some(next) => *next = index,
            None => chain.head = index,
        }
        chain.tail = index;
        self.items.push(outgoing);
        self.next.push(NIL);
    }

    /// Appends a whole chain to another, which has the same socket.
    pub fn append(&mut self, chain: &mut Chain, more: Chain) {
        if more.is_empty() {
            return;
        }
        match self.next.get_mut(chain.tail as usize) {
            Some(next) => *next = more.head,
            None => chain.head = more.head,
        }
        chain.tail = more.tail;
    }

    /// The bursts of a chain from `position` on, in order, each with its own position. The first
    /// is the whole burst, wherever in it the position is.
    pub fn bursts(&self, position: Position) -> impl Iterator<Item = (Position, &Outgoing<'t>)> {
        let mut index = position.item;
        std::iter::from_fn(move || {
            let outgoing = self.items.get(index as usize)?;
            let position = Position { item: index, datagram: 0 };
            index = self.next[index as usize];
            Some((position, outgoing))
        })
    }

    /// The datagrams of a chain from `position` on, in order.
    pub fn datagrams(
        &self,
        position: Position,
    ) -> impl Iterator<Item = (Position, &Outgoing<'t>, &'t [u8])> {
        let mut skip = usize::from(position.datagram);
        self.bursts(position).flat_map(move |(start, outgoing)| {
            let skip = std::mem::take(&mut skip);
            let datagrams = outgoing.burst.datagrams().enumerate().skip(skip);
            datagrams.map(move |(index, bytes)| {
                (Position { item: start.item, datagram: index as u16 }, outgoing, bytes)
            })
        })
    }

    /// Empties it and keeps the memory for a tick with another payload.
    pub fn recycle<'u>(mut self) -> Outbox<'u> {
        self.items.clear();
        self.next.clear();
        // An empty vector of one lifetime becomes one of another, in place.
        let items = self.items.into_iter().map(|_| -> Outgoing<'u> { unreachable!() }).collect();
        Outbox { items, next: self.next }
    }
}

#[cfg(test)]
mod tests {
    use flowgate_core::{FlowId, UpstreamId};

    use super::*;

    #[test]
    fn what_goes_to_two_backends_by_one_socket_makes_no_gso_batch() {
        let send_id = SendId::Flow { flow: FlowId::new(7, 1), upstream: UpstreamId::new(3, 1) };
        let to = |backend| Outgoing {
            role: Role::Primary,
            send_id,
            backend: Some(BackendId::new(backend)),
            direction: Direction::ToBackend,
            destination: Some(([10, 0, 0, backend as u8], 53).into()),
            local: None,
            source: None,
            prefix: None,
            tlvs: Tlvs::NONE,
            tos: 0,
            ttl: None,
            may_use_gso: true,
            burst: Burst::single(b"datagram").unwrap(),
        };
        assert!(to(1).goes_with(&to(1)));
        assert!(!to(1).goes_with(&to(2)));
    }
}
