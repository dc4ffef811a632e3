//! What is to be sent, and what the network has said of it: without the kernel in it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;

use flowgate_core::LocalAddr;

/// Messages to be sent from one socket, in order.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'b> {
    /// What the messages are made of.
    pub pieces: &'b [IoSlice<'b>],
    /// The messages.
    pub messages: &'b [Message],
}

/// One datagram, or a GSO batch, which the kernel cuts up (`UDP_SEGMENT`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which of the batch's pieces make up the payload.
    pub pieces: Range<usize>,
    /// Where to; `None` on a connected socket.
    pub destination: Option<SocketAddr>,
    /// The address to send from, where the socket is bound to a wildcard.
    pub local: Option<LocalAddr>,
    /// The address and port to send from by a raw socket, which is given the destination too.
    pub source: Option<SocketAddr>,
    /// The TOS or traffic-class byte.
    pub tos: u8,
    /// The time to live or hop limit; `None` for the socket's own.
    pub ttl: Option<u8>,
    /// The length of every datagram but the last; 0 for a single datagram.
    pub segment: u16,
}

/// What the network has said of a datagram that a socket has sent (`IP_RECVERR` of `ip(7)`).
#[derive(Debug)]
pub struct QueuedError {
    /// Whom the datagram was for.
    pub remote: Option<SocketAddr>,
    /// What it said.
    pub error: io::Error,
    /// What the datagram began with, as far as that is quoted.
    pub quoted: Vec<u8>,
}
