//! How the two entries of a flow are made: its addresses, and the ways that its packets take.

use std::net::{IpAddr, SocketAddr};

use flowgate_fastpath::Tuple;

/// The four addresses of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub client: SocketAddr,
    /// The address of this host that the client calls.
    pub called: SocketAddr,
    /// The address of this host that the backend hears from.
    pub ours: SocketAddr,
    /// The backend.
    pub backend: SocketAddr,
}

/// What packets of one direction are, and what they become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rewriting {
    pub(super) from: Tuple,
    pub(super) to: Tuple,
}

/// The way that packets take, and the longest that may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) ifindex: u32,
    pub(super) neighbour: IpAddr,
    pub(super) max_len: u16,
}

impl Addresses {
    /// What becomes of the client's packets, and of the backend's. `None` where the families differ,
    /// or an address means something on its link only.
    pub(super) fn rewritings(&self) -> Option<[Rewriting; 2]> {
        let canonical =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let [client, called, ours, backend] =
            [self.client, self.called, self.ours, self.backend].map(canonical);
        if [client, called, ours, backend].into_iter().any(|address| !is_plain(address.ip())) {
            return None;
        }
        if client.is_ipv4() != backend.is_ipv4() {
            return None;
        }
        let rewriting = |from: (SocketAddr, SocketAddr), to: (SocketAddr, SocketAddr)| {
            Some(Rewriting { from: Tuple::new(from.0, from.1)?, to: Tuple::new(to.0, to.1)? })
        };
        let to_backend = rewriting((client, called), (ours, backend))?;
        let to_client = rewriting((backend, ours), (called, client))?;
        Some([to_backend, to_client])
    }
}

/// Whether an address is one host's wherever it is used.
const fn is_plain(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            let is_link_local = ip.is_unicast_link_local();
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(client: &str, called: &str, ours: &str, backend: &str) -> Addresses {
        let [client, called, ours, backend] =
            [client, called, ours, backend].map(|text| text.parse().unwrap());
        Addresses { client, called, ours, backend }
    }

    #[test]
    fn the_two_directions_mirror_each_other() {
        let of = addresses("198.51.100.7:4711", "192.0.2.1:53", "10.0.0.1:30000", "10.0.0.9:9000");
        let [to_backend, to_client] = of.rewritings().unwrap();
        assert_eq!(
            (to_backend.from.source(), to_backend.from.destination()),
            (of.client, of.called)
        );
        assert_eq!((to_backend.to.source(), to_backend.to.destination()), (of.ours, of.backend));
        assert_eq!((to_client.from.source(), to_client.from.destination()), (of.backend, of.ours));
        assert_eq!((to_client.to.source(), to_client.to.destination()), (of.called, of.client));
    }

    #[test]
    fn ipv4_at_a_dual_stack_listener_is_ipv4() {
        let mapped = addresses(
            "[::ffff:198.51.100.7]:4711",
            "[::ffff:192.0.2.1]:53",
            "10.0.0.1:30000",
            "10.0.0.9:9000",
        );
        let [to_backend, _] = mapped.rewritings().unwrap();
        assert_eq!(to_backend.from.source(), "198.51.100.7:4711".parse().unwrap());
    }

    #[test]
    fn flows_across_families_and_on_one_link_or_host_stay_with_the_sockets() {
        for of in [
            addresses("[2001:db8::7]:1", "[2001:db8::1]:53", "10.0.0.1:3", "10.0.0.9:9"),
            addresses("127.0.0.1:1", "127.0.0.1:53", "127.0.0.1:3", "127.0.0.1:9"),
            addresses("[fe80::7]:1", "[fe80::1]:53", "[2001:db8::1]:3", "[2001:db8::9]:9"),
            addresses("198.51.100.7:1", "0.0.0.0:53", "10.0.0.1:3", "10.0.0.9:9"),
        ] {
            assert_eq!(of.rewritings(), None, "{of:?}");
        }
    }
}
