//! NTP: the client's transmit timestamp, which its server returns as the origin timestamp (RFC 5905,
//! sections 7.3 and 8).
//!
//! Clients fill it with their clock or, better, with random bits (RFC 8633, section 6). Simple ones
//! leave it zero (RFC 4330, section 5), and then it is an identifier as good as any other: while it
//! is taken on one socket, another client's question goes by another one.
//!
//! Only a client (mode 3) and the server that answers it (mode 4) have transactions. Symmetric peers,
//! broadcasts and control messages have none. In interleaved mode a server returns another timestamp;
//! its client then hears nothing, and falls back on what is described here.

use super::TransactionId;

const CLIENT: u8 = 3;
const SERVER: u8 = 4;

/// The header without extensions.
const HEADER: usize = 48;

const ORIGIN: usize = 24;
const TRANSMIT: usize = 40;

/// The identifier of a client's question.
pub(super) fn request_id(datagram: &[u8]) -> Option<TransactionId> {
    timestamp(datagram, CLIENT, TRANSMIT)
}

/// The identifier of a server's answer.
pub(super) fn answer_id(datagram: &[u8]) -> Option<TransactionId> {
    timestamp(datagram, SERVER, ORIGIN)
}

fn timestamp(datagram: &[u8], mode: u8, at: usize) -> Option<TransactionId> {
    let header: &[u8; HEADER] = datagram.first_chunk()?;
    let version = header[0] >> 3 & 0b111;
    // The first had no modes yet, and the fifth has other fields.
    let is_one = (1..=4).contains(&version) && header[0] & 0b111 == mode;
    is_one.then(|| TransactionId::of_bytes(&header[at..at + 8]))
}
