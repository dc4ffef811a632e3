//! What a new flow is placed by: its client's address, or a key in its first datagram.
//!
//! Keys are of two kinds. What a server has chosen, and its client repeats, *names* a backend: QUIC's
//! connection ids, WireGuard's indices, the connection ids of DTLS. It is read from the id itself
//! ([`flowgate_quic_lb`]), or remembered since the server announced it. Any other key is *hashed*, as
//! an address is. Where a datagram has no key, or one that names no backend, its client's address
//! decides.
//!
//! An id chooses the backend of a new flow. A client that goes on from another address is a new flow
//! to its former backend, which sees a new path and validates it; nothing that was sent from one
//! address changes where answers to another one go.
//!
//! Each module has one kind of key: a pure function of a datagram, which it does not copy.

pub mod dtls_cid;
pub(crate) mod host;
pub(crate) mod learned;
pub mod offset;
mod placement;
pub mod quic;
mod quic_lb;
#[cfg(feature = "serde")]
pub(crate) mod server_id;
pub mod sip_call_id;
#[cfg(feature = "snapshot")]
mod snapshot;
pub mod wireguard;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

pub use placement::{Explanation, Placed, PlacedBy, explain};
pub(crate) use placement::{Place, Placement};
pub use quic_lb::QuicLb;

/// What a new flow is placed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum Affinity {
    /// The client's address: all flows of one host go to one backend.
    SourceIp,
    /// Address and port: the flows of one host spread.
    SourceIpPort,
    /// The address, and of a backend its address without the port: clusters on the same hosts send
    /// a client to the same host.
    Host,
    /// QUIC's connection ids.
    Quic,
    /// WireGuard's session indices.
    WireGuard,
    /// The connection ids of DTLS.
    DtlsCid {
        /// How many bytes they have.
        length: u8,
    },
    /// SIP's Call-ID.
    SipCallId,
    /// Bytes at a fixed place.
    Offset {
        /// How many bytes lie before them.
        offset: u16,
        /// How many they are.
        length: u8,
    },
}

/// What a client's datagram says of where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'p> {
    /// Nothing.
    Nothing,
    /// It asks for something new, by an id that the client has made up.
    Opening {
        /// The whole id.
        id: &'p [u8],
    },
    /// It belongs to something that its server knows.
    Underway {
        /// The id by which the server knows it: empty where there is none.
        id: &'p [u8],
        /// Whether the id ends where the bytes do. Otherwise only its server knows.
        is_whole: bool,
    },
    /// A key to be hashed.
    Key(&'p [u8]),
}

impl Affinity {
    /// What a client's datagram says.
    pub fn read(self, datagram: &[u8]) -> Found<'_> {
        let key = match self {
            Self::SourceIp | Self::SourceIpPort | Self::Host => None,
            Self::Quic => return quic::read(datagram),
            Self::WireGuard => return wireguard::read(datagram),
            Self::DtlsCid { length } => return dtls_cid::read(datagram, length),
            Self::SipCallId => sip_call_id::read(datagram),
            Self::Offset { offset, length } => offset::read(datagram, offset, length),
        };
        key.map_or(Found::Nothing, Found::Key)
    }

    /// The id that a server announces to its client.
    pub fn announced(self, datagram: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Quic => quic::announced(datagram),
            Self::WireGuard => wireguard::announced(datagram),
            Self::DtlsCid { length } => dtls_cid::announced(datagram, length),
            _ => None,
        }
    }

    /// Whether its keys name backends.
    pub const fn has_ids(self) -> bool {
        matches!(self, Self::Quic | Self::WireGuard | Self::DtlsCid { .. })
    }

    /// Whether it looks at what datagrams carry.
    pub const fn reads_payload(self) -> bool {
        !matches!(self, Self::SourceIp | Self::SourceIpPort | Self::Host)
    }

    /// What changes where the id changes, and what costs next to nothing to compare.
    #[inline]
    fn fingerprint(self, datagram: &[u8]) -> u64 {
        match self {
            Self::Quic => quic::fingerprint(datagram),
            Self::WireGuard => wireguard::fingerprint(datagram),
            Self::DtlsCid { length } => dtls_cid::fingerprint(datagram, length),
            _ => 0,
        }
    }
}

/// Up to eight bytes of a datagram as a number.
#[inline]
fn eight_bytes(datagram: &[u8], at: usize) -> u64 {
    if let Some(bytes) = datagram.get(at..).and_then(<[u8]>::first_chunk) {
        return u64::from_ne_bytes(*bytes);
    }
    let rest = datagram.get(at..).unwrap_or_default();
    rest.iter().fold(rest.len() as u64, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests;
