//! PROXY protocol version 2, as it goes in front of a UDP datagram.
//!
//! A backend sees the balancer's address on every datagram. The header tells it the client's, and
//! the address that the client called. See the [specification], section 2.2. Headers go out as
//! [`ProxyHeader`], and those of proxies in front of us are read by [`ReceivedHeader`].
//!
//! [specification]: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

mod crc32c;
mod decode;
pub(crate) mod table;

use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

pub use decode::{Endpoints, HeaderFault, MAX_BLOCK_LEN, ReceivedHeader, Tlvs, has_header};

/// What every header of version 2 starts with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY: on behalf of someone else.
const VERSION_2_PROXY: u8 = 0x21;
/// Signature, version and command, family, and the length of what follows.
const PREAMBLE_LEN: usize = 16;
/// Where that length is.
const LEN_AT: usize = 14;
/// Two IPv6 addresses and two ports.
const IPV6_BLOCK_LEN: usize = 36;

/// A PROXY v2 header for one datagram, encoded: command PROXY, protocol UDP. TLVs, if any, follow it.
///
/// It holds its bytes, so it can be copied into an output and outlive the flow it was made for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    family: Family,
    bytes: [u8; ProxyHeader::MAX_LEN],
}

/// The family of both addresses, and a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Family {
    /// AF_INET, DGRAM.
    UdpOverIpv4 = 0x12,
    /// AF_INET6, DGRAM.
    UdpOverIpv6 = 0x22,
}

impl Family {
    /// How many bytes two addresses and two ports take.
    const fn block_len(self) -> usize {
        match self {
            Self::UdpOverIpv4 => 12,
            Self::UdpOverIpv6 => IPV6_BLOCK_LEN,
        }
    }
}

impl ProxyHeader {
    /// The longest header in bytes: that of two IPv6 addresses. Two IPv4 addresses take 28.
    pub const MAX_LEN: usize = PREAMBLE_LEN + IPV6_BLOCK_LEN;

    /// A header that says: `client` sent this to `destination`.
    ///
    /// A header has one address family for both. It is IPv4 where both are IPv4, plain or mapped
    /// into IPv6 (`::ffff:192.0.2.1`); otherwise it is IPv6, with an IPv4 one mapped.
    pub fn new(client: SocketAddr, destination: SocketAddr) -> Self {
        let ports = [client.port(), destination.port()];
        match (client.ip().to_canonical(), destination.ip().to_canonical()) {
            (IpAddr::V4(client), IpAddr::V4(destination)) => {
                let addresses = [client.octets(), destination.octets()];
                Self::encode(Family::UdpOverIpv4, addresses.as_flattened(), ports)
            }
            (client, destination) => {
                let addresses = [client, destination].map(|ip| to_ipv6(ip).octets());
                Self::encode(Family::UdpOverIpv6, addresses.as_flattened(), ports)
            }
        }
    }

    /// The same with TLVs behind it, which its length counts and it does not hold.
    #[must_use]
    pub fn followed_by(mut self, tlvs: &Tlvs<'_>) -> Self {
        self.set_block_len(self.family.block_len() + tlvs.len());
        self
    }

    /// The header as it goes over the network, 28 or 52 bytes, without TLVs.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..PREAMBLE_LEN + self.family.block_len()]
    }

    fn encode(family: Family, addresses: &[u8], ports: [u16; 2]) -> Self {
        let ports = ports.map(u16::to_be_bytes);
        let mut header = Self { family, bytes: [0; Self::MAX_LEN] };
        let mut at = 0;
        let mut append = |part: &[u8]| {
            header.bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        append(&SIGNATURE);
        append(&[VERSION_2_PROXY, family as u8, 0, 0]);
        append(addresses);
        append(ports.as_flattened());
        header.set_block_len(family.block_len());
        header
    }

    /// Writes how much follows the first sixteen bytes: no more than an IP packet has, since the
    /// TLVs of a header that was received are `MAX_BLOCK_LEN` bytes at most.
    fn set_block_len(&mut self, len: usize) {
        self.bytes[LEN_AT..PREAMBLE_LEN].copy_from_slice(&(len as u16).to_be_bytes());
    }
}

/// What a proxy says of a client's datagrams besides who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyInfo<'p> {
    /// The address that the client called.
    pub destination: SocketAddr,
    /// Whatever else is to be passed on.
    pub tlvs: Tlvs<'p>,
}

impl fmt::Debug for ProxyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyHeader(")?;
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

fn to_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests;
