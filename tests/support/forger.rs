//! Datagrams that lie about who sent them, as those of anyone who attacks do.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

/// How far a datagram may travel unless the test says otherwise.
pub const TTL: u8 = 64;

/// Sends datagrams from addresses that it does not have. It needs root, and a namespace of the
/// test's own: an answer to a forged address must not leave this host.
pub struct Forger {
    socket: OwnedFd,
}

impl Forger {
    /// A forger in the namespace of the calling thread.
    ///
    /// # Panics
    ///
    /// Without root.
    pub fn new() -> Self {
        // With this protocol the sender writes the IP header (`raw(7)`).
        let (protocol, flags) = (SockProtocol::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Inet, SockType::Raw, flags, protocol);
        Self { socket: socket.expect("a raw socket") }
    }

    /// Sends a datagram that claims to come from `from`.
    pub fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        self.send_with_ttl(from, to, TTL, payload);
    }

    /// The same with as many hops left as `ttl` says.
    pub fn send_with_ttl(&self, from: SocketAddrV4, to: SocketAddrV4, ttl: u8, payload: &[u8]) {
        let packet = packet(from, to, ttl, payload);
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
        let sent = sendto(fd, &packet, &SockaddrIn::from(to), flags);
        assert_eq!(sent.expect("to send"), packet.len());
    }
}

impl Default for Forger {
    fn default() -> Self {
        Self::new()
    }
}

/// An IP packet with a UDP datagram, without those checksums that the kernel fills in (IP) or that
/// may be left out (UDP over IPv4).
fn packet(from: SocketAddrV4, to: SocketAddrV4, ttl: u8, payload: &[u8]) -> Vec<u8> {
    const IP_HEADER: usize = 20;
    const UDP_HEADER: usize = 8;
    const UDP: u8 = 17;
    let udp_len = (UDP_HEADER + payload.len()) as u16;
    let total_len = IP_HEADER as u16 + udp_len;

    let mut packet = Vec::with_capacity(usize::from(total_len));
    packet.extend([0x45, 0]);
    packet.extend(total_len.to_be_bytes());
    // Not a fragment.
    packet.extend([0, 0, 0, 0]);
    packet.extend([ttl, UDP, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(udp_len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// Clients that do not exist: never the same address and port twice, in networks far apart.
///
/// The address changes in its high bits first, and the port in its high bits too, so that all keys
/// look alike to a hash that only takes low bits.
pub struct Strangers {
    next: u32,
}

impl Strangers {
    /// All of them.
    pub const fn all() -> Self {
        Self { next: 0 }
    }

    /// How many there were so far.
    pub const fn met(&self) -> u64 {
        self.next as u64
    }
}

impl Iterator for Strangers {
    type Item = SocketAddrV4;

    fn next(&mut self) -> Option<SocketAddrV4> {
        let number = self.next;
        self.next = number.checked_add(1)?;
        // In 11.0.0.0 to 74.255.0.0, where nobody in the namespace lives.
        let [_, third, second, first] = number.to_be_bytes();
        let ip = Ipv4Addr::new(11 + (first & 63), second, third, 1);
        let port = 0x4001 | u16::from(first >> 6) << 12;
        Some(SocketAddrV4::new(ip, port))
    }
}
