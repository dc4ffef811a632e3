//! One socket of a [`FakeKernel`](super::FakeKernel): its queues, and the rules of sending.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use flowgate::datapath::token::Token;
use flowgate::sys::arena::RecvMeta;
use flowgate::sys::message::{Batch, Message};
use flowgate_core::{Burst, Direction, LocalAddr};
use nix::errno::Errno;

/// The most datagrams that every kernel with `UDP_SEGMENT` takes in one GSO batch.
const MAX_SEGMENTS: usize = 64;

/// The longest payload of a UDP datagram over IPv4, and of a GSO batch.
const MAX_PAYLOAD: usize = 65_507;

/// Datagrams on their way into a socket: one, or several joined by `UDP_GRO`.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The payload.
    pub bytes: Vec<u8>,
    /// The length of each datagram; 0 for a single one.
    pub segment: u16,
    /// Who sent it.
    pub source: SocketAddr,
    /// Where to, if the socket asks for that.
    pub local: Option<LocalAddr>,
    /// The TOS byte.
    pub tos: u8,
    /// The time to live that is left.
    pub ttl: u8,
    /// Whether the kernel says that payload was cut off.
    pub is_truncated: bool,
    /// Whether the kernel says that control messages were cut off.
    pub is_control_truncated: bool,
}

impl Incoming {
    /// Whole datagrams.
    pub const fn new(source: SocketAddr, bytes: Vec<u8>, segment: u16) -> Self {
        Self {
            bytes,
            segment,
            source,
            local: None,
            tos: 0,
            ttl: 64,
            is_truncated: false,
            is_control_truncated: false,
        }
    }

    pub(super) fn meta(&self) -> RecvMeta {
        RecvMeta {
            source: Some(self.source),
            local: self.local,
            tos: self.tos,
            ttl: self.ttl,
            segment: self.segment,
            is_truncated: self.is_truncated,
            is_control_truncated: self.is_control_truncated,
            ..RecvMeta::default()
        }
    }

    /// How many datagrams there are.
    pub fn datagrams(&self) -> usize {
        Burst::segmented(&self.bytes, self.segment).map_or(1, |burst| usize::from(burst.count()))
    }
}

/// A datagram that the kernel took.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sent {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Where to; `None` on a connected socket.
    pub destination: Option<SocketAddr>,
    /// The source address that was asked for.
    pub local: Option<LocalAddr>,
    /// The TOS byte.
    pub tos: u8,
    /// The time to live: that of the socket, or what went beside it.
    pub ttl: u8,
}

/// How a socket was used to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// System calls.
    pub calls: u64,
    /// Messages taken.
    pub messages: u64,
    /// Those of them that were GSO batches.
    pub trains: u64,
}

#[derive(Debug)]
pub(super) struct SimulatedSocket {
    pub(super) peer: Option<SocketAddr>,
    /// The client whose own socket it is.
    pub(super) client: Option<SocketAddr>,
    /// Whether its client has been given back to the listener.
    pub(super) has_left: bool,
    pub(super) token: Token,
    pub(super) is_open: bool,
    pub(super) is_watched: bool,
    pub(super) incoming: VecDeque<Incoming>,
    pub(super) pending_error: Option<Errno>,
    /// How many datagrams it has lost since its receive buffer was full.
    pub(super) drops: u32,
    /// How many more datagrams its send buffer holds.
    pub(super) room: usize,
    pub(super) refuses_gso: BTreeMap<SocketAddr, Errno>,
    pub(super) sent: Vec<Sent>,
    pub(super) usage: Usage,
    /// The time to live that it sends with.
    pub(super) ttl: u8,
    /// How often that was set since it was opened.
    pub(super) ttl_changes: u64,
}

impl SimulatedSocket {
    pub(super) const fn new(peer: Option<SocketAddr>, token: Token) -> Self {
        Self {
            peer,
            client: None,
            has_left: false,
            token,
            is_open: true,
            is_watched: false,
            incoming: VecDeque::new(),
            pending_error: None,
            drops: 0,
            room: usize::MAX,
            refuses_gso: BTreeMap::new(),
            sent: Vec::new(),
            ttl: 64,
            ttl_changes: 0,
            usage: Usage { calls: 0, messages: 0, trains: 0 },
        }
    }

    /// Which way a datagram goes that is read from it.
    pub(super) const fn direction(&self) -> Direction {
        if self.peer.is_some() { Direction::ToClient } else { Direction::ToBackend }
    }

    /// Takes one message, or says why not, as `udp_sendmsg` would.
    pub(super) fn send(&mut self, message: &Message, datagrams: Vec<Vec<u8>>) -> Result<(), Errno> {
        if let Some(errno) = self.pending_error.take() {
            return Err(errno);
        }
        if self.room == 0 {
            return Err(Errno::EAGAIN);
        }
        let to = message.destination.or(self.peer).ok_or(Errno::EDESTADDRREQ)?;
        let bytes: usize = datagrams.iter().map(Vec::len).sum();
        let in_train = message.segment > 0;
        if bytes > MAX_PAYLOAD {
            return Err(Errno::EMSGSIZE);
        }
        if in_train {
            if datagrams.len() > MAX_SEGMENTS {
                return Err(Errno::EINVAL);
            }
            if let Some(&refusal) = self.refuses_gso.get(&to) {
                return Err(refusal);
            }
        }
        self.usage.messages += 1;
        self.usage.trains += u64::from(in_train);
        self.room = self.room.saturating_sub(datagrams.len());
        let ttl = message.ttl.unwrap_or(self.ttl);
        self.sent.extend(datagrams.into_iter().map(|bytes| Sent {
            bytes,
            destination: message.destination,
            local: message.local,
            tos: message.tos,
            ttl,
        }));
        Ok(())
    }
}

/// Cuts a message apart, as the kernel or the network card would.
pub(super) fn datagrams_of(batch: Batch<'_>, message: &Message) -> Vec<Vec<u8>> {
    let pieces = &batch.pieces[message.pieces.clone()];
    let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
    match message.segment {
        0 => vec![bytes],
        segment => bytes.chunks(usize::from(segment)).map(<[u8]>::to_vec).collect(),
    }
}
