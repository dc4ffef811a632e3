//! What names a flow from outside: who sent to whom.

#[cfg(feature = "snapshot")]
mod snapshot;

use core::hash::Hasher;
use core::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use siphasher::sip::SipHasher13;

use crate::local_addr::LocalAddr;

/// What makes two datagrams belong to one flow: the client's address and port, and the local
/// address they were sent to, from which the answers must come.
///
/// Where a proxy speaks for the client, the proxy stands in place of the local address: answers go
/// back to it, from wherever it called.
///
/// IPv4 addresses are held mapped into IPv6 (RFC 4291, section 2.5.5.2), so that a key has one
/// shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowKey {
    pub(crate) client: ClientKey,
    /// Zero unless the client's part says that there is one.
    pub(crate) local: u128,
    /// What names the client's question, where that part says that it does; zero elsewhere.
    pub(crate) transaction: u64,
}

/// The client's part of a key, which is all of it where the listener has one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct ClientKey {
    ip: [u64; 2],
    /// The scope of a link-local client, which then is that of the local address too; or the
    /// number of the proxy that speaks for the client.
    scope: u32,
    port: u16,
    path: Path,
    /// Whether each question is a flow of its own.
    asks: bool,
}

/// How a client's datagrams come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Path {
    /// To the only address of the listener.
    Direct,
    /// To one of many, which is part of the key.
    ToLocal,
    /// By a proxy that says whose they are.
    Proxied,
}

impl FlowKey {
    #[inline]
    pub(crate) fn new(client: SocketAddr, local: Option<LocalAddr>) -> Self {
        let client_scope = match client {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(client) => client.scope_id(),
        };
        let local_scope = local.map_or(0, |local| local.interface);
        let ip = mapped(client.ip());
        Self {
            client: ClientKey {
                ip: [(ip >> 64) as u64, ip as u64],
                scope: if client_scope == 0 { local_scope } else { client_scope },
                port: client.port(),
                path: if local.is_some() { Path::ToLocal } else { Path::Direct },
                asks: false,
            },
            local: local.map_or(0, |local| mapped(local.ip)),
            transaction: 0,
        }
    }

    /// The key of a client that a proxy speaks for, which has a number of its own.
    pub(crate) fn proxied(client: SocketAddr, proxy: u32) -> Self {
        let ip = mapped(client.ip());
        let ip = [(ip >> 64) as u64, ip as u64];
        let (port, path) = (client.port(), Path::Proxied);
        let client = ClientKey { ip, scope: proxy, port, path, asks: false };
        Self { client, local: 0, transaction: 0 }
    }

    /// The key of one question of that client.
    pub(crate) const fn asking(mut self, transaction: u64) -> Self {
        self.client.asks = true;
        self.transaction = transaction;
        self
    }

    /// The local address, if it is part of the key.
    pub(crate) fn local(&self) -> Option<LocalAddr> {
        self.client.local(self.local)
    }

    #[inline]
    pub(crate) fn hash(&self, keys: (u64, u64)) -> u64 {
        let ClientKey { ip, scope, port, path, asks } = self.client;
        let mut hasher = SipHasher13::new_with_keys(keys.0, keys.1);
        hasher.write_u64(ip[0]);
        hasher.write_u64(ip[1]);
        let flags = u64::from(asks) << 8 | path as u64;
        hasher.write_u64(u64::from(scope) << 32 | u64::from(port) << 16 | flags);
        if matches!(path, Path::ToLocal) {
            hasher.write_u64((self.local >> 64) as u64);
            hasher.write_u64(self.local as u64);
        }
        if asks {
            hasher.write_u64(self.transaction);
        }
        hasher.finish()
    }
}

impl ClientKey {
    /// The client's IP address, mapped into IPv6.
    fn ip_bits(&self) -> u128 {
        u128::from(self.ip[0]) << 64 | u128::from(self.ip[1])
    }

    /// Who the client is to limits: its IPv4 address, mapped into IPv6, or the /64 of its IPv6
    /// address, of which one host can have as many as it likes. Addresses that are local to a link
    /// count one by one. They have 54 bits that are zero (RFC 4291, section 2.5.6), and bear the
    /// link's number there: on another link the same address is another's, and so is the
    /// whole subnet.
    pub(crate) fn source(&self) -> u128 {
        let [network, host] = self.ip;
        if Ipv6Addr::from_bits(self.ip_bits()).is_unicast_link_local() {
            self.ip_bits() | u128::from(self.link()) << (128 - 56)
        } else if network != 0 {
            u128::from(network) << 64
        } else {
            // Of IPv4, or the loopback address.
            host.into()
        }
    }

    /// The number of the link that the client is on, where that is known.
    const fn link(&self) -> u32 {
        if matches!(self.path, Path::Proxied) { 0 } else { self.scope }
    }

    /// The number of the proxy that speaks for the client, if one does.
    #[inline]
    pub(crate) const fn proxy(&self) -> Option<u32> {
        if matches!(self.path, Path::Proxied) { Some(self.scope) } else { None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match canonical(self.ip_bits()) {
            IpAddr::V4(ip) => SocketAddr::from((ip, self.port)),
            IpAddr::V6(ip) => {
                // The scope of a client that is not link-local is that of the address it called.
                let scope = if ip.is_unicast_link_local() { self.link() } else { 0 };
                SocketAddrV6::new(ip, self.port, 0, scope).into()
            }
        }
    }

    /// The local address that goes with the client, if there is one.
    pub(crate) fn local(&self, local: u128) -> Option<LocalAddr> {
        self.has_local().then(|| LocalAddr { ip: canonical(local), interface: self.scope })
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Whether the name of a question is part of the key.
    #[inline]
    pub(crate) const fn asks(&self) -> bool {
        self.asks
    }

    /// Whether a local address is part of the key.
    pub(crate) const fn has_local(&self) -> bool {
        matches!(self.path, Path::ToLocal)
    }
}

fn mapped(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn canonical(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn key(client: &str, local: Option<(&str, u32)>) -> FlowKey {
        let local = local.map(|(ip, interface)| LocalAddr { ip: ip.parse().unwrap(), interface });
        FlowKey::new(client.parse().unwrap(), local)
    }

    #[test]
    fn keys_that_differ_in_anything_have_different_hashes() {
        let keys = [
            key("10.0.0.1:7", None),
            key("10.0.0.2:7", None),
            key("10.0.0.1:8", None),
            key("10.0.0.1:263", None),
            key("10.0.0.1:7", Some(("127.0.0.1", 0))),
            key("10.0.0.1:7", Some(("127.0.0.2", 0))),
            key("[2001:db8::1]:7", None),
            key("[2001:db8::1]:7", Some(("::1", 0))),
            key("[fe80::1%2]:7", Some(("fe80::5", 2))),
            key("[fe80::1%3]:7", Some(("fe80::5", 3))),
            key("[fe80::1%65536]:7", Some(("fe80::5", 65_536))),
        ];
        let hashes: BTreeSet<u64> = keys.iter().map(|key| key.hash((1, 2))).collect();
        assert_eq!(hashes.len(), keys.len());
        assert!(!hashes.contains(&keys[0].hash((1, 3))), "the secret counts");
    }

    #[test]
    fn a_key_is_made_of_the_local_address_only_where_there_is_one() {
        assert!(!key("10.0.0.1:7", None).client.has_local());
        let with = key("10.0.0.1:7", Some(("127.0.0.1", 4)));
        assert!(with.client.has_local());
        assert_eq!(
            with.local(),
            Some(LocalAddr { ip: "127.0.0.1".parse().unwrap(), interface: 4 })
        );
    }
}
