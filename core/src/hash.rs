//! The frozen hash: where a client lands must not depend on the build, the host or the run.
//!
//! Rendezvous and Maglev place a client by hashing its address and the addresses of the backends.
//! Two instances of Flowgate, of different versions and on different machines, must come to the
//! same place, so everything in this module is part of the product's interface and never changes:
//!
//! - The function is SipHash-2-4 (Aumasson and Bernstein, INDOCRYPT 2012), under public keys: one
//!   for clients, one for keys in payloads, and one for backends. Public keys mean that a client can choose addresses
//!   that share a backend. That is the price of agreeing without talking; limits per source and
//!   per backend bound what it gains.
//! - What is hashed is the address in network byte order, 4 or 16 bytes, followed, where the port
//!   counts, by the port, 2 bytes; of a key in a payload its bytes. With the affinity `host` the port
//!   of a backend is hashed as 0.
//! - An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) is hashed as the IPv4 address, so that a
//!   dual-stack listener and an IPv4 listener agree.
//! - Scope ids and flow labels are left out: they are the numbers of one machine or one moment.

use core::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher24;

use crate::config::Affinity;

const CLIENT_KEY: &[u8; 16] = b"flowgate: client";
const PAYLOAD_KEY: &[u8; 16] = b"flowgate payload";
const BACKEND_KEY: &[u8; 16] = b"flowgate backend";

/// What a client is to the consistent algorithms: equal hashes go to equal backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientHash(u64);

impl ClientHash {
    /// The hash of as much of `client` as `affinity` looks at.
    pub fn new(client: SocketAddr, affinity: Affinity) -> Self {
        let port = match affinity {
            Affinity::SourceIpPort => Some(client.port()),
            _ => None,
        };
        Self(hash_address(CLIENT_KEY, client.ip(), port))
    }

    /// The hash of a key that its datagram carries.
    pub fn of_key(key: &[u8]) -> Self {
        Self(SipHasher24::new_with_key(PAYLOAD_KEY).hash(key))
    }

    /// The hash as a number, every bit as good as another.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// What a backend is to the consistent algorithms: its address and port, whatever its place in the
/// configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendHash(u64);

impl BackendHash {
    /// The hash of a backend's address and port.
    pub fn new(backend: SocketAddr) -> Self {
        Self(hash_address(BACKEND_KEY, backend.ip(), Some(backend.port())))
    }

    /// The hash as a number, every bit as good as another.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

fn hash_address(key: &[u8; 16], ip: IpAddr, port: Option<u16>) -> u64 {
    let mut bytes = [0; 18];
    let mut len = 0;
    let mut append = |part: &[u8]| {
        bytes[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    };
    match ip.to_canonical() {
        IpAddr::V4(ip) => append(&ip.octets()),
        IpAddr::V6(ip) => append(&ip.octets()),
    }
    if let Some(port) = port {
        append(&port.to_be_bytes());
    }
    SipHasher24::new_with_key(key).hash(&bytes[..len])
}

#[cfg(test)]
mod tests;
