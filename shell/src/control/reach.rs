//! Whether what clusters send can arrive at other hosts' servers, found out before anything relies
//! on it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flowgate_config::{Cluster, Config, Listener, Target};
use flowgate_core::LocalSource;
use socket2::{Domain, Type};

use crate::sys::udp;

/// A backend that cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Datagrams to it come back.
    #[error(
        "cluster {cluster:?}: the backend {backend} is the listener {listener:?} itself, as the \
         address is one of this host: each datagram would go round; change the backend or the \
         listener's port"
    )]
    Itself {
        /// The cluster's name.
        cluster: String,
        /// The backend.
        backend: SocketAddr,
        /// The listener's name.
        listener: String,
    },
    /// It stands for all hosts of a link.
    #[error(
        "cluster {cluster:?}: the backend {backend} is a broadcast address of this host's links, \
         to which nothing is sent; name one host"
    )]
    Broadcast {
        /// The cluster's name.
        cluster: String,
        /// The backend.
        backend: SocketAddr,
    },
}

/// Looks at all backends that are written as addresses and serve a listener, or mirror one that
/// does. Nothing is sent.
///
/// # Errors
///
/// When one is the listener that it serves, or a broadcast address of a link of this host.
pub fn check(config: &Config) -> Result<(), ReachError> {
    check_beside(config, &[])
}

/// The same where the backends of some clusters are in force: whether those are broadcast addresses
/// has been looked at, and thousands of them are not asked about at each change of one.
///
/// # Errors
///
/// As for [`check`].
pub fn check_beside(config: &Config, in_force: &[Arc<Cluster>]) -> Result<(), ReachError> {
    // Each answer is a few calls of the kernel's.
    let mut local = HashMap::new();
    let mut is_local = |ip| *local.entry(ip).or_insert_with(|| is_local(ip));
    for listener in &config.listeners {
        let mirror = listener.cluster.mirror.as_deref().and_then(|name| config.cluster(name));
        for cluster in [Some(&listener.cluster), mirror].into_iter().flatten() {
            for backend in addresses(cluster) {
                if listener.is_reached(backend, &mut is_local) {
                    let (cluster, listener) = (cluster.name.clone(), listener.name.clone());
                    return Err(ReachError::Itself { cluster, backend, listener });
                }
            }
        }
    }
    let in_force = in_force.iter().flat_map(|cluster| addresses(cluster));
    let mut known: HashSet<IpAddr> = in_force.map(|backend| backend.ip()).collect();
    for cluster in config.used_clusters() {
        for backend in addresses(cluster) {
            if known.insert(backend.ip()) && is_broadcast(backend) {
                return Err(ReachError::Broadcast { cluster: cluster.name.clone(), backend });
            }
        }
    }
    Ok(())
}

/// The backends that are written as addresses.
fn addresses(cluster: &Cluster) -> impl Iterator<Item = SocketAddr> {
    cluster.members.iter().filter_map(|member| match member.target {
        Target::Address(address) => Some(address),
        Target::Name { .. } => None,
    })
}

/// Whether what is sent to a backend comes to a listener that is bound to `bound`, or to one of its
/// range of ports.
pub fn is_itself(listener: &Listener, bound: SocketAddr, backend: SocketAddr) -> bool {
    match listener.last_port {
        Some(_) => listener.is_reached(backend, is_local),
        None => Listener::is_reached_at(bound, listener.v6_only, backend, is_local),
    }
}

/// Whether an address is one of this host's: to such a one the kernel sends from itself.
fn is_local(ip: IpAddr) -> bool {
    let sends_from = || {
        let socket = udp::connected((ip, 9).into(), LocalSource::Any).ok()?;
        socket2::SockRef::from(&socket).local_addr().ok()?.as_socket()
    };
    ip.is_loopback() || sends_from().is_some_and(|source| source.ip() == ip)
}

/// Whether the kernel refuses to send to an address only because it is a broadcast.
fn is_broadcast(address: SocketAddr) -> bool {
    let connects = |may_broadcast: bool| {
        let socket = socket2::Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_broadcast(may_broadcast)?;
        socket.connect(&address.into())
    };
    let is_refused = |outcome: std::io::Result<()>| {
        outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    address.is_ipv4() && is_refused(connects(false)) && !is_refused(connects(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listener: &str, backend: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"{listener}\"\ncluster = \"c\"\n[cluster.c]\nmode = \
             \"one-way\"\nbackends = [\"{backend}\"]\n"
        );
        flowgate_config::parse(&text, "f").unwrap()
    }

    #[test]
    fn addresses_of_other_hosts_and_other_ports_are_backends() {
        for (listener, backend) in [
            ("0.0.0.0:53", "192.0.2.1:53"),
            ("0.0.0.0:53", "127.0.0.1:54"),
            ("127.0.0.1:53", "127.0.0.2:53"),
        ] {
            check(&config(listener, backend)).unwrap();
        }
    }

    #[test]
    fn the_broadcast_address_of_a_link_is_none() {
        // The loopback interface has one in every namespace.
        let refused = check(&config("127.0.0.1:53", "127.255.255.255:53"));
        assert!(matches!(refused, Err(ReachError::Broadcast { .. })), "{refused:?}");
    }
}
