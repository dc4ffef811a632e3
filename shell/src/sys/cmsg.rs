//! Control messages (`cmsg(3)`): what travels beside a datagram.
//!
//! Written and read as plain bytes: a header of length, level and type in native byte order, the
//! data, and padding to the size of a word. Reading checks every length, so that no buffer,
//! however broken, makes it read past the end or loop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowgate_core::LocalAddr;

use super::arena::{DEFAULT_TTL, RecvMeta};

const WORD: usize = size_of::<usize>();
const HEADER: usize = size_of::<libc::cmsghdr>();

// The layout that this module writes and reads: `size_t`, `int`, `int`.
const _: () = assert!(HEADER == WORD + 8 && HEADER.is_multiple_of(WORD));

/// Room for every control message of a receive: packet info of both families, TOS and traffic class,
/// time to live and hop limit, segment size, lost datagrams, and whatever else is asked for of a
/// socket that someone else has opened, such as timestamps.
pub const RECEIVE_BYTES: usize = 512;

/// Room for every control message that a send carries: packet info, traffic class, hop limit,
/// segment size.
pub const SEND_BYTES: usize = 120;

/// A buffer of control messages, aligned as the kernel wants it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct ControlBuffer<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> ControlBuffer<N> {
    /// A buffer without messages.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// The messages written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The first `len` bytes, as the kernel wrote them.
    pub(super) fn prefix(&self, len: usize) -> &[u8] {
        &self.bytes[..len]
    }

    /// Where the kernel reads the messages of a buffer, or writes some. It has all rights that the
    /// pointer has.
    pub(super) const fn storage(buffer: *mut Self) -> *mut libc::c_void {
        const { assert!(std::mem::offset_of!(Self, bytes) == 0) };
        buffer.cast()
    }

    /// Forgets all messages.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends the segment size of a burst, for a send (`UDP_SEGMENT`, `udp(7)`).
    pub fn push_segment_size(&mut self, bytes: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
    }

    /// Appends the segment size of a burst, as a receive delivers it (`UDP_GRO`).
    pub fn push_received_segment_size(&mut self, bytes: u16) {
        self.push(libc::SOL_UDP, libc::UDP_GRO, &i32::from(bytes).to_ne_bytes());
    }

    /// Appends the number of lost datagrams, as a receive delivers it (`SO_RXQ_OVFL`).
    pub fn push_drops(&mut self, drops: u32) {
        self.push(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &drops.to_ne_bytes());
    }

    /// Appends the TOS or traffic-class byte. `v6` tells the family of the datagram itself, which
    /// on a dual-stack socket is not that of the socket.
    pub fn push_tos(&mut self, tos: u8, v6: bool) {
        let (level, kind) =
            if v6 { (libc::SOL_IPV6, libc::IPV6_TCLASS) } else { (libc::SOL_IP, libc::IP_TOS) };
        self.push(level, kind, &i32::from(tos).to_ne_bytes());
    }

    /// Appends the time to live or hop limit. `v6` as in [`push_tos`](Self::push_tos).
    pub fn push_ttl(&mut self, ttl: u8, v6: bool) {
        let (level, kind) =
            if v6 { (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) } else { (libc::SOL_IP, libc::IP_TTL) };
        self.push(level, kind, &i32::from(ttl).to_ne_bytes());
    }

    /// Appends the local address: the source of a send, the destination of a receive. On an IPv6
    /// socket an IPv4 address travels mapped.
    pub fn push_local(&mut self, local: LocalAddr, v6_socket: bool) {
        match local.ip {
            IpAddr::V4(ip) if !v6_socket => {
                // struct in_pktinfo: interface, local address, destination of the header.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                info[8..].copy_from_slice(&ip.octets());
                self.push(libc::SOL_IP, libc::IP_PKTINFO, &info);
            }
            ip => {
                let octets = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                };
                // struct in6_pktinfo: address, interface.
                let mut info = [0; 20];
                info[..16].copy_from_slice(&octets);
                info[16..].copy_from_slice(&local.interface.to_ne_bytes());
                self.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// Appends one message. What does not fit is left out, and a debug build panics: buffers are
    /// sized for all that is ever pushed.
    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let len = HEADER + data.len();
        let Some(message) = self.bytes.get_mut(self.len..self.len + len.next_multiple_of(WORD))
        else {
            debug_assert!(false, "the control buffer is too small");
            return;
        };
        message[..WORD].copy_from_slice(&len.to_ne_bytes());
        message[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        message[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER..len].copy_from_slice(data);
        self.len += message.len();
    }
}

impl<const N: usize> Default for ControlBuffer<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads the control messages of a received datagram. Unknown ones are passed over; a message
/// whose length makes no sense ends the reading.
pub fn read(control: &[u8]) -> RecvMeta {
    let mut received = RecvMeta::default();
    for_each(control, |level, kind, data| take(&mut received, level, kind, data));
    received
}

/// The number of the error that the network has told of a datagram (`IP_RECVERR`, `IPV6_RECVERR`);
/// `None` where the error is this host's own.
pub fn read_error(control: &[u8]) -> Option<i32> {
    // struct sock_extended_err: number, origin, and more.
    const FROM_THE_NETWORK: [u8; 2] = [libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6];
    let mut told = None;
    for_each(control, |level, kind, data| {
        let is_error = matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        );
        if is_error && data.get(4).is_some_and(|origin| FROM_THE_NETWORK.contains(origin)) {
            told = int(data);
        }
    });
    told
}

