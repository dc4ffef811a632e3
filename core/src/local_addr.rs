//! Which of our own addresses a client calls.

use core::net::IpAddr;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// The local address that a datagram was sent to, and that its answer must come from
/// (`IP_PKTINFO`, `IPV6_PKTINFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct LocalAddr {
    /// The address.
    pub ip: IpAddr,
    /// The index of the interface it belongs to, where that matters (IPv6 link-local); else 0.
    pub interface: u32,
}
