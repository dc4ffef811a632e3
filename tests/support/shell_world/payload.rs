//! Payload that says what it is, so that wherever it turns up it can be judged.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use flowgate_core::Direction;

use super::Shape;

/// Direction, TOS, party, number, length.
pub(super) const LEN: usize = 1 + 1 + 4 + 4 + 4;

/// A PROXY v2 header of IPv4: 16 bytes, two addresses, two ports.
const PROXY_LEN: usize = 28;

/// What a datagram says of itself, before a filling that says it again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub(super) direction: Direction,
    pub(super) tos: u8,
    /// The client that sent it, or that it is for.
    pub(super) party: u32,
    /// The how-many-th it is, of its client's requests or of all replies.
    pub(super) number: u32,
}

impl Payload {
    fn write(self, len: usize) -> Vec<u8> {
        let mut bytes = vec![self.direction as u8, self.tos];
        for word in [self.party, self.number, len as u32] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.resize(len, self.filling());
        bytes
    }

    /// What a datagram says; `None` unless it is as long as when it was written, and unharmed.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (header, filling) = bytes.split_first_chunk::<LEN>()?;
        let word =
            |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap_or_default());
        let direction = Direction::ALL.into_iter().find(|d| *d as u8 == header[0])?;
        let payload = Self { direction, tos: header[1], party: word(2), number: word(6) };
        let is_whole = word(10) as usize == bytes.len();
        let is_unharmed = filling.iter().all(|byte| *byte == payload.filling());
        (is_whole && is_unharmed).then_some(payload)
    }

    const fn filling(self) -> u8 {
        (self.party.wrapping_mul(31) ^ self.number) as u8
    }
}

/// Datagrams of a shape side by side, and the length of each; 0 where there is one.
pub(super) fn train(shape: Shape, mut next: impl FnMut() -> Payload) -> (Vec<u8>, u16) {
    let len = shape.len.max(LEN);
    let last = len.saturating_sub(shape.short_by).max(LEN);
    let mut bytes = Vec::new();
    for _ in 1..shape.datagrams {
        bytes.extend(next().write(len));
    }
    bytes.extend(next().write(last));
    (bytes, if shape.datagrams > 1 { len as u16 } else { 0 })
}

/// Takes a PROXY v2 header off a datagram, if it has one, and says which client and which
/// destination it names.
pub(super) fn strip_proxy_header(bytes: &[u8]) -> (Option<(SocketAddr, SocketAddr)>, &[u8]) {
    let Some((header, rest)) = bytes.split_at_checked(PROXY_LEN) else {
        return (None, bytes);
    };
    if !header.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
        return (None, bytes);
    }
    let ip = |at: usize| {
        IpAddr::from(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]))
    };
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    (Some(((ip(16), port(24)).into(), (ip(20), port(26)).into())), rest)
}
