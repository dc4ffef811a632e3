//! PROXY protocol version 2, as it goes in front of a UDP datagram.
//!
//! A backend sees the balancer's address on every datagram. The header tells it the client's, and
//! the address that the client called. See the [specification], section 2.2.
//!
//! [specification]: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What every header of version 2 starts with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY: on behalf of someone else.
const VERSION_2_PROXY: u8 = 0x21;
/// AF_INET, DGRAM.
const UDP_OVER_IPV4: u8 = 0x12;
/// AF_INET6, DGRAM.
const UDP_OVER_IPV6: u8 = 0x22;
/// Signature, version and command, family, and the length of what follows.
const PREAMBLE_LEN: usize = 16;
/// Two IPv6 addresses and two ports.
const IPV6_BLOCK_LEN: usize = 36;

/// A PROXY v2 header for one datagram, encoded: command PROXY, protocol UDP, no TLVs.
///
/// It holds its bytes, so it can be copied into an output and outlive the flow it was made for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    len: u8,
    bytes: [u8; ProxyHeader::MAX_LEN],
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
                Self::encode(UDP_OVER_IPV4, addresses.as_flattened(), ports)
            }
            (client, destination) => {
                let addresses = [client, destination].map(|ip| to_ipv6(ip).octets());
                Self::encode(UDP_OVER_IPV6, addresses.as_flattened(), ports)
            }
        }
    }

    /// The header as it goes over the network, 28 or 52 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn encode(family: u8, addresses: &[u8], ports: [u16; 2]) -> Self {
        let ports = ports.map(u16::to_be_bytes);
        let block_len = (addresses.len() + ports.as_flattened().len()) as u16;

        let mut header = Self { len: 0, bytes: [0; Self::MAX_LEN] };
        header.append(&SIGNATURE);
        header.append(&[VERSION_2_PROXY, family]);
        header.append(&block_len.to_be_bytes());
        header.append(addresses);
        header.append(ports.as_flattened());
        header
    }

    fn append(&mut self, part: &[u8]) {
        let start = usize::from(self.len);
        self.bytes[start..start + part.len()].copy_from_slice(part);
        self.len += part.len() as u8;
    }
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
