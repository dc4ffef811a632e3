//! DNS (RFC 1035): the name servers of the root, which every resolver knows.
//!
//! Every answer but SERVFAIL shows a server at work. A server that is authoritative for its own
//! zones only says REFUSED to this question when it is well.

/// `QR`: it is a response.
const RESPONSE: u8 = 0x80;
/// `Opcode`, which is 0 for a standard query.
const OPCODE: u8 = 0x78;
/// `RD`: the server may ask others.
const RECURSION_DESIRED: u8 = 0x01;
/// `RCODE`.
const CODE: u8 = 0x0f;
/// The server cannot answer.
const SERVER_FAILURE: u8 = 2;

const HEADER: usize = 12;

/// The root, type NS, class IN.
const ROOT_NAME_SERVERS: [u8; 5] = [0, 0, 2, 0, 1];

/// A question under way.
#[derive(Clone, Copy, Debug)]
pub struct DnsQuery {
    id: u16,
}

impl DnsQuery {
    /// The question with that id.
    pub const fn new(id: u16) -> Self {
        Self { id }
    }

    /// The datagram that asks it.
    pub fn bytes(&self) -> Vec<u8> {
        let [high, low] = self.id.to_be_bytes();
        let header = [high, low, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        [&header[..], &ROOT_NAME_SERVERS].concat()
    }

    /// Whether a datagram answers it. A server may leave the question out when it refuses it; it
    /// must not answer another.
    pub fn accepts(&self, answer: &[u8]) -> bool {
        let Some((header, rest)) = answer.split_first_chunk::<HEADER>() else {
            return false;
        };
        let questions = u16::from_be_bytes([header[4], header[5]]);
        header[..2] == self.id.to_be_bytes()
            && header[2] & RESPONSE != 0
            && header[2] & OPCODE == 0
            && header[3] & CODE != SERVER_FAILURE
            && (questions == 0 || (questions == 1 && rest.starts_with(&ROOT_NAME_SERVERS)))
    }
}
