//! How bursts become messages: neighbours of one flow joined into GSO batches that the kernel cuts
//! apart (UDP GSO, `UDP_SEGMENT`), without copying.

use std::io::IoSlice;

use super::outbox::{Outbox, Outgoing, Position};
use crate::sys::message::{Batch, Message};

/// The most datagrams in one GSO batch; older kernels take no more (`UDP_MAX_SEGMENTS`).
const MAX_DATAGRAMS: usize = 64;

/// The most bytes in one GSO batch: a full IP packet less the headers of IPv6 and UDP, which is what
/// the kernel takes for either family.
const MAX_BYTES: usize = 65_535 - 40 - 8;

/// The most messages that are planned at once; what is left is planned after they are sent.
const MAX_MESSAGES: usize = 256;

/// Messages to be sent from one socket, and which datagrams each carries.
#[derive(Debug, Default)]
pub struct Plan<'q> {
    pieces: Vec<IoSlice<'q>>,
    messages: Vec<Message>,
    segments: Vec<Segments>,
}

/// What one message carries.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    /// Its first datagram; the others follow in the chain.
    pub start: Position,
    /// How many datagrams.
    pub datagrams: usize,
    /// Their payload bytes, without prefixes.
    pub bytes: usize,
    /// Their bytes with prefixes.
    wire_bytes: usize,
    /// The length of every datagram but the last.
    stride: usize,
    /// The length of the last one.
    last_len: usize,
}

impl Segments {
    fn of(start: Position, outgoing: &Outgoing<'_>) -> Self {
        Self {
            start,
            datagrams: usize::from(outgoing.burst.count()),
            bytes: outgoing.burst.bytes().len(),
            wire_bytes: outgoing.wire_bytes(),
            stride: outgoing.stride(),
            last_len: outgoing.last_len(),
        }
    }

    /// Whether a burst can follow in the same GSO batch: all datagrams of a GSO batch are equally long
    /// but the last, which may be shorter and is not empty.
    fn can_be_followed_by(&self, next: &Outgoing<'_>) -> bool {
        let is_open = self.last_len == self.stride && next.stride() > 0;
        let is_tail = next.burst.count() == 1 && next.stride() < self.stride;
        is_open
            && (next.stride() == self.stride || is_tail)
            && self.datagrams + usize::from(next.burst.count()) <= MAX_DATAGRAMS
            && self.wire_bytes + next.wire_bytes() <= MAX_BYTES
    }

    fn take_up(&mut self, next: &Outgoing<'_>) {
        self.datagrams += usize::from(next.burst.count());
        self.bytes += next.burst.bytes().len();
        self.wire_bytes += next.wire_bytes();
        self.last_len = next.last_len();
    }
}

