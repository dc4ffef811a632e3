//! Clusters that share hosts: a client gets the same host in each of them.
//!
//! The client counts by its address and a backend by its own, without the port. Two clusters with
//! the same hosts and weights on different ports then choose alike.

use core::net::SocketAddr;

/// A backend as others of its host count.
pub(crate) const fn of(backend: SocketAddr) -> SocketAddr {
    SocketAddr::new(backend.ip(), 0)
}
