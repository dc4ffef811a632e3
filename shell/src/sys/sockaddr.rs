//! Socket addresses as the kernel writes them, and as the rest of Flowgate does.
//!
//! Inside Flowgate an IPv4 peer is always [`SocketAddr::V4`]. On a dual-stack socket the kernel
//! wants it mapped into IPv6; that is done and undone here and nowhere else.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// A `sockaddr_in` or `sockaddr_in6`, and how much of it counts.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawAddr {
    storage: Storage,
    len: libc::socklen_t,
}

#[derive(Clone, Copy)]
#[repr(C)]
union Storage {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// The most bytes an address takes.
pub(super) const MAX_LEN: libc::socklen_t = size_of::<Storage>() as libc::socklen_t;

impl RawAddr {
    /// Nothing: a place for the kernel to write an address into.
    pub const EMPTY: Self = Self {
        storage: Storage {
            v6: libc::sockaddr_in6 {
                sin6_family: 0,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
                sin6_scope_id: 0,
            },
        },
        len: 0,
    };

    /// `address` in the form that a socket of its family takes, or of IPv6 where `v6_socket`.
    pub fn new(address: SocketAddr, v6_socket: bool) -> Self {
        match address {
            SocketAddr::V4(v4) if !v6_socket => Self {
                storage: Storage {
                    v4: libc::sockaddr_in {
                        sin_family: libc::AF_INET as libc::sa_family_t,
                        sin_port: v4.port().to_be(),
                        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                        sin_zero: [0; 8],
                    },
                },
                len: size_of::<libc::sockaddr_in>() as libc::socklen_t,
            },
            SocketAddr::V4(v4) => {
                Self::v6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
            }
            SocketAddr::V6(v6) => Self::v6(v6),
        }
    }

    fn v6(address: SocketAddrV6) -> Self {
        Self {
            storage: Storage {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                },
            },
            len: size_of::<libc::sockaddr_in6>() as libc::socklen_t,
        }
    }

    /// The address that the kernel wrote, of which `len` bytes count. `None` where it is neither
    /// IPv4 nor IPv6.
    pub(super) fn read(&self, len: libc::socklen_t) -> Option<SocketAddr> {
        if (len as usize) < size_of::<libc::sockaddr_in>() {
            return None;
        }
        // SAFETY: every byte of the union is initialised from `EMPTY` on, and any bits are a
        // valid value of both structs. Both begin with the family.
        let family = i32::from(unsafe { self.storage.v4.sin_family });
        if family == libc::AF_INET {
            // SAFETY: as above.
            let v4 = unsafe { self.storage.v4 };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            return Some((ip, u16::from_be(v4.sin_port)).into());
        }
        if family != libc::AF_INET6 || len < MAX_LEN {
            return None;
        }
        // SAFETY: as above.
        let v6 = unsafe { self.storage.v6 };
        let (ip, port) = (Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port));
        Some(match ip.to_ipv4_mapped() {
            Some(ip) => (ip, port).into(),
            None => SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into(),
        })
    }

    pub(super) const fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(super) const fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        (&raw mut self.storage).cast()
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
