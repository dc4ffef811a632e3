//! Where datagrams wait for a socket whose send buffer is full.
//!
//! Only here is payload copied, and only when the kernel would have blocked. Every queue is
//! bounded, and so are all queues of a shard together: beyond that, datagrams are dropped and
//! counted, as a router would.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;

use flowgate_core::snapshot::address;
use flowgate_core::{BackendId, Direction, LocalAddr, SendId};
use serde::{Deserialize, Serialize};

use super::outbox::Outgoing;
use super::transmit::SendAccount;
use crate::datapath::role::Role;
use crate::sys::message::{Batch, Message};

/// The most datagrams that wait for one socket.
pub const MAX_DATAGRAMS: usize = 1_024;

/// The most bytes that wait for one socket.
pub const MAX_BYTES: usize = 1 << 20;

/// The datagrams that wait for one socket, oldest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SendQueue {
    waiting: VecDeque<QueuedDatagram>,
    bytes: usize,
    /// Whether the poll was asked to tell when the socket can be written to again.
    #[serde(skip)]
    pub is_watched: bool,
}

/// A datagram that waits, with a copy of its bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueuedDatagram {
    /// On whose behalf it goes.
    pub role: Role,
    /// What it belongs to.
    pub send_id: SendId,
    /// The backend that it goes to; `None` where it goes to a client.
    pub backend: Option<BackendId>,
    /// Its payload bytes, without the prefix.
    pub bytes: usize,
    /// Where to; `None` on a connected socket.
    #[serde(with = "address::optional")]
    pub destination: Option<SocketAddr>,
    local: Option<LocalAddr>,
    #[serde(with = "address::optional")]
    source: Option<SocketAddr>,
    tos: u8,
    ttl: Option<u8>,
    wire: Box<[u8]>,
}

impl SendQueue {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many datagrams wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many bytes wait, with what goes in front of the datagrams.
    pub const fn bytes_on_the_wire(&self) -> usize {
        self.bytes
    }

    /// Copies a datagram to the end of the queue; `false` if the queue, or the `budget` in bytes
    /// of all queues together, has no room for it.
    pub fn push(&mut self, outgoing: &Outgoing<'_>, datagram: &[u8], budget: &mut usize) -> bool {
        let wire = [&outgoing.front().concat(), datagram].concat().into_boxed_slice();
        self.push_wire(outgoing, wire, datagram.len(), budget)
    }

    /// Puts what is copied already to the end: a datagram of `bytes` bytes behind what goes in front of
    /// it.
    pub fn push_wire(
        &mut self,
        outgoing: &Outgoing<'_>,
        wire: Box<[u8]>,
        bytes: usize,
        budget: &mut usize,
    ) -> bool {
        let len = wire.len();
        if self.waiting.len() >= MAX_DATAGRAMS || self.bytes + len > MAX_BYTES || len > *budget {
            return false;
        }
        *budget -= len;
        self.bytes += len;
        self.waiting.push_back(QueuedDatagram {
            role: outgoing.role,
            send_id: outgoing.send_id,
            backend: outgoing.backend,
            bytes,
            destination: outgoing.destination,
            local: outgoing.local,
            source: outgoing.source,
            tos: outgoing.tos,
            ttl: outgoing.ttl,
            wire,
        });
        true
    }

    /// Whose the oldest datagram is, where all go in this direction.
    pub fn first_account(&self, direction: Direction) -> Option<SendAccount> {
        self.waiting.front().map(|first| first.account(direction))
    }

    /// Takes out the datagrams that `is_lost` says are not to be sent, and gives their bytes back to
    /// the budget.
    pub fn take(
        &mut self,
        budget: &mut usize,
        is_lost: impl Fn(&QueuedDatagram) -> bool,
    ) -> VecDeque<QueuedDatagram> {
        let waiting = std::mem::take(&mut self.waiting);
        let (lost, kept): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(is_lost);
        self.waiting = kept;
        let freed: usize = lost.iter().map(|lost| lost.wire.len()).sum();
        *budget += freed;
        self.bytes -= freed;
        lost
    }

    /// Gives the oldest datagram to `send` as a batch of one.
    pub fn with_first<R>(&self, send: impl FnOnce(Batch<'_>) -> R) -> Option<R> {
        let first = self.waiting.front()?;
        let message = Message {
            pieces: 0..1,
            destination: first.destination,
            local: first.local,
            source: first.source,
            tos: first.tos,
            ttl: first.ttl,
            segment: 0,
        };
        let pieces = [IoSlice::new(&first.wire)];
        Some(send(Batch { pieces: &pieces, messages: std::slice::from_ref(&message) }))
    }

    /// Takes out the oldest datagram and gives its bytes back to the budget.
    pub fn pop(&mut self, budget: &mut usize) -> Option<QueuedDatagram> {
        let first = self.waiting.pop_front()?;
        *budget += first.wire.len();
        self.bytes -= first.wire.len();
        Some(first)
    }
}

impl QueuedDatagram {
    /// Whose it is, where it goes in this direction.
    pub const fn account(&self, direction: Direction) -> SendAccount {
        let &Self { role, send_id, backend, .. } = self;
        SendAccount { role, send_id, backend, direction }
    }
}

#[cfg(test)]
mod tests {
    use flowgate_core::proxy_protocol::Tlvs;
    use flowgate_core::{Burst, snapshot};

    use super::*;

    #[test]
    fn a_queue_that_is_handed_over_keeps_its_order() {
        let (mut queue, mut budget) = (SendQueue::default(), MAX_BYTES);
        for number in 0..9 {
            let bytes = [number; 5];
            let outgoing = Outgoing {
                role: Role::Primary,
                send_id: SendId::OneWay(BackendId::new(0)),
                backend: Some(BackendId::new(0)),
                direction: Direction::ToBackend,
                destination: Some(([10, 0, 0, 1], 53).into()),
                local: None,
                source: None,
                prefix: None,
                tlvs: Tlvs::NONE,
                tos: number,
                ttl: Some(7),
                may_use_gso: true,
                burst: Burst::single(&bytes).unwrap(),
            };
            assert!(queue.push(&outgoing, &bytes, &mut budget));
        }
        let mut other: SendQueue = snapshot::decode(&snapshot::encode(&queue)).unwrap();
        assert_eq!((other.len(), other.bytes_on_the_wire()), (9, 45));
        for number in 0..9 {
            let first = other.pop(&mut budget).unwrap();
            assert_eq!((first.tos, &first.wire[..]), (number, &[number; 5][..]));
        }
        assert_eq!(budget, MAX_BYTES);
    }
}