impl<'q> Plan<'q> {
    /// The messages that have not been sent yet, from number `first` on.
    pub fn batch(&self, first: usize) -> Batch<'_> {
        Batch { pieces: &self.pieces, messages: &self.messages[first..] }
    }

    /// What message number `index` carries; `None` beyond the last.
    pub fn segments(&self, index: usize) -> Option<&Segments> {
        self.segments.get(index)
    }

    /// Whether message number `index` is a GSO batch, which can be sent singly instead.
    pub fn is_gso_batch(&self, index: usize) -> bool {
        self.messages.get(index).is_some_and(|message| message.segment > 0)
    }

    /// Plans the bursts of a chain from `start` on, joined into GSO batches where they can be, and
    /// returns where planning stopped, if the chain goes on.
    pub fn batches(&mut self, outbox: &'q Outbox<'_>, start: Position) -> Option<Position> {
        let mut last: Option<&Outgoing<'_>> = None;
        for (position, outgoing) in outbox.bursts(start) {
            if last.is_some_and(|last| last.goes_with(outgoing)) && self.extend(outgoing) {
                continue;
            }
            if self.messages.len() >= MAX_MESSAGES {
                return Some(position);
            }
            if outgoing.burst.count() == 1 || fits_one_gso_batch(outgoing) {
                self.begin(position, outgoing);
            } else {
                // Too long for one GSO batch, or none is allowed: datagram by datagram.
                self.singles(outbox, position, usize::from(outgoing.burst.count()));
            }
            last = Some(outgoing);
        }
        None
    }

    /// Plans `datagrams` datagrams from `start` on as messages of their own.
    pub fn singles(&mut self, outbox: &'q Outbox<'_>, start: Position, datagrams: usize) {
        for (position, outgoing, bytes) in outbox.datagrams(start).take(datagrams) {
            self.single(position, outgoing, bytes);
        }
    }

    /// Empties it and keeps the memory for another outbox.
    pub fn recycle<'r>(mut self) -> Plan<'r> {
        self.pieces.clear();
        self.messages.clear();
        self.segments.clear();
        // An empty vector of one lifetime becomes one of another, in place.
        let pieces = self.pieces.into_iter().map(|_| -> IoSlice<'r> { unreachable!() }).collect();
        Plan { pieces, messages: self.messages, segments: self.segments }
    }

    fn begin(&mut self, start: Position, outgoing: &'q Outgoing<'_>) {
        let first_piece = self.pieces.len();
        self.push_pieces(outgoing);
        let segment = if outgoing.burst.count() > 1 { outgoing.stride() as u16 } else { 0 };
        self.push_message(first_piece, outgoing, segment);
        self.segments.push(Segments::of(start, outgoing));
    }

    /// Joins a burst to the last message, if the two make a GSO batch.
    fn extend(&mut self, outgoing: &'q Outgoing<'_>) -> bool {
        let (Some(message), Some(segments)) = (self.messages.last_mut(), self.segments.last_mut())
        else {
            return false;
        };
        if !segments.can_be_followed_by(outgoing) {
            return false;
        }
        segments.take_up(outgoing);
        message.segment = segments.stride as u16;
        self.push_pieces(outgoing);
        if let Some(message) = self.messages.last_mut() {
            message.pieces.end = self.pieces.len();
        }
        true
    }

    fn single(&mut self, start: Position, outgoing: &'q Outgoing<'_>, bytes: &'q [u8]) {
        let first_piece = self.pieces.len();
        self.push_front(outgoing);
        self.pieces.push(IoSlice::new(bytes));
        self.push_message(first_piece, outgoing, 0);
        let len = outgoing.front_len() + bytes.len();
        let segments = Segments {
            start,
            datagrams: 1,
            bytes: bytes.len(),
            wire_bytes: len,
            stride: len,
            last_len: len,
        };
        self.segments.push(segments);
    }

    fn push_pieces(&mut self, outgoing: &'q Outgoing<'_>) {
        if outgoing.prefix.is_none() {
            self.pieces.push(IoSlice::new(outgoing.burst.bytes()));
            return;
        }
        for datagram in outgoing.burst.datagrams() {
            self.push_front(outgoing);
            self.pieces.push(IoSlice::new(datagram));
        }
    }

    fn push_front(&mut self, outgoing: &'q Outgoing<'_>) {
        if outgoing.prefix.is_some() {
            let pieces = outgoing.front().into_iter().filter(|piece| !piece.is_empty());
            self.pieces.extend(pieces.map(IoSlice::new));
        }
    }

    fn push_message(&mut self, first_piece: usize, outgoing: &Outgoing<'_>, segment: u16) {
        self.messages.push(Message {
            pieces: first_piece..self.pieces.len(),
            destination: outgoing.destination,
            local: outgoing.local,
            source: outgoing.source,
            tos: outgoing.tos,
            ttl: outgoing.ttl,
            segment,
        });
    }
}

fn fits_one_gso_batch(outgoing: &Outgoing<'_>) -> bool {
    outgoing.may_use_gso
        && usize::from(outgoing.burst.count()) <= MAX_DATAGRAMS
        && outgoing.wire_bytes() <= MAX_BYTES
}
