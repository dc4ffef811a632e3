//! Socket addresses as the kernel writes them, and as the rest of Flowgate does.
//!
//! Inside Flowgate an IPv4 peer is always [`SocketAddr::V4`]. On a dual-stack socket the kernel
//! wants it mapped into IPv6; that is done and undone here and nowhere else.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// A `sockaddr_in` or `sockaddr_in6`, and how much of it counts.
///
/// Family and port lie in both at the same place, and the address of the first where the second has
/// its flow label, so that the second holds either.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawAddr {
    storage: libc::sockaddr_in6,
    len: libc::socklen_t,
}

const _: () = {
    use std::mem::offset_of;
    assert!(
        offset_of!(libc::sockaddr_in, sin_family) == offset_of!(libc::sockaddr_in6, sin6_family)
    );
    assert!(offset_of!(libc::sockaddr_in, sin_port) == offset_of!(libc::sockaddr_in6, sin6_port));
    assert!(
        offset_of!(libc::sockaddr_in, sin_addr) == offset_of!(libc::sockaddr_in6, sin6_flowinfo)
    );
};

const V4_LEN: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

/// The most bytes an address takes.
pub(super) const MAX_LEN: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

impl RawAddr {
    /// Nothing: a place for the kernel to write an address into.
    pub const EMPTY: Self = Self::raw(0, 0, 0, [0; 16], 0, 0);

    const fn raw(
        family: i32,
        port: u16,
        sin6_flowinfo: u32,
        s6_addr: [u8; 16],
        sin6_scope_id: u32,
        len: libc::socklen_t,
    ) -> Self {
        let storage = libc::sockaddr_in6 {
            sin6_family: family as libc::sa_family_t,
            sin6_port: port.to_be(),
            sin6_flowinfo,
            sin6_addr: libc::in6_addr { s6_addr },
            sin6_scope_id,
        };
        Self { storage, len }
    }

    /// `address` in the form that a socket of its family takes, or of IPv6 where `v6_socket`.
    pub const fn new(address: SocketAddr, v6_socket: bool) -> Self {
        match address {
            SocketAddr::V4(v4) if v6_socket => {
                let ip = v4.ip().to_ipv6_mapped().octets();
                Self::raw(libc::AF_INET6, v4.port(), 0, ip, 0, MAX_LEN)
            }
            SocketAddr::V4(v4) => {
                let ip = u32::from_ne_bytes(v4.ip().octets());
                Self::raw(libc::AF_INET, v4.port(), ip, [0; 16], 0, V4_LEN)
            }
            SocketAddr::V6(v6) => {
                let (ip, flow, scope) = (v6.ip().octets(), v6.flowinfo(), v6.scope_id());
                Self::raw(libc::AF_INET6, v6.port(), flow, ip, scope, MAX_LEN)
            }
        }
    }

    /// The address that the kernel wrote, of which `len` bytes count. `None` where it is neither
    /// IPv4 nor IPv6.
    pub(super) fn read(&self, len: libc::socklen_t) -> Option<SocketAddr> {
        let libc::sockaddr_in6 { sin6_flowinfo, sin6_scope_id, .. } = self.storage;
        let port = u16::from_be(self.storage.sin6_port);
        match i32::from(self.storage.sin6_family) {
            libc::AF_INET if len >= V4_LEN => {
                Some((Ipv4Addr::from(sin6_flowinfo.to_ne_bytes()), port).into())
            }
            libc::AF_INET6 if len >= MAX_LEN => {
                let ip = Ipv6Addr::from(self.storage.sin6_addr.s6_addr);
                Some(match ip.to_ipv4_mapped() {
                    Some(ip) => (ip, port).into(),
                    None => SocketAddrV6::new(ip, port, 0, sin6_scope_id).into(),
                })
            }
            _ => None,
        }
    }

    /// Where the kernel reads an address, or writes one. It has all rights that the pointer has.
    pub(super) const fn storage(address: *mut Self) -> *mut libc::c_void {
        const { assert!(std::mem::offset_of!(RawAddr, storage) == 0) };
        address.cast()
    }

    pub(super) const fn len(&self) -> libc::socklen_t {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_to_the_kernel_and_back() {
        let scoped: SocketAddr = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 4).into();
        for address in
            ["127.0.0.1:53".parse().unwrap(), "[2001:db8::1]:65535".parse().unwrap(), scoped]
        {
            for v6_socket in [false, true] {
                let raw = RawAddr::new(address, v6_socket);
                assert_eq!(raw.read(raw.len()), Some(address));
            }
        }
    }

    #[test]
    fn an_address_cut_short_is_none() {
        let raw = RawAddr::new("[2001:db8::1]:53".parse().unwrap(), true);
        for len in 0..MAX_LEN {
            assert_eq!(raw.read(len), None);
        }
        assert_eq!(RawAddr::EMPTY.read(MAX_LEN), None);
    }
}
