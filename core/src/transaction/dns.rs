//! DNS: the 16 bits of the header's ID, and the question section.
//!
//! 16 bits alone do not tell transactions apart: a busy resolver has used them all up within a
//! second, and who forges an answer guesses them. An answer repeats the question (RFC 1035, section
//! 4.1.2; RFC 5452, section 9.1 has clients compare it), so the question belongs to the identifier,
//! byte by byte as it was sent: name, in the letters' case that the client has chosen, type and class.
//! What is left of it is a hash of 80 bits beside the ID.
//!
//! Servers answer some questions that they cannot read (FORMERR) by a header without a question.
//! Such an answer has the identifier of a question that had none either. To let it pass by its ID
//! alone would not be safe: it could be a late answer to an earlier question of another's with
//! the same ID, and is the shortest thing that one can forge. And it is rarely missed, since what
//! has no question that can be read is not forwarded.

use super::{BYTES, TransactionId, digest};

/// ID, flags, and four counts.
const HEADER: usize = 12;

/// The bit of the flags' first byte that is set in answers.
const QR: u8 = 0x80;

/// The longest name with its lengths and the root (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;

/// The longest label. A length beyond it is no label but a pointer, which has nowhere to point to in
/// the first name of a message.
const MAX_LABEL: u8 = 63;

/// Type and class.
const TYPE_AND_CLASS: usize = 4;

/// The identifier of a query, whatever its opcode.
pub(super) fn request_id(datagram: &[u8]) -> Option<TransactionId> {
    id(datagram, 0)
}

/// The identifier of a response.
pub(super) fn answer_id(datagram: &[u8]) -> Option<TransactionId> {
    id(datagram, QR)
}

fn id(datagram: &[u8], wanted_qr: u8) -> Option<TransactionId> {
    let (&[id_high, id_low, flags, _, count_high, count_low, ..], body) =
        datagram.split_first_chunk::<HEADER>()?;
    if flags & QR != wanted_qr {
        return None;
    }
    let question = match (count_high, count_low) {
        // A client may ask for a cookie only (RFC 7873, section 5.4).
        (0, 0) => &[],
        (0, 1) => question(body)?,
        // No message has more than one (RFC 9619).
        _ => return None,
    };
    let mut bytes = [0; BYTES];
    let (id, hash) = bytes.split_at_mut(2);
    id.copy_from_slice(&[id_high, id_low]);
    hash.copy_from_slice(&digest(question).to_be_bytes()[..BYTES - 2]);
    Some(TransactionId::from_bytes(bytes))
}

/// The question that a message's body begins with: a name, a type and a class.
fn question(body: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    loop {
        let length = *body.get(end)?;
        end += 1;
        if length == 0 {
            break;
        }
        end += usize::from(length);
        // The root has to fit in, too.
        if length > MAX_LABEL || end >= MAX_NAME {
            return None;
        }
    }
    body.get(..end + TYPE_AND_CLASS)
}
