//! STUN: the 96 bits of the transaction ID (RFC 8489, section 5).
//!
//! Clients choose them at random, so that they name a transaction by themselves. A request has one,
//! and so have its success and error responses; an indication is answered by nobody.

use super::{BYTES, TransactionId};

/// Type, length, magic cookie, transaction ID.
const HEADER: usize = 20;

/// What tells STUN from its forerunner (RFC 3489), which had no such identifiers.
const MAGIC_COOKIE: u32 = 0x2112_A442;

/// The two bits of a type that are its class.
const CLASS: u16 = 0x0110;
const REQUEST: u16 = 0x0000;
const SUCCESS: u16 = 0x0100;
const ERROR: u16 = 0x0110;

/// The identifier of a request.
pub(super) fn request_id(datagram: &[u8]) -> Option<TransactionId> {
    let (class, id) = read(datagram)?;
    (class == REQUEST).then_some(id)
}

/// The identifier of a response, whether of success or of an error.
pub(super) fn answer_id(datagram: &[u8]) -> Option<TransactionId> {
    let (class, id) = read(datagram)?;
    matches!(class, SUCCESS | ERROR).then_some(id)
}

/// Class and identifier of a message that fills its datagram.
fn read(datagram: &[u8]) -> Option<(u16, TransactionId)> {
    let (header, attributes) = datagram.split_first_chunk::<HEADER>()?;
    let (kind, rest) = header.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (cookie, id) = rest.split_first_chunk()?;
    let id: &[u8; BYTES] = id.try_into().ok()?;
    let (kind, length) = (u16::from_be_bytes(*kind), u16::from_be_bytes(*length));
    let is_one = kind >> 14 == 0
        && u32::from_be_bytes(*cookie) == MAGIC_COOKIE
        && length % 4 == 0
        && usize::from(length) == attributes.len();
    is_one.then(|| (kind & CLASS, TransactionId::from_bytes(*id)))
}