/// Visits the messages of a buffer: level, type, data.
fn for_each(mut control: &[u8], mut visit: impl FnMut(i32, i32, &[u8])) {
    while let Some((header, _)) = control.split_first_chunk::<HEADER>() {
        let len = usize::from_ne_bytes(header[..WORD].try_into().unwrap_or_default());
        let Some(data) = control.get(HEADER..len) else {
            break;
        };
        let level = i32::from_ne_bytes(header[WORD..WORD + 4].try_into().unwrap_or_default());
        let kind = i32::from_ne_bytes(header[WORD + 4..].try_into().unwrap_or_default());
        visit(level, kind, data);
        let Some(next) = len.checked_next_multiple_of(WORD).and_then(|next| control.get(next..))
        else {
            break;
        };
        control = next;
    }
}

/// Takes what one message says.
fn take(meta: &mut RecvMeta, level: i32, kind: i32, data: &[u8]) {
    match (level, kind) {
        (libc::SOL_UDP, libc::UDP_GRO) => {
            meta.segment = int(data).and_then(|size| u16::try_from(size).ok()).unwrap_or(0);
        }
        // One byte from the kernel, an int where it is written by hand.
        (libc::SOL_IP, libc::IP_TOS) => meta.tos = data.first().copied().unwrap_or(0),
        (libc::SOL_IPV6, libc::IPV6_TCLASS) => meta.tos = int(data).unwrap_or(0) as u8,
        (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => {
            meta.ttl = int(data).and_then(|ttl| u8::try_from(ttl).ok()).unwrap_or(DEFAULT_TTL);
        }
        (libc::SOL_IP, libc::IP_PKTINFO) => {
            // The second field is the address that answers should come from. It differs from
            // the third, the header's own, for broadcasts, which nothing can be sent from.
            let octets = data.get(4..8).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
            meta.local =
                octets.map(|octets| LocalAddr { ip: Ipv4Addr::from(octets).into(), interface: 0 });
        }
        (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
            let local = data.first_chunk::<16>().map(|&octets| {
                let ip = Ipv6Addr::from(octets);
                let interface = int(&data[16..]).unwrap_or(0) as u32;
                let interface = if ip.is_unicast_link_local() { interface } else { 0 };
                LocalAddr { ip: ip.to_canonical(), interface }
            });
            // Of a datagram of IPv4 this is the header's own destination, which may be a
            // broadcast: what `IP_PKTINFO` says stands, whichever comes first. Of one to a group
            // nothing is sent from its address, and the kernel chooses another.
            meta.local = match (meta.local, local) {
                (Some(known), Some(local)) if local.ip.is_ipv4() => Some(known),
                (_, Some(local)) if local.ip.is_multicast() => None,
                _ => local,
            };
        }
        (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
            meta.drops = int(data).unwrap_or(0).cast_unsigned();
        }
        _ => {}
    }
}

fn int(data: &[u8]) -> Option<i32> {
    data.first_chunk().map(|&bytes| i32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(ip: &str, interface: u32) -> LocalAddr {
        LocalAddr { ip: ip.parse().unwrap(), interface }
    }

    #[test]
    fn what_is_written_is_read() {
        for (address, v6_socket) in [
            (local("127.0.0.9", 0), false),
            (local("127.0.0.9", 0), true),
            (local("2001:db8::1", 0), true),
            (local("fe80::1", 7), true),
        ] {
            let mut buffer = ControlBuffer::<RECEIVE_BYTES>::new();
            buffer.push_local(address, v6_socket);
            buffer.push_tos(0xB9, address.ip.is_ipv6());
            buffer.push_ttl(7, address.ip.is_ipv6());
            buffer.push_received_segment_size(1_200);
            buffer.push_drops(3);
            let local = Some(address);
            let expected = RecvMeta {
                segment: 1_200,
                tos: 0xB9,
                ttl: 7,
                local,
                drops: 3,
                ..RecvMeta::default()
            };
            assert_eq!(read(buffer.as_bytes()), expected);
        }
    }

    #[test]
    fn a_broadcast_to_a_dual_stack_socket_is_answered_from_the_address_that_the_kernel_names() {
        // struct in_pktinfo: interface, local address, destination of the header.
        let mut info = [0; 12];
        info[4..8].copy_from_slice(&[192, 0, 2, 1]);
        info[8..].copy_from_slice(&[192, 0, 2, 255]);
        for order in [[0, 1], [1, 0]] {
            let mut buffer = ControlBuffer::<RECEIVE_BYTES>::new();
            for which in order {
                match which {
                    0 => buffer.push_local(local("192.0.2.255", 0), true),
                    _ => buffer.push(libc::SOL_IP, libc::IP_PKTINFO, &info),
                }
            }
            assert_eq!(read(buffer.as_bytes()).local, Some(local("192.0.2.1", 0)));
        }
    }

    #[test]
    fn nothing_is_answered_from_a_groups_address() {
        let mut buffer = ControlBuffer::<RECEIVE_BYTES>::new();
        buffer.push_local(local("ff02::1", 0), true);
        assert_eq!(read(buffer.as_bytes()).local, None);
    }

    #[test]
    fn timestamps_that_nobody_here_has_asked_for_leave_room_for_the_rest() {
        let mut buffer = ControlBuffer::<RECEIVE_BYTES>::new();
        buffer.push(libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &[0; 48]);
        buffer.push(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &[0; 16]);
        buffer.push_local(local("192.0.2.1", 0), true);
        buffer.push_local(local("192.0.2.1", 0), false);
        buffer.push_tos(1, true);
        buffer.push_tos(1, false);
        buffer.push_ttl(1, true);
        buffer.push_ttl(1, false);
        buffer.push_drops(1);
        buffer.push_received_segment_size(1);
        assert!(buffer.as_bytes().len() <= RECEIVE_BYTES / 2 + 64);
    }

    #[test]
    fn the_largest_set_of_messages_fits() {
        let mut buffer = ControlBuffer::<SEND_BYTES>::new();
        buffer.push_local(local("2001:db8::1", 0), true);
        buffer.push_tos(1, true);
        buffer.push_ttl(1, true);
        buffer.push_segment_size(1);
        assert!(buffer.as_bytes().len() <= SEND_BYTES);
    }

    #[test]
    fn every_cut_of_a_buffer_is_read_without_harm() {
        let mut buffer = ControlBuffer::<RECEIVE_BYTES>::new();
        buffer.push_local(local("2001:db8::1", 3), true);
        buffer.push_received_segment_size(9);
        for len in 0..buffer.as_bytes().len() {
            read(&buffer.as_bytes()[..len]);
        }
    }

    #[test]
    fn a_length_that_lies_ends_the_reading() {
        for lie in [0, 1, HEADER - 1, 1_000, usize::MAX, usize::MAX - 6] {
            let mut bytes = [0xFF; 64];
            bytes[..WORD].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(read(&bytes), RecvMeta::default());
        }
    }
}
